# SPDX-License-Identifier: BSD-2-Clause
"""The cookie of a refused RPC buffer comes back by FREE, whosever it is (classes 6, 14, 24).

OP-TEE gives the cookie of an answer to ALLOC back also if there was no page with it
(``thread_rpc_alloc_arg`` of its ``thread_optee_smc.c``). A guest that answers one thread with the
cookie that another thread uses would so take that thread's page away: the next call, perhaps of
another guest, would get it, while the thread goes on reading and writing there.
"""

from __future__ import annotations

import pytest

from mediator.checkers.watch import InvariantViolated
from mediator.host import PAGE_SIZE
from smccc.constants import optee_smc as smc
from specs.mutants import load, planted
from tests.mediator.rig import RAM, Rig, answer, msg
from tests.mediator.test_snapshot import swap
from tests.mediator.with_optee import CLASSIC, GUEST, OTHER, Slow, WithOptee

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
ALLOC = smc.OPTEE_SMC_RETURN_RPC_ALLOC
FREE = smc.OPTEE_SMC_RETURN_RPC_FREE
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
COOKIE = 0x4242
FIRST, SECOND = RAM + 0x8000, RAM + 0x9000
MUTANT = "hold.refused-cookie-frees"


def two_threads_one_cookie() -> tuple[WithOptee, tuple[int, ...], tuple[int, ...]]:
    """Thread 0 waits for an SHM_ALLOC in its page; thread 1 was told the same cookie, and frees it."""
    optee = WithOptee(CLASSIC)
    first = optee.invoke(RAM + 0x1000, Slow.ALLOCATE)
    session = optee.session()
    first = optee.resume(first[3], 0, FIRST, 0, COOKIE)
    assert first[0] == CMD
    second = optee.call(RAM + 0x2000, msg(1, func=Slow.ALLOCATE, session=session))
    assert second[0] == ALLOC
    second = optee.resume(second[3], 0, SECOND, 0, COOKIE)
    assert second[:3] == (FREE, 0, COOKIE)
    return optee, first, second


def cookie_in_use() -> WithOptee:
    """The whole story: the other guest calls at the worst moment, then everything ends."""
    optee, first, second = two_threads_one_cookie()
    assert optee.host.pinned(GUEST) == 1
    optee.put(RAM, msg(1, session=9, params=[(1, 7, 7, 7)]), OTHER)
    assert optee.smc(ARG, 0, RAM, guest=OTHER)[0] == 0
    listed = optee.page_list(RAM + 0x10_0000, RAM + 0x60_000)
    optee.put(FIRST, msg(6, params=[(0x20A, listed, PAGE_SIZE, 0x77)]))
    first = optee.resume(first[3], 0, COOKIE)
    assert first[:3] == (CMD, 0, COOKIE), "SHM_FREE in the page that it still has"
    first = optee.resume(first[3], 0, COOKIE)
    assert first[:3] == (FREE, 0, COOKIE)
    assert optee.resume(first[3])[0] == 0
    second = optee.resume(second[3])
    assert second[0] == ALLOC, "it tries once more"
    second = optee.resume(second[3])
    assert second[0] == 0
    return optee


def test_a_refused_cookie_frees_nobody_elses_page() -> None:
    optee = cookie_in_use()
    assert optee.result(RAM + 0x1000)[0] == 0
    assert optee.clean()


def test_the_checkers_see_the_page_of_another_guest() -> None:
    """Planted: the TEE goes on in a page that belongs to the other guest's call by then."""
    with planted(load()[MUTANT]):
        optee, first, _ = two_threads_one_cookie()
        assert optee.host.pinned(GUEST) == 0
        optee.put(RAM, msg(5, params=[(5, 0, 0, 1)]), OTHER)

        def meanwhile() -> None:
            optee.put(FIRST, msg(6, ret=0xFFFF_000C))
            optee.resume(first[3], 0, COOKIE)

        shadow = optee.host.secure_smc
        assert shadow is not None

        def racing(*regs: int) -> tuple[int, int, int, int]:
            if regs[0] == ARG and regs[7] == OTHER + 1:
                meanwhile()
            return shadow(*regs)

        optee.host.secure_smc = racing
        optee.smc(ARG, 0, RAM, guest=OTHER)
        with pytest.raises(InvariantViolated, match=r"I2 guest 1: the TEE touches mediator page"):
            optee.watch.check()


def allocating(optee: WithOptee, ipa: int) -> tuple[int, ...]:
    """A call that the TEE left with SHM_ALLOC in the argument behind its message."""
    session = optee.session()
    out = optee.call(ipa, msg(1, func=Slow.ALLOCATE, session=session))
    assert out[0] == CMD
    return out


@pytest.mark.parametrize("attr", [0x20A, 0xA])
def test_an_answer_without_memory_frees_nobody_elses_buffer(attr: int) -> None:
    """The same with memory: OP-TEE frees the reference of a buffer at address 0, which it refuses."""
    optee = WithOptee()
    first = allocating(optee, RAM + 0x1000)
    listed = optee.page_list(RAM + 0x10_0000, RAM + 0x60_000)
    optee.put(RAM + 0x1020, msg(6, params=[(0x20A, listed, PAGE_SIZE, COOKIE)]))
    optee.monitor.pending = 1
    first = optee.resume(first[3])
    assert first[0] == INTR, "it has the buffer now"
    second = allocating(optee, RAM + 0x2000)
    optee.put(RAM + 0x2020, msg(6, params=[(attr, 0, PAGE_SIZE, COOKIE)]))
    second = optee.resume(second[3])
    free = msg(7, session=0, ret=0xFFFF_0000, params=[(1, 0, COOKIE, 0)])
    assert optee.get(RAM + 0x2020, 64) == free
    assert optee.host.pinned(GUEST) == 1
    second = optee.resume(second[3])
    assert second[0] == CMD, "it tries once more"
    optee.put(RAM + 0x2020, msg(6, ret=0xFFFF_000C))
    assert optee.resume(second[3])[0] == 0
    first = optee.resume(first[3])
    assert optee.get(RAM + 0x1020, 64) == free
    assert not optee.host.pinned(GUEST), "the one that has it has let go"
    assert optee.resume(first[3])[0] == 0
    assert optee.clean()


@pytest.mark.parametrize("snapshot", [False, True])
def test_only_the_refused_cookie_and_only_once(snapshot: bool) -> None:
    """FREE of any other name, and a second FREE of this one, are what they say."""
    rig = Rig()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(ALLOC, 0xA0, 0, 1), answer(INTR, 0, 0, 1)]
    rig.call(ARG, 0, RAM)
    rig.call(RETURN, 0, FIRST, 1, 0, COOKIE)
    rig.put(RAM + 0x3000, msg(1))
    rig.host.script = [answer(ALLOC, 0xA0, 0, 2), answer(INTR, 0, 0, 2)]
    rig.call(ARG, 0, RAM + 0x3000)
    rig.call(RETURN, 0, SECOND, 2, 0, COOKIE)
    assert rig.host.sent[-1][1:6] == (0, 0, 2, 0, COOKIE)
    if snapshot:
        swap(rig)
    for left in (1, 0):
        rig.host.script = [answer(FREE, 0, COOKIE, 2)]
        assert rig.call(RETURN, 0, 0, 2)[:4] == (FREE, 0, COOKIE, 2)
        assert rig.info()[3] == left
    assert not rig.pinned()


def test_the_thread_that_has_the_page_frees_it_in_any_case() -> None:
    """A TEE that asks twice in one thread, and is told the same cookie twice."""
    rig = Rig()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(ALLOC, 0xA0, 0, 1), answer(ALLOC, 0xA0, 0, 1)]
    rig.call(ARG, 0, RAM)
    rig.call(RETURN, 0, FIRST, 1, 0, COOKIE)
    rig.host.script = [answer(FREE, 0, COOKIE, 1)]
    assert rig.call(RETURN, 0, SECOND, 1, 0, COOKIE)[0] == FREE
    assert rig.info()[3] == 0
    assert not rig.pinned()
