# SPDX-License-Identifier: BSD-2-Clause
"""``python -m fuzz.containment``: run the campaign, a sample of it, or one of its cases."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from time import monotonic
from typing import Final

from fuzz.containment.case import Case, run_case, variant_of
from fuzz.containment.faults import FAULTS
from fuzz.containment.plan import all_cases, record
from fuzz.containment.processes import DEEDS, is_process, process_cases, run_process_case
from fuzz.containment.report import page
from fuzz.containment.runner import Tally, run_cases
from fuzz.containment.system import BRIEF, VARIANTS

_TELL: Final = 10.0
"""Seconds between two lines of progress."""


def _arguments() -> ArgumentParser:
    parser = ArgumentParser("python -m fuzz.containment", description=__doc__)
    parser.add_argument("--cases", type=int, help="how many, in the order of the seed (all)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the campaign (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--processes", type=int, default=0, help="cases with real processes (0)")
    parser.add_argument(
        "--brief",
        action="store_true",
        help="all cases of machines that do little before all others",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result, - for stdout")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the result as a page")
    parser.add_argument("--commit", default="", help="what the page calls the commit")
    parser.add_argument(
        "--case",
        metavar="MACHINE:TURN=FAULT,...:SEED",
        help="run one case, and show what came of it",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 all is well, 1 problems, 2 wrong use."""
    options = _arguments().parse_args(arguments)
    if options.case is not None:
        return _one(options.case)
    wrong = options.cases is not None and options.cases < 0
    if wrong or options.workers < 1 or options.processes < 0:
        print("--workers is at least 1, the others at least 0", file=sys.stderr)
        return 2
    sessions = record()
    whole = all_cases(sessions, options.seed)
    cases = process_cases(VARIANTS, options.processes, options.seed) + whole[: options.cases]
    if options.brief:
        little = record(BRIEF)
        cases = all_cases(little, options.seed) + cases
        sessions |= little
    last = monotonic()
    shown = 0

    def progress(tally: Tally) -> None:
        nonlocal last, shown
        for failure in tally.failures[shown:]:
            print(f"{failure.case}", file=sys.stderr)
            for problem in failure.problems:
                print(f"  {problem}", file=sys.stderr)
        shown = len(tally.failures)
        if monotonic() - last >= _TELL:
            last = monotonic()
            rate = tally.cases / max(tally.seconds, 0.001)
            print(
                f"{tally.cases:,} of {len(cases):,} cases, {rate:.1f}/s, "
                f"{len(tally.failures)} with problems",
                file=sys.stderr,
                flush=True,
            )

    tally = run_cases(cases, sessions, options.seed, options.workers, progress)
    possible = len(cases) + len(whole[len(whole[: options.cases]) :])
    return _end(tally, possible, options)


def _end(tally: Tally, possible: int, options: Namespace) -> int:
    summary = (
        f"{tally.cases:,} cases of seed {tally.seed}, {tally.seconds:,.0f} s, checksum "
        f"{tally.checksum:#010x}: {len(tally.failures)} with problems"
    )
    if tally.left_open is not None:
        summary += f", {tally.left_open} descriptors left open"
    if options.json is not None and str(options.json) == "-":
        print(json.dumps(tally.plain(), indent=1))
        print(summary, file=sys.stderr)
    else:
        if options.json is not None:
            options.json.write_text(json.dumps(tally.plain(), indent=1) + "\n")
        print(summary)
    if options.markdown is not None:
        command = f"python -m fuzz.containment --seed {tally.seed} --workers {options.workers}"
        if options.cases is not None:
            command += f" --cases {options.cases}"
        if options.brief:
            command += " --brief"
        if options.processes:
            command += f" --processes {options.processes}"
        options.markdown.write_text(page(tally, possible, command, options.commit))
    return 1 if tally.failures or (tally.left_open or 0) > 0 else 0


def _one(text: str) -> int:
    try:
        case = _parsed(text)
        variant = variant_of(case.variant)
    except (ValueError, KeyError) as error:
        print(f"--case {text!r}: {error}", file=sys.stderr)
        return 2
    lines = record((variant,))[variant.name].lines
    result = run_process_case(case, lines) if is_process(case) else run_case(case, lines)
    for kind, count in sorted(result.kinds.items()):
        print(f"{count:6} {kind}")
    for problem in result.problems:
        print(f"PROBLEM {problem}")
    return 1 if result.problems else 0


def _parsed(text: str) -> Case:
    machine, _, rest = text.partition(":")
    told, _, seed = rest.rpartition(":")
    faults: list[tuple[int, str]] = []
    for part in told.split(","):
        turn, _, name = part.partition("=")
        if name not in FAULTS and name not in DEEDS:
            raise ValueError(f"{name!r} is no fault: {', '.join([*FAULTS, *DEEDS])}")
        faults.append((int(turn), name))
    return Case(machine, tuple(faults), int(seed))


if __name__ == "__main__":
    sys.exit(main())
