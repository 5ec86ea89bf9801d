# SPDX-License-Identifier: BSD-2-Clause
"""Golden data from compiled headers: constants, structure layouts and register tables.

Values are compared with :mod:`smccc` where the wire code knows them, and with the tables of
:mod:`specs.abi` where it has no use for them. Prose (what a register means, where a value was
found) is checked for its shape only.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

from smccc import message as wire_message
from smccc.constants import optee_msg, optee_smc
from smccc.function_id import (
    CALL_COUNT,
    CALL_UID,
    REVISION,
    FunctionId,
    general_query,
    optee_uid_words,
    uid_words,
)
from specs.abi import header_constants, layouts
from specs.vectors.case import Case, Comparison, judged
from specs.vectors.source import Value, hex_value

_U64: Final = (1 << 64) - 1
_NO_CONSTANTS: Final = ("_format", "_sources", "derived", "function_ids", "conflicts")
_C_TYPES: Final = ("int32", "uint32", "int64", "uint64")
_REGISTER: Final = re.compile(r"(?:[awx]\d(?:-[awx]\d)?|when)")
_RETURN: Final = re.compile(r"\b(?:RETURN|OPTEE_SMC)_[A-Z_]+\b")


def constants_cases(value: Value) -> list[Case]:
    """One case per constant, and one per derived table."""
    known = header_constants()
    cases = []
    for category, table in value.members().items():
        if category in _NO_CONSTANTS:
            continue
        for name, item in table.members().items():
            cases.append(_constant(f"{category}.{name}", name, item, known.get(name)))
    cases.append(_function_names(value.at("function_ids")))
    derived = value.at("derived")
    cases.append(_macros(derived.at("optee_msg_and_smc_macros")))
    cases.append(_queries(derived.at("smccc_generic_query_fids_by_owner")))
    cases.append(_service_uids(derived.at("service_uids_as_returned_in_w0_w3")))
    return cases


def _constant(title: str, name: str, item: Value, known: int | None) -> Case:
    fields = item.fields(("hex", "dec", "c_type", "sources"), ("signed", "u32", "conflict", "note"))
    compare = Comparison()
    number = fields["dec"].integer()
    fields["c_type"].text(_C_TYPES)
    compare.equal("hex", fields["hex"].hex(), number)
    signed = number - (1 << 64) if number >> 63 and "signed" in fields else number
    if "signed" in fields:
        compare.equal("signed", fields["signed"].integer(-(1 << 63), -1), signed)
    if "u32" in fields:
        compare.equal("u32", fields["u32"].hex(32), number & 0xFFFF_FFFF)
    if known is None:
        compare.differ("name", "a constant of a header that is known here", name)
    else:
        compare.equal("dec", number, known & _U64)
    return judged(title, item.line, compare.differences, category="constant")


def _function_names(table: Value) -> Case:
    known = header_constants()
    compare = Comparison()
    for text, trees in table.members().items():
        number = hex_value(text)
        if number is None or number >> 32:
            trees.fail("must be named by a 32-bit hexadecimal number")
        for tree, names in trees.members().items():
            for item in names.items():
                name = item.text()
                compare.equal(f"{text}.{tree}: {name}", number, known.get(name))
    return judged("function_ids", table.line, compare.differences, category="constant")


def _macros(table: Value) -> Case:
    compare = Comparison()
    for text, item in table.at("OPTEE_MSG_GET_ARG_SIZE").members().items():
        size = wire_message.arguments_size(_index(item, text), 0) - 32
        compare.equal(f"OPTEE_MSG_GET_ARG_SIZE({text})", item.integer(), size)
    for text, item in table.at("OPTEE_SMC_RPC_VAL").members().items():
        rpc = optee_smc.OPTEE_SMC_RETURN_RPC_PREFIX | _index(item, text)
        compare.equal(f"OPTEE_SMC_RPC_VAL({text})", item.hex(32), rpc)
    for item in table.at("OPTEE_SMC_RETURN_IS_RPC").items():
        fields = item.fields(("ret", "is_rpc", "func"))
        ret = fields["ret"].hex(32)
        prefix = optee_smc.OPTEE_SMC_RETURN_RPC_PREFIX
        is_rpc = (
            ret != optee_smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
            and ret & optee_smc.OPTEE_SMC_RETURN_RPC_PREFIX_MASK == prefix
        )
        compare.equal(f"OPTEE_SMC_RETURN_IS_RPC({ret:#x})", fields["is_rpc"].boolean(), is_rpc)
        func = ret & optee_smc.OPTEE_SMC_RETURN_RPC_FUNC_MASK
        compare.equal(f"OPTEE_SMC_RETURN_GET_RPC_FUNC({ret:#x})", fields["func"].integer(), func)
    return judged("derived macros", table.line, compare.differences, category="constant")


def _index(item: Value, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 3 or int(text) > 127:
        item.fail("must be named by a number up to 127")
    return int(text)


def _queries(table: Value) -> Case:
    compare = Comparison()
    for name, item in table.members().items():
        fields = item.fields(("owner", "call_count", "call_uid", "revision"))
        owner = fields["owner"].integer(0, 63)
        for field, number in (
            ("call_count", CALL_COUNT),
            ("call_uid", CALL_UID),
            ("revision", REVISION),
        ):
            compare.equal(f"{name}.{field}", fields[field].hex(32), general_query(owner, number))
    return judged("general service queries", table.line, compare.differences, category="constant")


def _service_uids(table: Value) -> Case:
    compare = Comparison()
    for name, item in table.members().items():
        fields = item.fields(("bytes", "words"))
        data = fields["bytes"].data()
        if len(data) != 16:
            fields["bytes"].fail("must be 16 bytes")
        words = tuple(word.hex(32) for word in fields["words"].items(4))
        compare.equal(name, words, uid_words(uuid.UUID(bytes=data)))
    optee = optee_uid_words(uuid.UUID("384fb3e0-e7f8-11e3-af63-0002a5d5c51b"))
    defined = (
        optee_msg.OPTEE_MSG_UID_0,
        optee_msg.OPTEE_MSG_UID_1,
        optee_msg.OPTEE_MSG_UID_2,
        optee_msg.OPTEE_MSG_UID_3,
    )
    compare.equal("OPTEE_MSG_UID_0..3", optee, defined)
    return judged("service UIDs", table.line, compare.differences, category="constant")


def layout_cases(value: Value) -> list[Case]:
    """One case per structure."""
    known = layouts()
    cases = []
    for category, table in value.members().items():
        if category in ("_format", "variants"):
            continue
        for name, item in table.members().items():
            compare = Comparison()
            variants = [item]
            if isinstance(item.at("other_variants").raw, list):
                variants += item.at("other_variants").items()
            here = known.get(name, ())
            if len(here) != len(variants):
                compare.differ("structure", f"{len(variants)} variants", str(len(here)))
            for index, (variant, layout) in enumerate(zip(variants, here, strict=False)):
                place = f"variant {index} " if index else ""
                fields = variant.fields(
                    ("kind", "sizeof", "alignof", "fields"),
                    ("sources", "long_dependent", "note", "other_variants"),
                )
                compare.equal(f"{place}kind", fields["kind"].text(), layout.kind)
                compare.equal(f"{place}sizeof", fields["sizeof"].integer(), layout.size)
                compare.equal(f"{place}alignof", fields["alignof"].integer(), layout.align)
                members = {}
                for member in fields["fields"].items():
                    parts = member.fields(("name", "offset", "size", "type"))
                    parts["type"].text()
                    at = (parts["offset"].integer(), parts["size"].integer())
                    members[parts["name"].text()] = at
                for member_name in sorted(members.keys() | layout.members.keys()):
                    compare.equal(
                        f"{place}{member_name} (offset, size)",
                        members.get(member_name),
                        layout.members.get(member_name),
                    )
            cases.append(
                judged(f"{category}.{name}", item.line, compare.differences, category="layout")
            )
    return cases


def register_cases(value: Value) -> list[Case]:
    """One case per call, RPC, message, return code and PSCI function of the register tables."""
    fields = value.fields(
        (
            "_format",
            "return_codes",
            "optee_calls",
            "optee_rpc",
            "optee_messages",
            "optee_rpc_messages",
            "psci",
        ),
        ("optee_ffa",),
    )
    cases = []
    for item in fields["return_codes"].items():
        parts = item.fields(("name", "value"))
        cases.append(_named(item, parts["name"], parts["value"].hex(32)))
    for item in fields["optee_calls"].items():
        cases.append(_call(item))
    for item in fields["optee_rpc"].items():
        cases.append(_rpc(item))
    for table in ("optee_messages", "optee_rpc_messages"):
        for item in fields[table].items():
            parts = item.fields(("name", "cmd"), ("sources", "params", "out", "notes"))
            cases.append(_named(item, parts["name"], parts["cmd"].integer(0, 0xFFFF_FFFF)))
    for item in fields["psci"].items():
        parts = item.fields(("function_ids",), ("args", "returns", "notes", "sources"))
        compare = Comparison()
        names = []
        for name, number in parts["function_ids"].members().items():
            names.append(name)
            compare.equal(name, number.hex(32), header_constants().get(name))
        cases.append(
            judged(", ".join(names), item.line, compare.differences, category="register-table")
        )
    if "optee_ffa" in fields:
        for item in fields["optee_ffa"].at("calls").items():
            parts = item.fields(("name", "w3"), ("in", "out", "notes"))
            cases.append(_named(item, parts["name"], parts["w3"].hex(32)))
    return cases


def _named(item: Value, name: Value, number: int) -> Case:
    compare = Comparison()
    compare.equal("value", number, header_constants().get(name.text()))
    return judged(name.text(), item.line, compare.differences, category="register-table")


def _call(item: Value) -> Case:
    fields = item.fields(
        ("name", "fid", "type", "convention", "owner", "func", "in", "out"), ("sources", "notes")
    )
    compare = Comparison()
    number = fields["fid"].hex(32)
    name = fields["name"].text()
    compare.equal("fid", number, header_constants().get(name))
    decoded = FunctionId.decode(number)
    compare.equal("type", fields["type"].text(), "fast" if decoded.fast else "yielding")
    compare.equal("convention", fields["convention"].text(), "SMC64" if decoded.smc64 else "SMC32")
    compare.equal("owner", fields["owner"].integer(), decoded.owner)
    compare.equal("func", fields["func"].integer(), decoded.number)
    _prose(compare, fields["in"])
    for row in fields["out"].items():
        _prose(compare, row)
    return judged(name, item.line, compare.differences, category="register-table")


def _rpc(item: Value) -> Case:
    fields = item.fields(("name", "a0", "func", "from_secure", "to_secure"), ("sources", "notes"))
    compare = Comparison()
    name, number = fields["name"].text(), fields["a0"].hex(32)
    compare.equal("a0", number, header_constants().get(name))
    compare.equal(
        "func", fields["func"].integer(), number & optee_smc.OPTEE_SMC_RETURN_RPC_FUNC_MASK
    )
    _prose(compare, fields["from_secure"])
    _prose(compare, fields["to_secure"])
    return judged(name, item.line, compare.differences, category="register-table")


def _prose(compare: Comparison, table: Value) -> None:
    """Registers have names and texts; a return code named in a text exists."""
    known = header_constants()
    for register, item in table.members().items():
        if not _REGISTER.fullmatch(register):
            item.fail("is not the name of a register")
        for word in _RETURN.findall(item.text()):
            name = word if word.startswith("OPTEE_SMC_") else f"OPTEE_SMC_{word}"
            if name not in known:
                compare.differ(register, "a return code that exists", word)
