# SPDX-License-Identifier: BSD-2-Clause
"""The virtualization build: partitions, their life, and that they are strangers to each other."""

from __future__ import annotations

import pytest

from secure_world import events
from secure_world.fault import Registers4
from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import Normal, RamBus, Scripted

CREATED, DESTROYED = smc.OPTEE_SMC_VM_CREATED, smc.OPTEE_SMC_VM_DESTROYED
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
TWO = SecureWorldSettings(guests=2, reserved_shm=(s.RESERVED, s.RESERVED_SIZE))
OK, ENOTAVAIL, ERESUME = 0, 7, 3
BAD = (tee.TEE_ERROR_BAD_PARAMETERS, tee.TEE_ORIGIN_TEE)
KEPT = (0x1111, 0x2222, 0x3333)


def world(**changes: int) -> SecureWorld:
    settings = SecureWorldSettings(guests=changes.get("guests", 2))
    return SecureWorld(RamBus(1), settings)


def pair() -> tuple[Normal, Normal, Scripted, list[tuple[object, ...]]]:
    """Two guests on one secure world."""
    bus, monitor = RamBus(), Scripted()
    log: list[tuple[object, ...]] = []
    shared = SecureWorld(bus, TWO, monitor, log.append)
    return Normal(world=shared, bus=bus), Normal(world=shared, bus=bus, client=2), monitor, log


class TestClientIds:
    def test_the_hypervisor_may_make_fast_calls(self) -> None:
        w = world()
        assert w.smc(smc.OPTEE_SMC_CALLS_UID)[0] == 0x384FB3E0
        assert w.smc(smc.OPTEE_SMC_CALLS_COUNT)[0] == 14
        assert w.smc(smc.OPTEE_SMC_GET_THREAD_COUNT)[:2] == (0, 2)
        assert w.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES) == (0, 0xFC, 0x42, 4)
        assert w.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)[0] == 0

    @pytest.mark.parametrize("a7", [0, 1, 0x1_0000])
    def test_yielding_calls_need_a_guest(self, a7: int) -> None:
        w = world()
        for a0 in (0x32000004, 0x32000012, 0x32000013, 0x32000003, 0x32000005):
            assert w.smc(a0, *KEPT, 0, 0, 0, a7) == (ENOTAVAIL, 0, 0, 0)

    @pytest.mark.parametrize("a0", [smc.OPTEE_SMC_CALLS_UID, 0xB2001234, CREATED])
    def test_everything_of_an_unknown_guest_is_refused(self, a0: int) -> None:
        assert world().smc(a0, *KEPT, 0, 0, 0, 9) == (ENOTAVAIL, *KEPT)

    def test_a7_is_cut_to_16_bits(self) -> None:
        w = world()
        assert w.smc(CREATED, 1)[0] == OK
        for a7 in (1, 0x1_0001, 0xFFFF_0001, 0xDEAD_0000_0001):
            assert w.smc(smc.OPTEE_SMC_CALLS_UID, 0, 0, 0, 0, 0, 0, a7)[0] == 0x384FB3E0
            assert w.smc(0x32000004, 0, 1, 0, 0, 0, 0, a7)[0] == smc.OPTEE_SMC_RETURN_EBADADDR
        assert w.smc(smc.OPTEE_SMC_CALLS_UID, 0, 0, 0, 0, 0, 0, 0x1_0000)[0] == 0x384FB3E0

    def test_the_reserved_area_is_gone_but_its_capability_is_not(self) -> None:
        w = SecureWorld(RamBus(1), TWO)
        assert w.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[1] == 0xFD
        assert w.smc(smc.OPTEE_SMC_GET_SHM_CONFIG, *KEPT) == (OK, 0, 0, 1)


class TestLifeCycle:
    def test_registers_are_preserved(self) -> None:
        w = world()
        assert w.smc(CREATED, 1, 2, 3) == (OK, 1, 2, 3)
        assert w.smc(DESTROYED, 1, 2, 3) == (OK, 1, 2, 3)

    @pytest.mark.parametrize("a7", [1, 0x1_0000])
    def test_only_the_hypervisor_may(self, a7: int) -> None:
        w = world()
        w.smc(CREATED, 1)
        for a0 in (CREATED, DESTROYED):
            assert w.smc(a0, 2, 0, 0, 0, 0, 0, a7)[0] == ENOTAVAIL
        assert w.clients() == (1,)

    @pytest.mark.parametrize("client", [0, 0x1_0000, 0x5_0000_0000])
    def test_id_zero_is_refused(self, client: int) -> None:
        assert world().smc(CREATED, client)[0] == ENOTAVAIL

    def test_the_id_is_cut_to_16_bits(self) -> None:
        w = world()
        assert w.smc(CREATED, 0x1_0005)[0] == OK
        assert w.clients() == (5,)
        assert w.smc(DESTROYED, 0xABC0_0005)[0] == OK
        assert w.clients() == ()

    @pytest.mark.parametrize("guests", [1, 2, 5])
    def test_slots(self, guests: int) -> None:
        w = world(guests=guests)
        for client in range(1, guests + 1):
            assert w.smc(CREATED, client)[0] == OK
        assert w.smc(CREATED, 99)[0] == ENOTAVAIL
        assert w.smc(CREATED, 1)[0] == ENOTAVAIL
        assert w.smc(DESTROYED, 1)[0] == OK
        assert w.smc(CREATED, 99)[0] == OK

    def test_destroying_an_unknown_one_is_ok(self) -> None:
        w = world()
        assert w.smc(DESTROYED, 7)[0] == OK
        assert w.smc(DESTROYED, 0)[0] == OK

    def test_an_existing_id_gets_a_second_instance(self) -> None:
        n = Normal(TWO)
        assert n.session(s.ARITHMETIC) == 1
        assert n.world.smc(CREATED, 1)[0] == OK
        assert n.invoke(1, 0).result == BAD
        assert n.session(s.ARITHMETIC) == 1
        assert n.world.smc(DESTROYED, 1)[0] == OK
        assert n.invoke(1, 99).ret == tee.TEE_ERROR_BAD_PARAMETERS
        assert n.session(s.ARITHMETIC) == 2
        assert n.world.smc(DESTROYED, 1)[0] == OK
        assert n.raw(0x32000004)[0] == ENOTAVAIL

    def test_destroyed_with_a_thread_in_an_rpc(self) -> None:
        n = Normal(TWO)
        session = n.session(s.CLOCK)
        n.buffer(64)
        page, registers = n.start(s.message(1, [(1, 5, 0, 0)], func=1, session=session))
        assert registers[0] == CMD
        before = bytes(n.bus.ram)
        assert n.world.smc(DESTROYED, 1)[0] == OK
        assert n.events[-1] == events.PartitionDestroyed(1, suspended=1, buffers=1)
        assert n.resume(0) == (ENOTAVAIL, 0, 0, 0)
        assert n.start(s.message(1))[1][0] == ENOTAVAIL
        assert n.world.smc(CREATED, 1)[0] == OK
        assert n.resume(0) == (ERESUME, 0, 0, 0)
        assert n.get(page, 64) == before[page - s.BASE : page - s.BASE + 64]
        assert n.invoke(session, 0).result == BAD
        assert n.session(s.CLOCK) == 1

    def test_cookies_do_not_survive(self) -> None:
        n = Normal(TWO)
        cookie, _ = n.buffer(64)
        n.world.smc(DESTROYED, 1)
        n.world.smc(CREATED, 1)
        assert n.unregister(cookie).ret == tee.TEE_ERROR_BAD_PARAMETERS

    def test_clean_up_of_a_ta_touches_nothing(self) -> None:
        """A TA's finally blocks run while its partition dies; nothing they do has an effect."""

        class Tidy(s.TrustedApplication):
            uuid = s.ECHO
            pseudo = True
            single_instance = True
            multi_session = True

            async def invoke(self, env: s.TaEnvironment, command: int, params: s.Params) -> int:
                mutex = env.mutex("m")
                await mutex.lock()
                try:
                    try:
                        await env.sleep(1)
                    finally:
                        await mutex.unlock()
                        await env.sleep(2)
                finally:
                    if command:
                        params.memref(0).write(0, b"dead hand")
                    else:
                        await env.fs.create("/late")
                return 0

        for command in (0, 1):
            n = Normal(TWO, registry=s.TaRegistry([Tidy]))
            session = n.session(s.ECHO)
            cookie, _ = n.buffer(64)
            params = [(7, 0, 64, cookie)]
            _, registers = n.start(s.message(1, params, func=command, session=session))
            assert registers[0] == CMD
            before = bytes(n.bus.ram)
            assert n.world.smc(DESTROYED, 1)[0] == OK
            assert bytes(n.bus.ram) == before

    def test_randomness_is_not_repeated_by_a_rebirth(self) -> None:
        w = world()
        draws = []
        for _ in range(2):
            w.smc(CREATED, 1)
            partition = w.partition(1)
            assert partition is not None
            draws.append(partition.random.randbytes(16))
            w.smc(DESTROYED, 1)
        assert draws[0] != draws[1]


class TestStrangers:
    def test_names_mean_nothing_next_door(self) -> None:
        a, b, _, _ = pair()
        page = s.BASE + 0x7F_0000
        sessions = []
        for n in (a, b):
            n.put(page, bytes(s.PAGE))
            _, reply = n.register([page], 64, cookie=0xF1000)
            assert reply.ret == 0
            sessions.append(n.session(s.CLOCK))
        assert sessions == [1, 1]
        started = [n.start(s.message(1, [(1, 5, 0, 0)], func=1, session=1))[1] for n in (a, b)]
        assert started == [(CMD, 0, 0, 0)] * 2
        assert a.world.smc(DESTROYED, 2)[0] == OK
        assert a.resume(0) == (OK, 0, 0, 0)
        assert b.resume(0)[0] == ENOTAVAIL

    def test_the_other_ones_thread(self) -> None:
        a, b, _, _ = pair()
        session = a.session(s.CLOCK)
        page, registers = a.start(s.message(1, [(1, 5, 0, 0)], func=1, session=session))
        assert b.resume(registers[3]) == (ERESUME, 0, 0, 0)
        assert a.serve(page + 64, registers) == (OK, 0, 0, 0)

    def test_the_other_ones_session_and_cookie(self) -> None:
        a, b, _, _ = pair()
        session = a.session(s.MEMREFS)
        cookie, _ = a.buffer(64)
        own = b.session(s.ARITHMETIC)
        assert session == own == 1
        second = a.session(s.MEMREFS)
        assert b.invoke(second, 0).result == BAD
        assert b.invoke(own, 0, [(5, 0, 8, cookie), (2, 0, 0, 0)]).result == BAD
        assert b.unregister(cookie).ret == tee.TEE_ERROR_BAD_PARAMETERS
        assert b.raw(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, cookie >> 32, cookie & s.M32)[0] == 4
        assert b.call(msg.OPTEE_MSG_CMD_CANCEL, session=second).result == BAD

    def test_the_bus_is_told_who_asks(self) -> None:
        _, b, _, _ = pair()
        b.bus.writes.clear()
        b.session(s.ARITHMETIC)
        assert {client for client, _, _ in b.bus.writes} == {2}

    def test_threads_are_counted_per_guest(self) -> None:
        a, b, _, _ = pair()
        for n in (a, b):
            for _ in range(2):
                session = n.session(s.CLOCK)
                data = s.message(1, [(1, 5, 0, 0)], func=1, session=session)
                assert n.start(data)[1][0] == CMD
        assert a.raw(0x32000004)[0] == 1


class TestSharedResources:
    """A lock of the whole secure world: no RPC for the other guest, its value becomes pending."""

    HOLD_SHARED, HOLD_SHARED_ASLEEP = 1, 3

    def start(self, n: Normal, func: int, amount: int = 1) -> tuple[int, Registers4]:
        session = n.session(s.LOCKER)
        return n.start(s.message(1, [(1, amount, 0, 0)], func=func, session=session))

    def test_release_next_door(self) -> None:
        a, b, monitor, log = pair()
        page, registers = self.start(a, self.HOLD_SHARED_ASLEEP)
        _, waiting = self.start(b, self.HOLD_SHARED)
        assert waiting[0] == CMD
        assert a.serve(page + 64, registers)[0] == OK
        assert [c for c, _ in a.rpcs] == [rpc.OPTEE_RPC_CMD_SUSPEND]
        assert monitor.notifications == 1
        assert events.NotificationRaised(2, 0x40) in log
        value = b.world.smc(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE, 0, 0, 0, 0, 0, 0, 2)
        assert value == (OK, 0x40, 1, 0)
        nothing = a.world.smc(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE, 0, 0, 0, 0, 0, 0, 1)
        assert nothing == (OK, 0, 0, 0)
        assert b.resume(waiting[3])[0] == OK

    def test_polling_without_the_notification_waits_again(self) -> None:
        a, b, _, _ = pair()
        page, registers = self.start(a, self.HOLD_SHARED_ASLEEP)
        _, waiting = self.start(b, self.HOLD_SHARED)
        for _ in range(3):
            assert b.resume(waiting[3])[0] == CMD
        a.serve(page + 64, registers)
        assert b.resume(waiting[3])[0] == OK

    def test_a_holder_that_dies_lets_go(self) -> None:
        a, b, monitor, _ = pair()
        self.start(a, self.HOLD_SHARED_ASLEEP)
        _, waiting = self.start(b, self.HOLD_SHARED)
        assert a.world.smc(DESTROYED, 1)[0] == OK
        assert monitor.notifications == 1
        assert b.resume(waiting[3])[0] == OK

    def test_a_waiter_that_dies_after_its_wake_up_passes_it_on(self) -> None:
        bus, monitor = RamBus(), Scripted()
        shared = SecureWorld(bus, SecureWorldSettings(guests=3), monitor)
        a, b, c = (Normal(world=shared, bus=bus, client=i) for i in (1, 2, 3))
        page, registers = self.start(a, self.HOLD_SHARED_ASLEEP)
        self.start(b, self.HOLD_SHARED)
        _, last = self.start(c, self.HOLD_SHARED)
        assert a.serve(page + 64, registers)[0] == OK
        assert monitor.notifications == 1
        assert shared.smc(DESTROYED, 2)[0] == OK
        assert monitor.notifications == 2
        assert c.resume(last[3])[0] == OK

    def test_a_waiter_that_dies_is_forgotten(self) -> None:
        a, b, monitor, _ = pair()
        page, registers = self.start(a, self.HOLD_SHARED_ASLEEP)
        self.start(b, self.HOLD_SHARED)
        assert a.world.smc(DESTROYED, 2)[0] == OK
        assert a.serve(page + 64, registers)[0] == OK
        assert monitor.notifications == 0
