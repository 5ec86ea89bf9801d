# SPDX-License-Identifier: BSD-2-Clause
"""Integers, function ids and frames: the interesting cases occur, and they shrink to simple ones."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import find, given, settings

from fuzz.strategies.function_ids import (
    FunctionClass,
    function_class,
    function_ids,
    known_function_ids,
    neighbour_function_ids,
    unknown_function_ids,
)
from fuzz.strategies.integers import (
    EDGES,
    LIST_EDGES,
    asymmetric_pairs,
    buffer_sizes,
    edge_integers,
    page_counts,
    page_offsets,
    with_rubbish,
)
from fuzz.strategies.registers import (
    MARKS,
    any_frames,
    call_frames,
    calls,
    hostile_frames,
    is_rubbish,
    misaligned,
    register_frames,
    rubbish_above,
    swapped_pairs,
    traps,
)
from smccc.calls import CALLS, parse_call
from smccc.constants import optee_smc as smc
from smccc.function_id import FunctionId, Service
from smccc.registers import MASK32, MASK64, RegisterFrame, pair
from tests.fuzz.support import drawn

QUIET = settings(derandomize=True, database=None)


def test_edges_and_their_neighbours_come_up() -> None:
    seen = set(drawn(edge_integers(64), 300))
    assert set(EDGES) <= seen
    assert {EDGES[2] + 1, (1 << 63) - 1, MASK64 - 1} <= seen
    assert len(seen - set(EDGES)) > 100, "numbers that are no edge"


@pytest.mark.parametrize("bits", [12, 32, 64])
def test_edges_fit_their_width(bits: int) -> None:
    values = drawn(edge_integers(bits))
    assert max(values) == (1 << bits) - 1
    assert min(values) == 0


def test_a_width_without_edges_is_an_error() -> None:
    with pytest.raises(ValueError, match="too few"):
        edge_integers(8)


def test_integers_shrink_to_the_least_edge() -> None:
    assert find(edge_integers(64), lambda value: value >= 1 << 32, settings=QUIET) == 1 << 32
    assert find(edge_integers(64), lambda value: True, settings=QUIET) == 0


def test_asymmetric_pairs_show_a_swap() -> None:
    values = drawn(asymmetric_pairs())
    assert all(value >> 32 != value & MASK32 for value in values)
    assert len({value >> 32 for value in values}) > 20


@given(with_rubbish(0x1234))
def test_rubbish_is_above_the_word(value: int) -> None:
    assert value & MASK32 == 0x1234
    assert value <= MASK64


def test_rubbish_is_there_mostly() -> None:
    assert sum(value >> 32 != 0 for value in drawn(with_rubbish(1))) > 100


def test_offsets_sizes_and_counts_are_at_the_roll_overs() -> None:
    assert {0, 1, 4095} <= set(drawn(page_offsets()))
    assert set(LIST_EDGES) <= set(drawn(page_counts(), 100))
    assert max(drawn(page_counts(4))) == 4
    sizes = drawn(buffer_sizes(), 300)
    assert {0, 1, 4095, 4096, 4097, 511 * 4096, 512 * 4096 + 1, MASK64} <= set(sizes)


def test_every_class_of_function_id_occurs() -> None:
    found = Counter(function_class(value) for value in drawn(function_ids(), 500))
    # Hypothesis does not repeat itself: a class of few ids cannot come up often.
    assert set(found) == set(FunctionClass)
    assert found[FunctionClass.UNKNOWN_TEE] > 50


def test_the_parts_of_function_ids_are_what_they_say() -> None:
    known = set(drawn(known_function_ids(), 200))
    optee = {value for value in CALLS if value >> 24 & 0x3F in (50, 63)}
    assert optee <= known, "each function of OP-TEE comes up"
    assert not set(drawn(unknown_function_ids(), 150)) & set(CALLS)
    for value in drawn(neighbour_function_ids(), 150):
        assert 0 <= value <= MASK32
        near = [value ^ 1 << bit for bit in range(32)] + [value - 1, value + 1]
        near += [FunctionId.decode(value).plain]
        assert any(other in optee for other in near)


def test_function_ids_shrink_to_a_known_one() -> None:
    assert function_class(find(function_ids(), lambda value: True, settings=QUIET)) in (
        FunctionClass.FAST,
        FunctionClass.YIELDING,
    )


@given(call_frames())
def test_a_correct_frame_reads_as_the_call_that_it_is(frame: tuple[int, ...]) -> None:
    call = parse_call(RegisterFrame(frame))
    assert call.function == frame[0]
    assert call.registers(RegisterFrame(frame)).x == frame


def test_every_typed_call_is_drawn_and_unused_registers_are_marked() -> None:
    found = Counter(type(call).FUNCTION for call in drawn(calls(), 500))
    assert {call.FUNCTION for call in CALLS.values()} <= set(found)
    frame = find(call_frames(), lambda x: x[0] == smc.OPTEE_SMC_ENABLE_SHM_CACHE, settings=QUIET)
    assert frame[1:7] == MARKS[1:7]


@given(rubbish_above(call_frames()))
def test_rubbish_leaves_the_low_words(frame: tuple[int, ...]) -> None:
    assert is_rubbish(frame)  # type: ignore[arg-type]
    assert all(value >> 32 for value in frame)
    parse_call(RegisterFrame(frame))


def test_swaps_and_low_bits() -> None:
    plain = call_frames()
    for frame in drawn(swapped_pairs(plain), 30):
        assert len(frame) == 8
    assert any(pair(x[1], x[2]) != pair(x[2], x[1]) for x in drawn(swapped_pairs(plain), 30))
    assert all(frame[2] & 0xFFF for frame in drawn(misaligned(plain), 50))


def test_hostile_frames_have_every_trait() -> None:
    frames = drawn(hostile_frames(), 250)
    assert any(is_rubbish(frame) for frame in frames)
    services = {FunctionId.decode(frame[0]).service for frame in frames}
    assert {Service.TRUSTED_OS, Service.STANDARD, Service.ARCH, Service.RESERVED} <= services
    assert any(frame[0] > MASK32 for frame in frames)
    assert any(
        frame[0] & MASK32 == smc.OPTEE_SMC_CALL_WITH_ARG and frame[2] & 0xFFF for frame in frames
    )
    assert all(0 <= value <= MASK64 for frame in frames for value in frame)


def test_traps_use_every_conduit() -> None:
    found = drawn(traps(3), 100)
    assert {trap.guest for trap in found} == {3}
    assert {trap.hvc for trap in found} == {False, True}
    assert {trap.aarch32 for trap in found} == {False, True}
    assert {trap.vcpu for trap in found} == {0, 1}
    zero = sum(trap.immediate == 0 for trap in found)
    assert 30 < zero < 100


def test_any_frame_and_register_frames_draw() -> None:
    assert len(set(drawn(any_frames(), 50))) > 40
    assert any(frame[0] in CALLS for frame in drawn(register_frames(), 100))
