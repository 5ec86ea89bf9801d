# SPDX-License-Identifier: BSD-2-Clause
"""Every checker fires when a bug is planted, and is silent without one."""

from __future__ import annotations

import pytest

from mediator.checkers.verdict import Violation
from mediator.checkers.watch import InvariantViolated
from specs.mutants import load, planted
from tests.checkers import worlds
from tests.checkers.worlds import World, watched

FIRES = [
    ("I1", "result.whole-parameters-back", worlds.honest),
    ("I2", "size.offset-forgotten", worlds.honest),
    ("I2", "list.of-the-guest", worlds.honest),
    ("I2", "call.shadow-words-swapped", worlds.classic),
    ("I2", "rpc.guest-page-for-the-tee", worlds.classic),
    ("I2", "rpc.alloc-page-words-swapped", worlds.classic),
    ("I3", "life.message-buffers-forgotten", worlds.destroyed_with_a_full_cache),
    ("I3", "limit.quota-of-failures", worlds.lists_with_a_bad_page),
    ("I3", "limit.quota-of-failures", worlds.only_bad_lists),
    ("I4", "call.header-first", worlds.classic),
    ("I4", "call.slot-read-again", worlds.honest),
    ("I4", "call.guest-copy-decides-results", worlds.classic),
    ("I5", "life.client-id-of-guest", worlds.honest),
    ("I5", "call.client-id-of-the-guest", worlds.another_client_id),
    ("I5", "offer.unknown-is-forwarded", worlds.created_by_a_guest),
    ("I6", "limit.buffers-off-by-one", worlds.too_many_buffers),
    ("I6", "limit.calls-off-by-one", worlds.too_many_calls),
    ("I7", "resume.requests-for-ever", worlds.request_that_cannot_be_written),
    ("I8", "vcpu.pending-without-a-wake", worlds.sleepers),
    ("I8", "vcpu.sleeps-without-a-look", worlds.sleepers),
    ("I8", "guest.send-before-wait-lost", worlds.contended),
]
"""Invariant, the mutant that breaks it, and a run in which that shows."""

SEEDS = 24
"""Orders of events to try: a lost wake-up needs a race."""

WORLDS = list(dict.fromkeys(world for _, _, world in FIRES))


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.__name__)
def test_silent_on_sound_runs(world: World) -> None:
    for seed in range(3):
        made = world(seed)
        assert made.watch is not None
        assert made.watch.events > 10
        assert made.watch.finish() == ()


@pytest.mark.parametrize(("invariant", "mutant", "world"), FIRES)
def test_fires_when_planted(invariant: str, mutant: str, world: World) -> None:
    bug = load()[mutant]
    assert invariant in bug.breaks, "the zoo knows what this mutant breaks"
    found: list[Violation] = []
    with planted(bug):
        for seed in range(SEEDS):
            found += watched(world, seed)
            if invariant in {violation.invariant for violation in found}:
                return
    raise AssertionError(f"{invariant} is silent; others say {found[:3]}")


def test_every_invariant_of_a_single_deployment_fires() -> None:
    assert {invariant for invariant, _, _ in FIRES} == {f"I{number}" for number in range(1, 9)}


def test_a_violation_ends_a_run_that_is_checked() -> None:
    with planted(load()["call.header-first"]):
        made = worlds.classic(0)
        with pytest.raises(InvariantViolated, match=r"I4 guest .: bytes at .* are read twice"):
            made.check()
