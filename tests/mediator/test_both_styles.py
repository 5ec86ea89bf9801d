# SPDX-License-Identifier: BSD-2-Clause
"""Both call styles in one guest, and attacks on the buffer that carries a message in flight.

The rule behind all of it: a call holds the pages that its message was found in until its results are
written. What happens to the name, to stage 2 or to what lies there meanwhile is the guest's affair
and changes no other call. ``docs/concepts/memory.md`` has the words for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from mediator.host import PAGE_MASK, PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, Script, answer, msg, request

ARG, RPC_ARG = smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG
REGD, RETURN = smc.OPTEE_SMC_CALL_WITH_REGD_ARG, smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
CMD, INTR = smc.OPTEE_SMC_RETURN_RPC_CMD, smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
ALLOC, FREE = smc.OPTEE_SMC_RETURN_RPC_ALLOC, smc.OPTEE_SMC_RETURN_RPC_FREE
DISABLE, ENABLE = smc.OPTEE_SMC_DISABLE_SHM_CACHE, smc.OPTEE_SMC_ENABLE_SHM_CACHE
EBADADDR, ENOTAVAIL = smc.OPTEE_SMC_RETURN_EBADADDR, smc.OPTEE_SMC_RETURN_ENOTAVAIL
GENERIC, BAD_PARAMETERS = 0xFFFF0000, 0xFFFF0006
GET_TIME, NOTIFICATION, SUSPEND, SHM_ALLOC, SHM_FREE = 3, 4, 5, 6, 7
CARRIER, OTHER = 0x1_0000_2480, 0x1_0000_5000
OLD = [RAM + 0x50_000, RAM + 0x33_000]
NEW = [RAM + 0x60_000, RAM + 0x71_000]
LIST, PAYLOAD = RAM + 0x20_000, RAM + 0x80_000
BODY = msg(1, params=[(3, 1, 2, 3)])
OWN_THREAD = 0x1_0000
RESULT, VALUES = 0x1234_5678, (11, 12, 13)

INSIDE = 0x180
HEADER_CROSSES = PAGE_SIZE - 24
PARAM_CROSSES = PAGE_SIZE - 48
ARGUMENT_CROSSES = PAGE_SIZE - 80
POSITIONS = (INSIDE, HEADER_CROSSES, PARAM_CROSSES, ARGUMENT_CROSSES)


def pieces(pages: list[int], position: int, length: int) -> list[tuple[int, int]]:
    """Where ``length`` bytes from byte ``position`` of a buffer lie: (IPA, bytes)."""
    found = []
    while length:
        room = min(length, PAGE_SIZE - (position & PAGE_MASK))
        found.append((pages[position >> 12] + (position & PAGE_MASK), room))
        position, length = position + room, length - room
    return found


def put_slot(rig: Rig, pages: list[int], position: int, data: bytes) -> None:
    for ipa, room in pieces(pages, position, len(data)):
        rig.put(ipa, data[:room])
        data = data[room:]


def get_slot(rig: Rig, pages: list[int], position: int, length: int) -> bytes:
    return b"".join([rig.get(ipa, room) for ipa, room in pieces(pages, position, length)])


def regd(rig: Rig, position: int, cookie: int = CARRIER) -> tuple[int, ...]:
    return rig.call(REGD, cookie >> 32, cookie & 0xFFFF_FFFF, position)


def back(rig: Rig, thread: int = 1, *more: int) -> tuple[int, ...]:
    return rig.call(RETURN, *(more[:2] or (0, 0)), thread, *more[2:])


def pinned(rig: Rig, pages: list[int]) -> list[int]:
    return [rig.host.pins[rig.host.pa(0, page)] for page in pages]


def done(page: memoryview) -> Script:
    """The TEE ends the call whose message lies in ``page``, with results."""

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        struct.pack_into("<2I", page, 20, RESULT, 4)
        struct.pack_into("<3Q", page, 40, *VALUES)
        return (0, 0, 0, 0)

    return script


def results_at(rig: Rig, pages: list[int], position: int) -> bool:
    """Whether the results of :func:`done` are there."""
    fields = struct.unpack("<8I4Q", get_slot(rig, pages, position, 64))
    return (fields[5], fields[6], fields[9:]) == (RESULT, 4, VALUES)


def begin(rig: Rig, position: int, script: Script, body: bytes = BODY) -> memoryview:
    """A call whose message is in the carrier, up to its first RPC; the TEE's page of it."""
    put_slot(rig, OLD, position, body)
    rig.host.script = [script]
    out = regd(rig, position)
    assert out[0] >> 16 == 0xFFFF, hex(out[0])
    return rig.shadow()


def asks(command: int, *words: int) -> Script:
    params = [(1, *words)] if words else []
    return request(msg(command, ret=GENERIC, params=params))  # type: ignore[arg-type]


# --- every point of a call that is suspended ------------------------------------------------------

State = Callable[[Rig, int], memoryview]


def interrupted(rig: Rig, position: int) -> memoryview:
    return begin(rig, position, answer(INTR, 0, 0, 1))


def in_alloc(rig: Rig, position: int) -> memoryview:
    return begin(rig, position, answer(ALLOC, 0xA0, 0, 1))


def in_free(rig: Rig, position: int) -> memoryview:
    return begin(rig, position, answer(FREE, 0, 5, 1))


def in_time(rig: Rig, position: int) -> memoryview:
    return begin(rig, position, asks(GET_TIME))


def in_wait(rig: Rig, position: int) -> memoryview:
    page = begin(rig, position, asks(NOTIFICATION, 0, 0x41, 0))
    assert len(rig.tee.waits()) == 1
    return page


def in_held_wait(rig: Rig, position: int) -> memoryview:
    rig.host.script = [answer(0, 0x64, 0x44, 4)]
    assert rig.call(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, 0)[0] == 0
    page = begin(rig, position, asks(NOTIFICATION, 0, 0x41, 0))
    assert rig.tee.waits()[0].held
    # The wait has ended when the guest comes back.
    rig.host.script = [answer(0, 0x41, smc.OPTEE_SMC_ASYNC_NOTIF_VALID)]
    rig.tee.notification_interrupt()
    return page


def in_allocation(rig: Rig, position: int) -> memoryview:
    return begin(rig, position, asks(SHM_ALLOC, 0, PAGE_SIZE, 8))


def in_allocation_walk(rig: Rig, position: int) -> memoryview:
    """The guest's memory for SHM_ALLOC is being walked, and the walk was stopped."""
    page = in_allocation(rig, position)
    rig.put_list(LIST, [PAYLOAD] * 600)
    put_slot(rig, OLD, position + 64, msg(SHM_ALLOC, params=[(0x20A, LIST, 600 * PAGE_SIZE, 0x77)]))
    rig.host.preempt = [True]
    assert back(rig)[0] == INTR
    return page


def in_free_again(rig: Rig, position: int) -> memoryview:
    """The guest is asked to free what could not be translated."""
    page = in_allocation(rig, position)
    put_slot(rig, OLD, position + 64, msg(SHM_ALLOC, params=[(0x20A, 0x7000_0000, 64, 0x77)]))
    assert back(rig)[0] == CMD
    assert get_slot(rig, OLD, position + 64, 4) == bytes([SHM_FREE, 0, 0, 0])
    return page


STATES: tuple[State, ...] = (
    interrupted,
    in_alloc,
    in_free,
    in_time,
    in_wait,
    in_held_wait,
    in_allocation,
    in_allocation_walk,
    in_free_again,
)


def rig_with_carrier() -> Rig:
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    assert rig.register(CARRIER, OLD)[0] == 0
    return rig


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("state", STATES)
def test_the_carrier_goes_and_its_name_comes_back_in_every_state(
    state: State, position: int
) -> None:
    """Unregistered and registered anew, on other pages, while the first call is in flight."""
    rig = rig_with_carrier()
    page = state(rig, position)
    rig.host.script = []
    assert rig.unregister(CARRIER)[0] == 0
    assert rig.message(RAM + 0x1000, 1)[5] == 0
    assert regd(rig, position)[0] == EBADADDR, "its name is gone at once"
    assert pinned(rig, OLD) == [1, 1], "its pages are not"
    assert rig.register(CARRIER, NEW)[0] == 0
    assert rig.message(RAM + 0x1000, 1)[5] == 0, "the name is free at once"
    put_slot(rig, NEW, position, BODY)
    rig.host.script = [answer(INTR, 0, 0, 2)]
    assert regd(rig, position)[3] == 2, "a call in the new one"
    second = rig.shadow()
    before = get_slot(rig, NEW, 0, 2 * PAGE_SIZE)
    rig.host.script = [done(page)]
    assert back(rig)[0] == 0
    assert results_at(rig, OLD, position)
    assert get_slot(rig, NEW, 0, 2 * PAGE_SIZE) == before, "nothing of it in the new pages"
    assert pinned(rig, OLD) == [0, 0]
    rig.host.script = [done(second)]
    assert back(rig, 2)[0] == 0
    assert results_at(rig, NEW, position)
    left = rig.info()[1:3]
    # What the guest gave the TEE with SHM_ALLOC outlives the call.
    assert left == ((2, 602) if state is in_allocation_walk else (1, 2))


@pytest.mark.parametrize("position", POSITIONS)
def test_before_the_tee_while_its_own_buffer_is_walked(position: int) -> None:
    """The call was stopped before the TEE saw anything of it."""
    rig = rig_with_carrier()
    rig.put_list(LIST, [PAYLOAD] * 600)
    body = msg(1, params=[(0x20A, LIST, 600 * PAGE_SIZE, 0x77)])
    put_slot(rig, OLD, position, body)
    rig.host.preempt = [True]
    assert regd(rig, position)[3] == OWN_THREAD
    assert rig.unregister(CARRIER)[0] == 0
    assert rig.register(CARRIER, NEW)[0] == 0
    assert pinned(rig, OLD) == [1, 1]
    seen: list[bytes] = []

    def ends(rig: Rig, regs: tuple[int, ...]) -> Answer:
        page = rig.shadow()
        seen.append(bytes(page[:32]))
        struct.pack_into("<2I", page, 20, RESULT, 4)
        return (0, 0, 0, 0)

    rig.host.script = [ends]
    assert back(rig, OWN_THREAD)[0] == 0
    assert seen == [body[:32]], "as it was read when it began"
    assert struct.unpack("<I", get_slot(rig, OLD, position + 20, 4)) == (RESULT,)
    assert pinned(rig, OLD) == [0, 0]
    assert rig.info() == (0, 1, 2, 0)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("nth", [1, 2])
def test_during_the_write_back(position: int, nth: int) -> None:
    """Another processor unregisters the carrier between the parts of the results."""
    rig = rig_with_carrier()
    put_slot(rig, OLD, position, BODY)
    write = rig.host.write_pinned
    struck: list[list[int]] = []
    writes = 0

    def racing(guest: int, pa: int, segments: list[tuple[int, bytes]]) -> None:
        nonlocal writes
        writes += 1
        if writes == nth:
            assert rig.unregister(CARRIER)[0] == 0
            struck.append(pinned(rig, OLD))
        write(guest, pa, segments)

    rig.host.write_pinned = racing  # type: ignore[method-assign, assignment]

    def ends(rig: Rig, regs: tuple[int, ...]) -> Answer:
        return done(rig.shadow())(rig, regs)

    rig.host.script = [ends]
    assert regd(rig, position)[0] == 0
    crosses = position in (HEADER_CROSSES, PARAM_CROSSES)
    assert struck == ([[1, 1]] if nth == 1 or crosses else [])
    assert results_at(rig, OLD, position)
    held = 0 if struck else 1
    assert pinned(rig, OLD) == [held, held]


@pytest.mark.parametrize("suspended", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_call_unregisters_what_it_lies_in(position: int, suspended: bool) -> None:
    """Its own UNREGISTER: the results still arrive, then the pages go."""
    rig = rig_with_carrier()
    put_slot(rig, OLD, position, msg(5, params=[(5, 0, 0, CARRIER)]))
    rig.host.script = [answer(INTR, 0, 0, 1) if suspended else answer()]
    out = regd(rig, position)
    if suspended:
        assert out[0] == INTR
        assert pinned(rig, OLD) == [1, 1]
        out = back(rig)
    assert out[0] == 0
    assert struct.unpack("<I", get_slot(rig, OLD, position + 20, 4)) == (0,)
    assert not rig.pinned()
    assert rig.info() == (0, 0, 0, 0)
    assert regd(rig, position)[0] == EBADADDR


def test_a_refused_unregister_of_its_own_carrier_leaves_it() -> None:
    rig = rig_with_carrier()
    put_slot(rig, OLD, INSIDE, msg(5, params=[(5, 0, 0, CARRIER)]))

    def refuses(rig: Rig, regs: tuple[int, ...]) -> Answer:
        struct.pack_into("<2I", rig.shadow(), 20, BAD_PARAMETERS, 4)
        return (0, 0, 0, 0)

    rig.host.script = [refuses]
    assert regd(rig, INSIDE)[0] == 0
    assert pinned(rig, OLD) == [1, 1]
    assert rig.info() == (0, 1, 2, 0)


# --- carriers and messages that overlap -----------------------------------------------------------


@pytest.mark.parametrize("order", [(CARRIER, OTHER), (OTHER, CARRIER)])
def test_the_same_pages_under_two_cookies(order: tuple[int, int]) -> None:
    """Two names, two sets of pins: each call holds those of the name that it came by."""
    rig = rig_with_carrier()
    assert rig.register(OTHER, OLD[::-1], offset=0x40)[0] == 0
    first = begin(rig, INSIDE, answer(INTR, 0, 0, 1))
    place = PAGE_SIZE - 0x40 + 0x400
    put_slot(rig, OLD, 0x400, BODY)
    rig.host.script = [answer(INTR, 0, 0, 2)]
    assert regd(rig, place, OTHER)[3] == 2
    second = rig.shadow()
    for cookie in order:
        assert rig.unregister(cookie)[0] == 0
        assert pinned(rig, OLD) == [2, 2]
    for thread, page, left in ((2, second, 1), (1, first, 0)):
        rig.host.script = [done(page)]
        assert back(rig, thread)[0] == 0
        assert pinned(rig, OLD) == [left, left]
    assert results_at(rig, OLD, INSIDE)
    assert results_at(rig, OLD, 0x400)
    assert rig.info() == (0, 0, 0, 0)


@pytest.mark.parametrize("style", [ARG, RPC_ARG, REGD])
def test_two_calls_with_one_message(style: int) -> None:
    """The same bytes twice, by cookie and as ``style`` says: two snapshots, two calls, two results."""
    rig = rig_with_carrier()
    first = begin(rig, 0, answer(INTR, 0, 0, 1))
    rig.host.script = [answer(INTR, 0, 0, 2)]
    out = regd(rig, 0) if style == REGD else rig.call(style, 0, OLD[0], 0)
    assert out[3] == 2
    second = rig.shadow()
    assert bytes(first[:64]) == bytes(second[:64]) == BODY
    rig.host.script = [done(second)]
    assert back(rig, 2)[0] == 0
    assert results_at(rig, OLD, 0)
    assert bytes(first[:64]) == BODY, "what the TEE works on is nobody else's"
    rig.host.script = [answer()]
    assert back(rig)[0] == 0
    assert struct.unpack("<I", get_slot(rig, OLD, 20, 4)) == (0,)
    assert rig.info() == (0, 1, 2, 0)


@pytest.mark.parametrize("classic", [False, True])
def test_a_message_that_lies_in_the_rpc_argument_of_another_call(classic: bool) -> None:
    """Results fall into an answer before it was read: it is read once, and judged by the record."""
    rig = rig_with_carrier()
    asked = msg(GET_TIME, ret=GENERIC, params=[(2, 0, 0, 0)])
    arguments: list[memoryview] = []
    if classic:
        rig.put(RAM, msg(1))
        rig.host.script = [answer(ALLOC, 0xA0, 0, 1)]
        assert rig.call(ARG, 0, RAM, 0)[0] == ALLOC

        def asks_in_its_page(rig: Rig, regs: tuple[int, ...]) -> Answer:
            arguments.append(rig.host.memory(regs[1] << 32 | regs[2]))
            arguments[0][: len(asked)] = asked
            return (CMD, 0, 0x55, 1)

        rig.host.script = [asks_in_its_page]
        assert back(rig, 1, OLD[0] >> 32, OLD[0] & 0xFFFF_FFFF, 0, 0x55)[0] == CMD
        at = 0
    else:
        arguments.append(begin(rig, INSIDE, request(asked))[64:])
        at = INSIDE + 64
    assert get_slot(rig, OLD, at, len(asked)) == asked
    # A message that would be a good answer to an SHM_ALLOC, which nobody asked for.
    rig.put_list(LIST, [PAYLOAD])
    put_slot(rig, OLD, at, msg(SHM_ALLOC, params=[(0x20A, LIST, PAGE_SIZE, 9)]))
    rig.host.script = [answer()]
    assert regd(rig, at)[0] == 0
    assert pinned(rig, [PAYLOAD]) == [0], "temporary memory of the second call"
    seen: list[tuple[int, ...]] = []

    def sees(rig: Rig, regs: tuple[int, ...]) -> Answer:
        seen.append(struct.unpack("<8I4Q", arguments[0][:64]))
        return (0, 0, 0, 0)

    rig.host.script = [sees]
    assert back(rig)[0] == 0
    assert seen[0][0] == SHM_ALLOC, "what the guest wrote, which the TEE can judge"
    assert seen[0][8:] == (0x20A, 0, PAGE_SIZE, 9), "but no address of it"
    assert rig.info()[:3] == (0, 1, 2), "nothing was taken for a GET_TIME"


# --- stage 2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ro", "none"])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_carrier_leaves_stage_2(position: int, kind: str) -> None:
    """By cookie the pinned pages count; by address, in the same page, stage 2 does."""
    rig = rig_with_carrier()
    page = begin(rig, position, asks(GET_TIME))
    by_address = RAM + 0x5000
    rig.put(by_address, BODY)
    rig.host.script = [answer(INTR, 0, 0, 2)]
    assert rig.call(RPC_ARG, 0, by_address, 0)[0] == INTR
    for ipa in (*OLD, by_address):
        rig.host.kinds[0, ipa] = kind
    put_slot(rig, OLD, position + 64, msg(GET_TIME))
    rig.host.script = [done(page)]
    assert back(rig)[0] == 0
    assert results_at(rig, OLD, position), "into the page that was pinned"
    assert back(rig, 2)[0] == EBADADDR
    put_slot(rig, OLD, INSIDE, BODY)
    assert regd(rig, INSIDE)[0] == 0, "a new call by cookie is still possible"
    assert rig.unregister(CARRIER)[0] == 0
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()


# --- the cache of RPC arguments, and registers of the other style -----------------------------------


def test_the_cache_is_emptied_under_calls_of_both_styles() -> None:
    """DISABLE_SHM_CACHE hands out the classic call's buffer; the other call never had one."""
    rig = rig_with_carrier()
    page = begin(rig, INSIDE, asks(GET_TIME))
    rig.put(RAM, msg(1))
    rig.host.script = [answer(ALLOC, 0xA0, 0, 2)]
    assert rig.call(ARG, 0, RAM, 0)[0] == ALLOC
    rig.host.script = [answer(CMD, 0, 0x55, 2)]
    assert back(rig, 2, 0, RAM + 0x8000, 0, 0x55)[0] == CMD
    assert rig.info() == (2, 1, 2, 1)
    rig.host.script = [answer(0, 0, 0x55), answer(ENOTAVAIL)]
    assert rig.call(DISABLE)[:3] == (0, 0, 0x55)
    assert rig.call(DISABLE)[0] == ENOTAVAIL
    assert rig.info() == (2, 1, 2, 0), "released before the guest hears of it"
    rig.put(RAM + 0x8000, msg(GET_TIME))
    reads = rig.host.calls["read_guest"]
    assert back(rig, 2)[0] == 0, "its answer has no place any more"
    assert rig.host.calls["read_guest"] == reads
    assert rig.call(ENABLE)[0] == 0
    put_slot(rig, OLD, INSIDE + 64, msg(GET_TIME))
    rig.host.script = [done(page)]
    assert back(rig)[0] == 0
    assert results_at(rig, OLD, INSIDE)
    assert rig.info() == (0, 1, 2, 0)


@pytest.mark.parametrize("state", [interrupted, in_free, in_time, in_wait, in_allocation])
def test_registers_of_an_alloc_answer_to_another_rpc(state: State) -> None:
    """An address and a cookie where none were asked for: no pin, no buffer, nothing sent on."""
    rig = rig_with_carrier()
    page = state(rig, INSIDE)
    sent = rig.host.sent[-1]
    rig.host.script = [done(page)]
    assert back(rig, 1, 0, RAM + 0x8000, 0, 0x55)[0] == 0
    expected = (0, 5) if state is in_free else (0, 0)
    assert rig.host.sent[-1] == (RETURN, *expected, 1, 0, 0, 0, 1)
    assert rig.host.sent[-1] != sent
    assert rig.info() == (0, 1, 2, 0)
    assert pinned(rig, [RAM + 0x8000]) == [0]


def test_an_alloc_that_is_answered_like_a_command() -> None:
    """x1 to x5 zero, the RPC argument filled in: the allocation failed, as far as the TEE is told."""
    rig = rig_with_carrier()
    page = in_alloc(rig, INSIDE)
    rig.put_list(LIST, [PAYLOAD])
    put_slot(rig, OLD, INSIDE + 64, msg(SHM_ALLOC, params=[(0x20A, LIST, PAGE_SIZE, 9)]))
    rig.host.script = [done(page)]
    assert back(rig, 1, 0, 0, 0, 0)[0] == 0
    assert rig.host.sent[-1] == (RETURN, 0, 0, 1, 0, 0, 0, 1)
    assert not any(page[64:128]), "nobody asked for what the guest wrote there"
    assert rig.info() == (0, 1, 2, 0)


@pytest.mark.parametrize("position", [0, INSIDE])
def test_an_rpc_buffer_in_the_page_of_its_own_carrier(position: int) -> None:
    """ALLOC in a call that came by cookie, answered with the page that its message lies in."""
    rig = rig_with_carrier()
    page = begin(rig, position, answer(ALLOC, 0xA0, 0, 1))
    rig.host.script = [answer(INTR, 0, 0, 1)]
    assert back(rig, 1, 0, OLD[0], 0, 0x55)[0] == INTR
    assert pinned(rig, OLD) == [2, 1]
    rig.host.script = [answer(FREE, 0, 0x55, 1)]
    assert back(rig)[0] == FREE
    assert pinned(rig, OLD) == [1, 1]
    rig.host.script = [done(page)]
    assert back(rig)[0] == 0
    assert results_at(rig, OLD, position)
    assert rig.info() == (0, 1, 2, 0)


@pytest.mark.parametrize("thread_of", ["classic", "argument"])
def test_threads_of_two_styles_are_answered_on_each_others_processor(thread_of: str) -> None:
    """Only the thread id says whose answer it is: the record of that call decides what it means."""
    rig = rig_with_carrier()
    page = begin(rig, INSIDE, asks(GET_TIME))
    rig.put(RAM, msg(1))
    rig.host.script = [answer(ALLOC, 0xA0, 0, 2)]
    assert rig.call(ARG, 0, RAM, 0)[0] == ALLOC
    if thread_of == "classic":
        # Meant for thread 1's GET_TIME, sent as thread 2: an ALLOC answered with nothing.
        rig.host.script = [answer(INTR, 0, 0, 2)]
        assert back(rig, 2)[0] == INTR
        assert rig.host.sent[-1][1:6] == (0, 0, 2, 0x77, 0x77)
        assert rig.info()[3] == 0
    else:
        # Meant for thread 2's ALLOC, sent as thread 1.
        rig.host.script = [answer(INTR, 0, 0, 1)]
        assert back(rig, 1, 0, RAM + 0x8000, 0, 0x55)[0] == INTR
        assert rig.host.sent[-1][1:6] == (0, 0, 1, 0, 0)
        assert rig.info()[3] == 0
        rig.host.script = [answer(INTR, 0, 0, 2)]
        assert back(rig, 2, 0, RAM + 0x8000, 0, 0x55)[0] == INTR
        assert rig.info()[3] == 1
        rig.host.script = [answer(FREE, 0, 0x55, 2)]
        back(rig, 2)
    rig.host.script = [done(page), answer()]
    assert back(rig, 1)[0] == 0
    assert back(rig, 2)[0] == 0
    assert rig.info() == (0, 1, 2, 0)
