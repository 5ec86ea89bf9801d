# SPDX-License-Identifier: BSD-2-Clause
"""Where the fields of a message command lie: the elements of the tables of messages and RPCs.

The counterpart of :mod:`smccc.calls.slots` for parameters. A command's ``PARAMS`` says, parameter
by parameter, which attribute is legal and which field is in a, b and c.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

import attrs

from smccc.constants import optee_msg as msg
from smccc.errors import BuildError, ParseError, Reason
from smccc.message import Message, Param, uuid_from_value, uuid_to_value
from smccc.registers import MASK64
from smccc.wire import HEADER_SIZE, NUM_PARAMS_OFFSET, PARAM_SIZE

IN = (msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT, msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT)
"""Types of a memory reference that is read."""

OUT = (msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT, msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT)
"""Types of a memory reference that is written."""

INOUT = (msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT, msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT)
"""Types of a memory reference that is read and written."""

FieldValue = int | uuid.UUID | Param | tuple[Param, ...]


class Numbers(NamedTuple):
    """A parameter whose a, b and c are fields; a name left out stands for zero."""

    attrs: tuple[int, ...]
    """The attributes that are legal, every bit of them; the first is what is sent."""
    a: str | None = None
    b: str | None = None
    c: str | None = None
    attr: str | None = None
    """The field that says which of the legal attributes it is, if there are several."""


class Identifier(NamedTuple):
    """A parameter whose a and b are the 16 octets of a UUID."""

    attrs: tuple[int, ...]
    uuid: str
    c: str | None = None


class Memory(NamedTuple):
    """A memory reference, kept as it is; ``types`` are the legal types."""

    field: str
    types: tuple[int, ...]


class Rest(NamedTuple):
    """All further parameters, of any type."""

    field: str


Place = Numbers | Identifier | Memory | Rest


def _wrong(index: int) -> ParseError:
    return ParseError(
        HEADER_SIZE + PARAM_SIZE * index, f"params[{index}].attr", Reason.WRONG_ATTRIBUTE
    )


def _read(place: Place, index: int, params: Sequence[Param]) -> dict[str, FieldValue]:
    if isinstance(place, Rest):
        return {place.field: tuple(params[index:])}
    param = params[index]
    if isinstance(place, Memory):
        if param.type not in place.types or param.meta:
            raise _wrong(index)
        return {place.field: param}
    if param.attr not in place.attrs:
        raise _wrong(index)
    found: dict[str, FieldValue] = {}
    if isinstance(place, Identifier):
        found[place.uuid] = uuid_from_value(param.a, param.b)
    else:
        if place.attr is not None:
            found[place.attr] = param.attr
        if place.a is not None:
            found[place.a] = param.a
        if place.b is not None:
            found[place.b] = param.b
    if place.c is not None:
        found[place.c] = param.c
    return found


def read_params(places: Sequence[Place], params: Sequence[Param]) -> dict[str, FieldValue]:
    """The fields that ``places`` find in ``params``.

    Raises :class:`~smccc.errors.ParseError` for a wrong number of parameters or an attribute that
    is not legal at its place.
    """
    fixed = [place for place in places if not isinstance(place, Rest)]
    exact = len(fixed) == len(places)
    if len(params) < len(fixed) or (exact and len(params) > len(fixed)):
        raise ParseError(NUM_PARAMS_OFFSET, "num_params", Reason.WRONG_PARAM_COUNT)
    found: dict[str, FieldValue] = {}
    for index, place in enumerate(places):
        found |= _read(place, index, params)
    return found


def _number(value: object, field: str | None) -> int:
    if field is None:
        return 0
    number = getattr(value, field)
    if not isinstance(number, int) or not 0 <= number <= MASK64:
        raise BuildError(field, f"{number!r} does not fit 64 bits")
    return number


def _write(place: Place, value: object) -> tuple[Param, ...]:
    if isinstance(place, Rest):
        rest: tuple[Param, ...] = getattr(value, place.field)
        return tuple(rest)
    if isinstance(place, Memory):
        param: Param = getattr(value, place.field)
        if param.type not in place.types or param.meta:
            raise BuildError(place.field, "is not a memory reference of the right direction")
        return (param,)
    if isinstance(place, Identifier):
        a, b = uuid_to_value(getattr(value, place.uuid))
        return (Param(place.attrs[0], a, b, _number(value, place.c)),)
    attr = place.attrs[0]
    if place.attr is not None:
        attr = getattr(value, place.attr)
        if attr not in place.attrs:
            raise BuildError(place.attr, f"{attr:#x} is not legal here")
    a, b, c = [_number(value, field) for field in (place.a, place.b, place.c)]
    return (Param(attr, a, b, c),)


def write_params(places: Sequence[Place], value: object) -> tuple[Param, ...]:
    """The parameters that carry the fields of ``value``."""
    return tuple([param for place in places for param in _write(place, value)])


@attrs.frozen
class Command:
    """What a message asks for. Subclasses declare where their fields lie."""

    COMMAND: ClassVar[int]
    """``cmd`` of the message."""
    HEADER: ClassVar[tuple[str, ...]] = ()
    """Header fields that mean something: ``func``, ``session``, ``cancel_id``."""
    PARAMS: ClassVar[tuple[Place, ...]] = ()

    @property
    def command(self) -> int:
        """``cmd`` of the message."""
        return self.COMMAND

    @classmethod
    def parse(cls, message: Message) -> Self:
        """Read the command.

        Raises :class:`~smccc.errors.ParseError` if it is another command, has a wrong number of
        parameters or one with an attribute that is not legal.
        """
        if message.cmd != cls.COMMAND:
            raise ParseError(0, "cmd", Reason.WRONG_COMMAND)
        header = {name: getattr(message, name) for name in cls.HEADER}
        return cls(**header, **read_params(cls.PARAMS, message.params))

    def message(self) -> Message:
        """The message, with ``ret`` and ``ret_origin`` zero.

        Raises :class:`~smccc.errors.BuildError` if a field does not fit.
        """
        header = {name: getattr(self, name) for name in self.HEADER}
        return Message(self.COMMAND, **header, params=write_params(self.PARAMS, self))


class Out(NamedTuple):
    """One number of the answer: ``place`` (a, b or c) of parameter ``param``."""

    param: int
    place: str
    field: str


@attrs.frozen
class Answer:
    """What a message says when it comes back: the result and the fields that the command fills."""

    HEADER: ClassVar[tuple[str, ...]] = ("ret", "ret_origin")
    """Header fields of the answer."""
    OUT: ClassVar[tuple[Out, ...]] = ()
    REST: ClassVar[tuple[int, str] | None] = None
    """From which parameter on all of them are kept, in which field."""
    ret: int = attrs.field(default=0, kw_only=True)
    """TEE_SUCCESS or TEE_ERROR_*."""
    ret_origin: int = attrs.field(default=0, kw_only=True)
    """TEE_ORIGIN_*, or 0 where nobody writes it."""

    @classmethod
    def parse(cls, message: Message) -> Self:
        """Read the answer.

        Raises :class:`~smccc.errors.ParseError` if the message lacks a parameter of the answer.
        """
        needed = max([out.param + 1 for out in cls.OUT], default=0)
        if len(message.params) < max(needed, cls.REST[0] if cls.REST else 0):
            raise ParseError(NUM_PARAMS_OFFSET, "num_params", Reason.WRONG_PARAM_COUNT)
        found = {name: getattr(message, name) for name in cls.HEADER}
        for index, place, field in cls.OUT:
            found[field] = getattr(message.params[index], place)
        if cls.REST is not None:
            start, field = cls.REST
            found[field] = message.params[start:]
        return cls(**found)

    def apply(self, request: Message) -> Message:
        """The message that comes back for ``request``; what the answer does not fill stays.

        Raises :class:`~smccc.errors.BuildError` if ``request`` has not the parameters to fill.
        """
        params = list(request.params)
        for index, place, field in self.OUT:
            if index >= len(params):
                raise BuildError(field, f"has no parameter {index} to go to")
            params[index] = params[index]._replace(**{place: _number(self, field)})
        if self.REST is not None:
            start, field = self.REST
            rest: tuple[Param, ...] = getattr(self, field)
            if len(rest) != len(params[start:]):
                raise BuildError(field, f"are {len(rest)}, the message has {len(params[start:])}")
            params[start:] = rest
        header = {name: getattr(self, name) for name in self.HEADER}
        return request._replace(**header, params=tuple(params))


@attrs.frozen
class NoAnswer(Answer):
    """The answer of a command to which nobody writes a result."""

    HEADER = ()
