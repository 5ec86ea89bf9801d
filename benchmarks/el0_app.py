# SPDX-License-Identifier: BSD-2-Clause
"""What the process boundary costs: the mediator as an EL0 app against the one in the hypervisor.

An invoke of four parameters in both call styles, all the way from guest to TA and back, and the
registration of 1 GiB, side by side with the same work in one process; and how long an app takes to
start. App and caller share a processor, where they belong. Times are processor time, of caller and app
together: on one processor that is what the call takes while nobody else wants it. Real time is shown
as well, and so is what an invoke takes if each has a processor: then it is mostly waiting for the
other to wake up, which is real time only.

    python benchmarks/el0_app.py [--json] [--rounds N]

Exit code 1 if a ratio is above its target times 1.15.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks._report import Report, gate, gate_lines, passed, run, time_lines
from benchmarks.invoke import STYLES, Bench
from benchmarks.page_lists import ENTRIES, Rig, mediated
from mediator.deployment.choice import EL0_APP, AnyDeployment, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory

ROUNDS = 15
CALLS = 100
INVOKE_TARGET = 4.0
REGISTER_TARGET = 1.5
START_TARGET = 0.3
"""Seconds."""
STARTS = 7


class Time(NamedTuple):
    """Seconds: of all processes on processors, and on the wall."""

    processor: float
    real: float

    def since(self, before: Time) -> Time:
        """What has passed."""
        return Time(self.processor - before.processor, self.real - before.real)


Timed = Callable[[], Time]
Pair = tuple[Timed, Timed]


def now(tee: AnyDeployment | None) -> Time:
    """The time of this process and of those that ``tee`` has."""
    processor = time.process_time()
    if isinstance(tee, El0App):
        for isolation in tee.isolation:
            # Linux: the clock of another process (clock_getcpuclockid(3)).
            processor += time.clock_gettime(~isolation.pid << 3 | 2)
    return Time(processor, time.perf_counter())


def invokes(pinned: bool) -> tuple[dict[str, Pair], Callable[[], None]]:
    """What an invoke takes here and there, by call style; and how to end it."""
    here, there = Bench(), Bench(deployment=Deployment(EL0_APP, pinned=pinned))

    def timed(bench: Bench, by_cookie: bool) -> Timed:
        def once() -> Time:
            stamps: list[Time] = []

            def clock() -> float:
                stamps.append(now(bench.platform.tee))
                return 0.0

            bench.clock = clock
            bench.run(by_cookie, CALLS)
            spent = stamps[1].since(stamps[0])
            return Time(spent.processor / CALLS, spent.real / CALLS)

        return once

    pairs = {
        style: (timed(here, by_cookie), timed(there, by_cookie))
        for style, by_cookie in STYLES.items()
    }
    return pairs, there.platform.close


def registrations(layout: str) -> tuple[Pair, Callable[[], None]]:
    """What a registration of 1 GiB takes here and there; and how to end it."""

    def timed(rig: Rig, home: Deployment) -> Timed:
        shared = mediated(rig, deployment=home)

        def once() -> Time:
            before = now(rig.tee)
            shared.register()
            spent = now(rig.tee).since(before)
            shared.unregister()
            return spent

        return once

    here, there = Rig(layout), Rig(layout)
    pair = timed(here, Deployment()), timed(there, Deployment(EL0_APP))
    assert there.tee is not None
    return pair, there.tee.close


def start() -> Time:
    """From nothing to an app that is ready."""
    host = ReferenceHost(PhysicalMemory())
    before = now(None)
    app = El0App(host)
    spent = now(app).since(before)
    app.close()
    return spent


def compared(pair: Pair, rounds: int) -> list[tuple[Time, Time]]:
    """Both sides, by turns."""
    here, there = pair
    here(), there()
    gc.collect()
    gc.disable()
    try:
        return [(here(), there()) for _ in range(rounds)]
    finally:
        gc.enable()


class Found:
    """Times by name, and the gates."""

    def __init__(self) -> None:
        self.microseconds: dict[str, float] = {}
        self.gates: list[Report] = []

    def add(self, name: str, rows: list[tuple[Time, Time]], target: float | None) -> None:
        """Medians of both sides, and of the ratios of neighbours."""
        for side, times in zip(("hypervisor", "app"), zip(*rows, strict=True), strict=True):
            middle = statistics.median([spent.processor for spent in times]) * 1e6
            self.microseconds[f"{name}, {side}"] = round(middle, 1)
        processor = statistics.median([two.processor / one.processor for one, two in rows])
        real = statistics.median([two.real / one.real for one, two in rows])
        if target is not None:
            self.gates.append(gate(name, processor, target, of="app / hypervisor"))
        self.gates.append(gate(f"{name}, real time", real, None, of="app / hypervisor"))


def measure(options: argparse.Namespace) -> Report:
    """All figures and gates."""
    found = Found()
    pairs, close = invokes(True)
    for style, pair in pairs.items():
        found.add(f"invoke, {style}", compared(pair, options.rounds), INVOKE_TARGET)
    close()
    for layout in ("random", "sequential"):
        both, end = registrations(layout)
        name = f"registration of {ENTRIES:,} pages, {layout}"
        found.add(name, compared(both, options.rounds), REGISTER_TARGET)
        end()
    if len(os.sched_getaffinity(0)) > 1:
        pairs, close = invokes(False)
        for style, pair in pairs.items():
            found.add(f"invoke, {style}, two processors", compared(pair, options.rounds), None)
        close()
    starts = [start() for _ in range(STARTS)]
    began = statistics.median([spent.processor for spent in starts])
    found.microseconds["start of an app"] = round(began * 1e6)
    real = statistics.median([spent.real for spent in starts])
    found.microseconds["start of an app, real time"] = round(real * 1e6)
    name = f"start of an app, of {START_TARGET} s"
    found.gates.append(gate(name, began / START_TARGET, 1.0, of="start / target"))
    return {
        "benchmark": "el0_app",
        "rounds": options.rounds,
        "calls": CALLS,
        "microseconds": found.microseconds,
        "gates": found.gates,
        "passed": passed(found.gates),
    }


def table(found: Report) -> str:
    """The report for people."""
    lines = [f"one call, processor time of caller and app, medians of {found['rounds']} rounds", ""]
    lines += time_lines(found["microseconds"])
    return "\n".join([*lines, "", *gate_lines(found["gates"], "app to hypervisor")])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say whether the targets hold."""
    return run(__doc__, measure, table, rounds=ROUNDS, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
