# SPDX-License-Identifier: BSD-2-Clause
"""Register values: high and low words, sign, and the frame a0..a7 with its 32 and 64-bit views.

The OP-TEE SMC ABI is 32-bit on every register, also on arm64 (Arm DEN0028, SMC32 calls): the caller
may leave rubbish in bits 63:32. Whoever wants the documented behaviour looks at the low words.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from smccc.errors import BuildError, ParseError, Reason

MASK32: Final = 0xFFFF_FFFF
MASK64: Final = 0xFFFF_FFFF_FFFF_FFFF
REGISTERS: Final = 8
"""Argument registers of a call: a0..a7 (x0..x7 or w0..w7)."""

_FRAME64: Final = struct.Struct("<8Q")
_FRAME32: Final = struct.Struct("<8I")


def pair(hi: int, lo: int) -> int:
    """The 64-bit value of a high and a low register; only their low words count.

    ``optee_smc.h``: addresses and cookies travel high word first, in a1:a2 or a4:a5.
    """
    return (hi & MASK32) << 32 | lo & MASK32


def split(value: int) -> tuple[int, int]:
    """The high and the low word of a 64-bit value, in the order in which they travel."""
    return value >> 32 & MASK32, value & MASK32


def low32(value: int) -> int:
    """What a 32-bit call sees of a register."""
    return value & MASK32


def signed32(value: int) -> int:
    """The low word as a signed number: 0xffffffff is -1, NOT_SUPPORTED."""
    value &= MASK32
    return value - 0x1_0000_0000 if value & 0x8000_0000 else value


def signed64(value: int) -> int:
    """A register as a signed number; what an SMC64 call or PSCI returns in x0."""
    value &= MASK64
    return value - 0x1_0000_0000_0000_0000 if value >> 63 else value


def unsigned32(value: int) -> int:
    """The 32-bit register that holds a signed result: -1 becomes 0xffffffff."""
    return value & MASK32


def unsigned64(value: int) -> int:
    """The 64-bit register that holds a signed result: -1 becomes 0xffffffffffffffff."""
    return value & MASK64


def _registers(instance: RegisterFrame, attribute: object, value: tuple[int, ...]) -> None:
    if len(value) != REGISTERS:
        raise BuildError("registers", f"are {len(value)}, a frame has {REGISTERS}")
    for number, register in enumerate(value):
        if not 0 <= register <= MASK64:
            raise BuildError(f"a{number}", "does not fit 64 bits")


@attrs.frozen
class RegisterFrame:
    """The eight registers of a call or of its return, each 64 bits wide."""

    x: tuple[int, ...] = attrs.field(validator=_registers)
    """The 64-bit view, a0 first."""

    @classmethod
    def of(cls, *registers: int) -> RegisterFrame:
        """A frame from up to eight registers; those left out are zero."""
        return cls(registers + (0,) * (REGISTERS - len(registers)))

    @property
    def w(self) -> tuple[int, ...]:
        """The 32-bit view: the low word of every register."""
        return tuple([register & MASK32 for register in self.x])

    @property
    def a0(self) -> int:
        """The low word of a0, where a function id and an OP-TEE result are."""
        return self.x[0] & MASK32

    def pair(self, hi: int) -> int:
        """The 64-bit value in registers ``hi`` and ``hi + 1``."""
        return pair(self.x[hi], self.x[hi + 1])

    def replace(self, **registers: int) -> RegisterFrame:
        """The same frame but for the registers named, like ``replace(a0=0, a3=1)``."""
        values = list(self.x)
        for name, value in registers.items():
            if name not in _NAMES:
                raise BuildError(name, "is not one of a0 to a7")
            values[int(name[1:])] = value
        return RegisterFrame(tuple(values))

    def build(self) -> bytes:
        """64 bytes: ``struct thread_smc_args`` of OP-TEE OS on arm64, little-endian."""
        return _FRAME64.pack(*self.x)

    def build32(self) -> bytes:
        """32 bytes: ``struct thread_smc_args`` on arm32; the high words are dropped."""
        return _FRAME32.pack(*self.w)


_NAMES: Final = tuple(f"a{number}" for number in range(REGISTERS))


def _short(data: bytes | bytearray | memoryview, width: int) -> ParseError:
    number = len(data) // width
    return ParseError(number * width, f"a{number}", Reason.TRUNCATED)


def parse_frame(data: bytes | bytearray | memoryview) -> RegisterFrame:
    """Read eight little-endian 64-bit registers; bytes after them are ignored.

    Raises :class:`~smccc.errors.ParseError` at the first register that is not whole.
    """
    if len(data) < _FRAME64.size:
        raise _short(data, 8)
    return RegisterFrame(_FRAME64.unpack_from(data))


def parse_frame32(data: bytes | bytearray | memoryview) -> RegisterFrame:
    """Read eight little-endian 32-bit registers; the high words become zero.

    Raises :class:`~smccc.errors.ParseError` at the first register that is not whole.
    """
    if len(data) < _FRAME32.size:
        raise _short(data, 4)
    return RegisterFrame(_FRAME32.unpack_from(data))
