# SPDX-License-Identifier: BSD-2-Clause
"""Planted bugs of order: the explorer finds each in a system that has nothing to do with the bug
but its race."""

from __future__ import annotations

import pytest

from mediator.explore.engine import minimal_failure
from mediator.explore.story import replay
from mediator.explore.systems import SCENARIOS
from specs.mutants import expect_killed, load, planted

PLANTED = {
    "order.name-after-walk": "register-twice",
    "order.quota-after-walk": "register-quota",
    "order.dying-too-late": "register-destroy",
    "order.rest-without-a-look": "wait-across",
    "order.rest-without-asking": "wait-across",
    "order.look-before-the-time": "two-waiters-across",
    "order.drained-before-enabled": "notify-enable",
    "order.listening-too-late": "notify-enable",
    "order.stop-after-enable": "stop-against-enable",
    "life.torn-down-under-a-call": "call-destroy",
    "life.dying-guest-is-served": "register-destroy",
    "hold.guest-dies-at-birth": "create-destroy",
    "regd.carrier-not-held": "carrier-unregister",
}
"""Mutant → system."""

OWN = "order."
"""These are planted for the explorer, which is their killer in tests/mutants/test_bug_zoo.py."""

PREEMPTIONS = 1
"""A bug of order shows with few."""

RUNS = 500
"""For each number of preemptions."""


@pytest.mark.parametrize("name", sorted(set(PLANTED.values())))
def test_no_schedule_fails(name: str) -> None:
    least = minimal_failure(SCENARIOS[name], max_preemptions=PREEMPTIONS, max_runs=RUNS)
    assert least is None, "\n".join(replay(SCENARIOS[name], least.schedule).lines())


def test_ten_bugs_of_order_are_planted() -> None:
    assert len(PLANTED) >= 10
    assert {name for name in load() if name.startswith(OWN)} <= set(PLANTED)


@pytest.mark.parametrize("mutant", [name for name in PLANTED if not name.startswith(OWN)])
def test_bugs_that_another_test_kills_are_found_too(mutant: str) -> None:
    expect_killed(load()[mutant], lambda: test_no_schedule_fails(PLANTED[mutant]))


def test_a_found_bug_is_a_story_that_can_be_told_again() -> None:
    system = SCENARIOS["register-twice"]
    with planted(load()["order.name-after-walk"]):
        least = minimal_failure(system)
        assert least is not None
        story = replay(system, least.schedule)
        assert replay(system, least.schedule) == story
    assert story.wrong
    assert {step.name for step in story.steps} == {"vCPU 0", "vCPU 1"}
