# SPDX-License-Identifier: BSD-2-Clause
"""The driver against a scripted TEE: both styles, waiting, RPCs, notifications, failures."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import pytest

from mediator.guest.client import INPUT, OUTPUT, Memref, TeeError, Value
from mediator.guest.cpu import Registers
from mediator.guest.driver_settings import DriverSettings, ProbeError
from mediator.guest.events import ClientCall, GuestBooted, GuestStopped, ResultLog
from mediator.guest.guest import Guest, GuestFailed, GuestSettings
from mediator.guest.profile import LINUX_6_1, LINUX_6_12, Profile
from mediator.guest.rpc import RPC_COMMANDS
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.guest.machine import FakeCpu, FakeMachine
from tests.guest.scripted import (
    CLASSIC,
    MODERN,
    NO_STEPS,
    NOTIFYING,
    Answer,
    Call,
    ScriptedTee,
    Steps,
)

RAM = ((0x4000_0000, 2048),)
UUID_OF_TA = UUID(int=0x1234)
INTID = 219

Main = Callable[[Guest], Coroutine[object, object, object]]
STYLES = pytest.mark.parametrize("capabilities", [CLASSIC, MODERN], ids=["classic", "rpc-arg"])


def boot(
    trusted: ScriptedTee,
    *mains: Main,
    vcpus: int = 1,
    profile: Profile = LINUX_6_12,
    seed: int = 0,
    suspending: bool = False,
    finish: bool = True,
    **options: Any,
) -> Guest:
    """Run a guest to its end; everything it did must have succeeded and be undone."""
    migrate_every = options.pop("migrate_every", 0)
    assert isinstance(migrate_every, int)
    driver = DriverSettings(profile=profile, migrate_every=migrate_every)
    guest = Guest(GuestSettings("g", RAM, vcpus, driver=driver, **options))
    guest.start(*mains)
    machine = FakeMachine(RAM, trusted, vcpus, seed, suspending)
    ended = machine.run(guest.programs)
    if finish:
        guest.check()
        assert ended, guest.stuck()
        assert not len(guest.driver.shms)
        assert not trusted.memory
        assert guest.driver.counters.anomalies == 0
    return guest


async def one_session(guest: Guest) -> None:
    async with guest.client().open_session(UUID_OF_TA) as session:
        await session.invoke(1)


def test_the_classic_style_has_a_private_page_per_message_and_a_cache() -> None:
    def invoke(call: Call) -> Steps:
        answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_GET_TIME, (2, 0, 0, 0))
        assert answer[5:7] == (0, 0)
        assert answer[9] >= 1_800_000_000
        return None

    trusted = ScriptedTee(CLASSIC, invoke=invoke)
    guest = boot(trusted, one_session, profile=LINUX_6_1)
    assert smc.OPTEE_SMC_GET_THREAD_COUNT not in trusted.log
    assert trusted.log[:6] == [
        smc.OPTEE_SMC_CALLS_UID,
        smc.OPTEE_SMC_CALL_GET_OS_REVISION,
        smc.OPTEE_SMC_CALLS_REVISION,
        smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
        smc.OPTEE_SMC_DISABLE_SHM_CACHE,
        smc.OPTEE_SMC_ENABLE_SHM_CACHE,
    ]
    # Unload drains the one cached RPC argument, then finds nothing.
    assert trusted.log[-2:] == [smc.OPTEE_SMC_DISABLE_SHM_CACHE] * 2
    assert smc.OPTEE_SMC_CALL_WITH_REGD_ARG not in trusted.log
    assert smc.OPTEE_SMC_CALL_WITH_RPC_ARG not in trusted.log
    assert guest.pages.in_use == 0
    assert guest.driver.counters.rpcs == {0: 1, RPC_COMMANDS + rpc.OPTEE_RPC_CMD_GET_TIME: 1}


def test_the_rpc_arg_style_uses_registered_slots() -> None:
    trusted = ScriptedTee(MODERN)
    guest = boot(trusted, one_session)
    assert smc.OPTEE_SMC_GET_THREAD_COUNT in trusted.log
    assert smc.OPTEE_SMC_CALL_WITH_ARG not in trusted.log
    assert smc.OPTEE_SMC_ENABLE_SHM_CACHE not in trusted.log
    assert trusted.commands[0] == msg.OPTEE_MSG_CMD_REGISTER_SHM
    assert trusted.commands[-1] == msg.OPTEE_MSG_CMD_UNREGISTER_SHM
    assert guest.pages.in_use == 0


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({smc.OPTEE_SMC_CALLS_UID: (0x384FB3E0, 0, 0, 0)}, "uid"),
        ({smc.OPTEE_SMC_CALLS_UID: (2**64 - 1, 0, 0, 0)}, "uid"),
        ({smc.OPTEE_SMC_CALLS_REVISION: (1, 9, 0, 0)}, "revision"),
        ({smc.OPTEE_SMC_EXCHANGE_CAPABILITIES: (7, 0, 0, 0)}, "capabilities"),
        ({smc.OPTEE_SMC_EXCHANGE_CAPABILITIES: (0, 0, 0, 0)}, "dynamic"),
    ],
)
def test_probe_refuses_what_it_cannot_use(
    answers: dict[int, tuple[int, int, int, int]], reason: str
) -> None:
    trusted = ScriptedTee()
    guest = Guest(GuestSettings("g", RAM, 1))
    guest.start()
    machine = FakeMachine(RAM, lambda cpu, regs: answers.get(regs[0]) or trusted(cpu, regs), 1)
    assert machine.run(guest.programs)
    with pytest.raises(GuestFailed, match=reason) as caught:
        guest.check()
    assert isinstance(caught.value.failures[0][1], ProbeError)


@STYLES
def test_parameters_go_out_and_come_back(capabilities: int) -> None:
    def invoke(call: Call) -> Steps:
        if call.function != 3:
            return None
        yield from call.foreign_interrupt()
        assert call.param(0) == (3, 5, 6, 0)
        data = call.read(1)
        call.write(2, data[::-1])
        call.set_param(0, 50, 60)
        attr, offset, size, cookie = call.param(2)
        assert (attr, offset, size) == (6, 4090, 100)
        call.set_param(2, offset, len(data), cookie)
        assert call.param(3) == (0xB, 0, 0, 0)
        return None

    async def main(guest: Guest) -> None:
        client = guest.client()
        memory = await client.allocate(10_000)
        source = await client.buffer_of(b"hello across a page", offset=4090)
        async with client.open_session(UUID_OF_TA) as session:
            value = Value(5, 6)
            answer = Memref(memory, 4090, 100, OUTPUT)
            await session.invoke(3, value, Memref(source, direction=INPUT), answer, Memref(None))
            assert (value.a, value.b) == (50, 60)
            assert answer.size == 19
            assert await memory.read(4090, 19) == b"egap a ssorca olleh"
        await memory.release()
        client.free(source)

    guest = boot(ScriptedTee(capabilities, invoke=invoke), main)
    assert guest.pages.in_use == 0


def test_a_result_is_an_exception_with_its_origin() -> None:
    def invoke(call: Call) -> Steps:
        yield from NO_STEPS
        call.set_param(0, 0, 64, call.param(0)[3])
        return tee.TEE_ERROR_SHORT_BUFFER

    async def main(guest: Guest) -> None:
        client = guest.client()
        async with client.open_session(UUID_OF_TA) as session:
            buffer = client.buffer(16)
            out = Memref(buffer, direction=OUTPUT)
            with pytest.raises(TeeError, match="SHORT_BUFFER, origin 4") as caught:
                await session.invoke(1, out)
            assert caught.value.result == tee.TEE_ERROR_SHORT_BUFFER
            assert out.size == 64

    boot(ScriptedTee(invoke=invoke), main)


def test_a_call_that_is_not_taken_is_a_communication_error() -> None:
    trusted = ScriptedTee()

    def broken(cpu: FakeCpu, regs: Registers) -> Answer:
        if regs[0] == smc.OPTEE_SMC_CALL_WITH_REGD_ARG and trusted.commands.count(0) >= 3:
            return smc.OPTEE_SMC_RETURN_EBADADDR, 0, 0, 0
        return trusted(cpu, regs)

    async def main(guest: Guest) -> None:
        client = guest.client()
        async with client.open_session(UUID_OF_TA) as session:
            with pytest.raises(TeeError) as caught:
                await session.invoke(1)
            assert caught.value.result == tee.TEE_ERROR_COMMUNICATION
            assert caught.value.origin == tee.TEE_ORIGIN_COMMS

    guest = Guest(GuestSettings("g", RAM, 1))
    guest.start(main)
    assert FakeMachine(RAM, broken, 1).run(guest.programs)
    guest.check()


# Threads of the secure world


def long_invoke(call: Call) -> Steps:
    yield from call.foreign_interrupt()
    yield from call.rpc(rpc.OPTEE_RPC_CMD_SUSPEND, (1, 5, 0, 0))
    return None


@STYLES
@pytest.mark.parametrize("profile", [LINUX_6_1, LINUX_6_12], ids=["6.1", "6.12"])
@pytest.mark.parametrize("seed", range(3))
def test_more_callers_than_threads_all_get_their_turn(
    capabilities: int, profile: Profile, seed: int
) -> None:
    trusted = ScriptedTee(capabilities, threads=2, invoke=long_invoke)
    done: list[int] = []

    async def main(guest: Guest) -> None:
        async with guest.client().open_session(UUID_OF_TA) as session:
            for number in range(3):
                await session.invoke(number)
        done.append(1)

    guest = boot(trusted, *[main] * 6, vcpus=2, profile=profile, seed=seed, suspending=True)
    assert len(done) == 6
    assert trusted.most_in_flight == 2
    # 6.12 counts threads itself, so it is never refused; 6.1 asks and waits.
    assert (guest.driver.counters.thread_limits > 0) == (profile is LINUX_6_1)


def test_a_lone_call_refused_for_want_of_threads_waits_for_ever() -> None:
    trusted = ScriptedTee(MODERN, threads=1)

    def full(cpu: FakeCpu, regs: Registers) -> Answer:
        if regs[0] == smc.OPTEE_SMC_CALL_WITH_REGD_ARG and trusted.commands.count(0) >= 3:
            return smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT, 0, 0, 0
        return trusted(cpu, regs)

    guest = Guest(GuestSettings("g", RAM, 1))
    guest.start(one_session)
    assert not FakeMachine(RAM, full, 1).run(guest.programs)
    assert dict(guest.stuck())["one_session"] == "a thread of the secure world"


def test_a_system_session_keeps_a_thread_for_itself() -> None:
    trusted = ScriptedTee(MODERN, threads=2, invoke=long_invoke)
    in_flight: list[int] = []

    async def main(guest: Guest) -> None:
        if guest.driver.queue.system_sessions == 0:
            guest.driver.queue.system_sessions = 1
        async with guest.client().open_session(UUID_OF_TA) as session:
            await session.invoke(0)
            in_flight.append(trusted.most_in_flight)

    boot(trusted, main, main, main, vcpus=2)
    assert set(in_flight) == {1}


def test_rpcs_are_answered_from_other_vcpus() -> None:
    places: list[int] = []

    def invoke(call: Call) -> Steps:
        for _ in range(4):
            yield from call.rpc(rpc.OPTEE_RPC_CMD_GET_TIME, (2, 0, 0, 0))
            places.append(call.resumed)
        return None

    async def main(guest: Guest) -> None:
        # Until now only one vCPU may have run.
        await guest.kernel.sleep(1000)
        await one_session(guest)

    guest = boot(ScriptedTee(invoke=invoke), main, vcpus=3, migrate_every=1)
    assert len(set(places)) == 3
    assert guest.driver.counters.migrated_rpcs >= 4


def test_resume_registers_are_what_linux_sends() -> None:
    seen: list[tuple[int, ...]] = []

    def modern(call: Call) -> Steps:
        seen.append((yield from call.raw(smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR))[1:7])
        yield from call.rpc(rpc.OPTEE_RPC_CMD_SUSPEND, (1, 1, 0, 0))
        return None

    boot(ScriptedTee(MODERN, invoke=modern), one_session)
    assert set(seen) == {(0, 0, 0, 0, 0, 0)}

    def classic(call: Call) -> Steps:
        yield from call.alloc()
        high, low = call.cookie >> 32, call.cookie & 0xFFFF_FFFF
        regs = yield from call.raw(smc.OPTEE_SMC_RETURN_RPC_CMD, high, low)
        assert regs[1:7] == (high, low, call.thread, *regs[4:6], 0)
        return None

    boot(ScriptedTee(CLASSIC, invoke=classic), one_session)


# RPCs


def value_in(a: int, b: int = 0, c: int = 0) -> tuple[int, int, int, int]:
    return msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, a, b, c


def rpc_results(
    *requests: tuple[int, tuple[tuple[int, int, int, int], ...]],
    anomalies: int = 0,
    **options: Any,
) -> list[tuple[int, int]]:
    """(ret, origin) of each RPC request made by one invoke."""
    results: list[tuple[int, int]] = []

    def invoke(call: Call) -> Steps:
        if call.function == 1:
            for command, params in requests:
                answer = yield from call.rpc(command, *params)
                results.append((answer[5], answer[6]))
        return None

    trusted = ScriptedTee(invoke=invoke)
    guest = boot(trusted, one_session, finish=False, **options)
    guest.check()
    assert guest.driver.counters.anomalies == anomalies
    return results


def test_unknown_and_refused_rpcs() -> None:
    ok_origin = 2
    assert rpc_results(
        (rpc.OPTEE_RPC_CMD_I2C_TRANSFER, (value_in(0),)),
        (rpc.OPTEE_RPC_CMD_RPMB_PROBE_RESET, ()),
        (rpc.OPTEE_RPC_CMD_SOCKET, (value_in(0),)),
        (rpc.OPTEE_RPC_CMD_RPMB, ()),
        (0x77, ()),
    ) == [
        (tee.TEE_ERROR_NOT_SUPPORTED, 0),
        (tee.TEE_ERROR_NOT_SUPPORTED, 0),
        (tee.TEE_ERROR_NOT_SUPPORTED, ok_origin),
        (tee.TEE_ERROR_NOT_SUPPORTED, ok_origin),
        (tee.TEE_ERROR_NOT_SUPPORTED, ok_origin),
    ]


def test_rpcs_that_no_correct_secure_world_makes() -> None:
    bad = tee.TEE_ERROR_BAD_PARAMETERS
    requests = (
        (rpc.OPTEE_RPC_CMD_GET_TIME, ()),
        (rpc.OPTEE_RPC_CMD_GET_TIME, (value_in(1),)),
        (rpc.OPTEE_RPC_CMD_SUSPEND, ()),
        (rpc.OPTEE_RPC_CMD_NOTIFICATION, (value_in(0), value_in(0))),
        (rpc.OPTEE_RPC_CMD_SHM_ALLOC, ()),
        (rpc.OPTEE_RPC_CMD_SHM_ALLOC, (value_in(0, 1, 8), value_in(0))),
        (rpc.OPTEE_RPC_CMD_SHM_FREE, (value_in(0, 0xDEAD),)),
        (rpc.OPTEE_RPC_CMD_SHM_FREE, (value_in(1, 0xDEAD),)),
        (rpc.OPTEE_RPC_CMD_FS, (value_in(4, 6), (5, 0, 10, 0xDEAD))),
        (rpc.OPTEE_RPC_CMD_FS, ((0xC, 0, 0, 0),)),
    )
    results = rpc_results(*requests, anomalies=len(requests))
    assert [ret for ret, _ in results] == [bad] * len(requests)


def test_a_foreign_cookie_given_back_is_counted_not_followed() -> None:
    def invoke(call: Call) -> Steps:
        yield from call.raw(smc.OPTEE_SMC_RETURN_RPC_FREE, 0xFFFF0000, 0x1234)
        yield from call.raw(smc.OPTEE_SMC_RETURN_RPC_CMD, 0xFFFF0000, 0x1234)
        yield from call.raw(0xFFFF0077)
        return None

    guest = boot(ScriptedTee(CLASSIC, invoke=invoke), one_session, finish=False)
    guest.check()
    assert guest.driver.counters.anomalies == 3


def test_kernel_memory_is_contiguous_and_application_memory_a_list() -> None:
    seen: list[tuple[int, ...]] = []

    def invoke(call: Call) -> Steps:
        if call.function != 1:
            return None
        for kind in (rpc.OPTEE_RPC_SHM_TYPE_APPL, rpc.OPTEE_RPC_SHM_TYPE_KERNEL):
            answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_SHM_ALLOC, value_in(kind, 9000, 8))
            seen.append(answer[5:12])
            if kind == rpc.OPTEE_RPC_SHM_TYPE_APPL:
                pages, offset = call.tee.walk(answer[9], answer[10])
                assert len(pages) == 3
                assert offset == 0
            answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_SHM_FREE, value_in(kind, answer[11]))
            assert answer[5:7] == (0, 2)
        return None

    guest = boot(ScriptedTee(invoke=invoke), one_session)
    assert guest.pages.in_use == 0
    (ret, origin, count, attr, _, size, _), kernel = seen
    assert (ret, origin, count, attr, size) == (0, 2, 1, 0x20A, 9000)
    assert kernel[3] == 0xA
    assert kernel[5] == 3 * 4096


def test_memory_that_the_guest_does_not_have_is_refused() -> None:
    out = tee.TEE_ERROR_OUT_OF_MEMORY
    assert rpc_results(
        (rpc.OPTEE_RPC_CMD_SHM_ALLOC, (value_in(0, 1 << 62, 8),)),
        (rpc.OPTEE_RPC_CMD_SHM_ALLOC, (value_in(1, 1 << 62, 8),)),
        (rpc.OPTEE_RPC_CMD_SHM_ALLOC, (value_in(2, 1, 8),)),
    ) == [(out, 2), (out, 2), (tee.TEE_ERROR_BAD_PARAMETERS, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_a_send_before_its_wait_is_remembered(seed: int) -> None:
    def invoke(call: Call) -> Steps:
        if call.function in (1, 2):
            operation = call.function - 1
            answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_NOTIFICATION, value_in(operation, 0x41))
            assert answer[5:7] == (0, 0)
        return None

    async def waiter(guest: Guest) -> None:
        async with guest.client().open_session(UUID_OF_TA) as session:
            await session.invoke(1)

    async def sender(guest: Guest) -> None:
        async with guest.client().open_session(UUID_OF_TA) as session:
            await session.invoke(2)

    boot(ScriptedTee(invoke=invoke), waiter, sender, vcpus=2, seed=seed, suspending=True)


def test_a_wait_ends_by_its_timeout_in_6_12_only() -> None:
    wait = (rpc.OPTEE_RPC_CMD_NOTIFICATION, (value_in(0, 0x40, 20),))
    assert rpc_results(wait) == [(tee.TEE_ERROR_BAD_PARAMETERS, 0)]

    def invoke(call: Call) -> Steps:
        yield from call.rpc(wait[0], *wait[1])
        return None

    guest = boot(ScriptedTee(invoke=invoke), one_session, profile=LINUX_6_1, finish=False)
    assert dict(guest.stuck())["one_session"] == "notification 0x40"


def test_keys_out_of_range_and_second_waiters_are_refused() -> None:
    bad = tee.TEE_ERROR_BAD_PARAMETERS
    too_large = 0x1000
    assert (
        rpc_results(
            (rpc.OPTEE_RPC_CMD_NOTIFICATION, (value_in(0, too_large),)),
            (rpc.OPTEE_RPC_CMD_NOTIFICATION, (value_in(1, too_large),)),
            (rpc.OPTEE_RPC_CMD_NOTIFICATION, (value_in(2, 1),)),
        )
        == [(bad, 0)] * 3
    )


# Asynchronous notifications


def test_notification_values_end_waits_and_start_bottom_halves() -> None:
    trusted = ScriptedTee(NOTIFYING)
    machine = FakeMachine(RAM, trusted, 2)

    def invoke(call: Call) -> Steps:
        if call.function == 1:
            trusted.values = [0x41, 0, 0x40]
            machine.cpus[1].inject(INTID)
            answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_NOTIFICATION, value_in(0, 0x40))
            assert answer[5] == 0
            answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_NOTIFICATION, value_in(0, 0x41))
            assert answer[5] == 0
        return None

    trusted.invoke = invoke

    async def main(guest: Guest) -> None:
        await one_session(guest)
        await guest.kernel.sleep(1_000_000)

    guest = Guest(GuestSettings("g", RAM, 2))
    guest.start(main)
    assert machine.run(guest.programs)
    guest.check()
    assert trusted.notifications_enabled
    counters = guest.driver.counters
    assert (counters.interrupts, counters.notifications, counters.bottom_halves) == (1, 3, 1)
    assert trusted.commands.count(msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF) == 1
    assert trusted.commands[-2:] == [
        msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF,
        msg.OPTEE_MSG_CMD_UNREGISTER_SHM,
    ]


def test_a_spurious_notification_interrupt_asks_once_and_does_nothing() -> None:
    trusted = ScriptedTee(NOTIFYING)
    machine = FakeMachine(RAM, trusted, 1)

    async def main(guest: Guest) -> None:
        machine.cpus[0].inject(INTID)
        await guest.kernel.sleep(1000)

    guest = Guest(GuestSettings("g", RAM, 1))
    guest.start(main)
    assert machine.run(guest.programs)
    guest.check()
    assert trusted.log.count(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE) == 1
    assert guest.driver.counters.bottom_halves == 0


def test_without_the_capability_nothing_is_enabled() -> None:
    trusted = ScriptedTee(MODERN)
    boot(trusted, one_session)
    assert smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF not in trusted.log
    assert msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF not in trusted.commands


# Registration


@STYLES
@pytest.mark.parametrize("pages", [1, 510, 511, 512, 1022, 1023])
def test_page_lists_of_every_shape(capabilities: int, pages: int) -> None:
    async def main(guest: Guest) -> None:
        client = guest.client()
        async with await client.register(client.buffer(pages * 4096 - 8, offset=8)) as memory:
            listed = trusted.memory[memory.cookie]
            assert listed == (list(memory.buffer.pages), 8, pages * 4096 - 8)
            async with client.open_session(UUID_OF_TA) as session:
                await session.invoke(1, Memref(memory, memory.size - 10, 10))
        client.free(memory.buffer)

    trusted = ScriptedTee(capabilities)
    guest = boot(trusted, main)
    assert guest.pages.in_use == 0


def test_a_refused_registration_leaves_nothing() -> None:
    trusted = ScriptedTee()

    async def main(guest: Guest) -> None:
        client = guest.client()
        async with client.open_session(UUID_OF_TA) as session:
            buffers = [client.buffer(100) for _ in range(2)]
            before = (guest.pages.in_use, len(guest.driver.shms), len(trusted.memory))
            trusted.refuse_registration = 1
            with pytest.raises(TeeError) as caught:
                await client.allocate(5000)
            assert caught.value.origin == tee.TEE_ORIGIN_API
            trusted.refuse_registration = 0
            # The second of two temporary buffers is refused: the first one is undone.
            serve = trusted._register

            def second(call: Call) -> int:
                trusted._register = refuse  # type: ignore[method-assign]
                return serve(call)

            def refuse(call: Call) -> int:
                return tee.TEE_ERROR_OUT_OF_MEMORY

            trusted._register = second  # type: ignore[method-assign]
            with pytest.raises(TeeError):
                await session.invoke(1, Memref(buffers[0]), Memref(buffers[1]))
            trusted._register = serve  # type: ignore[method-assign]
            assert (guest.pages.in_use, len(guest.driver.shms), len(trusted.memory)) == before

    boot(trusted, main)


def test_cookies_and_pages_are_reused_at_once() -> None:
    async def main(guest: Guest) -> None:
        client = guest.client()
        seen = set()
        buffer = client.buffer(64)
        for _ in range(5):
            memory = await client.register(buffer)
            seen.add(memory.cookie)
            await memory.release()
        assert len(seen) == 1
        assert next(iter(seen)) >> 32 == 0xFFFF_0000

    boot(ScriptedTee(), main)


def test_eleven_messages_in_flight_take_a_second_page() -> None:
    def invoke(call: Call) -> Steps:
        yield from call.rpc(rpc.OPTEE_RPC_CMD_SUSPEND, value_in(100))
        return None

    trusted = ScriptedTee(MODERN, threads=20, invoke=invoke)
    guest = boot(trusted, *[one_session] * 12, vcpus=2)
    assert guest.driver.counters.registrations == 2
    assert trusted.most_in_flight >= 12


def test_no_null_references_without_the_capability() -> None:
    seen: list[int] = []

    def invoke(call: Call) -> Steps:
        yield from NO_STEPS
        if call.function == 1:
            seen.append(call.param(0)[0])
            assert call.param(0)[2] == 0
        return None

    async def main(guest: Guest) -> None:
        async with guest.client().open_session(UUID_OF_TA) as session:
            await session.invoke(1, Memref(None))

    guest = boot(ScriptedTee(MODERN & ~smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL, invoke=invoke), main)
    assert seen == [msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT]
    assert guest.pages.in_use == 0


# Results and figures


def test_events_and_counters_for_tables() -> None:
    log = ResultLog(entries=4)
    events: list[tuple[object, ...]] = []

    def sink(event: tuple[object, ...]) -> None:
        log(event)
        events.append(event)

    guest = Guest(GuestSettings("g", RAM, 1), sink)

    async def main(guest: Guest) -> None:
        client = guest.client()
        async with client.open_session(UUID_OF_TA) as session:
            for number in range(3):
                await session.invoke(number)
            await session.cancel()

    guest.start(main)
    assert FakeMachine(RAM, ScriptedTee(), 1).run(guest.programs)
    guest.check()
    assert isinstance(events[0], GuestBooted)
    assert isinstance(events[-1], GuestStopped)
    assert [e.operation for e in events if isinstance(e, ClientCall)] == [
        "open",
        "invoke",
        "invoke",
        "invoke",
        "cancel",
        "close",
    ]
    assert log.total == 6
    assert [entry.number for entry in log.entries] == [1, 2, 0, 0]
    counters = guest.counters()
    assert counters["calls"] == guest.driver.counters.calls
    assert counters["shared_memories"] == 0
    assert counters["kernel_switches"] > 0


def test_a_guest_that_no_machine_runs_leaves_nothing_behind() -> None:
    guest = Guest(GuestSettings("g", RAM, 2))
    guest.start(one_session)
    assert not guest.kernel.threads
    assert not guest.booted
    guest.close()
    guest.check()
