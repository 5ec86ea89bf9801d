# SPDX-License-Identifier: BSD-2-Clause
"""REGISTER_SHM and UNREGISTER_SHM, page lists and their reader."""

from __future__ import annotations

import struct
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_world import events
from secure_world.settings import SecureWorldSettings
from secure_world.shm import BadPageList, page_count, read_page_list
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import Normal, RamBus, Reply

REGISTER, UNREGISTER = msg.OPTEE_MSG_CMD_REGISTER_SHM, msg.OPTEE_MSG_CMD_UNREGISTER_SHM
BAD = tee.TEE_ERROR_BAD_PARAMETERS
REFUSED = (0, BAD, 0)


def outcome(reply: Reply) -> tuple[int, int, int]:
    return reply.a0, reply.ret, reply.origin


@pytest.fixture
def n() -> Normal:
    return Normal()


@pytest.mark.parametrize("attr", [0, 1, 9, 0xA, 0x209, 0x20B, 0x30A, 0x1020A, 0x205, 6])
def test_attribute_must_be_exact(n: Normal, attr: int) -> None:
    reply = n.call(REGISTER, [(attr, n.page_list([n.pages()]), 64, 5)])
    assert outcome(reply) == REFUSED


@pytest.mark.parametrize("count", [0, 2, 3])
def test_exactly_one_parameter(n: Normal, count: int) -> None:
    param = (s.REG_ATTR, n.page_list([n.pages()]), 64, 5)
    assert outcome(n.call(REGISTER, [param] * count)) == REFUSED
    assert outcome(n.call(UNREGISTER, [param] * count)) == (0, BAD, tee.TEE_ORIGIN_TEE)


@pytest.mark.parametrize("address", [0, s.SECURE, s.MMIO, s.PAST_RAM, 1 << 63, (1 << 64) - s.PAGE])
def test_bad_list_address(n: Normal, address: int) -> None:
    assert outcome(n.call(REGISTER, [(s.REG_ATTR, address, 64, 5)])) == REFUSED
    assert len(n.of(events.Breach)) == 1


@pytest.mark.parametrize(
    "entry",
    [0, s.BASE + 8, s.BASE + 0xFFF, s.SECURE, s.MMIO, s.PAST_RAM, 1 << 52, (1 << 64) - s.PAGE],
)
@pytest.mark.parametrize("count", [1, 3, 60])
def test_bad_entry(n: Normal, entry: int, count: int) -> None:
    entries = [n.pages() for _ in range(count - 1)]
    for place in {0, count - 1}:
        words = [*entries[:place], entry, *entries[place:]]
        _, reply = n.register(words, count * s.PAGE)
        assert outcome(reply) == REFUSED
    assert n.of(events.ShmRegistered) == []


@pytest.mark.parametrize("size", [0, 1 << 40, (1 << 64) - 1, 1 << 63])
def test_bad_size(n: Normal, size: int) -> None:
    address = n.page_list([n.pages()])
    assert outcome(n.call(REGISTER, [(s.REG_ATTR, address, size, 5)])) == REFUSED


def test_bad_link(n: Normal) -> None:
    for link in (0, s.SECURE, s.PAST_RAM, s.BASE + 8, (1 << 64) - 1):
        pages = [n.pages() for _ in range(3)]
        first = n.pages()
        n.put(first, struct.pack("<511Q", *(pages * 171)[:511]) + struct.pack("<Q", link))
        reply = n.call(REGISTER, [(s.REG_ATTR, first, 512 * s.PAGE, 5)])
        assert outcome(reply) == REFUSED, hex(link)


def test_link_to_itself_is_as_good_as_any(n: Normal) -> None:
    page, first = n.pages(), n.pages()
    n.put(first, struct.pack("<511Q", *[page] * 511) + struct.pack("<Q", first))
    reply = n.call(REGISTER, [(s.REG_ATTR, first, 1500 * s.PAGE, 5)])
    assert outcome(reply) == (0, 0, 0)
    assert n.of(events.ShmRegistered) == [(0, 5, 1500, False)]


@pytest.mark.parametrize("count", [1, 2, 37, 38, 510, 511, 512, 1021, 1022, 1023])
def test_roll_over(n: Normal, count: int) -> None:
    base = n.pages(count)
    pages = [base + i * s.PAGE for i in range(count)][::-1]
    cookie, reply = n.register(pages, count * s.PAGE)
    assert outcome(reply) == (0, 0, 0)
    partition = n.world.partition(0)
    assert partition is not None
    assert list(partition.shm.by_cookie[cookie].pages) == pages
    assert outcome(n.unregister(cookie)) == (0, 0, 0)


@pytest.mark.parametrize("link", [0, 1, 0xDEAD_BEEF, s.SECURE, (1 << 64) - 1])
def test_the_link_behind_the_last_entry_is_not_followed(n: Normal, link: int) -> None:
    page, first = n.pages(), n.pages()
    n.put(first, struct.pack("<511Q", *[page] * 511) + struct.pack("<Q", link))
    reply = n.call(REGISTER, [(s.REG_ATTR, first, 511 * s.PAGE, 5)])
    assert outcome(reply) == (0, 0, 0)


def test_size_and_offset_give_the_pages(n: Normal) -> None:
    pages = [n.pages() for _ in range(3)]
    for size, offset, count in ((1, 0, 1), (0, 1, 1), (4096, 0, 1), (4096, 1, 2), (2, 0xFFF, 2)):
        cookie, reply = n.register(pages, size, offset)
        assert outcome(reply) == (0, 0, 0)
        assert n.events[-2] == (0, cookie, count, False)


def test_accepted_oddities(n: Normal) -> None:
    page = n.pages()
    _, twice = n.register([page, page], 2 * s.PAGE)
    assert outcome(twice) == (0, 0, 0)
    _, reserved = n.register([s.RESERVED], s.PAGE)
    assert outcome(reserved) == (0, 0, 0)
    _, zero = n.register([page], s.PAGE, cookie=0)
    assert outcome(zero) == (0, 0, 0)
    assert outcome(n.unregister(0)) == REFUSED


def test_the_same_cookie_twice_needs_two_unregistrations(n: Normal) -> None:
    session = n.session(s.MEMREFS)
    old, new = n.pages(), n.pages()
    n.put(old, b"\1")
    n.put(new, b"\2")
    n.register([old], 1, cookie=0x77)
    n.register([new], 1, cookie=0x77)

    def first_byte() -> int:
        return n.invoke(session, 0, [(5, 0, 1, 0x77), (2, 0, 0, 0)]).params[1][1]

    assert first_byte() == 2
    assert outcome(n.unregister(0x77)) == (0, 0, 0)
    assert first_byte() == 1
    assert outcome(n.unregister(0x77)) == (0, 0, 0)
    assert outcome(n.unregister(0x77)) == REFUSED


def test_a_cookie_is_free_in_the_very_next_call(n: Normal) -> None:
    for _ in range(3):
        _, reply = n.register([n.pages()], 64, cookie=0xFFFF_0000_0199_F900)
        assert outcome(reply) == (0, 0, 0)
        assert outcome(n.unregister(0xFFFF_0000_0199_F900)) == (0, 0, 0)
    assert n.unregister(0xFFFF_0000_0199_F900).ret == BAD


def test_unregister_does_not_look_at_the_attribute(n: Normal) -> None:
    cookie, _ = n.register([n.pages()], 64)
    assert outcome(n.call(UNREGISTER, [(0x1FF, 1, 2, cookie)])) == (0, 0, 0)


def test_pages_that_the_bus_denies_are_refused(n: Normal) -> None:
    page = n.pages()
    n.bus.denied.add(page >> 12)
    _, reply = n.register([page], 64)
    assert outcome(reply) == REFUSED
    assert n.of(events.Breach) == [(0, page, s.PAGE, False)]


def test_without_dynamic_memory_the_commands_are_unknown() -> None:
    n = Normal(SecureWorldSettings(virtualization=False, dynamic_shm=False))
    page, registers = n.start(s.message(REGISTER, [(s.REG_ATTR, 0, 0, 0)]))
    assert registers == (smc.OPTEE_SMC_RETURN_EBADCMD, 0, 0, 0)
    assert n.get(page + 20, 4) == bytes(4)


def test_a_denied_message_page_is_reported() -> None:
    n = Normal()
    n.bus.denied.add(s.BASE + 0x9000 >> 12)
    answer = n.raw(smc.OPTEE_SMC_CALL_WITH_ARG, 0, s.BASE + 0x9000)
    assert answer[0] == smc.OPTEE_SMC_RETURN_EBADADDR
    assert n.of(events.Breach) == [(0, s.BASE + 0x9000, 160, False)]


@given(st.integers(0, 4095), st.integers(0, (1 << 64) - 1))
def test_page_count(offset: int, size: int) -> None:
    count = page_count(offset, size)
    if size + offset:
        assert (count - 1) * 4096 < size + offset <= count * 4096
    else:
        assert count == 0


class BigBus(RamBus):
    """Checks pages as arrays, so that a long list costs what the reader costs."""

    def check_pages(self, client: int, pages: bytes) -> bool:
        words = np.frombuffer(pages, "<u8")
        return bool(((words >= self.base) & (words < self.base + len(self.ram))).all())


def test_one_gibibyte_is_read_page_by_page_of_the_list_only() -> None:
    count = 262_144
    bus = BigBus(1024)
    rng = np.random.default_rng(7)
    entries = s.BASE + rng.integers(0, 1024, count, dtype=np.uint64) * s.PAGE
    lists = (count + 510) // 511
    for i in range(lists):
        at = i * s.PAGE
        chunk = entries[511 * i : 511 * (i + 1)].astype("<u8").tobytes()
        bus.ram[at : at + len(chunk)] = chunk
        bus.ram[at + 4088 : at + 4096] = struct.pack("<Q", s.BASE + at + s.PAGE)
    pages = read_page_list(bus, 1, s.BASE, count)
    assert bus.reads == lists
    assert np.array_equal(np.frombuffer(pages, np.uint64), entries)
    bus.ram[4096 * 3 + 8] |= 1
    with pytest.raises(BadPageList):
        read_page_list(bus, 1, s.BASE, count)


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=80))
def test_reader_accepts_exactly_aligned_ram(entries: list[int]) -> None:
    bus = RamBus(4)
    bus.ram[: 8 * len(entries)] = struct.pack(f"<{len(entries)}Q", *entries)
    good = all(not e & 0xFFF and s.BASE <= e < s.BASE + 4 * s.PAGE for e in entries)
    try:
        assert read_page_list(bus, 0, s.BASE, len(entries)) == array("Q", entries)
        assert good
    except BadPageList:
        assert not good
