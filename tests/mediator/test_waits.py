# SPDX-License-Identifier: BSD-2-Clause
"""Waits of the TEE's threads: tracked, and kept by the mediator where the guest could not wake."""

from __future__ import annotations

import pytest

from mediator.deployment.face import Completed, Done
from mediator.optee import events
from mediator.optee.notify import FIRST_REST, LONGEST_REST
from mediator.optee.settings import MediatorSettings
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee as tee_abi
from smccc.wire import MESSAGE
from tests.mediator.rig import RAM, Rig, Script, answer, msg, request, results

OK = smc.OPTEE_SMC_RETURN_OK
CAPS = smc.OPTEE_SMC_EXCHANGE_CAPABILITIES
ENABLE = smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF
GET = smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
VALID = smc.OPTEE_SMC_ASYNC_NOTIF_VALID
WAIT, SEND = optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT, optee_rpc.OPTEE_RPC_NOTIFICATION_SEND
KEY = 0x41
OFFERS = (
    smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM
    | smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
    | smc.OPTEE_SMC_SEC_CAP_RPC_ARG
)
NOTHING = answer(OK, 0, 0)


def notification(
    operation: int, key: int = KEY, timeout: int = 0, thread: int = 1, where: int | None = None
) -> Script:
    data = MESSAGE[1].pack(4, 0, 0, 0, 0, 0xFFFF0000, 0, 1, 1, operation, key, timeout)
    return request(data, thread, where)


def value(number: int) -> Script:
    return answer(OK, number, VALID)


def probed(rig: Rig, *guests: int) -> Rig:
    """Guests that know of notifications and have not enabled them."""
    for guest in guests or (0,):
        rig.host.script = [answer(OK, OFFERS, 0x44, 4)]
        assert rig.call(CAPS, 0, guest=guest)[0] == OK
    rig.host.sent.clear()
    return rig


@pytest.fixture
def rig() -> Rig:
    return probed(Rig(), 0, 1)


def start(rig: Rig, *script: Script, page: int = RAM, guest: int = 0) -> tuple[int, ...]:
    rig.put(page, msg(2), guest)
    rig.host.script = list(script)
    return rig.call(RPC_ARG, 0, page, guest=guest)


def again(rig: Rig, *script: Script, thread: int = 1, vcpu: int = 0, guest: int = 0) -> int:
    rig.host.script = list(script)
    out = rig.tee.handle(guest, vcpu, (RETURN, 0, 0, thread, 0, 0, 0, 0))
    assert isinstance(out, Completed)
    return out.regs[0]


def rpc_ret(rig: Rig) -> int:
    """``ret`` of the RPC argument behind the message in the mediator's page."""
    first = next(regs for regs in rig.host.sent if regs[0] == RPC_ARG)
    page = rig.host.memory(first[1] << 32 | first[2])
    return int.from_bytes(page[32 + 20 : 32 + 24], "little")


def test_a_guest_that_listens_gets_its_waits_and_they_are_tracked(rig: Rig) -> None:
    rig.host.script = []
    rig.call(ENABLE)
    rig.host.time = 5
    assert start(rig, notification(WAIT, timeout=3))[:4] == (CMD, 0, 0, 1)
    (wait,) = rig.tee.waits()
    assert (wait.guest, wait.thread, wait.key, wait.vcpu) == (0, 1, KEY, 0)
    assert (wait.since, wait.deadline, wait.held) == (5, 3_000_005, False)
    assert again(rig, results(0), vcpu=1) == OK
    assert rig.tee.waits() == ()
    assert not rig.host.parked


def test_without_the_capability_every_wait_goes_to_the_guest() -> None:
    rig = Rig()
    assert start(rig, notification(WAIT))[0] == CMD
    assert start(rig, notification(SEND, KEY + 1, thread=2), page=RAM + 0x1000)[0] == CMD


def test_the_reference_preset_keeps_no_wait() -> None:
    rig = Rig(MediatorSettings.reference(threads=4))
    rig.host.script = [answer(OK, OFFERS, 0x44, 4)]
    rig.call(CAPS, 0)
    data = MESSAGE[1].pack(4, 0, 0, 0, 0, 0xFFFF0000, 0, 1, 1, WAIT, KEY, 0)
    rig.put(RAM, msg(2))
    alloc = answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)
    rig.host.script = [alloc]
    assert rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)[0] == smc.OPTEE_SMC_RETURN_RPC_ALLOC

    def ask(r: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        r.host.memory(regs[1] << 32 | regs[2])[: len(data)] = data
        return CMD, 0, 9, 1

    rig.host.script = [ask]
    out = rig.call(RETURN, 0, RAM + 0x2000, 1, 0, 9)
    assert out[:4] == (CMD, 0, 9, 1)


class TestKept:
    """The guest sees foreign interrupts while the mediator waits."""

    def test_until_the_value_comes_by_interrupt(self, rig: Rig) -> None:
        rig.host.time = 7
        out = start(rig, notification(WAIT), NOTHING)
        assert out[:4] == (INTR, 0, 0, 1)
        assert rig.host.parked == [(0, 0, 7 + FIRST_REST)]
        assert rig.tee.waits()[0].held
        rig.host.script = [value(KEY)]
        assert rig.tee.notification_interrupt() == Done()
        assert rig.host.woken == [(0, 0)]
        assert not rig.host.injected, "the guest is not to hear of a key that it did not get"
        assert again(rig, results(0)) == OK
        assert rig.host.sent[-1][:4] == (RETURN, 0, 0, 1)
        assert rig.tee.waits() == ()

    def test_the_tee_finds_success_in_its_request(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        seen: list[int] = []

        def look(r: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
            seen.append(rpc_ret(r))
            return results(0)(r, regs)

        again(rig, value(KEY), look)
        assert seen == [tee_abi.TEE_SUCCESS]

    def test_a_value_that_came_before_the_wait_ends_it_at_once(self, rig: Rig) -> None:
        assert start(rig, notification(WAIT), value(KEY), results(0))[0] == OK
        assert not rig.host.parked

    def test_each_return_asks_the_tee_so_that_a_lost_interrupt_does_no_harm(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        assert again(rig, NOTHING) == INTR
        assert again(rig, value(KEY), results(0)) == OK

    def test_the_rest_doubles_up_to_a_bound(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        for _ in range(12):
            assert again(rig, NOTHING) == INTR
        rests = [until for _, _, until in rig.host.parked]
        assert rests[:3] == [FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST]
        assert max(rests) == rests[-1] == LONGEST_REST

    def test_its_time_out_is_the_drivers_answer(self, rig: Rig) -> None:
        start(rig, notification(WAIT, timeout=2), NOTHING)
        rig.host.time = 1_999_999
        assert again(rig, NOTHING) == INTR
        assert rig.host.parked[-1][2] == 2_000_000, "no longer than the time-out"
        rig.host.time = 2_000_000
        seen: list[int] = []

        def look(r: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
            seen.append(rpc_ret(r))
            return results(0)(r, regs)

        assert again(rig, NOTHING, look) == OK
        assert seen == [tee_abi.TEE_ERROR_BAD_PARAMETERS]

    def test_the_vcpu_that_came_last_is_woken(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        again(rig, NOTHING, vcpu=3)
        rig.host.script = [value(KEY)]
        rig.tee.notification_interrupt()
        assert rig.host.woken == [(0, 3)]

    def test_a_send_of_the_same_guest_is_the_mediators_too(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        out = start(rig, notification(SEND, thread=2), results(0), page=RAM + 0x1000)
        assert out[0] == OK, "never a request in the guest"
        assert rig.host.woken == [(0, 0)]
        assert again(rig, results(0)) == OK

    def test_a_send_before_the_wait_is_remembered(self, rig: Rig) -> None:
        assert start(rig, notification(SEND, thread=2), results(0))[0] == OK
        assert start(rig, notification(WAIT), results(0), page=RAM + 0x1000)[0] == OK
        assert start(rig, notification(WAIT), NOTHING, page=RAM + 0x1000)[0] == INTR, "once"

    def test_values_of_other_keys_and_guests_do_not_wake_it(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        start(rig, notification(WAIT), NOTHING, guest=1)
        rig.host.script = [value(KEY + 1), NOTHING]
        rig.tee.notification_interrupt()
        assert not rig.host.woken
        rig.host.script = [NOTHING, value(KEY)]
        rig.tee.notification_interrupt()
        assert rig.host.woken == [(1, 0)]

    def test_two_threads_with_one_key_are_woken_one_by_one(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        start(rig, notification(WAIT, thread=2), NOTHING, page=RAM + 0x1000)
        rig.host.script = [value(KEY)]
        rig.tee.notification_interrupt()
        assert again(rig, results(0), thread=1) == OK
        assert again(rig, NOTHING, thread=2) == INTR
        assert again(rig, value(KEY), results(0), thread=2) == OK

    def test_a_guest_that_enables_notifications_meanwhile_is_still_woken(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        rig.host.script = [answer(OK), value(KEY)]
        assert rig.call(ENABLE)[0] == OK
        assert rig.host.woken == [(0, 0)]
        assert not rig.host.injected
        assert again(rig, results(0)) == OK

    def test_a_key_above_the_highest_value_goes_to_the_guest(self, rig: Rig) -> None:
        assert start(rig, notification(WAIT, key=0x45))[0] == CMD

    def test_the_guest_cannot_answer_for_it(self, rig: Rig) -> None:
        """What the guest writes into its RPC argument is not read."""
        start(rig, notification(WAIT), NOTHING)
        rig.put(RAM + 32, b"\xff" * 64)
        assert again(rig, NOTHING) == INTR
        assert rig.host.calls["read_guest"] == 1

    def test_a_guest_that_goes_takes_its_waits_along(self, rig: Rig) -> None:
        start(rig, notification(WAIT), NOTHING)
        assert rig.tee.destroy_guest(0) == Done()
        assert rig.tee.waits() == ()
        rig.host.sent.clear()
        rig.tee.notification_interrupt()
        assert not rig.host.sent

    def test_a_snapshot_keeps_it(self, rig: Rig) -> None:
        start(rig, notification(WAIT, timeout=9), NOTHING)
        state = rig.tee.snapshot()
        before = rig.tee.waits()
        assert again(rig, value(KEY), results(0)) == OK
        rig.tee.restore(state)
        assert rig.tee.waits() == before
        rig.host.script = [value(KEY)]
        rig.tee.notification_interrupt()
        assert again(rig, results(0)) == OK

    def test_malformed_requests_are_the_guests_to_refuse(self, rig: Rig) -> None:
        two = MESSAGE[2].pack(4, 0, 0, 0, 0, 0, 0, 2, 1, WAIT, KEY, 0, 0, 0, 0, 0)
        output = MESSAGE[1].pack(4, 0, 0, 0, 0, 0, 0, 1, 2, WAIT, KEY, 0)
        other = MESSAGE[1].pack(4, 0, 0, 0, 0, 0, 0, 1, 1, 2, KEY, 0)
        for data in (two, output, other):
            assert start(rig, request(data))[0] == CMD
            assert rig.tee.waits() == ()
            assert again(rig, results(0)) == OK


def test_the_story_of_a_wait_is_told(rig: Rig) -> None:
    start(rig, notification(WAIT), NOTHING)
    again(rig, value(KEY), results(0))
    told = [event for event in rig.events if isinstance(event, events.WaitBegan | events.WaitEnded)]
    assert told == [events.WaitBegan(0, 1, 1, KEY, 1), events.WaitEnded(0, 1, 1, KEY)]
