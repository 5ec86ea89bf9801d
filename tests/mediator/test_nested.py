# SPDX-License-Identifier: BSD-2-Clause
"""What another processor does while an entry is inside a call of the host (classes 12, 13, 14, 17)."""

from __future__ import annotations

import struct

import pytest

from mediator.deployment.face import NOT_MINE, Completed, Done, Preempted, Refused
from mediator.optee.lifecycle import LAST_CLIENT
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import OK4, RAM, Answer, Rig, Script, answer, msg

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
FREE = smc.OPTEE_SMC_RETURN_RPC_FREE
GENERIC = 0xFFFF0000
PAGE = RAM + 0x8000
COOKIE = 5


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- the beginning of a guest ----------------------------------------------------------------


@pytest.mark.parametrize("accepted", [True, False])
def test_a_guest_that_is_destroyed_while_it_is_created(rig: Rig, accepted: bool) -> None:
    """Its creation ends first: told to come again, the host destroys what is then there."""
    seen: list[object] = []

    def created(rig: Rig, regs: tuple[int, ...]) -> Answer:
        seen.append(rig.tee.destroy_guest(5))
        return OK4 if accepted else (smc.OPTEE_SMC_RETURN_ENOTAVAIL, 0, 0, 0)

    rig.host.script = [created]
    assert rig.tee.create_guest(5) == (Done() if accepted else Refused())
    assert seen == [Preempted()]
    uid = (smc.OPTEE_SMC_CALLS_UID, *[0] * 7)
    assert isinstance(rig.tee.handle(5, 0, uid), Completed) == accepted
    rig.host.sent.clear()
    assert rig.tee.destroy_guest(5) == Done()
    assert [sent[:2] for sent in rig.host.sent] == [(smc.OPTEE_SMC_VM_DESTROYED, 6)] * accepted
    assert rig.tee.handle(5, 0, uid) == NOT_MINE


@pytest.mark.parametrize("base", [1, 0x100])
def test_a_client_id_that_the_tee_would_cut_is_refused(base: int) -> None:
    """OP-TEE looks at 16 bits of a7: guest 0x10000 would be given the partition of guest 0."""
    rig = Rig(MediatorSettings(client_id_base=base))
    assert rig.tee.create_guest(LAST_CLIENT - base) == Done()
    rig.host.sent.clear()
    for guest in (LAST_CLIENT - base + 1, LAST_CLIENT + 1, 0x2_0000):
        assert rig.tee.create_guest(guest) == Refused()
        assert rig.tee.handle(guest, 0, (smc.OPTEE_SMC_CALLS_UID, *[0] * 7)) == NOT_MINE
    assert not rig.host.sent


# --- an RPC buffer that goes while it is in use ------------------------------------------------


def ask(command: int) -> Script:
    """The TEE asks with the RPC buffer that it was just given, or was given before."""

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        core = rig.tee.mediator._core
        shadow = core.guests[0].rpc_buffers[COOKIE].shadow
        assert shadow is not None
        shadow.mem[:64] = msg(command, ret=GENERIC, params=[(1, 0, 0x1000, 8)])
        return (CMD, 0, COOKIE, 1)

    return script


def asked(rig: Rig, command: int = 3) -> None:
    """A classic call that the TEE left with a request in an RPC buffer."""
    rig.put(RAM, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1), ask(command)]
    rig.call(ARG, 0, RAM)
    assert rig.call(RETURN, 0, PAGE, 1, 0, COOKIE)[0] == CMD


def another_processor(rig: Rig) -> None:
    """Another call, with which the TEE frees the buffer; then the other guest takes its page."""
    rig.put(RAM + 0x2000, msg(1))
    rig.host.script = [answer(FREE, 0, COOKIE, 2)]
    assert rig.call(ARG, 0, RAM + 0x2000)[0] == FREE
    assert rig.host.pa(0, PAGE) not in rig.host.pins
    rig.put(RAM, msg(1, params=[(1, 7, 7, 7)]), guest=1)
    rig.host.script = [answer(INTR, 0, 0, 0)]
    assert rig.call(ARG, 0, RAM, guest=1)[0] == INTR
    rig.host.script = []


@pytest.mark.parametrize("method", ["read_guest", "read_page_list", "pin_pages", "write_guest"])
def test_a_page_in_use_is_nobody_elses(rig: Rig, method: str) -> None:
    """Otherwise the answer of one guest would be written into the message of another."""
    asked(rig, command=6)
    rig.put_list(RAM + 0xB_000, [RAM + 0x50_000 if method == "pin_pages" else 0])
    address = 0 if method == "write_guest" else RAM + 0xB_000
    rig.put(PAGE, msg(6, params=[(0x20A, address | 1, 0x800, 0x77)]))
    done: list[memoryview] = []
    original = getattr(rig.host, method)

    def racing(*arguments: object) -> object:
        if not done:
            done.append(memoryview(b""))
            another_processor(rig)
            done[0] = rig.shadow()
        return original(*arguments)

    setattr(rig.host, method, racing)
    rig.call(RETURN, 0, COOKIE, 1)
    assert bytes(done[0][:64]) == msg(1, params=[(1, 7, 7, 7)])
    assert rig.call(RETURN, 0, 0, 2)[0] == 0
    assert rig.call(RETURN, 0, 0, 0, guest=1)[0] == 0
    for guest in (0, 1):
        assert rig.tee.destroy_guest(guest) == Done()
    assert not rig.pinned()
    assert {page.pa for page in rig.tee.mediator._core.free_pages} == set(rig.host.shadows)


def test_a_request_whose_page_goes_while_it_is_written(rig: Rig) -> None:
    rig.put(RAM, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
    rig.call(ARG, 0, RAM)
    write = rig.host.write_guest
    done: list[memoryview] = []

    def racing(guest: int, ipa: int, segments: list[tuple[int, bytes]]) -> bool:
        if not done and ipa == PAGE:
            done.append(memoryview(b""))
            another_processor(rig)
            done[0] = rig.shadow()
            return False
        return write(guest, ipa, segments)

    rig.host.write_guest = racing  # type: ignore[method-assign, assignment]
    rig.host.script = [ask(3)]
    assert rig.call(RETURN, 0, PAGE, 1, 0, COOKIE)[0] == 0
    assert bytes(done[0][:64]) == msg(1, params=[(1, 7, 7, 7)])
    assert rig.info()[3] == 0


@pytest.mark.parametrize("state", ["own request", "walk"])
def test_an_answer_whose_buffer_has_gone_leaves_nothing_behind(state: str) -> None:
    """The call goes on, and its next answer is judged by its own request."""
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    asked(rig, command=6)
    pages = [RAM + 0x50_000] * 600 if state == "walk" else [0]
    rig.put_list(RAM + 0xB_000, pages)
    rig.put(PAGE, msg(6, params=[(0x20A, RAM + 0xB_000, len(pages) << 12, 0x77)]))
    rig.host.preempt = [True]
    assert rig.call(RETURN, 0, COOKIE, 1)[0] == (INTR if state == "walk" else CMD)
    another_processor(rig)
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1), ask(3)]
    assert rig.call(RETURN, 0, COOKIE, 1)[0] == smc.OPTEE_SMC_RETURN_RPC_ALLOC
    assert rig.info() == (2, 0, 0, 0)
    assert not rig.pinned()
    assert rig.call(RETURN, 0, PAGE, 1, 0, COOKIE)[0] == CMD
    rig.put(PAGE, msg(3, params=[(2, 11, 22, 33)]))
    seen: list[tuple[int, ...]] = []

    def told(rig: Rig, regs: tuple[int, ...]) -> Answer:
        shadow = rig.tee.mediator._core.guests[0].rpc_buffers[COOKIE].shadow
        assert shadow is not None
        seen.append(struct.unpack_from("<4Q", shadow.mem, 32))
        return OK4

    rig.host.script = [told]
    assert rig.call(RETURN, 0, COOKIE, 1)[0] == 0
    assert seen == [(2, 11, 22, 33)]
