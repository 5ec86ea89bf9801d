# SPDX-License-Identifier: BSD-2-Clause
"""SMCCC services that the hypervisor answers itself: architecture, standard and hypervisor queries.

Every answer is a constant of the machine (SMCCC, Arm DEN 0028, sections 6 and 7), so the settings
are compiled once into a table from function id to result words, and a trap is one look-up. A table
entry lists the registers that the call defines; all others keep the guest's values. An entry
without words defines none, which is what the WORKAROUND calls do.

Not served, and so unknown: ARCH_FEATURE_AVAILABILITY, and the SoC name (type 2 of SOC_ID, 64-bit
convention), whose 17 result registers no register frame here has.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from uuid import UUID

from attrs import field, frozen

from smccc.constants import arm_smccc, psci
from smccc.function_id import uid_words

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
_SOC_ID_WORD_END: Final = 1 << 31
"""A SOC_ID result with bit 31 set would be an error code."""

NEWEST_VERSION: Final = arm_smccc.ARM_SMCCC_VERSION_1_0 | 6
"""The newest version of DEN 0028 that this host can stand for."""

_WORKAROUNDS: Final = (
    arm_smccc.ARM_SMCCC_ARCH_WORKAROUND_1,
    arm_smccc.ARM_SMCCC_ARCH_WORKAROUND_2,
    arm_smccc.ARM_SMCCC_ARCH_WORKAROUND_3,
)

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


def _check_words(what: str, words: tuple[int, ...]) -> None:
    for word in words:
        if not 0 <= word <= MASK32:
            raise ValueError(f"{what}: {word:#x} is no 32-bit word")


@frozen
class ServiceIdentity:
    """The three general queries of one owner range (SMCCC 6.2): count, UID words, revision.

    ``ValueError`` for words of more than 32 bits, and for a UID whose first word is the answer of
    an unknown function: a guest could not tell the two apart.
    """

    call_count: int
    uid: tuple[int, int, int, int]
    revision: tuple[int, int]

    def __attrs_post_init__(self) -> None:
        _check_words("call count", (self.call_count,))
        _check_words("UID", self.uid)
        _check_words("revision", self.revision)
        if self.uid[0] == NOT_SUPPORTED & MASK32:
            raise ValueError("UID: its first word means that there is no such function")


def _uid(text: str) -> tuple[int, int, int, int]:
    w0, w1, w2, w3 = uid_words(UUID(text))
    return w0, w1, w2, w3


OWN_HYPERVISOR: Final = ServiceIdentity(
    call_count=3,
    uid=_uid("0d9d3551-487a-4393-a5f0-ccb2e378a7e3"),
    revision=(0, 1),
)
"""This hypervisor's own name: the general queries are all that it serves in its range."""

OWN_STANDARD: Final = ServiceIdentity(
    call_count=3 + len(PSCI_FUNCTIONS),
    uid=_uid("58f79594-938a-4b6e-9951-d3e07298b76e"),
    revision=(0, 1),
)
"""Standard services: the general queries and PSCI."""

OWN_VENDOR: Final = ServiceIdentity(
    call_count=3,
    uid=_uid("5fa14518-2d63-49af-94fc-72d3178a7ee1"),
    revision=(0, 1),
)
"""Vendor specific hypervisor services: where guests look for the name of the hypervisor they run on
(Linux probes it for KVM and Hyper-V). Not one that any of them knows."""

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

_OF_EVERY_VERSION: Final = tuple(OWN_ARCH_FEATURES)
"""What ARCH_FEATURES may confirm whatever the settings: without it nobody could ask."""


@frozen
class ServiceSettings:
    """What the hypervisor says about itself.

    ``smccc_version`` is ``major << 16 | minor``, 1.0 to 1.6. With 1.0 there is neither VERSION nor
    ARCH_FEATURES; from 1.3 on bit 16 of a function id is the SVE hint and ignored.
    ``arch_features`` maps a function id to the signed ARCH_FEATURES result, ids not listed get
    NOT_SUPPORTED. ``soc_id``: version and revision words (since 1.2), ``None``: not offered.
    ``vendor``: the range of owner 6, ``None``: nobody's.

    ``ValueError`` for a version that does not exist, and for an ARCH_FEATURES result that promises
    a function which nobody serves.
    """

    smccc_version: int = arm_smccc.ARM_SMCCC_VERSION_1_2
    arch_features: Mapping[int, int] = OWN_ARCH_FEATURES
    soc_id: tuple[int, int] | None = None
    hypervisor: ServiceIdentity = OWN_HYPERVISOR
    standard: ServiceIdentity = OWN_STANDARD
    vendor: ServiceIdentity | None = OWN_VENDOR
    psci_functions: tuple[int, ...] = field(default=PSCI_FUNCTIONS)

    def __attrs_post_init__(self) -> None:
        if not arm_smccc.ARM_SMCCC_VERSION_1_0 <= self.smccc_version <= NEWEST_VERSION:
            raise ValueError(f"smccc_version: {self.smccc_version:#x} is not 1.0 to 1.6")
        if self.soc_id is not None:
            if self.smccc_version < arm_smccc.ARM_SMCCC_VERSION_1_2:
                raise ValueError("soc_id: SOC_ID exists since version 1.2")
            if not all(0 <= word < _SOC_ID_WORD_END for word in self.soc_id):
                raise ValueError("soc_id: bit 31 of its words is zero")
        served = {*compile_answers(self), *_OF_EVERY_VERSION, *self.psci_functions}
        for function, result in self.arch_features.items():
            if result >= arm_smccc.SMCCC_RET_SUCCESS and function not in served:
                raise ValueError(f"arch_features: nobody serves {function:#010x}")

    @property
    def answers_about_itself(self) -> bool:
        """Whether there are VERSION and ARCH_FEATURES: optional in 1.0, and left out here."""
        return self.smccc_version > arm_smccc.ARM_SMCCC_VERSION_1_0

    @property
    def psci_features(self) -> tuple[int, ...]:
        """Function ids that PSCI_FEATURES confirms: PSCI's own, and VERSION if there is one."""
        if self.answers_about_itself:
            return (*self.psci_functions, arm_smccc.ARM_SMCCC_VERSION_FUNC_ID)
        return self.psci_functions

    @classmethod
    def reference(cls) -> ServiceSettings:
        """The values of the reference mediator's host, recorded without optional mitigations."""
        return cls(
            arch_features=NO_MITIGATIONS,
            hypervisor=REFERENCE_HYPERVISOR,
            standard=REFERENCE_STANDARD,
            vendor=None,
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
    # Guests may issue the mitigation calls wherever they were told to; none returns a value. The
    # fourth came with 1.6: it is served to those who were told of it.
    answers: dict[int, tuple[int, ...]] = dict.fromkeys(_WORKAROUNDS, ())
    fourth = arm_smccc.SMCCC_ARCH_WORKAROUND_4
    if settings.arch_features.get(fourth, arm_smccc.SMCCC_RET_NOT_SUPPORTED) >= 0:
        answers[fourth] = ()
    if settings.answers_about_itself:
        answers[arm_smccc.ARM_SMCCC_VERSION_FUNC_ID] = (settings.smccc_version,)
    answers.update(_identity_answers(arm_smccc.ARM_SMCCC_OWNER_STANDARD, settings.standard))
    answers.update(_identity_answers(arm_smccc.ARM_SMCCC_OWNER_HYPERVISOR, settings.hypervisor))
    if settings.vendor is not None:
        answers.update(_identity_answers(arm_smccc.ARM_SMCCC_OWNER_VENDOR_HYP, settings.vendor))
    return answers


def arch_features(settings: ServiceSettings, function: int) -> int | None:
    """Result word of ARCH_FEATURES(``function``): 0 or positive, or a negative as 64 bits.

    ``None``: this version of the convention has no ARCH_FEATURES.
    """
    if not settings.answers_about_itself:
        return None
    if function == arm_smccc.ARM_SMCCC_ARCH_SOC_ID and settings.soc_id is not None:
        return arm_smccc.SMCCC_RET_SUCCESS
    return settings.arch_features.get(function, arm_smccc.SMCCC_RET_NOT_SUPPORTED) & NOT_SUPPORTED


def soc_id(settings: ServiceSettings, kind: int) -> int | None:
    """Result word of ARCH_SOC_ID: version (0) or revision (1) of the SoC; ``None``: not offered."""
    if settings.soc_id is None:
        return None
    if kind not in _SOC_ID_CALLS:
        return arm_smccc.SMCCC_RET_INVALID_PARAMETER & NOT_SUPPORTED
    return settings.soc_id[kind]
