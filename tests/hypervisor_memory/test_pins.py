# SPDX-License-Identifier: BSD-2-Clause
"""Pins: the plain loop and the arrays give the same answers, all or nothing (I3; class 20, 21)."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediator.hypervisor import pages, stage2
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import BLOCK
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.pages import SMALL_LIST
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

GUEST = 1
LAYOUTS = ("one extent", "several extents", "scattered", "chunks and extents", "far apart")
FAR = 1 << 44
EDGES = (0, 1, PAGE - 1, PAGE, 1 << 32, 1 << 44, 1 << 52, 1 << 63, (1 << 64) - 1)


def guest(layout: str) -> tuple[ReferenceHost, list[int], list[int]]:
    """A host whose guest has RAM in ``layout``: its good pages, and pages that cannot be pinned."""
    host = ReferenceHost(PhysicalMemory(FRAMES, FIRST))
    host.add_guest(GUEST)
    host.add_guest(2)
    host.populate(2, 0, 8)
    good: list[int] = []
    if layout == "one extent":
        host.populate(GUEST, RAM, 64)
    elif layout == "several extents":
        for index in range(4):
            host.populate(GUEST, RAM + 16 * index * PAGE, 16)
            host.populate(2, (10 + index) * PAGE, 1)
    elif layout == "scattered":
        host.populate(GUEST, RAM, 64, seed=3)
    elif layout == "chunks and extents":
        host.populate(GUEST, RAM, 600)
        host.balloon_out(GUEST, RAM + 70 * PAGE, 5)
        host.populate(GUEST, RAM + 1024 * PAGE, 512)
        good.extend(RAM + (1024 + index) * PAGE for index in (0, 1, 511))
    else:
        host.populate(GUEST, RAM, 64)
        host.populate(GUEST, FAR, 32)
        good.extend(FAR + index * PAGE for index in range(32))
    good.extend(RAM + index * PAGE for index in range(64))
    bad = [*EDGES, RAM - 1, RAM + 70 * PAGE, (1 << 52) - PAGE, FAR + 33 * PAGE]
    special = RAM + (1 << 36)
    host.populate(GUEST, special, 1, kind=stage2.OWN_RO)
    host.share(GUEST, special + PAGE, 1, 2, 0, writable=True)
    host.share(GUEST, special + 2 * PAGE, 1, 2, 0)
    host.share(GUEST, special + 3 * PAGE, 1, 2, 0, grant=True, writable=True)
    host.share(GUEST, special + 4 * PAGE, 1, 2, 0, grant=True)
    host.map_other(GUEST, special + 5 * PAGE, 1, stage2.MMIO, 0x900_0000)
    bad.extend(special + index * PAGE for index in range(6))
    return (
        host,
        good,
        [ipa for ipa in bad if host.stage2(GUEST).lookup(ipa >> 12)[1] != stage2.OWN_RW],
    )


def pin_by_arrays(host: ReferenceHost, ipas: bytes) -> bytes | None:
    record = host.record(GUEST)
    pfns = pages.translate(record.stage2, ipas)
    if pfns is None or not pages.pin(host.memory, pfns, record.own):
        return None
    return pages.addresses(pfns)


def pin_by_loop(host: ReferenceHost, ipas: bytes) -> bytes | None:
    return host._pin_few(host.record(GUEST), addresses(ipas))


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_loop_and_arrays_agree(layout: str, data: st.DataObject) -> None:
    (one, good, bad), (two, _, _) = guest(layout), guest(layout)
    entry = st.tuples(st.sampled_from(good), st.integers(0, PAGE - 1)).map(sum)
    lists = data.draw(
        st.lists(
            st.tuples(
                st.lists(entry, min_size=1, max_size=SMALL_LIST - 1),
                st.one_of(st.none(), st.tuples(st.integers(0, 40), st.sampled_from(bad))),
            ),
            max_size=4,
        )
    )
    taken: list[bytes] = []
    for ipas, spoil in lists:
        if spoil is not None:
            ipas.insert(spoil[0] % (len(ipas) + 1), spoil[1])
            ipas = ipas[: SMALL_LIST - 1]
            if spoil[1] not in ipas:
                continue
        request = words(*ipas)
        before = state(one.memory)
        by_loop, by_arrays = pin_by_loop(one, request), pin_by_arrays(two, request)
        assert by_loop == by_arrays
        assert state(one.memory) == state(two.memory)
        if spoil is not None:
            assert by_loop is None
            assert state(one.memory) == before
        else:
            assert by_loop is not None
            table = one.stage2(GUEST)
            assert addresses(by_loop) == tuple(table.lookup(ipa >> 12)[0] << 12 for ipa in ipas)
            taken.append(by_loop)
    # Now release in another order, sometimes too much.
    for frames in data.draw(st.permutations(taken)):
        first = addresses(frames)[0] >> 12
        excess = (frames + frames[:8] * (1 + one.memory.pins(first)))[-8 * (SMALL_LIST - 1) :]
        if len(excess) // 8 > one.memory.pins(first) and data.draw(st.booleans()):
            before = state(one.memory)
            small = one._unpin_few(one.record(GUEST), addresses(excess))
            large = pages.unpin(two.memory, pages.numbers(excess), two.record(GUEST).own)
            assert small is large is None
            assert state(one.memory) == state(two.memory) == before
        assert one._unpin_few(one.record(GUEST), addresses(frames)) == 0
        assert pages.unpin(two.memory, pages.numbers(frames), two.record(GUEST).own) == 0
        assert state(one.memory) == state(two.memory)
    assert not one.memory.referenced(one.record(GUEST).owner)


@pytest.mark.parametrize("count", [1, 2, SMALL_LIST - 1, SMALL_LIST, SMALL_LIST + 1, 511, 3000])
@pytest.mark.parametrize("seed", [None, 4])
def test_the_boundary_uses_either_without_a_visible_difference(
    count: int, seed: int | None
) -> None:
    host = ReferenceHost(PhysicalMemory(FRAMES * 2, FIRST))
    host.add_guest(GUEST)
    host.populate(GUEST, RAM, 1500, seed=seed)
    draw = random.Random(count)
    ipas = [RAM + draw.randrange(1500) * PAGE for _ in range(count)]
    frames = host.pin_pages(GUEST, words(*ipas))
    assert frames is not None
    assert addresses(frames) == tuple(pfn(host, GUEST, ipa) << 12 for ipa in ipas)
    expected = dict.fromkeys(sorted(pa >> 12 for pa in addresses(frames)), 0)
    for pa in addresses(frames):
        expected[pa >> 12] += 1
    assert host.pins(GUEST) == expected
    assert host.pinned(GUEST) == count
    for bad in (0, RAM + 1500 * PAGE, (1 << 64) - 1):
        spoilt = [*ipas[:-1], bad]
        assert host.pin_pages(GUEST, words(*spoilt)) is None
    assert host.pins(GUEST) == expected
    with pytest.raises(InvariantError, match="not pinned"):
        host.unpin_pages(GUEST, frames + frames[-8:])
    assert host.pins(GUEST) == expected
    host.unpin_pages(GUEST, frames)
    assert host.pins(GUEST) == {}
    assert host.pinned(GUEST) == 0
    with pytest.raises(InvariantError, match="not pinned"):
        host.unpin_pages(GUEST, frames[:8])
    audit(host.memory)


def test_an_empty_list_is_pinned_and_released() -> None:
    host = machine()
    assert host.pin_pages(1, b"") == b""
    host.unpin_pages(1, b"")
    assert host.pinned(1) == 0


def test_half_a_word_is_a_defect_of_the_caller() -> None:
    host = machine()
    with pytest.raises(InvariantError):
        host.pin_pages(1, bytes(12))
    with pytest.raises(InvariantError):
        host.unpin_pages(1, bytes(12))


def test_the_pin_of_another_guest_is_not_mine_to_drop() -> None:
    host = machine()
    frames = pin(host, 1, RAM)
    with pytest.raises(InvariantError, match="guest 2"):
        host.unpin_pages(2, frames)
    with pytest.raises(InvariantError, match="guest 2"):
        host.unpin_pages(2, frames * SMALL_LIST)
    assert host.pins(1) == {pfn(host, 1, RAM): 1}


@pytest.mark.parametrize(
    "frame", [0, (1 << 64) - PAGE, FIRST * PAGE - PAGE, (FIRST + FRAMES) * PAGE]
)
def test_unpinning_what_is_no_ram_is_loud(frame: int) -> None:
    host = machine()
    for count in (1, SMALL_LIST):
        with pytest.raises(InvariantError, match="not pinned"):
            host.unpin_pages(1, words(*[frame] * count))


def test_frames_far_apart_are_counted_right_in_any_order() -> None:
    """Beyond ``NEAR`` the arrays are put in another order first: the answer keeps the caller's."""
    span = 2 * pages.NEAR
    host = ReferenceHost(PhysicalMemory(span, FIRST))
    host.add_guest(GUEST)
    count = pages.BLOCK + 700
    draw = random.Random(9)
    numbers = sorted(draw.sample(range(span - 4096), count))
    draw.shuffle(numbers)
    for number in numbers:
        host.memory.claim(host.record(GUEST).owner, FIRST + number)
    host.stage2(GUEST).map_frames(RAM, stage2.OWN_RW, np.array(numbers, np.int64) + FIRST)
    ipas = words(*[RAM + index * PAGE for index in range(count)] * 2)
    frames = host.pin_pages(GUEST, ipas)
    assert frames is not None
    assert addresses(frames) == tuple((FIRST + number) << 12 for number in numbers) * 2
    assert host.pins(GUEST) == {FIRST + number: 2 for number in sorted(numbers)}
    bad = bytearray(ipas)
    bad[-8:] = bytes(8)
    assert host.pin_pages(GUEST, bytes(bad)) is None
    with pytest.raises(InvariantError):
        host.unpin_pages(GUEST, frames + frames[-8:])
    assert host.pins(GUEST) == {FIRST + number: 2 for number in sorted(numbers)}
    host.unpin_pages(GUEST, frames)
    assert not host.pins(GUEST)


def test_a_page_whose_frame_has_another_owner_is_refused_however_stage_2_presents_it() -> None:
    """The second check: a defect in the books of stage 2 alone gives nobody's page away."""
    host = machine()
    host.stage2(1).map_range(RAM + 5 * PAGE, 1, stage2.OWN_RW, pfn(host, 2, RAM) << 12)
    before = state(host.memory)
    assert host.pin_pages(1, words(RAM, RAM + 5 * PAGE)) is None
    assert host.pin_pages(1, words(*[RAM] * SMALL_LIST, RAM + 5 * PAGE)) is None
    assert host.pin_pages(1, words(*[RAM] * (2 * pages.BLOCK), RAM + 5 * PAGE)) is None
    assert state(host.memory) == before


def test_the_fast_path_of_add_at_is_not_lost() -> None:
    """Matching types, or NumPy takes 20 times as long (the benchmark sees that, this says why)."""
    host = machine()
    assert host.memory.array.dtype == pages._ONE.dtype == np.dtype(np.int64)
    translated = pages.translate(host.stage2(1), words(*[RAM] * SMALL_LIST))
    assert translated is not None
    assert translated.dtype == np.dtype(np.int64)
    assert host.memory.array.flags.aligned
    assert host.memory.array.flags.c_contiguous


@pytest.mark.parametrize("pages_of_guest", [BLOCK, 3 * BLOCK])
def test_pages_that_nobody_looked_at_before_can_be_pinned(pages_of_guest: int) -> None:
    for count in (1, SMALL_LIST):
        host = machine(guests=1, pages=pages_of_guest)
        ipas = [RAM + (index * 37 % pages_of_guest) * PAGE for index in range(count)]
        frames = pin(host, 1, *ipas)
        host.unpin_pages(1, frames)
        audit(host.memory)
