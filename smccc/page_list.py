# SPDX-License-Identifier: BSD-2-Clause
"""Non-contiguous page lists (``optee_msg.h``, OPTEE_MSG_ATTR_NONCONTIG): read and build.

A buffer that is not physically contiguous is described by pages of 512 little-endian 64-bit words:
511 addresses of 4096-byte pages, then the address of the next list page. ``buf_ptr`` of the
parameter is the address of the first list page plus the buffer's offset in its first page; the
entries have no offset. The number of entries follows from offset and size alone, so a reader stops
by count: when the last list page is full, Linux and Xen leave a link to a page that was never part
of the list, and nobody may follow, check or require it.

Pages travel as ``bytes`` of little-endian u64, as on the wire. This module does no I/O: the reader
is handed a function that fetches one list page.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from smccc.constants import optee_msg as msg
from smccc.errors import BuildError, ParseError, Reason
from smccc.registers import MASK64

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PAGE_SIZE: Final = msg.OPTEE_MSG_NONCONTIG_PAGE_SIZE
"""Bytes of a page and of a list page."""

OFFSET_MASK: Final = PAGE_SIZE - 1

ENTRIES: Final = PAGE_SIZE // 8 - 1
"""511 addresses in one list page; word 511 links to the next."""

LINK_OFFSET: Final = ENTRIES * 8
"""Byte offset of the link in a list page."""

LONG_LIST: Final = 38
"""From this many entries on NumPy checks them faster than a loop (measured crossover)."""

ReadPage = Callable[[int], bytes | None]
"""Fetches the 4096 bytes of the list page at an address, or ``None`` if it cannot be read."""

_LINK: Final = struct.Struct("<Q")


def entry_count(offset: int, size: int) -> int:
    """Entries that a buffer of ``size`` bytes at ``offset`` (0..4095) of its first page needs.

    ``(size + offset - 1) / 4096 + 1`` of the header, but 0 for ``size`` 0, where C underflows.
    """
    return (size + offset + OFFSET_MASK) // PAGE_SIZE if size else 0


def list_page_count(entries: int) -> int:
    """List pages that hold ``entries`` addresses."""
    return (entries + ENTRIES - 1) // ENTRIES


@attrs.frozen
class PageList:
    """A buffer as the list describes it."""

    offset: int
    """Bytes from the start of the first page to the first byte, 0..4095."""
    size: int
    """Bytes."""
    words: bytes
    """The page addresses in order, little-endian u64 each."""

    def __len__(self) -> int:
        return len(self.words) // 8

    @property
    def pages(self) -> tuple[int, ...]:
        """The page addresses as ints."""
        return struct.unpack(f"<{len(self)}Q", self.words)

    def array(self) -> NDArray[np.uint64]:
        """The page addresses as a read-only NumPy array on the same bytes."""
        import numpy as np

        return np.frombuffer(self.words, dtype="<u8")


def _first_unaligned(words: bytes) -> int | None:
    """Index of the first address with any of its low 12 bits set."""
    count = len(words) // 8
    if count < LONG_LIST:
        for index, word in enumerate(struct.unpack(f"<{count}Q", words)):
            if word & OFFSET_MASK:
                return index
        return None
    import numpy as np

    bad = np.frombuffer(words, dtype="<u8") & np.uint64(OFFSET_MASK)
    return int(bad.argmax()) if bad.any() else None


def read_page_list(read_page: ReadPage, buf_ptr: int, size: int, limit: int) -> PageList:
    """Read the list of a buffer of ``size`` bytes whose parameter has ``buf_ptr``.

    ``limit``: entries that the caller accepts. Work is bounded by it, so a list that loops is
    harmless; each list page is fetched exactly once. Raises :class:`~smccc.errors.ParseError`;
    its ``offset`` counts over the list pages one after the other, its ``field`` is ``size``,
    ``buf_ptr``, ``list[k].pages[i]`` or ``list[k].next_page``.
    """
    offset = buf_ptr & OFFSET_MASK
    missing = entry_count(offset, size)
    if not missing:
        raise ParseError(0, "size", Reason.EMPTY_LIST)
    if missing > limit:
        raise ParseError(0, "size", Reason.LIST_TOO_LONG)
    parts: list[bytes] = []
    address = buf_ptr - offset
    where, field = 0, "buf_ptr"
    while True:
        page = read_page(address)
        if page is None or len(page) < PAGE_SIZE:
            raise ParseError(where, field, Reason.UNREADABLE_PAGE)
        index, start = len(parts), len(parts) * PAGE_SIZE
        words = page[: 8 * min(missing, ENTRIES)]
        bad = _first_unaligned(words)
        if bad is not None:
            raise ParseError(start + 8 * bad, f"list[{index}].pages[{bad}]", Reason.UNALIGNED_ENTRY)
        parts.append(words)
        missing -= ENTRIES
        if missing <= 0:
            return PageList(offset, size, b"".join(parts))
        address = _LINK.unpack_from(page, LINK_OFFSET)[0]
        where, field = start + LINK_OFFSET, f"list[{index}].next_page"
        if address & OFFSET_MASK:
            raise ParseError(where, field, Reason.UNALIGNED_LINK)


def _words(pages: bytes | Sequence[int]) -> bytes:
    if isinstance(pages, bytes):
        if len(pages) % 8:
            raise BuildError("pages", "are not whole 64-bit words")
        words = pages
    else:
        try:
            words = struct.pack(f"<{len(pages)}Q", *pages)
        except struct.error:
            raise BuildError("pages", "do not fit 64 bits") from None
    if not words:
        raise BuildError("pages", "are empty")
    bad = _first_unaligned(words)
    if bad is not None:
        raise BuildError(f"pages[{bad}]", "is not the address of a page")
    return words


def build_page_list(
    pages: bytes | Sequence[int], list_pages: int | Sequence[int], *, trailing_link: int = 0
) -> list[tuple[int, bytes]]:
    """The list pages that describe ``pages``, as ``(address, 4096 bytes)`` in their order.

    ``list_pages``: the address of the first of adjacent list pages, or the address of each (they
    may lie anywhere). ``trailing_link``: what to leave in the link of a *full* last list page;
    Linux and Xen leave the address behind it, 0 is correct too. Raises
    :class:`~smccc.errors.BuildError` for unaligned addresses, no page at all or too few list pages.
    """
    words = _words(pages)
    needed = list_page_count(len(words) // 8)
    if isinstance(list_pages, int):
        addresses: Sequence[int] = range(list_pages, list_pages + needed * PAGE_SIZE, PAGE_SIZE)
    else:
        addresses = list_pages
    if len(addresses) < needed:
        raise BuildError("list_pages", f"are {len(addresses)}, the list needs {needed}")
    result: list[tuple[int, bytes]] = []
    for index in range(needed):
        address = addresses[index]
        if address & OFFSET_MASK or not 0 <= address <= MASK64:
            raise BuildError(f"list_pages[{index}]", "is not the address of a page")
        chunk = words[index * LINK_OFFSET : (index + 1) * LINK_OFFSET]
        if index + 1 < needed:
            link = addresses[index + 1]
        else:
            link = trailing_link if len(chunk) == LINK_OFFSET else 0
        try:
            result.append((address, chunk.ljust(LINK_OFFSET, b"\0") + _LINK.pack(link)))
        except struct.error:
            raise BuildError("link", "does not fit 64 bits") from None
    return result


def segments(listed: PageList) -> Iterator[tuple[int, int]]:
    """The buffer's bytes as ``(address, length)``, page by page, in order."""
    start, left = listed.offset, listed.size
    for page in listed.pages:
        length = min(PAGE_SIZE - start, left)
        yield page + start, length
        start, left = 0, left - length
