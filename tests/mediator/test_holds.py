# SPDX-License-Identifier: BSD-2-Clause
"""What the TEE may still use is not let go, whoever took it (classes 12, 14, 16, 29).

A guest may name any of its memory in any call, also the buffer that another of its calls brought
along; OP-TEE finds both by the same cookie and counts its users. The mediator sees only the names.
"""

from __future__ import annotations

import struct

import pytest

from mediator.deployment.face import Done
from mediator.host import PAGE_SIZE
from mediator.hypervisor.stage2 import OWN_RO
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, answer, msg, request
from tests.mediator.test_snapshot import swap
from tests.mediator.with_optee import CLASSIC, GUEST, Slow, WithOptee

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
ALLOC = smc.OPTEE_SMC_RETURN_RPC_ALLOC
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
BAD_PARAMETERS = 0xFFFF0006
COMMS = 2
BUFFER = RAM + 0x50_000
COOKIE = 0xFFFF_0000_0000_2480
FIRST, SECOND = RAM, RAM + 0x3000


@pytest.fixture
def rig() -> Rig:
    return Rig()


def bring(rig: Rig, thread: int = 1, cookie: int = COOKIE) -> None:
    """A call with a temporary buffer of its own, suspended."""
    rig.put_list(RAM + 0xB_000, [BUFFER])
    rig.put(FIRST, msg(1, params=[(0x20A, RAM + 0xB_000, 64, cookie)]))
    rig.host.script = [answer(INTR, 0, 0, thread)]
    assert rig.call(RPC_ARG, 0, FIRST)[0] == INTR


def name(rig: Rig, thread: int = 2, cookie: int = COOKIE) -> None:
    """A call that names memory by its cookie, suspended."""
    rig.put(SECOND, msg(1, params=[(1, 0, 0, 0), (6, 0, 64, cookie)]))
    rig.host.script = [answer(INTR, 0, 0, thread)]
    assert rig.call(RPC_ARG, 0, SECOND)[0] == INTR


def end(rig: Rig, thread: int) -> None:
    rig.host.script = [answer()]
    assert rig.call(RETURN, 0, 0, thread)[0] == 0


@pytest.mark.parametrize("named_first", [False, True])
def test_a_temporary_buffer_stays_while_another_call_names_it(rig: Rig, named_first: bool) -> None:
    """Also if the name came first: the TEE may look it up at any time of the call."""
    for step in (name, bring) if named_first else (bring, name):
        step(rig)
    end(rig, 1)
    assert rig.pinned() == 1
    assert rig.info() == (1, 1, 1, 0), "what is held counts"
    end(rig, 2)
    assert not rig.pinned()
    assert rig.info() == (0, 0, 0, 0)


def test_the_name_is_free_at_once(rig: Rig) -> None:
    bring(rig)
    name(rig)
    end(rig, 1)
    bring(rig)
    end(rig, 1)
    assert rig.pinned() == 2
    end(rig, 2)
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()


def test_what_is_held_is_limited() -> None:
    rig = Rig(MediatorSettings(limits=Limits(buffers=3)))
    name(rig)
    for _ in range(3):
        bring(rig)
        end(rig, 1)
    rig.put(FIRST, msg(1, params=[(0x20A, RAM + 0xB_000, 64, COOKIE)]))
    assert rig.call(RPC_ARG, 0, FIRST)[0] == 0
    assert rig.message(FIRST, 1)[5:7] == (0xFFFF000C, COMMS)
    end(rig, 2)
    assert rig.info() == (0, 0, 0, 0)


def test_a_call_does_not_wait_for_itself(rig: Rig) -> None:
    rig.put_list(RAM + 0xB_000, [BUFFER])
    rig.put(FIRST, msg(1, params=[(0x20A, RAM + 0xB_000, 64, COOKIE), (6, 0, 64, COOKIE)]))
    assert rig.call(RPC_ARG, 0, FIRST)[0] == 0
    assert rig.info() == (0, 0, 0, 0)


def test_a_null_reference_and_other_commands_name_nothing(rig: Rig) -> None:
    """Cookie 0 is a null reference, and only open and invoke take references."""
    for command, cookie in ((1, 0), (5, COOKIE), (2, COOKIE)):
        rig.put(SECOND, msg(command, params=[(5, 0, 0, cookie)]))
        rig.host.script = [answer(INTR, 0, 0, 2)]
        assert rig.call(RPC_ARG, 0, SECOND)[0] == INTR
        bring(rig, cookie=cookie)
        end(rig, 1)
        assert not rig.pinned()
        end(rig, 2)


def test_an_allocation_that_is_named_outlives_its_release(rig: Rig) -> None:
    rig.put(FIRST, msg(1))
    rig.host.script = [request(msg(6, params=[(1, 0, PAGE_SIZE, 8)]))]
    rig.call(RPC_ARG, 0, FIRST)
    rig.put_list(RAM + 0xB_000, [BUFFER])
    rig.put(FIRST + 32, msg(6, params=[(0x20A, RAM + 0xB_000, PAGE_SIZE, COOKIE)]))
    rig.host.script = [answer(INTR, 0, 0, 1)]
    rig.call(RETURN, 0, 0, 1)
    page = rig.shadow()
    name(rig)

    def free(rig: Rig, regs: tuple[int, ...]) -> Answer:
        page[32:96] = msg(7, params=[(1, 0, COOKIE, 0)])
        return (CMD, 0, 0, 1)

    rig.host.script = [free]
    assert rig.call(RETURN, 0, 0, 1)[0] == CMD
    assert rig.pinned() == 1
    end(rig, 2)
    assert not rig.pinned()
    end(rig, 1)
    assert rig.info() == (0, 0, 0, 0)


def test_the_end_of_the_guest_releases_what_is_held(rig: Rig) -> None:
    bring(rig)
    name(rig)
    end(rig, 1)
    assert rig.tee.destroy_guest(0) == Done()
    assert not rig.pinned()


def test_what_is_held_survives_a_snapshot(rig: Rig) -> None:
    bring(rig)
    name(rig)
    end(rig, 1)
    swap(rig)
    assert rig.info() == (1, 1, 1, 0)
    end(rig, 2)
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()


def classic(rig: Rig, cookie: int) -> Answer:
    """A classic call, suspended with an RPC buffer under ``cookie``; what the TEE was answered."""
    rig.put(FIRST, msg(1))
    rig.host.script = [answer(ALLOC, 0xA0, 0, 1), answer(INTR, 0, 0, 1)]
    rig.call(ARG, 0, FIRST)
    assert rig.call(RETURN, 0, RAM + 0x8000, 1, cookie >> 32, cookie & 0xFFFF_FFFF)[0] == INTR
    a0, a1, a2, a3, *_ = rig.host.sent[-1]
    return a0, a1, a2, a3


@pytest.mark.parametrize("command", [0, 1])
@pytest.mark.parametrize("kind", [5, 6, 7, 0x105, 0x206])
def test_the_page_of_an_rpc_buffer_is_nobodys_parameter(rig: Rig, command: int, kind: int) -> None:
    """The TEE knows the mediator's page by the guest's cookie: named, it would read and write it."""
    classic(rig, COOKIE)
    entries = len(rig.host.sent)
    rig.put(SECOND, msg(command, params=[(2, 0, 0, 0), (kind, 0, 64, COOKIE)]))
    assert rig.call(ARG, 0, SECOND)[0] == 0
    assert len(rig.host.sent) == entries, "not forwarded"
    assert rig.message(SECOND, 2)[5:7] == (BAD_PARAMETERS, COMMS)
    assert rig.info() == (1, 0, 0, 1)


def test_a_null_reference_is_no_rpc_buffer(rig: Rig) -> None:
    classic(rig, 0)
    rig.put(SECOND, msg(1, params=[(5, 0, 0, 0)]))
    assert rig.call(ARG, 0, SECOND)[0] == 0
    assert rig.message(SECOND, 1)[5] == 0


def test_what_a_call_names_cannot_become_an_rpc_buffer(rig: Rig) -> None:
    """Otherwise the TEE, which may be interrupted before it looks, would find the mediator's page."""
    name(rig)
    assert classic(rig, COOKIE) == (RETURN, 0, 0, 1)
    assert rig.info() == (2, 0, 0, 0)
    end(rig, 2)
    end(rig, 1)
    assert classic(rig, COOKIE)[1] != 0


# --- the same with OP-TEE behind -------------------------------------------------------------


def test_a_page_is_not_free_while_a_ta_has_it() -> None:
    """The first call's buffer goes to a second call by its cookie; the first ends, then the second."""
    optee = WithOptee()
    listed = optee.page_list(RAM + 0x10_0000, BUFFER)
    first = optee.invoke(
        RAM + 0x1000, Slow.PASS, [(0x20A, listed, PAGE_SIZE, COOKIE)], interrupted=True
    )
    second = optee.invoke(RAM + 0x2000, Slow.WRITE, [(6, 0, 64, COOKIE)], interrupted=True)
    assert first[0] == second[0] == INTR
    assert optee.resume(first[3])[0] == 0
    frame = optee.pa(BUFFER)
    assert optee.host.balloon_out(GUEST, BUFFER, 1)
    assert optee.memory.word(frame >> 12), "alive until the TEE has let go"
    assert optee.resume(second[3])[0] == 0
    assert optee.result(RAM + 0x2000) == (0, 4)
    assert not optee.memory.word(frame >> 12)
    assert optee.clean()


def test_the_pages_of_a_call_that_cannot_reach_its_guest_stay() -> None:
    """A TA waits for a lock, and the guest has made its message read-only: no RPC gets through.

    OP-TEE then asks again for as long as the lock is held. Its thread keeps the buffer all the time,
    and a third call finds the buffer by its cookie.
    """
    optee = WithOptee()
    holder = optee.invoke(RAM + 0x1000, Slow.HOLD, interrupted=True)
    optee.monitor.pending = 1
    holder = optee.resume(holder[3])
    assert holder[0] == INTR
    listed = optee.page_list(RAM + 0x10_0000, BUFFER)
    session = optee.session()
    smc_of = optee.host.secure_smc
    assert smc_of is not None

    def take_away(*regs: int) -> Answer:
        optee.host.set_kind(GUEST, RAM + 0x2000, 1, OWN_RO)
        return smc_of(*regs)

    optee.host.secure_smc = take_away
    params = [(0x20A, listed, PAGE_SIZE, COOKIE)]
    waiter = optee.call(RAM + 0x2000, msg(1, func=Slow.LOCKED, session=session, params=params))
    optee.host.secure_smc = smc_of
    assert waiter[0] == INTR, "a call that waits goes on later"
    frame = optee.pa(BUFFER)
    assert optee.host.balloon_out(GUEST, BUFFER, 1)
    third = optee.invoke(RAM + 0x3000, Slow.WRITE, [(6, 0, 64, COOKIE)])
    assert third[0] == 0
    assert optee.result(RAM + 0x3000) == (0, 4)
    assert optee.memory.word(frame >> 12)
    out = optee.resume(holder[3])
    while out[0] == CMD:  # SEND to the waiter
        out = optee.resume(holder[3])
    assert out[0] == 0
    out = optee.resume(waiter[3])
    assert out[0] == smc.OPTEE_SMC_RETURN_EBADADDR, "the results cannot be written"
    assert optee.clean()


def test_no_ta_sees_the_mediators_rpc_page() -> None:
    """After an SHM_ALLOC the page holds the address of the mediator's list."""
    optee = WithOptee(CLASSIC)
    optee.register(COOKIE, BUFFER)
    page, cookie = RAM + 0x8000, 0x4242
    first = optee.invoke(RAM + 0x1000, Slow.ALLOCATE)
    assert first[0] == ALLOC
    first = optee.resume(first[3], 0, page, 0, cookie)
    assert first[0] == CMD
    listed = optee.page_list(RAM + 0x10_0000, RAM + 0x60_000)
    optee.put(page, msg(6, params=[(0x20A, listed, PAGE_SIZE, 0x77)]))
    optee.monitor.pending = 1
    first = optee.resume(first[3], 0, cookie)
    assert first[0] == INTR
    params = [(5, 0, 256, cookie), (6, 0, 256, COOKIE)]
    out = optee.invoke(RAM + 0x2000, Slow.COPY, params)
    assert out[0] == 0
    assert optee.result(RAM + 0x2000) == (BAD_PARAMETERS, COMMS)
    assert not any(optee.get(BUFFER, 256))
    assert struct.unpack("<I", optee.get(page, 4))[0] == 6
