# SPDX-License-Identifier: BSD-2-Clause
"""Typed values of an OP-TEE message: ``struct optee_msg_arg`` and its parameters (``optee_msg.h``).

Values are named tuples: immutable, compared by content, and as cheap as Python has them.
:func:`parse_message` accepts any bytes and raises nothing but :class:`~smccc.errors.ParseError`;
what it read, :meth:`Message.build` writes again byte for byte, unknown commands, attribute bits and
parameter types included. What a command's parameters *mean* is in :mod:`smccc.calls`.
"""

from __future__ import annotations

import enum
import struct
import uuid
from itertools import chain, repeat
from typing import Final, NamedTuple

from smccc.constants import optee_msg as msg
from smccc.errors import BuildError, ParseError, Reason
from smccc.registers import MASK64
from smccc.wire import (
    KIND_INVALID,
    KIND_NONE,
    KIND_RMEM,
    KIND_TMEM,
    KIND_VALUE,
    MAX_PARAMS,
    MESSAGE,
    PARAM_KIND,
    PARAM_OUTPUT,
    Buffer,
    message_size,
    pack_message,
    unpack_message,
)


class Kind(enum.IntEnum):
    """Which view of a parameter its type selects."""

    NONE = KIND_NONE
    VALUE = KIND_VALUE
    RMEM = KIND_RMEM
    """Registered memory; fmem where the transport is FF-A."""
    TMEM = KIND_TMEM
    INVALID = KIND_INVALID
    """A hole in the type numbers: 4, 8, or above 0xb."""


class Value(NamedTuple):
    """``struct optee_msg_param_value``: three numbers whose meaning the command defines."""

    a: int = 0
    b: int = 0
    c: int = 0


class Tmem(NamedTuple):
    """``struct optee_msg_param_tmem``: memory that is shared for this call, by address."""

    buf_ptr: int
    """Address of the buffer, or of a page list plus the buffer's offset in its first page."""
    size: int
    """Bytes."""
    shm_ref: int
    """The normal world's reference (cookie)."""


class Rmem(NamedTuple):
    """``struct optee_msg_param_rmem``: part of memory that was registered before."""

    offs: int
    """Bytes from the start of the registered object."""
    size: int
    """Bytes."""
    shm_ref: int
    """The reference (cookie) given at registration."""


class Fmem(NamedTuple):
    """``struct optee_msg_param_fmem``: part of memory that was shared through FF-A."""

    offs_low: int
    """Bits 31:0 of the offset."""
    offs_high: int
    """Bits 47:32 of the offset."""
    internal_offs: int
    """Bytes into the first page, used only by the normal world."""
    size: int
    """Bytes."""
    global_id: int
    """The FF-A handle, or OPTEE_MSG_FMEM_INVALID_GLOBAL_ID."""

    @property
    def offset(self) -> int:
        """The 48-bit offset, bytes."""
        return self.offs_high << 32 | self.offs_low

    @property
    def is_null(self) -> bool:
        """Whether it refers to nothing: global id all ones, together with size 0."""
        return self.global_id == msg.OPTEE_MSG_FMEM_INVALID_GLOBAL_ID and not self.size


class Param(NamedTuple):
    """``struct optee_msg_param``: an attribute and 24 bytes that have four views."""

    attr: int = msg.OPTEE_MSG_ATTR_TYPE_NONE
    """64 bits: type 7:0, META 8, NONCONTIG 9, cache 18:16; the others have no meaning."""
    a: int = 0
    b: int = 0
    c: int = 0

    @property
    def type(self) -> int:
        """Bits 7:0 of the attribute, OPTEE_MSG_ATTR_TYPE_*."""
        return self.attr & msg.OPTEE_MSG_ATTR_TYPE_MASK

    @property
    def kind(self) -> Kind:
        """Which view the type selects."""
        return Kind(PARAM_KIND[self.attr & msg.OPTEE_MSG_ATTR_TYPE_MASK])

    @property
    def is_output(self) -> bool:
        """Whether the parameter carries something back (an output or inout type)."""
        return bool(PARAM_OUTPUT[self.attr & msg.OPTEE_MSG_ATTR_TYPE_MASK])

    @property
    def meta(self) -> bool:
        """Whether the parameter is for the TEE itself, not for the trusted application."""
        return bool(self.attr & msg.OPTEE_MSG_ATTR_META)

    @property
    def noncontig(self) -> bool:
        """Whether ``buf_ptr`` names a page list."""
        return bool(self.attr & msg.OPTEE_MSG_ATTR_NONCONTIG)

    @property
    def cache(self) -> int:
        """Cacheability, OPTEE_MSG_ATTR_CACHE_*."""
        return self.attr >> msg.OPTEE_MSG_ATTR_CACHE_SHIFT & msg.OPTEE_MSG_ATTR_CACHE_MASK

    @property
    def value(self) -> Value:
        """The view of a value parameter."""
        return Value(self.a, self.b, self.c)

    @property
    def tmem(self) -> Tmem:
        """The view of a temporary memory reference."""
        return Tmem(self.a, self.b, self.c)

    @property
    def rmem(self) -> Rmem:
        """The view of a registered memory reference."""
        return Rmem(self.a, self.b, self.c)

    @property
    def fmem(self) -> Fmem:
        """The view of an FF-A memory reference."""
        return Fmem(
            self.a & 0xFFFF_FFFF, self.a >> 32 & 0xFFFF, self.a >> 48 & 0xFFFF, self.b, self.c
        )

    @property
    def is_null(self) -> bool:
        """Whether it is a memory reference to nothing (on the SMC transport).

        A temporary one is null by address 0 whatever its size, a registered one by cookie 0.
        """
        kind = PARAM_KIND[self.attr & msg.OPTEE_MSG_ATTR_TYPE_MASK]
        return (kind == KIND_TMEM and not self.a) or (kind == KIND_RMEM and not self.c)


def attribute(type_: int, *, meta: bool = False, noncontig: bool = False, cache: int = 0) -> int:
    """The attribute word of a parameter from its parts."""
    return (
        type_
        | (msg.OPTEE_MSG_ATTR_META if meta else 0)
        | (msg.OPTEE_MSG_ATTR_NONCONTIG if noncontig else 0)
        | cache << msg.OPTEE_MSG_ATTR_CACHE_SHIFT
    )


def fmem_param(attr: int, offset: int, internal_offs: int, size: int, global_id: int) -> Param:
    """A parameter from the FF-A view. ``offset``: bytes, at most 48 bits; ``size``: bytes.

    Raises :class:`~smccc.errors.BuildError` if ``offset`` or ``internal_offs`` does not fit.
    """
    if not 0 <= offset < 1 << 48:
        raise BuildError("offset", "does not fit 48 bits")
    if not 0 <= internal_offs < 1 << 16:
        raise BuildError("internal_offs", "does not fit 16 bits")
    return Param(attr, internal_offs << 48 | offset, size, global_id)


class Message(NamedTuple):
    """``struct optee_msg_arg``: a command to the TEE, or an RPC's argument to the normal world."""

    cmd: int
    """OPTEE_MSG_CMD_* (in an RPC OPTEE_RPC_CMD_*)."""
    func: int = 0
    """The trusted application's command, for INVOKE_COMMAND."""
    session: int = 0
    cancel_id: int = 0
    """Chosen by the normal world to cancel the call with CANCEL."""
    pad: int = 0
    ret: int = 0
    """The result, TEE_SUCCESS or TEE_ERROR_*."""
    ret_origin: int = 0
    """Who made the result, TEE_ORIGIN_*."""
    params: tuple[Param, ...] = ()

    @property
    def num_params(self) -> int:
        """Number of parameters; on the wire the last word of the header."""
        return len(self.params)

    @property
    def size(self) -> int:
        """Bytes that the message takes."""
        return message_size(len(self.params))

    def build(self) -> bytes:
        """The bytes of the message.

        Raises :class:`~smccc.errors.BuildError` for more than 127 parameters or a number that does
        not fit its field.
        """
        params = self.params
        count = len(params)
        try:
            return MESSAGE[count].pack(*self[:7], count, *chain.from_iterable(params))
        except (struct.error, IndexError):
            # The checked packer fails too, and says why.
            return pack_message((*self[:7], count, *chain.from_iterable(params)))


def _from_fields(fields: tuple[int, ...]) -> Message:
    # One C loop makes all parameters: four times as fast as calling Param for each.
    words = iter(fields[8:])
    params: tuple[Param, ...] = tuple(
        map(tuple.__new__, repeat(Param), zip(words, words, words, words, strict=False))
    )
    return tuple.__new__(Message, (*fields[:7], params))


def parse_message(data: Buffer, offset: int = 0) -> Message:
    """Read the message at byte ``offset`` of ``data``; bytes behind it are ignored.

    Raises :class:`~smccc.errors.ParseError` (its ``offset`` from the start of the message) if the
    message claims more than 127 parameters or ends before its last field.
    """
    return _from_fields(unpack_message(data, offset))


class CallArguments(NamedTuple):
    """What CALL_WITH_RPC_ARG and CALL_WITH_REGD_ARG point at: a message and, behind it, room for RPCs."""

    message: Message
    rpc: Message
    """The RPC argument, at ``message.size``."""

    def build(self) -> bytes:
        """The bytes of both, one behind the other."""
        return self.message.build() + self.rpc.build()


def rpc_offset(num_params: int) -> int:
    """Bytes from a message with ``num_params`` parameters to the RPC argument behind it."""
    return message_size(num_params)


def arguments_size(num_params: int, rpc_params: int) -> int:
    """Bytes of a message and an RPC argument with room for ``rpc_params`` parameters."""
    return message_size(num_params) + message_size(rpc_params)


def parse_arguments(data: Buffer, rpc_params: int) -> CallArguments:
    """Read a message and the RPC argument behind it, which has room for ``rpc_params`` (0..127).

    Raises :class:`~smccc.errors.ParseError`, with ``offset`` from the start of the *first* message
    and ``field`` prefixed ``rpc.`` for the second, also if it claims more parameters than its room.
    """
    message = parse_message(data)
    start = message.size
    try:
        rpc = parse_message(data, start)
    except ParseError as error:
        raise ParseError(start + error.offset, f"rpc.{error.field}", error.reason) from None
    if len(rpc.params) > min(rpc_params, MAX_PARAMS):
        raise ParseError(start + 28, "rpc.num_params", Reason.TOO_MANY_PARAMS)
    return CallArguments(message, rpc)


_TWO_WORDS: Final = struct.Struct("<2Q")


def uuid_to_value(identifier: uuid.UUID) -> tuple[int, int]:
    """``a`` and ``b`` of a value parameter that carries a UUID: its 16 octets in text order.

    Read as little-endian integers they look byte-swapped (``optee_msg.h``, OPEN_SESSION).
    """
    a, b = _TWO_WORDS.unpack(identifier.bytes)
    return a, b


def uuid_from_value(a: int, b: int) -> uuid.UUID:
    """The UUID in ``a`` and ``b`` of a value parameter."""
    return uuid.UUID(bytes=_TWO_WORDS.pack(a & MASK64, b & MASK64))
