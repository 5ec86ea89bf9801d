# SPDX-License-Identifier: BSD-2-Clause
"""The system calls of an app, served. Every argument is hostile until it was looked at.

An app may ask for what its manifest lists, for the guest of the entry that it serves, about pages that
are its own. Whatever else it asks for is refused, counted and reported; a service of the host that
fails is reported to the app so that it can clean up, and the exception goes to the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER, RESULT
from mediator.deployment.el0_app import ahead
from mediator.deployment.el0_app.channel import AppGone, Message
from mediator.deployment.el0_app.events import AppRefused
from mediator.deployment.el0_app.grants import NO_GUEST, Grant, Open
from mediator.deployment.el0_app.iommu import Iommu
from mediator.deployment.el0_app.manifest import Manifest, within
from mediator.deployment.el0_app.shadow_book import ShadowBook
from mediator.deployment.el0_app.traced import traced
from mediator.deployment.el0_app.walks import Take, Walk, list_writer, walk
from mediator.deployment.el0_app.windows import Windows
from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Host, Shadow
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_smc as smc

M32: Final = 0xFFFF_FFFF
SHADOWS_AT: Final = abi.WINDOW_PAGES * PAGE_SIZE
"""Byte of the arena where the pages of shadows begin."""

_WORD: Final = 8
_LIST_PAGE: Final = 511
_MAX_VCPU: Final = 1 << 16
_MAX_INTID: Final = 1 << 24

READ_GUEST: Final = int(Syscall.READ_GUEST)
READ_PINNED: Final = int(Syscall.READ_PINNED)
SMC: Final = int(Syscall.SMC)
WRITE_RESULT: Final = int(Syscall.WRITE_RESULT)

_PROBES: Final = frozenset((smc.OPTEE_SMC_CALLS_UID, smc.OPTEE_SMC_GET_THREAD_COUNT))
_LIFE: Final = frozenset((smc.OPTEE_SMC_VM_CREATED, smc.OPTEE_SMC_VM_DESTROYED))
_LIFE_ENTRIES: Final = frozenset((abi.ENTRY_GUEST_CREATED, abi.ENTRY_GUEST_DESTROYED))

Sink = Callable[[tuple[object, ...]], None]
SecureCall = Callable[..., Awaitable[tuple[int, int, int, int]]]
"""A secure world that is waited for: x0..x7 in, x0..x3 out."""

_pack = HEADER.pack


class SharedShadows(Protocol):
    """Shadow pages whose contents lie in a buffer that an app maps too.

    A host whose mediator is to be an app has one (:class:`mediator.hypervisor.shadows.ShadowPool`).
    """

    def share(self, buffer: memoryview) -> int:
        """Take pages from ``buffer`` from now on; the number of this source."""

    def select(self, source: int) -> None:
        """Take pages from this source from now on, and give them back to it."""

    def offset(self, pa: int) -> int:
        """Where the page at ``pa`` lies in the buffer of the selected source."""


class Refusal(Exception):
    """A system call is refused with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


Handler = Callable[[Open, Message], bytes]


def result(
    message: Message,
    status: int,
    payload: bytes = b"",
    a0: int = 0,
    a1: int = 0,
    a2: int = 0,
    a3: int = 0,
    flags: int = 0,
) -> bytes:
    """The RESULT of a system call."""
    number, entry, length = message.number, message.entry, len(payload)
    head = _pack(RESULT, number, flags, entry, length, status, a0, a1, a2, a3, 0, 0, 0, 0, 0)
    return head + payload


def _lent(entry: Open, answer: bytes) -> None:
    """The app reads the answer by which the guest lends memory."""
    if entry.lent_at:
        entry.lent_at = 0
        entry.grant.lent.answered(answer)


class Server:
    """Serves one app. ``app``: its number in events; ``source``: of its shadow pages."""

    def __init__(
        self,
        app: int,
        host: Host,
        shadows: SharedShadows,
        source: int,
        manifest: Manifest,
        grants: dict[int, Grant],
        windows: Windows,
        iommu: Iommu,
        set_timer: Callable[[int | None], None],
        sink: Sink | None,
    ) -> None:
        self.app = app
        self._host = host
        self._pool = shadows
        self._source = source
        self._manifest = manifest
        self._grants = grants
        self._windows = windows
        self._iommu = iommu
        self._set_timer_of_app = set_timer
        self._sink = sink
        self.shadows = ShadowBook()
        """Shadow pages that the app has."""
        self.hooks: list[tuple[int, int, int]] = []
        """Kind, first and last of what the app wants to be entered for."""
        self.refusals = 0
        self._forwarded: set[int] = set()
        self._plain: set[int] = set()
        """Functions that may be forwarded with a guest's client id, whichever guest it is."""
        handlers: dict[int, Handler] = {
            Syscall.LOG: self._log,
            Syscall.READ_GUEST: self._read_guest,
            Syscall.WRITE_GUEST: self._write_guest,
            Syscall.READ_PAGE_LIST: self._read_page_list,
            Syscall.PIN_PAGES: self._pin_pages,
            Syscall.UNPIN_PAGES: self._unpin_pages,
            Syscall.READ_PINNED: self._read_pinned,
            Syscall.WRITE_PINNED: self._write_pinned,
            Syscall.ALLOC_SHADOW: self._alloc_shadow,
            Syscall.FREE_SHADOW: self._free_shadow,
            Syscall.SMC: self._smc,
            Syscall.SHOULD_PREEMPT: self._should_preempt,
            Syscall.INJECT_VIRQ: self._inject_virq,
            Syscall.NOW: self._now,
            Syscall.SET_TIMER: self._set_timer,
            Syscall.MAP_SHADOW: self._map_shadow,
            Syscall.QUARANTINE: self._quarantine,
            Syscall.PARK_VCPU: self._park_vcpu,
            Syscall.WAKE_VCPU: self._wake_vcpu,
            Syscall.REGISTER_HOOK: self._register_hook,
            Syscall.MAP_GUEST_PAGE: self._map_guest_page,
            Syscall.UNMAP_GUEST_PAGE: self._unmap_guest_page,
            Syscall.MAP_DEVICE: self._map_device,
            Syscall.IOMMU: self._program_iommu,
            Syscall.READ_AND_PIN: self._read_and_pin,
            Syscall.TRACE: self._trace,
            Syscall.WRITE_RESULT: self._write_result,
            Syscall.PIN_LIST: self._pin_list,
        }
        self._handlers = {
            number: handler for number, handler in handlers.items() if number in manifest.syscalls
        }
        self._known = frozenset(handlers)

    def execute(self, entry: Open, message: Message) -> bytes:
        """Serve a system call: its RESULT. Raises :class:`AppGone` if it was refused too often."""
        grant = entry.grant
        grant.syscalls += 1
        handler = self._handlers.get(message.number)
        if handler is None:
            known = message.number in self._known
            return self._refuse(entry, message, abi.NOT_ALLOWED if known else abi.NO_SUCH_CALL)
        if entry.failed is not None and message.number not in _RELEASES:
            return result(message, abi.HOST_FAILED)
        try:
            return handler(entry, message)
        except Refusal as refusal:
            return self._refuse(entry, message, refusal.status)
        except AppGone:
            raise
        except Exception as error:
            # The first one is what the caller hears of.
            entry.failed = entry.failed or error
            return result(message, abi.HOST_FAILED)

    def post(self, entry: Open, message: Message) -> None:
        """Serve a system call that wants no answer."""
        if message.number == WRITE_RESULT and WRITE_RESULT in self._handlers:
            # As execute() does it; nearly all that is posted.
            entry.grant.syscalls += 1
            if entry.failed is not None:
                return
            try:
                if not self._written(entry, message):
                    entry.refused_x0 = message.args[3]
            except Refusal as refusal:
                self._refuse(entry, message, refusal.status)
            except AppGone:
                raise
            except Exception as error:
                entry.failed = error
        elif message.number not in POSTABLE:
            entry.grant.syscalls += 1
            self._refuse(entry, message, abi.NOT_ALLOWED)
        else:
            self.execute(entry, message)

    def _refuse(self, entry: Open, message: Message, status: int) -> bytes:
        if status != abi.TOO_MUCH:
            self.refusals += 1
            entry.grant.refused += 1
            if self._sink is not None:
                self._sink(AppRefused(self.app, entry.guest, message.number, status))
            if self.refusals > abi.MAX_REFUSALS:
                raise AppGone(f"refused: more than {abi.MAX_REFUSALS} system calls")
        return result(message, status)

    def _grant(self, entry: Open, guest: int) -> Grant:
        """The guest that a call is about, if this entry may touch it."""
        if guest == entry.guest:
            return entry.grant
        grant = self._grants.get(guest)
        if entry.guest != NO_GUEST or grant is None or grant.lost:
            raise Refusal(abi.NOT_ALLOWED)
        return grant

    # --- guest memory ---------------------------------------------------------------------------

    def _read_guest(self, entry: Open, message: Message) -> bytes:
        guest, ipa, length, *_ = message.args
        self._grant(entry, guest)
        if not 0 < length <= PAGE_SIZE - (ipa & PAGE_MASK):
            raise Refusal(abi.BAD_ARGUMENT)
        read = READ_GUEST, ipa, length
        if ahead.missed(entry, read):
            return result(message, abi.NO)
        data = self._host.read_guest(guest, ipa, length)
        if data is None:
            return result(message, abi.NO)
        if ipa == entry.lent_at:
            _lent(entry, data)
        if entry.key is not None:
            ahead.learn(entry, read)
        return result(message, abi.OK, data)

    def _written(self, entry: Open, message: Message) -> bool:
        args = message.args
        guest, ipa = args[0], args[1]
        if guest != entry.guest:
            self._grant(entry, guest)
        segments = abi.unpack_segments(args[2], message.payload, PAGE_SIZE)
        if segments is None or ipa & PAGE_MASK:
            raise Refusal(abi.BAD_ARGUMENT)
        entry.wrote = ipa, segments
        return self._host.write_guest(guest, ipa, segments)

    def _write_guest(self, entry: Open, message: Message) -> bytes:
        return result(message, abi.OK if self._written(entry, message) else abi.NO)

    def _write_result(self, entry: Open, message: Message) -> bytes:
        if self._written(entry, message):
            return result(message, abi.OK)
        entry.refused_x0 = message.args[3]
        return result(message, abi.NO)

    def _read_page_list(self, entry: Open, message: Message) -> bytes:
        guest, ipa, entries, *_ = message.args
        self._grant(entry, guest)
        if not 0 < entries <= abi.MAX_PAGES:
            raise Refusal(abi.BAD_ARGUMENT)
        chain = self._host.read_page_list(guest, ipa, entries)
        if chain is None:
            return result(message, abi.NO)
        return result(message, abi.OK, chain[0], chain[1])

    # --- pins -----------------------------------------------------------------------------------

    def _pin_pages(self, entry: Open, message: Message) -> bytes:
        guest = message.args[0]
        grant = self._grant(entry, guest)
        count = _words(message.payload)
        if grant.pins.count + count > self._manifest.pinned_pages:
            raise Refusal(abi.TOO_MUCH)
        frames = self._host.pin_pages(guest, message.payload)
        if frames is None:
            return result(message, abi.NO)
        grant.pins.add(frames)
        return result(message, abi.OK, frames)

    def _unpin_pages(self, entry: Open, message: Message) -> bytes:
        guest, frames = message.args[0], message.payload
        grant = self._grant(entry, guest)
        _words(frames)
        if self._iommu.maps_any(guest, frames) or not grant.pins.take(frames):
            raise Refusal(abi.NOT_YOURS)
        self._host.unpin_pages(guest, frames)
        return result(message, abi.OK)

    def _read_and_pin(self, entry: Open, message: Message) -> bytes:
        listed: list[bytes] = []
        found = self._walk(entry, message, listed.append)
        words = listed[0] if len(listed) == 1 else b"".join(listed)
        return result(
            message, found.status, words, found.link, len(words) // _WORD, flags=found.flags
        )

    def _pin_list(self, entry: Open, message: Message) -> bytes:
        """The app could write the same into its arena; what is there is of no interest here."""
        entries, offset = message.args[2], message.args[4]
        arena = self._windows.view
        pages = -(-entries // _LIST_PAGE)
        if offset & PAGE_MASK or offset < SHADOWS_AT or pages > (len(arena) - offset) // PAGE_SIZE:
            raise Refusal(abi.BAD_ARGUMENT)
        found = self._walk(entry, message, list_writer(arena[offset:]))
        counts = found.link, found.pinned, int(found.low)
        return result(message, found.status, b"", *counts, flags=found.flags)

    def _walk(self, entry: Open, message: Message, take: Take) -> Walk:
        guest, ipa, entries, step, *_ = message.args
        grant = self._grant(entry, guest)
        if not 0 < entries <= abi.MAX_PAGES or not step or step % _LIST_PAGE:
            raise Refusal(abi.BAD_ARGUMENT)
        if grant.pins.count + entries > self._manifest.pinned_pages:
            raise Refusal(abi.TOO_MUCH)
        found = walk(self._host, guest, ipa, entries, step, take)
        for frames in found.frames:
            grant.pins.add(frames)
        return found

    def _read_pinned(self, entry: Open, message: Message) -> bytes:
        guest, pa, length, *_ = message.args
        grant = self._grant(entry, guest)
        if not 0 < length <= PAGE_SIZE - (pa & PAGE_MASK):
            raise Refusal(abi.BAD_ARGUMENT)
        if not grant.pins.holds(pa):
            raise Refusal(abi.NOT_YOURS)
        read = READ_PINNED, pa, length
        ahead.missed(entry, read)
        data = self._host.read_pinned(guest, pa, length)
        if pa == entry.lent_at:
            _lent(entry, data)
        if entry.key is not None:
            ahead.learn(entry, read)
        return result(message, abi.OK, data)

    def _write_pinned(self, entry: Open, message: Message) -> bytes:
        guest, pa, count, *_ = message.args
        grant = self._grant(entry, guest)
        segments = abi.unpack_segments(count, message.payload, PAGE_SIZE)
        if segments is None or pa & PAGE_MASK:
            raise Refusal(abi.BAD_ARGUMENT)
        if not grant.pins.holds(pa):
            raise Refusal(abi.NOT_YOURS)
        entry.wrote = pa, segments
        self._host.write_pinned(guest, pa, segments)
        return result(message, abi.OK)

    # --- shadow pages ---------------------------------------------------------------------------

    def _alloc_shadow(self, entry: Open, message: Message) -> bytes:
        pages = message.args[0]
        if not 0 < pages <= self._manifest.arena_pages:
            raise Refusal(abi.BAD_ARGUMENT)
        if entry.grant.shadow_pages + pages > self._manifest.shadow_pages:
            return result(message, abi.NO)
        self._pool.select(self._source)
        shadow = self._host.alloc_shadow(pages)
        if shadow is None:
            return result(message, abi.NO)
        self.shadows.take(shadow, entry.grant)
        return result(message, abi.OK, shadow.pages, SHADOWS_AT + self._pool.offset(shadow.pa))

    def _free_shadow(self, entry: Open, message: Message) -> bytes:
        shadow = self._shadow(message)
        self.shadows.give_back(shadow)
        self._pool.select(self._source)
        self._host.free_shadow(shadow)
        return result(message, abi.OK)

    def _map_shadow(self, entry: Open, message: Message) -> bytes:
        shadow = self._shadow(message)
        self._pool.select(self._source)
        return result(message, abi.OK, b"", SHADOWS_AT + self._pool.offset(shadow.pa))

    def _shadow(self, message: Message) -> Shadow:
        shadow = self.shadows.get(int.from_bytes(message.payload[:_WORD], "little"))
        if shadow is None or shadow.pages != message.payload:
            raise Refusal(abi.NOT_YOURS)
        return shadow

    # --- secure world ---------------------------------------------------------------------------

    def _smc(self, entry: Open, message: Message) -> bytes:
        args = message.args
        client = args[7]
        if client and client == entry.grant.client and args[0] in self._plain:
            x0, x1, x2, x3 = self._host.smc(*args)
            return _pack(RESULT, SMC, 0, entry.name, 0, 0, x0, x1, x2, x3, 0, 0, 0, 0, 0)
        life = self._admit_smc(entry, args)
        return self._smc_result(message, life, self._host.smc(*args))

    async def execute_smc(self, entry: Open, message: Message, call: SecureCall) -> bytes:
        """The same with a secure world that is waited for."""
        entry.grant.syscalls += 1
        if entry.failed is not None:
            return result(message, abi.HOST_FAILED)
        try:
            if message.number not in self._handlers:
                raise Refusal(abi.NOT_ALLOWED)
            life = self._admit_smc(entry, message.args)
            return self._smc_result(message, life, await call(*message.args))
        except Refusal as refusal:
            return self._refuse(entry, message, refusal.status)
        except AppGone:
            raise
        except Exception as error:
            entry.failed = error
            return result(message, abi.HOST_FAILED)

    def _admit_smc(self, entry: Open, args: tuple[int, ...]) -> Grant | None:
        """Check a call to the secure world; the guest whose life it changes, if any."""
        function, client = args[0] & M32, args[7]
        if function not in self._forwarded:
            if not within(self._manifest.forward, function, function):
                raise Refusal(abi.NOT_ALLOWED)
            self._forwarded.add(function)
            if function not in _LIFE and function != smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF:
                self._plain.add(function)
        if function == smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF:
            entry.grant.listens = True
        if not client:
            return self._own_call(entry, function, args[1])
        if client != entry.grant.client or function in _LIFE:
            known = any(
                grant.client == client and not grant.lost for grant in self._grants.values()
            )
            if entry.guest != NO_GUEST or not known or function in _LIFE:
                raise Refusal(abi.NOT_ALLOWED)
        return None

    def _smc_result(
        self, message: Message, life: Grant | None, answer: tuple[int, int, int, int]
    ) -> bytes:
        x0, x1, x2, x3 = answer
        if life is not None:
            if message.args[0] & M32 == smc.OPTEE_SMC_VM_CREATED:
                life.partition = x0 & M32 == smc.OPTEE_SMC_RETURN_OK
            else:
                life.partition = False
                life.answer = x0
        return result(message, abi.OK, b"", x0, x1, x2, x3)

    def _own_call(self, entry: Open, function: int, a1: int) -> Grant | None:
        """A call of the hypervisor itself; the guest whose life it changes."""
        if entry.number == abi.ENTRY_INIT:
            if function in _PROBES or (function == smc.OPTEE_SMC_VM_DESTROYED and not a1):
                return None
        elif entry.number in _LIFE_ENTRIES and function in _LIFE and a1 == entry.grant.client:
            return entry.grant
        raise Refusal(abi.NOT_ALLOWED)

    # --- the rest of the machine ----------------------------------------------------------------

    def _should_preempt(self, entry: Open, message: Message) -> bytes:
        stop = self._host.should_preempt()
        entry.stopped |= stop
        return result(message, abi.OK, b"", int(stop))

    def _now(self, entry: Open, message: Message) -> bytes:
        return result(message, abi.OK, b"", self._host.now())

    def _log(self, entry: Open, message: Message) -> bytes:
        guest = message.args[0]
        if guest == abi.NO_GUEST:
            guest = NO_GUEST
        else:
            self._grant(entry, guest)
        text = message.payload[: abi.MAX_LOG].decode("utf-8", "replace")
        self._host.log(guest, text)
        return result(message, abi.OK)

    def _inject_virq(self, entry: Open, message: Message) -> bytes:
        guest, intid, *_ = message.args
        self._grant(entry, guest)
        if intid >= _MAX_INTID:
            raise Refusal(abi.BAD_ARGUMENT)
        if not within(self._manifest.virqs, intid, intid):
            raise Refusal(abi.NOT_ALLOWED)
        self._host.inject_virq(guest, intid)
        return result(message, abi.OK)

    def _park_vcpu(self, entry: Open, message: Message) -> bytes:
        guest, vcpu, until, *_ = message.args
        self._grant(entry, guest)
        if vcpu >= _MAX_VCPU:
            raise Refusal(abi.BAD_ARGUMENT)
        self._host.park_vcpu(guest, vcpu, until)
        return result(message, abi.OK)

    def _wake_vcpu(self, entry: Open, message: Message) -> bytes:
        guest, vcpu, *_ = message.args
        self._grant(entry, guest)
        if vcpu >= _MAX_VCPU:
            raise Refusal(abi.BAD_ARGUMENT)
        self._host.wake_vcpu(guest, vcpu)
        return result(message, abi.OK)

    def _quarantine(self, entry: Open, message: Message) -> bytes:
        guest, answer, *_ = message.args
        grant = self._grant(entry, guest)
        if entry.number != abi.ENTRY_GUEST_DESTROYED:
            raise Refusal(abi.NOT_ALLOWED)
        grant.quarantined = True
        self._host.quarantine(guest, answer)
        return result(message, abi.OK)

    def _set_timer(self, entry: Open, message: Message) -> bytes:
        deadline, cancel, *_ = message.args
        if cancel > 1:
            raise Refusal(abi.BAD_ARGUMENT)
        if not any(kind == abi.HOOK_TIMER for kind, _, _ in self.hooks):
            raise Refusal(abi.NOT_ALLOWED)
        self._set_timer_of_app(None if cancel else deadline)
        return result(message, abi.OK)

    def _register_hook(self, entry: Open, message: Message) -> bytes:
        kind, first, last, *_ = message.args
        manifest = self._manifest
        ranges = {
            abi.HOOK_SMC: manifest.smc_hooks,
            abi.HOOK_MMIO: manifest.mmio_hooks,
            abi.HOOK_TIMER: ((0, 0),) if manifest.timer_hook else (),
            abi.HOOK_INTERRUPT: manifest.interrupt_hooks,
        }.get(kind)
        if ranges is None or first > last:
            raise Refusal(abi.BAD_ARGUMENT)
        if not within(ranges, first, last):
            raise Refusal(abi.NOT_ALLOWED)
        if len(self.hooks) >= abi.MAX_HOOKS:
            raise Refusal(abi.TOO_MUCH)
        if (kind, first, last) not in self.hooks:
            self.hooks.append((kind, first, last))
        return result(message, abi.OK)

    def hooked(self, kind: int, value: int) -> bool:
        """Whether the app wants to be entered for this."""
        for hook, first, last in self.hooks:  # noqa: SIM110  # a generator costs thrice as much
            if hook == kind and first <= value <= last:
                return True
        return False

    # --- windows and devices --------------------------------------------------------------------

    def _map_guest_page(self, entry: Open, message: Message) -> bytes:
        guest, ipa, *_ = message.args
        self._grant(entry, guest)
        if ipa & PAGE_MASK:
            raise Refusal(abi.BAD_ARGUMENT)
        if not self._host.write_guest(guest, ipa, ()):
            return result(message, abi.NO)
        return self._window(message, self._windows.open_guest(entry.name, guest, ipa))

    def _map_device(self, entry: Open, message: Message) -> bytes:
        pa = message.args[0]
        if pa & PAGE_MASK:
            raise Refusal(abi.BAD_ARGUMENT)
        if not within(self._manifest.devices, pa, pa + PAGE_MASK):
            raise Refusal(abi.NOT_ALLOWED)
        if not self._windows.has_device(pa):
            return result(message, abi.NO)
        return self._window(message, self._windows.open_device(entry.name, pa))

    def _window(self, message: Message, window: int | None) -> bytes:
        if window is None:
            raise Refusal(abi.TOO_MUCH)
        return result(message, abi.OK, b"", window << PAGE_SHIFT)

    def _unmap_guest_page(self, entry: Open, message: Message) -> bytes:
        offset = message.args[0]
        if offset & PAGE_MASK or not self._windows.close(entry.name, offset >> PAGE_SHIFT):
            raise Refusal(abi.NOT_YOURS)
        return result(message, abi.OK)

    def _program_iommu(self, entry: Open, message: Message) -> bytes:
        guest, stream, iova, pa, access, *_ = message.args
        grant = self._grant(entry, guest)
        if iova & PAGE_MASK or access not in (0, 1, 3):
            raise Refusal(abi.BAD_ARGUMENT)
        if not within(self._manifest.streams, stream, stream):
            raise Refusal(abi.NOT_ALLOWED)
        if not self._iommu.owned(guest, stream):
            raise Refusal(abi.NOT_YOURS)
        if not access:
            self._iommu.unmap(stream, iova)
            return result(message, abi.OK)
        if pa & PAGE_MASK:
            raise Refusal(abi.BAD_ARGUMENT)
        if not grant.pins.holds(pa):
            raise Refusal(abi.NOT_YOURS)
        if not self._iommu.map(guest, stream, iova, pa, access):
            raise Refusal(abi.TOO_MUCH)
        return result(message, abi.OK)

    # --- recorder -------------------------------------------------------------------------------

    def _trace(self, entry: Open, message: Message) -> bytes:
        if self._sink is not None:
            event = traced(message.payload)
            if event is None:
                raise Refusal(abi.BAD_ARGUMENT)
            self._sink(event)
        return result(message, abi.OK)


POSTABLE: Final = frozenset(
    int(call)
    for call in (
        Syscall.LOG,
        Syscall.UNPIN_PAGES,
        Syscall.WRITE_PINNED,
        Syscall.WRITE_RESULT,
        Syscall.FREE_SHADOW,
        Syscall.INJECT_VIRQ,
        Syscall.SET_TIMER,
        Syscall.QUARANTINE,
        Syscall.PARK_VCPU,
        Syscall.WAKE_VCPU,
        Syscall.TRACE,
    )
)
"""System calls that may be posted."""

_RELEASES: Final = frozenset(
    int(call)
    for call in (
        Syscall.LOG,
        Syscall.UNPIN_PAGES,
        Syscall.FREE_SHADOW,
        Syscall.UNMAP_GUEST_PAGE,
        Syscall.TRACE,
    )
)
"""What an app may still do in an entry after a service of the host failed: give back."""


def _words(payload: bytes) -> int:
    count, rest = divmod(len(payload), _WORD)
    if rest or not count:
        raise Refusal(abi.BAD_ARGUMENT)
    return count
