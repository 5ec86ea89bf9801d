# SPDX-License-Identifier: BSD-2-Clause
"""Asynchronous notifications: who is asked for, what is kept, who is interrupted."""

from __future__ import annotations

import pytest

from mediator.deployment.face import Done, Preempted
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_msg as msg_abi
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Rig, Script, answer, msg, results

OK = smc.OPTEE_SMC_RETURN_OK
ENABLE = smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF
GET = smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE
CAPS = smc.OPTEE_SMC_EXCHANGE_CAPABILITIES
ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
STOP = msg_abi.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF
VALID = smc.OPTEE_SMC_ASYNC_NOTIF_VALID
PENDING = smc.OPTEE_SMC_ASYNC_NOTIF_PENDING
VIRQ = 219
NOTHING = answer(OK, 0, 0)


def value(number: int, more: int = 0) -> Script:
    return answer(OK, number, VALID | (PENDING if more else 0))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def enabled(rig: Rig, *guests: int) -> None:
    for guest in guests:
        rig.host.script = []
        assert rig.call(ENABLE, guest=guest)[0] == OK
    rig.host.sent.clear()


def asked(rig: Rig) -> list[int]:
    """Client ids that the TEE was asked about, in order."""
    return [regs[7] for regs in rig.host.sent if regs[0] == GET]


def stop(rig: Rig, ret: int = 0, guest: int = 0) -> tuple[int, ...]:
    rig.put(RAM, msg(STOP), guest)
    rig.host.script.append(results(ret))
    return rig.call(ARG, 0, RAM, guest=guest)


def test_the_interrupt_names_no_guest_and_only_those_that_listen_are_asked_for(rig: Rig) -> None:
    assert rig.tee.notification_interrupt() == Done()
    assert not rig.host.sent
    enabled(rig, 1)
    rig.host.script = [value(3)]
    assert rig.tee.notification_interrupt() == Done()
    assert asked(rig) == [2]
    assert rig.host.injected == [(1, VIRQ)]


def test_each_guest_reads_its_own_values_lowest_first(rig: Rig) -> None:
    enabled(rig, 0, 1)
    rig.host.script = [value(7, more=1), value(5), value(2)]
    assert rig.tee.notification_interrupt() == Done()
    assert rig.host.injected == [(0, VIRQ), (1, VIRQ)]
    rig.host.sent.clear()
    assert rig.call(GET, 1, 2, 3)[:5] == (OK, 5, VALID | PENDING, 3, 0x77)
    assert rig.call(GET)[:3] == (OK, 7, VALID)
    assert rig.call(GET)[:3] == (OK, 0, 0)
    assert rig.call(GET, guest=1)[:3] == (OK, 2, VALID)
    assert rig.call(GET, guest=1)[:3] == (OK, 0, 0)
    assert not rig.host.sent, "answered from what the mediator kept"


def test_a_guest_is_interrupted_for_something_new_only(rig: Rig) -> None:
    enabled(rig, 0)
    for gained, expected in (([value(1)], 1), ([value(1)], 1), ([value(1, 1), value(4)], 2)):
        rig.host.script = list(gained)
        rig.tee.notification_interrupt()
        assert len(rig.host.injected) == expected
    rig.host.script = [NOTHING]
    rig.tee.notification_interrupt()
    assert len(rig.host.injected) == 2


def test_what_was_sent_before_notifications_were_enabled_is_not_lost(rig: Rig) -> None:
    rig.host.script = [answer(OK), value(0)]
    assert rig.call(ENABLE, 1, 2)[:3] == (OK, 1, 2)
    assert rig.host.injected == [(0, VIRQ)]
    assert rig.call(GET)[:3] == (OK, 0, VALID)


def test_a_refused_enable_changes_nothing(rig: Rig) -> None:
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_ENOTAVAIL)]
    assert rig.call(ENABLE)[0] == smc.OPTEE_SMC_RETURN_ENOTAVAIL
    rig.host.sent.clear()
    rig.tee.notification_interrupt()
    assert not rig.host.sent


def test_after_stop_the_guest_is_neither_asked_for_nor_interrupted(rig: Rig) -> None:
    enabled(rig, 0)
    rig.host.script = [value(1)]
    rig.tee.notification_interrupt()
    assert stop(rig)[0] == OK
    rig.host.sent.clear()
    rig.host.script = [value(9)]
    rig.tee.notification_interrupt()
    assert not rig.host.sent
    assert len(rig.host.injected) == 1
    assert rig.call(GET)[:3] == (OK, 1, VALID), "what it was told of stays there"


def test_a_refused_stop_changes_nothing(rig: Rig) -> None:
    enabled(rig, 0)
    stop(rig, ret=0xFFFF_0006)
    rig.host.sent.clear()
    rig.tee.notification_interrupt()
    assert asked(rig) == [1]


def test_enable_while_a_stop_is_under_way_leaves_the_guest_listening(rig: Rig) -> None:
    enabled(rig, 0)
    rig.put(RAM, msg(STOP))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, 1)]
    assert rig.call(ARG, 0, RAM)[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
    rig.host.script = [answer(OK), NOTHING]
    rig.call(ENABLE)
    rig.host.script = [results(0)]
    assert rig.call(RETURN, 0, 0, 1)[0] == OK
    rig.host.sent.clear()
    rig.tee.notification_interrupt()
    assert asked(rig) == [1]


def test_a_guest_that_never_enabled_asks_the_tee_itself(rig: Rig) -> None:
    rig.host.script = [answer(OK, 6, VALID)]
    assert rig.call(GET)[:3] == (OK, 6, VALID)
    assert asked(rig) == [1]
    assert not rig.host.injected


class TestPreemption:
    def test_the_round_stops_between_guests_and_goes_on(self, rig: Rig) -> None:
        enabled(rig, 0, 1)
        rig.host.preempt = [True]
        rig.host.script = [value(1), value(1)]
        assert rig.tee.notification_interrupt() == Preempted()
        assert asked(rig) == [1]
        assert rig.tee.notification_interrupt() == Done()
        assert asked(rig) == [1, 2]
        assert rig.host.injected == [(0, VIRQ), (1, VIRQ)]

    def test_an_interrupt_between_the_parts_of_a_round_is_not_lost(self, rig: Rig) -> None:
        enabled(rig, 0, 1)
        rig.host.preempt = [True, False, False]
        assert rig.tee.notification_interrupt() == Preempted()
        assert rig.tee.notification_interrupt() == Done()
        assert rig.tee.notification_interrupt() == Done()
        assert asked(rig) == [1, 2, 1, 2], "guest 0 may have got a value after it was asked for"

    def test_a_guest_that_goes_meanwhile_is_left_out(self, rig: Rig) -> None:
        enabled(rig, 0, 1)
        rig.host.preempt = [True]
        rig.tee.notification_interrupt()
        assert rig.tee.destroy_guest(1) == Done()
        rig.host.sent.clear()
        assert rig.tee.notification_interrupt() == Done()
        assert not asked(rig)


class TestBounds:
    def test_a_tee_that_repeats_itself_is_left_alone(self, rig: Rig) -> None:
        enabled(rig, 0)
        rig.host.script = [value(1, 1), value(2, 1), value(1, 1)] + [value(1, 1)] * 50
        assert rig.tee.notification_interrupt() == Done()
        assert len(asked(rig)) == 3
        assert rig.host.injected == [(0, VIRQ)]

    def test_a_value_that_nobody_can_have_is_ignored(self, rig: Rig) -> None:
        enabled(rig, 0)
        rig.host.script = [answer(OK, 0xFFFF_FFFF, VALID)]
        assert rig.tee.notification_interrupt() == Done()
        assert rig.call(GET)[:3] == (OK, 0, 0)
        assert not rig.host.injected

    def test_the_highest_value_is_bounded_and_the_guest_is_told(self) -> None:
        rig = Rig(MediatorSettings(limits=Limits(notifications=100)))
        capabilities = smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM | smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
        rig.host.script = [answer(OK, capabilities, 0xFFFF_FFFF, 4)]
        assert rig.call(CAPS, 0)[:3] == (OK, capabilities, 100)
        enabled(rig, 0)
        rig.host.script = [value(100, 1), value(101)]
        rig.tee.notification_interrupt()
        assert rig.call(GET)[:3] == (OK, 100, VALID)

    def test_an_error_of_the_tee_ends_the_round(self, rig: Rig) -> None:
        enabled(rig, 0)
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_EBUSY, 1, VALID | PENDING)]
        assert rig.tee.notification_interrupt() == Done()
        assert not rig.host.injected


def test_values_and_rounds_survive_a_snapshot(rig: Rig) -> None:
    enabled(rig, 0, 1)
    rig.host.preempt = [True]
    rig.host.script = [value(0x41)]
    rig.tee.notification_interrupt()
    state = rig.tee.snapshot()
    assert rig.call(GET)[1] == 0x41
    rig.tee.restore(state)
    assert rig.call(GET)[:3] == (OK, 0x41, VALID)
    rig.host.sent.clear()
    assert rig.tee.notification_interrupt() == Done()
    assert asked(rig) == [2], "the round goes on where it stopped"


def test_the_commands_are_forwarded_and_need_the_offer() -> None:
    bits = MediatorSettings().capabilities & ~smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
    for settings, status in (
        (MediatorSettings(), OK),
        (MediatorSettings(capabilities=bits), smc.OPTEE_SMC_RETURN_EBADCMD),
    ):
        rig = Rig(settings)
        for command in (msg_abi.OPTEE_MSG_CMD_DO_BOTTOM_HALF, STOP):
            rig.put(RAM, msg(command))
            assert rig.call(ARG, 0, RAM)[0] == status
