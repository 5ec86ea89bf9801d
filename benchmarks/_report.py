# SPDX-License-Identifier: BSD-2-Clause
"""What the benchmarks have in common: gates, the lines that show them, and the command line."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence

SLACK = 1.15
"""A gate fails at the target times this, against noise; the report shows the target itself."""

Report = dict[str, object]


def gate(
    name: str,
    ratio: float,
    target: float | None,
    *,
    of: str = "",
    at_least: bool = False,
    slack: float = SLACK,
) -> Report:
    """A ratio and what is wanted of it (``None``: nothing). ``of``: what was divided by what."""
    found: Report = {"name": name, "ratio": round(ratio, 3)}
    if of:
        found["of"] = of
    found |= {"target": target, "at_least": at_least}
    if target is None:
        return {**found, "target_met": True, "passed": True}
    if at_least:
        return {**found, "target_met": ratio >= target, "passed": ratio * slack >= target}
    return {**found, "target_met": ratio <= target, "passed": ratio <= target * slack}


def passed(gates: Sequence[Report]) -> bool:
    """Whether all hold."""
    return all(bool(found["passed"]) for found in gates)


def report(
    name: str, results: Sequence[Mapping[str, float]], gates: list[Report], digits: int = 2
) -> Report:
    """What a benchmark found: ``results`` are seconds by variant, one mapping for each round."""
    medians = {
        variant: round(statistics.median([timed[variant] for timed in results]) * 1e6, digits)
        for variant in results[0]
    }
    return {
        "benchmark": name,
        "rounds": len(results),
        "microseconds": medians,
        "gates": gates,
        "passed": passed(gates),
    }


def ratio_of(results: Sequence[Mapping[str, float]], over: str, under: str) -> float:
    """The median of the ratios of two variants within a round."""
    return statistics.median([timed[over] / timed[under] for timed in results])


def gate_lines(gates: object, heading: str = "") -> list[str]:
    """The gates for people, under a heading if there is one."""
    assert isinstance(gates, list)
    lines = [f"  {heading:<44}{'ratio':>8}  target"] if heading else []
    for found in gates:
        bound = "none" if found["target"] is None else f"{found['target']:g}"
        sign = ">=" if found["at_least"] else "<="
        wanted = bound if found["target"] is None else f"{sign} {bound}"
        note = "" if found["target_met"] else "  (missed, within the slack)"
        verdict = note if found["passed"] else "  BREACH"
        lines.append(f"  {found['name']:<44}{found['ratio']:>8.2f}  {wanted}{verdict}")
    return lines


def time_lines(microseconds: object) -> list[str]:
    """Times by name for people."""
    assert isinstance(microseconds, Mapping)
    return [f"  {name:<44}{value:>9.2f} us" for name, value in microseconds.items()]


def run(
    doc: str | None,
    measure: Callable[[argparse.Namespace], Report],
    table: Callable[[Report], str],
    *,
    rounds: int,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Measure, print for people or as JSON, and say by the exit code whether all gates hold.

    ``doc``: of the benchmark; ``rounds``: how many by default; ``more``: adds options.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds to measure ({rounds})")
    if more is not None:
        more(parser)
    options = parser.parse_args(arguments)
    options.rounds = max(options.rounds, 1)
    found = measure(options)
    print(json.dumps(found, indent=2) if options.json else table(found))
    return 0 if found["passed"] else 1
