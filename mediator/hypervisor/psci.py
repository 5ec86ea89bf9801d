# SPDX-License-Identifier: BSD-2-Clause
"""PSCI for guests (Arm DEN 0022): power of the vCPUs and of the guest, decided here, done by the machine.

:func:`call` looks at the arguments and the power states and returns either a signed result code or
a :class:`PsciAction` for the machine to carry out. It changes nothing itself but for CPU_ON, which
the guest object performs. Calls that do not return on success (CPU_OFF, SYSTEM_OFF, SYSTEM_RESET,
SYSTEM_SUSPEND) are actions.

CPU_SUSPEND to a power-down state is performed as standby, which DEN 0022 (5.4.5) permits. Its
power_state has the original format (PSCI_FEATURES says so) with 32 bits in both conventions.
Not offered: MIGRATE and MIGRATE_INFO_UP_CPU (no trusted OS needs them: MIGRATE_INFO_TYPE), and the
optional calls of 1.0 and 1.1 (CPU_FREEZE, STAT_*, SYSTEM_RESET2, MEM_PROTECT and their like).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Protocol

from mediator.hypervisor.services import MASK32, PSCI_0_1_CPU_OFF, PSCI_0_1_CPU_ON
from mediator.hypervisor.tee import Registers
from smccc.constants import arm_smccc, psci

VERSION: Final = psci.PSCI_VERSION_1_1
"""Announced version: backward compatible with 0.2, which is what 32-bit kernels look for."""

AFFINITY_LEVELS: Final = 4
"""Affinity levels of an AArch64 MPIDR; an AArch32 one has three."""

_AFF0_BITS: Final = 4
"""vCPUs per cluster: a GICv3 SGI reaches 16 targets of one Aff0 range (IHI 0069, ICC_SGI1R)."""

_AFFINITY_FIELDS: Final = 0xFF00FFFFFF
_SMC64: Final = arm_smccc.ARM_SMCCC_SMC_64 << arm_smccc.ARM_SMCCC_CALL_CONV_SHIFT
_ENTRY_ALIGN: Final = 3
_POWER_STATE_BITS: Final = (
    psci.PSCI_0_2_POWER_STATE_ID_MASK
    | psci.PSCI_0_2_POWER_STATE_TYPE_MASK
    | psci.PSCI_0_2_POWER_STATE_AFFL_MASK
)
"""What the original format of power_state defines; the rest must be zero (DEN 0022, 5.4.2)."""


class PsciAction(Enum):
    """What the machine must do instead of returning a result."""

    CPU_OFF = "cpu_off"
    STANDBY = "standby"
    """Wait for an interrupt, then return PSCI_SUCCESS."""
    SYSTEM_OFF = "system_off"
    SYSTEM_RESET = "system_reset"
    SYSTEM_SUSPEND = "system_suspend"
    """Wait for an interrupt, then start the vCPU again at the given entry point."""


class PsciGuest(Protocol):
    """The guest as PSCI sees it."""

    @property
    def aarch32(self) -> bool:
        """Whether its vCPUs start in AArch32."""

    @property
    def vcpu_count(self) -> int:
        """Number of vCPUs, on or off."""

    def power_state(self, vcpu: int) -> int:
        """PSCI_0_2_AFFINITY_LEVEL_ON, _OFF or _ON_PENDING (started, has not run yet)."""

    def power_on(self, vcpu: int, entry: int, context: int) -> None:
        """Start a vCPU that is off."""


def mpidr(vcpu: int) -> int:
    """Affinity value of a vCPU: 16 to a cluster."""
    return (vcpu & (1 << _AFF0_BITS) - 1) | vcpu >> _AFF0_BITS << 8


def arguments(regs: Registers) -> tuple[int, int, int]:
    """The three arguments of a PSCI call.

    The 32-bit convention passes words, also from a 64-bit caller, whose upper halves are rubbish.
    """
    _, first, second, third, *_ = regs
    if regs[0] & _SMC64:
        return first, second, third
    return first & MASK32, second & MASK32, third & MASK32


def call(
    guest: PsciGuest, vcpu: int, regs: Registers, functions: tuple[int, ...]
) -> int | PsciAction:
    """Serve one PSCI call of ``vcpu``: a signed result, or what the machine is to do.

    ``functions`` are the ids that PSCI_FEATURES confirms
    (:attr:`~mediator.hypervisor.services.ServiceSettings.psci_features`).
    """
    function = regs[0] & MASK32
    first, second, third = arguments(regs)
    if function == psci.PSCI_VERSION:
        return VERSION
    if function in (psci.PSCI_CPU_ON_AARCH32, psci.PSCI_CPU_ON_AARCH64):
        return _cpu_on(guest, _vcpu_of(guest, first), second, third)
    if function in (psci.PSCI_CPU_OFF, PSCI_0_1_CPU_OFF):
        return PsciAction.CPU_OFF
    if function in (psci.PSCI_CPU_SUSPEND_AARCH32, psci.PSCI_CPU_SUSPEND_AARCH64):
        if first & MASK32 & ~_POWER_STATE_BITS:
            return psci.PSCI_E_INVALID_PARAMS
        return PsciAction.STANDBY
    if function in (psci.PSCI_AFFINITY_INFO_AARCH32, psci.PSCI_AFFINITY_INFO_AARCH64):
        return _affinity_info(guest, first, second & MASK32)
    if function == psci.PSCI_MIG_INFO_TYPE:
        return psci.PSCI_TOS_NOT_PRESENT_MP
    if function == psci.PSCI_SYSTEM_OFF:
        return PsciAction.SYSTEM_OFF
    if function == psci.PSCI_SYSTEM_RESET:
        return PsciAction.SYSTEM_RESET
    if function in (psci.PSCI_SYSTEM_SUSPEND_AARCH32, psci.PSCI_SYSTEM_SUSPEND_AARCH64):
        return _system_suspend(guest, vcpu, first)
    if function == psci.PSCI_FEATURES:
        return psci.PSCI_E_SUCCESS if first in functions else psci.PSCI_E_NOT_SUPPORTED
    if function == PSCI_0_1_CPU_ON:
        target = first if first < guest.vcpu_count else None
        result = _cpu_on(guest, target, regs[2], 0)
        # PSCI 0.1 does not know these two results.
        if result in (psci.PSCI_E_ALREADY_ON, psci.PSCI_E_INVALID_ADDRESS):
            return psci.PSCI_E_INVALID_PARAMS
        return result
    return psci.PSCI_E_NOT_SUPPORTED


def _vcpu_of(guest: PsciGuest, affinity: int) -> int | None:
    """The vCPU whose MPIDR is ``affinity``, ``None`` if there is none."""
    vcpu = affinity & (1 << _AFF0_BITS) - 1 | (affinity >> 8 & 0xFF) << _AFF0_BITS
    return vcpu if mpidr(vcpu) == affinity and vcpu < guest.vcpu_count else None


def _cpu_on(guest: PsciGuest, target: int | None, entry: int, context: int) -> int:
    if target is None:
        return psci.PSCI_E_INVALID_PARAMS
    if not _entry_allowed(guest, entry):
        return psci.PSCI_E_INVALID_ADDRESS
    state = guest.power_state(target)
    if state == psci.PSCI_0_2_AFFINITY_LEVEL_ON:
        return psci.PSCI_E_ALREADY_ON
    if state == psci.PSCI_0_2_AFFINITY_LEVEL_ON_PENDING:
        return psci.PSCI_E_ON_PENDING
    guest.power_on(target, entry, context)
    return psci.PSCI_E_SUCCESS


def _entry_allowed(guest: PsciGuest, entry: int) -> bool:
    """A64 code is word aligned; bit 0 selects Thumb in AArch32."""
    return guest.aarch32 or not entry & _ENTRY_ALIGN


def _affinity_info(guest: PsciGuest, affinity: int, level: int) -> int:
    """ON if any vCPU below the given affinity instance is, else ON_PENDING, else OFF."""
    if level >= AFFINITY_LEVELS - guest.aarch32 or affinity & ~_AFFINITY_FIELDS:
        return psci.PSCI_E_INVALID_PARAMS
    below = (1 << 8 * level) - 1 if level < AFFINITY_LEVELS - 1 else MASK32
    states = [
        guest.power_state(vcpu)
        for vcpu in range(guest.vcpu_count)
        if mpidr(vcpu) & ~below == affinity & ~below
    ]
    if not states:
        return psci.PSCI_E_INVALID_PARAMS
    for state in (
        psci.PSCI_0_2_AFFINITY_LEVEL_ON,
        psci.PSCI_0_2_AFFINITY_LEVEL_ON_PENDING,
    ):
        if state in states:
            return state
    return psci.PSCI_0_2_AFFINITY_LEVEL_OFF


def _system_suspend(guest: PsciGuest, vcpu: int, entry: int) -> int | PsciAction:
    if not _entry_allowed(guest, entry):
        return psci.PSCI_E_INVALID_ADDRESS
    for other in range(guest.vcpu_count):
        if other != vcpu and guest.power_state(other) != psci.PSCI_0_2_AFFINITY_LEVEL_OFF:
            return psci.PSCI_E_DENIED
    return PsciAction.SYSTEM_SUSPEND
