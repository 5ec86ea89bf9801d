# SPDX-License-Identifier: BSD-2-Clause
"""The bus of the secure world: invariant I2 on every touch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.events import BusBreach, BusRefusal
from mediator.hypervisor.frames import SECURE
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.pages import SMALL_LIST
from secure_world.bus import BusError
from tests.hypervisor_memory.support import (
    FIRST,
    FRAMES,
    PAGE,
    RAM,
    addresses,
    machine,
    pfn,
    pin,
    words,
)

CLIENT, STRANGER = 2, 3  # of guests 1 and 2


ALLOWED = {
    CLIENT: {"pinned", "mediator"},
    STRANGER: {"mediator"},
    0: {"mediator", "secure"},
    77: {"mediator"},
}


class Rig:
    """A host, its bus, and one address of every sort."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.host: ReferenceHost = machine()
        self.bus = SecureBus(self.host.memory, sink=self.events.append)
        shadow, freed = self.host.alloc_shadow(2), self.host.alloc_shadow(1)
        assert shadow is not None
        assert freed is not None
        self.host.free_shadow(freed)
        self.frames = pin(self.host, 1, RAM, RAM + PAGE)
        self.host.memory.claim(SECURE, FIRST + 1000)
        self.places = {
            "pinned": addresses(self.frames)[0],
            "not pinned": pfn(self.host, 1, RAM + 7 * PAGE) << 12,
            "mediator": shadow.pa,
            "given back": freed.pa,
            "secure": (FIRST + 1000) << 12,
            "free": (FIRST + 1001) << 12,
            "no RAM": 0x900_0000,
            "beyond": (FIRST + FRAMES) << 12,
            "top": (1 << 64) - PAGE,
        }
        # Contents everywhere and every client seen before: the short paths are in use too.
        for pa in self.places.values():
            if self.host.memory.is_ram(pa):
                self.host.memory.write(pa + 16, bytes(8))
        for client in ALLOWED:
            self.bus.check(client, self.places["free"], 1)
        self.events.clear()


@pytest.mark.parametrize("client", ALLOWED)
@pytest.mark.parametrize("place", Rig().places)
def test_who_may_touch_what(client: int, place: str) -> None:
    rig = Rig()
    pa, bus = rig.places[place] + 16, rig.bus
    if place in ALLOWED[client]:
        bus.write(client, pa, b"result")
        assert bus.read(client, pa - 1, 8) == b"\0result\0"
        assert bus.check(client, pa, 8)
        assert bus.check_pages(client, words(pa - 16))
        assert bus.check_pages(client, words(*[pa - 16] * SMALL_LIST))
        assert rig.events == []
        return
    before = dict(rig.host.memory.banks)
    with pytest.raises(BusError) as read:
        bus.read(client, pa, 8)
    with pytest.raises(BusError) as write:
        bus.write(client, pa, b"result")
    assert (read.value.address, read.value.size, read.value.write) == (pa, 8, False)
    assert (write.value.address, write.value.size, write.value.write) == (pa, 6, True)
    assert [event[:4] for event in rig.events] == [(client, pa, 8, False), (client, pa, 6, True)]
    assert all(isinstance(event, BusBreach) for event in rig.events)
    assert bus.breaches == 2
    assert rig.host.memory.banks == before
    rig.events.clear()
    assert not bus.check(client, pa, 8)
    assert not bus.check_pages(client, words(pa - 16))
    assert not bus.check_pages(client, words(*[rig.places["mediator"]] * SMALL_LIST, pa - 16))
    assert len(rig.events) == 3
    assert all(isinstance(event, BusRefusal) for event in rig.events)
    assert bus.breaches == 2


def test_pages_may_be_crossed_and_nothing_is_written_if_one_is_not_allowed() -> None:
    rig = Rig()
    pa, bus = rig.places["pinned"], rig.bus
    assert addresses(rig.frames)[1] == pa + PAGE
    data = bytes(range(200)) * 20
    bus.write(CLIENT, pa + PAGE - 2000, data[:4000])
    assert bus.read(CLIENT, pa + PAGE - 2000, 4000) == data[:4000]
    assert rig.host.guest_read(1, RAM + PAGE - 2000, 4000) == data[:4000]
    with pytest.raises(BusError) as error:
        bus.write(CLIENT, pa + 2 * PAGE - 4, b"12345678")
    assert error.value.address == pa + 2 * PAGE
    assert bus.read(CLIENT, pa + 2 * PAGE - 4, 4) == bytes(4)
    with pytest.raises(BusError):
        bus.read(CLIENT, pa + PAGE, PAGE + 1)
    assert not bus.check(CLIENT, pa, 2 * PAGE + 1)
    assert bus.check(CLIENT, pa, 2 * PAGE)
    assert bus.check(CLIENT, pa + 2 * PAGE - 1, 0)
    assert not bus.check(CLIENT, pa + 2 * PAGE, 0)
    shadow = rig.places["mediator"]
    bus.write(CLIENT, shadow + PAGE - 3, b"abcdef")
    assert bus.read(STRANGER, shadow + PAGE - 3, 6) == b"abcdef"


def test_the_permission_ends_with_the_last_pin() -> None:
    rig = Rig()
    pa = rig.places["pinned"]
    again = pin(rig.host, 1, RAM)
    rig.host.unpin_pages(1, rig.frames)
    rig.bus.write(CLIENT, pa, b"x")
    rig.host.unpin_pages(1, again)
    with pytest.raises(BusError):
        rig.bus.write(CLIENT, pa, b"y")
    assert rig.host.guest_read(1, RAM, 1) == b"x"


def test_a_pinned_page_that_left_the_guest_is_still_the_partitions() -> None:
    rig = Rig()
    pa = rig.places["pinned"]
    rig.host.balloon_out(1, RAM, 1)
    rig.bus.write(CLIENT, pa, b"late")
    rig.host.unpin_pages(1, rig.frames)
    with pytest.raises(BusError):
        rig.bus.read(CLIENT, pa, 4)
    assert rig.host.memory.read(pa, 4) == bytes(4)


def test_client_ids_are_mapped_by_a_function() -> None:
    host = machine()
    bus = SecureBus(host.memory, guest_of=lambda client: client - 100 if client >= 100 else -1)
    (pa,) = addresses(pin(host, 1, RAM))
    assert bus.read(101, pa, 4) == bytes(4)
    for client in (1, 2, 100, 102):
        with pytest.raises(BusError):
            bus.read(client, pa, 4)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_short_and_long_lists_are_judged_alike(data: st.DataObject) -> None:
    rig = Rig()
    client = data.draw(st.sampled_from(sorted(ALLOWED)))
    entry = st.tuples(st.sampled_from(sorted(rig.places)), st.sampled_from([0, 0, 0, 8]))
    drawn = data.draw(st.lists(entry, min_size=1, max_size=6))
    pages = words(*[rig.places[place] + low for place, low in drawn])
    expected = all(place in ALLOWED[client] and not low for place, low in drawn)
    assert rig.bus.check_pages(client, pages) == expected
    assert rig.bus.check_pages(client, pages * SMALL_LIST) == expected
    assert bool(rig.events) == (not expected)


@pytest.mark.parametrize("times", [1, SMALL_LIST])
def test_the_address_of_a_page_has_no_low_bits(times: int) -> None:
    rig = Rig()
    pa = rig.places["mediator"]  # the next page is the mediator's as well
    assert rig.bus.check_pages(CLIENT, words(*[pa] * times))
    assert not rig.bus.check_pages(CLIENT, words(*[pa] * (times - 1), pa + 8))


def test_no_pages_are_fine() -> None:
    assert Rig().bus.check_pages(CLIENT, b"")
