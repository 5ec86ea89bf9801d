# SPDX-License-Identifier: BSD-2-Clause
"""``python -m fuzz.campaign``: run a campaign, take one up again, or run one of its systems."""

from __future__ import annotations

import hashlib
import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from time import monotonic
from typing import Final

from fuzz.campaign.plan import draw_plan
from fuzz.campaign.report import page
from fuzz.campaign.runner import (
    GOAL,
    CampaignError,
    State,
    load_state,
    missing,
    proportional_minimum,
    run_campaign,
    save_state,
    unexpected,
)
from fuzz.campaign.system import System

_TELL: Final = 10.0
"""Seconds between two lines of progress and two saved states."""


def _arguments() -> ArgumentParser:
    parser = ArgumentParser("python -m fuzz.campaign", description=__doc__)
    parser.add_argument("--smcs", type=int, default=GOAL, help="SMCs to simulate (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the campaign (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument(
        "--minimum", type=int, help="how often each kind must occur (1,000 in ten million)"
    )
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on from, and save to, FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the result as a page")
    parser.add_argument("--commit", default="", help="what the page calls the commit")
    parser.add_argument("--system", type=int, metavar="NUMBER", help="run one system, by its seed")
    parser.add_argument("--events", action="store_true", help="with --system: print every event")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 all is well, 1 problems or kinds that are too rare, 2 wrong use."""
    options = _arguments().parse_args(arguments)
    if options.system is not None:
        return _one(options.system, events=options.events)
    if options.smcs < 1 or options.workers < 1:
        print("--smcs and --workers are at least 1", file=sys.stderr)
        return 2
    try:
        state = load_state(options.resume, options.seed) if options.resume else State(options.seed)
    except CampaignError as error:
        print(error, file=sys.stderr)
        return 2
    _run(state, options)
    return _end(state, options)


def _run(state: State, options: Namespace) -> None:
    last = monotonic()
    shown = len(state.failures)

    def progress(now: State) -> None:
        nonlocal last, shown
        for failure in now.failures[shown:]:
            print(f"system {failure.index}: {failure.command}", flush=True)
            for problem in failure.problems:
                print(f"  {problem}", flush=True)
        shown = len(now.failures)
        if monotonic() - last >= _TELL:
            last = monotonic()
            rate = now.smcs / max(now.seconds, 0.001)
            print(
                f"{now.smcs:,} of {options.smcs:,} SMCs, {now.systems:,} systems, "
                f"{rate:,.0f} SMCs/s, {len(now.failures)} with problems",
                flush=True,
            )
            if options.resume:
                save_state(options.resume, now)

    print(f"campaign of seed {state.seed}: {options.smcs:,} SMCs", flush=True)
    try:
        run_campaign(state, options.smcs, options.workers, progress)
    finally:
        if options.resume:
            save_state(options.resume, state)


def _end(state: State, options: Namespace) -> int:
    minimum = options.minimum
    if minimum is None:
        minimum = proportional_minimum(options.smcs)
    rare = missing(state.kinds, minimum)
    strange = unexpected(state.kinds)
    if options.json:
        result = {**state.plain(), "minimum": minimum, "too rare": list(rare)}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(page(state, minimum, options.commit))
    for kind in rare:
        print(f"too rare: {kind}: {state.kinds[kind]} times, not {minimum}")
    for kind in strange:
        print(f"cannot occur, but did: {kind}: {state.kinds[kind]} times")
    print(
        f"{state.smcs:,} SMCs in {state.systems:,} systems, {state.seconds:,.0f} s, "
        f"checksum {state.checksum:#010x}: {len(state.failures)} systems with problems, "
        f"{len(rare)} kinds too rare"
    )
    return 1 if state.failures or rare or strange else 0


def _one(seed: int, *, events: bool) -> int:
    digest = hashlib.sha256()

    def sink(event: tuple[object, ...]) -> None:
        line = f"{type(event).__name__}{tuple.__repr__(event)}"
        digest.update(line.encode())
        if events:
            print(line)

    plan = draw_plan(seed)
    print(plan)
    result = System(plan, [sink]).execute()
    for kind, number in sorted(result.kinds.items()):
        print(f"{number:8} {kind}")
    print(f"{result.smcs} SMCs, events {digest.hexdigest()}, checksum {result.checksum:#010x}")
    for problem in result.problems:
        print(f"PROBLEM {problem}")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
