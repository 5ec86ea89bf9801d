# SPDX-License-Identifier: BSD-2-Clause
"""The simulated guest driver makes the calls that the real one makes; every difference has a reason.

The real side is recorded (``tests/data/live``), so no emulator is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import attrs
import pytest

from mediator.guest.profile import LINUX_6_1, LINUX_6_12, Profile
from mediator.live.comparison.__main__ import main
from mediator.live.comparison.compare import Comparison, ComparisonError, compare
from mediator.live.comparison.page import page
from mediator.live.comparison.reasons import REASONS
from mediator.live.comparison.report import compare_file, profile_of, simulation_of, text
from mediator.live.comparison.simulated import simulate
from mediator.live.comparison.stream import Operation, Stream
from mediator.live.comparison.workload import Placement
from specs.replay.reader import Trace, load_trace

FOLDER = Path(__file__).parents[1] / "data" / "live"
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "driver-comparison.md"
WORKLOADS = sorted(path.name for path in FOLDER.glob("*cpu.jsonl.gz"))
EDGES = sorted(path.name for path in FOLDER.glob("*edges.jsonl.gz"))
ONE = "linux612-rpcarg-1cpu.jsonl.gz"

WITHOUT_DIFFERENCES = {"addresses", "left-over values"}
"""Reasons for what is never compared as numbers, so no difference has them."""


@cache
def compared(name: str) -> Comparison:
    return compare_file(FOLDER / name)


@cache
def recorded(name: str) -> Trace:
    return load_trace(FOLDER / name)


def simulated(name: str, profile: Profile | None = None) -> Stream:
    trace = recorded(name)
    what = simulation_of(trace)
    if profile is not None:
        what = attrs.evolve(what, profile=profile)
    return Stream(simulate(what, Placement(Stream(trace.events).facts.offsets)))


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_difference_has_a_reason(name: str) -> None:
    comparison = compared(name)
    assert comparison.findings == (), text(comparison)
    assert comparison.real > 500
    assert comparison.paired >= 0.99 * comparison.real
    assert comparison.equal >= 0.97 * comparison.paired
    assert comparison.lines > 5000


@pytest.mark.parametrize("name", EDGES)
def test_every_difference_in_seldom_used_calls_has_a_reason(name: str) -> None:
    comparison = compared(name)
    assert comparison.findings == (), text(comparison)
    assert comparison.real > 140
    assert comparison.paired >= comparison.real - 5
    assert comparison.equal >= 0.95 * comparison.paired


def test_two_kernels_in_both_styles_are_compared() -> None:
    assert (len(WORKLOADS), len(EDGES)) == (8, 4)


def test_every_reason_is_used() -> None:
    used = {reason for name in WORKLOADS for reason in compared(name).explained}
    assert used == {reason.name for reason in REASONS} - WITHOUT_DIFFERENCES


@pytest.mark.parametrize(
    ("name", "profile", "classic", "vcpus"),
    [
        ("linux61-classic-2cpu.jsonl.gz", LINUX_6_1, True, 2),
        ("linux61-rpcarg-1cpu.jsonl.gz", LINUX_6_1, False, 1),
        ("linux612-classic-1cpu.jsonl.gz", LINUX_6_12, True, 1),
        ("linux612-rpcarg-2cpu.jsonl.gz", LINUX_6_12, False, 2),
    ],
)
def test_a_recording_tells_what_to_simulate(
    name: str, profile: Profile, classic: bool, vcpus: int
) -> None:
    what = simulation_of(recorded(name))
    assert profile_of(recorded(name)) is profile
    assert (what.profile, what.classic, what.vcpus) == (profile, classic, vcpus)
    assert what.storage


def test_the_other_profile_is_found_out() -> None:
    """What the two kernels do differently is seen, so equality means something."""
    real = Stream(recorded(ONE).events)
    comparison = compare(ONE, real, simulated(ONE, LINUX_6_1))
    found = {difference.what for difference in comparison.findings}
    assert {"GET_THREAD_COUNT", "places of cookies"} <= found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [*lines[:1], lines[1].replace("0x0", "0x8", 1), *lines[2:]], "a3 to a6"),
        (lambda lines: [*lines[:2], lines[2].replace("func 0", "func 7"), *lines[3:]], "func 7"),
        (lambda lines: lines[:-1], "nothing"),
    ],
)
def test_a_changed_operation_is_a_finding(
    change: Callable[[list[str]], list[str]], told: str
) -> None:
    real = Stream(recorded(ONE).events)
    ours = simulated(ONE)
    operations = list(ours.operations)
    index = next(n for n, o in enumerate(operations) if o.head.endswith("INVOKE_COMMAND"))
    chosen: Operation = operations[index]
    operations[index] = attrs.evolve(chosen, lines=tuple(change(list(chosen.lines))))
    ours.operations = tuple(operations)
    comparison = compare(ONE, real, ours)
    assert told in text(comparison)
    assert comparison.findings


def test_a_lost_call_of_a_worker_is_a_finding() -> None:
    """Also where the order is free."""
    real = Stream(recorded(ONE).events)
    ours = simulated(ONE)
    operations = list(ours.operations)
    worker = [n for n, o in enumerate(operations) if any("0xc8" in line for line in o.lines)][-1]
    del operations[worker]
    ours.operations = tuple(operations)
    (finding,) = compare(ONE, real, ours).findings
    assert finding.simulated == "no such call"


def test_another_recording_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    values = FOLDER / "linux61-rpcarg-values.jsonl.gz"
    with pytest.raises(ComparisonError, match="no call is cancelled"):
        compare_file(values)
    assert main([str(values)]) == 2
    assert main(["/nonexistent"]) == 2
    assert main([]) == 2
    assert "no call is cancelled" in capsys.readouterr().err


def test_the_page_is_current() -> None:
    """Its figures are those of the day it was made; its words are those of the code."""
    made = page([compared(name) for name in (*WORKLOADS, *EDGES)]).splitlines()
    kept = PAGE.read_text("utf-8").splitlines()
    figures = [line for line in kept if line.startswith("| `linux")]
    assert [line for line in made if not line.startswith("| `linux")] == [
        line for line in kept if line not in figures
    ], "make it anew: its second line says how"
    assert sorted(line.split("`")[1] for line in figures) == sorted(
        name.removesuffix(".jsonl.gz") for name in (*WORKLOADS, *EDGES)
    )
    assert all(line.endswith("| 0 |") for line in figures)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FOLDER / ONE)]) == 0
    out = capsys.readouterr().out
    assert "0 without a reason" in out
    assert "explained: scheduling" in out
