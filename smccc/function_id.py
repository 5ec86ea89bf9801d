# SPDX-License-Identifier: BSD-2-Clause
"""SMCCC function ids: what a0 (w0) of a call says, bit by bit (Arm DEN0028, "Function identifiers").

::

    31    30     29..24  23..17    16        15..0
    fast  smc64  owner   reserved  SVE hint  function number

Every 32-bit value is a function id and survives a round trip; whether somebody serves it is another
question. Yielding calls have the same layout with bit 31 clear.
"""

from __future__ import annotations

import enum
import struct
import uuid
from typing import Final, NamedTuple

from smccc.constants import arm_smccc as arm
from smccc.errors import BuildError
from smccc.registers import MASK32

VENDOR_EL3: Final = arm.OEN_VEN_EL3_START


class Service(enum.Enum):
    """Who owns a range of function ids (Arm DEN0028, table of owning entities)."""

    ARCH = "Arm architecture calls"
    CPU = "CPU service calls"
    SIP = "silicon partner service calls"
    OEM = "OEM service calls"
    STANDARD = "standard secure service calls"
    STANDARD_HYP = "standard hypervisor service calls"
    VENDOR_HYP = "vendor specific hypervisor service calls"
    VENDOR_EL3 = "vendor specific EL3 monitor calls"
    RESERVED = "reserved"
    TRUSTED_APP = "trusted application calls"
    TRUSTED_OS = "trusted OS calls"


class _Range(NamedTuple):
    first: int
    last: int
    service: Service


_RANGES: Final = (
    _Range(arm.ARM_SMCCC_OWNER_ARCH, arm.ARM_SMCCC_OWNER_ARCH, Service.ARCH),
    _Range(arm.ARM_SMCCC_OWNER_CPU, arm.ARM_SMCCC_OWNER_CPU, Service.CPU),
    _Range(arm.ARM_SMCCC_OWNER_SIP, arm.ARM_SMCCC_OWNER_SIP, Service.SIP),
    _Range(arm.ARM_SMCCC_OWNER_OEM, arm.ARM_SMCCC_OWNER_OEM, Service.OEM),
    _Range(arm.ARM_SMCCC_OWNER_STANDARD, arm.ARM_SMCCC_OWNER_STANDARD, Service.STANDARD),
    _Range(
        arm.ARM_SMCCC_OWNER_STANDARD_HYP, arm.ARM_SMCCC_OWNER_STANDARD_HYP, Service.STANDARD_HYP
    ),
    _Range(arm.ARM_SMCCC_OWNER_VENDOR_HYP, arm.ARM_SMCCC_OWNER_VENDOR_HYP, Service.VENDOR_HYP),
    _Range(VENDOR_EL3, arm.OEN_VEN_EL3_END, Service.VENDOR_EL3),
    _Range(
        arm.ARM_SMCCC_OWNER_TRUSTED_APP, arm.ARM_SMCCC_OWNER_TRUSTED_APP_END, Service.TRUSTED_APP
    ),
    _Range(arm.ARM_SMCCC_OWNER_TRUSTED_OS, arm.ARM_SMCCC_OWNER_TRUSTED_OS_END, Service.TRUSTED_OS),
)


def service_of(owner: int) -> Service:
    """The service that owns the ids with this owner number (0..63)."""
    for first, last, service in _RANGES:
        if first <= owner <= last:
            return service
    return Service.RESERVED


def _bits(name: str, value: int, width: int) -> int:
    if not 0 <= value < 1 << width:
        raise BuildError(name, f"{value} does not fit {width} bits")
    return value


class FunctionId(NamedTuple):
    """A function id taken apart. ``FunctionId.decode(v).encode() == v`` for every 32-bit ``v``."""

    fast: bool
    """Bit 31: a fast call runs to its end, a yielding one may be interrupted and resumed."""
    smc64: bool
    """Bit 30: the 64-bit convention."""
    owner: int
    """Bits 29:24."""
    number: int
    """Bits 15:0, the function number."""
    reserved: int = 0
    """Bits 23:17; zero in every id that exists."""
    sve_hint: bool = False
    """Bit 16: the caller has no live SVE state (SMCCC 1.3)."""

    @classmethod
    def decode(cls, value: int) -> FunctionId:
        """Take the low 32 bits of ``value`` apart; the upper half of a0 never counts."""
        return cls(
            fast=bool(value >> arm.ARM_SMCCC_TYPE_SHIFT & 1),
            smc64=bool(value >> arm.ARM_SMCCC_CALL_CONV_SHIFT & 1),
            owner=value >> arm.ARM_SMCCC_OWNER_SHIFT & arm.ARM_SMCCC_OWNER_MASK,
            number=value & arm.ARM_SMCCC_FUNC_MASK,
            reserved=value >> arm.FUNCID_FC_RESERVED_SHIFT & arm.FUNCID_FC_RESERVED_MASK,
            sve_hint=bool(value & arm.ARM_SMCCC_1_3_SVE_HINT),
        )

    def encode(self) -> int:
        """The 32-bit value. Raises :class:`~smccc.errors.BuildError` if a part does not fit."""
        return (
            self.fast << arm.ARM_SMCCC_TYPE_SHIFT
            | self.smc64 << arm.ARM_SMCCC_CALL_CONV_SHIFT
            | _bits("owner", self.owner, arm.FUNCID_OEN_WIDTH) << arm.ARM_SMCCC_OWNER_SHIFT
            | _bits("reserved", self.reserved, arm.FUNCID_FC_RESERVED_WIDTH)
            << arm.FUNCID_FC_RESERVED_SHIFT
            | (arm.ARM_SMCCC_1_3_SVE_HINT if self.sve_hint else 0)
            | _bits("number", self.number, arm.FUNCID_NUM_WIDTH)
        )

    @property
    def service(self) -> Service:
        """Who owns the id."""
        return service_of(self.owner)

    @property
    def plain(self) -> int:
        """The id without bits 23:16: what ``ARM_SMCCC_CALL_VAL`` builds from the other parts."""
        return self._replace(reserved=0, sve_hint=False).encode()

    @property
    def is_valid_fast(self) -> bool:
        """Whether TF-A's ``is_valid_fast_smc`` takes it: fast, and bits 23:16 all zero."""
        return self.fast and not self.reserved and not self.sve_hint

    @property
    def is_psci_number(self) -> bool:
        """Whether the function number lies in the range of PSCI (0..31), whatever its owner."""
        return self.number & arm.PSCI_FID_MASK == arm.PSCI_FID_VALUE


CALL_COUNT: Final = arm.ARM_STD_SVC_CALL_COUNT & arm.ARM_SMCCC_FUNC_MASK
"""Function number of the general service query "call count"."""

CALL_UID: Final = arm.ARM_SMCCC_FUNC_QUERY_CALL_UID
"""Function number of the general service query "call UID"."""

REVISION: Final = arm.ARM_STD_SVC_VERSION & arm.ARM_SMCCC_FUNC_MASK
"""Function number of the general service query "revision"."""


def general_query(owner: int, number: int) -> int:
    """The id by which any service is asked ``CALL_COUNT``, ``CALL_UID`` or ``REVISION``.

    Arm DEN0028: fast, SMC32, reserved function numbers 0xff00, 0xff01 and 0xff03 of each owner.
    """
    return FunctionId(True, False, owner, number).encode()


def is_yielding(value: int) -> bool:
    """Whether a0 asks for a yielding call; only bit 31 decides."""
    return not value >> arm.ARM_SMCCC_TYPE_SHIFT & 1


_WORDS_LE: Final = struct.Struct("<4I")
_WORDS_BE: Final = struct.Struct(">4I")


def uid_words(uid: uuid.UUID) -> tuple[int, ...]:
    """A service's UID in w0..w3 as Arm DEN0028 says: its first byte in the low bits of w0."""
    return _WORDS_LE.unpack(uid.bytes)


def uid_from_words(words: tuple[int, ...]) -> uuid.UUID:
    """The UID that a service returned in w0..w3 in the order of Arm DEN0028."""
    return uuid.UUID(bytes=_WORDS_LE.pack(*[word & MASK32 for word in words]))


def optee_uid_words(uid: uuid.UUID) -> tuple[int, ...]:
    """A UUID in a0..a3 as OP-TEE returns it: each word reads like eight digits of the text.

    ``optee_msg.h``, OPTEE_MSG_UID_0..3 and OPTEE_MSG_OS_OPTEE_UUID_0..3.
    """
    return _WORDS_BE.unpack(uid.bytes)


def optee_uid_from_words(words: tuple[int, ...]) -> uuid.UUID:
    """The UUID that OP-TEE returned in a0..a3 of CALLS_UID or CALL_GET_OS_UUID."""
    return uuid.UUID(bytes=_WORDS_BE.pack(*[word & MASK32 for word in words]))
