# SPDX-License-Identifier: BSD-2-Clause
"""The formats of the wire, declared once and readable as documentation.

Everything here is plain interpreted ``construct``: slow, obvious, and the oracle that the hot codec
(:mod:`smccc.wire`), the typed values (:mod:`smccc.message`, :mod:`smccc.function_id`,
:mod:`smccc.registers`) and the page list reader (:mod:`smccc.page_list`) are tested against, on good
input and bad. All numbers are little-endian. Nothing else in the package imports this module.

Sources: ``optee_msg.h`` (messages, page lists), ``thread_smc_args`` of OP-TEE OS
``core/arch/arm/include/kernel/thread_arch.h`` (register frames), Arm DEN0028 (function ids).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import construct as c

from smccc.constants import optee_msg as msg
from smccc.errors import ParseError, Reason
from smccc.function_id import FunctionId
from smccc.message import CallArguments, Message, Param
from smccc.page_list import PageList, ReadPage, entry_count
from smccc.registers import RegisterFrame

PAGE_OFFSET_MASK: Final = msg.OPTEE_MSG_NONCONTIG_PAGE_SIZE - 1
LIST_ENTRIES: Final = 511
"""Entries of one list page; the last of its 512 words is the link."""

FUNCTION_ID: Final = c.ByteSwapped(
    c.BitStruct(
        "fast" / c.Flag,  # bit 31; clear: a yielding call
        "smc64" / c.Flag,  # bit 30
        "owner" / c.BitsInteger(6),  # bits 29:24
        "reserved" / c.BitsInteger(7),  # bits 23:17, zero
        "sve_hint" / c.Flag,  # bit 16
        "number" / c.BitsInteger(16),  # bits 15:0
    )
)
"""A function id, the low word of a0."""

REGISTER_FRAME: Final = c.Struct(*[f"a{number}" / c.Int64ul for number in range(8)])
"""The registers of a call: ``struct thread_smc_args`` on arm64, 64 bytes."""

REGISTER_FRAME32: Final = c.Struct(*[f"a{number}" / c.Int32ul for number in range(8)])
"""The registers of a call: ``struct thread_smc_args`` on arm32, 32 bytes."""

ATTRIBUTE: Final = c.ByteSwapped(
    c.BitStruct(
        "high" / c.BitsInteger(45),  # bits 63:19, no meaning
        "cache" / c.BitsInteger(3),  # bits 18:16, OPTEE_MSG_ATTR_CACHE_*
        "middle" / c.BitsInteger(6),  # bits 15:10, no meaning
        "noncontig" / c.Flag,  # bit 9, buf_ptr names a page list
        "meta" / c.Flag,  # bit 8, for the TEE itself
        "type" / c.BitsInteger(8),  # bits 7:0, OPTEE_MSG_ATTR_TYPE_*
    )
)
"""``attr`` of a parameter, taken apart."""

VALUE: Final = c.Struct("a" / c.Int64ul, "b" / c.Int64ul, "c" / c.Int64ul)
"""``struct optee_msg_param_value``."""

TMEM: Final = c.Struct(
    "buf_ptr" / c.Int64ul,  # an address, or a page list's address plus the offset in the first page
    "size" / c.Int64ul,  # bytes
    "shm_ref" / c.Int64ul,  # the normal world's reference
)
"""``struct optee_msg_param_tmem``: temporarily shared memory."""

RMEM: Final = c.Struct(
    "offs" / c.Int64ul,  # bytes from the start of the registered object
    "size" / c.Int64ul,  # bytes
    "shm_ref" / c.Int64ul,  # the reference given at registration
)
"""``struct optee_msg_param_rmem``: part of registered memory."""

FMEM: Final = c.Struct(
    "offs_low" / c.Int32ul,  # bits 31:0 of the offset
    "offs_high" / c.Int16ul,  # bits 47:32 of the offset
    "internal_offs" / c.Int16ul,  # bytes, for the normal world only
    "size" / c.Int64ul,  # bytes
    "global_id" / c.Int64ul,  # FF-A handle
)
"""``struct optee_msg_param_fmem``: memory shared through FF-A; same type numbers as rmem."""

PARAM: Final = c.Struct(
    "attr" / c.Int64ul,
    "u" / c.Union("value", "value" / VALUE, "tmem" / TMEM, "rmem" / RMEM, "fmem" / FMEM),
)
"""``struct optee_msg_param``, 32 bytes: an attribute and one union with four views."""

MESSAGE: Final = c.Struct(
    "cmd" / c.Int32ul,  # OPTEE_MSG_CMD_*, in an RPC argument OPTEE_RPC_CMD_*
    "func" / c.Int32ul,  # the trusted application's command
    "session" / c.Int32ul,
    "cancel_id" / c.Int32ul,
    "pad" / c.Int32ul,  # before ret, not behind it
    "ret" / c.Int32ul,  # TEE_SUCCESS or TEE_ERROR_*
    "ret_origin" / c.Int32ul,  # TEE_ORIGIN_*
    "num_params" / c.ExprValidator(c.Int32ul, c.obj_ <= msg.OPTEE_MSG_MAX_NUM_PARAMS),
    "params" / PARAM[c.this.num_params],
)
"""``struct optee_msg_arg``: a message, or the argument of an RPC."""

CALL_ARGUMENTS: Final = c.Struct(
    "message" / MESSAGE,
    "rpc" / MESSAGE,  # right behind params[num_params]
)
"""What CALL_WITH_RPC_ARG and CALL_WITH_REGD_ARG point at."""

PAGE_ADDRESS: Final = c.ExprValidator(c.Int64ul, lambda obj, context: obj & PAGE_OFFSET_MASK == 0)
"""The address of a 4096-byte page: none of its low 12 bits is set."""

LIST_PAGE: Final = c.Struct(
    "pages" / PAGE_ADDRESS[lambda context: min(context._.missing, LIST_ENTRIES)],
    # Entries behind the last one mean nothing; neither does a link that nobody needs: Linux and
    # Xen fill it in when the page is full.
    c.Padding(lambda context: 8 * (LIST_ENTRIES - min(context._.missing, LIST_ENTRIES))),
    "next_page" / c.IfThenElse(c.this._.missing > LIST_ENTRIES, PAGE_ADDRESS, c.Int64ul),
)
"""One page of a non-contiguous list, parsed with ``missing`` entries still to come."""


class _Recorder(io.BytesIO):
    """Remembers where the last read began: construct's errors do not say."""

    began = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.began = self.tell()
        return super().read(size)


def names(declaration: c.Construct) -> list[tuple[int, str]]:
    """The fields of a fixed-size declaration as (offset in bytes, name), in their order."""
    found: list[tuple[int, str]] = []
    offset = 0
    for sub in declaration.subcons:
        inner = sub.subcon
        if isinstance(inner, c.Union):
            # All views have 24 bytes; a, b and c are the names that every type shares.
            inner = inner.subcons[0].subcon
            found += [(offset + at, name) for at, name in names(inner)]
        else:
            found.append((offset, sub.name))
        offset += inner.sizeof()
    return found


MESSAGE_HEADER: Final = c.Struct(*[sub for sub in MESSAGE.subcons if sub.name != "params"])
"""The fixed part of a message."""

_HEADER_NAMES: Final = dict(names(MESSAGE_HEADER))
_PARAM_NAMES: Final = dict(names(PARAM))
_PARAM_BYTES: Final = 8 * len(_PARAM_NAMES)


def _message_field(offset: int) -> str:
    if offset in _HEADER_NAMES:
        return _HEADER_NAMES[offset]
    index, rest = divmod(offset - MESSAGE_HEADER.sizeof(), _PARAM_BYTES)
    return f"params[{index}].{_PARAM_NAMES[rest]}"


def _param(parsed: Mapping[str, Any]) -> Param:
    value = parsed["u"]["value"]
    return Param(parsed["attr"], value["a"], value["b"], value["c"])


def _message(parsed: Mapping[str, Any]) -> Message:
    header = {name: parsed[name] for name in Message._fields if name != "params"}
    return Message(**header, params=tuple([_param(param) for param in parsed["params"]]))


def _parse_message(stream: _Recorder) -> Message:
    start = stream.tell()
    try:
        return _message(MESSAGE.parse_stream(stream))
    except c.StreamError:
        offset = stream.began - start
        raise ParseError(offset, _message_field(offset), Reason.TRUNCATED) from None
    except c.ValidationError:
        offset = stream.began - start
        raise ParseError(offset, _message_field(offset), Reason.TOO_MANY_PARAMS) from None


def parse_message(data: bytes) -> Message:
    """What :func:`smccc.message.parse_message` must return or raise, from the declaration."""
    return _parse_message(_Recorder(data))


def parse_arguments(data: bytes, rpc_params: int) -> CallArguments:
    """What :func:`smccc.message.parse_arguments` must return or raise, from the declaration."""
    stream = _Recorder(data)
    message = _parse_message(stream)
    start = stream.tell()
    try:
        rpc = _parse_message(stream)
    except ParseError as error:
        raise ParseError(start + error.offset, f"rpc.{error.field}", error.reason) from None
    if rpc.num_params > rpc_params:
        offset = next(at for at, name in _HEADER_NAMES.items() if name == "num_params")
        raise ParseError(start + offset, "rpc.num_params", Reason.TOO_MANY_PARAMS)
    return CallArguments(message, rpc)


def build_message(message: Message) -> bytes:
    """The bytes of ``message``, from the declaration."""
    params = [
        {"attr": param.attr, "u": {"value": {"a": param.a, "b": param.b, "c": param.c}}}
        for param in message.params
    ]
    header = {name: getattr(message, name) for name in Message._fields if name != "params"}
    built: bytes = MESSAGE.build({**header, "num_params": len(params), "params": params})
    return built


def parse_function_id(value: int) -> FunctionId:
    """What :meth:`smccc.function_id.FunctionId.decode` must return, from the declaration."""
    parsed = FUNCTION_ID.parse(value.to_bytes(4, "little"))
    return FunctionId(**{name: parsed[name] for name in FunctionId._fields})


def build_function_id(fid: FunctionId) -> int:
    """The 32-bit value of ``fid``, from the declaration."""
    return int.from_bytes(FUNCTION_ID.build(fid._asdict()), "little")


def _parse_frame(declaration: c.Construct, data: bytes) -> RegisterFrame:
    stream = _Recorder(data)
    try:
        parsed = declaration.parse_stream(stream)
    except c.StreamError:
        name = dict(names(declaration))[stream.began]
        raise ParseError(stream.began, name, Reason.TRUNCATED) from None
    return RegisterFrame(tuple([parsed[name] for _, name in names(declaration)]))


def parse_frame(data: bytes) -> RegisterFrame:
    """What :func:`smccc.registers.parse_frame` must return or raise, from the declaration."""
    return _parse_frame(REGISTER_FRAME, data)


def parse_frame32(data: bytes) -> RegisterFrame:
    """What :func:`smccc.registers.parse_frame32` must return or raise, from the declaration."""
    return _parse_frame(REGISTER_FRAME32, data)


def read_page_list(read_page: ReadPage, buf_ptr: int, size: int, limit: int) -> PageList:
    """What :func:`smccc.page_list.read_page_list` must return or raise, from the declaration."""
    offset = buf_ptr & PAGE_OFFSET_MASK
    missing = entry_count(offset, size)
    if not missing:
        raise ParseError(0, "size", Reason.EMPTY_LIST)
    if missing > limit:
        raise ParseError(0, "size", Reason.LIST_TOO_LONG)
    pages: list[int] = []
    address, where, field, index = buf_ptr - offset, 0, "buf_ptr", 0
    while missing > 0:
        data = read_page(address)
        if data is None or len(data) < msg.OPTEE_MSG_NONCONTIG_PAGE_SIZE:
            raise ParseError(where, field, Reason.UNREADABLE_PAGE)
        start = index * msg.OPTEE_MSG_NONCONTIG_PAGE_SIZE
        link, link_field = start + 8 * LIST_ENTRIES, f"list[{index}].next_page"
        stream = _Recorder(data)
        try:
            parsed = LIST_PAGE.parse_stream(stream, missing=missing)
        except c.ValidationError:
            if start + stream.began == link:
                raise ParseError(link, link_field, Reason.UNALIGNED_LINK) from None
            entry = f"list[{index}].pages[{stream.began // 8}]"
            raise ParseError(start + stream.began, entry, Reason.UNALIGNED_ENTRY) from None
        pages += parsed["pages"]
        missing -= LIST_ENTRIES
        address, where, field = parsed["next_page"], link, link_field
        index += 1
    return PageList(offset, size, b"".join([page.to_bytes(8, "little") for page in pages]))
