# SPDX-License-Identifier: BSD-2-Clause
"""Campaigns: what occurs in a small one, the same again from its number, and what it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fuzz.campaign.__main__ import main
from fuzz.campaign.coverage import IMPOSSIBLE, REQUIRED
from fuzz.campaign.plan import STRIKES, draw_plan, system_seed
from fuzz.campaign.report import page
from fuzz.campaign.runner import (
    CampaignError,
    State,
    load_state,
    missing,
    proportional_minimum,
    run_campaign,
    save_state,
    unexpected,
)
from fuzz.campaign.system import run_system
from mediator.hypervisor.scheduler import Mode
from specs.mutants import load, planted

SMALL = 20_000
RARE = ("fault: ", "result: ", "life: guest in quarantine", "capability: ")
"""Kinds that need a certain fault or setting: a campaign of this size may miss some of them."""


@pytest.fixture(scope="module")
def small() -> State:
    """One small campaign for several tests."""
    state = State(seed=1)
    run_campaign(state, SMALL)
    return state


def test_a_small_campaign_finds_nothing_and_meets_nearly_everything(small: State) -> None:
    assert small.smcs >= SMALL
    assert not small.failures
    assert not unexpected(small.kinds)
    rare = missing(small.kinds, 1)
    assert not [kind for kind in rare if not kind.startswith(RARE)]
    assert len(rare) <= len(REQUIRED) // 10


def test_every_kind_is_required_once_or_cannot_occur() -> None:
    assert len(set(REQUIRED)) == len(REQUIRED)
    assert not set(REQUIRED) & set(IMPOSSIBLE)
    assert all(reason for reason in IMPOSSIBLE.values())


def test_systems_differ_in_everything() -> None:
    plans = [draw_plan(system_seed(1, index)) for index in range(200)]
    assert {plan.machine.mode for plan in plans} == set(Mode)
    assert {strike.kind for plan in plans for strike in plan.strikes} == set(STRIKES)
    assert {plan.secure_world.threads for plan in plans} >= {1, 2, 3, 4, 8}
    assert any(plan.linux for plan in plans)
    assert any(plan.lie for plan in plans)
    assert any(plan.deny for plan in plans)
    assert any(plan.lost_virqs for plan in plans)
    assert any(plan.preempted for plan in plans)


def test_a_number_is_a_system_event_by_event() -> None:
    seed = system_seed(1, 3)
    runs: list[list[tuple[object, ...]]] = [[], []]
    results = [run_system(seed, [run.append]) for run in runs]
    assert runs[0] == runs[1]
    assert results[0] == results[1]
    assert results[0].smcs > 100


def test_workers_and_interruptions_change_nothing(tmp_path: Path) -> None:
    whole = State(seed=2)
    run_campaign(whole, 4_000, workers=2)
    part = State(seed=2)
    run_campaign(part, 1_500)
    save_state(tmp_path / "state", part)
    again = load_state(tmp_path / "state", 2)
    assert again.plain() == part.plain()
    run_campaign(again, 4_000)
    again.seconds = whole.seconds
    assert again.plain() == whole.plain()


@pytest.mark.parametrize(
    "mutant", ["life.client-id-of-guest", "size.rounded-down", "rpc.alloc-page-words-swapped"]
)
def test_a_bug_is_found(mutant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with planted(load()[mutant]):
        assert main(["--smcs", "8000", "--seed", "1", "--minimum", "0"]) == 1
    out = capsys.readouterr().out
    assert "python -m fuzz.campaign --system " in out


def test_one_system_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    seed = str(system_seed(1, 3))
    assert main(["--system", seed]) == 0
    told = capsys.readouterr().out
    assert main(["--system", seed, "--events"]) == 0
    shown = capsys.readouterr().out
    assert told.splitlines()[-1] == shown.splitlines()[-1]
    assert "TrapEnter(" in shown


def test_what_is_too_rare_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    arguments = ["--smcs", "500", "--seed", "1", "--json", str(result)]
    assert main([*arguments, "--minimum", "1000"]) == 1
    assert "too rare: function: CALLS_COUNT" in capsys.readouterr().out
    data = json.loads(result.read_text())
    assert data["too rare"]
    assert data["smcs"] >= 500


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    save_state(state, State(seed=1))
    assert main(["--resume", str(state), "--seed", "2"]) == 2
    assert "is of seed 1" in capsys.readouterr().err
    state.write_text('{"format": "something else"}')
    with pytest.raises(CampaignError):
        load_state(state, 1)
    assert main(["--smcs", "0"]) == 2


def test_the_minimum_is_in_proportion() -> None:
    assert proportional_minimum(10_000_000) == 1_000
    assert proportional_minimum(20_000) == 2
    assert proportional_minimum(1) == 1


def test_the_page_has_every_kind(small: State) -> None:
    text = page(small, 2, "a commit")
    for kind in REQUIRED:
        assert f"| {kind.partition(': ')[2]} |" in text
    assert "## What cannot occur" in text
    assert "## Systems with problems" not in text
