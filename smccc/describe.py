# SPDX-License-Identifier: BSD-2-Clause
"""Decode traffic into sentences for people and plain data for programs.

Every function takes what was seen and returns a :class:`Description`: ``lines`` to read, ``data`` to
hand to ``json.dumps``. Numbers are plain JSON numbers; 64-bit ones need a reader that keeps them.
Nothing here fails on what another world wrote: what cannot be parsed is described as such.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final, TypeAlias

import attrs

from smccc import names, sentences
from smccc.calls import (
    MESSAGE_COMMANDS,
    RPC_COMMANDS,
    Answer,
    Call,
    Command,
    Return,
    RpcRequest,
    UnknownCall,
    UnknownReturn,
    parse_answer,
    parse_call,
    parse_command,
    parse_rpc_argument,
    parse_yielding_return,
)
from smccc.errors import ParseError
from smccc.function_id import FunctionId
from smccc.message import CallArguments, Message, Param
from smccc.page_list import PAGE_SIZE, PageList
from smccc.registers import RegisterFrame, low32

Json: TypeAlias = "bool | int | str | Sequence[Json] | Mapping[str, Json] | None"

PAGES_SHOWN: Final = 8
"""Page addresses of a list that are shown to people; programs get all."""


@attrs.frozen
class Description:
    """What was decoded."""

    lines: tuple[str, ...]
    """Sentences; the first says what it is, the others are details."""
    data: Mapping[str, Json]
    """The same for programs."""

    def __str__(self) -> str:
        return "\n".join([self.lines[0], *[f"  {line}" for line in self.lines[1:]]])


def _plain(value: object) -> Json:
    match value:
        case None | bool() | int() | str():
            return value
        case uuid.UUID():
            return str(value)
        case Param():
            return param_data(value)
        case Message():
            return message_data(value)
        case RegisterFrame():
            return list(value.x)
        case tuple() | list():
            return [_plain(item) for item in value]
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a description")


def _fields(value: Call | Return | Command | Answer) -> dict[str, Json]:
    return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}


def function_id_data(value: int) -> dict[str, Json]:
    """A function id for programs, in the keys of the published function-id vectors."""
    word = low32(value)
    fid = FunctionId.decode(word)
    data: dict[str, Json] = {
        "fid": f"{word:#010x}",
        "fast": fid.fast,
        "smc64": fid.smc64,
        "owner": fid.owner,
        "func": fid.number,
        "rebuilt": f"{fid.plain:#010x}",
        "sve_hint": fid.sve_hint,
        "bits_23_17": fid.reserved,
        "tfa_valid_fast": fid.is_valid_fast,
        "psci_func_range": fid.is_psci_number,
    }
    known = names.FUNCTIONS.get(word)
    return {**data, "names": list(known)} if known else data


def describe_function_id(value: int) -> Description:
    """A function id; only the low 32 bits of ``value`` count."""
    word = low32(value)
    fid = FunctionId.decode(word)
    kind = f"{'fast' if fid.fast else 'yielding'} {'SMC64' if fid.smc64 else 'SMC32'}"
    text = f"{word:#010x} is a {kind} call, owner {fid.owner} ({fid.service.value}), "
    lines = [f"{text}function {fid.number:#x}"]
    name = names.function_name(word) or names.function_name(fid.plain)
    if name is not None:
        lines.append(f"it is called {name}")
    if fid.sve_hint:
        lines.append("the SVE hint is set: the caller has no live SVE state")
    if fid.reserved:
        lines.append(f"reserved bits 23:17 are {fid.reserved:#x}, so nobody serves it")
    return Description(tuple(lines), {"kind": "function_id", **function_id_data(word)})


def _call_name(call: Call) -> str:
    name = names.function_name(call.function)
    return name.removeprefix("OPTEE_SMC_") if name else f"{call.function:#010x}"


def _call_line(call: Call) -> str:
    if isinstance(call, UnknownCall):
        # Its registers are shown behind it.
        return f"{_call_name(call)}: unknown to OP-TEE, SMCCC and PSCI"
    return f"{_call_name(call)}: {sentences.call_sentence(call)}"


def _call_data(call: Call) -> dict[str, Json]:
    return {"kind": "call", "name": _call_name(call), "fields": _fields(call)}


def _registers(frame: RegisterFrame) -> str:
    return "registers " + " ".join([f"{register:#x}" for register in frame.x])


def describe_call(frame: RegisterFrame, request: RpcRequest | None = None) -> Description:
    """The registers of a call. ``request``: the RPC that it answers, if it is a RETURN_FROM_RPC."""
    call = parse_call(frame)
    if request is not None:
        # If it is no answer, the caller began something else, which is described as it is.
        with suppress(ParseError):
            call = parse_answer(request, frame)
    lines = [_call_line(call)]
    if isinstance(call, UnknownCall):
        lines += [*describe_function_id(frame.a0).lines, _registers(frame)]
    data = {**_call_data(call), "registers": list(frame.x)}
    return Description(tuple(lines), {**data, "function": function_id_data(frame.a0)})


def _return_name(value: Return, frame: RegisterFrame) -> str | None:
    if isinstance(value, RpcRequest):
        return names.RPC_STATUS.full(frame.a0)
    return names.STATUS.full(frame.a0) if value.STATUS is not None else None


def describe_return(frame: RegisterFrame, call: Call | None = None) -> Description:
    """The registers that came back from ``call``; without it they are read as an OP-TEE status."""
    value = parse_yielding_return(frame) if call is None else call.parse_return(frame)
    lines = [f"returned: {sentences.return_sentence(value)}"]
    if isinstance(value, UnknownReturn):
        lines.append(_registers(frame))
    data: dict[str, Json] = {
        "kind": "return",
        "name": type(value).__name__,
        "status": _return_name(value, frame),
        "fields": _fields(value),
        "registers": list(frame.x),
    }
    return Description(tuple(lines), data)


def param_data(param: Param) -> dict[str, Json]:
    """A parameter for programs, in the keys of the published message vectors."""
    return {
        "attr": param.attr,
        "type": param.type,
        "meta": param.meta,
        "noncontig": param.noncontig,
        "cache": param.cache,
        "kind": param.kind.name.lower(),
        "value": param.value._asdict(),
        "tmem": param.tmem._asdict(),
        "rmem": param.rmem._asdict(),
        "fmem": param.fmem._asdict(),
    }


def message_data(message: Message) -> dict[str, Json]:
    """A message for programs, in the keys of the published message vectors."""
    header: dict[str, Json] = {
        name: getattr(message, name) for name in Message._fields if name != "params"
    }
    params = [param_data(param) for param in message.params]
    return {**header, "num_params": len(params), "params": params}


def _answer(message: Message, rpc: bool) -> Answer:
    known = RPC_COMMANDS.get(message.cmd) if rpc else MESSAGE_COMMANDS.get(message.cmd)
    try:
        return (known.ANSWER if known else Answer).parse(message)
    except ParseError:
        # An error leaves the parameters as they were, so there is no more to read than that.
        return Answer(ret=message.ret, ret_origin=message.ret_origin)


def describe_message(message: Message, *, rpc: bool = False, answered: bool = False) -> Description:
    """A message, or with ``rpc`` an RPC argument; ``answered``: its results mean something."""
    title = (names.RPC_COMMAND if rpc else names.COMMAND).short(message.cmd)
    lines = [title]
    data: dict[str, Json] = {
        "kind": "rpc" if rpc else "message",
        "name": title,
        "size": message.size,
        "fields": message_data(message),
    }
    try:
        command = parse_rpc_argument(message) if rpc else parse_command(message)
        lines = [f"{title}: {sentences.command_sentence(command)}"]
        data["command"] = {"name": type(command).__name__, "fields": _fields(command)}
    except ParseError as error:
        # An answer may have overwritten the request (SHM_ALLOC does): nothing to complain about.
        if not answered:
            lines = [f"{title}: not as the command should be", str(error)]
            data["problem"] = describe_error(error).data
    if answered:
        answer = _answer(message, rpc)
        lines.append(f"answered: {sentences.answer_sentence(answer)}")
        data["answer"] = {"name": type(answer).__name__, "fields": _fields(answer)}
    lines += [
        f"params[{index}]: {sentences.param_sentence(param)}"
        for index, param in enumerate(message.params)
    ]
    return Description(tuple(lines), data)


def describe_arguments(arguments: CallArguments, *, answered: bool = False) -> Description:
    """A message and the RPC argument behind it. ``answered``: of the RPC argument."""
    message = describe_message(arguments.message)
    rpc = describe_message(arguments.rpc, rpc=True, answered=answered)
    lines = (*message.lines, f"behind it at {arguments.message.size:#x}: {rpc.lines[0]}")
    return Description(
        (*lines, *rpc.lines[1:]),
        {"kind": "arguments", "message": message.data, "rpc": rpc.data},
    )


def describe_page_list(listed: PageList) -> Description:
    """A page list."""
    pages = listed.pages
    shown = " ".join([f"{page:#x}" for page in pages[:PAGES_SHOWN]])
    more = f" and {len(pages) - PAGES_SHOWN} more" if len(pages) > PAGES_SHOWN else ""
    runs = 1 + sum([following != page + PAGE_SIZE for page, following in pairwise(pages)])
    lines = (
        f"{sentences.plural(listed.size, 'byte')} in {sentences.plural(len(pages), 'page')}, "
        f"from byte {listed.offset:#x} of the first",
        f"pages {shown}{more}",
        f"{sentences.plural(runs, 'contiguous run')}",
    )
    data: dict[str, Json] = {
        "kind": "page_list",
        "offset": listed.offset,
        "size": listed.size,
        "pages": list(pages),
    }
    return Description(lines, data)


def describe_error(error: ParseError) -> Description:
    """What was wrong with input that could not be parsed."""
    data: dict[str, Json] = {
        "kind": "error",
        "offset": error.offset,
        "field": error.field,
        "reason": error.reason.name,
    }
    return Description((f"cannot be decoded: {error}",), data)
