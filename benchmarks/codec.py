# SPDX-License-Identifier: BSD-2-Clause
"""What it costs to parse and build a message of four parameters, as ratios in one run.

Baselines, side by side with every variant:

* **W**: one precompiled ``Struct("<8I4Q4Q4Q4Q")``, ``unpack_from`` and ``pack_into``;
* **S**: one precompiled ``Struct`` for the header and one for each parameter, both ways;
* **construct**: a plain interpreted declaration without validators and unions. The project's own
  declaration has both, so it is slower still; it is shown, but not what the target is measured by.

    python benchmarks/codec.py [--json] [--rounds N]

Exit code 1 if a ratio misses its target by more than 15 %.
"""

from __future__ import annotations

import gc
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import construct

from benchmarks._report import Report, gate, gate_lines, ratio_of, report, run, time_lines
from smccc import declarations
from smccc.message import parse_message
from smccc.wire import MESSAGE, pack_message, pack_message_into, unpack_message

ROUNDS = 9
FAST_LOOPS = 4_000
SLOW_LOOPS = 60

DATA = MESSAGE[4].pack(1, 7, 1, 0, 0, 0, 0, 4, *[0x1111 * n for n in range(16)])
MIDDLE = 2048
"""Where the message lies in its page for the hot path."""

PAGE = bytearray(4096)
PAGE[MIDDLE : MIDDLE + len(DATA)] = DATA


def w() -> None:
    unpack_from, pack_into = MESSAGE[4].unpack_from, MESSAGE[4].pack_into
    for _ in range(FAST_LOOPS):
        pack_into(PAGE, MIDDLE, *unpack_from(PAGE, MIDDLE))


def s() -> None:
    header, param = struct.Struct("<8I"), struct.Struct("<4Q")
    unpack_header, unpack_param = header.unpack_from, param.unpack_from
    pack_header, pack_param = header.pack_into, param.pack_into
    at = tuple([MIDDLE + 32 * n for n in range(1, 5)])
    for _ in range(FAST_LOOPS):
        fields = unpack_header(PAGE, MIDDLE)
        params = [unpack_param(PAGE, place) for place in at]
        pack_header(PAGE, MIDDLE, *fields)
        for place, words in zip(at, params, strict=True):
            pack_param(PAGE, place, *words)


PLAIN = construct.Struct(
    *[
        name / construct.Int32ul
        for name in (
            "cmd",
            "func",
            "session",
            "cancel_id",
            "pad",
            "ret",
            "ret_origin",
            "num_params",
        )
    ],
    "params"
    / construct.Struct(*[name / construct.Int64ul for name in ("attr", "a", "b", "c")])[
        construct.this.num_params
    ],
)


def plain_construct() -> None:
    parse, build = PLAIN.parse, PLAIN.build
    for _ in range(SLOW_LOOPS):
        build(parse(DATA))


def declared() -> None:
    parse, build = declarations.parse_message, declarations.build_message
    for _ in range(SLOW_LOOPS):
        build(parse(DATA))


def typed() -> None:
    for _ in range(FAST_LOOPS):
        parse_message(DATA).build()


def hot() -> None:
    for _ in range(FAST_LOOPS):
        pack_message_into(unpack_message(PAGE, MIDDLE), PAGE, MIDDLE)


def hot_to_bytes() -> None:
    for _ in range(FAST_LOOPS):
        pack_message(unpack_message(DATA))


VARIANTS: dict[str, tuple[Callable[[], None], int]] = {
    "W": (w, FAST_LOOPS),
    "S": (s, FAST_LOOPS),
    "hot": (hot, FAST_LOOPS),
    "hot to bytes": (hot_to_bytes, FAST_LOOPS),
    "typed": (typed, FAST_LOOPS),
    "construct": (plain_construct, SLOW_LOOPS),
    "declaration": (declared, SLOW_LOOPS),
}


class Gate(NamedTuple):
    """``over`` divided by ``under``: at most the target, or at least it."""

    name: str
    over: str
    under: str
    target: float
    at_least: bool = False


GATES = (
    Gate("hot path", "hot", "W", 2.0),
    Gate("hot path to bytes", "hot to bytes", "W", 2.0),
    Gate("typed values", "typed", "S", 2.5),
    Gate("typed values against construct", "construct", "typed", 20.0, at_least=True),
)


def measure(rounds: int) -> list[dict[str, float]]:
    """Seconds of one parse and build by variant, for each round; variants take turns."""
    results: list[dict[str, float]] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            timed = {}
            for name, (run, loops) in VARIANTS.items():
                start = time.perf_counter()
                run()
                timed[name] = (time.perf_counter() - start) / loops
            results.append(timed)
    finally:
        gc.enable()
    return results


def found_in(results: list[dict[str, float]]) -> Report:
    """Medians of the variants, and of each gate's ratio within a round."""
    gates = [
        gate(
            wanted.name,
            ratio_of(results, wanted.over, wanted.under),
            wanted.target,
            of=f"{wanted.over} / {wanted.under}",
            at_least=wanted.at_least,
        )
        for wanted in GATES
    ]
    return report("codec", results, gates, digits=3)


def table(found: Report) -> str:
    """The report for people."""
    lines = ["parse + build of a message with 4 parameters", "", *time_lines(found["microseconds"])]
    return "\n".join([*lines, "", *gate_lines(found["gates"], "gate")])


def main() -> int:
    """Measure, print, and say whether all gates hold."""
    return run(__doc__, lambda options: found_in(measure(options.rounds)), table, rounds=ROUNDS)


if __name__ == "__main__":
    sys.exit(main())
