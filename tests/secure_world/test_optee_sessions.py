# SPDX-License-Identifier: BSD-2-Clause
"""Sessions and TA instances: numbers, life, panics, one thread at a time."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

import pytest

from secure_world import events
from secure_world.settings import SecureWorldSettings
from secure_world.ta import TaRegistry
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import Normal

TA, TEE = tee.TEE_ORIGIN_TRUSTED_APP, tee.TEE_ORIGIN_TEE
DEAD = (tee.TEE_ERROR_TARGET_DEAD, TEE)
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
WAIT, SEND = rpc.OPTEE_RPC_NOTIFICATION_WAIT, rpc.OPTEE_RPC_NOTIFICATION_SEND
SLEEP = 1


@pytest.fixture
def n() -> Normal:
    return Normal()


def test_device_enumeration_as_at_probe(n: Normal) -> None:
    session = n.session(s.DEVICES)
    assert session == 1
    sized = n.invoke(session, 0, [(0xA, 0, 0, 0)])
    assert sized.result == (tee.TEE_ERROR_SHORT_BUFFER, TA)
    assert sized.params[0] == (0xA, 0, 0x10, 0)
    cookie, address = n.buffer(4096)
    assert n.invoke(session, 0, [(6, 0, 0x10, cookie)]).result == (0, TA)
    assert n.get(address, 16) == s.INVOKE_TESTS.bytes
    assert n.invoke(session, 1, [(0xA, 0, 0, 0)]).result == (0, TA)
    assert n.invoke(session, 1, [(9, 0, 0, 0)]).ret == tee.TEE_ERROR_BAD_PARAMETERS
    assert n.invoke(session, 2, [(0xA, 0, 0, 0)]).ret == tee.TEE_ERROR_NOT_IMPLEMENTED
    assert n.unregister(cookie).result == (0, 0)
    assert n.close(session).result == (0, TEE)
    assert n.session(s.DEVICES) == 1


def test_the_list_of_devices_is_a_setting() -> None:
    ids = (s.ECHO.bytes, s.CLOCK.bytes), (s.LOCKER.bytes,)
    n = Normal(SecureWorldSettings(virtualization=False, devices=ids))
    session = n.session(s.DEVICES)
    cookie, address = n.buffer(4096)
    for function, expected in enumerate(ids):
        reply = n.invoke(session, function, [(6, 0, 4096, cookie)])
        assert (reply.ret, reply.params[0][2]) == (0, 16 * len(expected))
        assert n.get(address, 16 * len(expected)) == b"".join(expected)


def test_numbers_follow_the_last_opened_one(n: Normal) -> None:
    assert [n.session(s.ARITHMETIC) for _ in range(3)] == [1, 2, 3]
    n.close(2)
    assert n.session(s.ARITHMETIC) == 4
    n.close(4)
    n.close(3)
    assert n.session(s.ARITHMETIC) == 2
    assert n.of(events.SessionOpened)[0] == (0, 1, s.ARITHMETIC.bytes)
    assert n.of(events.SessionClosed) == [(0, 2), (0, 4), (0, 3)]


def test_numbers_wrap_and_skip_zero_and_those_in_use(n: Normal) -> None:
    first = n.session(s.ARITHMETIC)
    partition = n.world.partition(0)
    assert partition is not None
    table = partition.sessions.sessions
    table[0xFFFF_FFFF] = table.pop(first)
    assert n.session(s.ARITHMETIC) == 1
    table[0xFFFF_FFFF] = table.pop(0xFFFF_FFFF)
    assert n.session(s.ARITHMETIC) == 2


def test_an_instance_for_each_session_or_one_for_all(n: Normal) -> None:
    for _ in range(2):
        n.session(s.ECHO)
    assert [c for c, _ in n.rpcs].count(rpc.OPTEE_RPC_CMD_LOAD_TA) == 4
    n.rpcs.clear()
    sessions = [n.session(s.ECHO_SHARED) for _ in range(3)]
    assert [c for c, _ in n.rpcs].count(rpc.OPTEE_RPC_CMD_LOAD_TA) == 2
    for session in sessions:
        n.close(session)
    n.rpcs.clear()
    n.session(s.ECHO_SHARED)
    assert [c for c, _ in n.rpcs].count(rpc.OPTEE_RPC_CMD_LOAD_TA) == 2


class Life(s.TrustedApplication):
    """Writes down what happens to it."""

    uuid = UUID("22222222-2222-4222-8222-222222222222")
    pseudo = True
    log: ClassVar[list[str]] = []
    fail = 0

    async def create(self, env: s.TaEnvironment) -> int:
        self.log.append("create")
        return self.fail

    async def destroy(self, env: s.TaEnvironment) -> None:
        self.log.append("destroy")

    async def open_session(self, env: s.TaEnvironment, params: s.Params) -> int:
        self.log.append(f"open {env.identity.login} {env.identity.uuid.hex()[:4]}")
        env.data = env.session_id
        return params.value(0).a if params.types else 0

    async def close_session(self, env: s.TaEnvironment) -> None:
        self.log.append(f"close {env.data}")


def life(**flags: object) -> tuple[Normal, list[str]]:
    cls = type("Life", (Life,), {"uuid": Life.uuid, "log": [], **flags})
    n = Normal(registry=TaRegistry([cls]))
    return n, cls.log  # type: ignore[attr-defined]


class TestEntryPoints:
    def test_order(self) -> None:
        n, log = life()
        first = n.session(Life.uuid)
        n.session(Life.uuid)
        n.close(first)
        assert log == ["create", "open 0 0000", "create", "open 0 0000", "close 1", "destroy"]

    def test_single_instance(self) -> None:
        n, log = life(single_instance=True, multi_session=True)
        first, second = n.session(Life.uuid), n.session(Life.uuid)
        n.close(first)
        n.close(second)
        n.session(Life.uuid)
        assert log == [
            *["create", "open 0 0000", "open 0 0000", "close 1", "close 2", "destroy"],
            *["create", "open 0 0000"],
        ]

    def test_keep_alive(self) -> None:
        n, log = life(single_instance=True, multi_session=True, keep_alive=True)
        n.close(n.session(Life.uuid))
        n.close(n.session(Life.uuid))
        assert log.count("create") == 1
        assert "destroy" not in log

    def test_one_session_only(self) -> None:
        n, _ = life(single_instance=True)
        session = n.session(Life.uuid)
        reply = n.open(Life.uuid)
        assert (*reply.result, reply.session) == (tee.TEE_ERROR_BUSY, TEE, 0)
        n.close(session)
        assert n.session(Life.uuid) == 1

    def test_a_refused_open_closes_nothing(self) -> None:
        n, log = life()
        reply = n.open(Life.uuid, [(1, tee.TEE_ERROR_BUSY, 0, 0)])
        assert (*reply.result, reply.session) == (tee.TEE_ERROR_BUSY, TA, 0)
        assert log == ["create", "open 0 0000", "destroy"]
        assert n.of(events.SessionOpened) == []

    def test_a_refused_create(self) -> None:
        n, log = life(fail=tee.TEE_ERROR_OUT_OF_MEMORY)
        assert n.open(Life.uuid).result == (tee.TEE_ERROR_OUT_OF_MEMORY, TA)
        assert log == ["create"]

    @pytest.mark.parametrize(("login", "shown"), [(0, "0000"), (1, "cdab"), (0x8000_0000, "0000")])
    def test_identity(self, login: int, shown: str) -> None:
        n, log = life()
        params = [s.uuid_param(Life.uuid), (s.META, 0xABCD, 7, login)]
        assert n.call(0, params).result == (0, TA)
        assert log[-1] == f"open {login} {shown}"


class TestPanic:
    def test_the_session_is_dead_but_can_be_closed(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        reply = n.invoke(session, 7, [(1, 7, 0x2000, 0)])
        assert (*reply.result, reply.params[0]) == (*DEAD, (1, 7, 0x2000, 0))
        assert n.of(events.TaPanicked) == [(0, s.ECHO.bytes, 7)]
        assert n.invoke(session, 0).result == DEAD
        assert n.close(session).result == (0, TEE)
        assert n.invoke(session, 0).result == (tee.TEE_ERROR_BAD_PARAMETERS, TEE)

    def test_values_are_written_back_cut(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        reply = n.invoke(session, 7, [(3, 1 << 32 | 7, 1 << 33, 5)])
        assert reply.params[0] == (3, 7, 0, 5)

    def test_all_sessions_of_a_single_instance_die_and_a_new_one_is_loaded(self, n: Normal) -> None:
        first, second = n.session(s.PANICKER), n.session(s.PANICKER)
        assert n.invoke(first, 0, [(1, 5, 0, 0)]).result == DEAD
        assert n.invoke(second, 3).result == DEAD
        n.rpcs.clear()
        third = n.session(s.PANICKER)
        assert [c for c, _ in n.rpcs].count(rpc.OPTEE_RPC_CMD_LOAD_TA) == 2
        assert n.invoke(third, 3).result == (0, TA)
        assert [n.close(x).result for x in (first, second, third)] == [(0, TEE)] * 3

    def test_in_open(self, n: Normal) -> None:
        reply = n.open(s.PANICKER, [(1, 9, 0, 0)])
        assert (*reply.result, reply.session) == (*DEAD, 0)
        assert n.session(s.PANICKER) == 1

    def test_in_close(self, n: Normal) -> None:
        session = n.session(s.PANICKER)
        assert n.invoke(session, 2).result == (0, TA)
        assert n.close(session).result == (0, TEE)
        assert len(n.of(events.TaPanicked)) == 1

    def test_an_access_outside_a_buffer(self, n: Normal) -> None:
        session = n.session(s.PANICKER)
        cookie, _ = n.buffer(16)
        assert n.invoke(session, 1, [(5, 0, 16, cookie)]).result == DEAD
        assert n.of(events.TaPanicked)[0][2] == tee.TEE_ERROR_ACCESS_DENIED

    def test_an_access_that_the_bus_refuses_is_a_breach_too(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        cookie, address = n.buffer(16)
        n.bus.denied.add(address >> 12)
        assert n.invoke(session, 1, [(7, 0, 16, cookie)]).result == DEAD
        assert n.of(events.Breach) == [(0, address, 16, False)]

    def test_references_are_dropped(self, n: Normal) -> None:
        session = n.session(s.PANICKER)
        cookie, _ = n.buffer(16)
        n.invoke(session, 1, [(5, 0, 16, cookie)])
        assert n.unregister(cookie).ret == 0

    @pytest.mark.parametrize("error", [ValueError, KeyError, RecursionError, AssertionError])
    def test_whatever_a_ta_raises(self, error: type[Exception]) -> None:
        async def invoke(self: object, env: object, command: int, params: object) -> int:
            raise error("a mistake")

        cls = type(
            "Wrong", (s.TrustedApplication,), {"uuid": s.ECHO, "pseudo": True, "invoke": invoke}
        )
        n = Normal(registry=TaRegistry([cls]))
        session = n.session(s.ECHO)
        assert n.invoke(session, 0).result == DEAD

    @pytest.mark.parametrize("result", [None, "0", 1.5])
    def test_a_result_that_is_none(self, result: object) -> None:
        async def invoke(self: object, env: object, command: int, params: object) -> object:
            return result

        cls = type(
            "Wrong", (s.TrustedApplication,), {"uuid": s.ECHO, "pseudo": True, "invoke": invoke}
        )
        n = Normal(registry=TaRegistry([cls]))
        assert n.invoke(n.session(s.ECHO), 0).result == DEAD

    def test_an_error_raised_is_a_result(self) -> None:
        class Refusing(s.TrustedApplication):
            uuid = s.ECHO
            pseudo = True

            async def invoke(self, env: s.TaEnvironment, command: int, params: s.Params) -> int:
                raise s.TeeError(0x1_FFFF_0001)

        n = Normal(registry=TaRegistry([Refusing]))
        assert n.invoke(n.session(s.ECHO), 0).result == (0xFFFF_0001, TA)


def notification(n: Normal, page: int, count: int = 4) -> tuple[int, int]:
    """Operation and value of the NOTIFICATION behind a message."""
    at = page + 32 + 32 * count
    assert int.from_bytes(n.get(at, 4), "little") == rpc.OPTEE_RPC_CMD_NOTIFICATION
    return int.from_bytes(n.get(at + 40, 8), "little"), int.from_bytes(n.get(at + 48, 8), "little")


def invocation(session: int, func: int, *params: s.Param) -> bytes:
    return s.message(1, [*params, *[s.NOTHING] * (4 - len(params))], func=func, session=session)


class TestOneAtATime:
    def test_calls_into_a_single_instance_wait_for_each_other(self, n: Normal) -> None:
        one, two = n.session(s.ECHO_SHARED), n.session(s.ECHO_SHARED)
        first, registers = n.start(invocation(one, 4, (1, 100, 0, 0)))
        assert registers == (CMD, 0, 0, 0)
        second, registers = n.start(invocation(two, 0))
        assert registers == (CMD, 0, 0, 1)
        assert notification(n, second) == (WAIT, 0x41)
        # Coming back without a send: it waits again.
        assert n.resume(1) == (CMD, 0, 0, 1)
        assert notification(n, second) == (WAIT, 0x41)
        assert n.resume(0) == (CMD, 0, 0, 0)
        assert notification(n, first) == (SEND, 0x41)
        assert n.resume(1) == (0, 0, 0, 1 * 0)
        assert n.resume(0) == (0, 0, 0, 0)

    def test_different_single_instances_share_the_lock(self, n: Normal) -> None:
        one, two = n.session(s.ECHO_SHARED), n.session(s.PANICKER)
        n.start(invocation(one, 4, (1, 100, 0, 0)))
        page, registers = n.start(invocation(two, 3))
        assert registers[0] == CMD
        assert notification(n, page) == (WAIT, 0x41)

    def test_instances_of_their_own_do_not_wait(self, n: Normal) -> None:
        one, two = n.session(s.ECHO), n.session(s.ECHO)
        n.start(invocation(one, 4, (1, 100, 0, 0)))
        assert n.invoke(two, 0).result == (0, TA)

    def test_the_same_session_is_used_by_one_thread(self, n: Normal) -> None:
        session = n.session(s.CLOCK)
        first, registers = n.start(invocation(session, SLEEP, (1, 1, 0, 0)))
        second, waiting = n.start(invocation(session, 3, (2, 0, 0, 0)))
        assert notification(n, second) == (WAIT, 0x41)
        registers = n.resume(0)
        assert notification(n, first) == (SEND, 0x41)
        assert n.resume(registers[3])[0] == 0
        assert n.resume(waiting[3])[0] == 0

    def test_an_invoke_that_waits_for_a_session_being_closed_fails(self) -> None:
        n = Normal(SecureWorldSettings(virtualization=False, threads=4))
        session = n.session(s.CLOCK)
        first, _ = n.start(invocation(session, SLEEP, (1, 1, 0, 0)))
        close, closing = n.start(s.message(msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=session))
        late, waiting = n.start(invocation(session, 3, (2, 0, 0, 0)))
        assert (closing[3], waiting[3]) == (1, 2)
        assert notification(n, close, 0) == (WAIT, 0x41)
        registers = n.resume(0)
        assert notification(n, first) == (SEND, 0x41)
        assert n.resume(registers[3])[0] == 0
        # The closing thread tells the late one, and waits until that one is out of the way.
        assert n.resume(1)[0] == CMD
        assert notification(n, close, 0) == (SEND, 0x42)
        assert n.resume(1)[0] == CMD
        assert notification(n, close, 0) == (WAIT, 0x41)
        assert n.resume(2)[0] == CMD
        assert notification(n, late) == (SEND, 0x41)
        assert n.resume(2)[0] == 0
        assert s.Reply((0, 0, 0, 0), n.get(late, 160)).result == (tee.TEE_ERROR_BAD_PARAMETERS, TEE)
        assert n.resume(1)[0] == 0
        assert s.Reply((0, 0, 0, 0), n.get(close, 32)).result == (0, TEE)
        assert n.world.suspended(0) == ()

    def test_two_opens_of_one_ta_load_it_once(self, n: Normal) -> None:
        data = s.message(0, [s.uuid_param(s.ECHO_SHARED), (s.META, 0, 0, 0)])
        first, one = n.start(data)
        second, two = n.start(data)
        assert (one[0], two) == (CMD, (CMD, 0, 0, 1))
        assert notification(n, second, 2) == (WAIT, 0x41)
        while True:
            at = first + 96
            command = int.from_bytes(n.get(at, 4), "little")
            if command == rpc.OPTEE_RPC_CMD_NOTIFICATION:
                break
            one = n.serve_one(at, one)
        assert notification(n, first, 2) == (SEND, 0x41)
        # The loader still has the instance; the other waits for that lock now.
        assert n.resume(1)[0] == 0
        assert n.serve(first + 96, one)[0] == 0
        replies = [s.Reply((0, 0, 0, 0), n.get(page, 96)) for page in (first, second)]
        assert [r.result for r in replies] == [(0, TA), (0, TA)]
        assert sorted(r.session for r in replies) == [1, 2]
        assert [c for c, _ in n.rpcs].count(rpc.OPTEE_RPC_CMD_LOAD_TA) == 2

    def test_a_failed_load_lets_the_waiting_open_try_itself(self, n: Normal) -> None:
        n.images.clear()
        data = s.message(0, [s.uuid_param(s.ECHO_SHARED), (s.META, 0, 0, 0)])
        first, one = n.start(data)
        second, two = n.start(data)
        one = n.serve_one(first + 96, one)
        assert notification(n, first, 2) == (SEND, 0x41)
        one = n.serve_one(first + 96, one)
        assert one[0] == 0
        assert n.serve(second + 96, two)[0] == 0
        for page in (first, second):
            reply = s.Reply((0, 0, 0, 0), n.get(page, 96))
            assert reply.result == (tee.TEE_ERROR_ITEM_NOT_FOUND, TEE)
        assert [c for c, _ in n.rpcs].count(rpc.OPTEE_RPC_CMD_LOAD_TA) == 2

    def test_waiting_for_an_instance_that_dies(self, n: Normal) -> None:
        class Sleepy(s.TrustedApplication):
            uuid = s.ECHO
            pseudo = True
            single_instance = True
            multi_session = True

            async def invoke(self, env: s.TaEnvironment, command: int, params: s.Params) -> int:
                await env.sleep(1)
                env.panic(1)

        m = Normal(registry=TaRegistry([Sleepy]))
        one, two = m.session(s.ECHO), m.session(s.ECHO)
        first, _ = m.start(invocation(one, 0))
        second, waiting = m.start(invocation(two, 0))
        assert waiting[0] == CMD
        assert m.serve(first + 160, m.resume(0))[0] == 0
        assert m.serve(second + 160, m.resume(1))[0] == 0
        for page in (first, second):
            assert s.Reply((0, 0, 0, 0), m.get(page, 160)).result == DEAD
