# SPDX-License-Identifier: BSD-2-Clause
"""Sets of numbers kept as sorted, disjoint, maximal runs: free frames, pages of an arena.

Every operation is deterministic; none depends on more than the number of runs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RunSet:
    """A set of non-negative integers as runs ``[start, end)`` that neither overlap nor touch."""

    __slots__ = ("_ends", "_starts", "_total")

    def __init__(self, start: int = 0, end: int = 0) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._total = 0
        if end > start:
            self.add(start, end)

    def __len__(self) -> int:
        return self._total

    def __bool__(self) -> bool:
        return self._total > 0

    def __contains__(self, number: int) -> bool:
        return self.covers(number, number + 1)

    def runs(self) -> Iterator[tuple[int, int]]:
        """All runs ``(start, end)`` in ascending order."""
        return zip(self._starts, self._ends, strict=True)

    def covers(self, start: int, end: int) -> bool:
        """Whether all of ``[start, end)`` is in the set."""
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and end <= self._ends[index]

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any number of ``[start, end)`` is in the set."""
        index = bisect_left(self._ends, start + 1)
        return index < len(self._starts) and self._starts[index] < end

    def add(self, start: int, end: int) -> None:
        """Put ``[start, end)`` in, which must not be in yet; raises ValueError otherwise."""
        starts, ends = self._starts, self._ends
        index = bisect_left(starts, start)
        if (index and ends[index - 1] > start) or (index < len(starts) and starts[index] < end):
            raise ValueError(f"{start:#x}..{end:#x} is in the set already")
        before = index > 0 and ends[index - 1] == start
        after = index < len(starts) and starts[index] == end
        if before and after:
            ends[index - 1] = ends[index]
            del starts[index], ends[index]
        elif before:
            ends[index - 1] = end
        elif after:
            starts[index] = start
        else:
            starts.insert(index, start)
            ends.insert(index, end)
        self._total += end - start

    def remove(self, start: int, end: int) -> None:
        """Take ``[start, end)`` out, which must be in completely; raises ValueError otherwise."""
        starts, ends = self._starts, self._ends
        index = bisect_right(starts, start) - 1
        if index < 0 or end > ends[index]:
            raise ValueError(f"{start:#x}..{end:#x} is not in the set")
        run_start, run_end = starts[index], ends[index]
        if run_start == start and run_end == end:
            del starts[index], ends[index]
        elif run_start == start:
            starts[index] = end
        elif run_end == end:
            ends[index] = start
        else:
            ends[index] = start
            starts.insert(index + 1, end)
            ends.insert(index + 1, run_end)
        self._total -= end - start

    def first_fit(self, count: int) -> int | None:
        """Start of the lowest run that holds ``count`` numbers in a row, or ``None``."""
        for start, end in zip(self._starts, self._ends, strict=True):
            if end - start >= count:
                return start
        return None

    def last_fit(self, count: int, align: int) -> int | None:
        """Highest multiple of ``align`` from which ``count`` numbers in a row are in the set."""
        for start, end in zip(reversed(self._starts), reversed(self._ends), strict=True):
            candidate = (end - count) // align * align
            if candidate >= start:
                return candidate
        return None

    def take(self, count: int) -> list[tuple[int, int]] | None:
        """Remove ``count`` numbers: one run if any is long enough, otherwise the lowest runs.

        Returns ``(start, length)`` pairs, or ``None`` (and removes nothing) if there are too few.
        """
        if count > self._total:
            return None
        start = self.first_fit(count)
        if start is not None:
            self.remove(start, start + count)
            return [(start, count)]
        taken: list[tuple[int, int]] = []
        while count:
            start, end = self._starts[0], self._ends[0]
            length = min(count, end - start)
            self.remove(start, start + length)
            taken.append((start, length))
            count -= length
        return taken
