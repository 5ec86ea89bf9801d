# SPDX-License-Identifier: BSD-2-Clause
"""How much faster the compiled hot modules make an invoke: ``python -m benchmarks.compiled``.

The invoke of ``benchmarks/invoke.py``, guest to TA and back, in two processes that take turns: one
with the interpreted packages of the checkout, one with the compiled tree, which is brought up to date
first. The guest's program and the TA are interpreted in both. A ratio is how many times faster the
compiled one is, within a round; reported is the median of the rounds.

    python -m benchmarks.compiled [--json] [--rounds N] [--tree build/compiled]

Exit code 1 if one of the two call styles is less than 1.4 times as fast, or the tree cannot be built.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks._report import Report, gate, gate_lines, ratio_of, report, run, time_lines
from benchmarks.compiled.build import INTO, ROOT, build
from benchmarks.compiled.modules import HOT

ROUNDS = 60
CALLS = 100
"""Invokes of one variant in one round: few, so that the two processes meet the same disturbances."""
TARGET = 1.4
STYLES = {"CALL_WITH_ARG": "ARG", "CALL_WITH_REGD_ARG": "REGD_ARG"}
MODES = ("direct", "suspending")
GATED = "direct"
KINDS = ("interpreted", "compiled")


class Process:
    """A worker in ``tree``, whose hot modules are all of ``kind``."""

    def __init__(self, tree: Path, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compiled.worker"],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = json.loads(self._answer())
        if sorted(found[kind]) != sorted(HOT):
            raise RuntimeError(f"not all hot modules of {tree} are {kind}: {found}")

    def seconds(self, mode: str, style: str) -> float:
        """Processor time of one invoke."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mode} {style} {CALLS}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        return line


def measure(tree: Path, rounds: int) -> list[dict[str, float]]:
    """Seconds per invoke by variant, for each round; the processes take turns."""
    workers = {"interpreted": Process(ROOT, "interpreted"), "compiled": Process(tree, "compiled")}
    results: list[dict[str, float]] = []
    for number in range(rounds):
        timed = {}
        for mode in MODES:
            for name, style in STYLES.items():
                # Who goes first changes, so that a trend favours nobody.
                for kind in KINDS if number % 2 else reversed(KINDS):
                    timed[f"{kind}, {mode}, {name}"] = workers[kind].seconds(mode, style)
        results.append(timed)
    for worker in workers.values():
        worker.close()
    return results


def found_in(results: list[dict[str, float]]) -> Report:
    """Medians of the variants, and of each ratio within a round."""
    gates: list[Report] = []
    for mode in MODES:
        for style in STYLES:
            over, under = (f"{kind}, {mode}, {style}" for kind in KINDS)
            target = TARGET if mode == GATED else None
            name, of = f"compiled, {mode}, {style}", f"{over} / {under}"
            ratio = ratio_of(results, over, under)
            gates.append(gate(name, ratio, target, of=of, at_least=True, slack=1.0))
    return report("compiled", results, gates)


def table(found: Report) -> str:
    """The report for people."""
    lines = ["one invoke, guest to TA and back (processor time)", ""]
    lines += time_lines(found["microseconds"])
    return "\n".join([*lines, "", *gate_lines(found["gates"], "times faster")])


def main() -> int:
    """Build, measure, print, and say whether the gates hold."""

    def measured(options: argparse.Namespace) -> Report:
        tree: Path = options.tree.resolve()
        with contextlib.redirect_stdout(sys.stderr):
            if build(tree):
                raise SystemExit(1)
        return found_in(measure(tree, options.rounds))

    def more(parser: argparse.ArgumentParser) -> None:
        told = "compiled tree (build/compiled)"
        parser.add_argument("--tree", type=Path, default=INTO, help=told)

    return run(__doc__, measured, table, rounds=ROUNDS, more=more)


if __name__ == "__main__":
    sys.exit(main())
