# SPDX-License-Identifier: BSD-2-Clause
"""What a guest sees of its processor: the one boundary between a simulated guest and its machine.

A guest is a set of vCPU programs, coroutines that are handed a :class:`GuestCpu` and await its
traps. The machine below (a hypervisor model, a test's fake, a replay) implements the Protocol; the
guest never learns which. An await may suspend the program for as long as the machine likes, or run
inline. The plain methods never suspend.

Addresses are IPAs in bytes, times are virtual nanoseconds, registers are unsigned 64-bit words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

Registers: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""x0..x7 after a trap."""

TIMER_PPI = 27
"""Interrupt id of the virtual timer (Arm Base System Architecture, PPI assignments)."""

FIRST_PPI = 16
"""Ids below are SGIs, software generated interrupts between the vCPUs of a guest (GICv3, 2.2)."""


class GuestAbort(Exception):
    """A data abort: the guest touched an IPA that stage 2 does not let it touch.

    ``ipa``: the faulting address; ``write``: the access was a write. Raised into the guest program
    by :meth:`GuestCpu.read` and :meth:`GuestCpu.write`; bytes before the faulting page may have
    been written.
    """

    def __init__(self, ipa: int, write: bool) -> None:
        super().__init__(f"{'write' if write else 'read'} of unmapped IPA {ipa:#x}")
        self.ipa = ipa
        self.write = write


class GuestUndefined(Exception):
    """An undefined instruction exception: the answer to an SMC or HVC nobody may execute.

    Raised into the guest program by :meth:`GuestCpu.smc` and :meth:`GuestCpu.hvc`, e.g. for a
    nonzero immediate (SMCCC, DEN 0028, 2.9).
    """


class GuestCpu(Protocol):
    """One vCPU as its own program sees it."""

    @property
    def index(self) -> int:
        """Number of this vCPU in its guest, from 0."""

    @property
    def guest_id(self) -> int:
        """Id of the guest (a diagnostic: real software cannot ask)."""

    def smc(
        self,
        a0: int,
        a1: int = 0,
        a2: int = 0,
        a3: int = 0,
        a4: int = 0,
        a5: int = 0,
        a6: int = 0,
        a7: int = 0,
        *,
        immediate: int = 0,
    ) -> Awaitable[Registers]:
        """Execute ``smc #immediate`` with x0..x7 and return x0..x7. Raises :class:`GuestUndefined`."""

    def hvc(
        self,
        a0: int,
        a1: int = 0,
        a2: int = 0,
        a3: int = 0,
        a4: int = 0,
        a5: int = 0,
        a6: int = 0,
        a7: int = 0,
        *,
        immediate: int = 0,
    ) -> Awaitable[Registers]:
        """Execute ``hvc #immediate`` with x0..x7 and return x0..x7. Raises :class:`GuestUndefined`."""

    def wfi(self) -> Awaitable[None]:
        """Wait until an interrupt is pending for this vCPU; returns at once if one is."""

    def read(self, ipa: int, length: int) -> Awaitable[bytes]:
        """Load ``length`` bytes (any alignment, pages may be crossed). Raises :class:`GuestAbort`."""

    def write(self, ipa: int, data: bytes) -> Awaitable[None]:
        """Store ``data`` (any alignment, pages may be crossed). Raises :class:`GuestAbort`."""

    def now(self) -> int:
        """The virtual counter, in nanoseconds."""

    def set_timer(self, deadline: int | None) -> None:
        """Program this vCPU's virtual timer: :data:`TIMER_PPI` pends at ``deadline`` ns.

        ``None`` switches the timer off and takes a pending timer interrupt away.
        """

    def acknowledge(self) -> int | None:
        """Make the highest pending interrupt active and return its id; ``None``: none is pending."""

    def end_of_interrupt(self, intid: int) -> None:
        """End (deactivate) interrupt ``intid``, which :meth:`acknowledge` returned."""

    def send_sgi(self, target: int, intid: int) -> None:
        """Make SGI ``intid`` (0..15) pending for vCPU ``target`` of the same guest."""


VcpuProgram: TypeAlias = Callable[[GuestCpu], Awaitable[None]]
"""What runs on a vCPU; the vCPU is off once it returns."""
