# SPDX-License-Identifier: BSD-2-Clause
"""Long page lists, read and pinned step by step, as the mediator in the hypervisor does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from mediator.deployment import app_abi as abi
from mediator.host import PAGE_LIST_ENTRIES, PAGE_SIZE, Host
from mediator.optee.words import with_offsets

_WORD: Final = 8
_PAGE_WORDS: Final = PAGE_SIZE // _WORD

Take = Callable[[bytes], None]
"""Gets the next entries: page addresses with the offsets of the guest's list."""


class Walk(NamedTuple):
    """How a walk ended: a status, flags of the RESULT, the next list page, frames that are pinned, and
    whether any of the entries had an offset."""

    status: int
    flags: int
    link: int
    frames: list[bytes]
    low: bool

    @property
    def pinned(self) -> int:
        """Entries that are pinned."""
        return sum([len(frames) for frames in self.frames]) // _WORD


def walk(host: Host, guest: int, ipa: int, entries: int, step: int, take: Take) -> Walk:
    """The same calls of the host in the same order as step by step from the mediator itself.

    If one raises, nothing stays pinned: the app is not told of these pins.
    """
    pinned: list[bytes] = []
    link, left, low = 0, entries, False
    try:
        while True:
            now = min(left, step)
            chain = host.read_page_list(guest, ipa, now)
            frames = None if chain is None else host.pin_pages(guest, chain[0])
            if chain is None or frames is None:
                return Walk(abi.NO, 0, link, pinned, low)
            pinned.append(frames)
            listed = with_offsets(frames, chain[0])
            low |= listed is not frames
            take(listed)
            ipa = link = chain[1]
            left -= now
            if not left:
                return Walk(abi.OK, 0, link, pinned, low)
            if host.should_preempt():
                return Walk(abi.OK, abi.FLAG_PREEMPT, link, pinned, low)
    except Exception:
        for frames in pinned:
            host.unpin_pages(guest, frames)
        raise


def list_writer(pages: memoryview) -> Take:
    """Writes entries as a page list into ``pages``, each time from a new page on.

    The links between the pages stay as they are.
    """
    at = 0

    def write(entries: bytes) -> None:
        nonlocal at
        whole, rest = divmod(len(entries) // _WORD, PAGE_LIST_ENTRIES)
        end = whole * PAGE_LIST_ENTRIES * _WORD
        if whole:
            room = np.frombuffer(pages, "<u8", whole * _PAGE_WORDS, at).reshape(whole, _PAGE_WORDS)
            words = np.frombuffer(entries, "<u8", whole * PAGE_LIST_ENTRIES)
            room[:, :PAGE_LIST_ENTRIES] = words.reshape(whole, PAGE_LIST_ENTRIES)
            at += whole * PAGE_SIZE
        if rest:
            pages[at : at + rest * _WORD] = entries[end:]
            at += PAGE_SIZE

    return write
