# SPDX-License-Identifier: BSD-2-Clause
"""Our own platform as a target: the mediator in the hypervisor deployment behind the trap dispatch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeVar, cast

import attrs

from mediator.deployment.in_hypervisor import InHypervisor, SuspendingSyscalls
from mediator.host import PAGE_LIST_ENTRIES, PAGE_MASK, PAGE_SIZE, HostError, Shadow
from mediator.hypervisor.services import ServiceSettings
from mediator.hypervisor.tee import TeeMediator
from mediator.hypervisor.traps import PSCI, UNDEFINED, Dispatcher
from mediator.optee.settings import MediatorSettings
from specs.target import Outcome, PageKind, PhysicalMap, Setup, Trap, World

T = TypeVar("T")

REFERENCE: Final = "reference"
PRESETS: Final[Mapping[str, Callable[[], MediatorSettings]]] = MappingProxyType(
    {REFERENCE: MediatorSettings.reference, "default": MediatorSettings}
)
"""The presets of the mediator by name."""

_FIRST_SHADOW = 0x9_1234_5000
_SHADOW_STEP = 3 * PAGE_SIZE


class Machine:
    """The smallest host: pages in a dictionary. Implements :class:`mediator.host.Host`."""

    def __init__(self, setup: Setup, world: World) -> None:
        self._world = world
        self._physical = PhysicalMap.of(setup.guests)
        self._frames: dict[int, bytearray] = {}
        self._kinds: dict[tuple[int, int], PageKind] = {}
        for guest in setup.guests:
            for region in guest.regions:
                for index in range(region.pages):
                    self._kinds[guest.number, region.ipa + index * PAGE_SIZE] = region.kind
        self._pins: dict[int, dict[int, int]] = {}
        self._shadows: dict[int, tuple[Shadow, int, int]] = {}
        self._free: list[int] = []
        self._next_shadow = _FIRST_SHADOW
        self._allocations = 0
        self.quarantined: list[tuple[int, int]] = []

    # --- what the target offers ---------------------------------------------------------------

    def remap(self, guest: int, ipa: int, pages: int, kind: PageKind) -> None:
        for address in range(ipa, ipa + pages * PAGE_SIZE, PAGE_SIZE):
            self._kinds[guest, address] = kind

    def page(self, pa: int) -> memoryview:
        """The page at ``pa``: mediator memory, or a frame that some map names."""
        shadow = self._shadows.get(pa)
        if shadow is not None:
            start = shadow[1] * PAGE_SIZE
            return shadow[0].mem[start : start + PAGE_SIZE]
        if pa not in self._physical.seen_at:
            raise ValueError(f"no memory at {pa:#x}")
        frame = self._frames.get(pa)
        if frame is None:
            frame = self._frames[pa] = bytearray(PAGE_SIZE)
        return memoryview(frame)

    def pins(self, guest: int) -> Mapping[int, int]:
        return self._pins.get(guest, {})

    def shadow(self, pa: int) -> int | None:
        found = self._shadows.get(pa)
        return None if found is None else found[2]

    # --- Host -----------------------------------------------------------------------------------

    def _frame(self, guest: int, ipa: int, kinds: tuple[PageKind, ...]) -> int | None:
        page = ipa & ~PAGE_MASK
        if self._kinds.get((guest, page)) not in kinds:
            return None
        return self._physical.pa_of.get((guest, page))

    def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        """Copy from RAM, read-write or read-only."""
        frame = self._frame(guest, ipa, (PageKind.RAM, PageKind.READONLY))
        if frame is None:
            return None
        offset = ipa & PAGE_MASK
        data = bytes(self.page(frame)[offset : offset + length])
        self._world.guest_memory_read()
        return data

    def write_guest(self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]) -> bool:
        """Write into RAM that is read-write now."""
        frame = self._frame(guest, ipa, (PageKind.RAM,))
        if frame is None:
            return False
        self._store(frame, segments)
        return True

    def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        """Walk the list; every page of it must be the guest's read-write RAM."""
        words, link = bytearray(), ipa
        while entries > 0:
            frame = self._frame(guest, link, (PageKind.RAM,))
            if frame is None:
                return None
            page = self.page(frame)
            words += page[: min(entries, PAGE_LIST_ENTRIES) * 8]
            link = 0
            if entries >= PAGE_LIST_ENTRIES:
                link = int.from_bytes(page[PAGE_LIST_ENTRIES * 8 :], "little")
            entries -= PAGE_LIST_ENTRIES
        return bytes(words), link

    def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        """All or nothing."""
        frames = []
        for (ipa,) in struct.iter_unpack("<Q", ipas):
            frame = self._frame(guest, ipa, (PageKind.RAM,))
            if frame is None:
                return None
            frames.append(frame)
        pins = self._pins.setdefault(guest, {})
        for frame in frames:
            pins[frame] = pins.get(frame, 0) + 1
        return struct.pack(f"<{len(frames)}Q", *frames)

    def unpin_pages(self, guest: int, frames: bytes) -> None:
        """Release what :meth:`pin_pages` gave."""
        pins = self._pins.get(guest, {})
        for (frame,) in struct.iter_unpack("<Q", frames):
            count = pins.get(frame, 0)
            if not count:
                raise HostError("unpin_pages", f"{frame:#x} is not pinned for guest {guest}")
            if count == 1:
                del pins[frame]
            else:
                pins[frame] = count - 1

    def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        """Copy from a pinned page."""
        data = bytes(self._pinned(guest, pa, "read_pinned")[pa & PAGE_MASK :][:length])
        self._world.guest_memory_read()
        return data

    def write_pinned(self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]) -> None:
        """Write into a pinned page."""
        self._pinned(guest, pa, "write_pinned")
        self._store(pa, segments)

    def _pinned(self, guest: int, pa: int, call: str) -> memoryview:
        if pa & ~PAGE_MASK not in self._pins.get(guest, {}):
            raise HostError(call, f"{pa:#x} is not pinned for guest {guest}")
        return self.page(pa & ~PAGE_MASK)

    def _store(self, frame: int, segments: Sequence[tuple[int, bytes]]) -> None:
        self._world.guest_memory_write(frame)
        page = self.page(frame)
        for offset, data in segments:
            page[offset : offset + len(data)] = data

    def alloc_shadow(self, pages: int) -> Shadow | None:
        """Zeroed pages; freed ones come first and in reverse, so that order is never assumed."""
        if self._world.allocation_fails():
            return None
        addresses = []
        for _ in range(pages):
            if self._free:
                addresses.append(self._free.pop())
            else:
                addresses.append(self._next_shadow)
                self._next_shadow += _SHADOW_STEP
        shadow = Shadow(
            struct.pack(f"<{pages}Q", *addresses), memoryview(bytearray(pages * PAGE_SIZE))
        )
        self._allocations += 1
        for index, address in enumerate(addresses):
            self._shadows[address] = (shadow, index, self._allocations)
        return shadow

    def free_shadow(self, shadow: Shadow) -> None:
        """Back to the free list."""
        for (address,) in struct.iter_unpack("<Q", shadow.pages):
            if address not in self._shadows:
                raise HostError("free_shadow", f"{address:#x} is not allocated")
            del self._shadows[address]
            self._free.append(address)

    def map_shadow(self, pages: bytes) -> Shadow:
        """The block that starts at the first of ``pages``."""
        return self._shadows[int.from_bytes(pages[:8], "little")][0]

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        """The secure world is the test's."""
        return self._world.smc(a0, a1, a2, a3, a4, a5, a6, a7)

    def should_preempt(self) -> bool:
        """So is the answer to this question."""
        return self._world.should_preempt()

    def inject_virq(self, guest: int, intid: int) -> None:
        """The format has no interrupts."""

    def now(self) -> int:
        """Time stands still."""
        return 0

    def set_timer(self, deadline: int | None) -> None:
        """No timers either."""

    def quarantine(self, guest: int, answer: int) -> None:
        """Remembered for reports."""
        self.quarantined.append((guest, answer))

    def log(self, guest: int, message: str) -> None:
        """Nobody listens."""


class ModelTarget:
    """Implements :class:`specs.target.Target` over our mediator.

    ``settings``: instead of those of the setup's preset. ``suspending``: every system call is a
    switch point (and this driver switches to nobody).
    """

    def __init__(
        self,
        setup: Setup,
        world: World,
        *,
        settings: MediatorSettings | None = None,
        suspending: bool = False,
    ) -> None:
        self._suspending = suspending
        self._machine = Machine(setup, world)
        self._mediator = InHypervisor(
            self._machine,
            settings=settings or mediator_settings(setup),
            suspending=suspending,
        )
        services = ServiceSettings.reference() if setup.preset == REFERENCE else ServiceSettings()
        self._dispatcher = Dispatcher(services, cast(TeeMediator, self._mediator))

    def probe(self, present: bool) -> bool:
        """Without a node in the platform description nobody asks the mediator."""
        if self._suspending:
            return (
                present
                and _drive(self._mediator.mediator.probe(SuspendingSyscalls(self._machine))).found
            )
        return self._mediator.probe(device_tree_node=present).found

    def create(self, guest: int, tee: bool) -> bool:
        """A guest without the TEE is unknown to the mediator."""
        return not tee or _drive(self._mediator.guest_created(guest))

    def destroy(self, guest: int) -> bool:
        """One entry of the teardown."""
        return _drive(self._mediator.guest_destroyed(guest))

    def trap(self, trap: Trap) -> Outcome:
        """Through the dispatch of the reference hypervisor."""
        answer = _drive(
            self._dispatcher.dispatch(
                trap.guest,
                trap.vcpu,
                trap.regs,
                hvc=trap.hvc,
                immediate=trap.immediate,
                aarch32=trap.aarch32,
            )
        )
        if answer is UNDEFINED:
            return Outcome(trap.regs, undefined=True)
        if answer is PSCI:
            return Outcome(trap.regs, handled_by="psci")
        return Outcome(answer)

    def remap(self, guest: int, ipa: int, pages: int, kind: PageKind) -> None:
        """Stage 2 changes at once."""
        self._machine.remap(guest, ipa, pages, kind)

    def read(self, pa: int, length: int) -> bytes:
        """One page at most, which is what the format needs."""
        return bytes(self._machine.page(pa & ~PAGE_MASK)[pa & PAGE_MASK :][:length])

    def write(self, pa: int, data: bytes) -> None:
        """Within one page."""
        offset = pa & PAGE_MASK
        self._machine.page(pa & ~PAGE_MASK)[offset : offset + len(data)] = data

    def pins(self, guest: int) -> Mapping[int, int]:
        """As the machine counts them, not as the mediator thinks."""
        return dict(self._machine.pins(guest))

    def shadow(self, pa: int) -> int | None:
        """The allocation that the page belongs to."""
        return self._machine.shadow(pa)

    def counters(self, guest: int) -> Mapping[str, int]:
        """What the mediator says of the guest, by the names of the recording."""
        info = self._mediator.guest_info(guest)
        if info is None:
            return {}
        return {
            "calls": info.calls,
            "bufs": info.buffers,
            "pages": info.pages,
            "rpc_bufs": info.rpc_buffers,
        }


def _drive(coroutine: Coroutine[object, None, T]) -> T:
    """Run a coroutine to its end; a switch point switches to nobody."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result


def mediator_settings(setup: Setup) -> MediatorSettings:
    """The mediator's settings for a preset by name, with the overrides of a scenario."""
    settings = PRESETS[setup.preset]()
    limits = settings.limits
    if setup.max_buffer_pages is not None:
        limits = attrs.evolve(limits, buffer_pages=setup.max_buffer_pages)
    # Without the mediator's own cache the machine knows when a page was given back, so a name
    # that is used once too often is noticed.
    return attrs.evolve(settings, limits=limits, shadow_cache=0)
