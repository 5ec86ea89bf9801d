# SPDX-License-Identifier: BSD-2-Clause
"""Physical memory: the frame table, and what the frames contain.

RAM is sparse: contents exist in *banks* of 64 KiB that are made when somebody first writes, and a
frame that nobody wrote reads as zeroes. Banks are private memory of this process (a shared mapping
would let forked workers write into each other's guests). Frames that become free are scrubbed, so no
owner ever sees what the one before it left (I1).
"""

from __future__ import annotations

import random
from typing import Final

import numpy as np

from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import OWNER_SHIFT, FrameTable
from mediator.hypervisor.lazy import zeroed
from mediator.hypervisor.stage2 import Int64Array

BANK_SHIFT: Final = 16
BANK_SIZE: Final = 1 << BANK_SHIFT
"""64 KiB: cheap to make for a single touched page, few enough to hold a gigabyte."""
BANK_MASK: Final = BANK_SIZE - 1

MAX_VIEWS: Final = 8192
"""Pages whose views are remembered: the call path of 1,000 guests touches fewer. With more, it starts
again; a view takes some 200 bytes."""

DEFAULT_FRAMES: Final = 4 << 20
"""16 GiB of RAM. Nothing of it costs memory before it is touched."""
DEFAULT_FIRST: Final = 8 << 20
"""RAM starts at physical address 32 GiB: above the IPAs that guests use, so no IPA equals its PA."""


class PhysicalMemory(FrameTable):
    """RAM of ``frames`` pages from frame number ``first`` on. Addresses elsewhere are errors."""

    __slots__ = ("_attached", "banks", "views")

    def __init__(self, frames: int = DEFAULT_FRAMES, first: int = DEFAULT_FIRST) -> None:
        super().__init__(frames, first)
        self.banks: dict[int, memoryview] = {}
        """Contents by ``pa >> BANK_SHIFT``; a missing bank is all zeroes."""
        self.views: dict[int, memoryview] = {}
        """Pages touched lately, by frame number, each a view of its bank: what the call path looks
        at first. :meth:`view` makes them."""
        self._attached: dict[int, None] = {}

    def is_ram(self, pa: int, length: int = 1) -> bool:
        """Whether all of ``length`` bytes from ``pa`` on are RAM."""
        return self.first <= pa >> PAGE_SHIFT and pa + length <= self.end << PAGE_SHIFT

    def overlaps(self, pa: int, length: int) -> bool:
        """Whether any of ``length`` bytes from ``pa`` on is RAM."""
        return pa < self.end << PAGE_SHIFT and pa + length > self.first << PAGE_SHIFT

    def read(self, pa: int, length: int) -> bytes:
        """Copy ``length`` bytes inside one page."""
        self._check("read", pa, length)
        if pa >> BANK_SHIFT not in self.banks:
            return bytes(length)
        offset = pa & PAGE_MASK
        return self.view(pa)[offset : offset + length].tobytes()

    def write(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` inside one page."""
        length = len(data)
        self._check("write", pa, length)
        offset = pa & PAGE_MASK
        self.view(pa)[offset : offset + length] = data

    def page(self, pa: int) -> memoryview:
        """The page at ``pa`` itself, writable."""
        self._check("page", pa, 1)
        offset = pa & BANK_MASK & ~PAGE_MASK
        return self.bank(pa)[offset : offset + PAGE_SIZE]

    def view(self, pa: int) -> memoryview:
        """The same, and remember it in :attr:`views` as long as the page keeps its place."""
        pfn = pa >> PAGE_SHIFT
        view = self.views.get(pfn)
        if view is None:
            view = self.page(pa)
            if len(self.views) >= MAX_VIEWS:
                self.views.clear()
            self.views[pfn] = view
        return view

    def copy_page(self, source: int, target: int) -> None:
        """Copy the page at address ``source`` to the one at ``target``."""
        self.write(target, self.read(source, PAGE_SIZE))

    def bank(self, pa: int) -> memoryview:
        """The bank that contains ``pa``, made now if need be."""
        number = pa >> BANK_SHIFT
        bank = self.banks.get(number)
        if bank is None:
            self._check("access", pa, 1)
            bank = self.banks[number] = zeroed(BANK_SIZE)
        return bank

    def attach(self, pa: int, buffer: memoryview) -> None:
        """Let the frames from ``pa`` on have their contents in ``buffer``.

        ``pa`` and the length are multiples of 64 KiB, and nothing was written there before. For
        memory that somebody else maps too (a live guest), and for contents that must be adjacent.
        The frames never leave the buffer: when they become free it is their place still.
        """
        self._check("attach", pa, len(buffer), pages=False)
        first, banks = pa >> BANK_SHIFT, len(buffer) >> BANK_SHIFT
        if pa & BANK_MASK or len(buffer) & BANK_MASK:
            raise InvariantError("attach", f"{pa:#x} + {len(buffer):#x} is not made of whole banks")
        if any(number in self.banks for number in range(first, first + banks)):
            raise InvariantError("attach", f"memory at {pa:#x} has contents already")
        for index in range(banks):
            offset = index << BANK_SHIFT
            self.banks[first + index] = buffer[offset : offset + BANK_SIZE]
            self._attached[first + index] = None

    def detach(self, pa: int, length: int) -> None:
        """Undo :meth:`attach` of exactly this range: it reads as zeroes, the buffer is left as it is.

        For RAM whose user is gone together with it, so that nobody wipes it. The frames must not be
        pinned: who holds a pin must find the contents.
        """
        numbers = range(pa >> BANK_SHIFT, pa + length >> BANK_SHIFT)
        if pa & BANK_MASK or length & BANK_MASK or not numbers:
            raise InvariantError("detach", f"{pa:#x} + {length:#x} is not made of whole banks")
        if any(number not in self._attached for number in numbers):
            raise InvariantError("detach", f"not all of {length:#x} bytes at {pa:#x} is attached")
        for number in numbers:
            del self._attached[number], self.banks[number]
        first, end = pa >> PAGE_SHIFT, pa + length >> PAGE_SHIFT
        for pfn in [pfn for pfn in self.views if first <= pfn < end]:
            del self.views[pfn]

    def allocate_scattered(self, owner: int, pages: int, seed: int) -> Int64Array | None:
        """Give ``owner`` ``pages`` frames in a random order that ``seed`` fixes.

        The frames are those of :meth:`allocate`; ``None`` if there are too few.
        """
        runs = self.allocate(owner, pages)
        if runs is None:
            return None
        numbers = [number for start, length in runs for number in range(start, start + length)]
        random.Random(seed).shuffle(numbers)
        return np.array(numbers, np.int64)

    def transfer(self, pfn: int, owner: int) -> int | None:
        """Give the content of a frame to ``owner``: the frame of ``owner`` that has it now.

        Without references the frame itself changes hands. With any, it stays behind as a zombie of
        its old owner, and ``owner`` gets a copy as of now in a fresh frame: it never sees what the
        holder of a reference writes later. ``None``, and nothing changed: no frame is left for that.
        """
        word = self.word(pfn)
        if self.is_referenced(pfn):
            fresh = self.allocate(owner, 1)
            if fresh is None:
                return None
            target = fresh[0][0]
            self.copy_page(pfn << PAGE_SHIFT, target << PAGE_SHIFT)
            self.release(word >> OWNER_SHIFT, pfn)
            return target
        self.change_owner(pfn, owner)
        return pfn

    def scrub(self, start: int, end: int) -> None:
        """Zero frames ``[start, end)``: whole banks are dropped, parts are overwritten."""
        low, high = start << PAGE_SHIFT, end << PAGE_SHIFT
        banks = self.banks
        numbers = range(low >> BANK_SHIFT, (high - 1 >> BANK_SHIFT) + 1)
        for number in numbers if len(numbers) < len(banks) else [n for n in banks if n in numbers]:
            bank = banks.get(number)
            if bank is None:
                continue
            base = number << BANK_SHIFT
            first, last = max(low - base, 0), min(high - base, BANK_SIZE)
            if last - first == BANK_SIZE and number not in self._attached:
                del banks[number]
                for pfn in range(base >> PAGE_SHIFT, base + BANK_SIZE >> PAGE_SHIFT):
                    self.views.pop(pfn, None)
            else:
                bank[first:last] = bytes(last - first)

    def _check(self, call: str, pa: int, length: int, pages: bool = True) -> None:
        if not self.is_ram(pa, max(length, 1)):
            raise InvariantError(call, f"{length} bytes at {pa:#x} are not all RAM")
        if pages and (pa & PAGE_MASK) + length > PAGE_SIZE:
            raise InvariantError(call, f"{length} bytes at {pa:#x} cross a page")
