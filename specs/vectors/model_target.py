# SPDX-License-Identifier: BSD-2-Clause
"""Our own platform as a target: the mediator in the hypervisor deployment behind the trap dispatch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeVar, cast

import attrs

from mediator.deployment.choice import AnyDeployment, Deployment
from mediator.deployment.in_hypervisor import InHypervisor, SuspendingSyscalls
from mediator.host import PAGE_SHIFT, Shadow
from mediator.hypervisor import stage2
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.services import ServiceSettings
from mediator.hypervisor.tee import TeeMediator
from mediator.hypervisor.traps import PSCI, UNDEFINED, Dispatcher
from mediator.optee.settings import MediatorSettings
from specs.target import Outcome, PageKind, Region, Setup, SetupRefused, Trap, World

T = TypeVar("T")

REFERENCE: Final = "reference"
PRESETS: Final[Mapping[str, Callable[[], MediatorSettings]]] = MappingProxyType(
    {REFERENCE: MediatorSettings.reference, "default": MediatorSettings}
)
"""The presets of the mediator by name."""

_KINDS: Final[Mapping[PageKind, int]] = MappingProxyType(
    {
        PageKind.RAM: stage2.OWN_RW,
        PageKind.READONLY: stage2.OWN_RO,
        PageKind.FOREIGN: stage2.FOREIGN_RW,
        PageKind.FOREIGN_RO: stage2.FOREIGN_RO,
        PageKind.GRANT: stage2.GRANT_RW,
        PageKind.GRANT_RO: stage2.GRANT_RO,
        PageKind.MMIO: stage2.MMIO,
        PageKind.ABSENT: stage2.ABSENT,
    }
)

_SHADOW_FRAMES: Final = 8192
"""Frames for the mediator behind the guests' RAM: 32 MiB, more than any limit lets it use."""

_DEVICE: Final = 0x0900_0000
"""Where the pages without memory lie; below all RAM."""

_FIRST_FRAME: Final = 0x1_0000
"""The lowest frame of RAM (256 MiB), so that the device has a place."""


class BenchHost(ReferenceHost):
    """The reference host, with the test's world at its hooks."""

    def __init__(self, setup: Setup, world: World) -> None:
        regions = [
            (guest.number, region, region.pa)
            for guest in setup.guests
            for region in guest.regions
            if region.pa is not None
        ]
        frames = [
            (pa + page * region.pa_step) >> PAGE_SHIFT
            for _, region, pa in regions
            for page in (0, region.pages - 1)
        ]
        first = min(frames, default=_FIRST_FRAME)
        if first < _FIRST_FRAME:
            raise SetupRefused("memory below 256 MiB")
        try:
            memory = PhysicalMemory(max(frames, default=first) - first + _SHADOW_FRAMES, first)
        except ValueError as error:
            raise SetupRefused(str(error)) from error
        super().__init__(memory, secure_smc=world.smc, should_preempt=world.should_preempt)
        self._world = world
        self._allocations = 0
        self._allocation_of: dict[int, int] = {}
        self.read_hook = self._after_read
        try:
            self._build(setup)
        except InvariantError as error:
            raise SetupRefused(str(error)) from error

    def _build(self, setup: Setup) -> None:
        """Own RAM of all guests first: what is foreign to one may be another's."""
        for guest in setup.guests:
            self.add_guest(guest.number)
        for owned in (True, False):
            for guest in setup.guests:
                for region in guest.regions:
                    if region.kind.owned is owned:
                        self._map(guest.number, region)

    def _map(self, guest: int, region: Region) -> None:
        kind, pa = _KINDS[region.kind], region.pa
        if pa is None:
            self.map_other(guest, region.ipa, region.pages, kind, _DEVICE)
        elif region.kind.owned:
            self.populate(guest, region.ipa, region.pages, kind=kind, pa=pa, pa_step=region.pa_step)
        else:
            self.map_other(guest, region.ipa, region.pages, kind, pa, region.pa_step)

    def _after_read(self, guest: int, address: int, length: int) -> None:
        self._world.guest_memory_read()

    def write_guest(self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]) -> bool:
        """Tell the world first."""
        entry = self.stage2(guest).translate(ipa >> PAGE_SHIFT)
        if entry & stage2.KIND_MASK == stage2.OWN_RW:
            self._world.guest_memory_write(entry >> stage2.KIND_SHIFT << PAGE_SHIFT)
        return super().write_guest(guest, ipa, segments)

    def write_pinned(self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]) -> None:
        """Tell the world first."""
        self._world.guest_memory_write(pa)
        super().write_pinned(guest, pa, segments)

    def alloc_shadow(self, pages: int) -> Shadow | None:
        """Ask the world first, and number what is handed out."""
        shadow = None if self._world.allocation_fails() else super().alloc_shadow(pages)
        if shadow is not None:
            self._allocations += 1
            for (address,) in struct.iter_unpack("<Q", shadow.pages):
                self._allocation_of[address] = self._allocations
        return shadow

    def free_shadow(self, shadow: Shadow) -> None:
        """Forget the numbers."""
        super().free_shadow(shadow)
        for (address,) in struct.iter_unpack("<Q", shadow.pages):
            del self._allocation_of[address]

    def allocation(self, pa: int) -> int | None:
        """The number of the allocation that has the page at ``pa``."""
        return self._allocation_of.get(pa)


class ModelTarget:
    """Implements :class:`specs.target.Target` over our mediator.

    ``settings``: instead of those of the setup's preset. ``suspending``: every system call is a
    switch point (and this driver switches to nobody). ``deployment``: where the mediator lives;
    :meth:`close` the target afterwards.
    """

    def __init__(
        self,
        setup: Setup,
        world: World,
        *,
        settings: MediatorSettings | None = None,
        suspending: bool = False,
        deployment: Deployment = Deployment(),  # noqa: B008  # frozen
    ) -> None:
        self._suspending = suspending
        self._refused = False
        self._host = BenchHost(setup, world)
        self._mediator: AnyDeployment = deployment.make(
            self._host,
            settings or mediator_settings(setup),
            shadows=self._host.shadows,
            suspending=suspending,
        )
        services = ServiceSettings.reference() if setup.preset == REFERENCE else ServiceSettings()
        self._dispatcher = Dispatcher(services, cast("TeeMediator", self._mediator))

    def close(self) -> None:
        """End what the deployment started."""
        self._mediator.close()

    def probe(self, present: bool) -> bool:
        """Without a node in the platform description nobody asks the mediator."""
        if present and self._suspending and isinstance(self._mediator, InHypervisor):
            probe = self._mediator.mediator.probe(SuspendingSyscalls(self._host))
            self._refused = not _drive(probe).found
        else:
            self._refused = not self._mediator.probe(device_tree_node=present).found
        return not self._refused

    def create(self, guest: int, tee: bool) -> bool:
        """A guest without the TEE is unknown to the mediator; without a TEE none can have it."""
        return not tee or (not self._refused and _drive(self._mediator.guest_created(guest)))

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
        self._host.set_kind(guest, ipa, pages, _KINDS[kind])

    def read(self, pa: int, length: int) -> bytes:
        """One page at most, which is what the format needs."""
        return self._host.memory.read(pa, length)

    def write(self, pa: int, data: bytes) -> None:
        """Within one page."""
        self._host.memory.write(pa, data)

    def pins(self, guest: int) -> Mapping[int, int]:
        """As the machine counts them, not as the mediator thinks."""
        return {pfn << PAGE_SHIFT: count for pfn, count in self._host.pins(guest).items()}

    def shadow(self, pa: int) -> int | None:
        """The allocation that the page belongs to."""
        return self._host.allocation(pa)

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
    if setup.threads is not None:
        # A scenario's thread count is its limit of calls, in every preset.
        limits = attrs.evolve(limits, calls=setup.threads)
    if setup.max_buffer_pages is not None:
        limits = attrs.evolve(limits, buffer_pages=setup.max_buffer_pages)
    # Without the mediator's own cache the machine knows when a page was given back, so a name
    # that is used once too often is noticed.
    return attrs.evolve(settings, limits=limits, shadow_cache=0)
