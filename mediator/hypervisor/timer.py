# SPDX-License-Identifier: BSD-2-Clause
"""Deadlines in virtual time: one queue for all timers of the machine, and nothing that waits.

Times are integer nanoseconds. Timers that fall due at the same instant fire in the order in which
they were armed, so a run depends on nothing but its input.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, TypeAlias

NEVER: Final = (1 << 63) - 1
"""A time no run reaches (292 years): "no deadline" without a second type on the call path."""

_SLACK: Final = 64
"""Stale heap entries that are always tolerated; beyond that they may not outnumber live ones."""

Expiry: TypeAlias = Callable[[int], None]
"""Called with the deadline when it is reached."""


class Timer:
    """One alarm. At most one deadline at a time; setting another replaces it."""

    __slots__ = ("deadline", "expire", "sequence")

    def __init__(self, expire: Expiry) -> None:
        self.expire = expire
        self.deadline = NEVER
        self.sequence = 0


def _is_live(entry: tuple[int, int, Timer]) -> bool:
    """Whether a heap entry is still its timer's deadline."""
    return entry[2].sequence == entry[1] and entry[2].deadline == entry[0]


class TimerQueue:
    """All armed timers. ``next`` is the earliest deadline, :data:`NEVER` if nothing is armed."""

    __slots__ = ("_armed", "_heap", "_sequence", "next")

    def __init__(self) -> None:
        # The sequence number is unique, so a comparison never reaches the timer.
        self._heap: list[tuple[int, int, Timer]] = []
        self._sequence = 0
        self._armed = 0
        self.next = NEVER

    def __len__(self) -> int:
        return self._armed

    def set(self, timer: Timer, deadline: int | None) -> None:
        """Arm ``timer`` for ``deadline`` ns (a past time falls due at once); ``None`` disarms it."""
        if timer.deadline != NEVER:
            self._armed -= 1
            timer.deadline = NEVER
        if deadline is not None and deadline < NEVER:
            self._sequence += 1
            timer.sequence = self._sequence
            timer.deadline = deadline
            self._armed += 1
            heap = self._heap
            heappush(heap, (deadline, self._sequence, timer))
            if len(heap) > _SLACK + 2 * self._armed:
                # A guest that re-arms its timer for ever must not grow the queue.
                heap[:] = [entry for entry in heap if _is_live(entry)]
                heapify(heap)
        self._settle()

    def pop(self, now: int) -> Timer | None:
        """Disarm and return the timer that fell due first, ``None`` if none is due at ``now``."""
        if self.next > now:
            return None
        timer = heappop(self._heap)[2]
        timer.deadline = NEVER
        self._armed -= 1
        self._settle()
        return timer

    def _settle(self) -> None:
        """Drop stale entries from the top and note the earliest deadline."""
        heap = self._heap
        while heap:
            if _is_live(heap[0]):
                self.next = heap[0][0]
                return
            heappop(heap)
        self.next = NEVER
