# SPDX-License-Identifier: BSD-2-Clause
"""Where the fields of a call lie: the elements of the tables in this package.

A typed value declares a ``SLOTS`` table that says which field travels in which register (or, for
messages, in which part of which parameter). Two short loops read and write every value by its
table, so a layout is written down exactly once, next to the field's documentation.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, Self

import attrs

from smccc.constants import optee_smc as smc
from smccc.errors import BuildError, ParseError, Reason
from smccc.function_id import (
    optee_uid_from_words,
    optee_uid_words,
    uid_from_words,
    uid_words,
)
from smccc.registers import MASK32, MASK64, RegisterFrame, low32, pair, signed32, split

Field = int | uuid.UUID


class Slot(Protocol):
    """One field in one or more registers. ``wide``: the call follows the 64-bit convention."""

    @property
    def field(self) -> str: ...

    def read(self, x: Sequence[int], wide: bool) -> Field: ...

    def write(self, x: list[int], value: Field, wide: bool) -> None: ...


def _number(field: str, value: Field, bits: int) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise BuildError(field, f"{value!r} does not fit {bits} bits")
    return value


class Word(NamedTuple):
    """The low 32 bits of a register; rubbish above them does not count."""

    field: str
    register: int

    def read(self, x: Sequence[int], wide: bool) -> int:
        return low32(x[self.register])

    def write(self, x: list[int], value: Field, wide: bool) -> None:
        x[self.register] = _number(self.field, value, 32)


class Whole(NamedTuple):
    """A whole register, 64 bits on arm64: addresses and sizes that are *not* split into a pair."""

    field: str
    register: int

    def read(self, x: Sequence[int], wide: bool) -> int:
        return x[self.register] & MASK64

    def write(self, x: list[int], value: Field, wide: bool) -> None:
        x[self.register] = _number(self.field, value, 64)


class Native(NamedTuple):
    """32 bits in an SMC32 call, 64 bits in an SMC64 call."""

    field: str
    register: int

    def read(self, x: Sequence[int], wide: bool) -> int:
        return x[self.register] & (MASK64 if wide else MASK32)

    def write(self, x: list[int], value: Field, wide: bool) -> None:
        x[self.register] = _number(self.field, value, 64 if wide else 32)


class Pair(NamedTuple):
    """64 bits in two registers, high word first."""

    field: str
    register: int

    def read(self, x: Sequence[int], wide: bool) -> int:
        return pair(x[self.register], x[self.register + 1])

    def write(self, x: list[int], value: Field, wide: bool) -> None:
        x[self.register], x[self.register + 1] = split(_number(self.field, value, 64))


class Signed(NamedTuple):
    """A signed 32-bit result; written sign-extended, as EL3 and hypervisors return it."""

    field: str
    register: int

    def read(self, x: Sequence[int], wide: bool) -> int:
        return signed32(x[self.register])

    def write(self, x: list[int], value: Field, wide: bool) -> None:
        if not isinstance(value, int) or not -(1 << 31) <= value < 1 << 31:
            raise BuildError(self.field, f"{value!r} does not fit 32 signed bits")
        x[self.register] = value & MASK64


class OpteeUid(NamedTuple):
    """A UUID in a0..a3, each word as its text reads (``optee_msg.h``)."""

    field: str

    def read(self, x: Sequence[int], wide: bool) -> uuid.UUID:
        return optee_uid_from_words(tuple(x[:4]))

    def write(self, x: list[int], value: Field, wide: bool) -> None:
        x[:4] = optee_uid_words(_uuid(self.field, value))


class ServiceUid(NamedTuple):
    """A UUID in w0..w3, first byte in the low bits of w0 (Arm DEN0028, call UID query)."""

    field: str

    def read(self, x: Sequence[int], wide: bool) -> uuid.UUID:
        return uid_from_words(tuple(x[:4]))

    def write(self, x: list[int], value: Field, wide: bool) -> None:
        x[:4] = uid_words(_uuid(self.field, value))


def _uuid(field: str, value: Field) -> uuid.UUID:
    if not isinstance(value, uuid.UUID):
        raise BuildError(field, "is not a UUID")
    return value


def read_slots(slots: Sequence[Slot], frame: RegisterFrame, wide: bool) -> dict[str, Field]:
    """The fields that ``slots`` find in ``frame``."""
    return {slot.field: slot.read(frame.x, wide) for slot in slots}


def write_slots(slots: Sequence[Slot], value: object, x: list[int], wide: bool) -> None:
    """Put the fields of ``value`` into the registers ``x``."""
    for slot in slots:
        slot.write(x, getattr(value, slot.field), wide)


ZEROS = RegisterFrame.of()
"""A frame of zeros, what a call is written over if nothing else is asked for."""


@attrs.frozen
class Return:
    """What comes back from a call. Registers that no slot names keep what the caller put there."""

    STATUS: ClassVar[int | None] = None
    """What a0 says when this value comes back; ``None`` if a0 is data or a slot of its own."""
    SLOTS: ClassVar[tuple[Slot, ...]] = ()

    @classmethod
    def parse(cls, frame: RegisterFrame, wide: bool = False) -> Self:
        """Read the value. Any frame will do: a return never fails to parse."""
        return cls(**read_slots(cls.SLOTS, frame, wide))

    def registers(self, caller: RegisterFrame, wide: bool = False) -> RegisterFrame:
        """The registers that the caller sees, who called with ``caller``.

        Raises :class:`~smccc.errors.BuildError` if a field does not fit its register.
        """
        x = list(caller.x)
        if self.STATUS is not None:
            x[0] = self.STATUS
        write_slots(self.SLOTS, self, x, wide)
        return RegisterFrame(tuple(x))


@attrs.frozen
class Failed(Return):
    """The call was refused: a0 is an error (or something that no header knows), the rest is unused."""

    SLOTS = (Word("status", 0),)
    status: int
    """OPTEE_SMC_RETURN_E*, OPTEE_SMC_RETURN_UNKNOWN_FUNCTION or any other nonzero word."""


@attrs.frozen
class Done(Return):
    """a0 is OPTEE_SMC_RETURN_OK and there is nothing else to say."""

    STATUS = smc.OPTEE_SMC_RETURN_OK


@attrs.frozen
class UnknownReturn(Return):
    """What a function that nobody knows returned: eight registers as they are."""

    frame: RegisterFrame

    @classmethod
    def parse(cls, frame: RegisterFrame, wide: bool = False) -> Self:
        return cls(frame)

    def registers(self, caller: RegisterFrame, wide: bool = False) -> RegisterFrame:
        return self.frame


@attrs.frozen
class Call:
    """The arguments of one SMCCC function. Subclasses declare where their fields lie."""

    FUNCTION: ClassVar[int]
    """The function id; of the 32-bit convention where there are two."""
    FUNCTION64: ClassVar[int | None] = None
    """The id of the 64-bit convention, if the function has one."""
    SLOTS: ClassVar[tuple[Slot, ...]] = ()
    RETURN: ClassVar[type[Return]] = Done

    @property
    def function(self) -> int:
        """The function id that a0 has."""
        return self.FUNCTION

    @property
    def wide(self) -> bool:
        """Whether the call follows the 64-bit convention."""
        return self.function == self.FUNCTION64

    @classmethod
    def parse(cls, frame: RegisterFrame) -> Self:
        """Read the arguments. High words and unused registers do not count.

        Raises :class:`~smccc.errors.ParseError` if a0 is not this function.
        """
        if frame.a0 != cls.FUNCTION:
            raise ParseError(0, "a0", Reason.WRONG_FUNCTION)
        return cls(**read_slots(cls.SLOTS, frame, False))

    def registers(self, over: RegisterFrame = ZEROS) -> RegisterFrame:
        """The registers of the call; those that the function does not use are ``over``'s.

        Raises :class:`~smccc.errors.BuildError` if a field does not fit its register.
        """
        x = list(over.x)
        x[0] = self.function
        write_slots(self.SLOTS, self, x, self.wide)
        return RegisterFrame(tuple(x))

    def return_type(self) -> type[Return]:
        """What comes back if all goes well."""
        return self.RETURN

    def parse_return(self, frame: RegisterFrame) -> Return:
        """What the registers say that came back from this call. Never fails."""
        result = self.return_type()
        if result.STATUS is None or frame.a0 == result.STATUS:
            return result.parse(frame, self.wide)
        return Failed.parse(frame)


@attrs.frozen
class UnknownCall(Call):
    """A call whose function id is in no table; its registers survive a round trip."""

    frame: RegisterFrame

    @property
    def function(self) -> int:
        return self.frame.a0

    @classmethod
    def parse(cls, frame: RegisterFrame) -> Self:
        return cls(frame)

    def registers(self, over: RegisterFrame = ZEROS) -> RegisterFrame:
        return self.frame

    def parse_return(self, frame: RegisterFrame) -> Return:
        return UnknownReturn(frame)
