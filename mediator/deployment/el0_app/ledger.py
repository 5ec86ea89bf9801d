# SPDX-License-Identifier: BSD-2-Clause
"""What one app holds of a guest's pages, so that it can be checked, and given back without the app.

Every pin that an app makes is noted here. Short lists are counted page by page; a long one is kept as
it was pinned, and nearly always comes back in one piece. One that does not is counted page by page
from then on: right in any case, and dear only for an app that behaves strangely.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHORT_LIST: Final = 128
"""Pages up to which a list is counted one by one, some 0.1 µs each."""

_PAGE: Final = ~0xFFF
_WORD: Final = 8


class Pins:
    """Frames that an app has pinned for one guest. ``count``: with repetitions."""

    __slots__ = ("_long", "_pages", "_sorted", "count")

    def __init__(self) -> None:
        self.count = 0
        self._pages: dict[int, int] = {}
        # By the first word of the list; more than one list may begin with the same page.
        self._long: dict[bytes, list[bytes]] = {}
        self._sorted: NDArray[np.uint64] | None = None

    def add(self, frames: bytes) -> None:
        """These page addresses (u64 words) were pinned once more each."""
        count = len(frames) // _WORD
        self.count += count
        if count > SHORT_LIST:
            self._long.setdefault(frames[:_WORD], []).append(frames)
            self._sorted = None
            return
        pages = self._pages
        for page in struct.unpack(f"<{count}Q", frames):
            pages[page] = pages.get(page, 0) + 1

    def take(self, frames: bytes) -> bool:
        """They are to be unpinned. False, and nothing changed, unless all are pinned that often."""
        lists, rest = self._long_ones(frames)
        if not self._has(rest):
            self._count_all()
            lists, rest = [], frames
            if not self._has(rest):
                return False
        for held in lists:
            same = self._long[held[:_WORD]]
            same[:] = [one for one in same if one is not held]
            if not same:
                del self._long[held[:_WORD]]
            self._sorted = None
        pages = self._pages
        for page in struct.unpack(f"<{len(rest) // _WORD}Q", rest):
            left = pages[page] - 1
            if left:
                pages[page] = left
            else:
                del pages[page]
        self.count -= len(frames) // _WORD
        return True

    def holds(self, pa: int) -> bool:
        """Whether the page with this address is pinned."""
        page = pa & _PAGE
        if page in self._pages:
            return True
        if not self._long:
            return False
        ordered = self._sorted
        if ordered is None:
            lists = [frames for held in self._long.values() for frames in held]
            ordered = self._sorted = np.sort(np.frombuffer(b"".join(lists), "<u8"))
        index = int(np.searchsorted(ordered, np.uint64(page)))
        return index < len(ordered) and int(ordered[index]) == page

    def everything(self) -> bytes:
        """All frames, each as often as it is pinned."""
        parts = [frames for held in self._long.values() for frames in held]
        parts += [page.to_bytes(_WORD, "little") * times for page, times in self._pages.items()]
        return b"".join(parts)

    def clear(self) -> None:
        """Nothing is pinned any more."""
        self.count = 0
        self._pages.clear()
        self._long.clear()
        self._sorted = None

    def _long_ones(self, frames: bytes) -> tuple[list[bytes], bytes]:
        """The long lists that ``frames`` begins with, one after the other, and what is left."""
        at, found = 0, list[bytes]()
        while self._long and len(frames) - at > SHORT_LIST * _WORD:
            for held in self._long.get(frames[at : at + _WORD], ()):
                if frames.startswith(held, at) and not any(held is one for one in found):
                    found.append(held)
                    at += len(held)
                    break
            else:
                break
        return found, frames[at:] if at else frames

    def _has(self, frames: bytes) -> bool:
        """Whether these pages are all counted one by one, that often."""
        wanted: dict[int, int] = {}
        pages = self._pages
        for page in struct.unpack(f"<{len(frames) // _WORD}Q", frames):
            times = wanted[page] = wanted.get(page, 0) + 1
            if pages.get(page, 0) < times:
                return False
        return True

    def _count_all(self) -> None:
        pages = self._pages
        for held in self._long.values():
            for frames in held:
                for page in struct.unpack(f"<{len(frames) // _WORD}Q", frames):
                    pages[page] = pages.get(page, 0) + 1
        self._long.clear()
        self._sorted = None
