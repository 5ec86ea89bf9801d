# SPDX-License-Identifier: BSD-2-Clause
"""UNREGISTER_SHM against REGISTER_SHM and other UNREGISTERs of the same name, in every overlap.

What counts is the buffer that has the name when the TEE answers. Neither may a pin stay with a name
that the guest can no longer release, nor may a buffer be unpinned that the TEE still has.
"""

from __future__ import annotations

import pytest

from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, Script, answer, msg, results

RPC_ARG, RETURN = smc.OPTEE_SMC_CALL_WITH_RPC_ARG, smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
BAD_PARAMETERS = 0xFFFF0006
COOKIE = 0x1_0000_2480
OLD, NEW = RAM + 0x50_000, RAM + 0x51_000
MESSAGE = RAM + 0x3000
LIST = RAM + 0x20_000
OWN_THREAD = 0x1_0000


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    assert rig.register(COOKIE, [OLD])[0] == 0
    return rig


def unregister(rig: Rig, *script: Script, more: tuple[int, int, int, int] | None = None) -> int:
    """UNREGISTER of :data:`COOKIE` with a message of its own; x0."""
    params = [(5, 0, 0, COOKIE)] + ([] if more is None else [more])
    rig.put(MESSAGE, msg(5, params=params))
    rig.host.script = list(script)
    return rig.call(RPC_ARG, 0, MESSAGE, 0)[0]


def again(rig: Rig) -> None:
    """A second UNREGISTER, and a REGISTER of another page under the same name, both accepted."""
    assert rig.unregister(COOKIE)[0] == 0
    assert rig.info()[1] == 0, "the name is free again"
    assert rig.register(COOKIE, [NEW])[0] == 0
    assert rig.message(RAM + 0x1000, 1)[5] == 0
    assert pins(rig) == [NEW]


def pins(rig: Rig) -> list[int]:
    """The pages of the two buffers that are pinned."""
    return [page for page in (OLD, NEW) if rig.host.pins[rig.host.pa(0, page)]]


def accepts_after_another(rig: Rig, regs: tuple[int, ...]) -> Answer:
    again(rig)
    return (0, 0, 0, 0)


@pytest.mark.parametrize("suspended", [False, True])
def test_the_buffer_of_the_answer_goes_not_the_one_of_the_beginning(
    rig: Rig, suspended: bool
) -> None:
    """In the TEE it came third: after the other UNREGISTER and the new REGISTER."""
    if suspended:
        assert unregister(rig, answer(INTR, 0, 0, 1)) == INTR
        again(rig)
        assert rig.call(RETURN, 0, 0, 1)[0] == 0
    else:
        assert unregister(rig, accepts_after_another) == 0
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()
    rig.register(COOKIE, [OLD])
    assert rig.message(RAM + 0x1000, 1)[5] == 0, "the name can be used again"


def test_one_that_the_tee_refused_releases_neither(rig: Rig) -> None:
    assert unregister(rig, answer(INTR, 0, 0, 1)) == INTR
    page = rig.shadow()
    again(rig)

    def refuses(rig: Rig, regs: tuple[int, ...]) -> Answer:
        page[20:24] = BAD_PARAMETERS.to_bytes(4, "little")
        return (0, 0, 0, 0)

    rig.host.script = [refuses]
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert rig.message(MESSAGE, 1)[5] == BAD_PARAMETERS
    assert pins(rig) == [NEW]
    assert rig.info() == (0, 1, 1, 0)


def test_a_new_registration_that_is_still_with_the_tee_is_dropped_at_its_end(rig: Rig) -> None:
    """The TEE has registered it, and dropped it for the older UNREGISTER, before it came back."""
    assert unregister(rig, answer(INTR, 0, 0, 1)) == INTR
    assert rig.unregister(COOKIE)[0] == 0

    def overtaken(rig: Rig, regs: tuple[int, ...]) -> Answer:
        assert rig.call(RETURN, 0, 0, 1)[0] == 0
        assert pins(rig) == [NEW], "until its own call is back"
        return (0, 0, 0, 0)

    rig.host.script = [overtaken]
    assert rig.register(COOKIE, [NEW])[0] == 0
    assert not rig.pinned()
    assert rig.info() == (0, 0, 0, 0)


@pytest.mark.parametrize("refused", [False, True])
def test_a_registration_that_the_tee_has_not_heard_of_is_not_meant(refused: bool) -> None:
    """Its walk was stopped; an UNREGISTER that is answered meanwhile is about something older."""
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    rig.host.preempt = [True]
    assert rig.register(COOKIE, [NEW] * 600)[3] == OWN_THREAD
    assert unregister(rig, results(BAD_PARAMETERS) if refused else answer()) == 0
    assert rig.call(RETURN, 0, 0, OWN_THREAD)[0] == 0
    assert rig.message(RAM + 0x1000, 1)[5] == 0
    assert rig.info() == (0, 1, 600, 0)
    assert rig.pinned() == 600
    assert unregister(rig) == 0
    assert not rig.pinned()


def test_the_name_is_looked_up_before_anything_is_awaited(rig: Rig) -> None:
    """The guest takes the name again while the answer is still being worked off."""
    unpin = rig.host.unpin_pages
    struck: list[int] = []

    def racing(guest: int, frames: bytes) -> None:
        unpin(guest, frames)
        if not struck:
            struck.append(1)
            rig.register(COOKIE, [NEW])
            struck.append(rig.message(RAM + 0x1000, 1)[5])

    rig.host.unpin_pages = racing  # type: ignore[method-assign]
    rig.put_list(LIST, [RAM + 0x60_000])
    # A parameter too many, with memory of its own: what the TEE thinks of it is its affair.
    assert unregister(rig, more=(0x209, LIST, PAGE_SIZE, 7)) == 0
    assert struck == [1, 0]
    assert pins(rig) == [NEW]
    assert rig.info() == (0, 1, 1, 0)


def test_memory_of_the_call_itself_under_the_name_is_not_a_registration(rig: Rig) -> None:
    """A temporary buffer in the place of the reference: its own call releases it, once."""
    rig.put_list(LIST, [NEW])
    rig.put(MESSAGE, msg(5, params=[(0x209, LIST, PAGE_SIZE, 7)]))
    assert rig.call(RPC_ARG, 0, MESSAGE, 0)[0] == 0
    assert pins(rig) == [OLD]
    assert rig.info() == (0, 1, 1, 0)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_two_at_once_release_once(rig: Rig, order: tuple[int, int]) -> None:
    """Both accepted, which a TEE does not do: the second finds nothing."""
    for thread, page in ((1, MESSAGE), (2, MESSAGE + PAGE_SIZE)):
        rig.put(page, msg(5, params=[(5, 0, 0, COOKIE)]))
        rig.host.script = [answer(INTR, 0, 0, thread)]
        assert rig.call(RPC_ARG, 0, page, 0)[0] == INTR
    for thread in order:
        assert rig.call(RETURN, 0, 0, thread)[0] == 0
        assert rig.info()[1:3] == (0, 0)
    assert not rig.pinned()


def test_nothing_of_an_unregister_on_its_way_is_lost_in_a_snapshot(rig: Rig) -> None:
    assert unregister(rig, answer(INTR, 0, 0, 1)) == INTR
    again(rig)
    rig.tee.restore(rig.tee.snapshot())
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert not rig.pinned()
    assert rig.info() == (0, 0, 0, 0)
