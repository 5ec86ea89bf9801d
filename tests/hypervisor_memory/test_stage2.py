# SPDX-License-Identifier: BSD-2-Clause
"""Stage 2 against a dictionary: scalar look-ups, gathers and listings, through any changes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mediator.hypervisor import stage2 as s2
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.stage2 import Stage2

PAGE = 4096
TOP = (1 << 40) - 1  # the last gfn of 52-bit IPAs

# Places where ranges begin: around slot borders, in three far parts of the IPA space.
BASES = (0, 0x40000, 1 << 32, TOP + 1 - 3 * 512)
GFNS = st.builds(
    lambda base, slot, offset: base + slot * 512 + offset,
    st.sampled_from(BASES),
    st.integers(0, 2),
    st.sampled_from([0, 1, 255, 510, 511]),
)
PAGES = st.sampled_from([1, 2, 3, 511, 512, 513, 1024, 1300])
KINDS = st.integers(s2.ABSENT, s2.OWN_RW)
PROBES = (0, 1, 511, 512, 0x3FFFF, 0x40000, 0x401FF, 0x40200, 1 << 32, TOP, TOP + 1, (1 << 52) - 1)


class Stage2Model(RuleBasedStateMachine):
    """``model``: gfn -> (pfn, kind) of every page that has an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Stage2()
        self.model: dict[int, tuple[int, int]] = {}

    @staticmethod
    def cut(gfn: int, pages: int) -> int:
        return min(pages, TOP + 1 - gfn)

    @rule(gfn=GFNS, pages=PAGES, kind=KINDS, pfn=st.integers(1, 1 << 20), step=st.integers(0, 3))
    def map_range(self, gfn: int, pages: int, kind: int, pfn: int, step: int) -> None:
        pages = self.cut(gfn, pages)
        self.table.map_range(gfn * PAGE, pages, kind, pfn * PAGE, step * PAGE)
        for index in range(pages):
            self.model[gfn + index] = (pfn + index * step, kind)

    @rule(
        gfn=GFNS, pfns=st.lists(st.integers(1, (1 << 29) - 1), min_size=1, max_size=20), kind=KINDS
    )
    def map_frames(self, gfn: int, pfns: list[int], kind: int) -> None:
        pfns = pfns[: TOP + 1 - gfn]
        self.table.map_frames(gfn * PAGE, kind, np.array(pfns, np.int64))
        for index, pfn in enumerate(pfns):
            self.model[gfn + index] = (pfn, kind)

    @rule(gfn=GFNS, pages=PAGES)
    def unmap(self, gfn: int, pages: int) -> None:
        pages = self.cut(gfn, pages)
        self.table.unmap(gfn * PAGE, pages)
        for index in range(pages):
            self.model.pop(gfn + index, None)

    @rule(gfn=GFNS, pages=PAGES, kind=KINDS)
    def remap(self, gfn: int, pages: int, kind: int) -> None:
        pages = self.cut(gfn, pages)
        if all(gfn + index in self.model for index in range(pages)):
            self.table.remap(gfn * PAGE, pages, kind)
            for index in range(pages):
                self.model[gfn + index] = (self.model[gfn + index][0], kind)
        else:
            with pytest.raises(InvariantError, match="never mapped"):
                self.table.remap(gfn * PAGE, pages, kind)

    @rule(gfns=st.lists(st.one_of(GFNS, st.sampled_from(PROBES)), max_size=30))
    def gather(self, gfns: list[int]) -> None:
        expected = [self.model.get(gfn, (0, 0)) for gfn in gfns]
        pfns, kinds = self.table.gather(np.array(gfns, np.int64))
        assert list(zip(pfns.tolist(), kinds.tolist(), strict=True)) == expected

    @rule()
    def gather_everything(self) -> None:
        gfns = sorted(self.model)
        pfns, kinds = self.table.gather(np.array(gfns, np.int64))
        assert (
            dict(zip(gfns, zip(pfns.tolist(), kinds.tolist(), strict=True), strict=True))
            == self.model
        )

    @rule(gfn=st.one_of(GFNS, st.sampled_from(PROBES)))
    def translate(self, gfn: int) -> None:
        pfn, kind = self.model.get(gfn, (0, 0))
        assert self.table.translate(gfn) == pfn << 3 | kind
        assert self.table.lookup(gfn) == (pfn, kind)

    @invariant()
    def listing_is_the_model(self) -> None:
        listed: dict[int, tuple[int, int]] = {}
        last = -1
        for run in self.table.mappings():
            assert run.gfn > last
            last = run.gfn + run.pages - 1
            for index in range(run.pages):
                listed[run.gfn + index] = (run.pfn + index * run.step, run.kind)
        assert listed == self.model
        assert self.table.page_count() == sum(kind != s2.ABSENT for _, kind in listed.values())

    @invariant()
    def memory_of_translations_is_true_and_small(self) -> None:
        assert len(self.table.tlb) <= s2.TLB_ENTRIES
        for gfn, entry in self.table.tlb.items():
            pfn, kind = self.model[gfn]
            assert entry == pfn << 3 | kind
            assert kind != s2.ABSENT


TestStage2Model = Stage2Model.TestCase
TestStage2Model.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("address", [0, 1 << 44, 1 << 52, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096])
def test_addresses_that_nothing_can_be_mapped_at_are_absent(address: int) -> None:
    table = Stage2()
    table.map_range(0x4000_0000, 600, s2.OWN_RW, 0x8000_0000)
    for _ in range(2):
        assert table.entry(address >> 12) == 0
        assert table.lookup(address >> 12) == (0, s2.ABSENT)
        pfns, kinds = table.gather(np.array([address >> 12, 0x40000], np.int64))
        assert (pfns.tolist(), kinds.tolist()) == ([0, 0x80000], [s2.ABSENT, s2.OWN_RW])
        table.unmap(0x4000_0000 + PAGE, 1)  # and once more with a directory


@pytest.mark.parametrize(
    ("ipa", "pages"),
    [(1, 1), (-4096, 1), (0, 0), (1 << 52, 1), ((1 << 52) - PAGE, 2), (0, (1 << 40) + 1)],
)
def test_ranges_outside_of_the_ipa_space_are_refused(ipa: int, pages: int) -> None:
    table = Stage2()
    changes: tuple[Callable[[], object], ...] = (
        lambda: table.map_range(ipa, pages, s2.OWN_RW, PAGE),
        lambda: table.unmap(ipa, pages),
        lambda: table.remap(ipa, pages, s2.OWN_RO),
    )
    for change in changes:
        with pytest.raises(InvariantError):
            change()
    assert table.mappings() == []


@pytest.mark.parametrize(
    ("kind", "pa", "step"),
    [
        (8, PAGE, PAGE),
        (-1, PAGE, PAGE),
        (7, 1, PAGE),
        (7, PAGE, 1),
        (7, 1 << 41, PAGE),
        (7, PAGE, -PAGE),
    ],
)
def test_frames_that_do_not_fit_are_refused(kind: int, pa: int, step: int) -> None:
    table = Stage2()
    with pytest.raises(InvariantError):
        table.map_range(0, 2, kind, pa, step)
    assert table.mappings() == []


@pytest.mark.parametrize("start", [0x40000, 0x40001, 0x401FF])
@pytest.mark.parametrize("pages", [1, 511, 512, 1000])
def test_gathers_at_the_edges_of_an_extent(start: int, pages: int) -> None:
    table = Stage2()
    table.map_range(start * PAGE, pages, s2.OWN_RW, 0x9000_0000)
    for gfn, mapped in ((start - 1, 0), (start, 1), (start + pages - 1, 1), (start + pages, 0)):
        kinds = table.gather(np.array([gfn, start], np.int64))[1]
        assert kinds.tolist() == [s2.OWN_RW * mapped, s2.OWN_RW]
    table.map_range((start + 4096) * PAGE, 600, s2.OWN_RO, 0xA000_0000)
    for gfn in (start - 1, start + pages, start + 4095, start + 4096 + 600, 1 << 52, 0):
        pfns, kinds = table.gather(np.array([gfn, start], np.int64))
        assert (pfns.tolist()[0], kinds.tolist()) == (0, [s2.ABSENT, s2.OWN_RW])


def test_a_change_is_seen_by_what_was_remembered() -> None:
    table = Stage2()
    table.map_range(0, 4, s2.OWN_RW, 0x9000_0000)
    changes: tuple[Callable[[], object], ...] = (
        lambda: table.remap(0, 1, s2.OWN_RO),
        lambda: table.map_range(0, 1, s2.OWN_RW, 0xA000_0000),
        lambda: table.map_frames(0, s2.OWN_RW, np.array([5], np.int64)),
        lambda: table.unmap(0, 1),
    )
    for change in changes:
        table.translate(0)
        assert 0 in table.tlb
        change()
        assert 0 not in table.tlb


def test_a_page_made_absent_by_remap_keeps_its_frame() -> None:
    table = Stage2()
    table.map_range(0x4000_0000, 4, s2.OWN_RW, 0x9000_0000, 3 * PAGE)
    table.remap(0x4000_1000, 1, s2.ABSENT)
    assert table.lookup(0x40001) == (0x90003, s2.ABSENT)
    table.remap(0x4000_1000, 1, s2.OWN_RO)
    assert table.lookup(0x40001) == (0x90003, s2.OWN_RO)
    assert table.lookup(0x40002) == (0x90006, s2.OWN_RW)


def test_frame_1_made_absent_is_listed_although_its_entry_follows_0() -> None:
    table = Stage2()
    table.map_frames(PAGE, s2.ABSENT, np.array([1], np.int64))
    assert table.mappings() == [s2.Mapping(1, 1, 1, 1, s2.ABSENT)]


def test_the_order_of_kinds_that_the_checks_rely_on() -> None:
    own = {s2.OWN_RW, s2.OWN_RO}
    ram = own | {s2.FOREIGN_RW, s2.FOREIGN_RO, s2.GRANT_RW, s2.GRANT_RO}
    writable = {s2.OWN_RW, s2.FOREIGN_RW, s2.GRANT_RW}
    for kind in range(8):
        assert (kind >= s2.OWN_RO) == (kind in own)
        assert (kind >= s2.GRANT_RO) == (kind in ram)
        assert (kind & 1 == 1 and kind != s2.MMIO) == (kind in writable)
        assert kind & s2.OWN_RW == kind
    assert len(s2.KIND_NAMES) == 8


def test_single_page_changes_cost_a_chunk_each_not_a_table() -> None:
    """1 GiB with two pages ballooned out: extents, two chunks and nothing dense."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        table = Stage2()
        table.map_range(0x4000_0000, 262_144, s2.OWN_RW, 0x8_0000_0000)
        table.unmap(0x4000_0000 + 100 * PAGE, 1)
        table.unmap(0x4000_0000 + 200_000 * PAGE, 1)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 8 * 1024
    assert table.page_count() == 262_142


def test_releasing_whole_slots_reuses_their_chunks() -> None:
    table = Stage2()
    table.map_range(0, 2048, s2.OWN_RW, 0x9000_0000)
    for slot in range(4):
        table.unmap(slot * 512 * PAGE, 1)
    pool = table._pool_used
    for _ in range(5):
        table.map_range(0, 2048, s2.OWN_RW, 0x9000_0000)
        for slot in range(4):
            table.remap(slot * 512 * PAGE + PAGE, 1, s2.OWN_RO)
    assert table._pool_used == pool
