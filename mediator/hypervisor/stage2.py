# SPDX-License-Identifier: BSD-2-Clause
"""Stage-2 translation of one guest: which physical page lies behind an IPA, and of which kind.

An *entry* is one number, ``frame number << 3 | kind``. A guest starts as a few *extents* (a range
of pages whose frames follow each other at a fixed step), which cost nothing however large they are.
Changing single pages turns the 2 MiB around them into a *chunk* of 512 entries in a pool; changes of
whole 2 MiB slots edit the extents. A chunk overrides whatever extents say about its slot. Long page
lists go through a *directory* with one line per slot, built when the first long list comes.

This is a table and nothing else: it neither owns frames nor counts references. Only
:class:`mediator.hypervisor.guests.GuestMemory`, which does, may change the table of a live guest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mediator.host import PAGE_MASK, PAGE_SHIFT
from mediator.hypervisor.errors import InvariantError

ABSENT: Final = 0
MMIO: Final = 1
GRANT_RO: Final = 2
GRANT_RW: Final = 3
FOREIGN_RO: Final = 4
FOREIGN_RW: Final = 5
OWN_RO: Final = 6
OWN_RW: Final = 7
"""Kinds. The order makes checks cheap: the guest's own RAM is ``>= OWN_RO``, RAM of any kind is
``>= GRANT_RO``, writable RAM is odd and not MMIO, and a bitwise AND over a whole list of entries ends
in ``OWN_RW`` exactly if every page is the guest's own read-write RAM."""

KIND_NAMES: Final = (
    "absent",
    "mmio",
    "grant_ro",
    "grant_rw",
    "foreign_ro",
    "foreign_rw",
    "own_ro",
    "own_rw",
)

KIND_SHIFT: Final = 3
KIND_MASK: Final = 7
IPA_BITS: Final = 52
"""The largest IPA size of the architecture (Arm ARM, FEAT_LPA). Anything above is absent."""
PFN_BITS: Final = 29
"""An entry has 32 bits, so that a 1 GiB guest needs 1 MiB at worst: 2 TiB of physical addresses."""

SLOT_SHIFT: Final = 9
SLOT_PAGES: Final = 1 << SLOT_SHIFT
"""Pages of a slot: what one level-2 block of the architecture maps, 2 MiB with 4 KiB pages."""
SLOT_MASK: Final = SLOT_PAGES - 1
WINDOW_GAP: Final = 512
"""Unmapped slots (1 GiB) that a directory may hold between mapped ones before it is split in two."""
TLB_ENTRIES: Final = 32
"""Pages that :meth:`Stage2.translate` remembers: a driver's call path touches fewer than ten."""

Int64Array: TypeAlias = NDArray[np.int64]
EntryArray: TypeAlias = NDArray[np.uint32]

_LAST_GFN: Final = (1 << IPA_BITS - PAGE_SHIFT) - 1
_GFN_SHIFT: Final = np.int64(SLOT_SHIFT)
_LOW: Final = np.int64(SLOT_MASK)


class Mapping(NamedTuple):
    """A run of mapped pages: page ``i`` of it is frame ``pfn + i * step``."""

    gfn: int
    pages: int
    pfn: int
    step: int
    kind: int


class _Directory:
    """One line per slot, for gathers: entry = pool[offset + low bits] + base.

    The pool holds *ramps* ``0, step, 2 step, …``, so that a slot inside one extent is a ramp plus the
    entry of its first page; a chunk is itself plus 0, an absent slot the ramp of step 0 plus 0. The
    first and the last line are absent: whatever lies outside is clipped to one of them.
    """

    __slots__ = ("bases", "compact", "linear", "offsets", "windows")

    def __init__(self, windows: list[tuple[int, int, int]], lines: int, absent: int) -> None:
        self.windows = windows
        self.offsets: Int64Array = np.full(lines + 2, absent, np.int64)
        self.bases: EntryArray = np.zeros(lines + 2, np.uint32)
        self.linear = False
        self.compact: int | None = None

    def line(self, slot: int) -> int | None:
        for first, slots, line in self.windows:
            if 0 <= slot - first < slots:
                return line + slot - first
        return None

    def lines(self, gfns: Int64Array) -> Int64Array:
        """Line of each page; may lie outside of the directory, where everything is absent."""
        slots = gfns >> _GFN_SHIFT
        if len(self.windows) == 1:
            first, _, line = self.windows[0]
            slots -= first - line
            return slots
        lines = np.zeros(len(gfns), np.int64)
        for first, count, line in self.windows:
            inside = (slots >= first) & (slots < first + count)
            np.copyto(lines, slots + (line - first), where=inside)
        return lines

    def settle(self) -> None:
        """Find out whether all slots are chunks that lie in the pool in order: no look-up then."""
        self.linear = bool(self.bases.any())
        offsets = self.offsets[1:-1]
        in_order = len(self.windows) == 1 and bool(np.all(np.diff(offsets) == SLOT_PAGES))
        self.compact = int(offsets[0]) if in_order and not self.linear else None


class Stage2:
    """The table of one guest. Frame numbers (``gfn`` guest, ``pfn`` machine) count 4 KiB pages."""

    __slots__ = (
        "_array",
        "_chunks",
        "_directory",
        "_free_chunks",
        "_pool_used",
        "_ramps",
        "_spans",
        "_starts",
        "_words",
        "tlb",
    )

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._spans: list[tuple[int, int, int, int]] = []  # first gfn, pages, first entry, step
        self._chunks: dict[int, int] = {}  # slot -> offset in the pool
        self._array: EntryArray = np.zeros(0, np.uint32)
        self._words = self._array.data
        self._pool_used = 0
        self._free_chunks: list[int] = []
        self._ramps: dict[int, int] = {}
        self._directory: _Directory | None = None
        self.tlb: dict[int, int] = {}
        """gfn -> entry of pages translated lately, never an absent one; every change empties it."""

    # -- looking up ---------------------------------------------------------------------------

    def entry(self, gfn: int) -> int:
        """Entry of a page: ``pfn << 3 | kind``. Any ``gfn`` is legal; 0 if nothing was ever there."""
        if self._chunks:
            offset = self._chunks.get(gfn >> SLOT_SHIFT)
            if offset is not None:
                return self._words[offset + (gfn & SLOT_MASK)]
        index = bisect_right(self._starts, gfn)
        if index:
            start, pages, first, step = self._spans[index - 1]
            distance = gfn - start
            if distance < pages:
                return first + distance * step
        return 0

    def translate(self, gfn: int) -> int:
        """As :meth:`entry`, and remember it in :attr:`tlb` (callers look there first)."""
        found = self.entry(gfn)
        if found & KIND_MASK:
            tlb = self.tlb
            if len(tlb) >= TLB_ENTRIES:
                tlb.clear()
            tlb[gfn] = found
        return found

    def lookup(self, gfn: int) -> tuple[int, int]:
        """``(pfn, kind)`` of a page. An absent page may still have a frame (see :meth:`remap`)."""
        found = self.entry(gfn)
        return found >> KIND_SHIFT, found & KIND_MASK

    def entries(self, gfns: Int64Array) -> EntryArray:
        """Entries of many pages at once, each as :meth:`entry` gives it."""
        if not self._chunks and len(self._spans) == 1:
            start, pages, first, step = self._spans[0]
            distance = gfns - start
            if distance.size and int(np.maximum.reduce(distance.view(np.uint64))) < pages:
                distance *= step
                distance += first
                return distance.astype(np.uint32)
        directory = self._directory
        if directory is None:
            directory = self._directory = self._build_directory()
        if directory.compact is not None:
            first, slots, _ = directory.windows[0]
            places = gfns - (first << SLOT_SHIFT)
            highest = int(np.maximum.reduce(places.view(np.uint64))) if places.size else 0
            if places.size and highest < slots << SLOT_SHIFT:
                if directory.compact:
                    places += directory.compact
                return self._array.take(places)
        lines = directory.lines(gfns)
        places = gfns & _LOW
        # Clipping is wanted, and also the fastest of NumPy's modes.
        places += directory.offsets.take(lines, mode="clip")
        found = self._array.take(places)
        if directory.linear:
            found += directory.bases.take(lines, mode="clip")
        return found

    def gather(self, gfns: Int64Array) -> tuple[Int64Array, NDArray[np.uint8]]:
        """``(pfns, kinds)`` of many pages at once, each as :meth:`lookup` gives it."""
        found = self.entries(gfns)
        return (found >> KIND_SHIFT).astype(np.int64), (found & KIND_MASK).astype(np.uint8)

    def mappings(self, gfn: int = 0, pages: int = _LAST_GFN + 1) -> list[Mapping]:
        """Runs of pages in ``[gfn, gfn + pages)`` whose entry is not 0, in ascending order."""
        end = gfn + pages
        found = [
            run
            for start, count, first, step in self._spans
            if start < end and start + count > gfn
            for run in self._clip_span(start, count, first, step, gfn, end)
        ]
        for slot in sorted(self._chunks):
            base = slot << SLOT_SHIFT
            if base < end and base + SLOT_PAGES > gfn:
                found.extend(self._chunk_runs(slot, max(gfn, base), min(end, base + SLOT_PAGES)))
        found.sort()
        return found

    def page_count(self) -> int:
        """Pages that are not absent."""
        return sum(run.pages for run in self.mappings() if run.kind != ABSENT)

    # -- changing -----------------------------------------------------------------------------

    def map_range(self, ipa: int, pages: int, kind: int, pa: int, pa_step: int = 4096) -> None:
        """Map ``pages`` pages from ``ipa``: page ``i`` to ``pa + i * pa_step``, whatever was there.

        Addresses and step are multiples of 4096; a step of 0 maps the same frame everywhere. Raises
        :class:`InvariantError` for a range outside 52-bit IPAs or 41-bit PAs.
        """
        gfn = self.check_range("map_range", ipa, pages)
        if (pa | pa_step) & PAGE_MASK or not 0 <= kind <= OWN_RW:
            raise InvariantError(
                "Stage2.map_range", f"bad pa {pa:#x}, step {pa_step:#x} or kind {kind}"
            )
        pfn, step = pa >> PAGE_SHIFT, pa_step >> PAGE_SHIFT
        if pfn < 0 or step < 0 or pfn + (pages - 1) * step >> PFN_BITS:
            raise InvariantError(
                "Stage2.map_range", f"physical address {pa:#x} does not fit an entry"
            )
        self._changed()
        self._set(gfn, gfn + pages, pfn << KIND_SHIFT | kind, step << KIND_SHIFT)

    def map_frames(self, ipa: int, kind: int, pfns: Int64Array) -> None:
        """Map consecutive pages from ``ipa`` to the listed frames, in order."""
        gfn = self.check_range("map_frames", ipa, len(pfns))
        if int(pfns.min()) < 0 or int(pfns.max()) >> PFN_BITS:
            raise InvariantError("Stage2.map_frames", "a frame does not fit an entry")
        self._changed()
        values = (pfns << KIND_SHIFT | kind).astype(np.uint32)
        for slot, low, high in _slices(gfn, gfn + len(pfns)):
            offset = self._materialise(slot)
            at = (slot << SLOT_SHIFT) + low - gfn
            self._array[offset + low : offset + high] = values[at : at + high - low]

    def unmap(self, ipa: int, pages: int) -> None:
        """Make the pages absent and forget their frames. Unmapped pages may be among them."""
        gfn = self.check_range("unmap", ipa, pages)
        self._changed()
        self._set(gfn, gfn + pages, 0, 0)

    def remap(self, ipa: int, pages: int, kind: int) -> None:
        """Change the kind of mapped pages; each keeps its frame, also when it becomes absent.

        Raises :class:`InvariantError`, and changes nothing, if one of them has no frame.
        """
        gfn = self.check_range("remap", ipa, pages)
        if sum(run.pages for run in self.mappings(gfn, pages)) != pages:
            raise InvariantError(
                "Stage2.remap", f"a page of {ipa:#x} + {pages} pages was never mapped"
            )
        self._changed()
        for slot, low, high in _slices(gfn, gfn + pages):
            offset = self._materialise(slot)
            part = self._array[offset + low : offset + high]
            part &= np.uint32(~KIND_MASK & 0xFFFF_FFFF)
            part |= np.uint32(kind)

    @staticmethod
    def check_range(call: str, ipa: int, pages: int) -> int:
        """First gfn of a range that can be mapped; raises :class:`InvariantError` otherwise."""
        gfn = ipa >> PAGE_SHIFT
        if ipa & PAGE_MASK or pages < 1 or ipa < 0 or gfn + pages - 1 > _LAST_GFN:
            raise InvariantError(f"Stage2.{call}", f"bad range {ipa:#x} + {pages} pages")
        return gfn

    # -- inside -------------------------------------------------------------------------------

    def _changed(self) -> None:
        self.tlb.clear()

    def _set(self, start: int, end: int, first: int, step: int) -> None:
        """Entries ``first, first + step, …`` for ``[start, end)``; all 0 if ``first`` is 0."""
        if first and not self._touched(start, end):
            self._insert(start, end, first, step)
            return
        head = min(-start & SLOT_MASK, end - start)
        tail = 0 if start + head == end else end & SLOT_MASK
        whole_start, whole_end = start + head, end - tail
        if whole_start < whole_end:
            slots = range(whole_start >> SLOT_SHIFT, whole_end >> SLOT_SHIFT)
            for slot in self._chunks_in(slots):
                self._free_chunks.append(self._chunks.pop(slot))
            self._carve(whole_start, whole_end)
            if first:
                self._insert(whole_start, whole_end, first + (whole_start - start) * step, step)
            self._directory = None
        for part_start, part_end in ((start, whole_start), (whole_end, end)):
            if part_start < part_end:
                slot, low = part_start >> SLOT_SHIFT, part_start & SLOT_MASK
                count = part_end - part_start
                offset = self._materialise(slot) + low
                self._array[offset : offset + count] = _ramp(
                    first + (part_start - start) * step, step, count
                )

    def _touched(self, start: int, end: int) -> bool:
        """Whether an extent overlaps the range or a chunk covers a slot of it."""
        index = bisect_right(self._starts, start)
        if index and self._spans[index - 1][0] + self._spans[index - 1][1] > start:
            return True
        if index < len(self._starts) and self._starts[index] < end:
            return True
        slots = range(start >> SLOT_SHIFT, (end - 1 >> SLOT_SHIFT) + 1)
        return bool(self._chunks) and bool(self._chunks_in(slots))

    def _chunks_in(self, slots: range) -> list[int]:
        if len(slots) < len(self._chunks):
            return [slot for slot in slots if slot in self._chunks]
        return [slot for slot in self._chunks if slot in slots]

    def _insert(self, start: int, end: int, first: int, step: int) -> None:
        index = bisect_right(self._starts, start)
        self._directory = None
        if index:
            before, pages, entry, before_step = self._spans[index - 1]
            if before + pages == start and before_step == step and entry + pages * step == first:
                self._spans[index - 1] = (before, pages + end - start, entry, step)
                return
        self._starts.insert(index, start)
        self._spans.insert(index, (start, end - start, first, step))

    def _carve(self, start: int, end: int) -> None:
        """Take ``[start, end)`` out of the extents."""
        low = bisect_right(self._starts, start)
        if low and self._spans[low - 1][0] + self._spans[low - 1][1] > start:
            low -= 1
        high = low
        kept: list[tuple[int, int, int, int]] = []
        while high < len(self._starts) and self._starts[high] < end:
            span_start, pages, first, step = self._spans[high]
            span_end = span_start + pages
            if span_start < start:
                kept.append((span_start, start - span_start, first, step))
            if span_end > end:
                kept.append((end, span_end - end, first + (end - span_start) * step, step))
            high += 1
        self._spans[low:high] = kept
        self._starts[low:high] = [span[0] for span in kept]

    def _materialise(self, slot: int) -> int:
        """Offset of the slot's chunk, which is made from the extents if it has none yet."""
        offset = self._chunks.get(slot)
        if offset is not None:
            return offset
        offset = self._free_chunks.pop() if self._free_chunks else self._grow()
        base = slot << SLOT_SHIFT
        self._array[offset : offset + SLOT_PAGES] = 0
        for start, pages, first, step in self._spans_in(base, base + SLOT_PAGES):
            low, high = max(start, base), min(start + pages, base + SLOT_PAGES)
            at = offset + low - base
            self._array[at : at + high - low] = _ramp(
                first + (low - start) * step, step, high - low
            )
        self._chunks[slot] = offset
        directory = self._directory
        if directory is not None:
            line = directory.line(slot)
            if line is None:
                self._directory = None
            else:
                directory.offsets[line] = offset
                directory.bases[line] = 0
        return offset

    def _spans_in(self, start: int, end: int) -> list[tuple[int, int, int, int]]:
        low = max(bisect_right(self._starts, start) - 1, 0)
        high = bisect_right(self._starts, end - 1)
        return [span for span in self._spans[low:high] if span[0] + span[1] > start]

    def _grow(self) -> int:
        """Offset of one more chunk; the pool doubles when it is full."""
        offset = self._pool_used
        if offset + SLOT_PAGES > len(self._array):
            larger: EntryArray = np.zeros(max(2 * offset, 2 * SLOT_PAGES), np.uint32)
            larger[:offset] = self._array[:offset]
            self._array = larger
            self._words = larger.data
        self._pool_used += SLOT_PAGES
        return offset

    def _ramp_chunk(self, step: int) -> int:
        """Offset of the shared chunk ``0, step, 2 step, …``; step 0 is the absent slot."""
        offset = self._ramps.get(step)
        if offset is None:
            offset = self._grow()
            self._array[offset : offset + SLOT_PAGES] = _ramp(0, step, SLOT_PAGES)
            self._ramps[step] = offset
        return offset

    def _build_directory(self) -> _Directory:
        # A slot that an extent fills only in part has no line of the simple form: make it a chunk.
        for start, pages, _, _ in self._spans:
            for edge in (start, start + pages):
                if edge & SLOT_MASK:
                    self._materialise(edge >> SLOT_SHIFT)
        windows = self._windows()
        lines = sum(slots for _, slots, _ in windows)
        directory = _Directory(windows, lines, self._ramp_chunk(0))
        for start, pages, first, step in self._spans:
            low, high = -(-start >> SLOT_SHIFT), start + pages >> SLOT_SHIFT
            line = directory.line(low)
            if low < high and line is not None:
                where = slice(line, line + high - low)
                directory.offsets[where] = self._ramp_chunk(step)
                slot_step = step << SLOT_SHIFT
                directory.bases[where] = _ramp(
                    first + ((low << SLOT_SHIFT) - start) * step, slot_step, high - low
                )
        for slot, offset in self._chunks.items():
            line = directory.line(slot)
            if line is not None:
                directory.offsets[line] = offset
                directory.bases[line] = 0
        directory.settle()
        return directory

    def _windows(self) -> list[tuple[int, int, int]]:
        """``(first slot, slots, first line)`` of the parts of the IPA space that hold anything."""
        ranges = [
            (start >> SLOT_SHIFT, start + pages - 1 >> SLOT_SHIFT)
            for start, pages, _, _ in self._spans
        ]
        ranges.extend((slot, slot) for slot in self._chunks)
        ranges.sort()
        merged: list[list[int]] = []
        for low, high in ranges:
            if merged and low - merged[-1][1] <= WINDOW_GAP:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        windows: list[tuple[int, int, int]] = []
        line = 1
        for low, high in merged:
            windows.append((low, high - low + 1, line))
            line += high - low + 1
        return windows

    def _clip_span(
        self, start: int, pages: int, first: int, step: int, low: int, high: int
    ) -> Iterator[Mapping]:
        """The parts of an extent inside ``[low, high)`` that no chunk overrides."""
        at, end = max(start, low), min(start + pages, high)
        slots = range(at >> SLOT_SHIFT, (end - 1 >> SLOT_SHIFT) + 1)
        for slot in [*sorted(self._chunks_in(slots)), slots.stop + 1]:
            stop = min(slot << SLOT_SHIFT, end)
            if at < stop:
                entry = first + (at - start) * step
                yield Mapping(
                    at, stop - at, entry >> KIND_SHIFT, step >> KIND_SHIFT, entry & KIND_MASK
                )
            at = max(at, slot + 1 << SLOT_SHIFT)

    def _chunk_runs(self, slot: int, low: int, high: int) -> Iterator[Mapping]:
        base = self._chunks[slot] - (slot << SLOT_SHIFT)
        values = self._array[base + low : base + high].astype(np.int64)
        one = 1 << KIND_SHIFT
        # Nothing, followed by frame 1 made absent (entry 8), is not a run although the step fits.
        breaks = np.flatnonzero((np.diff(values) != one) | (values[:-1] == 0)) + 1
        edges = [0, *breaks.tolist(), len(values)]
        for start, end in pairwise(edges):
            entry = int(values[start])
            if entry:
                yield Mapping(low + start, end - start, entry >> KIND_SHIFT, 1, entry & KIND_MASK)


def _ramp(first: int, step: int, count: int) -> EntryArray:
    return (np.arange(count, dtype=np.int64) * step + first).astype(np.uint32)


def _slices(start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """``(slot, low, high)``: the pages of ``[start, end)`` slot by slot."""
    while start < end:
        slot = start >> SLOT_SHIFT
        stop = min(end, slot + 1 << SLOT_SHIFT)
        yield slot, start & SLOT_MASK, stop - (slot << SLOT_SHIFT)
        start = stop
