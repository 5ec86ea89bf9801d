# SPDX-License-Identifier: BSD-2-Clause
"""A user checks the parser of his own TEE driver against ours, and that his test can fail."""

from __future__ import annotations

import struct

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from smccc.errors import ParseError
from smccc.message import parse_message
from specs.mutants.mechanism import Mutant, Patch, expect_killed


class OwnDriver:
    """The user's code: a few lines around struct."""

    MAX_PARAMS = 127

    @classmethod
    def parse(cls, data: bytes) -> tuple[int, list[tuple[int, ...]]] | None:
        if len(data) < 32:
            return None
        command, *_, count = struct.unpack_from("<8I", data)
        if count > cls.MAX_PARAMS or len(data) < 32 + 32 * count:
            return None
        return command, [struct.unpack_from("<4Q", data, 32 + 32 * i) for i in range(count)]


@st.composite
def buffers(draw: st.DrawFn) -> bytes:
    count = draw(st.sampled_from([0, 4, 127, 128, 0xFFFFFFFF]))
    header = struct.pack("<8I", *draw(st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 7)), count)
    data = header + bytes(range(256)) * (32 * min(count, 130) // 256 + 1)
    exact = 32 + 32 * min(count, 130)
    return data[: exact - draw(st.sampled_from([0, 1]))]


def parsers_agree() -> None:
    # Without shrinking: the mutant below only asks whether an example is found at all.
    @settings(max_examples=600, derandomize=True, database=None, phases=[Phase.generate])
    @given(buffers())
    def check(data: bytes) -> None:
        own = OwnDriver.parse(data)
        try:
            message = parse_message(data)
        except ParseError:
            assert own is None
        else:
            assert own == (message.cmd, [tuple(param) for param in message.params])

    check()


def test_both_parsers_agree() -> None:
    parsers_agree()


def off_by_one(patch: Patch) -> None:
    patch.attribute(OwnDriver, "MAX_PARAMS", 128)


def test_the_test_can_fail() -> None:
    mutant = Mutant(
        id="own-driver.one-parameter-more",
        story="Takes OPTEE_MSG_MAX_NUM_PARAMS for the first number that is too large.",
        bug_class=16,
        breaks=("I6",),
        plant=off_by_one,
    )
    expect_killed(mutant, parsers_agree)
    with pytest.raises(AssertionError, match="survived"):
        expect_killed(mutant, lambda: None)
