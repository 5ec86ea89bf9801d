# SPDX-License-Identifier: BSD-2-Clause
"""SMCCC architecture calls and the general service queries (Arm DEN0028).

Errors are negative: NOT_SUPPORTED -1, NOT_REQUIRED -2, INVALID_PARAMETER -3. They come back
sign-extended to the whole register; only the low word of a 32-bit call's result counts.
"""

from __future__ import annotations

import uuid
from typing import ClassVar, Self

import attrs

from smccc.calls.slots import Call, Return, ServiceUid, Signed, Slot, Word
from smccc.constants import arm_smccc as arm
from smccc.errors import ParseError, Reason
from smccc.function_id import CALL_COUNT, CALL_UID, REVISION, FunctionId, general_query
from smccc.registers import RegisterFrame


@attrs.frozen
class SmcccReturn(Return):
    """A result in a0: a number that is not negative, or SMCCC_RET_*."""

    SLOTS: ClassVar[tuple[Slot, ...]] = (Signed("value", 0),)
    value: int

    @property
    def supported(self) -> bool:
        """Whether the result is no error."""
        return self.value >= 0


@attrs.frozen
class VersionReturn(SmcccReturn):
    """Result of SMCCC_VERSION; NOT_SUPPORTED is what a firmware of before SMCCC 1.1 says."""

    @property
    def major(self) -> int:
        """Bits 30:16."""
        return self.value >> arm.SMCCC_VERSION_MAJOR_SHIFT

    @property
    def minor(self) -> int:
        """Bits 15:0."""
        return self.value & arm.SMCCC_VERSION_MINOR_MASK


@attrs.frozen
class Version(Call):
    """SMCCC_VERSION: which version of the calling convention is implemented."""

    FUNCTION = arm.ARM_SMCCC_VERSION_FUNC_ID
    RETURN = VersionReturn


@attrs.frozen
class ArchFeatures(Call):
    """SMCCC_ARCH_FEATURES: whether an architecture call exists, and how."""

    FUNCTION = arm.ARM_SMCCC_ARCH_FEATURES_FUNC_ID
    SLOTS = (Word("queried", 1),)
    RETURN = SmcccReturn
    queried: int
    """The function id asked about."""


@attrs.frozen
class SocIdReturn(SmcccReturn):
    """Result of SMCCC_ARCH_SOC_ID with the SoC version."""

    @property
    def jep106_bank(self) -> int:
        """JEP-106 bank index, bits 30:24."""
        return (self.value & arm.SOC_ID_JEP_106_BANK_IDX_MASK) >> arm.SOC_ID_JEP_106_BANK_IDX_SHIFT

    @property
    def jep106_code(self) -> int:
        """JEP-106 identification code, bits 23:16."""
        return (self.value & arm.SOC_ID_JEP_106_ID_CODE_MASK) >> arm.SOC_ID_JEP_106_ID_CODE_SHIFT

    @property
    def soc_id(self) -> int:
        """The silicon partner's own number, bits 15:0."""
        return self.value & arm.SOC_ID_IMPL_DEF_MASK


@attrs.frozen
class SocId(Call):
    """SMCCC_ARCH_SOC_ID: which system on chip this is."""

    FUNCTION = arm.ARM_SMCCC_ARCH_SOC_ID
    SLOTS = (Word("type", 1),)
    RETURN = SocIdReturn
    type: int = arm.SMCCC_GET_SOC_VERSION
    """SMCCC_GET_SOC_VERSION or SMCCC_GET_SOC_REVISION (whose result is a plain number)."""


@attrs.frozen
class NoReturn(Return):
    """The workaround calls return nothing: x0 to x3 may hold anything."""


@attrs.frozen
class Workaround1(Call):
    """SMCCC_ARCH_WORKAROUND_1: firmware mitigation of CVE-2017-5715 (branch target injection)."""

    FUNCTION = arm.ARM_SMCCC_ARCH_WORKAROUND_1
    RETURN = NoReturn


@attrs.frozen
class Workaround2(Call):
    """SMCCC_ARCH_WORKAROUND_2: firmware mitigation of CVE-2018-3639 (speculative store bypass)."""

    FUNCTION = arm.ARM_SMCCC_ARCH_WORKAROUND_2
    SLOTS = (Word("enable", 1),)
    RETURN = NoReturn
    enable: int
    """0 switches the mitigation off, anything else on."""


@attrs.frozen
class Workaround3(Call):
    """SMCCC_ARCH_WORKAROUND_3: firmware mitigation of CVE-2017-5715 and CVE-2022-23960."""

    FUNCTION = arm.ARM_SMCCC_ARCH_WORKAROUND_3
    RETURN = NoReturn


@attrs.frozen
class ServiceQuery(Call):
    """A general service query: fast, SMC32, one reserved function number for every owner."""

    NUMBER: ClassVar[int]
    owner: int
    """Who is asked, 0..63."""

    @property
    def function(self) -> int:
        return general_query(self.owner, self.NUMBER)

    @classmethod
    def parse(cls, frame: RegisterFrame) -> Self:
        owner = FunctionId.decode(frame.a0).owner
        if frame.a0 != general_query(owner, cls.NUMBER):
            raise ParseError(0, "a0", Reason.WRONG_FUNCTION)
        return cls(owner)


@attrs.frozen
class ServiceCallCount(ServiceQuery):
    """How many functions the service has (deprecated by SMCCC 1.2)."""

    NUMBER = CALL_COUNT
    RETURN = SmcccReturn


@attrs.frozen
class ServiceUidReturn(Return):
    """Result of the call UID query; no status. Its first byte is in the low bits of w0."""

    SLOTS = (ServiceUid("uid"),)
    uid: uuid.UUID


@attrs.frozen
class ServiceCallUid(ServiceQuery):
    """Who implements the service. OP-TEE's own UID has another word order: see ``CallsUid``."""

    NUMBER = CALL_UID
    RETURN = ServiceUidReturn


@attrs.frozen
class ServiceRevisionReturn(Return):
    """Result of the revision query; no status."""

    SLOTS = (Word("major", 0), Word("minor", 1))
    major: int
    minor: int


@attrs.frozen
class ServiceRevision(ServiceQuery):
    """The revision of the service."""

    NUMBER = REVISION
    RETURN = ServiceRevisionReturn


ARCH_CALLS: tuple[type[Call], ...] = (
    Version,
    ArchFeatures,
    SocId,
    Workaround1,
    Workaround2,
    Workaround3,
)

SERVICE_QUERIES: dict[int, type[ServiceQuery]] = {
    CALL_COUNT: ServiceCallCount,
    CALL_UID: ServiceCallUid,
    REVISION: ServiceRevision,
}
"""Function number to query."""
