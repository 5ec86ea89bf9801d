# SPDX-License-Identifier: BSD-2-Clause
"""Page lists in guest memory: correct ones across every roll-over, and broken ones (bug class 19)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from attrs import evolve, field, frozen
from hypothesis import strategies as st

from fuzz.strategies.integers import edge_integers, page_counts, page_offsets
from fuzz.strategies.remember import remembered
from fuzz.view import GuestView, Shown, Writes, shown_writes
from smccc.page_list import ENTRIES, LINK_OFFSET, build_page_list, list_page_count
from smccc.registers import MASK64
from specs.target import PAGE_SIZE

_WORD: Final = struct.Struct("<Q")


class ListFlaw(StrEnum):
    """What is wrong with a list. With ``NONE`` a mediator has to take the buffer (within limits)."""

    NONE = "nothing"
    LOOP = "the last list page links back and more entries are claimed"
    SELF_LINK = "a list page links to itself"
    STRAY_LINK = "a link to a page that is not the guest's RAM"
    LOW_BIT_LINK = "low bits in a link"
    STRAY_ENTRY = "an entry that is not the guest's RAM"
    LOW_BIT_ENTRY = "low bits in an entry"
    HIGH_BIT_ENTRY = "a bit above the address of an entry that is good otherwise"
    WILD_ENTRY = "an entry that is any number"
    WILD_SIZE = "a size that the list does not have"
    NO_SIZE = "size 0"
    STRAY_LIST = "a list outside of the guest's RAM"


@frozen
class ListedBuffer(Shown):
    """A buffer as a parameter names it, and the stores that put its list into guest memory.

    ``buf_ptr``: address of the first list page plus the offset in the first page. ``entries``: the
    pages that the list names. ``size``: bytes, as the parameter claims.
    """

    buf_ptr: int = field(repr=hex)
    size: int
    entries: tuple[int, ...] = field(repr=False)
    writes: Writes = field(repr=shown_writes)
    flaw: ListFlaw = ListFlaw.NONE


def _put(buffer: ListedBuffer, page: int, offset: int, value: int, flaw: ListFlaw) -> ListedBuffer:
    """The same with one word of list page number ``page`` changed."""
    ipa, _ = buffer.writes[page]
    return evolve(
        buffer,
        writes=(*buffer.writes, (ipa + offset, _WORD.pack(value & MASK64))),
        flaw=flaw,
    )


@remembered
def _links(pages: tuple[int, ...]) -> st.SearchStrategy[int]:
    """0, one of ``pages``, or any edge."""
    return st.one_of(st.just(0), st.sampled_from(pages), edge_integers(64))


@remembered
@st.composite
def listed_buffers(
    draw: st.DrawFn,
    view: GuestView,
    *,
    pages: tuple[int, ...] | None = None,
    most: int = 2 * ENTRIES + 1,
    counts: st.SearchStrategy[int] | None = None,
) -> ListedBuffer:
    """Correct buffers of 1 to ``most`` entries.

    The entries come from ``pages`` (default ``view.data``), several times if there are too few. The
    list pages are adjacent or scattered, the last link is 0 or points anywhere if the last page is
    full, and the last page may be partial (bug class 30).
    """
    pool = view.data if pages is None else pages
    lists = view.lists
    room = min(most, len(lists) * ENTRIES)
    count = min(draw(page_counts(room) if counts is None else counts), room)
    if count <= 8:
        entries = tuple(draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count)))
    else:
        start = draw(st.integers(0, len(pool) - 1))
        entries = tuple([pool[(start + index) % len(pool)] for index in range(count)])
    needed = list_page_count(count)
    first = draw(st.integers(0, len(lists) - needed))
    places: Sequence[int] = lists[first : first + needed]
    if needed > 1 and draw(st.booleans()):
        places = tuple(reversed(places))
    trailing = draw(_links(lists))
    built = build_page_list(entries, places, trailing_link=trailing)
    offset = draw(page_offsets())
    tail = draw(page_offsets())
    # Size 0 is a flaw of its own; with one page left after offset and tail there is at least a byte.
    size = max(count * PAGE_SIZE - offset - tail, (count - 1) * PAGE_SIZE - offset + 1, 1)
    return ListedBuffer(places[0] | offset, size, entries, tuple(built))


@remembered
@st.composite
def hostile_listed_buffers(
    draw: st.DrawFn, view: GuestView, *, most: int = 2 * ENTRIES + 1
) -> ListedBuffer:
    """Broken lists, one :class:`ListFlaw` each. ``NONE`` does not come up."""
    buffer = draw(listed_buffers(view, most=most))
    stray = _links((*view.others, view.hole))
    last = len(build_index(buffer)) - 1
    flaw = draw(st.sampled_from(tuple(ListFlaw)[1:]))
    entry = draw(st.integers(0, len(buffer.entries) - 1))
    where = entry // ENTRIES, entry % ENTRIES * 8
    first = buffer.writes[0][0]
    more = evolve(buffer, size=(last + 2) * ENTRIES * PAGE_SIZE)
    match flaw:
        case ListFlaw.LOOP:
            return _put(more, last, LINK_OFFSET, first, flaw)
        case ListFlaw.SELF_LINK:
            return _put(more, last, LINK_OFFSET, buffer.writes[last][0], flaw)
        case ListFlaw.STRAY_LINK:
            return _put(more, last, LINK_OFFSET, draw(stray), flaw)
        case ListFlaw.LOW_BIT_LINK:
            low = draw(st.sampled_from((1, 8, 0xFFF)))
            return _put(more, last, LINK_OFFSET, first | low, flaw)
        case ListFlaw.STRAY_ENTRY:
            return _put(buffer, *where, draw(st.sampled_from((*view.others, view.hole))), flaw)
        case ListFlaw.LOW_BIT_ENTRY:
            low = draw(st.sampled_from((1, 8, 0xFFF)))
            return _put(buffer, *where, buffer.entries[entry] | low, flaw)
        case ListFlaw.HIGH_BIT_ENTRY:
            high = draw(st.sampled_from((44, 48, 52, 63)))
            return _put(buffer, *where, buffer.entries[entry] | 1 << high, flaw)
        case ListFlaw.WILD_ENTRY:
            return _put(buffer, *where, draw(edge_integers(64)), flaw)
        case ListFlaw.WILD_SIZE:
            size = draw(edge_integers(64).filter(bool))
            return evolve(buffer, size=size, flaw=flaw)
        case ListFlaw.NO_SIZE:
            return evolve(buffer, size=0, flaw=flaw)
        case _:
            return evolve(buffer, buf_ptr=draw(stray), flaw=ListFlaw.STRAY_LIST)


def build_index(buffer: ListedBuffer) -> tuple[int, ...]:
    """The IPAs of the list pages of a buffer, in order."""
    return tuple([ipa for ipa, data in buffer.writes if len(data) == PAGE_SIZE])


@remembered
def any_listed_buffers(
    view: GuestView, *, most: int = 2 * ENTRIES + 1
) -> st.SearchStrategy[ListedBuffer]:
    """Correct and broken lists."""
    return listed_buffers(view, most=most) | hostile_listed_buffers(view, most=most)
