# SPDX-License-Identifier: BSD-2-Clause
"""Pages of the mediator: shadow messages, translated page lists.

They come from *arenas*, runs of RAM whose contents lie in one buffer, so that a shadow of many pages
is adjacent memory for the mediator. Arenas start at the top of RAM, guests at the bottom. A page that
is not in use belongs to the pool and not to the mediator: the bus refuses it, and the memory view of
a freed shadow is closed, so that a use after free is loud on either side.

A *source* says where arenas get their contents: private memory, or a buffer that another process maps
too (:meth:`ShadowPool.share`). Frames come in the same order whatever the source.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mediator.host import PAGE_SHIFT, PAGE_SIZE, Shadow
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import MEDIATOR, OWNER_SHIFT, POOL
from mediator.hypervisor.lazy import zeroed
from mediator.hypervisor.memory import BANK_MASK, BANK_SHIFT, BANK_SIZE, PhysicalMemory
from mediator.hypervisor.pages import addresses as pages_of
from mediator.hypervisor.runs import RunSet

ARENA_PAGES: Final = 256
"""1 MiB at a time: some hundred calls in flight need no second arena."""
_BANK_PAGES: Final = BANK_SIZE >> PAGE_SHIFT
_IN_USE: Final = MEDIATOR << OWNER_SHIFT
_UNUSED: Final = POOL << OWNER_SHIFT
_ZEROES: Final = bytes(PAGE_SIZE)


class _Arena:
    """Adjacent pages with one buffer; ``free`` are frame numbers."""

    __slots__ = ("contents", "end", "first", "free", "offset")

    def __init__(self, first: int, contents: memoryview, offset: int) -> None:
        self.first = first
        self.offset = offset  # in the shared buffer
        self.end = first + (len(contents) >> PAGE_SHIFT)
        self.contents = contents
        self.free = RunSet(first, self.end)


class _Source:
    """Arenas of one origin; ``used`` bytes of ``buffer`` have become arenas."""

    __slots__ = ("arenas", "buffer", "singles", "used")

    def __init__(self, buffer: memoryview | None) -> None:
        self.buffer = buffer
        self.used = 0
        self.arenas: list[_Arena] = []
        self.singles: list[int] = []  # free as well; single pages come and go with every call


class ShadowPool:
    """Allocates shadows; ``limit`` caps the pages in use (``None``: as many as RAM has)."""

    __slots__ = (
        "_arenas",
        "_banks",
        "_memory",
        "_singles",
        "_source",
        "_sources",
        "_words",
        "in_use",
        "left_open",
        "limit",
    )

    def __init__(self, memory: PhysicalMemory, limit: int | None = None) -> None:
        self._memory = memory
        self._words = memory.words
        self._banks = memory.banks
        self._source = _Source(None)
        self._sources = [self._source]
        self._arenas = self._source.arenas
        self._singles = self._source.singles
        self.limit = limit
        self.in_use = 0
        self.left_open = 0
        """Freed shadows whose memory view could not be closed."""

    def share(self, buffer: memoryview) -> int:
        """A new source, selected at once: ``buffer``, a multiple of 64 KiB. Its number."""
        self._sources.append(_Source(buffer))
        self.select(len(self._sources) - 1)
        return len(self._sources) - 1

    def select(self, source: int) -> None:
        """Allocate from this source (0: private memory), and give back to it."""
        self._source = self._sources[source]
        self._arenas = self._source.arenas
        self._singles = self._source.singles

    def offset(self, pa: int) -> int:
        """Where the page at ``pa`` lies in the buffer of the selected source, bytes."""
        arena = self._arena(pa >> PAGE_SHIFT)
        return arena.offset + pa - (arena.first << PAGE_SHIFT)

    def alloc(self, pages: int) -> Shadow | None:
        """``pages`` zeroed pages, physically adjacent; ``None``: limit reached or RAM exhausted."""
        if pages < 1:
            raise InvariantError("alloc_shadow", f"{pages} pages")
        if self.limit is not None and self.in_use + pages > self.limit:
            return None
        if pages == 1 and self._singles:
            pfn = self._singles.pop()
        else:
            found = self._place(pages)
            if found is None:
                return None
            pfn = found
        self.in_use += pages
        pa = pfn << PAGE_SHIFT
        if pages == 1:
            self._words[pfn] = _IN_USE
            offset = pa & BANK_MASK
            mem = self._banks[pa >> BANK_SHIFT][offset : offset + PAGE_SIZE]
            mem[:] = _ZEROES
            return Shadow(pa.to_bytes(8, "little"), mem)
        self._memory.array[pfn : pfn + pages] = _IN_USE
        mem = self._view(pfn, pages)
        np.frombuffer(mem, np.uint8).fill(0)
        return Shadow(_addresses(pfn, pages), mem)

    def free(self, shadow: Shadow) -> None:
        """Take a shadow back; raises :class:`InvariantError` for one that is not in use."""
        pages = len(shadow.pages) >> 3
        pfn = shadow.pa >> PAGE_SHIFT
        self._check("free_shadow", pfn, pages)
        if pages == 1:
            self._words[pfn] = _UNUSED
            self._singles.append(pfn)
        else:
            if shadow.pages != _addresses(pfn, pages):
                raise InvariantError("free_shadow", "the pages are not those of one shadow")
            self._memory.array[pfn : pfn + pages] = _UNUSED
            self._arena(pfn).free.add(pfn, pfn + pages)
        self.in_use -= pages
        try:
            shadow.mem.release()
        except BufferError:
            # Somebody (ctypes, say) holds a view on the view: it cannot be closed, only forgotten.
            self.left_open += 1

    def at(self, pages: bytes) -> Shadow:
        """The shadow that is in use at these pages: for a mediator that was restored from data."""
        pfn, count = int.from_bytes(pages[:8], "little") >> PAGE_SHIFT, len(pages) >> 3
        self._check("shadow_at", pfn, count)
        if pages != _addresses(pfn, count):
            raise InvariantError("shadow_at", "the pages are not those of one shadow")
        return Shadow(pages, self._view(pfn, count))

    def pages_in_use(self) -> list[int]:
        """Addresses of all pages in use, ascending."""
        unused = {pfn for source in self._sources for pfn in source.singles}
        arenas = [arena for source in self._sources for arena in source.arenas]
        return [
            pfn << PAGE_SHIFT
            for arena in sorted(arenas, key=lambda arena: arena.first)
            for pfn in range(arena.first, arena.end)
            if pfn not in unused and pfn not in arena.free
        ]

    def _check(self, call: str, pfn: int, pages: int) -> None:
        memory = self._memory
        if pages < 1 or not memory.first <= pfn <= memory.end - pages:
            raise InvariantError(call, f"{pages} pages from frame {pfn:#x} on are no shadow")
        in_use = self._words[pfn] == _IN_USE
        if in_use and pages > 1:
            in_use = bool(np.all(memory.array[pfn : pfn + pages] == _IN_USE))
        if not in_use:
            raise InvariantError(call, f"a page of {pages} from frame {pfn:#x} on is not in use")

    def _place(self, pages: int) -> int | None:
        """First frame of ``pages`` adjacent free pages, taken out of the free ones."""
        found = self._fit(pages)
        if found is None and self._singles:
            for single in self._singles:
                self._arena(single).free.add(single, single + 1)
            self._singles.clear()
            found = self._fit(pages)
        if found is None:
            arena = self._new_arena(pages)
            if arena is None:
                return None
            found = (arena, arena.first)
        found[0].free.remove(found[1], found[1] + pages)
        return found[1]

    def _fit(self, pages: int) -> tuple[_Arena, int] | None:
        for arena in self._arenas:
            pfn = arena.free.first_fit(pages)
            if pfn is not None:
                return arena, pfn
        return None

    def _new_arena(self, pages: int) -> _Arena | None:
        least = -(-pages // _BANK_PAGES) * _BANK_PAGES
        source = self._source
        for size in (max(ARENA_PAGES, least), least):
            offset, length = source.used, size << PAGE_SHIFT
            if source.buffer is not None and offset + length > len(source.buffer):
                continue
            pfn = self._memory.claim_highest(POOL, size, _BANK_PAGES)
            if pfn is not None:
                if source.buffer is None:
                    contents = zeroed(length)
                else:
                    contents = source.buffer[offset : offset + length]
                    source.used += length
                self._memory.attach(pfn << PAGE_SHIFT, contents)
                self._memory.fill(pfn, size)
                arena = _Arena(pfn, contents, offset)
                self._arenas.append(arena)
                return arena
        return None

    def _arena(self, pfn: int) -> _Arena:
        for arena in self._arenas:
            if arena.first <= pfn < arena.end:
                return arena
        raise InvariantError("shadow", f"frame {pfn:#x} is in no arena")

    def _view(self, pfn: int, pages: int) -> memoryview:
        arena = self._arena(pfn)
        start = (pfn - arena.first) << PAGE_SHIFT
        return arena.contents[start : start + (pages << PAGE_SHIFT)]


def _addresses(pfn: int, pages: int) -> bytes:
    return pages_of(np.arange(pfn, pfn + pages, dtype=np.int64))
