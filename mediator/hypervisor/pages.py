# SPDX-License-Identifier: BSD-2-Clause
"""Page lists as arrays: translate, check, pin and unpin hundreds of thousands of pages at once.

The reference host uses plain loops below :data:`SMALL_LIST` entries and these functions from there
on; both give the same answers (tested). Work goes block by block, so that every temporary array stays
in the cache, and only the two tables themselves, stage 2 and frames, are touched at random.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mediator.host import PAGE_SHIFT
from mediator.hypervisor.frames import GUARD, OWNER_MASK, PINNABLE, ZOMBIE, FrameTable
from mediator.hypervisor.stage2 import KIND_MASK, KIND_SHIFT, OWN_RW, Int64Array, Stage2

SMALL_LIST: Final = 38
"""Entries from which arrays win: a loop costs some 0.3 µs per page, the arrays some 12 µs at once."""

BLOCK: Final = 16_384
"""Entries per block: 128 KiB for a temporary array of 64-bit words."""

NEAR: Final = 640 * 1024
"""Frames (5 MiB of frame words) that can be touched at random without missing the TLB each time.

Pages further apart are first put in order of their high bits, which costs less than the misses."""

_PAGE_SHIFT: Final = np.uint64(PAGE_SHIFT)
_ADDRESS_SHIFT: Final = np.int64(PAGE_SHIFT)
_KIND_SHIFT: Final = np.uint32(KIND_SHIFT)
_REGION_SHIFT: Final = np.int64(14)
# add.at and subtract.at are fast only if the operand has exactly the type of the table.
_ONE: Final = np.int64(1)


def numbers(addresses: bytes) -> Int64Array:
    """Page numbers of little-endian u64 addresses; the low 12 bits are dropped."""
    words: NDArray[np.uint64] = np.frombuffer(addresses, "<u8")
    return (words >> _PAGE_SHIFT).view(np.int64)


def addresses(pfns: Int64Array) -> bytes:
    """Little-endian u64 page addresses of frame numbers."""
    return (pfns << _ADDRESS_SHIFT).astype("<i8", copy=False).tobytes()


def translate(stage2: Stage2, ipas: bytes) -> Int64Array | None:
    """Frames of the pages at ``ipas``; ``None`` unless all are the guest's own read-write RAM."""
    words: Int64Array = np.frombuffer(ipas, "<i8")
    count = len(words)
    if count <= BLOCK:
        # An address of 2^63 and more becomes a negative number, and nothing is mapped there either.
        entries = stage2.entries(words >> _ADDRESS_SHIFT)
        if int(np.bitwise_and.reduce(entries)) & KIND_MASK != OWN_RW:
            return None
        entries >>= _KIND_SHIFT
        return entries.astype(np.int64)
    pfns: Int64Array = np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        entries = stage2.entries(words[start : start + BLOCK] >> _ADDRESS_SHIFT)
        if int(np.bitwise_and.reduce(entries)) & KIND_MASK != OWN_RW:
            return None
        entries >>= _KIND_SHIFT
        pfns[start : start + BLOCK] = entries
    return pfns


def near(pfns: Int64Array) -> Int64Array:
    """The same frames in an order that is kind to the TLB; in order already if they lie close."""
    if len(pfns) < BLOCK or int(pfns.max()) - int(pfns.min()) < NEAR:
        return pfns
    order = np.argsort((pfns >> _REGION_SHIFT).astype(np.uint16), kind="stable")
    return pfns.take(order)


def pin(table: FrameTable, pfns: Int64Array, own: int) -> bool:
    """One reference more on each frame, duplicates counted; ``False`` (and none) if one is not ours.

    ``own`` is the word of an unreferenced frame of the owner.
    """
    pfns = near(pfns)
    array, expected = table.array, np.int64(own)
    for start in range(0, len(pfns), BLOCK):
        block = pfns[start : start + BLOCK]
        found = _differences(array, block, expected)
        if found & PINNABLE and table.fill_for(pfns):
            # Some of them lay in a part of RAM that nobody had looked at, and had no word yet.
            found = _differences(array, block, expected)
        if found & PINNABLE:
            _undo(np.subtract, array, pfns[:start])
            return False
        # Right after the look at the same words, which are in the cache now.
        np.add.at(array, block, _ONE)
    return True


def unpin(table: FrameTable, pfns: Int64Array, own: int) -> int | None:
    """One reference less on each frame; the number of zombies that became free.

    ``None``, and no reference dropped, if a frame is not the owner's or had too few references.
    """
    if not len(pfns):
        return 0
    if int(pfns.min()) < table.first or int(pfns.max()) >= table.end:
        return None
    pfns = near(pfns)
    array, expected = table.array, np.int64(own)
    all_found = 0
    for start in range(0, len(pfns), BLOCK):
        block = pfns[start : start + BLOCK]
        np.subtract.at(array, block, _ONE)
        # Looking afterwards sees duplicates too: one reference too few sets the guard bit.
        found = _differences(array, block, expected)
        if found & (OWNER_MASK | GUARD):
            _undo(np.add, array, pfns[: start + len(block)])
            return None
        all_found |= found
    if not all_found & ZOMBIE:
        return 0
    late = pfns[array[pfns] & np.int64(ZOMBIE) != 0]
    return sum(table.reap(pfn) for pfn in sorted(set(late.tolist())))


def _differences(array: Int64Array, pfns: Int64Array, expected: np.int64) -> int:
    """All bits in which the word of any of these frames differs from ``expected``."""
    words = array.take(pfns)
    words ^= expected
    return int(np.bitwise_or.reduce(words))


def _undo(operation: np.ufunc, array: Int64Array, pfns: Int64Array) -> None:
    operation.at(array, pfns, _ONE)
