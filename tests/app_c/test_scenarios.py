# SPDX-License-Identifier: BSD-2-Clause
"""The app in C passes the scenarios that its Python twin passes, event by event.

Compared are registers, guest memory that is read and written, pins, what the TEE is told and does, and what
the mediator says of itself (TRACE). All checkers of the invariants look on.
"""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from mediator.command import main
from mediator.command.run import _Sessions
from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.guest import events as guest
from mediator.hypervisor import events as host
from mediator.hypervisor import machine_events
from mediator.hypervisor.accounting import CostTable
from mediator.hypervisor.scheduler import Mode
from mediator.optee import events as optee
from mediator.scenario.reader import builtin_names, builtin_scenario
from mediator.scenario.recorder import Event, Handler
from mediator.scenario.result import Result
from mediator.scenario.run import Run
from secure_world import events as tee
from tests.app_c.build import EXAMPLE
from tests.app_c.twins import TWIN, manifest_of

IN_ORDER = ("default", "pressure")
SAME_INSTANTS = ("hostile",)
"""The order in which a teardown releases is the mediator's own."""
INTERLEAVED = ("interleave",)

FREE_OF_CHARGE = CostTable(app_turn=0, app_copy=0, syscall=0, page_copy=0, page_pin=0)
"""What a mediator does takes no time here: two that do the same in another number of steps differ in
nothing else."""


def kinds() -> dict[str, type]:
    """All kinds of events but those of waits, which the app in C does not keep, and of apps."""
    found: dict[str, type] = {}
    for module in (optee, host, machine_events, tee, guest):
        found |= {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type) and hasattr(value, "_fields")
        }
    return {name: value for name, value in found.items() if name not in ("WaitBegan", "WaitEnded")}


class Everything:
    """A listener that writes down what happens, with its time."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def handlers(self) -> dict[type, Handler]:
        return dict.fromkeys(kinds().values(), self._note)

    def _note(self, time: int, event: Event) -> None:
        if isinstance(event, optee.Finding):
            # In other words.
            event = event[:1]
        self._told.append(f"{time} {event}")


def play(
    name: str, seed: int, deployment: Deployment, mode: Mode | None
) -> tuple[Result, list[str]]:
    plan = builtin_scenario(name)
    machine = attrs.evolve(plan.machine, costs=FREE_OF_CHARGE, mode=mode or plan.machine.mode)
    plan = attrs.evolve(plan, machine=machine, mediator=TWIN)
    told: list[str] = []

    listeners = [Everything(told)]
    run = Run(
        plan,
        seed=seed,
        deployment=deployment,
        load_session=_Sessions(""),
        listeners=listeners,
    )
    try:
        result = run.execute()
        app = run.platform.tee
        if isinstance(app, El0App):
            assert app.deaths == 0
            assert app.total_usage().refused == 0
        return result, told
    finally:
        run.close()


def test_the_scenarios_are_those_of_the_twin() -> None:
    assert {*IN_ORDER, *SAME_INSTANTS, *INTERLEAVED} == set(builtin_names())


@pytest.mark.parametrize("name", [*IN_ORDER, *SAME_INSTANTS])
def test_the_same_scenarios_as_its_twin(name: str, plain_app: Path) -> None:
    """Everything that happens, at the same time and in the same order."""
    in_c = Deployment(EL0_APP, manifest=manifest_of(plain_app), require_isolation=True)
    expected, twins = play(name, 7, Deployment(), None)
    found, told = play(name, 7, in_c, None)
    if name in SAME_INSTANTS:
        told.sort()
        twins.sort()
    for number, (mine, other) in enumerate(zip(told, twins, strict=True)):
        assert mine == other, number
    assert found.problems == expected.problems
    assert (found.totals.calls, found.totals.traps) == (
        expected.totals.calls,
        expected.totals.traps,
    )
    assert [invariant.violations for invariant in found.invariants] == [()] * len(found.invariants)


@pytest.mark.parametrize("name", [*INTERLEAVED, "default"])
def test_scenarios_whose_every_await_is_a_switch_point(name: str, plain_app: Path) -> None:
    """This app serves one entry after the other, its twin many at a time: the same outcomes, not moments."""
    in_c = Deployment(EL0_APP, manifest=manifest_of(plain_app), require_isolation=True)
    expected, _ = play(name, 7, Deployment(), Mode.INTERLEAVE)
    found, _ = play(name, 7, in_c, Mode.INTERLEAVE)
    assert outcomes(found) == outcomes(expected)
    assert [invariant.violations for invariant in found.invariants] == [()] * len(found.invariants)


def outcomes(result: Result) -> list[object]:
    return [
        (guest.name, guest.outcome, [(load.name, load.state) for load in guest.workloads])
        for guest in result.guests
    ]


def test_it_runs_from_the_command_line(plain_app: Path, tmp_path: Path) -> None:
    """As the page says, with all its limits shown as any other's."""
    manifest = tmp_path / "mini_mediator.toml"
    text = (EXAMPLE / "manifest.toml").read_text("utf-8")
    manifest.write_text(text.replace('"mini_mediator"', f'"{plain_app}"'))
    options = ("--deployment", "el0-app", "--app", str(manifest), "--json", "--seed", "3")
    result = CliRunner().invoke(main, ["run", *options, "builtin:default"])
    report = json.loads(result.stdout)
    assert [app["layers"]["seccomp"] for app in report["apps"]] == [True]
    assert report["invariants"][0]["looked_at"] > 0
    assert [invariant["violations"] for invariant in report["invariants"]] == [[]] * 8
    assert report["totals"]["app"]["turns"] > 100
