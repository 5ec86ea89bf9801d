# SPDX-License-Identifier: BSD-2-Clause
"""Hostile guests: building blocks for fuzzers and tests that attack a mediator from below.

Three kinds, from free to comfortable:

* *Actions* are frozen values (:class:`Smc`, :class:`Store`, :class:`Load`, ...); :func:`script` turns a
  list of them into a vCPU program and records what came back. Hypothesis can generate and shrink
  them.
* :class:`Attacker` wraps a vCPU with everything a driver can do wrong: messages with false counts,
  lists that loop, cookies of others, resumptions of threads that are not its own.
* :data:`LIES` are false RPC answers for an otherwise honest driver (``Driver.alter_answer``).

:func:`racing_writer` is the program of the second vCPU that changes memory under a call.
Nothing here ever raises for what the machine answers; that is data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import attrs

from mediator.guest.cpu import GuestAbort, GuestCpu, GuestUndefined, Registers, VcpuProgram
from mediator.guest.memory import PAGE_SIZE, page_count, page_list
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc, tee
from smccc.page_list import list_page_count
from smccc.wire import CMD, NUM_PARAMS, PARAMS, RET, message_size

_MASK32: Final = 0xFFFF_FFFF
_MASK64: Final = (1 << 64) - 1
_NONCONTIG_OUTPUT: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG

Param = tuple[int, int, int, int]
"""attr, a, b, c of a message parameter."""


def message(
    command: int,
    params: Sequence[Param] = (),
    *,
    function: int = 0,
    session: int = 0,
    cancel_id: int = 0,
    num_params: int | None = None,
    ret: int = 0,
    origin: int = 0,
) -> bytes:
    """A message as bytes; ``num_params`` may lie about the parameters that follow."""
    count = len(params) if num_params is None else num_params
    head = struct.pack("<8I", command, function, session, cancel_id, 0, ret, origin, count)
    return head + b"".join([struct.pack("<4Q", *param) for param in params])


def looping_list(pages: Sequence[int], list_ipa: int, back_to: int = 0) -> bytes:
    """A page list whose last page links back to list page ``back_to`` instead of ending."""
    image = bytearray(page_list(pages, list_ipa))
    struct.pack_into("<Q", image, len(image) - 8, list_ipa + back_to * PAGE_SIZE)
    return bytes(image)


def linked_list(pages: Sequence[int], list_ipa: int, link: int) -> bytes:
    """A page list with ``link`` in word 511 of every list page."""
    image = bytearray(page_list(pages, list_ipa))
    for end in range(PAGE_SIZE, len(image) + 1, PAGE_SIZE):
        struct.pack_into("<Q", image, end - 8, link)
    return bytes(image)


# Actions


@attrs.frozen
class Smc:
    """One SMC (or HVC) with any registers and immediate."""

    regs: Registers
    immediate: int = 0
    hvc: bool = False


@attrs.frozen
class Store:
    """A store of ``data`` at ``ipa``, which may be anywhere."""

    ipa: int
    data: bytes


@attrs.frozen
class Load:
    """A load of ``length`` bytes from ``ipa``."""

    ipa: int
    length: int


@attrs.frozen
class ResumeLast:
    """RETURN_FROM_RPC of the thread that the last answer named, with these a1, a2, a4, a5."""

    a1: int = 0
    a2: int = 0
    a4: int = 0
    a5: int = 0


Action = Smc | Store | Load | ResumeLast

ABORT: Final = "abort"
UNDEFINED: Final = "undefined"
RETURNED: Final = "returned"
STORED: Final = "stored"
LOADED: Final = "loaded"


class Outcome(NamedTuple):
    """What an action came to: its kind (a name above), registers of a trap, bytes of a load."""

    kind: str
    regs: Registers | None = None
    data: bytes = b""

    @property
    def status(self) -> int:
        """Low word of x0; UNKNOWN_FUNCTION if there are no registers."""
        if self.regs is None:
            return optee_smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
        return self.regs[0] & _MASK32

    @property
    def is_rpc(self) -> bool:
        """Whether the secure world asks for something."""
        status = self.status
        return status >= optee_smc.OPTEE_SMC_RETURN_RPC_PREFIX and (
            status != optee_smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
        )

    @property
    def thread(self) -> int:
        """Thread id of an RPC."""
        return 0 if self.regs is None else self.regs[3] & _MASK32


def script(
    actions: Iterable[Action], outcomes: list[Outcome] | None = None, rounds: int = 1
) -> VcpuProgram:
    """A vCPU program that performs ``actions`` in order, ``rounds`` times, and then ends."""
    steps = tuple(actions)
    record = outcomes if outcomes is not None else []

    async def program(cpu: GuestCpu) -> None:
        last: Outcome | None = None
        for _ in range(rounds):
            for action in steps:
                outcome = await perform(cpu, action, last)
                record.append(outcome)
                if outcome.regs is not None:
                    last = outcome

    return program


async def perform(cpu: GuestCpu, action: Action, last: Outcome | None = None) -> Outcome:
    """Perform one action. ``last``: the outcome of the trap before, for :class:`ResumeLast`."""
    try:
        match action:
            case Smc(regs, immediate, hvc):
                conduit = cpu.hvc if hvc else cpu.smc
                return Outcome(RETURNED, await conduit(*regs, immediate=immediate))
            case ResumeLast(a1, a2, a4, a5):
                thread = 0 if last is None else last.thread
                return Outcome(
                    RETURNED,
                    await cpu.smc(optee_smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, a1, a2, thread, a4, a5),
                )
            case Store(ipa, data):
                await cpu.write(ipa, data)
                return Outcome(STORED)
            case Load(ipa, length):
                return Outcome(LOADED, None, await cpu.read(ipa, length))
    except GuestAbort:
        return Outcome(ABORT)
    except GuestUndefined:
        return Outcome(UNDEFINED)


def racing_writer(writes: Sequence[tuple[int, bytes]], rounds: int = 1) -> VcpuProgram:
    """The program of a vCPU that stores each of ``writes`` (IPA, bytes) in turn, over and over.

    Useful where every access is a switch point: it then strikes between any two looks.
    """
    return script([Store(ipa, data) for ipa, data in writes], None, rounds)


# The comfortable way


class Attacker:
    """A vCPU in the hands of an attacker who knows the protocol.

    ``page``: IPA of the first of ``pages`` pages that belong to it; :meth:`take` hands them out.
    """

    def __init__(self, cpu: GuestCpu, page: int, pages: int) -> None:
        self.cpu = cpu
        self._next = page
        self._end = page + pages * PAGE_SIZE
        self.outcomes: list[Outcome] = []
        """All traps so far."""

    def take(self, pages: int = 1) -> int:
        """IPA of ``pages`` fresh adjacent pages. Raises MemoryError."""
        ipa = self._next
        if ipa + pages * PAGE_SIZE > self._end:
            raise MemoryError(f"the attacker has no {pages} pages left")
        self._next = ipa + pages * PAGE_SIZE
        return ipa

    async def smc(self, *regs: int, immediate: int = 0, hvc: bool = False) -> Outcome:
        """Any registers; those left out are 0."""
        full: Registers = (*regs, *(0,) * (8 - len(regs)))  # type: ignore[assignment]
        outcome = await perform(self.cpu, Smc(full, immediate, hvc))
        self.outcomes.append(outcome)
        return outcome

    async def store(self, ipa: int, data: bytes) -> Outcome:
        """Store anywhere."""
        return await perform(self.cpu, Store(ipa, data))

    async def load(self, ipa: int, length: int) -> bytes:
        """Load from anywhere; nothing if that aborts."""
        return (await perform(self.cpu, Load(ipa, length))).data

    async def call(
        self,
        content: bytes,
        *,
        ipa: int | None = None,
        function: int = optee_smc.OPTEE_SMC_CALL_WITH_ARG,
        high_rubbish: int = 0,
    ) -> tuple[int, Outcome]:
        """Put a message at ``ipa`` (a fresh page if not given) and call with its address.

        ``high_rubbish`` goes into bits 63:32 of x0..x2, which do not count. Returns the IPA too.
        """
        where = self.take() if ipa is None else ipa
        await self.store(where, content)
        junk = high_rubbish << 32
        return where, await self.smc(function | junk, where >> 32 | junk, where & _MASK32 | junk)

    async def call_registered(self, cookie: int, offset: int) -> Outcome:
        """CALL_WITH_REGD_ARG with any cookie and offset; the message must be there already."""
        return await self.smc(
            optee_smc.OPTEE_SMC_CALL_WITH_REGD_ARG, cookie >> 32, cookie & _MASK32, offset
        )

    async def register(
        self,
        cookie: int,
        pages: Sequence[int],
        *,
        size: int | None = None,
        offset: int = 0,
        attr: int = _NONCONTIG_OUTPUT,
        image: bytes | None = None,
        function: int = optee_smc.OPTEE_SMC_CALL_WITH_ARG,
    ) -> tuple[int, Outcome]:
        """REGISTER_SHM of ``pages`` under any cookie; the result (ret) and the outcome.

        ``image``: the bytes of the list instead of a correct one. ``size`` may lie.
        """
        list_ipa = self.take(list_page_count(len(pages)) or 1)
        await self.store(list_ipa, page_list(pages, list_ipa) if image is None else image)
        length = len(pages) * PAGE_SIZE - offset if size is None else size
        content = message(
            msg.OPTEE_MSG_CMD_REGISTER_SHM, [(attr, list_ipa | offset, length, cookie)]
        )
        where, outcome = await self.call(content, function=function)
        return await self.result(where), outcome

    async def unregister(
        self, cookie: int, function: int = optee_smc.OPTEE_SMC_CALL_WITH_ARG
    ) -> tuple[int, Outcome]:
        """UNREGISTER_SHM of any cookie."""
        content = message(
            msg.OPTEE_MSG_CMD_UNREGISTER_SHM,
            [(msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT, 0, 0, cookie)],
        )
        where, outcome = await self.call(content, function=function)
        return await self.result(where), outcome

    async def crossing_message(
        self, cookie: int, content: bytes, before: int
    ) -> tuple[Sequence[int], Outcome]:
        """Call with a message that begins ``before`` bytes before a page boundary of a buffer.

        Registers two pages under ``cookie`` first. ``before`` is a multiple of 8. Returns the pages.
        """
        pages = [self.take(), self.take()]
        await self.register(cookie, pages, function=optee_smc.OPTEE_SMC_CALL_WITH_RPC_ARG)
        await self.store(pages[0] + PAGE_SIZE - before, content[:before])
        await self.store(pages[1], content[before:])
        return pages, await self.call_registered(cookie, PAGE_SIZE - before)

    async def resume(
        self, thread: int, a1: int = 0, a2: int = 0, a4: int = 0, a5: int = 0
    ) -> Outcome:
        """RETURN_FROM_RPC of any thread, one's own or not."""
        return await self.smc(optee_smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, a1, a2, thread, a4, a5)

    async def result(self, ipa: int) -> int:
        """``ret`` of the message at ``ipa``; all ones if it cannot be read."""
        head = await self.load(ipa, 32)
        if len(head) < 32:
            return _MASK32
        ret: int = struct.unpack_from("<8I", head)[RET]
        return ret

    async def to_the_end(self, outcome: Outcome, rpc_ipa: int = 0, limit: int = 1000) -> Outcome:
        """Answer RPCs without serving them (ALLOC gets a page, commands NOT_SUPPORTED) until the end.

        ``rpc_ipa``: where the RPC argument of this call is, 0 in the classic style. At most
        ``limit`` resumptions.
        """
        buffers: dict[int, int] = {}
        for _ in range(limit):
            if not outcome.is_rpc or outcome.regs is None:
                break
            a1, a2 = outcome.regs[1] & _MASK32, outcome.regs[2] & _MASK32
            a4 = a5 = 0
            if outcome.status == optee_smc.OPTEE_SMC_RETURN_RPC_ALLOC:
                page = self.take(page_count(0, a1))
                buffers[page] = page
                a1, a2, a4, a5 = page >> 32, page & _MASK32, page >> 32, page & _MASK32
            elif outcome.status == optee_smc.OPTEE_SMC_RETURN_RPC_CMD:
                where = rpc_ipa or buffers.get(a1 << 32 | a2, 0)
                await self.store(where + 4 * RET, struct.pack("<I", tee.TEE_ERROR_NOT_SUPPORTED))
            outcome = await self.resume(outcome.thread, a1, a2, a4, a5)
        return outcome


# False answers to RPCs

Lie = Callable[[list[int]], None]
"""Changes the fields of an RPC answer (laid out as :mod:`smccc.wire`), its length too."""


def _answers_alloc(fields: list[int]) -> bool:
    return fields[CMD] == rpc.OPTEE_RPC_CMD_SHM_ALLOC and len(fields) > PARAMS


def on_alloc(change: Lie) -> Lie:
    """A lie told only in answers to SHM_ALLOC."""

    def lie(fields: list[int]) -> None:
        if _answers_alloc(fields):
            change(fields)

    return lie


def _set(place: int, value: int) -> Lie:
    def change(fields: list[int]) -> None:
        if place < len(fields):
            fields[place] = value

    return change


def _add(place: int, value: int) -> Lie:
    def change(fields: list[int]) -> None:
        if place < len(fields):
            fields[place] = fields[place] + value & _MASK64

    return change


def _another_param(fields: list[int]) -> None:
    if message_size(fields[NUM_PARAMS] + 1) <= PAGE_SIZE:
        fields[NUM_PARAMS] += 1
        fields += fields[-4:] if len(fields) > PARAMS else [0, 0, 0, 0]


_ATTR, _POINTER, _SIZE, _COOKIE = range(PARAMS, PARAMS + 4)

LIES: Final[Mapping[str, Lie]] = MappingProxyType(
    {
        "another attribute": on_alloc(_set(_ATTR, msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT)),
        "contiguous": on_alloc(_set(_ATTR, msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT)),
        "a value": on_alloc(_set(_ATTR, msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT)),
        "registered": on_alloc(_set(_ATTR, msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT)),
        "an undefined attribute": on_alloc(_set(_ATTR, 0xC)),
        "null": on_alloc(_set(_POINTER, 0)),
        "an address that is nowhere": on_alloc(_set(_POINTER, 0xFFFF_FFFF_F000)),
        "an address of all ones": on_alloc(_set(_POINTER, _MASK64)),
        "the next page": on_alloc(_add(_POINTER, PAGE_SIZE)),
        "no size": on_alloc(_set(_SIZE, 0)),
        "less than asked": on_alloc(_add(_SIZE, -1)),
        "a page more": on_alloc(_add(_SIZE, PAGE_SIZE)),
        "all there is": on_alloc(_set(_SIZE, _MASK64)),
        "cookie 0": on_alloc(_set(_COOKIE, 0)),
        "failed, with an address": on_alloc(_set(RET, tee.TEE_ERROR_OUT_OF_MEMORY)),
        "no parameters": _set(NUM_PARAMS, 0),
        "a parameter more": _another_param,
        "127 parameters": _set(NUM_PARAMS, 127),
        "128 parameters": _set(NUM_PARAMS, 128),
        "all ones parameters": _set(NUM_PARAMS, _MASK32),
        "another command": _set(CMD, rpc.OPTEE_RPC_CMD_SHM_FREE),
        "an alloc answered as something else": on_alloc(_set(CMD, rpc.OPTEE_RPC_CMD_FS)),
        "something else answered as an alloc": _set(CMD, rpc.OPTEE_RPC_CMD_SHM_ALLOC),
        "an error": _set(RET, tee.TEE_ERROR_GENERIC),
        "success": _set(RET, tee.TEE_SUCCESS),
        "an error of all ones": _set(RET, _MASK32),
    }
)
"""False answers by name. Use them one at a time, or now and then: ``driver.alter_answer = LIES[name]``."""


def sometimes(lie: Lie, when: Callable[[], bool]) -> Lie:
    """Tell ``lie`` only where ``when()`` says so (a seeded choice, a countdown)."""

    def choose(fields: list[int]) -> None:
        if when():
            lie(fields)

    return choose
