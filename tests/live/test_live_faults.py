# SPDX-License-Identifier: BSD-2-Clause
"""Planned faults: how they are written, when they strike, what is said about the driver."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import attrs
import pytest

from mediator.live import run
from mediator.live.bundle import Bundle
from mediator.live.faults import (
    FORGERIES,
    KILL_APP,
    KINDS,
    LATE,
    LIES,
    PlannedFault,
    Saboteur,
    parse_fault,
    verdict,
)
from mediator.live.guest import LiveGuest
from mediator.live.initramfs import PROBE, RNG, SERVED, UNLOAD
from mediator.live.result import (
    BROKE,
    HUNG,
    KILLED,
    MISSED,
    SERVED_AGAIN,
    SURVIVED,
    Check,
    GuestResult,
    is_blocked,
    is_known,
)
from smccc.message import Message, Param, parse_message

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


def test_faults_may_last() -> None:
    fault = parse_fault("busy@7+20")
    assert fault == PlannedFault("busy", 7, 20)
    assert str(fault) == "busy@7+20"
    with pytest.raises(ValueError, match="no number of calls"):
        parse_fault("kill@7+20")


@pytest.mark.parametrize(
    "text", ["kill", "kill@0", "kill@x", "other@1", "kill@1@2", "", "busy@1+0"]
)
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


def test_a_lasting_fault_strikes_at_each_of_its_calls() -> None:
    saboteur, guest = Saboteur((PlannedFault("busy", 2, 2), PlannedFault("no-pin", 3, 3))), Calls()
    told = []
    for _ in range(6):
        strike(saboteur, guest)
        told.append((saboteur.answer(REGS, (0, 0, 0, 0))[0], saboteur.plan.strikes("pin_pages")))
    busy = LIES["busy"]
    assert told == [(0, False), (busy, False), (busy, True), (0, True), (0, True), (0, False)]
    assert [str(fault) for fault in saboteur.done] == ["busy@2+2", "no-pin@3+3"]


def test_a_lie_in_all_registers_names_the_honest_thread() -> None:
    saboteur, guest = Saboteur((PlannedFault("rpc-nowhere", 1),)), Calls()
    strike(saboteur, guest)
    assert saboteur.answer(REGS, (0, 1, 2, 3)) == (*LIES_OF_FOUR["rpc-nowhere"][:3], 3)


LIES_OF_FOUR = {kind: lie for kind, lie in LIES.items() if isinstance(lie, tuple)}
RPC = Message(cmd=5, params=(Param(1, 2, 3, 4),) * 4).build()
RESULT_AT = 0x1000 + 20


def forged(kind: str, pa: int, data: bytes) -> bytes:
    saboteur, guest = Saboteur((PlannedFault(kind, 1),)), Calls()
    strike(saboteur, guest)
    lie = saboteur.written(1, pa, data)
    strike(saboteur, guest)
    assert saboteur.written(1, pa, data) == data  # over with the call
    assert saboteur.written(1, pa, b"") == b""
    return lie


@pytest.mark.parametrize("kind", FORGERIES)
def test_forgeries_keep_the_length_and_change_what_they_are_for(kind: str) -> None:
    at, data = (RESULT_AT, bytes([7]) * 16) if kind == "forge-result" else (0x1000, RPC)
    lie = forged(kind, at, data)
    assert len(lie) == len(data)
    assert lie != data
    assert forged(kind, at, data) == lie  # a seed reproduces it


def test_forgeries_of_messages_leave_other_memory_alone() -> None:
    text = b"sixteen letters!"
    assert forged("forge-result", 0x1000, text) == text
    assert forged("forge-result", RESULT_AT, text)[8:] == text[8:]
    for kind in ("forge-rpc-command", "forge-rpc-count", "forge-rpc-values"):
        assert forged(kind, 0x1000, text) == text
    assert parse_message(forged("forge-rpc-command", 0x1000, RPC)).cmd == 0x7FFF
    assert len([a for a, b in zip(forged("forge-bit", 0, RPC), RPC, strict=True) if a != b]) == 1


def test_interrupts_are_dropped_late_or_gone() -> None:
    faults = ("drop-interrupt@2", "late-interrupts@3", "no-interrupts@4")
    saboteur, guest = Saboteur(tuple(map(parse_fault, faults))), Calls()
    fates = []
    for _ in range(4):
        strike(saboteur, guest)
        fates.append((saboteur.interrupt(0), saboteur.interrupt(0), saboteur.interrupt(1)))
    assert fates == [(0, 0, 0), (None, 0, 0), (LATE, LATE, 0), (None, None, 0)]


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
    assert verdict(result("boot"), lied) == MISSED
    strike(lied, Calls())
    assert verdict(result("end"), lied) == SURVIVED
    assert verdict(result("boot"), lied) == HUNG
    assert verdict(result("end", alarms=("BUG: x",)), lied) == BROKE
    killer = Saboteur((PlannedFault("kill", 1),))
    strike(killer, Calls())
    assert verdict(result("boot"), killer) == KILLED


def killing(number: int) -> tuple[Saboteur, list[int]]:
    """One that kills the app at a call, and how many answers it had seen by then."""
    saboteur = Saboteur((PlannedFault(KILL_APP, number),))
    killed: list[int] = []
    saboteur.kill_app = lambda: killed.append(saboteur.struck)
    return saboteur, killed


def test_the_app_dies_once_the_secure_world_has_answered() -> None:
    saboteur, killed = killing(2)
    guest = Calls()
    for expected in (0, 1, 1):
        assert not strike(saboteur, guest)
        saboteur.answer(REGS, (0, 0, 0, 0))
        saboteur.answer(REGS, (0, 0, 0, 0))
        assert len(killed) == expected


def test_the_app_dies_before_the_next_call_if_the_secure_world_was_not_asked() -> None:
    saboteur, killed = killing(1)
    victim = Calls()
    strike(saboteur, victim)
    assert not killed
    strike(saboteur, Calls(ident=1))  # whoever makes it
    assert killed
    saboteur, killed = killing(1)
    strike(saboteur, Calls())
    saboteur.stop()
    strike(saboteur, Calls())
    assert not killed
    assert verdict(result("end"), saboteur) == MISSED


def test_a_blocked_task_is_told_from_other_complaints() -> None:
    assert is_blocked("[   21.0] INFO: task rmmod:132 blocked for more than 10 seconds.")
    assert not is_blocked(SCAN)
    assert is_known(SCAN)


SCAN = "[    2.0] WARNING: CPU: 0 PID: 9 at drivers/tee/optee/core.c:71 optee_bus_scan+0x30/0x40"


def test_verdicts_after_the_death_of_an_app() -> None:
    saboteur, _ = killing(1)
    strike(saboteur, Calls())
    saboteur.answer(REGS, (0, 0, 0, 0))
    assert verdict(result("end"), saboteur) == SURVIVED
    assert verdict(result("boot"), saboteur) == HUNG
    assert verdict(result(SERVED, "end"), saboteur) == SERVED_AGAIN
    # The driver's own way to say that it could not enumerate devices; any other complaint is one.
    assert verdict(result(SERVED, "end", alarms=(SCAN,)), saboteur) == SERVED_AGAIN
    assert verdict(result(SERVED, "end", alarms=(SCAN, "BUG: x")), saboteur) == BROKE
    failed = attrs.evolve(
        result(SERVED, "end"),
        checks=(
            Check(name="again-load", state="fail", microseconds=0, detail=""),
            *result(SERVED, "end").checks,
        ),
    )
    assert verdict(failed, saboteur) == SURVIVED


@pytest.mark.timeout(60)
def test_a_driver_that_waits_for_ever_is_noticed(files: Bundle, cache: Path) -> None:
    """Told that there is no thread while it has no other call, this driver waits for one of its own."""
    settings = run.RunSettings(
        steps=(PROBE, RNG, UNLOAD), faults=(PlannedFault("thread-limit", 9),), quiet=5.0
    )
    outcome = run.execute(files, settings, cache=cache)
    assert outcome.verdict == HUNG
    assert outcome.guests[0].ended == "no sign of life for 5 s"
    assert outcome.violations == ()
    assert outcome.pins == 0


@pytest.mark.timeout(60)
def test_a_driver_survives_nonsense(files: Bundle, cache: Path) -> None:
    """The second call of the probe with a thread is answered with an unknown status."""
    settings = run.RunSettings(steps=(PROBE, RNG, UNLOAD), faults=(PlannedFault("nonsense", 9),))
    outcome = run.execute(files, settings, cache=cache)
    assert outcome.verdict == SURVIVED
    assert outcome.good
    assert outcome.violations == ()
    assert outcome.pins == 0
