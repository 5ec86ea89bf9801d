# SPDX-License-Identifier: BSD-2-Clause
"""What the mediator does in one request where each has its price: lists read and pinned, results with the
return. Against the same steps taken one by one, in the hypervisor."""

from __future__ import annotations

import itertools
import struct

import attrs
import pytest

from mediator.deployment.face import Done
from mediator.host import PAGE_SIZE
from mediator.hypervisor.stage2 import OWN_RO
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.el0_app.test_read_ahead import There, quiet
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, RAM, Slow, WithOptee

STEPS = MediatorSettings(limits=Limits(walk_entries=511, pin_entries=511))
LISTS = RAM + 0x10_0000
FIRST = RAM + 0x4000
ROOM = 64
COOKIE = 0x77
INTERRUPTED = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR


def write_list(rig: WithOptee, count: int, *, low: int = 0, bad: int | None = None) -> None:
    """A list of ``count`` entries over a few pages, again and again; entry ``bad`` is nobody's page."""
    pages = itertools.cycle([FIRST + index * PAGE_SIZE for index in range(ROOM)])
    entries = [next(pages) | low for _ in range(count)]
    if bad is not None:
        entries[bad] = 0
    for number, start in enumerate(range(0, count, 511)):
        at = LISTS + number * PAGE_SIZE
        words = entries[start : start + 511]
        rig.put(at, struct.pack(f"<{len(words)}Q", *words))
        rig.put(at + 511 * 8, struct.pack("<Q", at + PAGE_SIZE))


def register(rig: WithOptee, count: int, interruptions: int = 0) -> list[tuple[int, ...]]:
    """Register it; what the guest gets, with everything that stops on the way."""
    stops = iter([True] * interruptions)
    rig.host.preempt_policy = lambda: next(stops, False)
    size = count * PAGE_SIZE - 0x10
    answers = [rig.call(RAM, msg(4, params=[(0x20A, LISTS | 0x10, size, COOKIE)]))]
    while answers[-1][0] == INTERRUPTED:
        answers.append(rig.resume(answers[-1][3]))
    return answers


def both(settings: MediatorSettings) -> tuple[WithOptee, AppRig]:
    return WithOptee(settings), AppRig(LocalApp, settings)


def what_is(rig: WithOptee) -> list[object]:
    info = rig.tee.guest_info(GUEST)
    return [rig.host.pins(GUEST), info, rig.get(RAM, 4096), rig.host.pinned(GUEST)]


@pytest.mark.parametrize("interruptions", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 511, 512, 1022, 1300])
def test_a_list_ends_as_step_by_step(count: int, interruptions: int) -> None:
    here, there = both(STEPS)
    for rig in (here, there):
        write_list(rig, count)
    expected = register(here, count, interruptions)
    assert register(there, count, interruptions) == expected
    steps = -(-count // 511)
    assert len(expected) == 1 + min(interruptions, steps - 1)
    assert here.result(RAM)[0] == there.result(RAM)[0] == 0
    assert what_is(there) == what_is(here)
    assert there.host.pinned(GUEST) == count
    # The TEE reaches all of it: the last page, too.
    for rig in (here, there):
        offset = (count - 1) * PAGE_SIZE
        regs = rig.invoke(RAM, Slow.WRITE, [(0x6, offset, 64, COOKIE)])
        assert regs[0] == 0
        assert rig.result(RAM)[0] == 0
    page = FIRST + (count - 1) % ROOM * PAGE_SIZE
    assert there.get(page, PAGE_SIZE) == here.get(page, PAGE_SIZE)
    assert Slow.SECRET in there.get(page, PAGE_SIZE)
    there.host.preempt_policy = None
    assert there.app.destroy_guest(GUEST) == Done()
    assert not there.host.pinned(GUEST)


@pytest.mark.parametrize("bad", [0, 510, 511, 1299])
@pytest.mark.parametrize("interruptions", [0, 1])
def test_a_list_that_is_refused_at_a_step_is_refused(bad: int, interruptions: int) -> None:
    here, there = both(STEPS)
    for rig in (here, there):
        write_list(rig, 1300, bad=bad)
    assert register(there, 1300, interruptions) == register(here, 1300, interruptions)
    assert there.result(RAM) == here.result(RAM)
    assert there.result(RAM)[0] == tee.TEE_ERROR_BAD_PARAMETERS
    assert what_is(there) == what_is(here)
    assert there.host.pinned(GUEST) == 0
    assert there.app.usage(GUEST).pinned_pages == 0


@pytest.mark.parametrize("offsets", [True, False])
def test_low_bits_of_entries_go_on_or_not_as_the_settings_say(offsets: bool) -> None:
    here, there = both(attrs.evolve(STEPS, entry_offsets=offsets))
    for rig in (here, there):
        write_list(rig, 3, low=0x40)
    assert register(there, 3) == register(here, 3)
    assert there.result(RAM) == here.result(RAM)
    assert (there.result(RAM)[0] == 0) is not offsets, "a TEE refuses what is no page"


def test_a_service_that_fails_in_a_walk_leaves_nothing() -> None:
    there = AppRig(LocalApp, STEPS)
    write_list(there, 1300)
    calls = itertools.count()

    def stop() -> bool:
        if next(calls):
            raise RuntimeError("planned")
        return False

    there.host.preempt_policy = stop
    with pytest.raises(RuntimeError, match="planned"):
        there.call(RAM, msg(4, params=[(0x20A, LISTS, 1300 * PAGE_SIZE, COOKIE)]))
    there.host.preempt_policy = None
    assert there.host.pinned(GUEST) == there.app.usage(GUEST).pinned_pages == 0
    assert not there.app.deaths
    assert register(there, 1300)[-1][0] == 0


def test_results_that_cannot_be_written_are_told_in_x0() -> None:
    """They go with the return: the guest's page has become read-only while the TEE worked."""
    rig = There(LocalApp)
    quiet(rig)
    session = rig.session()
    call = rig.host.secure_smc
    assert call is not None

    def freeze(*regs: int) -> tuple[int, int, int, int]:
        answer = call(*regs)
        rig.host.set_kind(GUEST, RAM, 1, OWN_RO)
        return answer

    rig.host.secure_smc = freeze
    answer = rig.call(RAM, msg(1, func=99, session=session, params=[(1, 1, 2, 3)]))
    assert answer[0] == smc.OPTEE_SMC_RETURN_EBADADDR
    assert rig.app.deaths == 0
