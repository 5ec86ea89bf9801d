# SPDX-License-Identifier: BSD-2-Clause
"""Guests' memory through changes and ends: bug classes 12, 14, 15 and 21, and the guest's own view."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial

import pytest

from mediator.guest.cpu import GuestAbort
from mediator.hypervisor import events, stage2
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import FIRST_GUEST, OUTSIDER, SECURE
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.pages import SMALL_LIST
from secure_world.bus import BusError
from tests.hypervisor_memory.support import (
    FIRST,
    FRAMES,
    PAGE,
    RAM,
    addresses,
    audit,
    machine,
    pfn,
    pin,
    state,
    words,
)

CLIENT = 2  # of guest 1
ELSEWHERE = RAM + (1 << 30)


# -- class 21: a pinned page changes in stage 2 -----------------------------------------------------


def balloon(host: ReferenceHost) -> None:
    assert host.balloon_out(1, RAM, 1)


def transfer(host: ReferenceHost) -> None:
    assert host.transfer(1, RAM, 2, ELSEWHERE)


def replace(host: ReferenceHost) -> None:
    assert host.balloon_out(1, RAM, 1)
    host.share(1, RAM, 1, 2, RAM, writable=True)


def read_only(host: ReferenceHost) -> None:
    assert host.set_kind(1, RAM, 1, stage2.OWN_RO)


def hide(host: ReferenceHost) -> None:
    assert host.set_kind(1, RAM, 1, stage2.ABSENT)


def disguise(host: ReferenceHost) -> None:
    assert host.set_kind(1, RAM, 1, stage2.FOREIGN_RW)


def end(host: ReferenceHost) -> None:
    host.remove_guest(1)


CHANGES = (balloon, transfer, replace, read_only, hide, disguise, end)
LEAVES = (balloon, transfer, replace, end)
"""Changes after which the page is not the guest's any more."""


@pytest.mark.parametrize("change", CHANGES)
def test_stage_2_changes_at_once_and_the_page_stays_alive(
    change: Callable[[ReferenceHost], None],
) -> None:
    host = machine(guests=2, pages=32)
    bus = SecureBus(host.memory)
    host.guest_write(1, RAM, b"before")
    frames = pin(host, 1, RAM, RAM)
    (pa, _) = addresses(frames)
    change(host)
    if change is not end:
        assert not host.write_guest(1, RAM, [(0, b"x")])
        assert host.pin_pages(1, words(RAM)) is None
    assert bus.read(CLIENT, pa, 6) == b"before"
    bus.write(CLIENT, pa, b"TEE was here")
    # Nobody gets the frame while it is pinned, however much RAM others ask for.
    host.add_guest(5)
    while host.populate(5, host.stage2(5).page_count() * PAGE, 1):
        pass
    for guest in host.guests():
        for run in host.stage2(guest).mappings():
            inside = run.pfn <= pa >> 12 < run.pfn + run.pages * run.step
            assert not inside or (guest == 1 and change not in LEAVES)
    host.unpin_pages(1, frames[:8])
    assert bus.read(CLIENT, pa, 3) == b"TEE"
    assert host.pinned(1) == 1
    host.unpin_pages(1, frames[8:])
    with pytest.raises(BusError):
        bus.read(CLIENT, pa, 3)
    if change in LEAVES:
        assert host.memory.free_frames >= 1
        place = host.stage2(5).page_count() * PAGE
        while host.populate(5, place, 1):
            assert host.guest_read(5, place, PAGE) == bytes(PAGE)
            place += PAGE
        assert host.memory.owner(pa >> 12) == FIRST_GUEST + 5
    else:
        assert host.memory.owner(pa >> 12) == FIRST_GUEST + 1
    audit(host.memory)


def test_a_new_owner_never_sees_what_the_tee_writes_later() -> None:
    host = machine()
    bus = SecureBus(host.memory)
    host.guest_write(1, RAM, b"content")
    frames = pin(host, 1, RAM)
    (pa,) = addresses(frames)
    free = host.memory.free_frames
    assert host.transfer(1, RAM, 2, ELSEWHERE)
    assert host.guest_read(2, ELSEWHERE, 7) == b"content"
    bus.write(CLIENT, pa, b"late answer")
    assert host.guest_read(2, ELSEWHERE, 7) == b"content"
    host.guest_write(2, ELSEWHERE, b"mine")
    assert bus.read(CLIENT, pa, 4) == b"late"
    host.unpin_pages(1, frames)
    assert host.guest_read(2, ELSEWHERE, 7) == b"mineent"
    assert host.memory.free_frames == free
    assert host.memory.read(pa, 11) == bytes(11)


def test_an_unpinned_page_changes_hands_itself() -> None:
    host = machine()
    host.guest_write(1, RAM + 3 * PAGE, b"content")
    before = [pfn(host, 1, RAM + index * PAGE) for index in range(3, 6)]
    assert host.transfer(1, RAM + 3 * PAGE, 2, ELSEWHERE, 3)
    assert [pfn(host, 2, ELSEWHERE + index * PAGE) for index in range(3)] == before
    assert host.guest_read(2, ELSEWHERE, 7) == b"content"
    assert host.stage2(1).lookup(RAM + 3 * PAGE >> 12) == (0, stage2.ABSENT)
    assert addresses(pin(host, 2, ELSEWHERE)) == (before[0] << 12,)
    audit(host.memory)


def test_a_transfer_that_needs_copies_and_has_no_ram_changes_nothing() -> None:
    host = machine(frames=128, guests=2, pages=64)
    frames = pin(host, 1, RAM)
    before = state(host.memory)
    assert not host.transfer(1, RAM, 2, ELSEWHERE)
    assert state(host.memory) == before
    assert host.stage2(2).lookup(ELSEWHERE >> 12) == (0, stage2.ABSENT)
    host.unpin_pages(1, frames)
    assert host.transfer(1, RAM, 2, ELSEWHERE)


@pytest.mark.parametrize("change", [balloon, transfer, read_only, hide])
def test_refusing_changes_of_pinned_pages_is_an_option(
    change: Callable[[ReferenceHost], None],
) -> None:
    host = ReferenceHost(PhysicalMemory(FRAMES, FIRST), refuse_pinned_changes=True)
    for guest in (1, 2):
        host.add_guest(guest)
        host.populate(guest, RAM, 16)
    frames = pin(host, 1, RAM)
    with pytest.raises(AssertionError):
        change(host)
    assert host.stage2(1).lookup(RAM >> 12)[1] == stage2.OWN_RW
    host.unpin_pages(1, frames)
    change(host)
    assert host.stage2(1).lookup(RAM >> 12)[1] != stage2.OWN_RW


def test_content_and_frame_survive_any_change_of_kind() -> None:
    host = machine()
    host.guest_write(1, RAM, b"kept")
    frame = pfn(host, 1, RAM)
    for kind in (stage2.ABSENT, stage2.FOREIGN_RO, stage2.MMIO, stage2.OWN_RO, stage2.GRANT_RW):
        assert host.set_kind(1, RAM, 1, kind)
        assert host.stage2(1).lookup(RAM >> 12) == (frame, kind)
        assert (host.read_guest(1, RAM, 4) is not None) == (kind == stage2.OWN_RO)
    assert host.set_kind(1, RAM, 1, stage2.OWN_RW)
    assert host.read_guest(1, RAM, 4) == b"kept"
    for kind in (stage2.FOREIGN_RW, stage2.ABSENT):
        host.set_kind(1, RAM, 1, kind)
    host.balloon_out(1, RAM, 1)
    assert host.memory.owner(frame) == 0
    audit(host.memory)


# -- class 12: the end of a guest -------------------------------------------------------------------


def test_the_end_of_a_guest_frees_everything_but_what_is_referenced() -> None:
    host = machine(frames=2600, pages=1200)
    seen: list[tuple[object, ...]] = []
    host._sink = seen.append
    free = host.memory.free_frames
    host.guest_write(1, RAM + 700 * PAGE, b"secret")
    frames = pin(host, 1, RAM + 700 * PAGE, RAM + 3 * PAGE, RAM + 700 * PAGE)
    assert host.remove_guest(1) == events.GuestRemoved(1, 1198, 2)
    assert host.memory.free_frames == free + 1198
    assert host.guests() == [2]
    assert host.pinned(1) == 3
    assert not host.reusable(1)
    with pytest.raises(InvariantError, match="alive"):
        host.add_guest(1)
    host.unpin_pages(1, frames[:16])
    assert not host.reusable(1)
    host.unpin_pages(1, frames[16:])
    assert host.reusable(1)
    assert host.memory.free_frames == free + 1200
    assert host.pins(1) == {}
    assert [event for event in seen if isinstance(event, events.FramesReleased)] == [
        events.FramesReleased(FIRST_GUEST + 1, 1),
        events.FramesReleased(FIRST_GUEST + 1, 1),
    ]
    host.add_guest(1)
    host.populate(1, RAM, 1200)
    assert host.guest_read(1, RAM + 700 * PAGE, 6) == bytes(6)
    audit(host.memory)


@pytest.mark.parametrize("pages", [1, 64, 512, 1500])
def test_many_lives_of_one_id_leave_nothing_behind(pages: int) -> None:
    host = machine(guests=0)
    free = host.memory.free_frames
    for life in range(5):
        host.add_guest(1)
        host.populate(1, RAM, pages, seed=life if life % 2 else None)
        host.guest_write(1, RAM + (pages - 1) * PAGE, b"x")
        host.unpin_pages(1, pin(host, 1, RAM))
        assert host.remove_guest(1) == events.GuestRemoved(1, pages, 0)
        assert host.memory.free_frames == free
    audit(host.memory)


def test_a_guest_in_quarantine_keeps_its_pages_and_its_id() -> None:
    host = machine(frames=200, guests=2, pages=64)
    seen: list[tuple[object, ...]] = []
    host._sink = seen.append
    frames = pin(host, 1, RAM)
    host.balloon_out(1, RAM, 1)
    host.remove_guest(1, quarantine=True)
    assert host.quarantined() == {1: 64}
    assert events.GuestQuarantined(1, 64) in seen
    host.unpin_pages(1, frames)
    assert host.quarantined() == {1: 63}
    assert not host.reusable(1)
    host.add_guest(3)
    assert not host.populate(3, RAM, 200 - 64 - 63 + 1)
    assert host.populate(3, RAM, 200 - 64 - 63)
    assert host.release_quarantine(1) == events.GuestRemoved(1, 63, 0)
    assert host.reusable(1)
    assert host.quarantined() == {}
    with pytest.raises(InvariantError, match="quarantine"):
        host.release_quarantine(1)
    audit(host.memory)


def test_the_mediators_word_is_enough_for_quarantine() -> None:
    host = machine()
    host.quarantine(1, 7)
    assert host.remove_guest(1) == events.GuestRemoved(1, 0, 0)
    assert host.quarantined() == {1: 64}


def test_a_page_mapped_elsewhere_outlives_its_owner_until_it_is_unmapped() -> None:
    host = machine()
    host.guest_write(1, RAM + PAGE, b"shared")
    host.share(2, ELSEWHERE, 2, 1, RAM, writable=True)
    frame = pfn(host, 1, RAM + PAGE)
    assert host.memory.mappings(frame) == 1
    assert host.remove_guest(1) == events.GuestRemoved(1, 62, 2)
    assert host.guest_read(2, ELSEWHERE + PAGE, 6) == b"shared"
    assert not host.reusable(1)
    host.balloon_out(2, ELSEWHERE + PAGE, 1)
    assert host.memory.owner(frame) == 0
    assert not host.reusable(1)
    assert host.remove_guest(2) == events.GuestRemoved(2, 64, 0)
    assert host.reusable(1)
    audit(host.memory)


def test_a_pinned_and_mapped_page_waits_for_both() -> None:
    for pins_first in (True, False):
        host = machine()
        host.share(2, ELSEWHERE, 1, 1, RAM)
        frames = pin(host, 1, RAM)
        frame = pfn(host, 1, RAM)
        host.balloon_out(1, RAM, 1)
        steps: list[Callable[[], object]] = [
            partial(host.unpin_pages, 1, frames),
            partial(host.balloon_out, 2, ELSEWHERE, 1),
        ]
        for step in steps if pins_first else reversed(steps):
            assert host.memory.is_zombie(frame)
            step()
        assert host.memory.word(frame) == 0
        audit(host.memory)


def test_every_mapping_elsewhere_counts() -> None:
    host = machine(guests=3)
    for guest in (2, 3):
        host.share(guest, ELSEWHERE, 1, 1, RAM)
    frame = pfn(host, 1, RAM)
    host.guest_write(1, RAM, b"still here")
    host.remove_guest(1)
    host.balloon_out(2, ELSEWHERE, 1)
    assert host.memory.is_zombie(frame)
    assert host.guest_read(3, ELSEWHERE, 10) == b"still here"
    host.remove_guest(3)
    assert host.memory.word(frame) == 0
    assert host.reusable(1)


@pytest.mark.parametrize("times", [1, SMALL_LIST])
def test_unpinning_does_not_free_what_is_mapped_elsewhere(times: int) -> None:
    host = machine()
    host.share(2, ELSEWHERE, 1, 1, RAM)
    frames = pin(host, 1, *[RAM] * times)
    frame = pfn(host, 1, RAM)
    host.balloon_out(1, RAM, 1)
    host.unpin_pages(1, frames)
    assert host.memory.is_zombie(frame)
    assert host.guest_read(2, ELSEWHERE, 4) == bytes(4)
    host.balloon_out(2, ELSEWHERE, 1)
    assert host.memory.word(frame) == 0


@pytest.mark.parametrize("times", [1, SMALL_LIST])
@pytest.mark.parametrize("held_by_others", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_a_pin_too_few_is_found_whatever_else_the_word_says(
    times: int, held_by_others: bool, gone: bool
) -> None:
    host = machine()
    frames = pin(host, 1, *[RAM] * times)
    if held_by_others:
        host.share(2, ELSEWHERE, 1, 1, RAM)
    if gone:
        host.balloon_out(1, RAM, 1)
    before = state(host.memory)
    with pytest.raises(InvariantError, match="not pinned"):
        host.unpin_pages(1, frames + frames[:8])
    assert state(host.memory) == before
    host.unpin_pages(1, frames)
    assert host.memory.is_zombie(addresses(frames)[0] >> 12) == (held_by_others and gone)


def test_ids_that_cannot_be() -> None:
    host = machine(guests=1)
    for guest in (-1, 1 << 17, 1):
        with pytest.raises(InvariantError):
            host.add_guest(guest)
    for call in (
        lambda: host.remove_guest(9),
        lambda: host.stage2(9),
        lambda: host.record(9),
        lambda: host.populate(9, RAM, 1),
    ):
        with pytest.raises(InvariantError, match="no guest 9"):
            call()
    assert host.pins(9) == {}
    assert host.pinned(9) == 0


# -- giving and mapping -----------------------------------------------------------------------------


def test_fragmented_ram_is_given_in_several_runs() -> None:
    host = machine(frames=100, guests=3, pages=30)
    host.remove_guest(2)
    assert not host.populate(1, ELSEWHERE, 41)
    assert host.populate(1, ELSEWHERE, 40)
    assert host.memory.free_frames == 0
    for index in range(40):
        host.guest_write(1, ELSEWHERE + index * PAGE, bytes([index]))
    assert [host.guest_read(1, ELSEWHERE + index * PAGE, 1)[0] for index in range(40)] == list(
        range(40)
    )


def test_ram_at_given_addresses_with_a_step() -> None:
    host = machine(guests=0)
    host.add_guest(1)
    pa = (FIRST + 100) << 12
    assert host.populate(1, RAM, 96, pa=pa, pa_step=3 * PAGE)
    assert [pfn(host, 1, RAM + index * PAGE) for index in range(96)] == [
        FIRST + 100 + 3 * index for index in range(96)
    ]
    with pytest.raises(InvariantError, match="free RAM"):
        host.populate(1, ELSEWHERE, 2, pa=pa + 2 * PAGE)
    assert host.memory.owned(FIRST_GUEST + 1) == 96
    assert host.populate(1, ELSEWHERE, 2, pa=pa + PAGE)
    audit(host.memory)


@pytest.mark.parametrize(
    "change",
    [
        lambda host: host.populate(1, RAM + 63 * PAGE, 2),
        lambda host: host.populate(1, ELSEWHERE, 1, kind=stage2.FOREIGN_RW),
        lambda host: host.populate(1, ELSEWHERE + 1, 1),
        lambda host: host.populate(1, 1 << 52, 1),
        lambda host: host.populate(1, ELSEWHERE, 1, pa=(FIRST + 900) * PAGE + 5),
        lambda host: host.populate(1, ELSEWHERE, 1, pa=0),
        lambda host: host.map_other(1, RAM, 1, stage2.MMIO),
        lambda host: host.map_other(1, ELSEWHERE, 1, stage2.OWN_RW, (FIRST + 900) * PAGE),
        lambda host: host.map_other(1, ELSEWHERE, 1, stage2.ABSENT, (FIRST + 900) * PAGE),
        lambda host: host.map_other(1, ELSEWHERE, 1, stage2.MMIO, FIRST * PAGE),
        lambda host: host.map_other(1, ELSEWHERE, 2, stage2.MMIO, (FIRST - 1) * PAGE),
        lambda host: host.map_other(1, ELSEWHERE, 1, stage2.FOREIGN_RW, pfn(host, 1, RAM) * PAGE),
        lambda host: host.map_other(1, ELSEWHERE, 1, stage2.FOREIGN_RW, 0x900_0000),
        lambda host: host.map_other(1, ELSEWHERE, 2, stage2.FOREIGN_RW, (FIRST + 900) * PAGE, 0),
        lambda host: host.map_other(
            1, ELSEWHERE, 2, stage2.FOREIGN_RW, (FIRST + FRAMES - 1) * PAGE
        ),
        lambda host: host.share(1, ELSEWHERE, 1, 1, RAM),
        lambda host: host.share(1, ELSEWHERE, 2, 2, RAM + 63 * PAGE),
        lambda host: host.transfer(1, RAM, 2, RAM),
        lambda host: host.transfer(1, ELSEWHERE, 2, ELSEWHERE),
        lambda host: host.set_kind(1, ELSEWHERE, 1, stage2.OWN_RO),
    ],
)
def test_a_wrong_operation_is_loud_and_changes_nothing(
    change: Callable[[ReferenceHost], object],
) -> None:
    host = machine()
    before, mapped = state(host.memory), [host.stage2(guest).mappings() for guest in (1, 2)]
    with pytest.raises(InvariantError):
        change(host)
    assert state(host.memory) == before
    assert [host.stage2(guest).mappings() for guest in (1, 2)] == mapped


def test_a_foreign_page_never_becomes_own() -> None:
    host = machine()
    host.share(1, ELSEWHERE, 1, 2, RAM, writable=True)
    for kind in (stage2.OWN_RW, stage2.OWN_RO):
        with pytest.raises(InvariantError, match="not all the guest's"):
            host.set_kind(1, ELSEWHERE, 1, kind)
    host.set_kind(1, ELSEWHERE, 1, stage2.ABSENT)
    with pytest.raises(InvariantError, match="not all the guest's"):
        host.set_kind(1, ELSEWHERE, 1, stage2.OWN_RW)
    host.balloon_out(1, ELSEWHERE, 1)
    assert host.memory.mappings(pfn(host, 2, RAM)) == 0


def test_foreign_ram_that_no_guest_owns_is_an_outsiders() -> None:
    host = machine()
    pa = (FIRST + 1500) << 12
    host.map_other(1, ELSEWHERE, 4, stage2.FOREIGN_RW, pa, 2 * PAGE)
    host.map_other(2, ELSEWHERE, 1, stage2.GRANT_RO, pa)
    assert host.memory.owned(OUTSIDER) == 4
    assert host.memory.mappings(FIRST + 1500) == 2
    host.guest_write(1, ELSEWHERE, b"x")
    assert host.guest_read(2, ELSEWHERE, 1) == b"x"
    host.remove_guest(1)
    host.remove_guest(2)
    assert host.memory.mappings(FIRST + 1500) == 0
    audit(host.memory)


def test_what_no_guest_may_know_of_is_never_mapped() -> None:
    host = machine()
    shadow = host.alloc_shadow(1)
    assert shadow is not None
    host.memory.claim(SECURE, FIRST + 1500)
    zombie = pfn(host, 2, RAM)
    pin(host, 2, RAM)
    host.balloon_out(2, RAM, 1)
    for pa in (shadow.pa, shadow.pa + PAGE, (FIRST + 1500) << 12, zombie << 12):
        before = state(host.memory)
        with pytest.raises(InvariantError, match="cannot be mapped"):
            host.map_other(1, ELSEWHERE, 1, stage2.FOREIGN_RO, pa)
        assert state(host.memory) == before


def test_devices_are_mapped_at_their_address_or_at_none() -> None:
    host = machine()
    host.map_other(1, ELSEWHERE, 3, stage2.MMIO, 0x900_0000)
    host.map_other(1, ELSEWHERE + 3 * PAGE, 2, stage2.MMIO)
    assert host.stage2(1).lookup((ELSEWHERE >> 12) + 2) == (0x9002, stage2.MMIO)
    assert host.stage2(1).lookup((ELSEWHERE >> 12) + 4)[1] == stage2.MMIO
    host.balloon_out(1, ELSEWHERE, 5)
    assert host.stage2(1).lookup(ELSEWHERE >> 12) == (0, stage2.ABSENT)


# -- the guest's own accesses -----------------------------------------------------------------------


def test_accesses_may_cross_pages_that_are_not_adjacent() -> None:
    host = machine(guests=0)
    host.add_guest(1)
    host.populate(1, RAM, 4, seed=6)
    data = bytes(range(256)) * 40
    host.guest_write(1, RAM + 2000, data)
    assert host.guest_read(1, RAM + 2000, len(data)) == data
    image = (bytes(2000) + data).ljust(4 * PAGE, b"\0")
    for index in range(4):
        physical = host.memory.read(pfn(host, 1, RAM + index * PAGE) << 12, PAGE)
        assert physical == image[index * PAGE : (index + 1) * PAGE]
    assert host.guest_read(1, RAM, 0) == b""
    host.guest_write(1, RAM, b"")


@pytest.mark.parametrize("kind", range(8))
def test_what_a_guest_may_do_by_kind(kind: int) -> None:
    host = machine()
    host.set_kind(1, RAM + PAGE, 1, kind)
    host.memory.write(pfn(host, 1, RAM + PAGE) << 12, b"content")
    ipa = RAM + PAGE
    if kind >= stage2.GRANT_RO:
        assert host.guest_read(1, ipa, 7) == b"content"
    else:
        with pytest.raises(GuestAbort) as abort:
            host.guest_read(1, ipa + 5, 7)
        assert (abort.value.ipa, abort.value.write) == (ipa + 5, False)
    if kind in (stage2.OWN_RW, stage2.FOREIGN_RW, stage2.GRANT_RW):
        host.guest_write(1, ipa, b"changed")
    else:
        with pytest.raises(GuestAbort) as abort:
            host.guest_write(1, ipa - 2, b"xy" + b"changed")
        assert (abort.value.ipa, abort.value.write) == (ipa, True)
        assert host.guest_read(1, ipa - 2, 2) == b"xy"
        assert host.memory.read(pfn(host, 1, ipa) << 12, 7) == b"content"


@pytest.mark.parametrize("ipa", [0, PAGE - 1, 1 << 44, 1 << 52, (1 << 64) - PAGE, (1 << 64) - 3])
def test_wild_accesses_abort(ipa: int) -> None:
    host = machine()
    for _ in range(2):
        with pytest.raises(GuestAbort):
            host.guest_read(1, ipa, 8)
        with pytest.raises(GuestAbort):
            host.guest_write(1, ipa, b"12345678")


def test_what_is_remembered_of_stage_2_never_outlives_a_change() -> None:
    host = machine()
    host.guest_write(1, RAM, b"x")
    assert host.read_guest(1, RAM, 1) == b"x"
    host.balloon_out(1, RAM, 1)
    assert host.read_guest(1, RAM, 1) is None
    with pytest.raises(GuestAbort):
        host.guest_read(1, RAM, 1)
    host.populate(1, RAM, 1)
    assert host.read_guest(1, RAM, 1) == b"\0"
    host.set_kind(1, RAM, 1, stage2.OWN_RO)
    assert not host.write_guest(1, RAM, [(0, b"y")])
    host.remove_guest(1)
    host.add_guest(1)
    with pytest.raises(GuestAbort):
        host.guest_read(1, RAM, 1)


# -- cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extents", [1, 8])
def test_an_idle_guest_of_a_gigabyte_costs_a_few_kilobytes(extents: int) -> None:
    host = ReferenceHost(PhysicalMemory(12 * 262_144, FIRST))

    def create(guest: int) -> None:
        host.add_guest(guest)
        for index in range(extents):
            assert host.populate(guest, RAM + index * (1 << 32), 262_144 // extents)

    create(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for guest in range(1, 11):
            create(guest)
        each = (tracemalloc.get_traced_memory()[0] - before) / 10
    finally:
        tracemalloc.stop()
    assert each < 6 * 1024
    assert not host.memory.banks
