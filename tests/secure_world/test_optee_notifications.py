# SPDX-License-Identifier: BSD-2-Clause
"""Asynchronous notifications at register level, per partition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secure_world import events
from secure_world.notification import Notifications
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from tests.secure_world import support as s
from tests.secure_world.support import Normal, Scripted

ENABLE, GET = smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF, smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE
VALID, PENDING = 1, 2


def value(n: Normal) -> tuple[int, int]:
    a0, a1, a2, _ = n.raw(GET)
    assert a0 == 0
    return a1, a2


def test_bottom_half_as_recorded() -> None:
    monitor = Scripted()
    n = Normal(monitor=monitor)
    assert not n.world.notify(0)
    assert n.raw(ENABLE)[0] == 0
    assert n.world.notify(0)
    assert monitor.notifications == 1
    assert value(n) == (0, VALID)
    assert value(n) == (0, 0)
    reply = n.call(msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF)
    assert (reply.a0, *reply.result) == (0, 0, 0)
    assert n.of(events.BottomHalf) == [(0,)]


def test_result_fields_are_not_written() -> None:
    n = Normal()
    for cmd in (msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF, msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF):
        n.bus.writes.clear()
        _, registers = n.start(s.message(cmd))
        assert registers[0] == 0
        assert n.bus.writes == []


def test_stop() -> None:
    n = Normal()
    n.raw(ENABLE)
    assert n.call(msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF).a0 == 0
    assert not n.world.notify(0)
    n.raw(ENABLE)
    assert n.world.notify(0)


def test_values_come_lowest_first_and_once() -> None:
    n = Normal()
    n.raw(ENABLE)
    for v in (0x41, 0, 7, 7, 63):
        assert n.world.notify(0, v)
    assert [value(n) for _ in range(5)] == [
        (0, VALID | PENDING),
        (7, VALID | PENDING),
        (63, VALID | PENDING),
        (0x41, VALID),
        (0, 0),
    ]


def test_not_built() -> None:
    n = Normal(SecureWorldSettings(virtualization=False, async_notifications=False))
    for cmd in (msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF, msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF):
        assert n.call(cmd).a0 == smc.OPTEE_SMC_RETURN_EBADCMD


def test_per_partition() -> None:
    a = Normal(SecureWorldSettings())
    b = Normal(world=a.world, bus=a.bus, client=2)
    a.raw(ENABLE)
    assert a.world.notify(1, 5)
    assert not a.world.notify(2, 5)
    assert not a.world.notify(3, 5)
    assert value(b) == (0, 0)
    assert value(a) == (5, VALID)


@given(st.lists(st.integers(-3, 70)), st.sets(st.integers(0, 63)))
def test_take_returns_what_was_set_and_is_not_masked(sent: list[int], masked: set[int]) -> None:
    state = Notifications(66)
    for v in sorted(masked):
        state.mask(v, True)
    for v in sent:
        assert state.set(v) == (0 <= v <= 66 and v not in masked)
    expected = sorted({v for v in sent if 0 <= v <= 66} - masked)
    taken = []
    while True:
        v, flags = state.take()
        if not flags & VALID:
            assert (v, flags) == (0, 0)
            break
        taken.append(v)
        assert bool(flags & PENDING) == (len(taken) < len(expected))
    assert taken == expected
    for v in sorted(masked):
        assert state.mask(v, False) == (v in sent)


def test_allocation() -> None:
    state = Notifications(66)
    assert [state.allocate(4) for _ in range(4)] == [1, 2, 3, -1]
    state.set(2)
    state.free(2)
    assert state.take() == (0, 0)
    assert state.allocate(4) == 2
    state.free(0)
    assert state.allocate(4) == -1
