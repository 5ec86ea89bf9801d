# SPDX-License-Identifier: BSD-2-Clause
"""What a patient guest tries, one thing after another: states that meet in ways no driver makes.

Each story is a sentence of the reference or of our decisions, at a point where two rules touch.
"""

from __future__ import annotations

import struct

import pytest

from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, Script, answer, msg, request, results

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
REGD = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
ALLOC = smc.OPTEE_SMC_RETURN_RPC_ALLOC
FREE = smc.OPTEE_SMC_RETURN_RPC_FREE
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
EBADADDR = smc.OPTEE_SMC_RETURN_EBADADDR
ERESUME = smc.OPTEE_SMC_RETURN_ERESUME
BAD_PARAMETERS = 0xFFFF0006
OUT_OF_MEMORY = 0xFFFF000C
GENERIC = 0xFFFF0000
COMMS = 2
OTHER = RAM + 0x3000
LISTS = RAM + 0xB000
BUFFER = RAM + 0x50_000
COOKIE = 0xFFFF_0000_0000_2480


@pytest.fixture
def rig() -> Rig:
    return Rig()


def suspended(rig: Rig, data: bytes, thread: int = 1, at: int = RAM, guest: int = 0) -> None:
    rig.put(at, data, guest)
    rig.host.script = [answer(INTR, 0, 0, thread)]
    assert rig.call(RPC_ARG, 0, at, guest=guest)[0] == INTR


def empty(rig: Rig) -> None:
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()


def test_one_page_as_message_list_and_buffer(rig: Rig) -> None:
    """The message is its own page list, and lists itself as the buffer: one copy is what counts."""
    words = msg(1, params=[(0x20A, RAM, 8, COOKIE)])
    rig.put(RAM, words)
    first = struct.unpack_from("<Q", words)[0]
    assert rig.call(RPC_ARG, 0, RAM)[0] == 0
    assert first == 1, "the list's first word is command 1: page 0, which is not there"
    assert rig.message(RAM, 1)[5:7] == (BAD_PARAMETERS, COMMS)
    empty(rig)


def test_one_page_listed_many_times_is_pinned_as_often(rig: Rig) -> None:
    assert rig.register(COOKIE, [BUFFER] * 5)[0] == 0
    assert rig.host.pins == {rig.host.pa(0, BUFFER): 5}
    assert rig.unregister(COOKIE)[0] == 0
    empty(rig)


def test_a_buffer_may_hold_the_page_of_the_message(rig: Rig) -> None:
    """Copy-back goes to a page that is shared with the TEE as well."""
    assert rig.register(COOKIE, [RAM])[0] == 0
    rig.put(RAM, msg(1))
    rig.host.script = [results(0x1234)]
    assert rig.call(RPC_ARG, 0, RAM)[0] == 0
    assert rig.message(RAM, 0)[5] == 0x1234
    rig.unregister(COOKIE)
    empty(rig)


def test_a_message_in_its_own_carrier_unregisters_it(rig: Rig) -> None:
    """UNREGISTER by REGD_ARG of the carrier: its results still arrive, then the pages go."""
    assert rig.register(COOKIE, [BUFFER])[0] == 0
    rig.put(BUFFER, msg(5, ret=7, params=[(5, 0, 0, COOKIE)]))
    rig.host.script = [results(0)]
    assert rig.call(REGD, COOKIE >> 32, COOKIE & 0xFFFF_FFFF, 0)[0] == 0
    assert rig.message(BUFFER, 1)[5:7] == (0, 4)
    empty(rig)


def test_a_message_in_its_own_carrier_registers_another_under_the_same_name(rig: Rig) -> None:
    assert rig.register(COOKIE, [BUFFER])[0] == 0
    rig.put_list(LISTS, [BUFFER + PAGE_SIZE])
    rig.put(BUFFER, msg(4, params=[(0x20A, LISTS, PAGE_SIZE, COOKIE)]))
    entries = len(rig.host.sent)
    assert rig.call(REGD, COOKIE >> 32, COOKIE & 0xFFFF_FFFF, 0)[0] == 0
    assert rig.message(BUFFER, 1)[5:7] == (BAD_PARAMETERS, COMMS)
    assert len(rig.host.sent) == entries
    assert rig.info() == (0, 1, 1, 0)


def test_a_refused_unregistration_of_a_carrier_in_use_keeps_its_name(rig: Rig) -> None:
    assert rig.register(COOKIE, [BUFFER])[0] == 0
    rig.put(BUFFER, msg(5, params=[(5, 0, 0, COOKIE)]))
    rig.host.script = [results(BAD_PARAMETERS, 3)]
    assert rig.call(REGD, COOKIE >> 32, COOKIE & 0xFFFF_FFFF, 0)[0] == 0
    assert rig.info() == (0, 1, 1, 0)
    rig.unregister(COOKIE)
    empty(rig)


@pytest.mark.parametrize("command", [0, 1, 2, 3, 5])
def test_a_null_reference_with_a_live_name_releases_nothing(rig: Rig, command: int) -> None:
    """A null memref names no memory, whatever stands in its reference (class 29)."""
    assert rig.register(COOKIE, [BUFFER])[0] == 0
    rig.put(RAM, msg(command, params=[(2, 0, 0, 0), (0x20A, 0, 64, COOKIE), (0xA, 0, 64, COOKIE)]))
    assert rig.call(RPC_ARG, 0, RAM)[0] == 0
    assert rig.info() == (0, 1, 1, 0)


def test_an_answer_of_the_tee_with_an_error_in_x0_registers_nothing(rig: Rig) -> None:
    """The message says success because the guest wrote so; the TEE has never looked at it."""
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT)]
    assert rig.register(COOKIE, [BUFFER])[0] == smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
    empty(rig)


def test_an_answer_of_the_tee_with_an_error_in_x0_unregisters_nothing(rig: Rig) -> None:
    assert rig.register(COOKIE, [BUFFER])[0] == 0
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT)]
    assert rig.unregister(COOKIE)[0] == smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
    assert rig.info() == (0, 1, 1, 0)


@pytest.mark.parametrize("first", [1, 2])
def test_two_calls_with_one_message_page(rig: Rig, first: int) -> None:
    """Results of both go to it, each by its own snapshot; neither sees the other's command."""
    suspended(rig, msg(1, params=[(2, 0, 0, 0)]), 1)
    suspended(rig, msg(0, params=[(5, 0, 0, 0), (3, 1, 2, 3)]), 2)
    rig.put(RAM, b"\xee" * 128)
    for thread in (first, 3 - first):
        rig.host.script = [answer()]
        assert rig.call(RETURN, 0, 0, thread)[0] == 0
    assert rig.get(RAM, 8) == b"\xee" * 8, "command and function are the guest's"
    assert rig.get(RAM + 64 + 8, 24) == struct.pack("<3Q", 1, 2, 3)
    empty(rig)


def test_a_thread_id_of_the_mediator_is_free_again_at_once() -> None:
    """Two walks that were stopped have two ids; the first that ends gives its one to a third."""
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    rig.put_list(LISTS, [BUFFER] * 600)
    threads = []
    for number in range(3):
        rig.host.preempt = [True]
        rig.put(RAM, msg(1, params=[(0x20A, LISTS, 600 * PAGE_SIZE, COOKIE + number)]))
        out = rig.call(RPC_ARG, 0, RAM)
        assert out[0] == INTR
        threads.append(out[3])
        if number == 1:
            assert rig.call(RETURN, 0, 0, threads[0])[0] == 0
    assert threads == [0x1_0000, 0x1_0001, 0x1_0000]
    for thread in threads[1:]:
        assert rig.call(RETURN, 0, 0, thread)[0] == 0
        assert rig.call(RETURN, 0, 0, thread)[0] == ERESUME
    empty(rig)


def test_a_list_that_links_into_itself_at_an_offset(rig: Rig) -> None:
    """The low bits of a link are dropped: the second page is the first, read once more."""
    rig.put(LISTS, struct.pack("<511Q", *[BUFFER] * 511) + struct.pack("<Q", LISTS | 0xFF8))
    rig.put(RAM, msg(4, params=[(0x20A, LISTS, 600 * PAGE_SIZE, COOKIE)]))
    assert rig.call(RPC_ARG, 0, RAM)[0] == 0
    assert rig.info() == (0, 1, 600, 0)
    rig.unregister(COOKIE)
    empty(rig)


@pytest.mark.parametrize("entries", [511, 1022])
def test_the_last_link_of_a_full_list_is_not_followed(rig: Rig, entries: int) -> None:
    rig.put_list(LISTS, [BUFFER] * entries)
    rig.put(LISTS + (entries // 511 - 1) * PAGE_SIZE + 4088, struct.pack("<Q", 0xDEAD_0000))
    rig.put(RAM, msg(4, params=[(0x20A, LISTS, entries * PAGE_SIZE, COOKIE)]))
    assert rig.call(RPC_ARG, 0, RAM)[0] == 0
    assert rig.info() == (0, 1, entries, 0)


def test_the_same_rpc_page_under_two_cookies(rig: Rig) -> None:
    """It is pinned twice, and each FREE lets one of them go."""
    rig.put(RAM, msg(1))
    rig.host.script = [answer(ALLOC, 0xA0, 0, 1)]
    rig.call(ARG, 0, RAM)
    for cookie in (1, 2):
        rig.host.script = [answer(ALLOC, 0xA0, 0, 1)]
        assert rig.call(RETURN, 0, BUFFER, 1, 0, cookie)[0] == ALLOC
    assert rig.host.pins == {rig.host.pa(0, BUFFER): 2}
    for left, cookie in ((1, 1), (0, 2)):
        rig.host.script = [answer(FREE, 0, cookie, 1)]
        assert rig.call(RETURN, 0, 0, 1)[0] == FREE
        assert rig.pinned() == left


def test_the_guest_cannot_choose_what_it_answers(rig: Rig) -> None:
    """ALLOC is answered as ALLOC, an interrupt as an interrupt: the record decides (class 25)."""
    rig.put(RAM, msg(1))
    rig.host.script = [answer(INTR, 0x11, 0x22, 1), answer()]
    rig.call(ARG, 0, RAM)
    rig.call(RETURN, 0, BUFFER, 1, 0, 7)
    assert rig.host.sent[-1][:6] == (RETURN, 0x11, 0x22, 1, 0, 0)
    empty(rig)


def shm_request(rig: Rig) -> None:
    rig.put(RAM, msg(1))
    rig.host.script = [request(msg(6, params=[(1, 1, PAGE_SIZE, 8)]))]
    assert rig.call(RPC_ARG, 0, RAM)[0] == CMD


def told(rig: Rig) -> tuple[list[tuple[int, ...]], Script]:
    """What the TEE finds in its argument when it is entered: the header and one parameter."""
    seen: list[tuple[int, ...]] = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        seen.append(struct.unpack_from("<8I4Q", rig.shadow(), 32))
        return (0, 0, 0, 0)

    return seen, script


@pytest.mark.parametrize("attr", [0x209, 0x20B, 0x9, 0xB])
def test_an_allocation_of_the_wrong_direction_is_none(rig: Rig, attr: int) -> None:
    shm_request(rig)
    rig.put_list(LISTS, [BUFFER])
    rig.put(RAM + 32, msg(6, params=[(attr, LISTS, PAGE_SIZE, COOKIE)]))
    seen, script = told(rig)
    rig.host.script = [script]
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert seen[0][9] == 0, "no address"
    empty(rig)


def test_an_allocation_with_an_error_is_none(rig: Rig) -> None:
    shm_request(rig)
    rig.put_list(LISTS, [BUFFER])
    rig.put(RAM + 32, msg(6, ret=1, params=[(0x20A, LISTS, PAGE_SIZE, COOKIE)]))
    seen, script = told(rig)
    rig.host.script = [script]
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert seen[0][5] == 1
    assert seen[0][9] == 0
    empty(rig)


def test_the_please_free_request_is_answered_by_whatever(rig: Rig) -> None:
    """The TEE learns of the failure, not of what the guest wrote into the mediator's own request."""
    shm_request(rig)
    rig.put(RAM + 32, msg(6, params=[(0x20A, RAM + PAGE_SIZE * 5000, PAGE_SIZE, COOKIE)]))
    assert rig.call(RETURN, 0, 0, 1)[0] == CMD
    assert rig.message(RAM + 32, 1)[:1] == (7,)
    assert rig.message(RAM + 32, 1)[8:11] == (1, 1, COOKIE)
    rig.put_list(LISTS, [BUFFER])
    rig.put(RAM + 32, msg(6, params=[(0x20A, LISTS, PAGE_SIZE, COOKIE)]))
    seen, script = told(rig)
    rig.host.script = [script]
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert (seen[0][5], seen[0][7]) == (GENERIC, 0)
    empty(rig)


def test_a_name_of_one_guest_is_nothing_in_the_other(rig: Rig) -> None:
    assert rig.register(COOKIE, [BUFFER], guest=0)[0] == 0
    rig.put(BUFFER, msg(1), guest=1)
    assert rig.call(REGD, COOKIE >> 32, COOKIE & 0xFFFF_FFFF, 0, guest=1)[0] == EBADADDR
    rig.host.script = [results(0)]
    rig.unregister(COOKIE, guest=1)
    assert rig.info(0) == (0, 1, 1, 0)
    assert rig.info(1) == (0, 0, 0, 0)


def test_quotas_count_what_two_kinds_hold_together() -> None:
    """Registered, temporary and allocated buffers share one cap; it is whole again afterwards."""
    rig = Rig(MediatorSettings(limits=Limits(buffers=2)))
    assert rig.register(COOKIE, [BUFFER])[0] == 0
    rig.put_list(LISTS, [BUFFER])
    suspended(rig, msg(1, params=[(0x20A, LISTS, 64, 1)]), 1)
    rig.put(OTHER, msg(1, params=[(0x20A, LISTS, 64, 2)]))
    assert rig.call(RPC_ARG, 0, OTHER)[0] == 0
    assert rig.message(OTHER, 1)[5:7] == (OUT_OF_MEMORY, COMMS)
    rig.host.script = [answer()]
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    rig.put(OTHER, msg(1, params=[(0x20A, LISTS, 64, 2)]))
    assert rig.call(RPC_ARG, 0, OTHER)[0] == 0
    assert rig.message(OTHER, 1)[5] == 0
    rig.unregister(COOKIE)
    empty(rig)
