# SPDX-License-Identifier: BSD-2-Clause
"""Function ids and conduits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smccc import declarations
from smccc.conduit import IMMEDIATE_LIMIT, Call, Conduit, parse_a64, parse_syndrome
from smccc.errors import BuildError, ParseError, Reason
from smccc.function_id import FunctionId, Service, general_query, is_yielding, service_of
from tests.smccc.smccc_golden import document, records

U32 = st.integers(0, 0xFFFF_FFFF)


def test_every_function_id_vector() -> None:
    wrong = []
    for vector in records("function_id_vectors"):
        value = int(vector["fid"], 16)
        fid = FunctionId.decode(value)
        ours = {
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
        if ours != {name: vector[name] for name in ours} or fid.encode() != value:
            wrong.append((vector, ours))
    assert wrong == []
    assert len(records("function_id_vectors")) == 1087


@given(U32)
def test_every_32_bit_value_survives_and_agrees_with_the_declaration(value: int) -> None:
    fid = FunctionId.decode(value)
    assert fid.encode() == value
    assert declarations.parse_function_id(value) == fid
    assert declarations.build_function_id(fid) == value
    assert is_yielding(value) != fid.fast


@given(U32, U32)
def test_the_upper_half_of_a0_does_not_count(value: int, rubbish: int) -> None:
    assert FunctionId.decode(rubbish << 32 | value) == FunctionId.decode(value)


@pytest.mark.parametrize(
    ("part", "fid"),
    [
        ("owner", FunctionId(True, False, 64, 4)),
        ("owner", FunctionId(True, False, -1, 4)),
        ("number", FunctionId(True, False, 50, 0x10000)),
        ("reserved", FunctionId(True, False, 50, 4, reserved=0x80)),
    ],
)
def test_a_part_that_does_not_fit_is_a_mistake_of_the_program(part: str, fid: FunctionId) -> None:
    with pytest.raises(BuildError) as caught:
        fid.encode()
    assert caught.value.field == part


def test_every_owner_has_a_service() -> None:
    found = [service_of(owner) for owner in range(64)]
    assert found[:8] == [
        Service.ARCH,
        Service.CPU,
        Service.SIP,
        Service.OEM,
        Service.STANDARD,
        Service.STANDARD_HYP,
        Service.VENDOR_HYP,
        Service.VENDOR_EL3,
    ]
    assert set(found[8:48]) == {Service.RESERVED}
    assert found[48:] == [Service.TRUSTED_APP] * 2 + [Service.TRUSTED_OS] * 14


def test_general_queries_are_fast_smc32() -> None:
    for owner in range(64):
        fid = FunctionId.decode(general_query(owner, 0xFF01))
        assert fid == FunctionId(True, False, owner, 0xFF01)


def test_the_owner_in_the_tables_is_that_of_the_id() -> None:
    for call in document("register_tables")["optee_calls"]:
        fid = FunctionId.decode(int(call["fid"], 16))
        assert fid.owner == call["owner"]
        assert fid.number == call["func"]
        assert fid.fast == (call["type"] == "fast")
        assert fid.smc64 == (call["convention"] == "SMC64")


# --- conduits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (Call(Conduit.SMC), "030000d4"),
        (Call(Conduit.HVC), "020000d4"),
        (Call(Conduit.SMC, 1), "230000d4"),
        (Call(Conduit.HVC, 0xFFFF), "e2ff1fd4"),
    ],
)
def test_instructions(call: Call, word: str) -> None:
    assert call.a64().hex() == word
    assert parse_a64(bytes.fromhex(word)) == call


@given(st.sampled_from(Conduit), st.integers(0, IMMEDIATE_LIMIT - 1))
def test_instruction_and_syndrome_round_trip(conduit: Conduit, immediate: int) -> None:
    call = Call(conduit, immediate)
    assert parse_a64(call.a64()) == call
    assert parse_syndrome(call.syndrome()) == call
    assert call.follows_convention == (immediate == 0)


def outcome(data: bytes) -> Call | Reason:
    try:
        return parse_a64(data)
    except ParseError as error:
        return error.reason


@given(st.binary(max_size=8))
def test_any_instruction_parses_or_is_refused(data: bytes) -> None:
    found = outcome(data)
    if len(data) < 4:
        assert found is Reason.TRUNCATED
    elif isinstance(found, Call):
        assert found.a64() == data[:4]
    else:
        assert found is Reason.NOT_IN_RANGE
        assert data[3] != 0xD4 or data[2] & 0xE0 or data[0] & 0x1F not in (2, 3)


@given(U32)
def test_any_syndrome_parses_or_is_refused(esr: int) -> None:
    known = {0x17: Conduit.SMC, 0x13: Conduit.SMC, 0x16: Conduit.HVC, 0x12: Conduit.HVC}
    exception_class = esr >> 26
    if exception_class not in known:
        with pytest.raises(ParseError):
            parse_syndrome(esr)
        return
    # An SMC from AArch32 does not say its immediate.
    immediate = 0 if exception_class == 0x13 else esr & 0xFFFF
    assert parse_syndrome(esr) == Call(known[exception_class], immediate)


def test_an_immediate_of_17_bits_is_a_mistake_of_the_program() -> None:
    with pytest.raises(BuildError):
        Call(Conduit.HVC, IMMEDIATE_LIMIT).a64()
