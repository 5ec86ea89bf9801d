# SPDX-License-Identifier: BSD-2-Clause
"""Messages: the hot codec, the typed values and the declaration agree on every input."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smccc import declarations, message, wire
from smccc.errors import BuildError, ParseError, Reason
from smccc.message import (
    CallArguments,
    Fmem,
    Kind,
    Message,
    Param,
    attribute,
    fmem_param,
    parse_arguments,
    parse_message,
    uuid_from_value,
    uuid_to_value,
)
from tests.smccc.smccc_golden import records

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
PARAMS = st.builds(Param, st.one_of(st.integers(0, 0x7FFFF), U64), U64, U64, U64)
MESSAGES = st.builds(
    Message, U32, U32, U32, U32, U32, U32, U32, st.lists(PARAMS, max_size=6).map(tuple)
)


def fields_of(found: Message) -> tuple[int, ...]:
    """The message as the hot codec unpacks it."""
    flat = [number for param in found.params for number in param]
    return (*found[:7], len(found.params), *flat)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly a message: any count in the header, cut or grown anywhere."""
    data = bytearray(draw(MESSAGES).build())
    count = draw(st.one_of(st.none(), st.integers(0, 130), U32))
    if count is not None:
        struct.pack_into("<I", data, wire.NUM_PARAMS_OFFSET, count)
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=40))


ANY_BYTES = st.one_of(st.binary(max_size=100), damaged(), MESSAGES.map(Message.build))


def outcome(parse: Callable[[bytes], object], data: bytes) -> object:
    """What a parser returns, or the error that it raises; anything else fails the test."""
    try:
        return parse(data)
    except ParseError as error:
        return error


@settings(deadline=None)
@given(ANY_BYTES)
@example(b"")
@example(bytes(31))
@example(bytes(32))
@example(b"\xff" * 4096)
@example(wire.MESSAGE[127].pack(*[0] * 7, 127, *range(4 * 127)))
def test_all_codecs_agree_on_any_bytes(data: bytes) -> None:
    declared = outcome(declarations.parse_message, data)
    assert outcome(parse_message, data) == declared
    hot = outcome(wire.unpack_message, data)
    assert hot == (fields_of(declared) if isinstance(declared, Message) else declared)
    if isinstance(declared, Message):
        assert declared.build() == data[: declared.size]
        assert wire.pack_message(hot) == data[: declared.size]  # type: ignore[arg-type]
        assert declarations.build_message(declared) == data[: declared.size]


@settings(deadline=None)
@given(st.one_of(ANY_BYTES, st.tuples(ANY_BYTES, ANY_BYTES).map(b"".join)), st.integers(0, 8))
def test_message_with_rpc_argument_agrees_on_any_bytes(data: bytes, room: int) -> None:
    def typed(bytes_: bytes) -> CallArguments:
        return parse_arguments(bytes_, room)

    found = outcome(typed, data)
    assert found == outcome(lambda bytes_: declarations.parse_arguments(bytes_, room), data)
    if isinstance(found, CallArguments):
        built = found.build()
        assert data.startswith(built)
        both = declarations.CALL_ARGUMENTS.parse(built)
        assert both.message.num_params == found.message.num_params
        assert both.rpc.num_params == found.rpc.num_params
        assert len(built) == wire.message_size(found.message.num_params) + wire.message_size(
            found.rpc.num_params
        )


@settings(deadline=None)
@given(MESSAGES, st.integers(0, 64))
def test_a_message_in_the_middle_of_memory(found: Message, at: int) -> None:
    data = bytes(at) + found.build() + b"\xee" * 8
    assert parse_message(data, at) == found
    assert parse_message(memoryview(bytearray(data)), at) == found
    target = bytearray(len(data))
    wire.pack_message_into(fields_of(found), target, at)
    assert target[at : at + found.size] == found.build()


@given(damaged(), st.integers(1, 64))
def test_offsets_of_errors_count_from_the_message(data: bytes, at: int) -> None:
    assert outcome(lambda bytes_: wire.unpack_message(bytes_, at), bytes(at) + data) == outcome(
        wire.unpack_message, data
    )


def test_errors_name_offset_field_and_reason() -> None:
    header = struct.pack("<8I", 1, 0, 0, 0, 0, 0, 0, 2)
    cases = [
        (b"", 0, "cmd", Reason.TRUNCATED),
        (header[:13], 12, "cancel_id", Reason.TRUNCATED),
        (header[:31], 28, "num_params", Reason.TRUNCATED),
        (header, 32, "params[0].attr", Reason.TRUNCATED),
        (header + bytes(31), 56, "params[0].c", Reason.TRUNCATED),
        (header + bytes(47), 72, "params[1].a", Reason.TRUNCATED),
        (header[:28] + struct.pack("<I", 128), 28, "num_params", Reason.TOO_MANY_PARAMS),
        (b"\xff" * 5000, 28, "num_params", Reason.TOO_MANY_PARAMS),
    ]
    for data, offset, field, reason in cases:
        assert outcome(parse_message, data) == ParseError(offset, field, reason)


def test_every_message_vector() -> None:
    wrong = []
    for vector in records("message_vectors"):
        data = bytes.fromhex(vector["hex"])
        found = parse_message(data)
        golden = vector["fields"]
        ours = {
            **{name: getattr(found, name) for name in wire.HEADER_FIELDS},
            "params": [
                {
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
                for param in found.params
            ],
        }
        same = ours == golden and found.build() == data and found.size == vector["size"]
        if not same or declarations.parse_message(data) != found:
            wrong.append(vector["id"])
    assert wrong == []
    assert len(records("message_vectors")) == 200


@given(PARAMS)
def test_a_parameter_s_views_and_attribute(param: Param) -> None:
    declared = declarations.PARAM.parse(struct.pack("<4Q", *param))
    for view in ("value", "tmem", "rmem", "fmem"):
        ours = getattr(param, view)._asdict()
        assert ours == {name: declared["u"][view][name] for name in ours}
    bits = declarations.ATTRIBUTE.parse(struct.pack("<Q", param.attr))
    assert (param.type, param.meta, param.noncontig, param.cache) == (
        bits["type"],
        bits["meta"],
        bits["noncontig"],
        bits["cache"],
    )


@given(st.integers(0, 255), st.booleans(), st.booleans(), st.integers(0, 7))
def test_attributes_are_built_from_their_parts(
    type_: int, meta: bool, noncontig: bool, cache: int
) -> None:
    param = Param(attribute(type_, meta=meta, noncontig=noncontig, cache=cache))
    assert (param.type, param.meta, param.noncontig, param.cache) == (type_, meta, noncontig, cache)


def test_kinds_of_all_256_types() -> None:
    kinds = [Param(number).kind for number in range(256)]
    assert kinds[:13] == [
        Kind.NONE,
        *[Kind.VALUE] * 3,
        Kind.INVALID,
        *[Kind.RMEM] * 3,
        Kind.INVALID,
        *[Kind.TMEM] * 3,
        Kind.INVALID,
    ]
    assert set(kinds[12:]) == {Kind.INVALID}
    outputs = [number for number in range(256) if Param(number).is_output]
    assert outputs == [2, 3, 6, 7, 0xA, 0xB]


def test_null_references() -> None:
    assert Param(0x9, 0, 100, 5).is_null, "tmem: address 0, whatever the size"
    assert not Param(0x9, 4096, 0, 0).is_null
    assert Param(0x5, 8, 100, 0).is_null, "rmem: cookie 0"
    assert not Param(0x5, 0, 0, 1).is_null
    assert not Param(0x1).is_null, "a value refers to nothing anyway"
    ones = 2**64 - 1
    assert Fmem(0, 0, 0, 0, ones).is_null
    assert not Fmem(0, 0, 0, 1, ones).is_null


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**16 - 1), U64, U64)
def test_fmem_parameters(offset: int, internal: int, size: int, global_id: int) -> None:
    view = fmem_param(7, offset, internal, size, global_id).fmem
    assert (view.offset, view.internal_offs, view.size, view.global_id) == (
        offset,
        internal,
        size,
        global_id,
    )


def test_fmem_parts_that_do_not_fit() -> None:
    for offset, internal, field in ((1 << 48, 0, "offset"), (0, 1 << 16, "internal_offs")):
        with pytest.raises(BuildError) as caught:
            fmem_param(7, offset, internal, 0, 0)
        assert caught.value.field == field


@given(st.uuids())
def test_uuids_in_values_keep_their_octets(identifier: uuid.UUID) -> None:
    a, b = uuid_to_value(identifier)
    assert struct.pack("<2Q", a, b) == identifier.bytes
    assert uuid_from_value(a, b) == identifier


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (Message(1 << 32), "cmd"),
        (Message(0, ret=-1), "ret"),
        (Message(0, params=(Param(0, 1 << 64),)), "params[0].a"),
        (Message(0, params=(Param(), Param(0, 0, 0, -1))), "params[1].c"),
        (Message(0, params=(Param(),) * 128), "num_params"),
    ],
)
def test_what_does_not_fit_the_wire_is_a_mistake_of_the_program(
    broken: Message, field: str
) -> None:
    with pytest.raises(BuildError) as caught:
        broken.build()
    assert caught.value.field == field


def test_unpacked_fields_that_do_not_pack() -> None:
    good = fields_of(Message(1, params=(Param(),)))
    cases = [
        (good[:5], "header"),
        ((*good[:7], 2, *good[8:]), "num_params"),
        ((*good[:7], -1, *good[8:]), "num_params"),
        ((*good[:7], 128, *good[8:]), "num_params"),
        ((1 << 32, *good[1:]), "cmd"),
    ]
    for fields, field in cases:
        with pytest.raises(BuildError) as caught:
            wire.pack_message(fields)
        assert caught.value.field == field
    with pytest.raises(BuildError) as caught:
        wire.pack_message_into(good, bytearray(63), 0)
    assert caught.value.field == "message"


def test_the_rpc_argument_may_not_outgrow_its_room() -> None:
    data = Message(1).build() + Message(2, params=(Param(),) * 5).build()
    assert parse_arguments(data, 5).rpc.num_params == 5
    with pytest.raises(ParseError) as caught:
        parse_arguments(data, 4)
    assert caught.value == ParseError(32 + 28, "rpc.num_params", Reason.TOO_MANY_PARAMS)
    assert message.rpc_offset(6) == 0xE0
    assert message.arguments_size(6, 4) == 0x180
