# SPDX-License-Identifier: BSD-2-Clause
"""Non-contiguous page lists."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smccc import declarations
from smccc.errors import BuildError, ParseError, Reason
from smccc.page_list import (
    ENTRIES,
    LONG_LIST,
    PAGE_SIZE,
    PageList,
    build_page_list,
    entry_count,
    list_page_count,
    read_page_list,
    segments,
)
from tests.smccc.smccc_golden import records

ALL = 1 << 40
"""A limit that no list of these tests reaches."""

PAGES = st.integers(0, 2**52 - 1).map(lambda number: number * PAGE_SIZE)


class Memory:
    """List pages by address; counts how often each is fetched."""

    def __init__(self, pages: Sequence[tuple[int, bytes]]) -> None:
        self.pages = dict(pages)
        self.fetched: list[int] = []

    def __call__(self, address: int) -> bytes | None:
        self.fetched.append(address)
        return self.pages.get(address)


def test_every_page_list_vector() -> None:
    wrong = []
    for vector in records("page_list_vectors"):
        golden = [(page["addr"], bytes.fromhex(page["hex"])) for page in vector["list_pages"]]
        memory = Memory(golden)
        found = read_page_list(memory, vector["buf_ptr"], vector["size"], vector["n"])
        addresses = [address for address, _ in golden]
        built = build_page_list(
            vector["pages"], addresses, trailing_link=vector["trailing_link_value"]
        )
        if (
            found.pages != tuple(vector["pages"])
            or found.offset != vector["offset"]
            or memory.fetched != addresses
            or built != golden
        ):
            wrong.append((vector["id"], vector["variant"]))
    assert wrong == []
    assert len(records("page_list_vectors")) == 31


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Pages, addresses of list pages, and what a full last page leaves in its link."""
    count = draw(st.one_of(st.integers(1, 60), st.sampled_from([510, 511, 512, 1022, 1023])))
    seed = draw(st.integers(0, 2**32 - 1))
    # Long lists are drawn by arithmetic: element by element they would exhaust the generator.
    pages = [(seed * (at + 1) * 0x9E3779B1 % 2**40) * PAGE_SIZE for at in range(count)]
    needed = list_page_count(count)
    addresses = draw(st.lists(PAGES, min_size=needed, max_size=needed, unique=True))
    return pages, addresses, draw(st.integers(0, 2**64 - 1))


@settings(deadline=None)
@given(lists(), st.integers(0, PAGE_SIZE - 1), st.integers(1, PAGE_SIZE))
def test_what_is_built_is_read_again(
    drawn: tuple[list[int], list[int], int], offset: int, tail: int
) -> None:
    pages, addresses, trailing = drawn
    memory = Memory(build_page_list(pages, addresses, trailing_link=trailing))
    size = max((len(pages) - 1) * PAGE_SIZE - offset + tail, 1)
    if entry_count(offset, size) != len(pages):
        size = len(pages) * PAGE_SIZE - offset
    found = read_page_list(memory, addresses[0] + offset, size, len(pages))
    assert found.pages == tuple(pages)
    assert (found.offset, found.size) == (offset, size)
    assert memory.fetched == addresses, "each list page once, none behind the last"
    assert found.array().tolist() == pages
    spans = list(segments(found))
    assert sum(length for _, length in spans) == size
    assert spans[0][0] == pages[0] + offset


Read = Callable[[Memory, int, int, int], PageList]


def outcome(read: Read, memory: Memory, buf_ptr: int, size: int, limit: int) -> object:
    try:
        return read(memory, buf_ptr, size, limit)
    except ParseError as error:
        return error


@st.composite
def hostile(draw: st.DrawFn) -> tuple[list[tuple[int, bytes]], int, int]:
    """A list with words overwritten, pages missing or short; and the parameter that names it."""
    pages, addresses, trailing = draw(lists())
    built = [
        (at, bytearray(page))
        for at, page in build_page_list(pages, addresses, trailing_link=trailing)
    ]
    words = st.one_of(PAGES, st.integers(0, 2**64 - 1), st.sampled_from(addresses))
    for _ in range(draw(st.integers(0, 3))):
        _, page = built[draw(st.integers(0, len(built) - 1))]
        at = draw(st.one_of(st.just(ENTRIES), st.integers(0, ENTRIES)))
        struct.pack_into("<Q", page, 8 * at, draw(words))
    missing = draw(st.integers(-3, len(built) - 1))
    short = draw(st.integers(-3, len(built) - 1))
    kept = [
        (at, bytes(page[: 4095 if index == short else PAGE_SIZE]))
        for index, (at, page) in enumerate(built)
        if index != missing
    ]
    buf_ptr = addresses[0] + draw(st.integers(0, PAGE_SIZE - 1))
    size = draw(
        st.one_of(st.integers(0, len(pages) * PAGE_SIZE), st.sampled_from([0, 2**40, 2**64 - 1]))
    )
    return kept, buf_ptr, size


@settings(deadline=None)
@given(hostile(), st.sampled_from([1, 129, 1024]))
def test_reader_and_declaration_agree_on_any_list(
    drawn: tuple[list[tuple[int, bytes]], int, int], limit: int
) -> None:
    pages, buf_ptr, size = drawn
    ours, declared = Memory(pages), Memory(pages)
    found = outcome(read_page_list, ours, buf_ptr, size, limit)
    assert found == outcome(declarations.read_page_list, declared, buf_ptr, size, limit)
    assert ours.fetched == declared.fetched
    assert len(ours.fetched) <= list_page_count(limit), "work is bounded by the limit"


def test_a_list_that_loops_is_harmless() -> None:
    page = struct.pack("<512Q", *[0x5000] * ENTRIES, 0x1000)
    memory = Memory([(0x1000, page)])
    found = read_page_list(memory, 0x1000, 1500 * PAGE_SIZE, 1500)
    assert found.pages == (0x5000,) * 1500
    assert memory.fetched == [0x1000] * 3


def test_the_link_of_a_full_last_page_is_never_followed() -> None:
    for trailing in (0, 0x9000, 0xFFFF_FFFF_FFFF_FFFF):
        built = build_page_list([0x5000] * ENTRIES, 0x1000, trailing_link=trailing)
        memory = Memory(built)
        assert len(read_page_list(memory, 0x1000, ENTRIES * PAGE_SIZE, ENTRIES)) == ENTRIES
        assert memory.fetched == [0x1000]


@pytest.mark.parametrize("count", [3, LONG_LIST - 1, LONG_LIST, 511])
def test_errors_name_the_first_bad_entry_in_short_and_long_lists(count: int) -> None:
    words = [0x1000 * (at + 1) for at in range(count)]
    for bad in {0, count // 2, count - 1}:
        broken = list(words)
        broken[bad] |= 8
        broken[-1] |= 1
        page = struct.pack("<512Q", *broken, *[0xFFF] * (512 - count))
        error = outcome(read_page_list, Memory([(0x1000, page)]), 0x1000, count * 4096, 511)
        field = f"list[0].pages[{bad}]"
        assert error == ParseError(8 * bad, field, Reason.UNALIGNED_ENTRY)


def test_errors_of_links_and_pages() -> None:
    pages = [0x1000] * (ENTRIES + 1)
    good = build_page_list(pages, [0x10000, 0x30000])
    size = len(pages) * PAGE_SIZE
    assert outcome(read_page_list, Memory([]), 0x10010, size, ALL) == ParseError(
        0, "buf_ptr", Reason.UNREADABLE_PAGE
    )
    assert outcome(read_page_list, Memory(good[:1]), 0x10000, size, ALL) == ParseError(
        4088, "list[0].next_page", Reason.UNREADABLE_PAGE
    )
    bad = good[0][1][:4088] + struct.pack("<Q", 0x30001)
    assert outcome(read_page_list, Memory([(0x10000, bad)]), 0x10000, size, ALL) == ParseError(
        4088, "list[0].next_page", Reason.UNALIGNED_LINK
    )
    second = struct.pack("<Q", 0x30004) + good[1][1][8:]
    memory = Memory([good[0], (0x30000, second)])
    assert outcome(read_page_list, memory, 0x10000, size, ALL) == ParseError(
        4096, "list[1].pages[0]", Reason.UNALIGNED_ENTRY
    )


@pytest.mark.parametrize(
    ("size", "limit", "reason"),
    [
        (0, 511, Reason.EMPTY_LIST),
        (2**64 - 1, 1 << 20, Reason.LIST_TOO_LONG),
        (130 * 4096, 129, Reason.LIST_TOO_LONG),
    ],
)
def test_sizes_are_judged_before_anything_is_read(size: int, limit: int, reason: Reason) -> None:
    memory = Memory([])
    assert outcome(read_page_list, memory, 0x1000, size, limit) == ParseError(0, "size", reason)
    assert memory.fetched == []


@given(st.integers(0, 4095), st.integers(1, 2**64 - 1))
@example(0, 1)
@example(4095, 1)
@example(4095, 2)
@example(0, 4096)
def test_entry_count_is_the_header_s_formula(offset: int, size: int) -> None:
    assert entry_count(offset, size) == (size + offset - 1) // 4096 + 1


def test_long_lists_are_arrays() -> None:
    pages = np.arange(1, 262_145, dtype="<u8") * np.uint64(4096)
    memory = Memory(build_page_list(pages.tobytes(), 0x100_0000_0000))
    assert len(memory.pages) == 514
    found = read_page_list(memory, 0x100_0000_0000, 1 << 30, 262_144)
    assert np.array_equal(found.array(), pages)
    assert not found.array().flags.writeable


@pytest.mark.parametrize(
    ("pages", "where", "field"),
    [
        ([], 0, "pages"),
        ([0x1000, 0x1001], 0, "pages[1]"),
        ([1 << 64], 0, "pages"),
        (b"1234567", 0, "pages"),
        ([0x1000], 0x10, "list_pages[0]"),
        ([0x1000] * 512, [0x1000], "list_pages"),
        ([0x1000], [1 << 64], "list_pages[0]"),
    ],
)
def test_lists_that_cannot_be_built(
    pages: bytes | list[int], where: int | list[int], field: str
) -> None:
    with pytest.raises(BuildError) as caught:
        build_page_list(pages, where)
    assert caught.value.field == field


def test_a_trailing_link_that_does_not_fit() -> None:
    with pytest.raises(BuildError):
        build_page_list([0x1000] * ENTRIES, 0, trailing_link=1 << 64)
