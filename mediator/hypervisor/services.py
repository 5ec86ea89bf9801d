# SPDX-License-Identifier: BSD-2-Clause
"""SMCCC services that the hypervisor answers itself: architecture, standard and hypervisor queries.

Every answer is a constant of the machine (SMCCC, Arm DEN 0028, sections 6 and 7), so the settings
are compiled once into a table from function id to result words, and a trap is one look-up. A table
entry lists the registers that the call defines; all others keep the guest's values. An entry
without words defines none, which is what the WORKAROUND calls do.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

from smccc.constants import arm_smccc, psci

MASK32: Final = 0xFFFFFFFF
NOT_SUPPORTED: Final = (1 << 64) - 1
"""The signed result -1 in a 64-bit register. A 32-bit guest sees its low word."""

FFA_FIRST_NUMBER: Final = 0x60
FFA_LAST_NUMBER: Final = 0x8E
"""Function numbers of the standard service range that belong to FF-A (Arm DEN 0077)."""

_FAST32: Final = arm_smccc.ARM_SMCCC_FAST_CALL << arm_smccc.ARM_SMCCC_TYPE_SHIFT
_CALL_COUNT: Final = 0xFF00
_UID: Final = 0xFF01
_REVISION: Final = 0xFF03
_SOC_ID_CALLS: Final = (arm_smccc.SMCCC_GET_SOC_VERSION, arm_smccc.SMCCC_GET_SOC_REVISION)

PSCI_FUNCTIONS: Final = (
    psci.PSCI_VERSION,
    psci.PSCI_CPU_SUSPEND_AARCH32,
    psci.PSCI_CPU_SUSPEND_AARCH64,
    psci.PSCI_CPU_OFF,
    psci.PSCI_CPU_ON_AARCH32,
    psci.PSCI_CPU_ON_AARCH64,
    psci.PSCI_AFFINITY_INFO_AARCH32,
    psci.PSCI_AFFINITY_INFO_AARCH64,
    psci.PSCI_MIG_INFO_TYPE,
    psci.PSCI_SYSTEM_OFF,
    psci.PSCI_SYSTEM_RESET,
    psci.PSCI_FEATURES,
    psci.PSCI_SYSTEM_SUSPEND_AARCH32,
    psci.PSCI_SYSTEM_SUSPEND_AARCH64,
)
"""PSCI function ids that :mod:`mediator.hypervisor.psci` serves (Arm DEN 0022)."""

PSCI_0_1_CPU_OFF: Final = 1
PSCI_0_1_CPU_ON: Final = 2
"""PSCI 0.1 had no fixed numbers; these are what the reference tells its guests (vpsci.c)."""


@frozen
class ServiceIdentity:
    """The three general queries of one owner range (SMCCC 6.2): count, UID words, revision."""

    call_count: int
    uid: tuple[int, int, int, int]
    revision: tuple[int, int]


OWN_HYPERVISOR: Final = ServiceIdentity(
    call_count=3,
    uid=(0x8A1E6F03, 0x4C7D92B5, 0xB1F04EA2, 0x3D5960C7),
    revision=(0, 1),
)
"""This hypervisor's own name: the general queries are all that it serves in its range."""

OWN_STANDARD: Final = ServiceIdentity(
    call_count=3 + len(PSCI_FUNCTIONS),
    uid=(0x51C2D80E, 0x4E06B37F, 0x9A7B21D4, 0xE8F30C66),
    revision=(0, 1),
)
"""Standard services: the general queries and PSCI."""

REFERENCE_HYPERVISOR: Final = ServiceIdentity(
    call_count=3,
    uid=(0xDC1218A7, 0x694398C6, 0xD179CF9A, 0x67E6DE8D),
    revision=(arm_smccc.XEN_SMCCC_MAJOR_REVISION, arm_smccc.XEN_SMCCC_MINOR_REVISION),
)
"""Recorded from the reference mediator (behaviour vectors, category smccc)."""

REFERENCE_STANDARD: Final = ServiceIdentity(
    call_count=3 + 14 + 12,
    uid=(0x6F3863F8, 0xBD4C394B, 0x16CE2092, 0x6F9FE541),
    revision=(arm_smccc.SSSC_SMCCC_MAJOR_REVISION, arm_smccc.SSSC_SMCCC_MINOR_REVISION),
)
"""General queries, 14 PSCI and 12 FF-A functions, as the reference counts them."""

NO_MITIGATIONS: Final[Mapping[int, int]] = MappingProxyType({})

OWN_ARCH_FEATURES: Final[Mapping[int, int]] = MappingProxyType(
    {
        arm_smccc.ARM_SMCCC_VERSION_FUNC_ID: arm_smccc.SMCCC_RET_SUCCESS,
        arm_smccc.ARM_SMCCC_ARCH_FEATURES_FUNC_ID: arm_smccc.SMCCC_RET_SUCCESS,
    }
)
"""What ARCH_FEATURES answers 0 for here: the two calls that every SMCCC 1.1 host implements."""


@frozen
class ServiceSettings:
    """What the hypervisor says about itself.

    ``smccc_version`` is ``major << 16 | minor``; from 1.3 on bit 16 of a function id is the SVE
    hint and ignored. ``arch_features`` maps a function id to the signed ARCH_FEATURES result, ids
    not listed get NOT_SUPPORTED. ``soc_id``: version and revision words, ``None``: not offered.
    """

    smccc_version: int = arm_smccc.ARM_SMCCC_VERSION_1_2
    arch_features: Mapping[int, int] = OWN_ARCH_FEATURES
    soc_id: tuple[int, int] | None = None
    hypervisor: ServiceIdentity = OWN_HYPERVISOR
    standard: ServiceIdentity = OWN_STANDARD
    psci_functions: tuple[int, ...] = field(default=PSCI_FUNCTIONS)

    @classmethod
    def reference(cls) -> ServiceSettings:
        """The values of the reference mediator's host, recorded without optional mitigations."""
        return cls(
            arch_features=NO_MITIGATIONS,
            hypervisor=REFERENCE_HYPERVISOR,
            standard=REFERENCE_STANDARD,
        )


def _identity_answers(owner: int, identity: ServiceIdentity) -> dict[int, tuple[int, ...]]:
    base = _FAST32 | owner << arm_smccc.ARM_SMCCC_OWNER_SHIFT
    return {
        base | _CALL_COUNT: (identity.call_count,),
        base | _UID: identity.uid,
        base | _REVISION: identity.revision,
    }


def compile_answers(settings: ServiceSettings) -> dict[int, tuple[int, ...]]:
    """Function id -> the result words x0.. that it defines; ids without an entry are unknown."""
    answers: dict[int, tuple[int, ...]] = {
        arm_smccc.ARM_SMCCC_VERSION_FUNC_ID: (settings.smccc_version,),
        # Guests may issue the mitigation calls wherever they were told to; none returns a value.
        arm_smccc.ARM_SMCCC_ARCH_WORKAROUND_1: (),
        arm_smccc.ARM_SMCCC_ARCH_WORKAROUND_2: (),
        arm_smccc.ARM_SMCCC_ARCH_WORKAROUND_3: (),
    }
    answers.update(_identity_answers(arm_smccc.ARM_SMCCC_OWNER_STANDARD, settings.standard))
    answers.update(_identity_answers(arm_smccc.ARM_SMCCC_OWNER_HYPERVISOR, settings.hypervisor))
    return answers


def arch_features(settings: ServiceSettings, function: int) -> int:
    """Result word of ARCH_FEATURES(``function``): 0 or positive, or a negative as 64 bits."""
    if function == arm_smccc.ARM_SMCCC_ARCH_SOC_ID and settings.soc_id is not None:
        return arm_smccc.SMCCC_RET_SUCCESS
    return settings.arch_features.get(function, arm_smccc.SMCCC_RET_NOT_SUPPORTED) & NOT_SUPPORTED


def soc_id(settings: ServiceSettings, kind: int) -> int:
    """Result word of ARCH_SOC_ID: version (0) or revision (1) of the SoC."""
    if settings.soc_id is None:
        return NOT_SUPPORTED
    if kind not in _SOC_ID_CALLS:
        return arm_smccc.SMCCC_RET_INVALID_PARAMETER & NOT_SUPPORTED
    return settings.soc_id[kind]
