# SPDX-License-Identifier: BSD-2-Clause
"""Page lists in pieces, and the edges of addresses and sizes (bug classes 19, 20, 30)."""

from __future__ import annotations

import struct

import pytest

from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, answer, msg
from tests.mediator.test_buffers import listed

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
REGD = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
BAD_PARAMETERS, OUT_OF_MEMORY = 0xFFFF0006, 0xFFFF000C
BUFFER = RAM + 0x100_000
LIST = RAM + 0xA_000


def scattered(count: int) -> list[int]:
    return [BUFFER + index * 7 % 1536 * PAGE_SIZE for index in range(count)]


def seen_by_the_tee(rig: Rig, pages: int) -> list[list[int]]:
    """The page list of the first parameter, read as a TEE reads it, at the next entry."""
    seen: list[list[int]] = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        seen.append(listed(rig, struct.unpack_from("<Q", rig.shadow(), 40)[0], pages))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    return seen


@pytest.mark.parametrize("entries", [511, 1022, 64 * 511])
@pytest.mark.parametrize("count", [1, 2, 510, 511, 512, 1021, 1022, 1023, 1533, 1534])
def test_roll_over(count: int, entries: int) -> None:
    """Every length around the edge of a list page, in one step or in several."""
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=entries, pin_entries=entries)))
    pages = scattered(count)
    seen = seen_by_the_tee(rig, count)
    assert rig.register(0x55, pages)[0] == 0
    assert seen == [[rig.host.pa(0, ipa) for ipa in pages]]
    assert rig.pinned() == count
    rig.unregister(0x55)
    assert not rig.pinned()


@pytest.mark.parametrize("count", [510, 511, 512, 1022, 1023])
def test_roll_over_of_a_contiguous_buffer(count: int) -> None:
    rig = Rig()
    rig.put(RAM, msg(1, params=[(0xB, BUFFER + 8, count * PAGE_SIZE - 8, 5)]))
    seen = seen_by_the_tee(rig, count)
    assert rig.call(ARG, 0, RAM)[0] == 0
    assert seen == [[rig.host.pa(0, BUFFER + index * PAGE_SIZE) for index in range(count)]]


def test_preempted_at_every_edge() -> None:
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    pages = scattered(1534)
    rig.host.always_preempt = True
    seen = seen_by_the_tee(rig, 1534)
    out = rig.register(0x55, pages)
    rounds = 0
    while out[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
        rounds += 1
        out = rig.call(RETURN, 0, 0, out[3])
    assert (out[0], rounds) == (0, 3)
    assert seen == [[rig.host.pa(0, ipa) for ipa in pages]]


@pytest.mark.parametrize("buffers", [2, 3, 8])
def test_many_buffers_of_one_message_are_one_long_walk(buffers: int) -> None:
    """Each is short enough not to be stopped inside; together they are not."""
    step = 1022
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=step)))
    params = [(0xA, BUFFER, step // 2 * PAGE_SIZE, index) for index in range(buffers)]
    rig.put(RAM, msg(1, params=params))
    pins = rig.host.pin_pages
    handled: list[int] = [0]

    def counted(guest: int, ipas: bytes) -> bytes | None:
        handled[-1] += len(ipas) // 8
        return pins(guest, ipas)

    rig.host.pin_pages = counted  # type: ignore[method-assign]
    rig.host.always_preempt = True
    out = rig.call(ARG, 0, RAM)
    while out[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
        assert not rig.host.sent
        handled.append(0)
        out = rig.call(RETURN, 0, 0, out[3])
    assert out[0] == 0
    assert sum(handled) == buffers * step // 2
    assert max(handled) <= step
    assert len(rig.host.sent) == 1
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()


def test_a_link_to_itself_costs_what_the_size_costs() -> None:
    rig = Rig()
    rig.put(LIST, struct.pack("<512Q", *[BUFFER] * 511, LIST))
    rig.put(RAM, msg(4, params=[(0x20A, LIST, 1500 * PAGE_SIZE, 5)]))
    seen = seen_by_the_tee(rig, 1500)
    assert rig.call(ARG, 0, RAM)[0] == 0
    assert seen == [[rig.host.pa(0, BUFFER)] * 1500]
    assert rig.pinned() == 1500


@pytest.mark.parametrize(
    ("offset", "size", "pages"),
    [
        (0, 1, 1),
        (0, 4095, 1),
        (0, 4096, 1),
        (0, 4097, 2),
        (1, 4095, 1),
        (1, 4096, 2),
        (4095, 1, 1),
        (4095, 2, 2),
        (4095, 4096, 2),
        (4095, 4098, 3),
        (0x800, 0x1800, 2),
    ],
)
@pytest.mark.parametrize(("attr", "address"), [(0x20A, LIST), (0xA, BUFFER)])
def test_the_partial_pages_at_both_ends_count(
    attr: int, address: int, offset: int, size: int, pages: int
) -> None:
    rig = Rig()
    rig.put_list(LIST, [BUFFER + index * PAGE_SIZE for index in range(4)])
    rig.put(RAM, msg(1, params=[(attr, address + offset, size, 5)]))
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        where = struct.unpack_from("<Q", rig.shadow(), 40)[0]
        seen.append((listed(rig, where, pages), where & 0xFFF, rig.pinned()))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    assert rig.call(ARG, 0, RAM)[0] == 0
    frames = [rig.host.pa(0, BUFFER + index * PAGE_SIZE) for index in range(pages)]
    assert seen == [(frames, offset, pages)]


@pytest.mark.parametrize("offset", [0, 1, 4095])
@pytest.mark.parametrize(
    "size",
    [
        1 << 32,
        (1 << 32) + 1,
        (1 << 32) - 1,
        1 << 44,
        1 << 52,
        1 << 63,
        (1 << 64) - 4096,
        (1 << 64) - 4095,
        (1 << 64) - 1,
    ],
)
def test_a_size_that_no_guest_has_is_never_small(offset: int, size: int) -> None:
    rig = Rig()
    rig.put_list(LIST, [BUFFER])
    for attr, address in ((0x20A, LIST | offset), (0xA, BUFFER + offset)):
        rig.put(RAM, msg(1, params=[(attr, address, size, 5)]))
        assert rig.call(ARG, 0, RAM)[0] == 0
        assert rig.message(RAM, 1)[5:7] == (OUT_OF_MEMORY, 2)
        assert not rig.host.sent
        assert rig.info() == (0, 0, 0, 0)


EDGES = [0, 1, (1 << 12) - 1, 1 << 12, (1 << 32) - 1, 1 << 32, 1 << 44, 1 << 52, 1 << 63]


@pytest.mark.parametrize("address", [*EDGES, (1 << 64) - PAGE_SIZE, (1 << 64) - 1])
@pytest.mark.parametrize("size", [0, 1, 4096, 8192])
def test_an_address_at_any_edge_is_an_answer(address: int, size: int) -> None:
    """The guest has no RAM there: null passes, all else is refused, in whatever role it comes."""
    rig = Rig()
    for attr in (0xA, 0x20A):
        rig.put(RAM, msg(1, params=[(attr, address, size, 5)]))
        assert rig.call(ARG, 0, RAM)[0] == 0
        ret = rig.message(RAM, 1)[5]
        assert ret == (BAD_PARAMETERS if address else 0)
        assert rig.info() == (0, 0, 0, 0)
    rig.put_list(LIST, [address])
    rig.put(RAM, msg(1, params=[(0x20A, LIST, max(size, 1), 5)]))
    assert rig.call(ARG, 0, RAM)[0] == 0
    assert rig.message(RAM, 1)[5] == BAD_PARAMETERS
    assert not rig.pinned()
    assert rig.call(ARG, address >> 32, address & 0xFFFF_FFFF)[0] == 4
    assert rig.info() == (0, 0, 0, 0)


def test_an_empty_buffer_has_no_page() -> None:
    rig = Rig()
    for attr, address in ((0x20A, LIST), (0xA, BUFFER)):
        rig.put_list(LIST, [BUFFER])
        rig.put(RAM, msg(1, params=[(attr, address, 0, 5)]))
        assert rig.call(ARG, 0, RAM)[0] == 0
        assert rig.message(RAM, 1)[5:7] == (BAD_PARAMETERS, 2)
        assert not rig.host.sent


class TestCarrierInsideAPage:
    """A registered buffer that begins at byte 0x800 of its first page and has two pages."""

    OFFSET = 0x800
    COOKIE = 0x1_0000_2480
    PAGES = (BUFFER, BUFFER + 5 * PAGE_SIZE)
    LENGTH = 2 * PAGE_SIZE - OFFSET

    def made(self) -> Rig:
        rig = Rig()
        assert rig.register(self.COOKIE, self.PAGES, offset=self.OFFSET)[0] == 0
        rig.host.sent.clear()
        return rig

    def put(self, rig: Rig, position: int, data: bytes) -> None:
        for index, byte in enumerate(data):
            at = self.OFFSET + position + index
            rig.put(self.PAGES[at // PAGE_SIZE] + at % PAGE_SIZE, bytes([byte]))

    def get(self, rig: Rig, position: int, length: int) -> bytes:
        places = range(self.OFFSET + position, self.OFFSET + position + length)
        return b"".join(rig.get(self.PAGES[at // PAGE_SIZE] + at % PAGE_SIZE, 1) for at in places)

    @pytest.mark.parametrize("position", [0, 8, 0x780, 0x7F8, 0x800, LENGTH - 32 - 32 - 160])
    def test_positions_count_from_its_first_byte(self, position: int) -> None:
        rig = self.made()
        self.put(rig, position, msg(1, func=position, params=[(3, 1, 2, 3)]))

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            assert struct.unpack_from("<2I", rig.shadow()) == (1, position)
            struct.pack_into("<3Q", rig.shadow(), 40, 4, 5, 6)
            return (0, 0, 0, 0)

        rig.host.script = [script]
        assert rig.call(REGD, 1, 0x2480, position)[0] == 0
        assert struct.unpack("<4Q", self.get(rig, position + 32, 32)) == (3, 4, 5, 6)

    @pytest.mark.parametrize("position", [LENGTH - 32 - 152, LENGTH - 24, LENGTH, LENGTH + 0x700])
    def test_it_ends_where_its_last_page_ends(self, position: int) -> None:
        rig = self.made()
        assert rig.call(REGD, 1, 0x2480, position)[0] == smc.OPTEE_SMC_RETURN_EBADADDR
        assert not rig.host.sent

    def test_a_carrier_is_as_long_as_its_pages(self) -> None:
        """The end of a call is written through the same pages, whatever the size was."""
        rig = self.made()
        position = self.LENGTH - 32 - 160
        self.put(rig, position, msg(1))
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, 1)]
        assert rig.call(REGD, 1, 0x2480, position)[3] == 1
        assert rig.call(RETURN, 0, 0, 1)[0] == 0
        assert rig.info() == (0, 1, 2, 0)
