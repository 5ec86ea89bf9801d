# SPDX-License-Identifier: BSD-2-Clause
"""Parameters of open and invoke: types, bounds, null references, what is written back."""

from __future__ import annotations

from uuid import UUID

import pytest

from secure_world import events
from smccc.constants import optee_msg as msg
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import NOTHING, Normal, Param

TA, TEE = tee.TEE_ORIGIN_TRUSTED_APP, tee.TEE_ORIGIN_TEE
BAD = (tee.TEE_ERROR_BAD_PARAMETERS, TEE)
SECURITY = (tee.TEE_ERROR_SECURITY, TEE)
NONCONTIG = msg.OPTEE_MSG_ATTR_NONCONTIG
META = msg.OPTEE_MSG_ATTR_META
SUM, FILL, REVERSE, COPY, IS_NULL = range(5)


@pytest.fixture
def n() -> Normal:
    return Normal()


@pytest.mark.parametrize("attr", [4, 8, 0xC, 0xFF, 0x104, META | 1, META | 3, META])
def test_bad_types_and_meta(n: Normal, attr: int) -> None:
    session = n.session(s.ARITHMETIC)
    assert n.invoke(session, 0, [(attr, 1, 2, 3)]).result == BAD


def test_more_than_four(n: Normal) -> None:
    session = n.session(s.ARITHMETIC)
    reply = n.call(1, [(1, 1, 2, 0)] + [NOTHING] * 4, session=session)
    assert (reply.a0, *reply.result) == (0, *BAD)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_fewer_than_four(n: Normal, count: int) -> None:
    session = n.session(s.INVOKE_TESTS)
    assert n.call(1, [NOTHING] * count, session=session).result == (0, TA)


def test_unknown_session(n: Normal) -> None:
    assert n.invoke(1, 0).result == BAD
    assert n.invoke(0, 0).result == BAD
    assert n.close(7).result == (tee.TEE_ERROR_ITEM_NOT_FOUND, TEE)
    assert n.call(msg.OPTEE_MSG_CMD_CANCEL, session=7).result == BAD


@pytest.mark.parametrize("cmd", [msg.OPTEE_MSG_CMD_CLOSE_SESSION, msg.OPTEE_MSG_CMD_CANCEL])
def test_close_and_cancel_take_no_parameters(n: Normal, cmd: int) -> None:
    session = n.session(s.ARITHMETIC)
    assert n.call(cmd, [NOTHING], session=session).result == BAD
    assert n.call(cmd, session=session).result == (0, TEE)


class TestOpen:
    def test_needs_two_meta_parameters(self, n: Normal) -> None:
        uuid, client = s.uuid_param(s.ARITHMETIC), (s.META, 0, 0, 0)
        bad: list[list[Param]] = [
            [],
            [uuid],
            [uuid, NOTHING],
            [(1, *uuid[1:]), client],
            [uuid, (1, 0, 0, 0)],
            [(s.META | NONCONTIG, *uuid[1:]), client],
            [(META | 3, *uuid[1:]), client],
            [uuid, client, (s.META, 0, 0, 0)],
            [uuid, client] + [NOTHING] * 5,
        ]
        for params in bad:
            reply = n.call(0, params, session=77)
            assert (reply.a0, *reply.result, reply.session) == (0, *BAD, 0), params

    @pytest.mark.parametrize(
        ("login", "accepted"),
        [
            *[(value, True) for value in (0, 1, 2, 4, 5, 6, 0x8000_0000)],
            *[(value, False) for value in (3, 7, 0x8000_0001, 0xF000_0000)],
            (1 << 32, True),
        ],
    )
    def test_login(self, n: Normal, login: int, accepted: bool) -> None:
        reply = n.open(s.ARITHMETIC, login=login)
        assert reply.result == ((0, TA) if accepted else BAD)

    def test_parameters_reach_the_ta_and_its_error_comes_from_it(self, n: Normal) -> None:
        code = tee.TEE_ERROR_ACCESS_DENIED
        reply = n.open(s.PANICKER, [(1, code, 1, 0)])
        assert (*reply.result, reply.session) == (code, TA, 0)
        assert n.session(s.PANICKER) == 1

    def test_up_to_four_client_parameters(self, n: Normal) -> None:
        assert n.open(s.ARITHMETIC, [NOTHING] * 4).result == (0, TA)

    def test_missing_ta(self, n: Normal) -> None:
        other = UUID("deadbeef-5c1d-4f0e-9a55-0f1e2d3c4b5b")
        reply = n.open(other)
        assert (*reply.result, reply.session) == (tee.TEE_ERROR_ITEM_NOT_FOUND, TEE, 0)


class TestValues:
    def test_cut_to_32_bits_and_c_ignored(self, n: Normal) -> None:
        session = n.session(s.ARITHMETIC)
        reply = n.invoke(session, 0, [(1, 1 << 32 | 5, 7 << 40 | 6, 9), (2, 1, 2, 1 << 63)])
        assert reply.result == (0, TA)
        assert reply.params[0] == (1, 1 << 32 | 5, 7 << 40 | 6, 9)
        assert reply.params[1] == (2, 11, 0, 1 << 63)

    def test_outputs_are_cut_to_32_bits(self, n: Normal) -> None:
        session = n.session(s.ARITHMETIC)
        reply = n.invoke(session, 1, [(1, 1, 2, 0), (2, 0, 0, 0)])
        assert reply.params[1] == (2, 0xFFFF_FFFF, 1, 0)

    def test_an_error_of_the_ta_still_writes_outputs_back(self, n: Normal) -> None:
        session = n.session(s.ARITHMETIC)
        reply = n.invoke(session, 99, [(1, 0, 0, 0), (2, 5 << 32 | 7, 1 << 32, 3)])
        assert reply.result == (tee.TEE_ERROR_NOT_SUPPORTED, TA)
        assert reply.params[1] == (2, 7, 0, 3)

    def test_wrong_kind_panics_no_core(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        assert n.invoke(session, 3, [(0xA, 0, 0, 0)]).result == (tee.TEE_ERROR_TARGET_DEAD, TEE)


class TestTemporary:
    def test_pointer_zero_is_null_whatever_its_size(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        for size in (0, 1, 4096, 0xFFFF_FFFF_FFFF_FFFF):
            for attr in (9, 0xA, 0xB, 9 | NONCONTIG):
                reply = n.invoke(session, IS_NULL, [(attr, 0, size, 7), (2, 0, 0, 0)])
                assert reply.result == (0, TA)
                assert reply.params[1][1:3] == (1, 0)

    def test_contiguous_only_in_the_reserved_area(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        for address, expected in (
            (n.pages(), BAD),
            (s.SECURE, BAD),
            (s.RESERVED + 0x123, (0, TA)),
            (s.RESERVED + s.RESERVED_SIZE - 16, (0, TA)),
            (s.RESERVED + s.RESERVED_SIZE - 15, BAD),
            (s.RESERVED - 1, BAD),
        ):
            reply = n.invoke(session, REVERSE, [(0xB, address, 16, 5)])
            assert reply.result == expected, hex(address)

    def test_contiguous_content(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        n.put(s.RESERVED + 0x10, bytes(range(16)))
        assert n.invoke(session, REVERSE, [(0xB, s.RESERVED + 0x10, 16, 5)]).result == (0, TA)
        assert n.get(s.RESERVED + 0x10, 16) == bytes(range(16))[::-1]

    def test_a_list_is_registered_for_the_call_only(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        pages = [n.pages(), n.pages(2) + s.PAGE]
        n.put(pages[0] + 0xFF8, bytes(range(8)))
        n.put(pages[1], bytes(range(8, 16)))
        where = n.page_list(pages) | 0xFF8
        reply = n.invoke(session, REVERSE, [(0xB | NONCONTIG, where, 16, 0x1234)])
        assert reply.result == (0, TA)
        assert n.get(pages[0] + 0xFF8, 8) == bytes(range(8, 16))[::-1]
        assert n.unregister(0x1234).ret == tee.TEE_ERROR_BAD_PARAMETERS
        assert [e[3] for e in n.of(events.ShmRegistered)] == [True]
        assert len(n.of(events.ShmReleased)) == 1

    def test_a_bad_list(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        for entries in ([s.SECURE], [s.BASE + 8], [0], [s.PAST_RAM]):
            reply = n.invoke(session, REVERSE, [(0x20B, n.page_list(entries), 16, 1)])
            assert reply.result == BAD
        assert len(n.of(events.ShmRegistered)) == 0

    def test_nothing_of_the_good_one_remains_when_the_next_is_bad(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        cookie, _ = n.buffer(64)
        good = (0x209, n.page_list([n.pages()]), 16, 1)
        for bad in ((4, 0, 0, 0), (META | 1, 0, 0, 0), (5, 0, 16, 0xBAD), (0x209, s.SECURE, 1, 2)):
            n.events.clear()
            assert n.invoke(session, COPY, [(5, 0, 8, cookie), good, bad]).result == BAD
            assert len(n.of(events.ShmReleased)) == 1
        partition = n.world.partition(0)
        assert partition is not None
        assert [m.refs for m in partition.shm.by_cookie.values()] == [1]
        assert [m.maps for m in partition.shm.by_cookie.values()] == [0]


class TestRegistered:
    def test_bounds_are_the_pages(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        cookie, _ = n.buffer(5000, 0x10)
        room = 2 * s.PAGE - 0x10
        for offset, size, expected in (
            (4990, 11, (0, TA)),
            (0, room, (0, TA)),
            (0, room + 1, SECURITY),
            (room, 0, (0, TA)),
            (room + 1, 0, SECURITY),
            (room - 1, 1, (0, TA)),
            (1, 0xFFFF_FFFF_FFFF_FFFF, SECURITY),
            (0xFFFF_FFFF_FFFF_FFFF, 1, SECURITY),
            (0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, SECURITY),
        ):
            reply = n.invoke(session, REVERSE, [(7, offset, size, cookie)])
            assert reply.result == expected, (offset, size)

    def test_cookie_zero_is_null(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        reply = n.invoke(session, IS_NULL, [(5, 1 << 40, 1 << 50, 0), (2, 0, 0, 0)])
        assert (reply.result, reply.params[1][1:3]) == ((0, TA), (1, 0))

    def test_unknown_cookie(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        assert n.invoke(session, REVERSE, [(7, 0, 0, 0xBAD)]).result == BAD

    def test_content_across_pages(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        pages = [n.pages(2) + s.PAGE * (i % 2) for i in range(3)]
        cookie, reply = n.register(pages, 2 * s.PAGE + 100, 0x20)
        assert reply.ret == 0
        data = bytes(i * 7 % 251 for i in range(2 * s.PAGE + 100))
        n.put(pages[0] + 0x20, data[: s.PAGE - 0x20])
        n.put(pages[1], data[s.PAGE - 0x20 : 2 * s.PAGE - 0x20])
        n.put(pages[2], data[2 * s.PAGE - 0x20 :])
        summed = n.invoke(session, SUM, [(5, 0, len(data), cookie), (2, 0, 0, 0)])
        assert summed.params[1][1:3] == (sum(data), len(data))
        assert n.invoke(session, REVERSE, [(7, 0, len(data), cookie)]).result == (0, TA)
        back = data[::-1]
        assert n.get(pages[1], s.PAGE) == back[s.PAGE - 0x20 : 2 * s.PAGE - 0x20]

    def test_a_size_may_grow_beyond_the_buffer(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        cookie, address = n.buffer(10)
        n.put(address, bytes(10))
        reply = n.invoke(session, 6, [(6, 0, 10, cookie)])
        assert reply.result == (tee.TEE_ERROR_SHORT_BUFFER, TA)
        assert reply.params[0] == (6, 0, 100, cookie)
        assert n.get(address, 10) == bytes(10)

    def test_a_size_may_shrink(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        cookie, address = n.buffer(200)
        reply = n.invoke(session, 6, [(6, 0, 200, cookie)])
        assert (reply.result, reply.params[0]) == ((0, TA), (6, 0, 100, cookie))
        assert n.get(address, 101) == b"\x33" * 100 + b"\0"

    def test_the_same_memory_twice_in_order(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        cookie, address = n.buffer(3000)
        n.put(address, b"\x22" * 3000)
        reply = n.invoke(session, 1, [(7, 0, 3000, cookie), (7, 0x10, 0x20, cookie)])
        assert reply.result == (0, TA)
        assert n.get(address, 0x40) == b"\xdd" * 16 + b"\x22" * 32 + b"\xdd" * 16

    def test_input_sizes_are_not_written(self, n: Normal) -> None:
        session = n.session(s.MEMREFS)
        cookie, _ = n.buffer(64)
        n.bus.writes.clear()
        reply = n.invoke(session, IS_NULL, [(5, 0, 64, cookie), (2, 0, 0, 0)])
        assert reply.params[0] == (5, 0, 64, cookie)


def test_only_results_are_written(n: Normal) -> None:
    """One write: from ret to the last output. Without outputs just ret and ret_origin."""
    session = n.session(s.ECHO)
    n.bus.writes.clear()
    page, _ = n.start(s.message(1, [(1, 1, 2, 0), NOTHING], session=session))
    assert n.bus.writes == [(0, page + 20, 8)]
    n.bus.writes.clear()
    page, _ = n.start(s.message(1, [(3, 1, 2, 0), (1, 0, 0, 0), NOTHING], func=1, session=session))
    assert n.bus.writes == [(0, page + 20, 36)]


def test_echo_of_every_kind(n: Normal) -> None:
    session = n.session(s.ECHO)
    cookie, address = n.buffer(64)
    n.put(address, b"\x11" * 64)
    reply = n.invoke(session, 1, [(1, 1, 2, 0), (2, 0, 0, 0), (3, 3, 6, 0), (6, 0, 64, cookie)])
    assert reply.result == (0, TA)
    assert reply.params == [(1, 1, 2, 0), (2, 0xA1, 0xB1, 0), (3, 4, 8, 0), (6, 0, 64, cookie)]
    assert n.get(address, 64) == b"\x5a" * 64
    assert n.invoke(session, 3, [(1, 0xFFFF0006, 0, 0)]).result == (0xFFFF0006, TA)
    assert n.invoke(session, 99).result == (tee.TEE_ERROR_NOT_SUPPORTED, TA)


def test_arithmetic(n: Normal) -> None:
    session = n.session(s.ARITHMETIC)

    def run(func: int, a: int, b: int) -> tuple[int, ...]:
        reply = n.invoke(session, func, [(1, a, b, 0), (2, 0, 0, 0)])
        return (reply.ret, *reply.params[1][1:3])

    assert run(0, 0xFFFF_FFFF, 2) == (0, 1, 1)
    assert run(2, 0x1_0000, 0x1_0000) == (0, 0, 1)
    assert run(3, 17, 5) == (0, 3, 2)
    assert run(3, 17, 0) == (tee.TEE_ERROR_BAD_PARAMETERS, 0, 0)
    assert n.invoke(session, 0, [(1, 1, 1, 0)]).ret == tee.TEE_ERROR_BAD_PARAMETERS


def test_memory_reference_ta(n: Normal) -> None:
    session = n.session(s.MEMREFS)
    first, address = n.buffer(32)
    second, copy = n.buffer(32)
    assert n.invoke(session, FILL, [(6, 0, 32, first), (1, 0x41, 20, 0)]).params[0][2] == 20
    assert n.get(address, 21) == b"A" * 20 + b"\0"
    small = n.invoke(session, FILL, [(6, 0, 8, first), (1, 0x41, 20, 0)])
    assert (small.ret, small.params[0][2]) == (tee.TEE_ERROR_SHORT_BUFFER, 20)
    copied = n.invoke(session, COPY, [(5, 0, 20, first), (6, 0, 32, second)])
    assert (copied.ret, copied.params[1][2], n.get(copy, 20)) == (0, 20, b"A" * 20)
    short = n.invoke(session, COPY, [(5, 0, 20, first), (6, 0, 4, second)])
    assert (short.ret, short.params[1][2]) == (tee.TEE_ERROR_SHORT_BUFFER, 20)


def test_invoke_tests_like_the_recorded_ones(n: Normal) -> None:
    session = n.session(s.INVOKE_TESTS)
    assert n.invoke(session, 0).result == (0, TA)
    assert n.invoke(session, 1, [(3, 0x1000, 0x2000, 0)]).params[0] == (3, 0x3000, 0x2000, 0)
    reply = n.invoke(
        session,
        1,
        [(2, 0, 0, 0), (1, 0x2000, 0x4000, 0), (1, 0x3000, 0x6000, 0), (1, 0x4000, 0x8000, 0)],
    )
    assert reply.params[0] == (2, 0x9000, 0x12000, 0)
    cookie, address = n.buffer(64)
    n.put(address, bytes(range(64)))
    assert n.invoke(session, 1, [(7, 0, 64, cookie)]).result == (0, TA)
    assert n.get(address, 2) == bytes([0xE0, 1])
    assert n.invoke(session, 10, [(0xB, 0, 0, 0)]).result == (0, TA)
    assert n.invoke(session, 10, [(7, 0, 8, cookie)]).ret == tee.TEE_ERROR_BAD_PARAMETERS
    assert n.invoke(session, 9999).result == (tee.TEE_ERROR_BAD_PARAMETERS, TA)
