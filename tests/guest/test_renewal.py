# SPDX-License-Identifier: BSD-2-Clause
"""A driver whose mediator dies: it probes again, and its programs begin anew."""

from __future__ import annotations

import pytest

from fuzz.containment.system import BRIEF, CONTROL, System
from mediator.guest.client import TeeError
from mediator.hypervisor.scheduler import RunEnd
from smccc.constants import tee

TOGETHER, APART, INTERLEAVED = BRIEF
OTHER = 1


def run(system: System, *deaths: int) -> None:
    """A session in which the app is killed at these virtual times (ns)."""
    for when in deaths:
        system.machine.at(when, system.app.kill)
    system.begin()
    assert system.run() is RunEnd.IDLE


@pytest.mark.parametrize("variant", [TOGETHER, INTERLEAVED])
@pytest.mark.parametrize("deaths", [(200_000,), (400_000,), (200_000, 400_000), (100_000, 101_000)])
def test_the_control_domain_begins_anew(variant: object, deaths: tuple[int, ...]) -> None:
    assert variant in BRIEF
    system = System(TOGETHER if variant is TOGETHER else INTERLEAVED)
    run(system, *deaths)
    guest = system.guests[CONTROL]
    guest.check()
    assert 1 <= guest.renewal.renewed <= len(deaths)
    assert not guest.driver.lost
    (diary,) = system.diaries["control"]
    assert [what for what, _ in diary.lines] == ["reversed", "worked"]
    assert len(guest.driver.shms) == 0
    system.close()


def test_a_guest_whose_tee_does_not_come_back_gives_up() -> None:
    system = System(TOGETHER)
    run(system, 300_000)
    (diary,) = system.diaries["classic"]
    assert diary.lost
    assert system.guests[OTHER].driver.lost
    assert system.is_off(OTHER)
    system.close()


def test_nobody_probes_again_where_nothing_was_lost() -> None:
    system = System(APART)
    run(system)
    for guest in (CONTROL, OTHER):
        system.guests[guest].check()
        assert system.guests[guest].renewal.renewed == 0
    system.close()


def test_an_error_of_a_driver_that_is_not_lost_is_the_programs_own() -> None:
    system = System(TOGETHER)
    run(system)
    guest = system.guests[CONTROL]

    async def fails() -> None:
        raise TeeError(tee.TEE_ERROR_ITEM_NOT_FOUND, tee.TEE_ORIGIN_TEE)

    body = guest.renewal.run(fails)
    with pytest.raises(TeeError):
        body.send(None)
    system.close()
