# SPDX-License-Identifier: BSD-2-Clause
"""The instructions that make a call: SMC and HVC, with their immediate.

Arm DEN0028 reserves every immediate but zero, so a hypervisor injects an undefined instruction
exception for another one. The numbers here are those of the Arm architecture (DDI0487): the A64
encodings, and the exception class (ESR_EL2.EC) with which a hypervisor sees the trap.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from smccc.errors import BuildError, ParseError, Reason

SMCCC_IMMEDIATE: Final = 0
"""The only immediate that Arm DEN0028 gives a meaning."""

IMMEDIATE_LIMIT: Final = 1 << 16
"""Immediates of SMC and HVC are 16 bits wide in A64."""


class Conduit(enum.Enum):
    """How a call leaves the caller's exception level."""

    SMC = "smc"
    """Secure monitor call, trapped by the hypervisor (HCR_EL2.TSC)."""
    HVC = "hvc"
    """Hypervisor call."""


class _Encoding(NamedTuple):
    a64: int
    class_aarch64: int
    class_aarch32: int


_A64_IMMEDIATE_SHIFT: Final = 5
_A64_FIXED_BITS: Final = 0xFFE0_001F
_ENCODINGS: Final = {
    Conduit.SMC: _Encoding(0xD400_0003, 0x17, 0x13),
    Conduit.HVC: _Encoding(0xD400_0002, 0x16, 0x12),
}
_ESR_CLASS_SHIFT: Final = 26
_ESR_CLASS_MASK: Final = 0x3F
_ESR_IL: Final = 1 << 25
_INSTRUCTION: Final = struct.Struct("<I")


class Call(NamedTuple):
    """One executed instruction: which conduit, which immediate."""

    conduit: Conduit
    immediate: int = SMCCC_IMMEDIATE

    @property
    def follows_convention(self) -> bool:
        """Whether the registers have a meaning by Arm DEN0028; otherwise the call is undefined."""
        return self.immediate == SMCCC_IMMEDIATE

    def a64(self) -> bytes:
        """The A64 instruction, four bytes.

        Raises :class:`~smccc.errors.BuildError` if the immediate does not fit 16 bits.
        """
        if not 0 <= self.immediate < IMMEDIATE_LIMIT:
            raise BuildError("immediate", f"{self.immediate} does not fit 16 bits")
        word = _ENCODINGS[self.conduit].a64 | self.immediate << _A64_IMMEDIATE_SHIFT
        return _INSTRUCTION.pack(word)

    def syndrome(self) -> int:
        """ESR_EL2 as a hypervisor reads it when AArch64 code executed the instruction."""
        return _ENCODINGS[self.conduit].class_aarch64 << _ESR_CLASS_SHIFT | _ESR_IL | self.immediate


def parse_a64(instruction: bytes) -> Call:
    """Read an SMC or HVC instruction of four bytes.

    Raises :class:`~smccc.errors.ParseError` for any other instruction, or less than four bytes.
    """
    if len(instruction) < _INSTRUCTION.size:
        raise ParseError(0, "instruction", Reason.TRUNCATED)
    word: int = _INSTRUCTION.unpack_from(instruction)[0]
    for conduit, encoding in _ENCODINGS.items():
        if word & _A64_FIXED_BITS == encoding.a64:
            return Call(conduit, word >> _A64_IMMEDIATE_SHIFT & IMMEDIATE_LIMIT - 1)
    raise ParseError(0, "instruction", Reason.NOT_IN_RANGE)


def parse_syndrome(esr: int) -> Call:
    """Read ESR_EL2 of a trapped SMC or HVC from AArch64, or of an HVC from AArch32.

    An SMC from AArch32 has no immediate in its syndrome; it reads as 0, which nobody may check.
    Raises :class:`~smccc.errors.ParseError` for every other exception class.
    """
    exception_class = esr >> _ESR_CLASS_SHIFT & _ESR_CLASS_MASK
    for conduit, encoding in _ENCODINGS.items():
        if exception_class == encoding.class_aarch64:
            return Call(conduit, esr & IMMEDIATE_LIMIT - 1)
        if exception_class == encoding.class_aarch32:
            return Call(conduit, 0 if conduit is Conduit.SMC else esr & IMMEDIATE_LIMIT - 1)
    raise ParseError(0, "EC", Reason.NOT_IN_RANGE)
