# SPDX-License-Identifier: BSD-2-Clause
"""Power State Coordination Interface calls (Arm DEN0022).

Many functions exist in both conventions; ``smc64`` says which. Through the 32-bit id only the low
words of arguments count. ``power_state`` is 32 bits wide in both.
"""

from __future__ import annotations

from typing import ClassVar, Self

import attrs

from smccc.calls.slots import Call, Native, Return, Signed, Slot, Word, read_slots
from smccc.constants import psci
from smccc.errors import ParseError, Reason
from smccc.registers import RegisterFrame


@attrs.frozen
class PsciReturn(Return):
    """A status or a small number in a0: PSCI_E_* is negative or 0."""

    SLOTS: ClassVar[tuple[Slot, ...]] = (Signed("value", 0),)
    value: int


@attrs.frozen
class PsciVersionReturn(PsciReturn):
    """Result of PSCI_VERSION."""

    @property
    def major(self) -> int:
        """Bits 31:16."""
        return self.value >> psci.PSCI_VERSION_MAJOR_SHIFT

    @property
    def minor(self) -> int:
        """Bits 15:0."""
        return self.value & psci.PSCI_VERSION_MINOR_MASK


@attrs.frozen
class PsciValueReturn(Return):
    """A number as wide as the convention: an MPIDR, a residency in microseconds, a count."""

    SLOTS = (Native("value", 0),)
    value: int


@attrs.frozen
class PsciCall(Call):
    """A PSCI function that exists in the 32-bit convention only."""

    RETURN: ClassVar[type[Return]] = PsciReturn


@attrs.frozen
class PsciVersion(PsciCall):
    """PSCI_VERSION."""

    FUNCTION = psci.PSCI_VERSION
    RETURN = PsciVersionReturn


@attrs.frozen
class NativePsciCall(PsciCall):
    """A PSCI function that exists in both conventions."""

    smc64: bool = attrs.field(default=True, kw_only=True)

    @property
    def function(self) -> int:
        assert self.FUNCTION64 is not None
        return self.FUNCTION64 if self.smc64 else self.FUNCTION

    @classmethod
    def parse(cls, frame: RegisterFrame) -> Self:
        wide = frame.a0 == cls.FUNCTION64
        if not wide and frame.a0 != cls.FUNCTION:
            raise ParseError(0, "a0", Reason.WRONG_FUNCTION)
        return cls(**read_slots(cls.SLOTS, frame, wide), smc64=wide)


@attrs.frozen
class CpuSuspend(NativePsciCall):
    """CPU_SUSPEND: put this core into a low-power state."""

    FUNCTION = psci.PSCI_CPU_SUSPEND_AARCH32
    FUNCTION64 = psci.PSCI_CPU_SUSPEND_AARCH64
    SLOTS = (Word("power_state", 1), Native("entry", 2), Native("context", 3))
    power_state: int
    entry: int
    """Address where the core continues after a power-down."""
    context: int
    """x0 there."""


@attrs.frozen
class CpuOff(PsciCall):
    """CPU_OFF: switch this core off; returns only on an error."""

    FUNCTION = psci.PSCI_CPU_OFF


@attrs.frozen
class CpuOn(NativePsciCall):
    """CPU_ON: start a core."""

    FUNCTION = psci.PSCI_CPU_ON_AARCH32
    FUNCTION64 = psci.PSCI_CPU_ON_AARCH64
    SLOTS = (Native("target", 1), Native("entry", 2), Native("context", 3))
    target: int
    """Affinity fields of the core's MPIDR."""
    entry: int
    """Address of its first instruction."""
    context: int
    """x0 there."""


@attrs.frozen
class AffinityInfo(NativePsciCall):
    """AFFINITY_INFO: whether a core is on (0), off (1) or being started (2)."""

    FUNCTION = psci.PSCI_AFFINITY_INFO_AARCH32
    FUNCTION64 = psci.PSCI_AFFINITY_INFO_AARCH64
    SLOTS = (Native("target", 1), Word("lowest_level", 2))
    target: int
    """Affinity fields of the core's MPIDR."""
    lowest_level: int = 0


@attrs.frozen
class Migrate(NativePsciCall):
    """MIGRATE: move a uniprocessor trusted OS to another core."""

    FUNCTION = psci.PSCI_MIG_AARCH32
    FUNCTION64 = psci.PSCI_MIG_AARCH64
    SLOTS = (Native("target", 1),)
    target: int
    """Affinity fields of the core's MPIDR."""


@attrs.frozen
class MigrateInfoType(PsciCall):
    """MIGRATE_INFO_TYPE: whether the trusted OS can and must be moved."""

    FUNCTION = psci.PSCI_MIG_INFO_TYPE


@attrs.frozen
class MigrateInfoUpCpu(NativePsciCall):
    """MIGRATE_INFO_UP_CPU: on which core the trusted OS is; the result is an MPIDR."""

    FUNCTION = psci.PSCI_MIG_INFO_UP_CPU_AARCH32
    FUNCTION64 = psci.PSCI_MIG_INFO_UP_CPU_AARCH64
    RETURN = PsciValueReturn


@attrs.frozen
class SystemOff(PsciCall):
    """SYSTEM_OFF: does not return."""

    FUNCTION = psci.PSCI_SYSTEM_OFF


@attrs.frozen
class SystemReset(PsciCall):
    """SYSTEM_RESET: does not return."""

    FUNCTION = psci.PSCI_SYSTEM_RESET


@attrs.frozen
class PsciFeatures(PsciCall):
    """PSCI_FEATURES: whether a function exists; answers for SMCCC_VERSION too."""

    FUNCTION = psci.PSCI_FEATURES
    SLOTS = (Word("queried", 1),)
    queried: int
    """The function id asked about."""


@attrs.frozen
class NodeHwState(NativePsciCall):
    """NODE_HW_STATE: on (0), off (1) or standby (2)."""

    FUNCTION = psci.PSCI_NODE_HW_STATE_AARCH32
    FUNCTION64 = psci.PSCI_NODE_HW_STATE_AARCH64
    SLOTS = (Native("target", 1), Word("power_level", 2))
    target: int
    """Affinity fields of the core's MPIDR."""
    power_level: int


@attrs.frozen
class SystemSuspend(NativePsciCall):
    """SYSTEM_SUSPEND: suspend to RAM."""

    FUNCTION = psci.PSCI_SYSTEM_SUSPEND_AARCH32
    FUNCTION64 = psci.PSCI_SYSTEM_SUSPEND_AARCH64
    SLOTS = (Native("entry", 1), Native("context", 2))
    entry: int
    """Address where the core continues."""
    context: int
    """x0 there."""


@attrs.frozen
class SetSuspendMode(PsciCall):
    """SET_SUSPEND_MODE: who coordinates power states."""

    FUNCTION = psci.PSCI_SET_SUSPEND_MODE
    SLOTS = (Word("mode", 1),)
    mode: int
    """PSCI_1_0_SUSPEND_MODE_PC or PSCI_1_0_SUSPEND_MODE_OSI."""


@attrs.frozen
class StatResidency(NativePsciCall):
    """STAT_RESIDENCY: microseconds spent in a power state."""

    FUNCTION = psci.PSCI_STAT_RESIDENCY_AARCH32
    FUNCTION64 = psci.PSCI_STAT_RESIDENCY_AARCH64
    SLOTS = (Native("target", 1), Word("power_state", 2))
    RETURN = PsciValueReturn
    target: int
    """Affinity fields of the core's MPIDR."""
    power_state: int


@attrs.frozen
class StatCount(NativePsciCall):
    """STAT_COUNT: how often a power state was used."""

    FUNCTION = psci.PSCI_STAT_COUNT_AARCH32
    FUNCTION64 = psci.PSCI_STAT_COUNT_AARCH64
    SLOTS = (Native("target", 1), Word("power_state", 2))
    RETURN = PsciValueReturn
    target: int
    """Affinity fields of the core's MPIDR."""
    power_state: int


@attrs.frozen
class SystemReset2(NativePsciCall):
    """SYSTEM_RESET2: reset of a kind; returns only on an error."""

    FUNCTION = psci.PSCI_SYSTEM_RESET2_AARCH32
    FUNCTION64 = psci.PSCI_SYSTEM_RESET2_AARCH64
    SLOTS = (Word("type", 1), Native("cookie", 2))
    type: int
    """Bit 31: the vendor's own kind."""
    cookie: int = 0


@attrs.frozen
class MemProtect(PsciCall):
    """MEM_PROTECT: erase memory on reset. The result is the previous state."""

    FUNCTION = psci.PSCI_MEM_PROTECT
    SLOTS = (Word("enable", 1),)
    enable: int


@attrs.frozen
class MemChkRange(NativePsciCall):
    """MEM_PROTECT_CHECK_RANGE: whether MEM_PROTECT covers a range."""

    FUNCTION = psci.PSCI_MEM_CHK_RANGE_AARCH32
    FUNCTION64 = psci.PSCI_MEM_CHK_RANGE_AARCH64
    SLOTS = (Native("base", 1), Native("length", 2))
    base: int
    """Physical address."""
    length: int
    """Bytes."""


PSCI_CALLS: tuple[type[Call], ...] = (
    PsciVersion,
    CpuSuspend,
    CpuOff,
    CpuOn,
    AffinityInfo,
    Migrate,
    MigrateInfoType,
    MigrateInfoUpCpu,
    SystemOff,
    SystemReset,
    PsciFeatures,
    NodeHwState,
    SystemSuspend,
    SetSuspendMode,
    StatResidency,
    StatCount,
    SystemReset2,
    MemProtect,
    MemChkRange,
)
