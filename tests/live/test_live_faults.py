# SPDX-License-Identifier: BSD-2-Clause
"""Planned faults: how they are written, when they strike, what is said about the driver."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from mediator.live import run
from mediator.live.bundle import Bundle
from mediator.live.faults import KINDS, LIES, PlannedFault, Saboteur, parse_fault, verdict
from mediator.live.guest import LiveGuest
from mediator.live.initramfs import PROBE, RNG, UNLOAD
from mediator.live.result import BROKE, HUNG, KILLED, MISSED, SURVIVED, Check, GuestResult

REGS = (0,) * 8


class Calls:
    """Stands for a guest: how many calls it has made."""

    def __init__(self, ident: int = 0) -> None:
        self.ident = ident
        self.served = 0


def strike(saboteur: Saboteur, guest: Calls) -> bool:
    kill = saboteur.before(cast("LiveGuest", guest))
    guest.served += 1
    return kill


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_written_as_they_are_printed(kind: str) -> None:
    assert str(parse_fault(f"{kind}@7")) == f"{kind}@7"


@pytest.mark.parametrize("text", ["kill", "kill@0", "kill@x", "other@1", "kill@1@2", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="KIND@NUMBER"):
        parse_fault(text)


def test_a_lie_is_told_once_at_its_call() -> None:
    saboteur, guest = Saboteur((PlannedFault("busy", 2),)), Calls()
    told = []
    for _ in range(3):
        strike(saboteur, guest)
        told.append(saboteur.answer(REGS, (0, 1, 2, 3)))
    assert told == [(0, 1, 2, 3), (LIES["busy"], 1, 2, 3), (0, 1, 2, 3)]
    assert saboteur.written(1, 0, b"x") == b"x"


def test_a_lie_that_nobody_asked_for_is_forgotten() -> None:
    """The mediator answered that call itself: the next one must not get the lie."""
    saboteur, guest = Saboteur((PlannedFault("busy", 1),)), Calls()
    strike(saboteur, guest)
    strike(saboteur, guest)
    assert saboteur.answer(REGS, (0, 0, 0, 0)) == (0, 0, 0, 0)


def test_only_the_victim_is_sabotaged() -> None:
    saboteur = Saboteur((PlannedFault("kill", 1), PlannedFault("no-pin", 2)))
    assert not strike(saboteur, Calls(ident=1))
    victim = Calls()
    assert strike(saboteur, victim)
    assert not saboteur.plan.strikes("pin_pages")
    strike(saboteur, victim)
    assert saboteur.plan.strikes("pin_pages")


def result(*names: str, alarms: tuple[str, ...] = ()) -> GuestResult:
    checks = tuple([Check(name=name, state="ok", microseconds=0, detail="") for name in names])
    return GuestResult(
        name="guest1",
        checks=checks,
        seconds=1.0,
        ended="",
        calls=1,
        forwarded=1,
        rung_again=0,
        interrupts=0,
        alarms=alarms,
        problems=(),
    )


def test_verdicts() -> None:
    lied = Saboteur((PlannedFault("busy", 1),))
    assert verdict(result("end"), lied) == MISSED
    strike(lied, Calls())
    assert verdict(result("end"), lied) == SURVIVED
    assert verdict(result("boot"), lied) == HUNG
    assert verdict(result("end", alarms=("BUG: x",)), lied) == BROKE
    killer = Saboteur((PlannedFault("kill", 1),))
    strike(killer, Calls())
    assert verdict(result("boot"), killer) == KILLED


@pytest.mark.timeout(60)
def test_a_driver_survives_nonsense(files: Bundle, cache: Path) -> None:
    """The second call of the probe with a thread is answered with an unknown status."""
    settings = run.RunSettings(steps=(PROBE, RNG, UNLOAD), faults=(PlannedFault("nonsense", 9),))
    outcome = run.execute(files, settings, cache=cache)
    assert outcome.verdict == SURVIVED
    assert outcome.good
    assert outcome.violations == ()
    assert outcome.pins == 0
