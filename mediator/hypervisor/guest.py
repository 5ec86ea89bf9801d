# SPDX-License-Identifier: BSD-2-Clause
"""A guest of the machine: what it is created from, its states, and what the machine keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from attrs import field, frozen

from mediator.guest.cpu import VcpuProgram
from mediator.host import PAGE_SIZE
from mediator.hypervisor.accounting import Account
from mediator.hypervisor.vgic import Vgic
from smccc.constants import psci

if TYPE_CHECKING:
    from mediator.hypervisor.vcpu import Vcpu

MAX_VCPUS: Final = 512
"""vCPUs of one guest: beyond it the interrupt controller model's linear steps would show."""

RAM_ALIGN: Final = PAGE_SIZE


@frozen
class RamExtent:
    """A piece of guest RAM: ``pages`` pages of 4 KiB from ``ipa`` on.

    Its frames: those from ``pa`` on, or in an order that ``scatter`` (a seed) fixes, or, with
    neither, whatever is free.
    """

    ipa: int
    pages: int
    pa: int | None = None
    scatter: int | None = None


def _as_programs(programs: Sequence[VcpuProgram]) -> tuple[VcpuProgram, ...]:
    return tuple(programs)


def _as_extents(extents: Sequence[RamExtent]) -> tuple[RamExtent, ...]:
    return tuple(extents)


@frozen
class GuestSpec:
    """What a guest is created from.

    ``programs``: one per vCPU; vCPUs from ``boot_vcpus`` on are off until PSCI CPU_ON starts them.
    ``ram``: page aligned and disjoint. ``bits``: 64 or 32, the execution state of its vCPUs.
    ``tee``: it is to have the TEE. ``guest_id``: a fixed id, ``None`` takes the smallest free one.
    ``affinity``: the pCPU of each vCPU, empty spreads them evenly.
    """

    name: str
    programs: tuple[VcpuProgram, ...] = field(converter=_as_programs)
    ram: tuple[RamExtent, ...] = field(default=(), converter=_as_extents)
    bits: int = 64
    tee: bool = True
    boot_vcpus: int = MAX_VCPUS
    guest_id: int | None = None
    affinity: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ValueError(f"guest {self.name!r}: bits is {self.bits}, not 32 or 64")
        if not 0 < len(self.programs) <= MAX_VCPUS:
            raise ValueError(
                f"guest {self.name!r}: {len(self.programs)} vCPUs, not 1 to {MAX_VCPUS}"
            )
        if self.affinity and len(self.affinity) != len(self.programs):
            raise ValueError(f"guest {self.name!r}: affinity names {len(self.affinity)} vCPUs")
        end = 0
        for extent in sorted(self.ram, key=lambda extent: extent.ipa):
            if extent.ipa % RAM_ALIGN or extent.pages <= 0 or extent.ipa < end:
                raise ValueError(f"guest {self.name!r}: bad or overlapping RAM at {extent.ipa:#x}")
            end = extent.ipa + extent.pages * PAGE_SIZE


class GuestState(Enum):
    """Where a guest is in its life."""

    CREATING = "creating"
    RUNNING = "running"
    SHUTDOWN = "shutdown"
    """It switched itself off; nothing of it runs, everything of it is still there."""
    DYING = "dying"
    """Destruction began; entries in flight complete, then the mediator tears down."""
    DESTROYED = "destroyed"
    QUARANTINED = "quarantined"
    """Gone, but frames and id are kept because the TEE did not let go."""
    REFUSED = "refused"


class MachineMemory(Protocol):
    """The memory of all guests, as the machine needs it: stage 2 and frames.

    :class:`mediator.hypervisor.guests.GuestMemory` and the reference host are this.
    """

    def reusable(self, guest: int) -> bool:
        """Whether no guest has this id and no frame remembers it."""

    def add_guest(self, guest: int) -> object:
        """A new guest with nothing mapped."""

    def populate(
        self,
        guest: int,
        ipa: int,
        pages: int,
        *,
        pa: int | None = None,
        seed: int | None = None,
    ) -> bool:
        """Give ``guest`` fresh RAM; ``False``: there is not enough."""

    def remove_guest(self, guest: int, *, quarantine: bool = False) -> object:
        """Take everything from ``guest``. ``quarantine``: its frames go to nobody."""

    def release_quarantine(self, guest: int) -> object:
        """Free the frames that :meth:`remove_guest` kept back. The id may still be remembered."""

    def guest_read(self, guest: int, ipa: int, length: int) -> bytes:
        """A load by the guest. Raises :class:`mediator.guest.cpu.GuestAbort`."""

    def guest_write(self, guest: int, ipa: int, data: bytes) -> None:
        """A store by the guest. Raises :class:`mediator.guest.cpu.GuestAbort`."""


class Guest:
    """What the machine keeps of a guest. Owner: the machine; only it changes anything here.

    ``halted``: no vCPU may return to guest code any more. ``paused``: how many times it was paused
    and not yet resumed. ``quarantine``: the TEE did not let go of it.
    """

    __slots__ = (
        "account",
        "halted",
        "id",
        "paused",
        "quarantine",
        "spec",
        "state",
        "tee",
        "vcpus",
        "vgic",
    )

    def __init__(self, guest_id: int, spec: GuestSpec) -> None:
        self.id = guest_id
        self.spec = spec
        self.state = GuestState.CREATING
        self.vcpus: list[Vcpu] = []
        self.vgic = Vgic(len(spec.programs))
        self.account = Account()
        self.tee = False
        self.halted = False
        self.paused = 0
        self.quarantine = False

    @property
    def aarch32(self) -> bool:
        """Whether its vCPUs run in AArch32."""
        return self.spec.bits == 32

    @property
    def vcpu_count(self) -> int:
        """Number of vCPUs, on or off."""
        return len(self.vcpus)

    def power_state(self, vcpu: int) -> int:
        """The PSCI affinity level state of a vCPU."""
        target = self.vcpus[vcpu]
        if target.is_off:
            return psci.PSCI_0_2_AFFINITY_LEVEL_OFF
        if not target.has_run:
            return psci.PSCI_0_2_AFFINITY_LEVEL_ON_PENDING
        return psci.PSCI_0_2_AFFINITY_LEVEL_ON

    def power_on(self, vcpu: int, entry: int, context: int) -> None:
        """Start a vCPU that is off."""
        self.vcpus[vcpu].power_on(entry, context)

    def in_flight(self) -> bool:
        """Whether a vCPU of a halted guest is still on its way out of a trap."""
        return not all(vcpu.is_off for vcpu in self.vcpus)
