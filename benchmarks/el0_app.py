# SPDX-License-Identifier: BSD-2-Clause
"""What the process boundary costs: the mediator as an EL0 app against the one in the hypervisor.

An invoke of four parameters in both call styles, all the way from guest to TA and back, and the
registration of 1 GiB, side by side with the same work in one process; and how long an app takes to
start. App and caller share a processor, where they belong; with a second processor the figures without
that are reported too. Time is real time: a machine that does something else meanwhile shows it.

    python benchmarks/el0_app.py [--json] [--rounds N]

Exit code 1 if a ratio is above its target times 1.15.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks.invoke import STYLES, Bench
from benchmarks.page_lists import ENTRIES, Rig, mediated
from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory

ROUNDS = 9
CALLS = 200
INVOKE_TARGET = 4.0
REGISTER_TARGET = 1.5
START_TARGET = 0.3
"""Seconds."""
SLACK = 1.15
"""A gate fails at the target times this, against noise; the report shows the target itself."""

Pair = tuple[Callable[[], float], Callable[[], float]]


def invokes(pinned: bool) -> tuple[dict[str, Pair], Callable[[], None]]:
    """Seconds of an invoke here and there, by call style; and how to end it."""
    here = Bench()
    there = Bench(deployment=Deployment(EL0_APP, pinned=pinned))
    here.clock = there.clock = time.perf_counter
    pairs: dict[str, Pair] = {
        style: (
            lambda cookie=cookie: here.run(cookie, CALLS),  # type: ignore[misc]
            lambda cookie=cookie: there.run(cookie, CALLS),  # type: ignore[misc]
        )
        for style, cookie in STYLES.items()
    }
    return pairs, there.platform.close


def registrations(layout: str) -> tuple[Pair, Callable[[], None]]:
    """Seconds of a registration of 1 GiB here and there."""
    ways: list[Callable[[], float]] = []
    last: Rig | None = None
    for home in (Deployment(), Deployment(EL0_APP)):
        last = Rig(layout)
        shared = mediated(last, deployment=home)

        def once(shared: object = shared) -> float:
            start = time.perf_counter()
            shared.register()  # type: ignore[attr-defined]
            spent = time.perf_counter() - start
            shared.unregister()  # type: ignore[attr-defined]
            return spent

        ways.append(once)
    assert last is not None
    assert last.tee is not None
    return (ways[0], ways[1]), last.tee.close


def start() -> float:
    """Seconds from nothing to an app that is ready."""
    host = ReferenceHost(PhysicalMemory())
    before = time.perf_counter()
    app = El0App(host)
    spent = time.perf_counter() - before
    app.close()
    return spent


def compared(pair: Pair, rounds: int) -> tuple[float, float, float]:
    """Medians of both sides, in seconds, and of the ratios of neighbours."""
    here, there = pair
    here(), there()
    gc.collect()
    gc.disable()
    try:
        rows = [(here(), there()) for _ in range(rounds)]
    finally:
        gc.enable()
    return (
        statistics.median([one for one, _ in rows]),
        statistics.median([two for _, two in rows]),
        statistics.median([two / one for one, two in rows]),
    )


def measure(rounds: int) -> dict[str, object]:
    """All figures and gates."""
    rows: list[dict[str, object]] = []

    def add(name: str, figures: tuple[float, float, float], target: float | None) -> None:
        one, two, ratio = figures
        rows.append(
            {
                "name": name,
                "in_hypervisor_microseconds": round(one * 1e6, 2),
                "app_microseconds": round(two * 1e6, 2),
                "ratio": round(ratio, 3),
                "target": target,
                "target_met": target is None or ratio <= target,
                "passed": target is None or ratio <= target * SLACK,
            }
        )

    pairs, close = invokes(True)
    for style, pair in pairs.items():
        add(f"invoke {style}", compared(pair, rounds), INVOKE_TARGET)
    close()
    for layout in ("random", "sequential"):
        both, end = registrations(layout)
        add(f"registration of {ENTRIES} pages, {layout}", compared(both, rounds), REGISTER_TARGET)
        end()
    if len(os.sched_getaffinity(0)) > 1:
        pairs, close = invokes(False)
        for style, pair in pairs.items():
            add(f"invoke {style}, two processors", compared(pair, rounds), None)
        close()
    starts = statistics.median([start() for _ in range(max(rounds // 2, 3))])
    began = {
        "seconds": round(starts, 3),
        "target": START_TARGET,
        "target_met": starts <= START_TARGET,
        "passed": starts <= START_TARGET * SLACK,
    }
    passed = bool(began["passed"]) and all(bool(row["passed"]) for row in rows)
    return {
        "benchmark": "el0_app",
        "rounds": rounds,
        "calls": CALLS,
        "rows": rows,
        "start": began,
        "passed": passed,
    }


def table(found: dict[str, object]) -> str:
    """The report for people."""
    rows, began = found["rows"], found["start"]
    assert isinstance(rows, list)
    assert isinstance(began, dict)
    lines = [f"{'':<44}{'hypervisor':>12}{'app':>12}{'ratio':>8}"]
    for row in rows:
        note = "" if row["target"] is None else f"  <= {row['target']}"
        if not row["passed"]:
            note += "  BREACH"
        elif not row["target_met"]:
            note += "  (above the target, within the slack)"
        lines.append(
            f"{row['name']:<44}{row['in_hypervisor_microseconds']:>9.1f} us"
            f"{row['app_microseconds']:>9.1f} us{row['ratio']:>8.2f}{note}"
        )
    note = "" if began["passed"] else "  BREACH"
    lines.append(f"{'start of an app':<44}{began['seconds']:>21.3f} s  <= {began['target']}{note}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say whether the targets hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    found = measure(max(options.rounds, 1))
    print(json.dumps(found) if options.json else table(found))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
