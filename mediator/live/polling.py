# SPDX-License-Identifier: BSD-2-Clause
"""How long to look for the next call before going to sleep.

Calls of one guest come in bursts: nine of ten follow within :data:`WINDOW` of the one before. A processor
that sleeps in between forgets (caches, frequency, the host's scheduler), which costs the next call about a
sixth of its time. So the loop looks on for a while, as hypervisors do before they halt, where a processor is
free for that: there are more of them than vCPUs, and this thread did not have to wait for its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

WINDOW: Final = 5_000_000
"""ns after a call: 93 of 100 calls of the built-in workload have followed."""
CROWDED: Final = 0.1
"""Share of a window for which this thread was ready and another ran: somebody needs the processor."""
REST: Final = 500_000_000
"""ns without looking on a crowded machine."""

_SCHEDSTAT: Final = "/proc/thread-self/schedstat"
"""Nanoseconds on a processor, nanoseconds ready without one, time slices (kernel, "scheduler statistics")."""


class Polling:
    """Decides. ``window``: ns after a call, 0 for never."""

    __slots__ = ("_began", "_spare", "_until", "_waited", "_window")

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._spare = False
        self._until = 0
        self._began = 0
        self._waited = 0

    def machines(self, vcpus: int) -> None:
        """So many vCPUs run now."""
        self._spare = _processors() > vcpus

    def served(self) -> None:
        """A call was answered just now."""
        if self._window and self._spare:
            now = time.monotonic_ns()
            if now < self._began:
                return  # crowded
            if not self._until:
                self._began = now
                self._waited = _waited()
            self._until = now + self._window

    def look(self) -> bool:
        """Whether to look for calls without sleeping."""
        if not self._until:
            return False
        now = time.monotonic_ns()
        if now < self._until:
            return True
        self._until = 0
        if _waited() - self._waited > CROWDED * (now - self._began):
            self._began = now + REST
        return False


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def _waited() -> int:
    """ns for which this thread was ready to run and did not; 0 if the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(_SCHEDSTAT, "rb") as file:
        return int(file.read().split()[1])
    return 0
