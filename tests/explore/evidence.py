# SPDX-License-Identifier: BSD-2-Clause
"""Writes docs/evidence/explorer.md: ``python -m tests.explore.evidence > docs/evidence/explorer.md``."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator

from mediator.explore.engine import Reduction, explore, sample
from mediator.explore.story import written
from mediator.explore.systems import SCENARIOS
from specs.mutants import load, planted
from tests.explore.test_planted import PLANTED, PREEMPTIONS

SAMPLES = 1000
SEED = 1
USUALLY = 0.5
MAX_RUNS = 12_000
"""A minute or two each; a system that needs more is "stopped", and the page says so."""

HEAD = f"""\
# All interleavings

Written by `make explore`; do not edit. {{doc}}`/howto/explore` says what is explored, and how.

*Schedules* counts interleavings, exactly; *runs* are the systems that were started to cover them, each *state* being left
once; *ends* are the different results. The reduction is by states: no schedule is left out that could lead to a state that
was not seen. Seconds are of the process, {platform.python_implementation()} {platform.python_version()}.

## Systems

| system | what races | extent | schedules | runs | states | ends | failures | seconds |
| --- | --- | --- | --: | --: | --: | --: | --: | --: |"""

BUGS = f"""
## Planted bugs of order

Each is found with at most {PREEMPTIONS} preemption, the fewest that show it. *Random* is the share of {SAMPLES} random schedules (seed
{SEED}) that fail, and the last column the chance that as many random schedules as the explorer needed runs find the bug.

| bug | system | found in run | schedule | random | same budget at random |
| --- | --- | --: | --- | --: | --: |"""


def lines() -> Iterator[str]:
    """The page."""
    yield HEAD
    for system in SCENARIOS.values():
        begun = time.process_time()
        found = explore(system, Reduction.STATES, max_runs=MAX_RUNS)
        seconds = time.process_time() - begun
        print(system.name, found.extent, f"{seconds:.0f} s", file=sys.stderr, flush=True)
        yield (
            f"| `{system.name}` | {system.about} | {found.extent} | {found.schedules:,} |"
            f" {found.runs:,} | {found.states:,} | {len(found.outcomes)} | {len(found.failures)} |"
            f" {seconds:.1f} |"
        )
    yield BUGS
    for mutant, name in PLANTED.items():
        yield _bug(mutant, name)


def _bug(mutant: str, name: str) -> str:
    system = SCENARIOS[name]
    runs = 0
    schedule = "not found"
    with planted(load()[mutant]):
        for bound in range(PREEMPTIONS + 1):
            found = explore(system, Reduction.NONE, preemptions=bound, stop_at_failure=True)
            runs += found.runs
            if found.failures:
                schedule = written(found.failures[0].schedule)
                break
        failed, _ = sample(system, SAMPLES, SEED)
    share = failed / SAMPLES
    chance = 1 - (1 - share) ** runs
    usually = "" if chance >= USUALLY else ": usually not found"
    return (
        f"| `{mutant}` | `{name}` | {runs} | `{schedule}` | {share:.1%} | {chance:.0%}{usually} |"
    )


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
