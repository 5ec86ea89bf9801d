# SPDX-License-Identifier: BSD-2-Clause
"""What goes out with an entry is what the app would have asked for, or it is not used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from mediator.deployment.el0_app import ahead
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.grants import Ahead, Open
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import PAGE_SIZE, Host
from mediator.hypervisor.host import FaultPlan
from mediator.optee.settings import MediatorSettings
from smccc.constants import optee_smc as smc
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.el0_app.test_workloads import ROOM, Drawn, Step, state
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow, WithOptee

COOKIE = 0x5500
SLOTS = RAM + 0x3000


class Here(WithOptee):
    """Nobody records, as in use: only then is anything read ahead."""

    def deploy(self, settings: MediatorSettings | None) -> InHypervisor:
        self.host.faults = FaultPlan()
        return InHypervisor(self.host, settings)


class There(AppRig):
    """The same with an app. No checker looks on: they follow the mediator's own events."""

    def deploy(self, settings: MediatorSettings | None) -> El0App:
        self.host.faults = FaultPlan()
        self.app = self._kind(self.host, settings)
        self.bus._guest_of = self.app.guest_of
        return self.app


def quiet(rig: WithOptee) -> None:
    rig.events.listener = None
    rig.bus.guard_shadows(lambda client, frame: True)


class Fetched(NamedTuple):
    """Reads that were done ahead: found, and refused by the host."""

    found: list[Ahead]
    refused: list[Ahead]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """What is read ahead from now on."""
    seen = Fetched([], [])
    fetch = ahead.fetch

    def noting(host: Host, entry: Open, read: Ahead) -> bytes | None:
        data = fetch(host, entry, read)
        (seen.refused if data is None else seen.found).append(read)
        return data

    monkeypatch.setattr(ahead, "fetch", noting)
    return seen


@pytest.fixture
def pair() -> Iterator[tuple[Here, There]]:
    here, there = Here(), There(LocalApp)
    quiet(here)
    quiet(there)
    yield here, there
    there.app.close()


def outcome(step: Step, rig: WithOptee) -> object:
    try:
        return step(rig)
    except OSError as error:
        return str(error)


def faulty(draw: random.Random) -> Step:
    """The next read of a message, or the one after it, fails in one way or the other."""
    error = OSError("as planted") if draw.randrange(2) else None
    nth = draw.randrange(2)

    def plant(rig: WithOptee) -> None:
        assert rig.host.faults is not None
        rig.host.faults.fail("read_guest", nth, error)

    return plant


@pytest.mark.parametrize("seed", range(8))
def test_it_makes_no_difference(seed: int, pair: tuple[Here, There], fetched: Fetched) -> None:
    here, there = pair
    drawn, draw = Drawn(seed), random.Random(seed)
    for number in range(600):
        step = faulty(draw) if draw.randrange(12) == 0 else drawn.step()
        answer = outcome(step, here)
        assert outcome(step, there) == answer, (seed, number)
        regs: tuple[int, ...] = getattr(answer, "regs", (0,))
        if regs[0] >> 16 == 0xFFFF and regs[0] != 0xFFFF_FFFF:
            drawn.threads = [*drawn.threads[-3:], regs[3]]
        if number % 100 == 0:
            assert state(there) == state(here), (seed, number)
    assert not there.app.deaths
    assert not there.app.total_usage().refused
    for guest in (GUEST, OTHER):
        assert there.tee.destroy_guest(guest) == here.tee.destroy_guest(guest)
    assert state(there) == state(here)
    assert len(fetched.found) > 20
    assert fetched.refused


def turns(rig: There) -> int:
    return rig.app.usage(GUEST).turns


def pass_message(rig: WithOptee, session: int, at: int = RAM + 0x2000) -> tuple[int, ...]:
    rig.put(at, msg(1, func=Slow.COPY, session=session, params=[(0x5, COOKIE, 0, 16)] * 2))
    return rig.smc(smc.OPTEE_SMC_CALL_WITH_ARG, at >> 32, at & 0xFFFF_FFFF)


def with_session(pair: tuple[Here, There]) -> tuple[Here, There, int]:
    here, there = pair
    here.register(COOKIE, SLOTS)
    there.register(COOKIE, SLOTS)
    session = here.session()
    assert there.session() == session
    return here, there, session


def test_the_second_call_is_a_round_trip_shorter(pair: tuple[Here, There]) -> None:
    here, there, session = with_session(pair)
    counts = []
    for _ in range(4):
        before = turns(there)
        assert pass_message(there, session) == pass_message(here, session)
        counts.append(turns(there) - before)
    assert counts == [3, 2, 2, 2]


def test_the_message_is_the_one_of_now(pair: tuple[Here, There], fetched: Fetched) -> None:
    here, there, session = with_session(pair)
    for number in range(3):
        for rig in (here, there):
            rig.put(SLOTS, bytes([number]) * 16)
            pass_message(rig, session if number < 2 else 77)
        assert there.result(RAM + 0x2000) == here.result(RAM + 0x2000)
    assert there.result(RAM + 0x2000)[0] != 0
    assert [read[1] for read in fetched.found] == [RAM + 0x2000] * 2


def test_a_page_that_is_gone_is_not_read(pair: tuple[Here, There], fetched: Fetched) -> None:
    here, there, session = with_session(pair)
    for rig in (here, there):
        pass_message(rig, session)
        rig.host.balloon_out(GUEST, RAM + 0x2000, 1)
    frame = (smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM + 0x2000)
    for _ in range(2):
        assert there.smc(*frame) == here.smc(*frame)
    # It was tried once, and the app was told what came of it without another try.
    assert fetched.refused == [(ahead.READ_GUEST, RAM + 0x2000, PAGE_SIZE)]
    assert there.smc(*frame)[0] == smc.OPTEE_SMC_RETURN_EBADADDR


def test_a_buffer_that_is_not_pinned_any_more_is_not_read(
    pair: tuple[Here, There], fetched: Fetched
) -> None:
    here, there, session = with_session(pair)
    frame = (smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, COOKIE, 0x100)
    body = msg(1, func=Slow.PASS, session=session)
    for rig in (here, there):
        rig.put(SLOTS + 0x100, body)
    for _ in range(2):
        assert there.smc(*frame) == here.smc(*frame)
    assert len(fetched.found) == 1
    for rig in (here, there):
        assert rig.call(RAM, msg(5, params=[(0x5, 0, 0, COOKIE)]))[0] == 0
        # The same name for another page, with another message in it.
        rig.register(COOKIE, SLOTS + PAGE_SIZE)
        rig.put(SLOTS + PAGE_SIZE + 0x100, msg(1, func=Slow.PASS, session=99))
    assert there.smc(*frame) == here.smc(*frame)
    assert there.result(SLOTS + PAGE_SIZE + 0x100) == here.result(SLOTS + PAGE_SIZE + 0x100)
    assert there.result(SLOTS + PAGE_SIZE + 0x100)[0] != 0
    assert not there.app.total_usage().refused


def test_what_is_remembered_is_bounded(pair: tuple[Here, There]) -> None:
    _, there, _ = with_session(pair)
    calls = [
        (smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM + number % ROOM * PAGE_SIZE, number)
        for number in range(2 * ahead.ENTRIES)
    ]
    for regs in calls:
        there.smc(*regs)
    assert list(there.app._grants[GUEST].ahead) == calls[-ahead.ENTRIES :]


def test_nothing_is_read_ahead_for_a_recorder() -> None:
    rig = AppRig(LocalApp)
    for _ in range(3):
        rig.invoke(RAM + 0x2000, Slow.PASS)
    assert not rig.app._grants[GUEST].ahead
    rig.app.close()


def test_it_is_part_of_a_snapshot(pair: tuple[Here, There]) -> None:
    _, there, session = with_session(pair)
    pass_message(there, session)
    known = dict(there.app._grants[GUEST].ahead)
    taken = there.app.snapshot()
    there.app._grants[GUEST].ahead.clear()
    there.app.restore(taken)
    assert there.app._grants[GUEST].ahead == known != {}
