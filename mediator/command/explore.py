# SPDX-License-Identifier: BSD-2-Clause
"""``optee-mediator explore``: all interleavings of small systems."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Final

import attrs
import click

from mediator.command.progress import FileProgress
from mediator.explore.engine import Exploration, Reduction, minimal_failure, sample
from mediator.explore.engine import explore as explore_all
from mediator.explore.story import Story, read, written
from mediator.explore.story import replay as tell
from mediator.explore.systems import SCENARIOS, Scenario

EXAMPLES: Final = """
\b
Examples:
  optee-mediator explore --list
  optee-mediator explore resume-destroy register-destroy
  optee-mediator explore --reduction none register-twice
  optee-mediator explore --random --seed 7 --max-runs 1000 wait-across
  optee-mediator explore resume-destroy --replay 000111222

\b
Exit codes: 0 nothing is wrong, 1 a schedule fails, 2 unusable input.
"""

HEAD: Final = (
    f"{'system':22}{'extent':>26}{'schedules':>16}{'runs':>9}{'states':>9}{'steps':>7}{'ends':>6}"
    f"{'failures':>10}{'seconds':>9}"
)
MAX_RANDOM: Final = 1000
"""Random schedules unless ``--max-runs`` says another number."""


@click.command(epilog=EXAMPLES)
@click.argument("systems", nargs=-1, metavar="[SYSTEM]...")
@click.option("--list", "show", is_flag=True, help="List the systems and stop.")
@click.option(
    "--reduction",
    type=click.Choice([item.value for item in Reduction]),
    default=Reduction.STATES.value,
    show_default=True,
    help="states: go on once from each state; none: execute every schedule.",
)
@click.option(
    "--max-runs", type=click.IntRange(1), metavar="N", help="Stop after N runs of a system."
)
@click.option(
    "--preemptions",
    type=click.IntRange(0),
    metavar="N",
    help="Only schedules with at most N preemptions: bounded, not all.",
)
@click.option("--random", "sampled", is_flag=True, help="Random schedules instead: no proof.")
@click.option(
    "--seed", type=int, default=1, show_default=True, help="Seed of the random schedules."
)
@click.option("--replay", metavar="SCHEDULE", help="Tell the story of one schedule of one system.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def explore(
    systems: tuple[str, ...],
    show: bool,
    reduction: str,
    max_runs: int | None,
    preemptions: int | None,
    sampled: bool,
    seed: int,
    replay: str | None,
    as_json: bool,
) -> None:
    """Run all interleavings of small SYSTEMs (default: all systems) under the checkers of I1 to I8.

    A run is decided by its schedule: which actor makes each step. A failure is shown with the
    fewest preemptions, as a story.
    """
    unknown = [name for name in systems if name not in SCENARIOS]
    if unknown:
        raise click.UsageError(f"no system {unknown[0]!r}; --list shows them")
    chosen = [SCENARIOS[name] for name in systems] or list(SCENARIOS.values())
    if show:
        _list(chosen, as_json)
    elif replay is not None:
        _replay(chosen, replay, as_json)
    elif sampled:
        _random(chosen, max_runs or MAX_RANDOM, seed, as_json)
    else:
        _explore(chosen, Reduction(reduction), preemptions, max_runs, as_json)


def _list(chosen: list[Scenario], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({item.name: item.about for item in chosen}, indent=2))
        return
    for item in chosen:
        click.echo(f"{item.name:22}{item.about}")


def _replay(chosen: list[Scenario], schedule: str, as_json: bool) -> None:
    if len(chosen) != 1:
        raise click.UsageError("--replay needs one system")
    try:
        story = tell(chosen[0], read(schedule))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(json.dumps(attrs.asdict(story), indent=2))
    else:
        _tell(story)
    sys.exit(bool(story.wrong))


def _tell(story: Story) -> None:
    for line in story.lines():
        click.echo(line)


def _random(chosen: list[Scenario], runs: int, seed: int, as_json: bool) -> None:
    found: dict[str, Mapping[str, object]] = {}
    for system in chosen:
        failed, first = sample(system, runs, seed)
        found[system.name] = {
            "runs": runs,
            "seed": seed,
            "failed": failed,
            "first": None
            if first is None
            else {"what": first.what, "schedule": written(first.schedule)},
        }
        if not as_json:
            click.echo(f"{system.name:22}{failed} of {runs} random schedules fail (seed {seed})")
    if as_json:
        click.echo(json.dumps({"random": found}, indent=2))
    sys.exit(any(item["failed"] for item in found.values()))


def _explore(
    chosen: list[Scenario],
    reduction: Reduction,
    preemptions: int | None,
    max_runs: int | None,
    as_json: bool,
) -> None:
    rows: list[dict[str, object]] = []
    wrong = False
    if not as_json:
        click.echo(HEAD)
    for system in chosen:
        begun = time.monotonic()
        with FileProgress(system.name, "runs") as progress:
            done = explore_all(
                system,
                reduction,
                preemptions=preemptions,
                max_runs=max_runs,
                progress=progress.update,
            )
        seconds = time.monotonic() - begun
        wrong = wrong or bool(done.failures)
        stories = _stories(system, done)
        rows.append(_as_json(done, seconds, stories))
        if not as_json:
            click.echo(_row(done, seconds))
            for story in stories:
                _tell(story)
    if as_json:
        click.echo(json.dumps({"systems": rows}, indent=2))
    sys.exit(wrong)


def _stories(system: Scenario, done: Exploration) -> list[Story]:
    """The failure with the fewest preemptions, or the first that was found."""
    if not done.failures:
        return []
    least = minimal_failure(system, max_preemptions=3) or done.failures[0]
    return [tell(system, least.schedule)]


def _row(done: Exploration, seconds: float) -> str:
    return (
        f"{done.system:22}{done.extent:>26}{done.schedules:>16,}{done.runs:>9,}{done.states:>9,}"
        f"{done.longest:>7}{len(done.outcomes):>6}{len(done.failures):>10}{seconds:>9.1f}"
    )


def _as_json(done: Exploration, seconds: float, stories: list[Story]) -> dict[str, object]:
    return {
        "system": done.system,
        "reduction": done.reduction.value,
        "extent": done.extent,
        "complete": done.complete,
        "schedules": done.schedules,
        "runs": done.runs,
        "steps": done.steps,
        "states": done.states,
        "longest": done.longest,
        "ends": len(done.outcomes),
        "seconds": round(seconds, 3),
        "failures": [
            {"what": failure.what, "schedule": written(failure.schedule)}
            for failure in done.failures
        ],
        "stories": [attrs.asdict(story) for story in stories],
    }
