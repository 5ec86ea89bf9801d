# SPDX-License-Identifier: BSD-2-Clause
"""References are counted page by page, in lists of any length, and all or none (classes 5, 15, 20)."""

from __future__ import annotations

import pytest

from mediator.hypervisor import pages, stage2
from mediator.hypervisor.pages import SMALL_LIST
from tests.hypervisor_memory.support import PAGE, RAM, addresses, machine, pfn, pin, state, words


@pytest.mark.parametrize("count", [2, SMALL_LIST, 500])
def test_a_page_that_is_listed_often_is_pinned_as_often(count: int) -> None:
    host = machine()
    frames = pin(host, 1, *[RAM] * count, RAM + PAGE)
    first, second = pfn(host, 1, RAM), pfn(host, 1, RAM + PAGE)
    assert host.pins(1) == {first: count, second: 1}
    host.unpin_pages(1, frames[8:])
    assert host.pins(1) == {first: 1}
    host.unpin_pages(1, frames[:8])
    assert host.pins(1) == {}


@pytest.mark.parametrize("count", [1, SMALL_LIST, 2 * pages.BLOCK])
@pytest.mark.parametrize("bad", [0, 1 << 51, RAM + 64 * PAGE])
def test_one_bad_page_at_the_end_undoes_all_before_it(count: int, bad: int) -> None:
    host = machine()
    before = state(host.memory)
    assert (
        host.pin_pages(1, words(*[RAM + index % 64 * PAGE for index in range(count)], bad)) is None
    )
    assert state(host.memory) == before
    assert host.pinned(1) == 0


@pytest.mark.parametrize("high", [1 << 48, 1 << 51, 1 << 52, 1 << 63])
def test_an_address_far_outside_is_no_alias_of_ram(high: int) -> None:
    host = machine()
    assert host.read_guest(1, RAM, 1) is not None
    assert host.read_guest(1, RAM | high, 1) is None
    assert host.pin_pages(1, words(RAM | high)) is None
    assert host.pin_pages(1, words(*[RAM | high] * SMALL_LIST)) is None


@pytest.mark.parametrize("count", [1, SMALL_LIST])
@pytest.mark.parametrize("low", [1, 8, 0xFFF])
def test_pins_are_of_whole_pages_whatever_the_low_bits(count: int, low: int) -> None:
    host = machine()
    frames = pin(host, 1, *[RAM | low] * count)
    assert set(addresses(frames)) == {pfn(host, 1, RAM) << 12}


def test_a_page_that_left_while_it_was_pinned_is_free_after_the_last_release() -> None:
    for count in (1, SMALL_LIST):
        host = machine(guests=1)
        free = host.memory.free_frames
        frames = pin(host, 1, *[RAM] * count)
        assert host.balloon_out(1, RAM, 1)
        assert host.memory.free_frames == free
        host.unpin_pages(1, frames)
        assert host.memory.free_frames == free + 1
        assert host.stage2(1).lookup(RAM >> 12)[1] == stage2.ABSENT
