# SPDX-License-Identifier: BSD-2-Clause
"""After the death of an app no driver waits for ever: which answers end its calls."""

from __future__ import annotations

import pytest

from mediator.deployment.el0_app import aftermath
from mediator.deployment.el0_app.deployment import ENOTAVAIL
from mediator.deployment.el0_app.grants import Grant
from mediator.deployment.face import DONE, NOT_MINE
from smccc.constants import optee_smc as smc
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig, app_rig
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow

OK = smc.OPTEE_SMC_RETURN_OK
UNFORWARDED = 0xB200_0077
"""A fast call that nobody knows."""


def listening(rig: AppRig) -> list[tuple[int, int]]:
    """The guest listens to notifications; the interrupts that guests get."""
    raised: list[tuple[int, int]] = []
    rig.host.virq_sink = lambda guest, intid: raised.append((guest, intid))
    assert rig.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)[0] == OK
    return raised


def values(rig: AppRig) -> list[int]:
    """The notification values that the guest is told."""
    told = []
    while True:
        status, value, flags, *_ = rig.smc(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)
        if status != OK or not flags & smc.OPTEE_SMC_ASYNC_NOTIF_VALID:
            return told
        told.append(value)
        if not flags & smc.OPTEE_SMC_ASYNC_NOTIF_PENDING:
            return told


def test_a_lost_guest_gets_what_ends_each_call() -> None:
    with app_rig(LocalApp, control=None) as rig:
        rig.app.kill()
        for function in sorted(aftermath.PROBED):
            wanted = OK if function == smc.OPTEE_SMC_ENABLE_SHM_CACHE else ENOTAVAIL
            assert rig.smc(function, 1, 2, 3) == (wanted, 1, 2, 3, 0, 0, 0, 0)
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == ENOTAVAIL


@pytest.mark.parametrize("control", [None, GUEST])
def test_who_waits_for_a_value_gets_it(control: int | None) -> None:
    with app_rig(LocalApp, control=control) as rig:
        raised = listening(rig)
        rig.app.kill()
        assert rig.app.threads is not None
        assert raised == [(GUEST, rig.app.settings.notification_virq)]
        assert values(rig) == [0x40 + thread for thread in range(rig.app.threads)]
        assert values(rig) == []


def test_who_does_not_listen_is_not_interrupted() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        raised = listening(rig)
        raised.clear()
        assert rig.app.destroy_guest(GUEST) == DONE
        assert rig.app.create_guest(GUEST) == DONE
        rig.app.kill()
        assert raised == []


def test_a_driver_that_probed_again_is_not_told_of_old_waits() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        raised = listening(rig)
        rig.app.kill()
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == OK
        assert values(rig) == []
        assert len(raised) == 1
        # It listens only if it says so again, and then a second death is told as well.
        assert rig.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)[0] == OK
        rig.app.kill()
        assert len(raised) == 2
        assert values(rig)


def test_the_control_domain_gets_nowhere_before_its_driver_has_probed() -> None:
    """Session 1 and thread 0 of the old partition are somebody else's in the new one."""
    with app_rig(LocalApp, control=GUEST) as rig:
        regs = rig.invoke(RAM + 0x2000, Slow.PASS, interrupted=True)
        assert regs[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
        old = regs[3]
        rig.app.kill()
        entries = rig.app.usage(GUEST).entries
        for function in sorted(aftermath.PROBED):
            x0 = rig.smc(function, 0, RAM + 0x2000, old)[0]
            assert x0 == {
                smc.OPTEE_SMC_ENABLE_SHM_CACHE: OK,
                smc.OPTEE_SMC_CALL_RETURN_FROM_RPC: smc.OPTEE_SMC_RETURN_ERESUME,
            }.get(function, ENOTAVAIL)
        assert rig.app.usage(GUEST).entries == entries  # the app was not even entered
        assert rig.app.handle(GUEST, 0, (UNFORWARDED, *[0] * 7)) == NOT_MINE
        assert rig.smc(smc.OPTEE_SMC_GET_THREAD_COUNT)[0] == OK
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == OK
        rig.monitor.pending = 0
        rig.session()


def test_the_state_after_a_death_is_in_snapshots() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        listening(rig)
        rig.app.kill()
        kept = rig.app.snapshot()
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == OK
        rig.app.restore(kept)
        assert rig.smc(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)[0] == ENOTAVAIL
        assert values(rig)


def test_a_bitmap_of_waits() -> None:
    assert aftermath.owed(0) == 0
    assert aftermath.owed(2) == 3 << 64
    grant = Grant(OTHER, 1)
    grant.renewed, grant.owed = True, aftermath.owed(1)
    frame = (smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE, 9, 9, 9, 9, 9, 9, 9)
    assert aftermath.answer(grant, frame) == (OK, 0x40, 1, 9, 9, 9, 9, 9)
