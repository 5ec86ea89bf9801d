# SPDX-License-Identifier: BSD-2-Clause
"""What it costs to be stopped: 1 GiB registered in steps of one list page, as a ratio to one go.

262,144 pages of a guest of 2 GiB, in random order (the layout *random* of ``page_lists.py``). *Whole*
is a REGISTER_SHM of them with default settings on a host that never asks for preemption. *Preempted*
is the same on a host that always does, with a step of 511 pages: the walk stops only between list
pages, of 511 entries each, and 511 is the last such place before 512. So the guest gets FOREIGN_INTR
512 times or more and comes back with RETURN_FROM_RPC each time, and all of that is in the time.

The two have a host and a guest each, made from the same seed. In every round each is timed right
after a registration that was not timed, so that both find the caches equally warm, and they take
turns in being first.

    python benchmarks/preempted.py [--json] [--rounds N]

Exit code 1 if the ratio is above its target times 1.15.
"""

from __future__ import annotations

import gc
import statistics
import sys

from benchmarks._report import Report, gate, gate_lines, passed, run
from benchmarks.page_lists import ENTRIES, Rig, Sharing, mediated, timed
from mediator.host import PAGE_LIST_ENTRIES
from mediator.optee.settings import Limits, MediatorSettings

ROUNDS = 25
TARGET = 1.5
STEP = PAGE_LIST_ENTRIES
STOPS = -(-ENTRIES // STEP) - 1
"""The walk is asked after every step but the last."""


def whole() -> Sharing:
    """Default settings, never preempted."""
    return mediated(Rig("random"))


def preempted() -> Sharing:
    """Stopped after every list page."""
    rig = Rig("random")
    sharing = mediated(rig, MediatorSettings(limits=Limits(walk_entries=STEP)), STOPS)
    rig.host.preempt_policy = lambda: True
    return sharing


def once(sharing: Sharing) -> float:
    """Seconds of one registration, right after one that is not counted."""
    sharing.register()
    sharing.unregister()
    taken = timed(sharing.register)
    sharing.unregister()
    return taken


def measure(rounds: int) -> Report:
    """Median ratio over interleaved rounds."""
    one, many = whole(), preempted()
    once(one)
    once(many)
    pairs: list[tuple[float, float]] = []
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            if number % 2:
                stopped = once(many)
                pairs.append((once(one), stopped))
            else:
                through = once(one)
                pairs.append((through, once(many)))
    finally:
        gc.enable()
    ratio = statistics.median([many / one for one, many in pairs])
    base = statistics.median([one for one, _ in pairs])
    stopped = statistics.median([many for _, many in pairs])
    gates = [gate("preempted every 511 pages to one go", ratio, TARGET)]
    return {
        "benchmark": "preempted",
        "rounds": rounds,
        "entries": ENTRIES,
        "step": STEP,
        "stops": STOPS,
        "whole_milliseconds": round(base * 1e3, 3),
        "preempted_milliseconds": round(stopped * 1e3, 3),
        "microseconds_per_stop": round((stopped - base) / STOPS * 1e6, 2),
        "gates": gates,
        "passed": passed(gates),
    }


def table(found: Report) -> str:
    """The report for people."""
    lines = [
        f"{found['entries']} pages registered in one go: {found['whole_milliseconds']} ms",
        f"stopped {found['stops']} times, after every {found['step']} pages: "
        f"{found['preempted_milliseconds']} ms, {found['microseconds_per_stop']} us more per stop",
    ]
    return "\n".join([*lines, *gate_lines(found["gates"])])


def main() -> int:
    """Measure, print, and say whether the target holds."""
    return run(__doc__, lambda options: measure(options.rounds), table, rounds=ROUNDS)


if __name__ == "__main__":
    sys.exit(main())
