# SPDX-License-Identifier: BSD-2-Clause
"""System calls of an app: each is a message, and its answer comes with the next one.

:class:`AppSyscalls` implements :class:`mediator.optee.syscalls.Syscalls` for one entry. Its methods
are coroutines that yield the message; the runtime sends it and hands the answer in.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from types import coroutine
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import FLAG_POSTED, HEADER, HEADER_SIZE, SYSCALL
from mediator.host import PAGE_SIZE, Shadow
from mediator.optee.core import WALK_PREEMPTED, WALK_REFUSED, WALKED
from mediator.optee.syscalls import Syscall, Syscalls

READ_GUEST: Final = int(Syscall.READ_GUEST)
WRITE_GUEST: Final = int(Syscall.WRITE_GUEST)
READ_PINNED: Final = int(Syscall.READ_PINNED)
WRITE_PINNED: Final = int(Syscall.WRITE_PINNED)
SMC: Final = int(Syscall.SMC)
WRITE_RESULT: Final = int(Syscall.WRITE_RESULT)

_STATUS: Final = struct.Struct("<q")
_STATUS_AT: Final = 16
_STATUS_ARGS: Final = struct.Struct("<q8Q")
_SMC_RESULT: Final = struct.Struct("<q4Q")
_FLAGS: Final = struct.Struct("<I")
_FLAGS_AT: Final = 4

_status = _STATUS.unpack_from
_pack = HEADER.pack

Call = Generator[bytes, bytes, "Answer"]


class Answer(NamedTuple):
    """A RESULT: status (0 or 1), results, payload."""

    status: int
    args: tuple[int, ...]
    payload: bytes


class HostFailure(Exception):
    """The hypervisor's own service failed: give back what the entry holds."""


class Refused(Exception):
    """The hypervisor refused a system call: this app asked for what it may not have."""

    def __init__(self, number: int, status: int) -> None:
        name = Syscall(number).name if number in Syscall._value2member_map_ else str(number)
        super().__init__(f"system call {name} was refused: status {status}")
        self.number = number
        self.status = status


class Conversation(Protocol):
    """What the runtime knows that system calls need."""

    posted: list[bytes]
    posting: bool
    arena: memoryview
    offsets: dict[int, int]


def failure(number: int, status: int) -> Exception:
    """The exception for a negative status."""
    return HostFailure() if status == abi.HOST_FAILED else Refused(number, status)


class AppSyscalls:
    """System calls for one entry. ``entry``: its name in messages.

    ``ahead``: a read that the hypervisor has done already: system call, guest, address, length, data. It
    is good until anything else is asked for.
    """

    __slots__ = ("_talk", "ahead", "entry")

    def __init__(self, entry: int, talk: Conversation) -> None:
        self.entry = entry
        self._talk = talk
        self.ahead: tuple[int, int, int, int, bytes] | None = None

    def _read(self, number: int, guest: int, address: int, length: int) -> bytes | None:
        """What was read ahead, if it is this, and nothing that was posted has to come before."""
        ahead = self.ahead
        self.ahead = None
        if ahead is None or self._talk.posted or ahead[:4] != (number, guest, address, length):
            return None
        return ahead[4]

    @coroutine
    def call(self, number: int, payload: bytes = b"", *args: int) -> Call:
        """Any system call: its answer, or an exception if the status is negative."""
        words = args + (0,) * (8 - len(args))
        message = _pack(SYSCALL, number, 0, self.entry, len(payload), 0, *words, 0) + payload
        self.ahead = None
        answer = yield message
        status, *results = _STATUS_ARGS.unpack_from(answer, _STATUS_AT)
        if status < 0:
            raise failure(number, status)
        return Answer(status, tuple(results), answer[HEADER_SIZE:])

    @coroutine
    def post(self, number: int, payload: bytes, *args: int) -> Generator[bytes, bytes, None]:
        """A system call without an answer; asked one by one if the hypervisor wants it so."""
        words = args + (0,) * (8 - len(args))
        length, entry = len(payload), self.entry
        if self._talk.posting:
            head = _pack(SYSCALL, number, FLAG_POSTED, entry, length, 0, *words, 0)
            self._talk.posted.append(head + payload)
            return
        self.ahead = None
        answer = yield _pack(SYSCALL, number, 0, entry, length, 0, *words, 0) + payload
        (status,) = _status(answer, _STATUS_AT)
        if status < 0:
            raise failure(number, status)

    # --- the hot ones ---------------------------------------------------------------------------

    @coroutine
    def read_guest(
        self, guest: int, ipa: int, length: int
    ) -> Generator[bytes, bytes, bytes | None]:
        """See :meth:`mediator.host.Host.read_guest`; likewise below."""
        if self.ahead is not None:
            data = self._read(READ_GUEST, guest, ipa, length)
            if data is not None:
                return data
        answer = yield _pack(
            SYSCALL, READ_GUEST, 0, self.entry, 0, 0, guest, ipa, length, 0, 0, 0, 0, 0, 0
        )
        (status,) = _status(answer, _STATUS_AT)
        if status:
            if status < 0:
                raise failure(READ_GUEST, status)
            return None
        return answer[HEADER_SIZE:]

    @coroutine
    def write_guest(
        self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]
    ) -> Generator[bytes, bytes, bool]:
        payload = abi.pack_segments(segments)
        count, size = len(segments), len(payload)
        self.ahead = None
        answer = yield (
            _pack(SYSCALL, WRITE_GUEST, 0, self.entry, size, 0, guest, ipa, count, 0, 0, 0, 0, 0, 0)
            + payload
        )
        (status,) = _status(answer, _STATUS_AT)
        if status < 0:
            raise failure(WRITE_GUEST, status)
        return not status

    @coroutine
    def read_pinned(self, guest: int, pa: int, length: int) -> Generator[bytes, bytes, bytes]:
        if self.ahead is not None:
            data = self._read(READ_PINNED, guest, pa, length)
            if data is not None:
                return data
        answer = yield _pack(
            SYSCALL, READ_PINNED, 0, self.entry, 0, 0, guest, pa, length, 0, 0, 0, 0, 0, 0
        )
        (status,) = _status(answer, _STATUS_AT)
        if status:
            raise failure(READ_PINNED, status)
        return answer[HEADER_SIZE:]

    @coroutine
    def write_pinned(
        self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]
    ) -> Generator[bytes, bytes, None]:
        payload = abi.pack_segments(segments)
        count, size, entry = len(segments), len(payload), self.entry
        talk = self._talk
        flags = FLAG_POSTED if talk.posting else 0
        message = (
            _pack(SYSCALL, WRITE_PINNED, flags, entry, size, 0, guest, pa, count, 0, 0, 0, 0, 0, 0)
            + payload
        )
        if flags:
            talk.posted.append(message)
            return
        self.ahead = None
        answer = yield message
        (status,) = _status(answer, _STATUS_AT)
        if status:
            raise failure(WRITE_PINNED, status)

    @coroutine
    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> Generator[bytes, bytes, tuple[int, int, int, int]]:
        self.ahead = None
        answer = yield _pack(SYSCALL, SMC, 0, self.entry, 0, 0, a0, a1, a2, a3, a4, a5, a6, a7, 0)
        status, x0, x1, x2, x3 = _SMC_RESULT.unpack_from(answer, _STATUS_AT)
        if status:
            raise failure(SMC, status)
        return x0, x1, x2, x3

    # --- pages ----------------------------------------------------------------------------------

    async def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        answer = await self.call(Syscall.READ_PAGE_LIST, b"", guest, ipa, entries)
        return None if answer.status else (answer.payload, answer.args[0])

    async def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        answer = await self.call(Syscall.PIN_PAGES, ipas, guest)
        return None if answer.status else answer.payload

    async def unpin_pages(self, guest: int, frames: bytes) -> None:
        await self.post(Syscall.UNPIN_PAGES, frames, guest)

    async def alloc_shadow(self, pages: int) -> Shadow | None:
        answer = await self.call(Syscall.ALLOC_SHADOW, b"", pages)
        return None if answer.status else self._shadow(answer.payload, answer.args[0])

    async def free_shadow(self, shadow: Shadow) -> None:
        shadow.mem.release()
        self._talk.offsets.pop(shadow.pa, None)
        await self.post(Syscall.FREE_SHADOW, shadow.pages)

    async def map_shadow(self, pages: bytes) -> Shadow:
        answer = await self.call(Syscall.MAP_SHADOW, pages)
        return self._shadow(pages, answer.args[0])

    def _shadow(self, pages: bytes, offset: int) -> Shadow:
        shadow = Shadow(pages, self._talk.arena[offset : offset + (len(pages) << 9)])
        self._talk.offsets[shadow.pa] = offset
        return shadow

    def offset(self, shadow: Shadow) -> int:
        """Where ``shadow`` lies in the arena."""
        return self._talk.offsets[shadow.pa]

    # --- the rest of the machine ----------------------------------------------------------------

    async def should_preempt(self) -> bool:
        answer = await self.call(Syscall.SHOULD_PREEMPT)
        return bool(answer.args[0])

    async def inject_virq(self, guest: int, intid: int) -> None:
        await self.post(Syscall.INJECT_VIRQ, b"", guest, intid)

    async def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        await self.post(Syscall.PARK_VCPU, b"", guest, vcpu, until)

    async def wake_vcpu(self, guest: int, vcpu: int) -> None:
        await self.post(Syscall.WAKE_VCPU, b"", guest, vcpu)

    async def now(self) -> int:
        answer = await self.call(Syscall.NOW)
        return answer.args[0]

    async def set_timer(self, deadline: int | None) -> None:
        cancel = deadline is None
        await self.post(Syscall.SET_TIMER, b"", deadline or 0, int(cancel))

    async def quarantine(self, guest: int, answer: int) -> None:
        await self.post(Syscall.QUARANTINE, b"", guest, answer)

    async def log(self, guest: int, message: str) -> None:
        await self.post(Syscall.LOG, message.encode()[: abi.MAX_LOG], guest)

    async def register_hook(self, kind: int, first: int = 0, last: int = 0) -> None:
        """Enter this app for these events from now on."""
        await self.call(Syscall.REGISTER_HOOK, b"", kind, first, last)


async def walk(
    sys: Syscalls, guest: int, ipa: int, entries: int, step: int, shadow: Shadow, page: int
) -> tuple[int, int, int, bool]:
    """A page list read and pinned in one request (:data:`mediator.optee.core.FusedWalk`)."""
    assert isinstance(sys, AppSyscalls)
    offset = sys.offset(shadow) + page * PAGE_SIZE
    answer = await _pin_list(sys, guest, ipa, entries, step, offset)
    (flags,) = _FLAGS.unpack_from(answer, _FLAGS_AT)
    status, link, pinned, low = _WALKED.unpack_from(answer, _STATUS_AT)
    if status < 0 and status != abi.TOO_MUCH:
        raise failure(Syscall.PIN_LIST, status)
    end = WALKED
    if status:
        end = WALK_REFUSED
    elif flags & abi.FLAG_PREEMPT:
        end = WALK_PREEMPTED
    return pinned, link, end, bool(low)


async def finish(
    sys: Syscalls, guest: int, page: int, segments: list[tuple[int, bytes]], refused: int
) -> None:
    """The results of a call, on their way with its RETURN (:data:`mediator.optee.core.FinalWrite`)."""
    assert isinstance(sys, AppSyscalls)
    payload = abi.pack_segments(segments)
    head = _pack(
        SYSCALL,
        WRITE_RESULT,
        FLAG_POSTED,
        sys.entry,
        len(payload),
        0,
        guest,
        page,
        len(segments),
        refused,
        0,
        0,
        0,
        0,
        0,
    )
    sys._talk.posted.append(head + payload)


_WALKED: Final = struct.Struct("<q3Q")


@coroutine
def _pin_list(
    sys: AppSyscalls, guest: int, ipa: int, entries: int, step: int, offset: int
) -> Generator[bytes, bytes, bytes]:
    number = int(Syscall.PIN_LIST)
    sys.ahead = None
    return (
        yield _pack(
            SYSCALL, number, 0, sys.entry, 0, 0, guest, ipa, entries, step, offset, 0, 0, 0, 0
        )
    )


if TYPE_CHECKING:

    def _are_syscalls(sys: AppSyscalls) -> Syscalls:
        return sys
