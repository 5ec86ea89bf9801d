# SPDX-License-Identifier: BSD-2-Clause
"""I10: the mediator in a process of its own does what it does in the hypervisor, bit by bit."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from mediator.command.run import _Sessions
from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.pool import AppPool
from mediator.hypervisor.accounting import CostTable
from mediator.scenario.reader import builtin_names, builtin_scenario
from mediator.scenario.result import Result
from mediator.scenario.run import Run
from specs.replay.mediated import replay_as_mediator
from specs.replay.reader import load_trace
from specs.target import Setup, Target, World
from specs.vectors.files import Options, run_file
from specs.vectors.model_target import ModelTarget
from tests.vectors.golden import BEHAVIOUR, DATA

TRACES = DATA / "traces"
FREE_OF_CHARGE = CostTable(app_turn=0, app_copy=0)
"""Time is part of the input: the boundary must not take any, or everything comes later."""


class Targets:
    """Makes targets with an app and remembers the last, to end it."""

    def __init__(self, pool: AppPool, *, suspending: bool = False) -> None:
        self._home = Deployment(EL0_APP, pool=pool)
        self._suspending = suspending
        self.last: ModelTarget | None = None

    def __call__(self, setup: Setup, world: World) -> Target:
        self.close()
        self.last = ModelTarget(setup, world, deployment=self._home, suspending=self._suspending)
        return self.last

    def close(self) -> None:
        if self.last is not None:
            self.last.close()


@pytest.mark.parametrize(("preset", "suspending"), [("reference", False), ("default", True)])
def test_every_golden_vector_ends_alike(preset: str, suspending: bool) -> None:
    expected = run_file(Path(BEHAVIOUR), Options(ModelTarget, preset))
    with AppPool() as pool:
        targets = Targets(pool, suspending=suspending)
        found = run_file(Path(BEHAVIOUR), Options(targets, preset))
        targets.close()
        assert found == expected
        assert len(found.cases) == 302
        # One process served them all: it was told to forget each time, and none of them killed it.
        assert pool.starts == 1


def play(name: str, seed: int, deployment: Deployment) -> Result:
    plan = builtin_scenario(name)
    plan = attrs.evolve(plan, machine=attrs.evolve(plan.machine, costs=FREE_OF_CHARGE))
    run = Run(plan, seed=seed, deployment=deployment, load_session=_Sessions(""))
    try:
        return run.execute()
    finally:
        run.close()


@pytest.mark.parametrize("name", builtin_names())
def test_every_scenario_ends_alike(name: str) -> None:
    """The digest covers all registers, everything written, all pins, and their order and time."""
    expected = play(name, 5, Deployment())
    found = play(name, 5, Deployment(EL0_APP, require_isolation=True))
    assert found.ok
    assert found.digest == expected.digest


@pytest.mark.parametrize("path", sorted(TRACES.glob("linux*")), ids=lambda path: path.name)
def test_every_replay_ends_alike(path: Path) -> None:
    recorded = load_trace(path)
    expected = replay_as_mediator(recorded)
    found = replay_as_mediator(recorded, deployment=Deployment(EL0_APP, require_isolation=True))
    assert found == expected
    assert found.ok
    assert found.transparent > 0
