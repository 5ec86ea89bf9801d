# SPDX-License-Identifier: BSD-2-Clause
"""A sample of the containment campaign, single cases, and what it says of itself."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from fuzz.containment.__main__ import main
from fuzz.containment.case import Case, run_case, variant_of
from fuzz.containment.faults import FAULTS, changed, messages
from fuzz.containment.plan import Recorded, all_cases, record
from fuzz.containment.processes import process_cases, run_process_case
from fuzz.containment.report import page
from fuzz.containment.runner import Tally, run_cases
from fuzz.containment.system import BRIEF, VARIANTS
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER

SAMPLE = 20
"""Cases in each part of the sample."""


@cache
def session(machine: str) -> Recorded:
    """A session without faults."""
    return record([variant_of(machine)])[machine]


@cache
def brief() -> dict[str, Recorded]:
    return record(BRIEF)


def problems(machine: str, *faults: tuple[int, str], seed: int = 0) -> tuple[str, ...]:
    return run_case(Case(machine, faults, seed), session(machine).lines).problems


@pytest.mark.parametrize("part", range(8))
def test_a_sample_on_machines_that_do_little(part: int) -> None:
    cases = all_cases(brief(), 1)[part * SAMPLE : (part + 1) * SAMPLE]
    tally = run_cases(cases, brief(), 1)
    assert not tally.failures, tally.failures[0]
    assert tally.cases == SAMPLE
    assert tally.left_open is not None
    assert tally.left_open <= 0


@pytest.mark.parametrize("machine", [variant.name for variant in VARIANTS])
def test_a_sample_on_each_machine(machine: str) -> None:
    found = {machine: session(machine)}
    tally = run_cases(all_cases(found, 2)[:3], found, 2)
    assert not tally.failures, tally.failures[0]


def test_a_case(machine: str, fault: str, entry: str, call: str, nth: int) -> None:
    """``fault`` at the ``nth`` turn of this kind."""
    turns = [turn for turn in session(machine).turns if (turn.entry, turn.call) == (entry, call)]
    assert problems(machine, (turns[nth].number, fault)) == ()


CASES = [
    ("one app", "death after", "guest created", "SMC", 1),
    ("one app", "death after", "guest destroyed", "SMC", 0),
    ("one app", "death before", "handle interrupt", "SMC", 2),
    ("one app", "death after", "handle smc", "SMC", 150),
    ("one app; nested entries", "wrong entry", "handle smc", "SMC", 90),
    ("an app per guest; interleaved", "panic", "handle smc", "SMC", 140),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Single cases, which are killers of mutants as well, come with arguments."""
    if metafunc.function is test_a_case:
        metafunc.parametrize(("machine", "fault", "entry", "call", "nth"), CASES)


@pytest.mark.parametrize("between", [1, 2, 3, 5, 150, 400])
def test_a_second_death_soon_after_the_first(between: int) -> None:
    assert problems("one app", (500, "death after"), (500 + between, "death before")) == ()


def test_deaths_that_make_the_hypervisor_give_up() -> None:
    turns = tuple([(turn, "panic") for turn in range(500, 530)])
    case = Case("one app; brief", tuple((turn - 400, name) for turn, name in turns))
    result = run_case(case, session("one app; brief").lines)
    assert result.problems == ()
    assert result.kinds["event: AppGivenUp"] == 1


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.fatal])
def test_what_is_called_fatal_ends_the_app(name: str) -> None:
    result = run_case(Case("one app; brief", ((100, name),)), session("one app; brief").lines)
    assert result.problems == ()
    assert result.kinds["event: AppDied"] == 1


def test_the_campaign_covers_every_fault_and_every_state() -> None:
    found = {name: session(name) for name in ("one app", "one app; interleaved")}
    cases = all_cases(found, 3)
    assert {name for case in cases for _, name in case.faults} >= set(FAULTS)
    for recorded in found.values():
        alone = {
            case.faults[0][0]
            for case in cases
            if case.variant == recorded.variant.name and len(case.faults) == 1
        }
        assert alone >= {turn.number for turn in recorded.turns}
    suspended = {
        kind for recorded in found.values() for turn in recorded.turns for kind in turn.suspended
    }
    assert suspended == {"ALLOC", "CMD", "NOTIFICATION", "foreign interrupt", "held wait"}


def test_real_processes() -> None:
    cases = process_cases([variant_of("one app; brief")], 8, 2)
    for case in (cases[0], cases[6], cases[7]):
        moved = Case(case.variant, ((20, case.faults[0][1]),), 2)
        assert run_process_case(moved, session("one app; brief").lines).problems == ()


def test_the_judge_notices_a_machine_that_does_something_else() -> None:
    lines = {**session("one app; brief").lines, "control": ((("reversed", b""),),)}
    result = run_case(Case("one app; brief", ((100, "death after"),)), lines)
    assert any("results of the control domain" in problem for problem in result.problems)


def test_a_fault_that_never_strikes_is_a_problem() -> None:
    assert problems("one app; brief", (100_000, "panic")) != ()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, text = tmp_path / "result.json", tmp_path / "page.md"
    assert main(["--cases", "2", "--json", str(found), "--markdown", str(text)]) == 0
    result = json.loads(found.read_text())
    assert (result["cases"], result["failures"]) == (2, [])
    assert "2 cases of seed 1" in capsys.readouterr().out
    assert text.read_text().startswith("# Containment: the app fails in 2 cases")
    assert main(["--case", "one app; brief:100=panic:0"]) == 0
    assert "fault: panic" in capsys.readouterr().out
    assert main(["--case", "one app; brief:100000=panic:0"]) == 1
    for wrong in ("one app:1=nothing:0", "no app:1=panic:0", "one app"):
        assert main(["--case", wrong]) == 2
    assert main(["--workers", "0"]) == 2


def test_the_page_has_cases_with_problems() -> None:
    tally = Tally(1)
    case = Case("one app; brief", ((100_000, "panic"),))
    tally.add(run_case(case, session("one app; brief").lines))
    assert f"- `{case}`: " in page(tally, 10, "command", "commit")


def test_messages_can_be_changed() -> None:
    one = HEADER.pack(abi.SYSCALL, 5, 1, 7, 3, 0, *range(8), 0) + b"abc"
    two = changed(one, {"number": 6, "flags": 0, "a0": 9, "status": -1}, b"longer")
    assert messages(one + two) == [one, two]
    assert HEADER.unpack_from(two) == (abi.SYSCALL, 6, 0, 7, 6, -1, 9, *range(1, 8), 0)
