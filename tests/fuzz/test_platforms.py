# SPDX-License-Identifier: BSD-2-Clause
"""Whole platforms under faults: all invariants hold, and who is not concerned does not notice."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings

from fuzz.platform import (
    DENIABLE,
    STAGE2_KINDS,
    CaseFailed,
    PlatformCase,
    PlatformFaults,
    Stage2Change,
    check_case,
    run_case,
)
from fuzz.strategies.scenarios import RAM, STEPS, TIME, platform_cases, platform_faults
from mediator.hypervisor.stage2 import ABSENT
from mediator.scenario import model
from mediator.scenario.model import EventPlan, GuestPlan, Limits, Scenario, Trigger, WorkloadPlan
from specs.mutants import load, planted
from tests.fuzz.support import drawn

CONTENTION = WorkloadPlan(
    run="contention",
    instances=2,
    rounds=3,
    values={"lock": 0, "steps": 3, "sleep": 50_000, "shared": False},
)


def scenario(*guests: GuestPlan, events: tuple[EventPlan, ...] = (), seed: int = 1) -> Scenario:
    """A run of ``guests`` without expectations."""
    return Scenario(
        name="case",
        path="",
        seed=seed,
        guests=guests,
        events=events,
        limits=Limits(steps=STEPS, time=TIME),
    )


@settings(max_examples=25)
@given(platform_cases())
def test_invariants_hold_under_faults(case: PlatformCase) -> None:
    """Guests that die, pages and frames that are denied, stage 2 that changes, interrupts that go."""
    check_case(case)


def test_every_kind_of_fault_is_drawn() -> None:
    faults = drawn(platform_faults(3), 200)
    for name in attrs.fields_dict(PlatformFaults):
        assert any(getattr(fault, name) for fault in faults), name
    assert {call for fault in faults for call, _ in fault.deny} == set(DENIABLE)
    kinds = {change.kind for fault in faults for change in fault.changes}
    assert kinds == set(STAGE2_KINDS[1:]), "the first is what a page is anyway"
    cases = drawn(platform_cases(), 60)
    events = {event.do for case in cases for event in case.scenario.events}
    assert {model.DESTROY, model.BALLOON, model.DENY_MEMORY} <= events
    assert any(case.uninvolved() for case in cases)


def test_a_call_that_its_guest_leaves_behind_is_no_lost_wake_up() -> None:
    """The driver faults on its RPC page, which stage 2 takes away while it has a WAIT in it (I8)."""
    guest = GuestPlan(
        name="dying", ram=RAM, style=model.CLASSIC, workloads=(CONTENTION,), findings=None
    )
    left = 0
    for time in range(160_000, 170_000, 1000):
        change = Stage2Change(time, 0, 5, ABSENT)
        case = PlatformCase(scenario=scenario(guest), faults=PlatformFaults(changes=(change,)))
        check_case(case)
        left += any(problem.where == "invariant I8" for problem in run_case(case).problems)
    assert left, "the wait is there, and is excused"


def test_a_violation_and_a_guest_that_notices_are_problems() -> None:
    guest = GuestPlan(name="alone", vcpus=1, ram=RAM, workloads=(WorkloadPlan(run="values"),))
    case = PlatformCase(scenario=scenario(guest))
    assert not check_case(case).problems
    with planted(load()["life.client-id-of-guest"]), pytest.raises(CaseFailed) as caught:
        check_case(case)
    assert "invariant I5" in {problem.where for problem in caught.value.problems}


def test_a_guest_that_dies_is_involved_and_its_neighbour_is_not() -> None:
    plans = [
        GuestPlan(name=name, vcpus=1, ram=RAM, workloads=(CONTENTION,)) for name in ("one", "two")
    ]
    end = EventPlan(
        do=model.DESTROY, trigger=Trigger(kind=model.CALL, number=3, guest="one"), guest="one"
    )
    case = PlatformCase(scenario=scenario(*plans, events=(end,)))
    assert case.uninvolved() == ("two",)
    check_case(case)
    assert {problem.where for problem in run_case(case).problems} <= {"one"}
