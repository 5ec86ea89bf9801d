# SPDX-License-Identifier: BSD-2-Clause
"""Arithmetic on long arrays of page addresses, little-endian u64 words.

Short ones are worked on one by one. For long ones NumPy is used where the process has it anyway: a
hypervisor that keeps its pages in arrays. An app has not: to load it takes longer than the rest of
its start, and once it is isolated nothing can be loaded. What it does with long lists needs little.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TYPE_CHECKING, Final

from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from types import ModuleType

SMALL_LIST: Final = 38
"""Entries up to which a plain loop beats NumPy's fixed cost."""

_WORD: Final = 8
_ALIGNED: Final = bytes(range(0, 256, 16))
"""What bits 8 to 15 of a page address can be."""
_LITTLE: Final = sys.byteorder == "little"


def in_a_row(first: int, count: int) -> bytes:
    """The entries of ``count`` pages that follow each other from address ``first`` on."""
    if count <= SMALL_LIST:
        pages = range(first, first + (count << PAGE_SHIFT), PAGE_SIZE)
        return struct.pack(f"<{count}Q", *pages)
    np = _numpy()
    if np is None:
        return _bytes(array("Q", range(first, first + (count << PAGE_SHIFT), PAGE_SIZE)))
    words: bytes = ((np.arange(count, dtype="<u8") << PAGE_SHIFT) + np.uint64(first)).tobytes()
    return words


def with_offsets(frames: bytes, words: bytes) -> bytes:
    """``frames`` with the low 12 bits of ``words``: nearly always ``frames`` itself."""
    if not any_offset(words):
        return frames
    np = _numpy()
    if np is None or len(words) <= SMALL_LIST * _WORD:
        pairs = zip(_array(frames), _array(words), strict=True)
        return _bytes(array("Q", [pa | entry & PAGE_MASK for pa, entry in pairs]))
    offsets = np.frombuffer(words, "<u8") & np.uint64(PAGE_MASK)
    joined: bytes = (np.frombuffer(frames, "<u8") | offsets).tobytes()
    return joined


def without_offsets(entries: bytes) -> bytes:
    """Page addresses of ``entries``: nearly always ``entries`` itself."""
    if not any_offset(entries):
        return entries
    np = _numpy()
    if np is None or len(entries) <= SMALL_LIST * _WORD:
        return _bytes(array("Q", [word & ~PAGE_MASK for word in _array(entries)]))
    frames: bytes = (np.frombuffer(entries, "<u8") & ~np.uint64(PAGE_MASK)).tobytes()
    return frames


def any_offset(words: bytes) -> bool:
    """Whether any of the words has a bit below that of a page."""
    count = len(words) // _WORD
    if count <= SMALL_LIST:
        together = 0
        for word in struct.unpack(f"<{count}Q", words):
            together |= word
        return bool(together & PAGE_MASK)
    np = _numpy()
    if np is not None:
        return bool(int(np.bitwise_or.reduce(np.frombuffer(words, "<u8"))) & PAGE_MASK)
    return words[0::_WORD].count(0) != count or bool(words[1::_WORD].translate(None, _ALIGNED))


def _numpy() -> ModuleType | None:
    return sys.modules.get("numpy")


def _array(words: bytes) -> array[int]:
    made = array("Q", words)
    if not _LITTLE:
        made.byteswap()
    return made


def _bytes(words: array[int]) -> bytes:
    if not _LITTLE:
        words.byteswap()
    return words.tobytes()
