# SPDX-License-Identifier: BSD-2-Clause
"""Page allocation, cookies, buffers and page lists."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.guest.cpu import Registers
from mediator.guest.kernel import Kernel
from mediator.guest.memory import (
    Buffer,
    CookieAllocator,
    OutOfMemory,
    PageAllocator,
    page_count,
    page_list,
)
from smccc.page_list import list_page_count, read_page_list
from tests.guest.machine import FakeCpu, FakeMachine

EXTENTS = ((0x4000_0000, 7), (0x5000_0000, 1), (0x8000_0000, 20))
PAGES = 28
ALL = {ipa + 4096 * n for ipa, count in EXTENTS for n in range(count)}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("run"), st.integers(1, 9)),
            st.tuples(st.just("user"), st.integers(1, 9)),
            st.tuples(st.just("free"), st.integers(0, 30)),
        ),
        max_size=40,
    )
)
def test_no_page_is_given_twice_and_none_is_invented(steps: list[tuple[str, int]]) -> None:
    pages = PageAllocator(EXTENTS, 0)
    held: list[tuple[str, list[int]]] = []
    for step, number in steps:
        try:
            if step == "run":
                first = pages.alloc_run(number)
                held.append((step, [first + 4096 * n for n in range(number)]))
            elif step == "user":
                held.append((step, pages.alloc_user(number)))
            elif held:
                kind, group = held.pop(number % len(held))
                if kind == "run":
                    pages.free_run(group[0], len(group))
                else:
                    pages.free_user(group)
        except OutOfMemory:
            continue
        given_out = [page for _, group in held for page in group]
        assert len(set(given_out)) == len(given_out)
        assert set(given_out) <= ALL
        assert pages.in_use == len(given_out)


def test_every_page_can_be_had_one_by_one() -> None:
    pages = PageAllocator(EXTENTS, 0)
    assert {pages.alloc() for _ in range(PAGES)} == ALL
    with pytest.raises(OutOfMemory):
        pages.alloc()
    with pytest.raises(OutOfMemory):
        pages.alloc_user(1)


def test_a_run_never_crosses_extents_and_the_rest_stays_usable() -> None:
    pages = PageAllocator(EXTENTS, 0)
    pages.alloc_run(5)
    assert pages.alloc_run(3) == 0x8000_0000
    assert {pages.alloc() for _ in range(3)} == {0x4000_5000, 0x4000_6000, 0x5000_0000}
    with pytest.raises(OutOfMemory):
        pages.alloc_run(18)


def test_user_pages_are_scattered_and_the_same_for_the_same_seed() -> None:
    first = PageAllocator(((0, 1000),), 3).alloc_user(500)
    again = PageAllocator(((0, 1000),), 3).alloc_user(500)
    other = PageAllocator(((0, 1000),), 4).alloc_user(500)
    assert first == again != other
    adjacent = sum(b - a == 4096 for a, b in itertools.pairwise(first))
    assert adjacent < 10


def test_what_was_freed_last_comes_first() -> None:
    pages = PageAllocator(EXTENTS, 0)
    one, two = pages.alloc(), pages.alloc()
    pages.free(one)
    pages.free(two)
    assert [pages.alloc(), pages.alloc()] == [two, one]
    cookies = CookieAllocator()
    first, second = cookies.alloc(), cookies.alloc()
    assert second - first == 0x80
    cookies.free(first)
    assert cookies.alloc() == first


@given(
    offset=st.integers(0, 4095),
    size=st.integers(0, 20_000),
    part=st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)),
    seed=st.integers(0, 3),
)
def test_a_scattered_buffer_reads_what_was_written(
    offset: int, size: int, part: tuple[int, int], seed: int
) -> None:
    kernel = Kernel()
    pages = PageAllocator(((0x4000_0000, 16),), seed).alloc_user(page_count(offset, size))
    buffer = Buffer(kernel, pages, offset, size)
    start = min(part[0], size)
    length = min(part[1], size - start)
    content = bytes(n * 7 % 251 for n in range(size))
    seen: list[bytes] = []

    async def main() -> None:
        await buffer.write(content)
        seen.append(await buffer.read(start, length))
        with pytest.raises(ValueError, match="buffer of"):
            await buffer.read(start, size - start + 1)
        with pytest.raises(ValueError, match="buffer of"):
            await buffer.write(b"x", size)

    def no_tee(cpu: FakeCpu, regs: Registers) -> tuple[int, int, int, int]:
        return 0, 0, 0, 0

    kernel.spawn(main(), "main")
    assert FakeMachine(((0x4000_0000, 16),), no_tee).run([kernel.run])
    assert not kernel.failures
    assert seen == [content[start : start + length]]


@pytest.mark.parametrize("count", [1, 2, 510, 511, 512, 1022, 1023, 1300])
def test_page_lists_read_back(count: int) -> None:
    pages = [0x5000_0000 + 4096 * (n * 7 % 2000) for n in range(count)]
    base = 0x4100_0000
    image = page_list(pages, base)
    assert len(image) == list_page_count(count) * 4096
    listed = read_page_list(
        lambda ipa: image[ipa - base : ipa - base + 4096], base | 8, count * 4096 - 8, count
    )
    assert list(listed.pages) == pages
    # A full page is linked to what would follow it, also behind the last one.
    last = int.from_bytes(image[-8:], "little")
    assert last == (base + len(image) if count % 511 == 0 else 0)
