# SPDX-License-Identifier: BSD-2-Clause
"""The frame table: who owns each physical page, and what holds it alive.

One int64 word per frame, so that one look answers everything::

    bits  0..29   pins: references taken through the host boundary, counted for the owner
    bit   30      guard, always 0: set by a count that went below zero, which is how that is found
    bits 31..43   mappings of the frame in other guests (foreign and grant pages)
    bit   44      zombie: its owner gave it up, but references keep it alive and nobody gets it
    bits 46..62   owner

``words`` and ``array`` are two views of the same bytes: scalars through the first, gathers through
the second. RAM that was handed out in bulk is remembered as runs and written into the table 512
frames at a time, when somebody first looks: a fresh guest of any size costs a few runs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import numpy as np

from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.lazy import zeroed
from mediator.hypervisor.runs import RunSet
from mediator.hypervisor.stage2 import PFN_BITS, Int64Array

NOBODY: Final = 0
MEDIATOR: Final = 1
"""Pages that the mediator holds: shadows, and nothing else."""
SECURE: Final = 2
"""Pages of the secure world itself."""
POOL: Final = 3
"""Pages set aside for the mediator and not in use now: touching them is a use after free."""
OUTSIDER: Final = 4
"""Owner of pages that no guest of this machine owns, though one may have them mapped."""
FIRST_GUEST: Final = 16
"""Owner number of guest 0; guest ``g`` is ``FIRST_GUEST + g``."""

PIN_BITS: Final = 30
MAX_PINS: Final = 1 << PIN_BITS - 1
"""Refused beyond: far above what any limit of a mediator allows, and no carry can reach the guard."""
PIN_MASK: Final = (1 << PIN_BITS) - 1
GUARD: Final = 1 << PIN_BITS
MAPPING: Final = 1 << PIN_BITS + 1
MAPPING_MASK: Final = 0x1FFF * MAPPING
HELD: Final = PIN_MASK | MAPPING_MASK
"""Any reference at all."""
ZOMBIE: Final = 1 << 44
OWNER_SHIFT: Final = 46
OWNER_MASK: Final = 0x1FFFF << OWNER_SHIFT
MAX_GUESTS: Final = (1 << 17) - FIRST_GUEST
PINNABLE: Final = OWNER_MASK | ZOMBIE | GUARD | MAX_PINS
"""Bits that must equal ``owner << OWNER_SHIFT`` in a page that is about to be pinned."""

_SHOWABLE: Final = OUTSIDER << OWNER_SHIFT
"""Owners below are those whose pages no guest may know of."""

BLOCK_SHIFT: Final = 9
BLOCK: Final = 1 << BLOCK_SHIFT
"""Frames that are written into the table together: 512 words are one page of the machine below."""

_BLOCK_SHIFT: Final = np.int64(BLOCK_SHIFT)
_OWNED: Final = np.int64(OWNER_MASK | ZOMBIE)


class FrameTable:
    """Frames ``[first, first + frames)``: ownership, references, and the pool of free frames."""

    __slots__ = (
        "_blocks",
        "_filled",
        "_free",
        "_owned",
        "_run_starts",
        "_runs",
        "_zombies",
        "array",
        "end",
        "first",
        "words",
    )

    def __init__(self, frames: int, first: int) -> None:
        end = first + frames
        if frames < 1 or first < 1 or end - 1 >> PFN_BITS:
            raise ValueError(
                f"{frames} frames from frame {first:#x} on: need 1 .. 2^{PFN_BITS} - 1"
            )
        self.first = first
        self.end = end
        table = zeroed(8 * end)
        self.words = table.cast("q")
        self.array: Int64Array = np.frombuffer(table, np.int64)
        self._filled = bytearray((end >> BLOCK_SHIFT) + 1)
        self._free = RunSet(first, end)
        self._run_starts: list[int] = []
        self._runs: list[tuple[int, int, int]] = []  # start, end, owner; true in blocks not filled
        self._blocks: dict[int, dict[int, None]] = {}  # owner -> filled blocks where it has frames
        self._owned: dict[int, int] = {}
        self._zombies: dict[int, int] = {}

    # -- looking ------------------------------------------------------------------------------

    @property
    def free_frames(self) -> int:
        """Frames that may be handed out."""
        return len(self._free)

    def word(self, pfn: int) -> int:
        """The word of a frame, 0 for one that nobody owns or that is not RAM."""
        if not self.first <= pfn < self.end:
            return 0
        if not self._filled[pfn >> BLOCK_SHIFT]:
            self._fill(pfn >> BLOCK_SHIFT, (pfn >> BLOCK_SHIFT) + 1)
        return self.words[pfn]

    def owner(self, pfn: int) -> int:
        """Owner number of a frame, also of a zombie (its late owner)."""
        return self.word(pfn) >> OWNER_SHIFT

    def pins(self, pfn: int) -> int:
        """Pins of a frame."""
        return self.word(pfn) & PIN_MASK

    def mappings(self, pfn: int) -> int:
        """Guests' foreign and grant mappings of a frame."""
        return (self.word(pfn) & MAPPING_MASK) // MAPPING

    def is_zombie(self, pfn: int) -> bool:
        """Whether only references keep the frame alive."""
        return bool(self.word(pfn) & ZOMBIE)

    def is_referenced(self, pfn: int) -> bool:
        """Whether anything pins the frame or maps it elsewhere."""
        return bool(self.word(pfn) & HELD)

    def owned(self, owner: int) -> int:
        """Frames of ``owner``, zombies included."""
        return self._owned.get(owner, 0)

    def zombies(self, owner: int) -> int:
        """Frames that ``owner`` gave up and that references keep alive."""
        return self._zombies.get(owner, 0)

    def referenced(self, owner: int, mask: int = PIN_MASK) -> dict[int, int]:
        """``{pfn: word}`` of the frames of ``owner`` whose word has a bit of ``mask``, ascending."""
        numbers, words = self._owned_words(owner)
        chosen = np.flatnonzero(words & np.int64(mask))
        return dict(zip(numbers[chosen].tolist(), words[chosen].tolist(), strict=True))

    def fill(self, pfn: int, pages: int) -> None:
        """Write the words of these frames into the table, so that ``words`` and ``array`` have them."""
        self._fill(pfn >> BLOCK_SHIFT, (pfn + pages - 1 >> BLOCK_SHIFT) + 1)

    def fill_for(self, pfns: Int64Array) -> bool:
        """Write the words of all these frames into the table; False if all were there already."""
        blocks = pfns >> _BLOCK_SHIFT
        filled = np.frombuffer(self._filled, np.uint8)
        missing = blocks[filled[blocks] == 0]
        if not missing.size:
            return False
        missing = _distinct(missing)
        edges = np.flatnonzero(np.diff(missing) != 1) + 1
        for group in np.split(missing, edges):
            self._fill(int(group[0]), int(group[-1]) + 1)
        return True

    # -- owners -------------------------------------------------------------------------------

    def claim(self, owner: int, pfn: int, pages: int = 1, step: int = 1) -> None:
        """Give ``pages`` free frames ``pfn, pfn + step, …`` to ``owner``.

        Raises :class:`InvariantError`, and gives nothing, if one of them is not free RAM.
        """
        runs = _strided(pfn, pages, step)
        if step < 1 or not all(self._free.covers(start, end) for start, end in runs):
            raise InvariantError("claim", f"not all of {pages} frames from {pfn:#x} are free RAM")
        for start, end in runs:
            self._free.remove(start, end)
        if len(runs) == 1:
            self._hand_over(owner, *runs[0])
        else:
            self._hand_over_frames(owner, np.arange(pages, dtype=np.int64) * step + pfn)

    def allocate(self, owner: int, pages: int) -> list[tuple[int, int]] | None:
        """Give ``owner`` any ``pages`` frames: ``(pfn, length)`` runs, the lowest that fit.

        One run whenever a free one is long enough. ``None``: there are too few free frames.
        """
        runs = self._free.take(pages)
        if runs is not None:
            for start, length in runs:
                self._hand_over(owner, start, start + length)
        return runs

    def claim_highest(self, owner: int, pages: int, align: int) -> int | None:
        """Give ``owner`` the highest free run that starts at a multiple of ``align``: its start."""
        pfn = self._free.last_fit(pages, align)
        if pfn is not None:
            self.claim(owner, pfn, pages)
        return pfn

    def change_owner(self, pfn: int, owner: int) -> None:
        """Make a frame without references ``owner``'s. Its content goes with it."""
        word = self.word(pfn)
        if not word or word & (HELD | ZOMBIE):
            raise InvariantError("change_owner", f"frame {pfn:#x} is free or referenced")
        self._owned[word >> OWNER_SHIFT] -= 1
        self._owned[owner] = self._owned.get(owner, 0) + 1
        self._write_run(owner, pfn, pfn + 1)

    def release(self, owner: int, pfn: int, pages: int = 1, step: int = 1) -> int:
        """Take frames ``pfn, pfn + step, …`` from ``owner``, which must own all of them.

        Referenced ones become zombies; returns how many. The others are scrubbed and free. With
        any other step than 1 the frames go one by one.
        """
        return sum(
            self._release_run(owner, start, end) for start, end in _strided(pfn, pages, step)
        )

    def release_owner(self, owner: int) -> tuple[int, int]:
        """Take everything from ``owner``: ``(frames freed, frames that became zombies)``."""
        before, zombies = self.owned(owner), self.zombies(owner)
        mine = [run for run in self._runs if run[2] == owner]
        if mine:
            self._runs = [run for run in self._runs if run[2] != owner]
            self._run_starts = [run[0] for run in self._runs]
        for start, end, _ in mine:
            self._to_free(owner, start, end)
        numbers, words = self._owned_words(owner)
        fresh = (words & np.int64(ZOMBIE)) == 0
        self._release_words(owner, numbers[fresh], words[fresh])
        if not self.owned(owner):
            self._blocks.pop(owner, None)
        held = self.zombies(owner) - zombies
        return before - zombies - held, held

    # -- references ---------------------------------------------------------------------------

    def mappable(self, pfn: int) -> bool:
        """Whether a guest may be shown the frame: free, or owned by a guest or an outsider."""
        word = self.word(pfn)
        if not word:
            return self.first <= pfn < self.end
        return not word & ZOMBIE and word & MAPPING_MASK != MAPPING_MASK and word >= _SHOWABLE

    def add_mapping(self, pfn: int) -> None:
        """One more foreign or grant mapping of a frame that somebody owns."""
        if not self.word(pfn) or not self.mappable(pfn):
            raise InvariantError("add_mapping", f"frame {pfn:#x} cannot be mapped once more")
        self.words[pfn] += MAPPING

    def drop_mapping(self, pfn: int) -> None:
        """One mapping less; the last reference of a zombie frees it."""
        word = self.word(pfn)
        if not word & MAPPING_MASK:
            raise InvariantError("drop_mapping", f"frame {pfn:#x} is not mapped elsewhere")
        self.words[pfn] = word - MAPPING
        self.reap(pfn)

    def reap(self, pfn: int) -> int:
        """Free the frame if it is a zombie without references: 1 if it was, otherwise 0."""
        word = self.words[pfn]
        if not word & ZOMBIE or word & HELD:
            return 0
        owner = word >> OWNER_SHIFT
        self.words[pfn] = 0
        self._zombies[owner] -= 1
        self._to_free(owner, pfn, pfn + 1)
        return 1

    # -- inside -------------------------------------------------------------------------------

    def scrub(self, start: int, end: int) -> None:
        """Called with frames that become free, before anybody can get them."""

    def _hand_over_frames(self, owner: int, pfns: Int64Array) -> None:
        """Write ``owner`` into the words of frames that were taken from the free ones."""
        self.fill_for(pfns)
        self.array[pfns] = owner << OWNER_SHIFT
        self._blocks.setdefault(owner, {}).update(
            dict.fromkeys(_distinct(pfns >> _BLOCK_SHIFT).tolist())
        )
        self._owned[owner] = self._owned.get(owner, 0) + len(pfns)

    def _hand_over(self, owner: int, start: int, end: int) -> None:
        self._owned[owner] = self._owned.get(owner, 0) + end - start
        if end - start < BLOCK:
            # Small pieces go straight into the table, so that the list of runs stays short.
            self._fill(start >> BLOCK_SHIFT, (end - 1 >> BLOCK_SHIFT) + 1)
        for low, high in self._parts(start, end, 1):
            self._write_run(owner, low, high)
        for low, high in self._parts(start, end, 0):
            self._put_run(owner, low, high)

    def _put_run(self, owner: int, start: int, end: int) -> None:
        index = bisect_right(self._run_starts, start)
        self._run_starts.insert(index, start)
        self._runs.insert(index, (start, end, owner))

    def _write_run(self, owner: int, start: int, end: int) -> None:
        self.array[start:end] = owner << OWNER_SHIFT
        blocks = self._blocks.setdefault(owner, {})
        for block in range(start >> BLOCK_SHIFT, (end - 1 >> BLOCK_SHIFT) + 1):
            blocks[block] = None

    def _fill(self, low: int, high: int) -> None:
        """Move runs into the words of those of blocks ``[low, high)`` that are not filled yet."""
        for start, end in list(self._parts(low << BLOCK_SHIFT, high << BLOCK_SHIFT, 0)):
            for run_start, run_end, owner in self._cut_runs(start, end):
                self._write_run(owner, run_start, run_end)
            blocks = slice(start >> BLOCK_SHIFT, end >> BLOCK_SHIFT)
            self._filled[blocks] = b"\1" * (blocks.stop - blocks.start)

    def _cut_runs(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Take what lies in ``[start, end)`` out of the runs and return it."""
        low = max(bisect_right(self._run_starts, start) - 1, 0)
        high = bisect_right(self._run_starts, end - 1)
        cut: list[tuple[int, int, int]] = []
        kept: list[tuple[int, int, int]] = []
        for run_start, run_end, owner in self._runs[low:high]:
            first, last = max(start, run_start), min(end, run_end)
            if first >= last:
                kept.append((run_start, run_end, owner))
                continue
            cut.append((first, last, owner))
            kept.extend(
                (piece_start, piece_end, owner)
                for piece_start, piece_end in ((run_start, first), (last, run_end))
                if piece_start < piece_end
            )
        self._runs[low:high] = kept
        self._run_starts[low:high] = [run[0] for run in kept]
        return cut

    def _parts(self, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
        """Parts of ``[start, end)`` in blocks whose filled mark is ``wanted``."""
        filled, block_end = self._filled, (end - 1 >> BLOCK_SHIFT) + 1
        block = start >> BLOCK_SHIFT
        while block < block_end:
            block = filled.find(wanted, block, block_end)
            if block < 0:
                return
            stop = filled.find(1 - wanted, block, block_end)
            stop = block_end if stop < 0 else stop
            yield max(start, block << BLOCK_SHIFT), min(end, stop << BLOCK_SHIFT)
            block = stop

    def _owned_words(self, owner: int) -> tuple[Int64Array, Int64Array]:
        """``(pfns, words)`` of the frames of ``owner`` in filled blocks: all that have references."""
        blocks = np.array(sorted(self._blocks.get(owner, ())), np.int64)
        numbers = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        numbers = numbers[numbers < self.end]
        words = self.array[numbers]
        mine = np.flatnonzero(words >> OWNER_SHIFT == owner)
        return numbers[mine], words[mine]

    def _release_run(self, owner: int, start: int, end: int) -> int:
        if not self.first <= start < end <= self.end:
            raise InvariantError("release", f"frames {start:#x}..{end:#x} are not all RAM")
        if end - start < BLOCK:
            self._fill(start >> BLOCK_SHIFT, (end - 1 >> BLOCK_SHIFT) + 1)
        parts = list(self._parts(start, end, 1))
        cut = [run for low, high in self._parts(start, end, 0) for run in self._cut_runs(low, high)]
        mine = sum(high - low for low, high in parts) + sum(run[1] - run[0] for run in cut)
        wrong = any(run[2] != owner for run in cut) or any(
            np.any((self.array[low:high] & _OWNED) != owner << OWNER_SHIFT) for low, high in parts
        )
        if wrong or mine != end - start:
            for run_start, run_end, run_owner in cut:
                self._put_run(run_owner, run_start, run_end)
            raise InvariantError("release", f"frames {start:#x}..{end:#x} are not all {owner}'s")
        for run_start, run_end, _ in cut:
            self._to_free(owner, run_start, run_end)
        held = 0
        for low, high in parts:
            numbers = np.arange(low, high, dtype=np.int64)
            held += self._release_words(owner, numbers, self.array[low:high].copy())
        return held

    def _release_words(self, owner: int, numbers: Int64Array, words: Int64Array) -> int:
        """Free these frames (ascending; their words are given) or make them zombies."""
        busy = (words & np.int64(HELD)) != 0
        held = int(np.count_nonzero(busy))
        if held:
            self.array[numbers[busy]] |= np.int64(ZOMBIE)
            self._zombies[owner] = self._zombies.get(owner, 0) + held
            numbers = numbers[~busy]
        self.array[numbers] = 0
        if numbers.size:
            edges = np.flatnonzero(np.diff(numbers) != 1) + 1
            starts = numbers[np.concatenate(([0], edges))].tolist()
            ends = (numbers[np.concatenate((edges - 1, [-1]))] + 1).tolist()
            for start, end in zip(starts, ends, strict=True):
                self._to_free(owner, start, end)
        return held

    def _to_free(self, owner: int, start: int, end: int) -> None:
        self.scrub(start, end)
        self._free.add(start, end)
        self._owned[owner] -= end - start


def _distinct(values: Int64Array) -> Int64Array:
    """Each number of a block once, ascending: marks in a range, which for blocks is short.

    ``np.unique`` sorts, and at its first use loads another tenth of a second of its library.
    """
    if not values.size:
        return values
    first = values.min()
    marks = np.zeros(int(values.max() - first) + 1, np.bool_)
    marks[values - first] = True
    found: Int64Array = np.flatnonzero(marks).astype(np.int64, copy=False)
    found += first
    return found


def _strided(pfn: int, pages: int, step: int) -> list[tuple[int, int]]:
    """Runs ``(start, end)`` of the frames ``pfn, pfn + step, …``."""
    if step == 1:
        return [(pfn, pfn + pages)]
    return [(number, number + 1) for number in range(pfn, pfn + pages * step, step or 1)]
