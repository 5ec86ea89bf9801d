# SPDX-License-Identifier: BSD-2-Clause
"""Guests that share, give, lose and die, against a model of pages as things (I1, I3; class 21).

The model knows physical pages as objects with content; stage 2 of each guest refers to them. Whatever
happens: every access sees the object's content, no two living objects have one frame, and a page that
is new to a guest is zero or what it was given, never what the TEE or an earlier owner wrote.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mediator.guest.cpu import GuestAbort
from mediator.hypervisor import stage2
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from secure_world.bus import BusError
from tests.hypervisor_memory.support import FIRST, PAGE, RAM, addresses, audit, words

GUEST = st.integers(1, 3)
SLOT = st.integers(0, 7)
FRAMES = 20
WRITABLE = (stage2.OWN_RW, stage2.FOREIGN_RW, stage2.GRANT_RW)
STAMP = st.binary(min_size=4, max_size=4)


class Page:
    """A physical page while anything refers to it."""

    def __init__(self, owner: int, frame: int, content: bytes) -> None:
        self.owner = owner
        self.frame = frame
        self.content = content
        self.pins = 0
        self.mapped_by_others = 0
        self.given_up = False

    @property
    def alive(self) -> bool:
        return not self.given_up or bool(self.pins or self.mapped_by_others)


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.host = ReferenceHost(PhysicalMemory(FRAMES, FIRST))
        self.bus = SecureBus(self.host.memory)
        self.tables: dict[int, dict[int, tuple[Page, int]]] = {}
        self.pages: list[Page] = []
        self.pinned: list[tuple[int, bytes, list[Page]]] = []

    @staticmethod
    def ipa(slot: int) -> int:
        return RAM + slot * PAGE

    def frame(self, guest: int, slot: int) -> int:
        return self.host.stage2(guest).lookup(self.ipa(slot) >> 12)[0]

    def leave(self, guest: int, slot: int) -> None:
        page, _ = self.tables[guest].pop(slot)
        if page.owner == guest:
            page.given_up = True
        else:
            page.mapped_by_others -= 1

    def appear(self, guest: int, slot: int, content: bytes) -> None:
        page = Page(guest, self.frame(guest, slot), content)
        self.pages.append(page)
        self.tables[guest][slot] = (page, stage2.OWN_RW)

    @rule(guest=GUEST)
    def begin(self, guest: int) -> None:
        reusable = guest not in self.tables and not any(
            page.owner == guest and page.alive for page in self.pages
        )
        assert self.host.reusable(guest) == reusable
        if reusable:
            self.host.add_guest(guest)
            self.tables[guest] = {}

    @rule(guest=GUEST)
    def end(self, guest: int) -> None:
        if guest not in self.tables:
            return
        mine = [page for page in self.pages if page.owner == guest and not page.given_up]
        for slot in list(self.tables[guest]):
            self.leave(guest, slot)
        for page in mine:
            page.given_up = True
        held = sum(page.alive for page in mine)
        assert self.host.remove_guest(guest)[1:] == (len(mine) - held, held)
        del self.tables[guest]

    @rule(guest=GUEST, slot=SLOT)
    def populate(self, guest: int, slot: int) -> None:
        if guest in self.tables and slot not in self.tables[guest]:
            if self.host.populate(guest, self.ipa(slot), 1):
                self.appear(guest, slot, bytes(4))
            else:
                assert sum(page.alive for page in self.pages) == FRAMES

    @rule(guest=GUEST, slot=SLOT)
    def balloon_out(self, guest: int, slot: int) -> None:
        if guest in self.tables:
            assert self.host.balloon_out(guest, self.ipa(slot), 1)
            if slot in self.tables[guest]:
                self.leave(guest, slot)

    @rule(guest=GUEST, slot=SLOT, kind=st.integers(0, 7))
    def set_kind(self, guest: int, slot: int, kind: int) -> None:
        if slot in self.tables.get(guest, {}):
            page, _ = self.tables[guest][slot]
            if page.owner == guest or kind < stage2.OWN_RO:
                assert self.host.set_kind(guest, self.ipa(slot), 1, kind)
                self.tables[guest][slot] = (page, kind)

    @rule(
        guest=GUEST,
        slot=SLOT,
        source=GUEST,
        source_slot=SLOT,
        writable=st.booleans(),
        grant=st.booleans(),
    )
    def share(
        self, guest: int, slot: int, source: int, source_slot: int, writable: bool, grant: bool
    ) -> None:
        entry = self.tables.get(source, {}).get(source_slot)
        if guest == source or guest not in self.tables or slot in self.tables[guest]:
            return
        if entry is None or entry[1] < stage2.OWN_RO:
            return
        self.host.share(
            guest, self.ipa(slot), 1, source, self.ipa(source_slot), writable=writable, grant=grant
        )
        entry[0].mapped_by_others += 1
        kind = (stage2.GRANT_RO if grant else stage2.FOREIGN_RO) + writable
        self.tables[guest][slot] = (entry[0], kind)

    @rule(guest=GUEST, slot=SLOT, receiver=GUEST, receiver_slot=SLOT)
    def transfer(self, guest: int, slot: int, receiver: int, receiver_slot: int) -> None:
        entry = self.tables.get(guest, {}).get(slot)
        if (
            receiver == guest
            or receiver not in self.tables
            or receiver_slot in self.tables[receiver]
        ):
            return
        if entry is None or entry[1] < stage2.OWN_RO:
            return
        page = entry[0]
        moved = self.host.transfer(guest, self.ipa(slot), receiver, self.ipa(receiver_slot))
        if not moved:
            assert sum(page.alive for page in self.pages) == FRAMES
            return
        held = page.pins or page.mapped_by_others
        content = page.content
        self.leave(guest, slot)
        self.appear(receiver, receiver_slot, content)
        assert (self.frame(receiver, receiver_slot) == page.frame) == (not held)

    @rule(guest=GUEST, slots=st.lists(SLOT, min_size=1, max_size=4))
    def pin(self, guest: int, slots: list[int]) -> None:
        if guest not in self.tables:
            return
        entries = [self.tables[guest].get(slot) for slot in slots]
        frames = self.host.pin_pages(guest, words(*[self.ipa(slot) for slot in slots]))
        pages = [entry[0] for entry in entries if entry is not None and entry[1] == stage2.OWN_RW]
        assert (frames is not None) == (len(pages) == len(slots))
        if frames is not None:
            assert [pa >> 12 for pa in addresses(frames)] == [page.frame for page in pages]
            for page in pages:
                page.pins += 1
            self.pinned.append((guest, frames, pages))

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.pinned:
            index = data.draw(st.integers(0, len(self.pinned) - 1))
            guest, frames, pages = self.pinned.pop(index)
            self.host.unpin_pages(guest, frames)
            for page in pages:
                page.pins -= 1

    @rule(data=st.data(), stamp=STAMP)
    def tee_writes(self, data: st.DataObject, stamp: bytes) -> None:
        if self.pages:
            page = data.draw(st.sampled_from(self.pages))
            if page.alive and page.pins:
                self.bus.write(page.owner + 1, page.frame * PAGE, stamp)
                page.content = stamp
            elif not any(other.alive and other.frame == page.frame for other in self.pages):
                with pytest.raises(BusError):
                    self.bus.write(page.owner + 1, page.frame * PAGE, stamp)

    @rule(guest=GUEST, slot=SLOT, stamp=STAMP)
    def guest_writes(self, guest: int, slot: int, stamp: bytes) -> None:
        if guest not in self.tables:
            return
        entry = self.tables[guest].get(slot)
        if entry is not None and entry[1] in WRITABLE:
            self.host.guest_write(guest, self.ipa(slot), stamp)
            entry[0].content = stamp
        else:
            with pytest.raises(GuestAbort):
                self.host.guest_write(guest, self.ipa(slot), stamp)

    @invariant()
    def everybody_sees_the_content_of_the_page(self) -> None:
        for guest, table in self.tables.items():
            for slot, (page, kind) in table.items():
                assert self.host.stage2(guest).lookup(self.ipa(slot) >> 12) == (page.frame, kind)
                if kind >= stage2.GRANT_RO:
                    assert self.host.guest_read(guest, self.ipa(slot), 4) == page.content
        for page in self.pages:
            if page.alive and page.pins:
                assert self.bus.read(page.owner + 1, page.frame * PAGE, 4) == page.content

    @invariant()
    def no_two_living_pages_have_one_frame(self) -> None:
        frames = [page.frame for page in self.pages if page.alive]
        assert len(set(frames)) == len(frames)
        assert self.host.memory.free_frames == FRAMES - len(frames)

    @invariant()
    def pins_balance(self) -> None:
        for guest in (1, 2, 3):
            expected = {
                page.frame: page.pins for page in self.pages if page.owner == guest and page.pins
            }
            assert self.host.pins(guest) == expected
            assert self.host.pinned(guest) == sum(expected.values())

    def teardown(self) -> None:
        audit(self.host.memory)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
