# SPDX-License-Identifier: BSD-2-Clause
"""Frames, owners and references against a dictionary (I3; bug classes 12, 14, 15)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mediator.hypervisor import pages
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import (
    BLOCK,
    FIRST_GUEST,
    GUARD,
    MAPPING_MASK,
    NOBODY,
    OWNER_SHIFT,
    PIN_MASK,
    FrameTable,
)
from mediator.hypervisor.memory import PhysicalMemory
from tests.hypervisor_memory.support import FIRST, FRAMES, PAGE, audit, references, state

OWNERS = (FIRST_GUEST, FIRST_GUEST + 1, FIRST_GUEST + 5)
FRAME = st.integers(0, FRAMES - 1).map(lambda index: FIRST + index)
SIZE = st.sampled_from([1, 2, 3, 40, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
OWNER = st.sampled_from(OWNERS)


class Frame:
    """What the model knows of a frame that somebody owns."""

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.pins = 0
        self.mappings = 0
        self.zombie = False

    @property
    def held(self) -> bool:
        return bool(self.pins or self.mappings)


class FrameModel(RuleBasedStateMachine):
    """``model``: pfn -> Frame for frames that are not free. Contents: a stamp of the last owner."""

    @initialize()
    def start(self) -> None:
        self.memory = PhysicalMemory(FRAMES, FIRST)
        self.model: dict[int, Frame] = {}
        self.stamps: dict[int, bytes] = {}

    # Contents show whether a frame was scrubbed before somebody else got it.

    def give(self, owner: int, pfns: list[int]) -> None:
        for pfn in pfns:
            assert pfn not in self.model
            self.model[pfn] = Frame(owner)
            self.stamps.pop(pfn, None)
        for pfn in pfns[:2] + pfns[-2:]:
            assert self.memory.read(pfn * PAGE, PAGE) == bytes(PAGE)

    def settle(self, pfn: int) -> None:
        frame = self.model[pfn]
        if frame.zombie and not frame.held:
            del self.model[pfn]
            self.stamps.pop(pfn, None)

    def owned_by(self, owner: int, *, zombies: bool = False) -> list[int]:
        return [
            pfn
            for pfn, frame in sorted(self.model.items())
            if frame.owner == owner and (zombies or not frame.zombie)
        ]

    @rule(owner=OWNER, size=SIZE)
    def allocate(self, owner: int, size: int) -> None:
        runs = self.memory.allocate(owner, size)
        if runs is None:
            assert FRAMES - len(self.model) < size
            return
        assert sum(length for _, length in runs) == size
        self.give(owner, [pfn for start, length in runs for pfn in range(start, start + length)])

    @rule(owner=OWNER, size=st.integers(1, 60), seed=st.integers(0, 3))
    def allocate_scattered(self, owner: int, size: int, seed: int) -> None:
        pfns = self.memory.allocate_scattered(owner, size, seed)
        if pfns is None:
            assert FRAMES - len(self.model) < size
            return
        self.give(owner, pfns.tolist())

    @rule(owner=OWNER, pfn=FRAME, size=SIZE, step=st.sampled_from([1, 1, 2, 3]))
    def claim(self, owner: int, pfn: int, size: int, step: int) -> None:
        pfns = list(range(pfn, pfn + size * step, step))
        if all(FIRST <= number < FIRST + FRAMES and number not in self.model for number in pfns):
            self.memory.claim(owner, pfn, size, step)
            self.give(owner, pfns)
        else:
            with pytest.raises(InvariantError, match="not all"):
                self.memory.claim(owner, pfn, size, step)

    @rule(owner=OWNER, pfn=FRAME, size=SIZE, step=st.sampled_from([1, 1, 2]))
    def release(self, owner: int, pfn: int, size: int, step: int) -> None:
        pfns = list(range(pfn, pfn + size * step, step))
        mine = [n for n in pfns if n in self.model and self.model[n].owner == owner]
        if len(mine) < size or any(self.model[n].zombie for n in mine):
            if step == 1:  # step by step the first ones would go: that is the caller's defect
                before = state(self.memory)
                with pytest.raises(InvariantError, match="not all"):
                    self.memory.release(owner, pfn, size, step)
                assert state(self.memory) == before
            return
        held = self.memory.release(owner, pfn, size, step)
        assert held == sum(self.model[n].held for n in pfns)
        for number in pfns:
            self.model[number].zombie = True
            self.settle(number)

    @rule(owner=OWNER, data=st.data())
    def release_some(self, owner: int, data: st.DataObject) -> None:
        mine = self.owned_by(owner)
        if mine:
            pfn = data.draw(st.sampled_from(mine))
            assert self.memory.release(owner, pfn) == self.model[pfn].held
            self.model[pfn].zombie = True
            self.settle(pfn)

    @rule(owner=OWNER)
    def release_owner(self, owner: int) -> None:
        mine = self.owned_by(owner)
        held = sum(self.model[pfn].held for pfn in mine)
        assert self.memory.release_owner(owner) == (len(mine) - held, held)
        for pfn in mine:
            self.model[pfn].zombie = True
            self.settle(pfn)

    @rule(pfn=FRAME)
    def map_elsewhere(self, pfn: int) -> None:
        frame = self.model.get(pfn)
        if frame is None or frame.zombie:
            with pytest.raises(InvariantError, match="cannot be mapped"):
                self.memory.add_mapping(pfn)
        else:
            self.memory.add_mapping(pfn)
            frame.mappings += 1

    @rule(data=st.data())
    def unmap_elsewhere(self, data: st.DataObject) -> None:
        mapped = [pfn for pfn, frame in sorted(self.model.items()) if frame.mappings]
        if mapped:
            pfn = data.draw(st.sampled_from(mapped))
            self.memory.drop_mapping(pfn)
            self.model[pfn].mappings -= 1
            self.settle(pfn)

    @rule(pfn=FRAME)
    def a_mapping_too_few(self, pfn: int) -> None:
        if not (pfn in self.model and self.model[pfn].mappings):
            with pytest.raises(InvariantError, match="not mapped"):
                self.memory.drop_mapping(pfn)

    @rule(owner=OWNER, data=st.data())
    def pin(self, owner: int, data: st.DataObject) -> None:
        mine = self.owned_by(owner)
        if not mine:
            return
        pfns = data.draw(st.lists(st.sampled_from(mine), min_size=1, max_size=12))
        assert pages.pin(self.memory, np.array(pfns, np.int64), owner << OWNER_SHIFT)
        for pfn in pfns:
            self.model[pfn].pins += 1

    @rule(owner=OWNER, good=st.lists(FRAME, max_size=8), bad=FRAME, data=st.data())
    def pin_something_that_is_not_mine(
        self, owner: int, good: list[int], bad: int, data: st.DataObject
    ) -> None:
        frame = self.model.get(bad)
        if frame is not None and frame.owner == owner and not frame.zombie:
            return
        pfns = [*good, bad]
        before = state(self.memory)
        assert not pages.pin(self.memory, np.array(pfns, np.int64), owner << OWNER_SHIFT)
        assert state(self.memory) == before

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        pinned = [pfn for pfn, frame in sorted(self.model.items()) if frame.pins]
        if not pinned:
            return
        owner = self.model[data.draw(st.sampled_from(pinned))].owner
        pool = [
            pfn
            for pfn in pinned
            if self.model[pfn].owner == owner
            for _ in range(self.model[pfn].pins)
        ]
        chosen = data.draw(
            st.lists(st.integers(0, len(pool) - 1), unique=True, min_size=1, max_size=12)
        )
        pfns = [pool[index] for index in chosen]
        before = len(self.model)
        released = pages.unpin(self.memory, np.array(pfns, np.int64), owner << OWNER_SHIFT)
        for pfn in pfns:
            self.model[pfn].pins -= 1
        for pfn in sorted(set(pfns)):
            self.settle(pfn)
        assert released == before - len(self.model)

    @rule(owner=OWNER, pfn=FRAME, more=st.integers(1, 3))
    def unpin_too_often(self, owner: int, pfn: int, more: int) -> None:
        frame = self.model.get(pfn)
        count = frame.pins if frame is not None and frame.owner == owner else 0
        before = state(self.memory)
        pfns = np.array([pfn] * (count + more), np.int64)
        assert pages.unpin(self.memory, pfns, owner << OWNER_SHIFT) is None
        assert state(self.memory) == before

    @rule(owner=OWNER, data=st.data())
    def transfer(self, owner: int, data: st.DataObject) -> None:
        living = [pfn for pfn, frame in sorted(self.model.items()) if not frame.zombie]
        if not living:
            return
        pfn = data.draw(st.sampled_from(living))
        frame = self.model[pfn]
        if frame.owner == owner:
            return
        content = self.memory.read(pfn * PAGE, 16)
        target = self.memory.transfer(pfn, owner)
        if target is None:
            assert frame.held
            assert len(self.model) == FRAMES
            return
        assert (target == pfn) == (not frame.held)
        if target == pfn:
            frame.owner = owner
        else:
            frame.zombie = True
            assert target not in self.model
            self.model[target] = Frame(owner)
        assert self.memory.read(target * PAGE, 16) == content
        if content != bytes(16):
            self.stamps[target] = content

    @rule(data=st.data(), stamp=st.binary(min_size=16, max_size=16))
    def write(self, data: st.DataObject, stamp: bytes) -> None:
        if self.model:
            pfn = data.draw(st.sampled_from(sorted(self.model)))
            self.memory.write(pfn * PAGE, stamp)
            self.stamps[pfn] = stamp

    @precondition(lambda self: hasattr(self, "memory"))
    @invariant()
    def words_are_the_model(self) -> None:
        memory = self.memory
        for pfn, frame in self.model.items():
            word = memory.word(pfn)
            assert word >> OWNER_SHIFT == memory.owner(pfn) == frame.owner
            assert references(word) == (frame.pins, frame.mappings)
            assert (memory.pins(pfn), memory.mappings(pfn)) == (frame.pins, frame.mappings)
            assert memory.is_zombie(pfn) == frame.zombie
        assert memory.free_frames == FRAMES - len(self.model)
        for pfn, stamp in self.stamps.items():
            assert memory.read(pfn * PAGE, 16) == stamp
        for owner in OWNERS:
            pinned = {pfn: f.pins for pfn, f in self.model.items() if f.owner == owner and f.pins}
            found = memory.referenced(owner)
            assert {pfn: word & PIN_MASK for pfn, word in found.items()} == pinned
            mapped = {pfn for pfn, f in self.model.items() if f.owner == owner and f.mappings}
            assert set(memory.referenced(owner, MAPPING_MASK)) == mapped

    def teardown(self) -> None:
        audit(self.memory)


TestFrameModel = FrameModel.TestCase
TestFrameModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_bulk_ram_is_not_written_into_the_table_before_somebody_looks() -> None:
    table = FrameTable(1 << 20, FIRST)
    assert table.allocate(FIRST_GUEST, 262_144) == [(FIRST, 262_144)]
    assert not any(table.words[FIRST : FIRST + 262_144])
    assert table.owner(FIRST + 1000) == FIRST_GUEST
    touched = [n for n in range(FIRST, FIRST + 262_144) if table.words[n]]
    assert len(touched) == BLOCK
    assert table.release_owner(FIRST_GUEST) == (262_144, 0)
    assert table.free_frames == 1 << 20


def test_frames_outside_of_ram_belong_to_nobody() -> None:
    table = FrameTable(16, FIRST)
    for pfn in (-1, 0, FIRST - 1, FIRST + 16, 1 << 40, 1 << 60):
        assert table.word(pfn) == 0
        assert table.owner(pfn) == NOBODY
        with pytest.raises(InvariantError):
            table.claim(FIRST_GUEST, pfn)
        with pytest.raises(InvariantError):
            table.release(FIRST_GUEST, pfn)


def test_a_range_with_one_frame_too_many_is_given_and_taken_as_a_whole_or_not() -> None:
    table = FrameTable(FRAMES, FIRST)
    table.claim(FIRST_GUEST + 1, FIRST + 700)
    before = state(table)
    with pytest.raises(InvariantError):
        table.claim(FIRST_GUEST, FIRST, 1024)
    with pytest.raises(InvariantError):
        table.release(FIRST_GUEST, FIRST, 1024)
    assert state(table) == before
    table.claim(FIRST_GUEST, FIRST, 512)
    with pytest.raises(InvariantError):
        table.release(FIRST_GUEST, FIRST, 1024)
    assert table.owned(FIRST_GUEST) == 512
    audit(table)


def test_a_word_full_of_pins_refuses_one_more() -> None:
    table = FrameTable(16, FIRST)
    table.claim(FIRST_GUEST, FIRST)
    own = table.word(FIRST)
    table.words[FIRST] = own + (1 << 29)
    assert not pages.pin(table, np.array([FIRST], np.int64), own)
    assert not table.word(FIRST) & GUARD


@pytest.mark.parametrize(("frames", "first"), [(0, 1), (1, 0), (1 << 29, 1), (-1, 1)])
def test_sizes_that_no_entry_could_name_are_refused(frames: int, first: int) -> None:
    with pytest.raises(ValueError, match="frames"):
        FrameTable(frames, first)
