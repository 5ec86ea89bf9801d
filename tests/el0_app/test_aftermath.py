# SPDX-License-Identifier: BSD-2-Clause
"""After the death of an app no driver waits for ever: which answers end its calls."""

from __future__ import annotations

import struct

import pytest

from mediator.deployment.el0_app import aftermath
from mediator.deployment.el0_app.deployment import ENOTAVAIL
from mediator.deployment.el0_app.grants import Grant
from mediator.deployment.face import NOT_MINE
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from smccc.registers import pair
from smccc.wire import MESSAGE, message_size
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig, app_rig
from tests.mediator.rig import msg
from tests.mediator.with_optee import CLASSIC, GUEST, OTHER, RAM, Slow

OK = smc.OPTEE_SMC_RETURN_OK
UNFORWARDED = 0xB200_0077
"""A fast call that nobody knows."""


def listening(rig: AppRig) -> list[tuple[int, int]]:
    """The guest listens to notifications; the interrupts that guests get."""
    raised: list[tuple[int, int]] = []
    rig.host.virq_sink = lambda guest, intid: raised.append((guest, intid))
    assert rig.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)[0] == OK
    return raised


def waiting(rig: AppRig, ipa: int) -> tuple[int, int]:
    """A thread that holds a lock, and one that waits for it, in the driver: for the value 0x40 + its number."""
    holder = rig.invoke(ipa + 0x2000, Slow.HOLD, interrupted=True)
    rig.monitor.pending = 1
    holder = rig.resume(holder[3])
    assert holder[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
    regs = rig.invoke(ipa, Slow.LOCKED)
    assert regs[0] == smc.OPTEE_SMC_RETURN_RPC_CMD
    fields = MESSAGE[1].unpack(rig.get(ipa + message_size(0), message_size(1)))
    assert fields[0] == optee_rpc.OPTEE_RPC_CMD_NOTIFICATION
    assert fields[9:11] == (optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT, 0x40 + regs[3])
    return holder[3], regs[3]


def values(rig: AppRig) -> list[int]:
    """The notification values that the guest is told."""
    told: list[int] = []
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
        thread = waiting(rig, RAM + 0x2000)[1]
        raised.clear()
        rig.app.kill()
        assert raised == [(GUEST, rig.app.settings.notification_virq)]
        assert values(rig) == [0x40 + thread]
        assert values(rig) == []


def test_nobody_is_interrupted_for_waits_that_are_over() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        raised = listening(rig)
        for thread in waiting(rig, RAM + 0x2000):
            regs = rig.resume(thread)
            while regs[0] & 0xFFFF_0000 == smc.OPTEE_SMC_RETURN_RPC_PREFIX:
                regs = rig.resume(regs[3])
            assert regs[0] == OK
        raised.clear()
        rig.app.kill()
        assert raised == []


def test_who_does_not_listen_is_not_interrupted() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        raised: list[tuple[int, int]] = []
        rig.host.virq_sink = lambda guest, intid: raised.append((guest, intid))
        waiting(rig, RAM + 0x2000)
        rig.app.kill()
        assert raised == []


def test_a_driver_that_probed_again_is_not_told_of_old_waits() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        raised = listening(rig)
        waiting(rig, RAM + 0x2000)
        raised.clear()
        rig.app.kill()
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == OK
        assert values(rig) == []
        assert len(raised) == 1
        assert rig.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)[0] == OK
        rig.app.kill()
        assert len(raised) == 1
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == OK
        assert rig.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)[0] == OK
        waiting(rig, RAM + 0x2000)
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
        waiting(rig, RAM + 0x2000)
        before = rig.app.snapshot()
        rig.app.restore(before)
        rig.app.kill()
        kept = rig.app.snapshot()
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == OK
        rig.app.restore(kept)
        assert rig.smc(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)[0] == ENOTAVAIL
        assert values(rig)


def test_a_bitmap_of_waits() -> None:
    grant = Grant(OTHER, 1)
    assert grant.lent.awaited() == 0
    grant.lent.waits.update({0: 20, 3: 0x43, 5: 20})
    assert grant.lent.awaited() == 1 << 20 | 1 << 0x43
    grant.renewed, grant.owed = True, 1 << 0x40
    frame = (smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE, 9, 9, 9, 9, 9, 9, 9)
    assert aftermath.answer(ReferenceHost(PhysicalMemory()), grant, frame) == (
        OK,
        0x40,
        1,
        9,
        9,
        9,
        9,
        9,
    )


# --- what a driver has lent -------------------------------------------------------------------------

PAGE = RAM + 0x8000
"""The page that a classic driver lends for messages."""
BUFFER = RAM + 0xA000
COOKIE = 0x1_2345_6000


def away_for_memory(rig: AppRig) -> tuple[int, int]:
    """A call that asks for memory: its thread, and where the request lies."""
    regs = rig.invoke(RAM + 0x2000, Slow.ALLOCATE)
    at = RAM + 0x2000 + message_size(0)
    if rig.classic:
        assert regs[0] == smc.OPTEE_SMC_RETURN_RPC_ALLOC
        regs = rig.resume(regs[3], PAGE >> 32, PAGE & 0xFFFF_FFFF, 0, 0x77)
        at = PAGE
    assert regs[0] == smc.OPTEE_SMC_RETURN_RPC_CMD
    (command,) = struct.unpack("<I", rig.get(at, 4))
    assert command == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC
    return regs[3], at


def lend(rig: AppRig, at: int) -> None:
    """The driver's answer to the request: a buffer under :data:`COOKIE`."""
    listed = rig.page_list(RAM + 0x1E_0000, BUFFER)
    rig.put(at, MESSAGE[1].pack(6, 0, 0, 0, 0, 0, 0, 1, 0x20A, listed, 4096, COOKIE))


def freed(rig: AppRig) -> list[int]:
    """What a driver is told to free when it takes back a page: each by an RPC of that call."""
    found = []
    at = RAM + 0x5000
    regs = rig.call(at, msg(5, params=[(5, 0, 0, 0x99)]))
    while regs[0] == smc.OPTEE_SMC_RETURN_RPC_CMD:
        fields = MESSAGE[1].unpack(rig.get(at + message_size(1), message_size(1)))
        assert fields[0] == optee_rpc.OPTEE_RPC_CMD_SHM_FREE
        assert fields[7:10] == (1, 1, optee_rpc.OPTEE_RPC_SHM_TYPE_KERNEL)
        found.append(fields[10])
        regs = rig.resume(regs[3])
    assert regs[0] == ENOTAVAIL
    return found


@pytest.mark.parametrize("control", [None, GUEST])
def test_a_driver_gets_back_what_it_has_lent(control: int | None) -> None:
    with app_rig(LocalApp, control=control) as rig:
        thread, at = away_for_memory(rig)
        lend(rig, at)
        rig.monitor.pending = 1
        rig.resume(thread)
        rig.app.kill()
        assert freed(rig) == [COOKIE]
        assert freed(rig) == []


def test_what_it_has_got_back_is_not_given_twice() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        thread, at = away_for_memory(rig)
        lend(rig, at)
        regs = rig.resume(thread)
        while regs[0] & 0xFFFF_0000 == smc.OPTEE_SMC_RETURN_RPC_PREFIX:
            regs = rig.resume(regs[3])
        assert regs[0] == OK
        rig.app.kill()
        assert freed(rig) == []


def test_an_answer_without_memory_lends_nothing() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        thread, at = away_for_memory(rig)
        rig.put(at, MESSAGE[1].pack(6, 0, 0, 0, 0, 0xFFFF_000C, 2, 1, 0x20A, 0, 0, COOKIE))
        rig.resume(thread)
        rig.app.kill()
        assert freed(rig) == []


def test_a_classic_driver_gets_it_back_from_the_cache() -> None:
    with app_rig(LocalApp, CLASSIC, control=GUEST) as rig:
        thread, at = away_for_memory(rig)
        lend(rig, at)
        rig.monitor.pending = 1
        rig.resume(thread, 0, 0)
        rig.app.kill()
        found = []
        while (regs := rig.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE))[0] == OK:
            found.append(pair(regs[1], regs[2]))
        assert regs[0] == ENOTAVAIL
        assert sorted(found) == [0x77, COOKIE]


def test_a_page_lent_while_the_app_died_is_given_back() -> None:
    with app_rig(LocalApp, CLASSIC, control=GUEST) as rig:
        regs = rig.invoke(RAM + 0x2000, Slow.ALLOCATE)
        assert regs[0] == smc.OPTEE_SMC_RETURN_RPC_ALLOC
        rig.app.kill()
        assert rig.resume(regs[3], PAGE >> 32, PAGE & 0xFFFF_FFFF, 0, 0x77)[0] != OK
        assert rig.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[:3] == (OK, 0, 0x77)
        assert rig.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[0] == ENOTAVAIL


def test_messages_that_have_no_room_for_an_rpc_get_none() -> None:
    with app_rig(LocalApp, control=GUEST) as rig:
        thread, at = away_for_memory(rig)
        lend(rig, at)
        rig.monitor.pending = 1
        rig.resume(thread)
        rig.app.kill()
        rig.put(RAM + 0x5000, msg(5)[:28] + struct.pack("<I", 0xFFFF_FFFF))
        low = (RAM + 0x5000) & 0xFFFF_FFFF
        for a1, a2 in (((RAM + 0x5000) >> 32, low), (0, 0), (0, low | 0xFF8), (0xFFFF, 0)):
            assert rig.smc(smc.OPTEE_SMC_CALL_WITH_RPC_ARG, a1, a2)[0] == ENOTAVAIL
        assert freed(rig) == [COOKIE]


def test_a_driver_that_probed_again_has_lent_nothing() -> None:
    with app_rig(LocalApp, CLASSIC, control=GUEST) as rig:
        away_for_memory(rig)
        rig.app.kill()
        kept = rig.app.snapshot()
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == OK
        assert rig.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[0] == ENOTAVAIL
        rig.app.restore(kept)
        assert rig.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[:3] == (OK, 0, 0x77)
