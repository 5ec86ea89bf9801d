# SPDX-License-Identifier: BSD-2-Clause
"""Register values and frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smccc import declarations
from smccc.errors import ABI_CODES, BuildError, ParseError, Reason, abi_code
from smccc.registers import (
    RegisterFrame,
    low32,
    pair,
    parse_frame,
    parse_frame32,
    signed32,
    signed64,
    split,
    unsigned32,
    unsigned64,
)

U64 = st.integers(0, 2**64 - 1)
FRAMES = st.builds(RegisterFrame, st.tuples(*[U64] * 8))


@given(U64)
def test_pairs_are_high_word_first(value: int) -> None:
    hi, lo = split(value)
    assert (hi, lo) == (value >> 32, value & 0xFFFF_FFFF)
    assert pair(hi, lo) == value


@given(U64, U64)
def test_rubbish_above_the_words_of_a_pair_does_not_count(hi: int, lo: int) -> None:
    assert pair(hi, lo) == pair(low32(hi), low32(lo))


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1))
def test_signed_results(small: int, large: int) -> None:
    assert signed32(unsigned32(small)) == small
    assert signed64(unsigned64(large)) == large
    assert signed32(unsigned64(small)) == small


def test_the_sign_of_minus_one() -> None:
    assert signed32(0xFFFF_FFFF) == signed64(2**64 - 1) == -1
    assert signed64(0xFFFF_FFFF) == 0xFFFF_FFFF
    assert signed32(0xDEAD_0000_7FFF_FFFF) == 0x7FFF_FFFF


@given(FRAMES)
def test_both_views(frame: RegisterFrame) -> None:
    assert frame.w == tuple(value & 0xFFFF_FFFF for value in frame.x)
    assert frame.a0 == frame.w[0]
    assert parse_frame(frame.build()) == frame
    assert parse_frame32(frame.build32()).x == frame.w
    assert frame.pair(4) == pair(frame.x[4], frame.x[5])


def outcome(parse: Callable[[bytes], object], data: bytes) -> object:
    try:
        return parse(data)
    except ParseError as error:
        return error


@given(st.binary(max_size=80))
def test_frames_agree_with_the_declaration_on_any_bytes(data: bytes) -> None:
    assert outcome(parse_frame, data) == outcome(declarations.parse_frame, data)
    assert outcome(parse_frame32, data) == outcome(declarations.parse_frame32, data)


def test_a_short_frame_names_the_register() -> None:
    with pytest.raises(ParseError) as caught:
        parse_frame(bytes(31))
    assert caught.value == ParseError(24, "a3", Reason.TRUNCATED)
    assert str(caught.value) == "at byte 24: a3 ends before the field does"


def test_frames_are_made_of_eight_64_bit_registers() -> None:
    assert RegisterFrame.of(1, 2).x == (1, 2, 0, 0, 0, 0, 0, 0)
    for bad in ((1,) * 9, (2**64,), (-1,)):
        with pytest.raises(BuildError):
            RegisterFrame.of(*bad)
    with pytest.raises(BuildError):
        RegisterFrame.of(1).replace(a8=0)
    assert RegisterFrame.of(1).replace(a3=7, a0=2).x == (2, 0, 0, 7, 0, 0, 0, 0)


def test_every_reason_has_an_abi_code() -> None:
    assert set(ABI_CODES) == set(Reason)
    for reason in Reason:
        code = abi_code(ParseError(0, "field", reason))
        # Either the call itself fails, or it is OK and the message has a result from COMMS.
        assert (code.a0 == 0) == (code.ret != 0) == (code.ret_origin == 2)


def test_errors_compare_by_content() -> None:
    error = ParseError(4, "func", Reason.TRUNCATED)
    same = ParseError(4, "func", Reason.TRUNCATED)
    assert error == same
    assert hash(error) == hash(same)
    assert error != ParseError(4, "func", Reason.NOT_IN_RANGE)
    assert error != "func"
