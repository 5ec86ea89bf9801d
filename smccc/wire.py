# SPDX-License-Identifier: BSD-2-Clause
"""The hot codec of ``struct optee_msg_arg`` (``optee_msg.h``): plain ints in plain tuples.

A message is 32 bytes of header and 32 bytes for each parameter, little-endian. One precompiled
``Struct`` per parameter count unpacks all of it at once::

    (cmd, func, session, cancel_id, pad, ret, ret_origin, num_params,
     attr0, a0, b0, c0,  attr1, a1, b1, c1, ...)

so the attribute of parameter ``i`` is at index ``8 + 4 * i`` of the tuple. The argument of an RPC
has the same layout. :mod:`smccc.declarations` declares the same format readably, and a property test
proves that both agree, errors included; :mod:`smccc.message` has typed values for everybody who is
not on the call path.
"""

from __future__ import annotations

import struct
from typing import Final

from smccc.constants import optee_msg as msg
from smccc.errors import BuildError, ParseError, Reason

Buffer = bytes | bytearray | memoryview

HEADER_SIZE: Final = 32
"""Bytes before the first parameter: ``offsetof(struct optee_msg_arg, params)``."""

PARAM_SIZE: Final = 32
"""Bytes of ``struct optee_msg_param``."""

MAX_PARAMS: Final = msg.OPTEE_MSG_MAX_NUM_PARAMS
"""127: what fits one 4096-byte page."""

HEADER_FIELDS: Final = (
    "cmd",
    "func",
    "session",
    "cancel_id",
    "pad",
    "ret",
    "ret_origin",
    "num_params",
)
PARAM_FIELDS: Final = ("attr", "a", "b", "c")

CMD: Final = 0
SESSION: Final = 2
CANCEL_ID: Final = 3
RET: Final = 5
RET_ORIGIN: Final = 6
NUM_PARAMS: Final = 7
PARAMS: Final = 8
"""Index of the first attribute in an unpacked message; each parameter takes four places."""

NUM_PARAMS_OFFSET: Final = 28
"""Byte offset of ``num_params``."""

MESSAGE: Final[tuple[struct.Struct, ...]] = tuple(
    [struct.Struct("<8I" + "4Q" * count) for count in range(MAX_PARAMS + 1)]
)
"""``MESSAGE[n]`` packs and unpacks a message of ``n`` parameters, 0..127."""

COUNT: Final = struct.Struct("<I")

KIND_NONE: Final = 0
KIND_VALUE: Final = 1
KIND_RMEM: Final = 2
"""rmem, or fmem where the transport is FF-A: they share their type numbers."""

KIND_TMEM: Final = 3
KIND_INVALID: Final = 4
"""4, 8 and everything above 0xb: holes in the type numbers."""

_KINDS: Final = (
    (KIND_NONE, msg.OPTEE_MSG_ATTR_TYPE_NONE),
    (KIND_VALUE, msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT),
    (KIND_VALUE, msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT),
    (KIND_VALUE, msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT),
    (KIND_RMEM, msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT),
    (KIND_RMEM, msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT),
    (KIND_RMEM, msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT),
    (KIND_TMEM, msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT),
    (KIND_TMEM, msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT),
    (KIND_TMEM, msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT),
)
_OUTPUTS: Final = (
    msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT,
    msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT,
    msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT,
    msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT,
    msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT,
    msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT,
)


def _kind_table() -> bytes:
    table = bytearray([KIND_INVALID] * 256)
    for kind, number in _KINDS:
        table[number] = kind
    return bytes(table)


PARAM_KIND: Final = _kind_table()
"""Type byte of an attribute (``attr & 0xff``) to KIND_*."""

PARAM_OUTPUT: Final = bytes([1 if number in _OUTPUTS else 0 for number in range(256)])
"""Type byte of an attribute to 1 if the parameter carries a result back, else 0."""


def message_size(num_params: int) -> int:
    """Bytes of a message with ``num_params`` parameters (``OPTEE_MSG_GET_ARG_SIZE``)."""
    return HEADER_SIZE + PARAM_SIZE * num_params


def field_at(offset: int) -> str:
    """The name of the message field that contains byte ``offset``, like ``params[2].b``."""
    if offset < HEADER_SIZE:
        return HEADER_FIELDS[offset // 4]
    index, rest = divmod(offset - HEADER_SIZE, PARAM_SIZE)
    return f"params[{index}].{PARAM_FIELDS[rest // 8]}"


def _diagnose(data: Buffer, offset: int) -> ParseError:
    """Say why the message at ``offset`` does not unpack. Off the call path, so it may be slow."""
    have = max(len(data) - offset, 0)
    if have >= HEADER_SIZE:
        count: int = COUNT.unpack_from(data, offset + NUM_PARAMS_OFFSET)[0]
        if count > MAX_PARAMS:
            return ParseError(NUM_PARAMS_OFFSET, "num_params", Reason.TOO_MANY_PARAMS)
        have -= (have - HEADER_SIZE) % 8
    else:
        have -= have % 4
    return ParseError(have, field_at(have), Reason.TRUNCATED)


def unpack_message(data: Buffer, offset: int = 0) -> tuple[int, ...]:
    """Unpack the message at byte ``offset`` (0 or more) of ``data``; bytes after it are ignored.

    Raises :class:`~smccc.errors.ParseError` (its ``offset`` counted from the message's start) if
    ``num_params`` is above 127, or at the first field that ``data`` does not hold completely.
    """
    try:
        count: int = COUNT.unpack_from(data, offset + NUM_PARAMS_OFFSET)[0]
        return MESSAGE[count].unpack_from(data, offset)
    except (struct.error, IndexError):
        raise _diagnose(data, offset) from None


def pack_message(fields: tuple[int, ...]) -> bytes:
    """Pack what :func:`unpack_message` returned.

    Raises :class:`~smccc.errors.BuildError` if ``num_params`` (place 7) disagrees with the number
    of places or a value does not fit its field.
    """
    try:
        return MESSAGE[fields[NUM_PARAMS]].pack(*fields)
    except (struct.error, IndexError):
        raise _misfit(fields) from None


def pack_message_into(fields: tuple[int, ...], target: bytearray | memoryview, offset: int) -> None:
    """Pack into ``target`` at ``offset``; errors as :func:`pack_message`."""
    try:
        MESSAGE[fields[NUM_PARAMS]].pack_into(target, offset, *fields)
    except (struct.error, IndexError):
        raise _misfit(fields, len(target) - offset) from None


def _misfit(fields: tuple[int, ...], room: int | None = None) -> BuildError:
    """Say why ``fields`` do not pack."""
    if len(fields) < PARAMS:
        return BuildError("header", f"has {len(fields)} of its {PARAMS} fields")
    count = fields[NUM_PARAMS]
    if not 0 <= count <= MAX_PARAMS:
        return BuildError("num_params", f"is {count}, not 0 to {MAX_PARAMS}")
    if len(fields) != PARAMS + 4 * count:
        given = (len(fields) - PARAMS) / 4
        return BuildError("num_params", f"is {count}, but {given:g} parameters are given")
    for place, value in enumerate(fields):
        header = place < PARAMS
        if not 0 <= value < (1 << (32 if header else 64)):
            offset = place * 4 if header else HEADER_SIZE + (place - PARAMS) * 8
            return BuildError(field_at(offset), f"does not fit {32 if header else 64} bits")
    return BuildError("message", f"of {message_size(count)} bytes does not fit {room} bytes")
