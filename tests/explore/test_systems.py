# SPDX-License-Identifier: BSD-2-Clause
"""Systems of which all interleavings are run here; docs/explorer.md has those that take longer."""

from __future__ import annotations

import pytest

from mediator.explore.engine import explore
from mediator.explore.systems import SCENARIOS

ALL = {
    "call-destroy": 2,
    "register-twice": 2,
    "register-quota": 2,
    "notify-enable": 1,
    "two-interrupts": 1,
}
"""System → different ends, at least; those of test_engine.REDUCED are run there."""

BOUNDED = (
    "two-waiters",
    "two-waiters-across",
    "wait-across",
    "wait-across-notified",
    "notify-stop-enable",
    "stop-against-enable",
    "recreate",
    "register-unregister",
    "two-guests",
)
"""Too many for a quick test: here with one preemption at most."""


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_wrong_in_any_interleaving(name: str) -> None:
    found = explore(SCENARIOS[name])
    assert found.complete
    assert found.failures == ()
    assert len(found.outcomes) >= ALL[name], "the race has more than one end"


@pytest.mark.parametrize("name", BOUNDED)
def test_nothing_is_wrong_with_one_preemption(name: str) -> None:
    found = explore(SCENARIOS[name], preemptions=1, max_runs=100)
    assert not found.complete
    assert found.failures == ()
    assert found.runs > 10


def test_no_system_is_forgotten() -> None:
    from tests.explore.test_engine import REDUCED

    assert sorted({*ALL, *BOUNDED, *REDUCED}) == sorted(SCENARIOS)
