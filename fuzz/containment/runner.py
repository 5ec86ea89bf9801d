# SPDX-License-Identifier: BSD-2-Clause
"""Many cases, on one processor or several; what came of them, added up in the order of the cases."""

from __future__ import annotations

import contextlib
import gc
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from time import monotonic
from typing import Final

import attrs

from fuzz.containment.case import Case, CaseResult, run_case
from fuzz.containment.plan import Recorded, record
from fuzz.containment.processes import is_process, run_process_case
from fuzz.containment.system import BRIEF, VARIANTS

CHUNK: Final = 4
"""Cases handed to a worker at a time."""
SWEEP: Final = 40
"""Cases after which memory of machines that are gone is collected: an arena is open until then."""


@attrs.define
class Tally:
    """``failures``: results with problems. ``left_open``: descriptors more than at the beginning;
    ``None``: not counted, for a pool of workers has some of its own."""

    seed: int
    cases: int = 0
    kinds: Counter[str] = attrs.field(factory=Counter)
    variants: Counter[str] = attrs.field(factory=Counter)
    failures: list[CaseResult] = attrs.field(factory=list)
    seconds: float = 0.0
    checksum: int = 0
    left_open: int | None = None

    def add(self, result: CaseResult) -> None:
        """One more."""
        self.cases += 1
        self.kinds.update(result.kinds)
        self.variants[result.case.variant] += 1
        if result.problems:
            self.failures.append(result)
        text = f"{result.case} {sorted(result.kinds.items())} {result.problems}"
        self.checksum = zlib.crc32(text.encode(), self.checksum)

    def plain(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "seed": self.seed,
            "cases": self.cases,
            "machines": dict(self.variants),
            "kinds": dict(sorted(self.kinds.items())),
            "failures": [
                {"case": str(failure.case), "problems": list(failure.problems)}
                for failure in self.failures
            ],
            "descriptors left open": self.left_open,
            "checksum": f"{self.checksum:#010x}",
            "seconds": round(self.seconds, 1),
        }


def run_cases(
    cases: Sequence[Case],
    sessions: dict[str, Recorded],
    seed: int,
    workers: int = 1,
    progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Run all of ``cases``, or those before an interrupt of the keyboard. Exceptions of cases are
    problems; nothing is raised."""
    tally = Tally(seed)
    start = monotonic()
    gc.collect()
    before = _descriptors()
    with contextlib.suppress(KeyboardInterrupt):
        for result in _results(cases, sessions, workers):
            tally.add(result)
            tally.seconds = monotonic() - start
            if progress is not None:
                progress(tally)
    gc.collect()
    if workers == 1:
        tally.left_open = _descriptors() - before
    return tally


def _results(
    cases: Sequence[Case], sessions: dict[str, Recorded], workers: int
) -> Iterator[CaseResult]:
    if workers == 1:
        worker = _Worker(sessions)
        for case in cases:
            yield worker(case)
        return
    with get_context("spawn").Pool(workers, _begin) as pool:
        yield from pool.imap(_work, cases, CHUNK)


class _Worker:
    """Runs one case after the other."""

    def __init__(self, sessions: dict[str, Recorded]) -> None:
        self._sessions = sessions
        self._done = 0

    def __call__(self, case: Case) -> CaseResult:
        self._done += 1
        if self._done % SWEEP == 0:
            gc.collect()
        lines = self._sessions[case.variant].lines
        return run_process_case(case, lines) if is_process(case) else run_case(case, lines)


_WORKERS: Final[list[_Worker]] = []
"""The one of this process of a pool: what it recorded at its start."""


def _begin() -> None:
    _WORKERS.append(_Worker(record((*VARIANTS, *BRIEF))))
    # What is there now stays: no collection need look at it again.
    gc.freeze()


def _work(case: Case) -> CaseResult:
    return _WORKERS[0](case)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
