# SPDX-License-Identifier: BSD-2-Clause
"""Memory of a simulated guest: page allocation, kernel-pointer cookies, buffers, page lists.

The guest owns extents of RAM (IPAs). Kernel pages come from the bottom, user pages from the top and
in disorder, as on a machine that has run for a while. Freed pages and freed kernel objects are
handed out again first, so addresses and cookies are reused at once, as Linux does.

Everything here is deterministic: the same requests and the same seed give the same addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from mediator.guest.kernel import Kernel
from smccc.page_list import build_page_list, list_page_count

PAGE_SIZE: Final = 4096
PAGE_MASK: Final = PAGE_SIZE - 1
KERNEL_POINTERS: Final = 0xFFFF_0000_1000_0000
"""Where kernel objects lie. The same in every guest on purpose: guests do not share a name space."""

OBJECT_SIZE: Final = 0x80
"""Distance of kernel objects unless the driver's profile says another one."""

SHUFFLED_AT_ONCE: Final = 4096
"""User pages are disordered in batches of this many; beyond it, disorder costs time and finds no more."""


class OutOfMemory(Exception):
    """The guest has no ``pages`` pages left for a request."""

    def __init__(self, pages: int) -> None:
        super().__init__(f"out of guest memory: {pages} pages")
        self.pages = pages


def page_count(offset: int, size: int) -> int:
    """Pages that ``size`` bytes touch from ``offset`` bytes into the first one; 1 at least."""
    return max((offset + size + PAGE_MASK) // PAGE_SIZE, 1)


class PageAllocator:
    """The pages of a guest. ``in_use`` counts those handed out."""

    def __init__(self, extents: Sequence[tuple[int, int]], seed: int) -> None:
        """``extents``: (IPA, pages) of each piece of RAM; ``seed`` scatters user pages."""
        self.extents = tuple(extents)
        self.in_use = 0
        self._seed = seed
        self._rng: Random | None = None
        self._starts: list[tuple[int, int, int]] = []
        total = 0
        for ipa, pages in self.extents:
            self._starts.append((total, total + pages, ipa))
            total += pages
        self.total = total
        self._bottom = 0
        self._top = total
        self._free: list[int] = []
        self._free_runs: dict[int, list[int]] = {}
        self._free_user: list[int] = []
        self._used: set[int] = set()

    def _ipa(self, index: int) -> int:
        for first, end, ipa in self._starts:
            if first <= index < end:
                return ipa + (index - first) * PAGE_SIZE
        raise IndexError(index)

    def alloc(self) -> int:
        """One kernel page: its IPA. Raises :class:`OutOfMemory`."""
        if self._free:
            self.in_use += 1
            return self._free.pop()
        return self.alloc_run(1)

    def alloc_run(self, pages: int) -> int:
        """``pages`` adjacent kernel pages: the IPA of the first. Raises :class:`OutOfMemory`."""
        if pages == 1 and self._free:
            return self.alloc()
        runs = self._free_runs.get(pages)
        if runs:
            self.in_use += pages
            return runs.pop()
        first = self._bottom
        for _, end, _ in self._starts:
            if first >= end:
                continue
            if first + pages <= end:
                break
            first = end
        if first + pages > self._top:
            raise OutOfMemory(pages)
        # What an extent had left before its end stays usable page by page.
        self._free[:0] = [self._ipa(index) for index in range(first - 1, self._bottom - 1, -1)]
        self._bottom = first + pages
        self.in_use += pages
        return self._ipa(first)

    def free(self, ipa: int) -> None:
        """Give a kernel page back; it is the next to be handed out."""
        self.in_use -= 1
        self._free.append(ipa)

    def free_run(self, ipa: int, pages: int) -> None:
        """Give back what :meth:`alloc_run` returned."""
        if pages == 1:
            self.free(ipa)
            return
        self.in_use -= pages
        self._free_runs.setdefault(pages, []).append(ipa)

    def alloc_user(self, pages: int) -> list[int]:
        """``pages`` user pages, in no particular order. Raises :class:`OutOfMemory`."""
        reuse = min(pages, len(self._free_user))
        fresh = pages - reuse
        if self._bottom > self._top - fresh:
            raise OutOfMemory(pages)
        taken = self._free_user[len(self._free_user) - reuse :]
        del self._free_user[len(self._free_user) - reuse :]
        taken.reverse()
        top = self._top
        if self._rng is None:
            # Made late: its state would be a fifth of what an idle guest takes.
            self._rng = Random(self._seed)
        for start in range(0, fresh, SHUFFLED_AT_ONCE):
            count = min(SHUFFLED_AT_ONCE, fresh - start)
            batch = self._descending(top - start, count)
            self._rng.shuffle(batch)
            taken += batch
        self._top = top - fresh
        self.in_use += pages
        return taken

    def used_before(self, pages: Sequence[int]) -> list[int]:
        """Those of ``pages`` that somebody else had and wrote to: a kernel zeroes them."""
        return [page for page in pages if page in self._used]

    def _descending(self, top: int, count: int) -> list[int]:
        """IPAs of the ``count`` pages below page number ``top``."""
        ipas: list[int] = []
        bottom = top - count
        for first, end, ipa in self._starts:
            low, high = max(first, bottom), min(end, top)
            if low < high:
                start = ipa + (low - first) * PAGE_SIZE
                ipas += range(start, start + (high - low) * PAGE_SIZE, PAGE_SIZE)
        ipas.reverse()
        return ipas

    def free_user(self, pages: Sequence[int]) -> None:
        """Give user pages back."""
        self.in_use -= len(pages)
        self._used.update(pages)
        self._free_user += reversed(pages)


class CookieAllocator:
    """Addresses of kernel objects, which the driver uses as shared-memory references."""

    def __init__(self, base: int = KERNEL_POINTERS, size: int = OBJECT_SIZE) -> None:
        self._next = base
        self._size = size
        self._free: list[int] = []

    def alloc(self) -> int:
        """An address that no living object has; the one freed last comes first."""
        if self._free:
            return self._free.pop()
        cookie = self._next
        if cookie % PAGE_SIZE + self._size > PAGE_SIZE:
            # What is left of a page is too small for one more object, as in a slab.
            cookie += PAGE_SIZE - cookie % PAGE_SIZE
        self._next = cookie + self._size
        return cookie

    def free(self, cookie: int) -> None:
        """The object is gone."""
        self._free.append(cookie)


class Buffer:
    """``size`` bytes of guest memory that start ``offset`` bytes into the first of ``pages``.

    The pages (IPAs) need not be adjacent. Reads and writes are the guest's own, so they raise
    :class:`~mediator.guest.cpu.GuestAbort` where stage 2 has changed.
    """

    __slots__ = ("_kernel", "offset", "pages", "size")

    def __init__(self, kernel: Kernel, pages: Sequence[int], offset: int, size: int) -> None:
        self._kernel = kernel
        self.pages = pages
        self.offset = offset
        self.size = size

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes (to the end if not given) from ``offset``. Raises ValueError outside."""
        if length is None:
            length = self.size - offset
        pieces = []
        for ipa, count in self._pieces(offset, length):
            pieces.append(await self._kernel.cpu.read(ipa, count))
        return b"".join(pieces)

    async def write(self, data: bytes, offset: int = 0) -> None:
        """Store ``data`` at ``offset``. Raises ValueError outside the buffer."""
        done = 0
        for ipa, count in self._pieces(offset, len(data)):
            await self._kernel.cpu.write(ipa, data[done : done + count])
            done += count

    def _pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(IPA, bytes) of each run of adjacent pages in a part of the buffer."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} of a buffer of {self.size}")
        pieces: list[tuple[int, int]] = []
        position = self.offset + offset
        while length > 0:
            page, inside = divmod(position, PAGE_SIZE)
            count = min(length, PAGE_SIZE - inside)
            ipa = self.pages[page] + inside
            if pieces and sum(pieces[-1]) == ipa:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + count)
            else:
                pieces.append((ipa, count))
            position += count
            length -= count
        return pieces


def page_list(pages: Sequence[int], list_ipa: int) -> bytes:
    """The page list of ``pages`` as Linux writes it into adjacent list pages at ``list_ipa``.

    Also a list page that is exactly full gets its link to the next page, which is then not part of
    the list and must not be followed (``optee_msg.h``; measured in recorded Linux traffic).
    """
    behind = list_ipa + list_page_count(len(pages)) * PAGE_SIZE
    return b"".join([page for _, page in build_page_list(pages, list_ipa, trailing_link=behind)])
