# SPDX-License-Identifier: BSD-2-Clause
"""Memory maps and page lists: what is called correct is, what is called broken is in that way."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import find, given, settings

from fuzz.strategies.integers import LIST_EDGES
from fuzz.strategies.maps import FIRST_PA, memory_maps, page_ranges
from fuzz.strategies.page_lists import (
    ListedBuffer,
    ListFlaw,
    any_listed_buffers,
    build_index,
    hostile_listed_buffers,
    listed_buffers,
)
from fuzz.view import GuestView
from smccc.errors import ParseError
from smccc.page_list import entry_count, read_page_list
from specs.target import PAGE_SIZE, GuestSpec, PageKind, PhysicalMap, Region, Setup
from specs.vectors.model_target import ModelTarget
from tests.fuzz.support import VIEW, Memory, drawn

QUIET = settings(derandomize=True, database=None)
LIMIT = 1 << 12


def read(buffer: ListedBuffer) -> tuple[int, ...]:
    memory = Memory(buffer.writes)
    return read_page_list(memory.read_page, buffer.buf_ptr, buffer.size, LIMIT).pages


@given(memory_maps())
@settings(max_examples=50)
def test_maps_can_be_built_and_no_ipa_is_a_pa(specs: tuple[GuestSpec, ...]) -> None:
    physical = PhysicalMap.of(specs)
    ipas = {ipa for _, ipa in physical.pa_of}
    assert not ipas & set(physical.seen_at)
    assert min(physical.seen_at) >= FIRST_PA
    for spec in specs:
        pages = [
            region.ipa + index * PAGE_SIZE
            for region in spec.regions
            for index in range(region.pages)
        ]
        assert len(pages) == len(set(pages)), "regions do not overlap"
        view = GuestView.of(spec)
        assert 16 <= len(view.ram) <= 49
        assert view.hole not in pages
    owned = [
        region.pa + index * region.pa_step
        for spec in specs
        for region in spec.regions
        if region.kind.owned and region.pa is not None
        for index in range(region.pages)
    ]
    assert len(owned) == len(set(owned)), "no page has two owners"
    ModelTarget(Setup(specs), NoWorld())


class NoWorld:
    def smc(self, *regs: int) -> tuple[int, int, int, int]:
        raise AssertionError

    def should_preempt(self) -> bool:
        return False

    def allocation_fails(self) -> bool:
        return False

    def guest_memory_read(self) -> None:
        pass

    def guest_memory_write(self, pa: int) -> None:
        pass


def test_maps_have_pages_of_every_kind_and_of_each_other() -> None:
    maps = drawn(memory_maps(), 60)
    kinds = {region.kind for specs in maps for spec in specs for region in spec.regions}
    # A page that is absent is no region: what is not mapped is absent.
    assert kinds == set(PageKind) - {PageKind.ABSENT}
    assert any(region.ipa == 0 for specs in maps for spec in specs for region in spec.regions)
    assert any(region.pa_step > PAGE_SIZE for specs in maps for region in specs[0].regions)
    peeks = 0
    for first, second in maps:
        own = {
            region.pa + index * region.pa_step
            for region in first.regions
            if region.kind.owned and region.pa is not None
            for index in range(region.pages)
        }
        peeks += any(not region.kind.owned and region.pa in own for region in second.regions)
    assert peeks > 10, "the second guest sees pages of the first"


def test_a_map_shrinks_to_plain_ram() -> None:
    smallest = find(memory_maps((7,)), lambda specs: True, settings=QUIET)
    assert len(smallest) == 1
    assert smallest[0].number == 7
    assert {region.kind for region in smallest[0].regions} == {PageKind.RAM}
    assert sum(region.pages for region in smallest[0].regions) == 16


def test_too_small_maps_are_errors() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        find(memory_maps(least=4), lambda specs: True, settings=QUIET)
    with pytest.raises(ValueError, match="less than 16"):
        GuestView.simple(pages=8)


def test_ranges_lie_inside_one_region() -> None:
    spec = GuestSpec(
        1, regions=(Region(0x1000, 3, PageKind.RAM, 0), Region(0x9000, 1, PageKind.MMIO))
    )
    found = set(drawn(page_ranges(spec), 60))
    assert (0x1000, 3) in found
    assert (0x9000, 1) in found
    assert all(ipa + pages * PAGE_SIZE <= 0x4000 or ipa == 0x9000 for ipa, pages in found)


def test_uses_of_a_view_do_not_overlap() -> None:
    uses = [VIEW.carriers, VIEW.rpc, VIEW.lists, VIEW.data]
    pages = [page for use in uses for page in use]
    assert sorted(pages) == list(VIEW.ram)
    assert all(len(use) >= 2 for use in uses)
    assert VIEW.others == ()
    assert VIEW.of_kind(PageKind.MMIO) == ()


@given(listed_buffers(VIEW))
@settings(max_examples=50)
def test_a_correct_list_reads_as_its_entries(buffer: ListedBuffer) -> None:
    assert read(buffer) == buffer.entries
    assert entry_count(buffer.buf_ptr % PAGE_SIZE, buffer.size) == len(buffer.entries)
    assert set(buffer.entries) <= set(VIEW.data)
    assert {ipa for ipa, _ in buffer.writes} <= set(VIEW.lists)


def test_lists_are_at_every_roll_over_adjacent_and_scattered() -> None:
    buffers = drawn(listed_buffers(VIEW), 120)
    counts = Counter(len(buffer.entries) for buffer in buffers)
    assert set(LIST_EDGES) <= set(counts)
    assert sum(counts[few] for few in range(1, 9)) > 60
    long = [build_index(buffer) for buffer in buffers if len(buffer.writes) > 1]
    steps = {second - first for first, second, *_ in long}
    assert PAGE_SIZE in steps
    assert -PAGE_SIZE in steps
    assert any(buffer.size % PAGE_SIZE for buffer in buffers), "a partial last page"
    assert any(buffer.buf_ptr % PAGE_SIZE for buffer in buffers), "an offset"


def test_a_long_list_shrinks_to_the_roll_over() -> None:
    buffer = find(listed_buffers(VIEW), lambda b: len(b.writes) > 1, settings=QUIET)
    assert len(buffer.entries) == 512
    assert buffer.buf_ptr % PAGE_SIZE == 0
    assert buffer.size == 512 * PAGE_SIZE


def test_every_flaw_occurs_and_none_is_harmless() -> None:
    buffers = drawn(hostile_listed_buffers(VIEW), 250)
    found = Counter(buffer.flaw for buffer in buffers)
    assert set(found) == set(ListFlaw) - {ListFlaw.NONE}
    for buffer in buffers:
        try:
            pages: tuple[int, ...] | None = read(buffer)
        except ParseError:
            pages = None
        match buffer.flaw:
            case ListFlaw.LOW_BIT_ENTRY | ListFlaw.NO_SIZE:
                assert pages is None
            case ListFlaw.STRAY_ENTRY | ListFlaw.HIGH_BIT_ENTRY:
                assert pages is not None
                assert len(set(pages) - set(VIEW.ram)) == 1
            case ListFlaw.LOOP | ListFlaw.SELF_LINK:
                # Bounded by the size alone, the list repeats itself.
                assert pages is not None
                assert len(pages) > len(buffer.entries)
            case ListFlaw.LOW_BIT_LINK:
                assert pages is None


def test_correct_and_broken_lists_are_mixed() -> None:
    flaws = Counter(buffer.flaw for buffer in drawn(any_listed_buffers(VIEW), 60))
    assert 10 < flaws[ListFlaw.NONE] < 55
