# SPDX-License-Identifier: BSD-2-Clause
"""A wake-up takes the same steps however many threads wait (``benchmarks/wakeups.py`` has the times)."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType

import pytest

from benchmarks.wakeups import GUESTS, Queue

SMC = "SecureWorld.smc"
MAX_ENTRIES = 2 + GUESTS
"""Entries of the secure world: the holder, a value for each guest that listens, the next one."""
MAX_MORE = 4
"""Functions that may be entered besides: pages that were not touched lately are looked up."""


@pytest.mark.parametrize("kept", [False, True])
def test_calls_and_entries_of_a_wake_up(kept: bool) -> None:
    """Entries of Python functions, and SMCs, per wake-up with 10 and 1,000 waiters."""
    found: list[list[Counter[str]]] = []
    for waiters in (10, 1_000):
        queue = Queue(waiters, kept=kept)
        # All of the small queue have had the lock once: what a first time costs is over.
        rounds = [steps(queue) for _ in range(2 * waiters if waiters < 100 else 30)][-8:]
        found.append(rounds)
    few, many = found
    assert max(one.total() for one in many) <= min(one.total() for one in few) + MAX_MORE
    assert {one[SMC] for one in many} == {one[SMC] for one in few}
    assert all(2 < one[SMC] <= MAX_ENTRIES for one in many)


def steps(queue: Queue) -> Counter[str]:
    """Functions by name that one wake-up enters; the queue is as long afterwards."""
    counts: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            counts[frame.f_code.co_qualname] += 1

    begin = queue.begin
    queue.begin = lambda place: sys.setprofile(None)  # type: ignore[method-assign]
    before = queue.holder
    sys.setprofile(count)
    try:
        queue.wake()
    finally:
        sys.setprofile(None)
        queue.begin = begin  # type: ignore[method-assign]
    queue.begin(before)
    return counts
