# SPDX-License-Identifier: BSD-2-Clause
"""What was checked is what is used (I4): every byte of the guest is read once, and one look counts."""

from __future__ import annotations

import struct

import pytest

from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, answer, msg, request
from tests.mediator.test_failures import JOURNEYS
from tests.mediator.watching import Journey, Reads, scramble, tee_sees

RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
REGD = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
GENERIC = 0xFFFF0000
LIST = RAM + 0x20_000


def crossing_slot(rig: Rig) -> None:
    """A message and an RPC answer that cross a page of their carrier."""
    pages = [RAM + 0x50_000, RAM + 0x60_000]
    rig.register(0x1_0000_2480, pages)
    body = msg(1, params=[(3, 1, 2, 3)] * 5)
    rig.put(pages[0] + PAGE_SIZE - 72, body[:72])
    rig.put(pages[1], body[72:])
    asked = msg(3, ret=GENERIC, params=[(2, 0, 0, 0)])
    rig.host.script = [request(asked, thread=1)]
    rig.call(REGD, 1, 0x2480, PAGE_SIZE - 72)
    rig.put(pages[1] + len(body) - 72, msg(3, params=[(2, 9, 8, 7)]))
    rig.call(RETURN, 0, 0, 1)


def slot_in_one_page(rig: Rig) -> None:
    """A message and an RPC answer in one page of their carrier."""
    rig.register(0x1_0000_2480, [RAM + 0x50_000])
    body = msg(1, params=[(9, RAM + 0x71_000, 0x2000, 2), (3, 1, 2, 3)])
    rig.put(RAM + 0x50_400, body)
    rig.host.script = [request(msg(3, ret=GENERIC, params=[(2, 0, 0, 0)]), thread=1)]
    rig.call(REGD, 1, 0x2480, 0x400)
    rig.put(RAM + 0x50_400 + len(body), msg(3, params=[(2, 9, 8, 7)]))
    rig.call(RETURN, 0, 0, 1)


def long_list(rig: Rig) -> None:
    """A registration whose list has three pages."""
    rig.register(0x55, [RAM + 0x100_000 + index * PAGE_SIZE for index in range(1200)])


EVERY = [*JOURNEYS, crossing_slot, slot_in_one_page, long_list]


@pytest.mark.parametrize("journey", EVERY)
def test_no_byte_is_fetched_twice(journey: Journey) -> None:
    rig = Rig()
    reads = Reads(rig)
    journey(rig)
    assert reads.total
    assert reads.twice() == []


@pytest.mark.parametrize("journey", EVERY)
def test_what_changes_after_a_look_has_no_effect(journey: Journey) -> None:
    """For every n: the guest changes what the n-th read saw, and nobody notices."""
    plain = Rig()
    expected = tee_sees(plain)
    count = Reads(plain)
    journey(plain)
    for strike in range(1, count.total + 1):
        rig = Rig()
        seen = tee_sees(rig)
        reads = Reads(rig)
        reads.after = lambda number, pieces, rig=rig, strike=strike: (
            scramble(rig, pieces) if number == strike else None
        )
        journey(rig)
        assert seen == expected, f"the TEE notices a change after read {strike}"
        assert rig.host.pins == plain.host.pins
        assert rig.info() == plain.info()


def test_a_list_that_changes_to_other_good_pages() -> None:
    """The guest swaps an entry for another page of its own as soon as the list was read."""
    rig = Rig()
    reads = Reads(rig)
    other = RAM + 0x60_000

    def swap(number: int, pieces: list[tuple[int, int]]) -> None:
        if number == 2:  # the first look was at the message
            rig.put_list(RAM + 0xA_000, [other, other])

    reads.after = swap
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        address = struct.unpack_from("<Q", rig.shadow(), 40)[0]
        seen.append(set(struct.unpack_from("<2Q", rig.host.memory(address & ~0xFFF))))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.register(0x55, [RAM + 0x50_000, RAM + 0x51_000])
    assert seen == [set(rig.host.pins)]


def test_results_follow_the_message_that_was_sent() -> None:
    """Another processor turns an input value into an output while the TEE works."""
    rig = Rig()
    rig.put(RAM, msg(1, params=[(1, 5, 6, 7), (2, 0, 0, 0)]))

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        rig.put(RAM + 32, struct.pack("<Q", 2))
        rig.put(RAM + 64, struct.pack("<Q", 1))
        struct.pack_into("<3Q", rig.shadow(), 40, 11, 12, 13)
        struct.pack_into("<3Q", rig.shadow(), 72, 21, 22, 23)
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.call(RPC_ARG, 0, RAM, 0)
    assert rig.message(RAM, 2)[8:] == (2, 5, 6, 7, 1, 21, 22, 23)


def test_results_do_not_follow_what_the_tee_makes_of_the_message() -> None:
    """The TEE marks the translated input buffer as an output value: its address stays here."""
    rig = Rig()
    rig.put(RAM, msg(1, params=[(9, RAM + 0x50_000, 64, 7), (3, 1, 2, 3)]))

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        struct.pack_into("<Q", rig.shadow(), 32, 2)
        struct.pack_into("<4Q", rig.shadow(), 64, 1, 31, 32, 33)
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.call(RPC_ARG, 0, RAM, 0)
    assert rig.message(RAM, 2)[8:] == (9, RAM + 0x50_000, 64, 7, 3, 31, 32, 33)


@pytest.mark.parametrize("left", [0, 1, 3, 127, 128, 0xFFFF_FFFF])
def test_what_was_taken_is_released_whatever_count_the_tee_leaves(left: int) -> None:
    rig = Rig()
    params = [(9, RAM + 0x50_000 + index * PAGE_SIZE, 64, 7) for index in range(3)]
    rig.put(RAM, msg(1, params=params))

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        assert rig.pinned() == 3
        struct.pack_into("<I", rig.shadow(), 28, left)
        return (0, 0, 0, 0)

    rig.host.script = [script]
    assert rig.call(RPC_ARG, 0, RAM, 0)[0] == 0
    assert not rig.pinned()
    assert rig.info() == (0, 0, 0, 0)


def test_the_tee_never_gets_a_page_that_the_guest_can_write() -> None:
    """Message, page list and RPC buffer: all of them are mediator memory."""
    rig = Rig()
    mine = {rig.host.pa(0, RAM + index * PAGE_SIZE) for index in range(2048)}
    rig.put_list(LIST, [RAM + 0x50_000])
    rig.put(RAM, msg(1, params=[(0x209, LIST, 64, 7)]))
    lists = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        assert regs[1] << 32 | regs[2] not in mine
        lists.append(struct.unpack_from("<Q", rig.shadow(), 40)[0])
        return (smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)

    rig.host.script = [script, answer()]
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0)
    rig.call(RETURN, 0, RAM + 0x8000, 1, 0, 5)
    assert lists[0] in rig.host.shadows
    sent = rig.host.sent[-1]
    assert sent[1] << 32 | sent[2] in rig.host.shadows


def allocation_answered(size: int) -> tuple[Rig, int]:
    """SHM_ALLOC asked with 4096 bytes and answered with ``size``; the list is of scattered pages."""
    rig = Rig(MediatorSettings(limits=Limits(buffer_pages=8)))
    rig.put(RAM, msg(1))
    rig.host.script = [request(msg(6, ret=GENERIC, params=[(1, 0, 4096, 8)]))]
    rig.call(RPC_ARG, 0, RAM, 0)
    rig.put_list(LIST, [RAM + 0x50_000 + index * 3 * PAGE_SIZE for index in range(8)])
    rig.put(RAM + 32, msg(6, params=[(0x20A, LIST | 0x100, size, 0x55)]))
    return rig, -(-(size + 0x100) // PAGE_SIZE)


@pytest.mark.parametrize("size", [1, 4096 - 0x100, 4096, 3 * 4096, 8 * 4096 - 0x100])
def test_the_pages_of_an_allocation_are_those_of_the_answered_size(size: int) -> None:
    rig, pages = allocation_answered(size)
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        _, address, length, _ = struct.unpack_from("<4Q", rig.shadow(), 64)
        words = struct.unpack_from(f"<{pages}Q", rig.host.memory(address & ~0xFFF))
        seen.append((length, sorted(words)))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.call(RETURN, 0, 0, 1)
    assert seen == [(size, sorted(rig.host.pins))]
    assert rig.info() == (0, 1, pages, 0)


@pytest.mark.parametrize("count", [5, 100, 127, 128, 0xFFFF_FFFF])
def test_an_answer_beyond_its_room_is_a_generic_error(count: int) -> None:
    """Nothing behind the RPC argument's room changes, whatever count the guest writes."""
    rig = Rig()
    rig.put(RAM, msg(1))
    rig.host.script = [request(msg(3, ret=GENERIC, params=[(2, 0, 0, 0)]))]
    rig.call(RPC_ARG, 0, RAM, 0)
    before = bytes(rig.shadow()[32 + 32 + 4 * 32 :])
    rig.put(RAM + 32, b"\xff" * (PAGE_SIZE - 32))
    rig.put(RAM + 32, struct.pack("<8I", 3, 0, 0, 0, 0, 0, 0, count))
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        page = rig.shadow()
        seen.append((struct.unpack_from("<I", page, 32 + 20)[0], bytes(page[32 + 32 + 4 * 32 :])))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert seen == [(GENERIC, before)]
