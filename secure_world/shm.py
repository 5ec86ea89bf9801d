# SPDX-License-Identifier: BSD-2-Clause
"""Memory of the normal world that OP-TEE knows by cookie, and the reader of page lists.

Model of OP-TEE OS ``core/mm/mobj_dyn_shm.c`` and ``msg_param.c``: an object is a list of pages with
an offset into the first; its bounds are the pages, not the size that was registered. Objects are
reference counted; the cookie names the newest object, so the same cookie may be registered twice.
"""

from __future__ import annotations

import sys
from array import array
from typing import Final, Protocol

import numpy as np

from secure_world.bus import Bus
from secure_world.settings import SecureWorldSettings

PAGE_SIZE: Final = 4096
PAGE_SHIFT: Final = 12
PAGE_MASK: Final = PAGE_SIZE - 1
LIST_ENTRIES: Final = 511
"""Page addresses in one list page; word 511 is the link (``optee_msg.h``, NONCONTIG)."""

SMALL_LIST: Final = 38
"""Below this many entries a Python loop beats NumPy's fixed cost (about 8 us a call)."""

ADDRESS_BITS: Final = 48
"""Physical addresses beyond this are never memory; they would not fit the page arithmetic."""


_NO_PAGE: Final = PAGE_MASK | (1 << 64) - (1 << ADDRESS_BITS)
"""Bits that no page address has."""


class BadPageList(Exception):
    """A list that OP-TEE refuses: an entry or link with low bits, or not usable memory."""

    def __init__(self, address: int, size: int = PAGE_SIZE) -> None:
        super().__init__(f"page list refused at {address:#x}")
        self.address = address
        self.size = size


class Memory(Protocol):
    """Bytes of the normal world behind a parameter or an RPC buffer."""

    cookie: int
    size: int
    refs: int
    maps: int

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; the caller has checked the bounds. Raises BusError."""

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``; the caller has checked the bounds. Raises BusError."""

    def address(self, offset: int) -> int:
        """Physical address of the byte at ``offset``."""


class Owner(Protocol):
    """The partition that memory belongs to, as far as this module needs it."""

    bus: Bus
    client: int


class SharedMemory:
    """A list of pages known under ``cookie``. ``size`` is what the pages hold after the offset.

    ``guarded``: only OP-TEE itself releases it (temporary, allocated by RPC). ``refs`` counts its
    users, ``maps`` how many of them have it mapped. ``older`` is the next object of that cookie.
    """

    __slots__ = (
        "bus",
        "client",
        "cookie",
        "guarded",
        "maps",
        "older",
        "page_offset",
        "pages",
        "refs",
        "releasing",
        "size",
    )

    def __init__(
        self, bus: Bus, client: int, cookie: int, pages: array[int], page_offset: int, guarded: bool
    ) -> None:
        self.bus = bus
        self.client = client
        self.cookie = cookie
        self.pages = pages
        self.page_offset = page_offset
        self.size = len(pages) * PAGE_SIZE - page_offset
        self.guarded = guarded
        self.releasing = False
        self.refs = 1
        self.maps = 0
        self.older: SharedMemory | None = None

    def read(self, offset: int, size: int) -> bytes:
        """See :class:`Memory`."""
        offset += self.page_offset
        at = offset & PAGE_MASK
        if at + size <= PAGE_SIZE:
            if not size:
                return b""
            return self.bus.read(self.client, self.pages[offset >> PAGE_SHIFT] + at, size)
        parts = []
        while size > 0:
            at = offset & PAGE_MASK
            n = min(PAGE_SIZE - at, size)
            parts.append(self.bus.read(self.client, self.pages[offset >> PAGE_SHIFT] + at, n))
            offset += n
            size -= n
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """See :class:`Memory`."""
        offset += self.page_offset
        at = offset & PAGE_MASK
        size = len(data)
        if at + size <= PAGE_SIZE:
            if size:
                self.bus.write(self.client, self.pages[offset >> PAGE_SHIFT] + at, data)
            return
        done = 0
        while done < size:
            at = offset & PAGE_MASK
            n = min(PAGE_SIZE - at, size - done)
            page = self.pages[offset >> PAGE_SHIFT]
            self.bus.write(self.client, page + at, data[done : done + n])
            offset += n
            done += n

    def address(self, offset: int) -> int:
        """See :class:`Memory`."""
        offset += self.page_offset
        return self.pages[offset >> PAGE_SHIFT] + (offset & PAGE_MASK)

    def kill(self, bus: Bus) -> None:
        """The partition is gone and nothing may touch the pages again: ``bus`` refuses it."""
        self.bus = bus


class ContiguousMemory:
    """Physically contiguous bytes: the reserved area, or a contiguous answer to SHM_ALLOC."""

    __slots__ = ("_owner", "base", "cookie", "maps", "refs", "size")

    def __init__(self, owner: Owner, base: int, size: int, cookie: int = 0) -> None:
        self._owner = owner
        self.base = base
        self.size = size
        self.cookie = cookie
        self.refs = 1
        self.maps = 0

    def read(self, offset: int, size: int) -> bytes:
        """See :class:`Memory`."""
        owner = self._owner
        return owner.bus.read(owner.client, self.base + offset, size) if size else b""

    def write(self, offset: int, data: bytes) -> None:
        """See :class:`Memory`."""
        if data:
            self._owner.bus.write(self._owner.client, self.base + offset, data)

    def address(self, offset: int) -> int:
        """See :class:`Memory`."""
        return self.base + offset


def page_array(words: bytes) -> array[int]:
    """An array of u64 from little-endian wire bytes."""
    pages = array("Q")
    pages.frombytes(words)
    if sys.byteorder == "big":
        pages.byteswap()
    return pages


def page_count(offset: int, size: int) -> int:
    """Pages of ``size`` bytes from ``offset`` in the first page; 0 stands for "not describable".

    OP-TEE computes ``(size + offset - 1) / 4096 + 1``, which underflows for size 0 at offset 0 and
    then fails to allocate its table; size 0 at another offset is one page.
    """
    total = size + offset
    if not total or size >= 1 << 64:
        return 0
    return ((total - 1) >> PAGE_SHIFT) + 1


def read_page_list(bus: Bus, client: int, address: int, count: int) -> array[int]:
    """Walk a NONCONTIG list of ``count`` entries whose first list page is at ``address``.

    The walk is bounded by the count alone, so a list that links to itself is as good as any; the
    link behind the last entry is never looked at. Every word is read once. Raises
    :class:`BadPageList` (or BusError for a list page that is not usable memory).
    """
    chunks = []
    left = count
    while True:
        if not bus.check(client, address, PAGE_SIZE):
            raise BadPageList(address)
        if left <= LIST_ENTRIES:
            chunks.append(bus.read(client, address, left * 8))
            break
        data = bus.read(client, address, PAGE_SIZE)
        chunks.append(data[:-8])
        left -= LIST_ENTRIES
        address = int.from_bytes(data[-8:], "little")
        if address & PAGE_MASK:
            raise BadPageList(address)
    words = b"".join(chunks)
    pages = page_array(words)
    if count < SMALL_LIST:
        for page in pages:
            if page & _NO_PAGE:
                raise BadPageList(page)
    else:
        every = np.frombuffer(words, "<u8")
        if int(np.bitwise_or.reduce(every)) & _NO_PAGE:
            first = int((every & np.uint64(_NO_PAGE)).nonzero()[0][0])
            raise BadPageList(pages[first])
    if not bus.check_pages(client, words):
        raise BadPageList(pages[0], count * PAGE_SIZE)
    return pages


class ShmTable:
    """All objects of one partition, by cookie."""

    __slots__ = ("_bus", "_client", "_limits", "by_cookie", "live", "pages")

    def __init__(self, bus: Bus, client: int, limits: SecureWorldSettings) -> None:
        self._bus = bus
        self._client = client
        self._limits = limits
        self.by_cookie: dict[int, SharedMemory] = {}
        self.live = 0
        self.pages = 0

    def from_list(self, address: int, size: int, cookie: int, guarded: bool) -> SharedMemory | None:
        """A new object from a page list (``address`` = list page | offset), or None if refused.

        Raises :class:`BadPageList` or BusError if memory is at fault, for the caller to report.
        """
        offset = address & PAGE_MASK
        count = page_count(offset, size)
        limits = self._limits
        if not 0 < count <= limits.max_object_pages:
            return None
        if self.live >= limits.max_objects or self.pages + count > limits.max_pages:
            return None
        pages = read_page_list(self._bus, self._client, address - offset, count)
        return self.add(pages, offset, cookie, guarded)

    def add(self, pages: array[int], offset: int, cookie: int, guarded: bool) -> SharedMemory:
        """A new object from checked pages; it becomes the newest of its cookie."""
        memory = SharedMemory(self._bus, self._client, cookie, pages, offset, guarded)
        memory.older = self.by_cookie.get(cookie)
        self.by_cookie[cookie] = memory
        self.live += 1
        self.pages += len(pages)
        return memory

    def remove(self, memory: SharedMemory) -> None:
        """Take an object out of the table (its last reference is gone)."""
        head = self.by_cookie.get(memory.cookie)
        if head is memory:
            if memory.older is None:
                del self.by_cookie[memory.cookie]
            else:
                self.by_cookie[memory.cookie] = memory.older
        else:
            while head is not None and head.older is not memory:
                head = head.older
            if head is None:
                return
            head.older = memory.older
        self.live -= 1
        self.pages -= len(memory.pages)

    def contains(self, memory: SharedMemory) -> bool:
        """True while the object is known."""
        head = self.by_cookie.get(memory.cookie)
        while head is not None and head is not memory:
            head = head.older
        return head is memory

    def clear(self, bus: Bus) -> int:
        """Forget everything, leaving ``bus`` to users that linger; returns the number of objects."""
        for head in self.by_cookie.values():
            memory: SharedMemory | None = head
            while memory is not None:
                memory.kill(bus)
                memory = memory.older
        self.by_cookie.clear()
        count, self.live, self.pages = self.live, 0, 0
        return count
