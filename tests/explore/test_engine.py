# SPDX-License-Identifier: BSD-2-Clause
"""The explorer itself: it counts right, leaves nothing out, and says what it did leave out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import comb, factorial, prod

import pytest

from mediator.explore.engine import (
    Actor,
    Reduction,
    Run,
    Until,
    explore,
    minimal_failure,
    sample,
)
from mediator.explore.state import UnknownState, fingerprint
from mediator.explore.story import read, replay, written
from mediator.explore.systems import SCENARIOS, independent
from mediator.suspend import PREEMPTION_POINT, Suspend


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (2, 3), (4, 4), (6, 3), (7, 5)])
def test_two_independent_actors_have_m_plus_n_over_n_schedules(
    m: int, n: int, reduction: Reduction
) -> None:
    found = explore(independent(m, n), reduction)
    assert found.complete
    assert found.extent == "all"
    assert found.schedules == comb(m + n, n)
    assert found.longest == m + n
    if reduction is Reduction.NONE:
        assert found.runs == comb(m + n, n)
    else:
        assert found.runs <= m * n + 1


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("steps", [(1, 1, 1), (2, 2, 2), (3, 2, 4), (2, 1, 2, 2)])
def test_more_actors_have_the_multinomial_number(
    steps: tuple[int, ...], reduction: Reduction
) -> None:
    found = explore(independent(*steps), reduction)
    assert found.complete
    assert found.schedules == factorial(sum(steps)) // prod(map(factorial, steps))


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_a_bound_on_preemptions_is_never_called_all(bound: int) -> None:
    found = explore(independent(4, 4), preemptions=bound)
    assert not found.complete
    assert found.extent == f"at most {bound} preemptions"
    assert found.schedules < comb(8, 4)
    # Blocks of steps: two orders without a preemption.
    assert bound or found.schedules == 2


def test_a_bound_that_leaves_nothing_out_is_all() -> None:
    found = explore(independent(2, 2), preemptions=4)
    assert found.complete
    assert found.schedules == comb(4, 2)


def test_a_limit_on_runs_is_never_called_all() -> None:
    found = explore(independent(5, 5), Reduction.NONE, max_runs=20)
    assert found.extent == "stopped"
    assert found.runs == found.schedules == 20


class Lost:
    """Two actors that count in two steps each, the classic lost update, or a wait for ever."""

    def __init__(self, *, waits: bool) -> None:
        self.count = 0
        self.wrong: list[str] = []
        self.actors: list[tuple[str, Actor]] = [("one", self._add()), ("two", self._add())]
        if waits:
            self.actors.append(("three", self._wait()))

    async def _add(self) -> Hashable:
        before = self.count
        await PREEMPTION_POINT
        self.count = before + 1
        return None

    async def _wait(self) -> Hashable:
        await Suspend(Until(lambda: self.count == 2, "waits for two"))
        return None

    def violations(self) -> Sequence[str]:
        return self.wrong

    def finish(self) -> None:
        if self.count != 2:
            self.wrong.append("an update is lost")

    def outcome(self) -> Hashable:
        return self.count

    def state(self) -> Sequence[object]:
        return (self.count, self.wrong)


class LostSystem:
    name = "lost"

    def __init__(self, *, waits: bool) -> None:
        self._waits = waits

    def start(self) -> Run:
        return Lost(waits=self._waits)


@pytest.mark.parametrize("reduction", list(Reduction))
def test_a_race_is_found_and_the_other_end_too(reduction: Reduction) -> None:
    found = explore(LostSystem(waits=False), reduction)
    assert found.complete
    assert [failure.what for failure in found.failures] == ["an update is lost"]
    ends = []
    for outcome in found.outcomes:
        assert isinstance(outcome, tuple)
        _, end = outcome
        ends.append(end)
    assert sorted(ends) == [1, 2]


def test_who_waits_for_ever_is_a_failure() -> None:
    found = explore(LostSystem(waits=True))
    assert [failure.what for failure in found.failures] == [
        "an update is lost",
        "three waits for ever: waits for two",
    ]


def test_the_minimal_failure_has_the_fewest_preemptions() -> None:
    assert not explore(LostSystem(waits=False), preemptions=0).failures
    least = minimal_failure(LostSystem(waits=False))
    assert least is not None
    assert written(least.schedule) == "0110"


def test_random_schedules_follow_their_seed() -> None:
    system = LostSystem(waits=False)
    assert sample(system, 50, 3) == sample(system, 50, 3)
    failed, first = sample(system, 50, 3)
    assert 0 < failed < 50
    assert first is not None


def test_an_actor_in_circles_is_found() -> None:
    class Circles(Lost):
        async def _add(self) -> Hashable:
            while True:
                await PREEMPTION_POINT

    class System:
        name = "circles"

        def start(self) -> Run:
            return Circles(waits=False)

    found = explore(System(), Reduction.NONE, stop_at_failure=True)
    assert found.failures[0].what == "no end after 2000 steps"


REDUCED = (
    "resume-destroy",
    "register-destroy",
    "create-destroy",
    "carrier-unregister",
    "answer-twice",
)


@pytest.mark.parametrize("name", REDUCED)
def test_the_reduction_finds_the_same_ends_and_counts_the_same(name: str) -> None:
    every = explore(SCENARIOS[name], Reduction.NONE)
    once = explore(SCENARIOS[name], Reduction.STATES)
    assert every.complete
    assert once.complete
    assert once.schedules == every.schedules == every.runs
    assert set(once.outcomes) == set(every.outcomes)
    assert {item.what for item in once.failures} == {item.what for item in every.failures}
    assert once.runs <= every.runs
    assert once.longest <= every.longest


def test_two_explorations_are_the_same() -> None:
    assert explore(SCENARIOS["answer-twice"]) == explore(SCENARIOS["answer-twice"])


def test_a_story_is_told_again_by_its_schedule() -> None:
    first = replay(SCENARIOS["register-destroy"], (0, 0, 1))
    again = replay(SCENARIOS["register-destroy"], read(first.schedule))
    assert first == again
    assert not first.wrong
    assert first.schedule.startswith("001")
    assert any("pin_pages" in line for line in first.lines())
    with pytest.raises(ValueError, match="cannot make step"):
        replay(SCENARIOS["register-destroy"], (7,))
    with pytest.raises(ValueError, match="no schedule"):
        read("0!")


async def _half(values: list[int]) -> None:
    for value in values:
        if value:
            await PREEMPTION_POINT


def test_a_suspended_coroutine_is_told_from_one_further_on() -> None:
    """Also by the iterator of its loop, which is no variable."""
    same = [_half([1, 1, 1]) for _ in range(2)]
    further = _half([1, 1, 1])
    for coroutine in (*same, further):
        coroutine.send(None)
    further.send(None)
    assert fingerprint([same[0]]) == fingerprint([same[1]])
    assert fingerprint([same[0]]) != fingerprint([further])
    for coroutine in (*same, further):
        coroutine.close()


def test_who_shares_an_object_is_told_from_who_has_an_equal_one() -> None:
    shared: list[int] = []
    assert fingerprint([shared, shared]) != fingerprint([[], []])
    assert fingerprint([{1: 2, 3: 4}]) != fingerprint([{3: 4, 1: 2}]), "order decides what is next"
    assert fingerprint([bytearray(9000)]) != fingerprint([bytearray(8999) + b"\1"])
    assert fingerprint([{3, 1}]) == fingerprint([{1, 3}])


def test_an_object_that_cannot_be_seen_through_is_an_error() -> None:
    with open(__file__, encoding="utf-8") as file, pytest.raises(UnknownState):
        fingerprint([file])
