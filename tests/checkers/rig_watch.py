# SPDX-License-Identifier: BSD-2-Clause
"""The checkers over the rig of the mediator's tests, whose host is a few dictionaries.

The rig reports no events of a machine; they are made here, around the methods of its host. Every
physical address counts as hidden: no IPA of the rig's guests equals one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from mediator.checkers.balance import Bounded, FetchedOnce, PinsBalance
from mediator.checkers.progress import Progress, Strangers, WakeUps
from mediator.checkers.secrets import NoLeak, OwnMemoryOnly
from mediator.checkers.watch import Watch
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee.lifecycle import DEFAULT_THREADS
from tests.mediator.rig import GUEST_SPAN, PA, SHADOW, Rig, RigHost

Event = tuple[object, ...]
Segments = Sequence[tuple[int, bytes]]

END_OF_SHADOWS = SHADOW + (1 << 32)


class RigView:
    """What checkers may look at: :class:`mediator.checkers.view.MachineView` over a rig's host."""

    def __init__(self, host: RigHost) -> None:
        self._host = host

    def _page(self, pa: int) -> memoryview | None:
        for shadow in self._host.shadows.values():
            for index in range(len(shadow.pages) // 8):
                if int.from_bytes(shadow.pages[index * 8 : index * 8 + 8], "little") == pa:
                    return shadow.mem[index * 4096 : (index + 1) * 4096]
        return None

    def read(self, pa: int, length: int) -> bytes | None:
        page = self._page(pa & ~0xFFF)
        return None if page is None else bytes(page[pa & 0xFFF :][:length])

    def is_hidden(self, pa: int) -> bool:
        return PA <= pa < PA + 2 * GUEST_SPAN or SHADOW <= pa < END_OF_SHADOWS

    def is_mediators(self, pa: int) -> bool:
        return self._page(pa & ~0xFFF) is not None

    def shared(self, guest: int, frames: bytes) -> bool:
        start = PA + guest * GUEST_SPAN
        return all(
            start <= pa < start + GUEST_SPAN and self._host.pins[pa & ~0xFFF]
            for pa in struct.unpack(f"<{len(frames) // 8}Q", frames)
        )

    def pinned(self, guest: int) -> int:
        start = PA + guest * GUEST_SPAN
        return sum(
            count for pa, count in self._host.pins.items() if start <= pa < start + GUEST_SPAN
        )


def watch_rig(rig: Rig) -> Watch:
    """Let all checkers watch ``rig`` from now on; its guests exist and have done nothing yet."""
    watch = Watch()
    host, view = rig.host, RigView(rig.host)
    mediator = rig.tee.mediator
    base = mediator.settings.client_id_base
    watch.add(NoLeak(view, watch.report))
    watch.add(OwnMemoryOnly(view, watch.report))
    # The rig may replace its mediator (snapshots): ask the one that is there.
    watch.add(PinsBalance(view, lambda guest: rig.tee.guest_info(guest), watch.report))
    watch.add(FetchedOnce(watch.report))
    watch.add(Strangers(lambda guest: guest + base, watch.report))
    watch.add(
        Bounded(mediator.settings.limits, lambda: mediator.threads or DEFAULT_THREADS, watch.report)
    )
    watch.add(Progress(watch.report))
    watch.add(WakeUps(lambda: (), watch.report))
    for guest in (0, 1):
        watch(host_events.GuestAdded(guest))
    _watch_host(host, watch)
    _watch_traps(rig, watch)
    rig.events.listener = watch
    return watch


def _watch_host(host: RigHost, watch: Watch) -> None:
    """Make the events of a reference host around the methods of this one."""

    def after(name: str, event: Callable[..., tuple[object, ...] | None]) -> None:
        method = getattr(host, name)

        def called(*args: object) -> object:
            result = method(*args)
            made = event(result, *args)
            if made is not None:
                watch(made)
            return result

        setattr(host, name, called)

    def reading(result: bytes | None, guest: int, ipa: int, length: int) -> Event | None:
        # The page, not its IPA: the same byte may be read through a pin too.
        return None if result is None else host_events.GuestRead(guest, host.pa(guest, ipa), length)

    def writing(result: bool, guest: int, ipa: int, segments: Segments) -> Event | None:
        return host_events.GuestWritten(guest, ipa, tuple(segments)) if result else None

    def listing(result: object, guest: int, ipa: int, entries: int) -> Event | None:
        return None if result is None else host_events.PageListRead(guest, ipa, entries)

    def pinning(result: bytes | None, guest: int, ipas: bytes) -> Event | None:
        return None if result is None else host_events.PagesPinned(guest, result)

    after("read_guest", reading)
    after("write_guest", writing)
    after("read_page_list", listing)
    after("pin_pages", pinning)
    after("unpin_pages", lambda _, guest, frames: host_events.PagesUnpinned(guest, frames))
    after("read_pinned", lambda _, guest, pa, n: host_events.PinnedRead(guest, pa, n))
    after(
        "write_pinned",
        lambda _, guest, pa, segments: host_events.PinnedWritten(guest, pa, tuple(segments)),
    )


def _watch_traps(rig: Rig, watch: Watch) -> None:
    """Make the events of traps; each nested one is a processor of its own."""
    call = rig.call
    depth = 0

    def trapped(*regs: int, guest: int = 0) -> tuple[int, ...]:
        nonlocal depth
        vcpu, depth = depth, depth + 1
        frame = (*regs, *(0x77,) * (8 - len(regs)))
        watch(machine_events.TrapEnter(guest, vcpu, False, 0, frame))
        result: tuple[int, ...] | None = None
        try:
            result = call(*regs, guest=guest)
            return result
        finally:
            depth -= 1
            if result is None:
                watch(machine_events.TrapUndefined(guest, vcpu))
            else:
                watch(machine_events.TrapExit(guest, vcpu, True, result))

    rig.call = trapped  # type: ignore[method-assign]
