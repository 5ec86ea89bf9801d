# SPDX-License-Identifier: BSD-2-Clause
"""Mutexes, condition variables, and unregistering what is in use."""

from __future__ import annotations

import struct

import pytest

from secure_world.settings import SecureWorldSettings
from secure_world.waiting import BoundCondition, TeeCondition
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import Normal

CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
WAIT, SEND = rpc.OPTEE_RPC_NOTIFICATION_WAIT, rpc.OPTEE_RPC_NOTIFICATION_SEND
HOLD, HOLD_SHARED, HOLD_ASLEEP, HOLD_SHARED_ASLEEP, WAIT_SIGNAL, SIGNAL = range(6)
MANY = SecureWorldSettings(virtualization=False, threads=8)


def hold(session: int, func: int, amount: int = 1, lock: int = 0) -> bytes:
    return s.message(1, [(1, amount, lock, 0)], func=func, session=session)


def request(n: Normal, page: int, count: int = 1) -> tuple[int, int, int]:
    """Command, and the two words of the first parameter, of the RPC behind a message."""
    at = page + 32 + 32 * count
    fields = struct.unpack("<8I4Q", n.get(at, 64))
    return fields[0], fields[9], fields[10]


def test_waiters_take_turns() -> None:
    n = Normal(MANY)
    sessions = [n.session(s.LOCKER) for _ in range(4)]
    pages = []
    for session in sessions:
        page, registers = n.start(hold(session, HOLD_ASLEEP))
        assert registers[0] == CMD
        pages.append(page)
    assert request(n, pages[0]) == (rpc.OPTEE_RPC_CMD_SUSPEND, 1, 0)
    for index in (1, 2, 3):
        assert request(n, pages[index]) == (rpc.OPTEE_RPC_CMD_NOTIFICATION, WAIT, 0x40 + index)
    for index in range(4):
        assert n.resume(index)[0] == (CMD if index < 3 else 0)
        if index < 3:
            assert request(n, pages[index]) == (rpc.OPTEE_RPC_CMD_NOTIFICATION, SEND, 0x41 + index)
            assert n.resume(index)[0] == 0
            assert n.resume(index + 1)[0] == CMD
            assert request(n, pages[index + 1])[0] == rpc.OPTEE_RPC_CMD_SUSPEND
    assert n.world.suspended(0) == ()


def test_a_resumption_before_the_send_just_waits_again() -> None:
    n = Normal(MANY)
    one, two = n.session(s.LOCKER), n.session(s.LOCKER)
    n.start(hold(one, HOLD_ASLEEP))
    page, _ = n.start(hold(two, HOLD))
    for _ in range(3):
        assert n.resume(1)[0] == CMD
        assert request(n, page) == (rpc.OPTEE_RPC_CMD_NOTIFICATION, WAIT, 0x41)


def test_a_send_is_remembered_while_the_waiter_is_away() -> None:
    n = Normal(MANY)
    one, two = n.session(s.LOCKER), n.session(s.LOCKER)
    n.start(hold(one, HOLD_ASLEEP))
    n.start(hold(two, HOLD))
    assert n.resume(0)[0] == CMD
    assert n.resume(0)[0] == 0
    assert n.resume(1)[0] == 0


def test_locks_of_different_names_are_different() -> None:
    n = Normal(MANY)
    one, two = n.session(s.LOCKER), n.session(s.LOCKER)
    n.start(hold(one, HOLD_ASLEEP, lock=1))
    assert n.start(hold(two, HOLD, lock=2))[1][0] == 0


def test_condition_variables() -> None:
    n = Normal(MANY)
    sessions = [n.session(s.LOCKER) for _ in range(4)]
    pages = []
    for session in sessions[:3]:
        page, registers = n.start(hold(session, WAIT_SIGNAL))
        assert registers[0] == CMD
        pages.append(page)
    # One signal: the signaller's unlock tells exactly one waiter.
    page, registers = n.start(hold(sessions[3], SIGNAL))
    assert request(n, page) == (rpc.OPTEE_RPC_CMD_NOTIFICATION, SEND, 0x40)
    assert n.resume(3)[0] == 0
    assert n.resume(1)[0] == CMD
    assert request(n, pages[1])[1:] == (WAIT, 0x41)
    assert n.resume(0)[0] == 0
    # Two: both remaining ones go on, each told by the one before.
    page, registers = n.start(hold(sessions[3], SIGNAL, 2))
    assert (registers[3], request(n, page)[1:]) == (0, (SEND, 0x41))
    assert n.resume(0)[0] == 0
    assert n.resume(1)[0] == CMD
    assert request(n, pages[1])[1:] == (SEND, 0x42)
    assert n.resume(1)[0] == 0
    assert n.resume(2)[0] == 0
    assert n.world.suspended(0) == ()


def test_a_signal_without_waiters_is_counted() -> None:
    n = Normal(MANY)
    one = n.session(s.LOCKER)
    assert n.start(hold(one, SIGNAL))[1][0] == 0
    assert n.start(hold(one, WAIT_SIGNAL))[1][0] == 0
    assert n.start(hold(one, WAIT_SIGNAL))[1][0] == CMD


class Sloppy(s.TrustedApplication):
    """Leaves with its locks held, in every way."""

    uuid = s.ECHO
    pseudo = True
    single_instance = True
    multi_session = True
    concurrent = True

    async def invoke(self, env: s.TaEnvironment, command: int, params: s.Params) -> int:
        mutex = env.mutex("m")
        await mutex.lock()
        if command == 1:
            env.panic(1)
        if command == 2:
            await env.condition("c").wait(object())  # type: ignore[arg-type]
        if command == 3:
            await env.mutex("other").unlock()
            await env.condition("c").wait(env.mutex("other"))
        return 0


@pytest.mark.parametrize("command", [0, 1, 2, 3])
def test_locks_do_not_outlive_the_call(command: int) -> None:
    registry = s.TaRegistry([Sloppy])
    n = Normal(MANY, registry=registry)
    one = n.session(s.ECHO)
    n.invoke(one, command)
    two = n.session(s.ECHO)
    assert n.invoke(two, 0).ret == 0
    assert n.rpcs == []


def test_a_condition_remembers_nothing_before_its_first_wait() -> None:
    condition = BoundCondition(TeeCondition(), None)  # type: ignore[arg-type]
    condition.signal()
    condition.broadcast()
    assert condition.condition.mutex is None


class TestUnregisterInUse:
    def test_the_carrier_of_the_message_waits_for_itself_for_ever(self) -> None:
        n = Normal()
        cookie, address = n.buffer(s.PAGE)
        n.put(address, s.message(msg.OPTEE_MSG_CMD_UNREGISTER_SHM, [(5, 0, 0, cookie)]))
        regd = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
        registers = n.raw(regd, cookie >> 32, cookie & s.M32, 0)
        for _ in range(4):
            assert registers == (CMD, 0, 0, 0)
            assert request(n, address) == (rpc.OPTEE_RPC_CMD_NOTIFICATION, WAIT, 0x40)
            registers = n.resume(0)

    def test_waits_for_the_last_user(self) -> None:
        n = Normal(MANY)
        session = n.session(s.CLOCK)
        cookie, _ = n.buffer(64)
        params = [(1, 5, 0, 0), (7, 0, 8, cookie)]
        # CLOCK.SLEEP wants one value only; SUSPEND comes from the echo TA, which ignores the rest.
        session = n.session(s.ECHO)
        user, _ = n.start(s.message(1, params, func=4, session=session))
        assert request(n, user, 2)[0] == rpc.OPTEE_RPC_CMD_SUSPEND
        page, registers = n.start(s.message(5, [(5, 0, 0, cookie)]))
        assert registers == (CMD, 0, 0, 1)
        assert request(n, page) == (rpc.OPTEE_RPC_CMD_NOTIFICATION, WAIT, 0x41)
        # While it waits, a second one is refused; the cookie may be registered anew.
        assert n.unregister(cookie).ret == tee.TEE_ERROR_BAD_PARAMETERS
        assert n.resume(1)[0] == CMD
        assert n.resume(0)[0] == CMD
        assert request(n, user, 2) == (rpc.OPTEE_RPC_CMD_NOTIFICATION, SEND, 0x41)
        assert n.resume(1)[0] == 0
        assert n.resume(0)[0] == 0
        partition = n.world.partition(0)
        assert partition is not None
        assert (partition.shm.live, partition.shm_waiters) == (0, 0)

    def test_a_carrier_in_flight_is_released_by_the_call_that_it_carries(self) -> None:
        n = Normal(MANY)
        session = n.session(s.CLOCK)
        cookie, address = n.buffer(s.PAGE)
        n.put(address, s.message(1, [(1, 5, 0, 0)], func=1, session=session))
        regd = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
        assert n.raw(regd, cookie >> 32, cookie & s.M32, 0)[0] == CMD
        page, waiting = n.start(s.message(5, [(5, 0, 0, cookie)]))
        assert waiting == (CMD, 0, 0, 1)
        # The argument behind the message went with its buffer: the SEND needs one of its own.
        registers = n.resume(0)
        assert registers == (smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 0)
        registers = n.serve(0, registers)
        assert registers == (0, 0, 0, 0)
        assert n.rpcs[-1] == (rpc.OPTEE_RPC_CMD_NOTIFICATION, ((1, SEND, 0x41, 0),))
        assert n.rpc_alloc == []
        assert n.serve(page + 64, n.resume(1)) == (0, 0, 0, 0)
        assert struct.unpack("<I", n.get(page + 20, 4)) == (0,)
