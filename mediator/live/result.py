# SPDX-License-Identifier: BSD-2-Clause
"""What a live run came to: the guests' reports, figures, violated invariants, and one verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from mediator.deployment.choice import IN_HYPERVISOR
from mediator.live.guest import LiveGuest
from mediator.live.initramfs import MARK

OK, FAIL, SKIP, INFO = "ok", "fail", "skip", "info"
_STATES: Final = (OK, FAIL, SKIP, INFO)
SURVIVED, SERVED_AGAIN, HUNG, BROKE, KILLED, MISSED = (
    "the driver survived",
    "the driver probed again and was served",
    "the guest hung",
    "the kernel complained",
    "the guest was killed",
    "the call was never made",
)
"""Verdicts about a guest that faults were planned for."""
SURVIVORS: Final = (SURVIVED, SERVED_AGAIN, KILLED)
"""Those that are no finding."""
FORMAT: Final = "optee-mediator-live-result"
VERSION: Final = 1


@attrs.frozen(kw_only=True)
class Check:
    """A line of a guest's report. ``microseconds`` by the guest's own clock."""

    name: str
    state: str
    microseconds: int
    detail: str


def parse_check(line: str) -> Check | None:
    """A report line of a guest; ``None`` if the line is anything else."""
    words = line.split(" ", 4)
    if len(words) < 4 or words[0] != MARK or words[2] not in _STATES:
        return None
    if not words[3].lstrip("-").isdigit():
        return None
    detail = words[4].strip() if len(words) > 4 else ""
    return Check(name=words[1], state=words[2], microseconds=int(words[3]), detail=detail)


@attrs.frozen(kw_only=True)
class GuestResult:
    """One guest. ``seconds``: from its start to its end. ``problems``: empty if all is well."""

    name: str
    checks: tuple[Check, ...]
    seconds: float
    ended: str
    calls: int
    forwarded: int
    rung_again: int
    interrupts: int
    alarms: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether it got to the end of its workload."""
        return any(check.name == "end" for check in self.checks)


@attrs.frozen(kw_only=True)
class Result:
    """The whole run. Times of our part of a call are in microseconds; ``processor`` and ``emulators``
    are seconds of processor time of this process and of theirs.

    ``faults`` were planned for the first guest; ``verdict`` says what became of it. ``deployment``: where the
    mediator lived; ``apps``: the isolation of each process of it that was seen running; ``deaths`` of such a
    process; ``log``: what the mediator and its hypervisor said.
    """

    guests: tuple[GuestResult, ...]
    release: str
    vcpus: int
    bell: str
    conduit: str
    seconds: float
    calls: int
    median: float
    slowest: float
    processor: float
    emulators: float
    violations: tuple[str, ...]
    pins: int
    faults: tuple[str, ...] = ()
    verdict: str = ""
    deployment: str = IN_HYPERVISOR
    apps: tuple[Mapping[str, object], ...] = ()
    deaths: int = 0
    log: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """No failed check, no alarm of a kernel, no violated invariant."""
        if self.violations or self.deaths > deaths_planned(self.faults):
            return False
        if self.faults:
            # The first guest is the victim: failed checks are what it is for, its end is not.
            well = self.verdict == SERVED_AGAIN if self.deaths else self.verdict in SURVIVORS
            return well and not any(self.disturbed(guest) for guest in self.guests[1:])
        return not any(guest.problems for guest in self.guests)

    def disturbed(self, guest: GuestResult) -> tuple[str, ...]:
        """Problems that a guest beside the victim must not have.

        With the app that they share dies the TEE of all of them: then it is enough that the others
        come to an end, with failed checks.
        """
        if not self.deaths:
            return guest.problems
        alarms = tuple([alarm for alarm in guest.alarms if not is_known(alarm)])
        return alarms if guest.finished else (*alarms, f"did not finish: {guest.ended}")

    def as_json(self) -> dict[str, object]:
        """Plain data, with the format's name and version first."""
        return {"format": FORMAT, "version": VERSION, "good": self.good, **attrs.asdict(self)}


def deaths_planned(faults: Sequence[str]) -> int:
    """How often the faults let the mediator's process die."""
    return sum(fault.startswith("kill-app@") for fault in faults)


def is_known(alarm: str) -> bool:
    """Whether a complaint of the kernel is the driver's way to say that a call failed.

    ``optee_bus_scan`` (``drivers/tee/optee/core.c``) wraps its enumeration of devices in ``WARN_ON``, so every error
    of an invoke in it is printed as a warning of the kernel. Nothing is broken by it.
    """
    return "WARNING: CPU" in alarm and "optee_bus_scan" in alarm


def is_blocked(alarm: str) -> bool:
    """Whether a complaint of the kernel is that a task waits and cannot be woken (``hung_task.c``)."""
    return "INFO: task " in alarm and "blocked for more than" in alarm


def of_guest(guest: LiveGuest, seconds: float, *, finished: bool) -> GuestResult:
    """Judge one guest. ``finished``: it was to report its end and switch itself off."""
    checks = tuple([c for line in guest.console.lines if (c := parse_check(line)) is not None])
    problems = [f"{c.name}: {c.detail or 'failed'}" for c in checks if c.state == FAIL]
    problems += [f"kernel: {alarm}" for alarm in guest.console.alarms]
    if finished:
        if not any(c.name == "end" for c in checks):
            problems.append(f"did not finish: {guest.ended}")
        elif guest.ended != "switched off":
            problems.append(f"ended badly: {guest.ended}")
    return GuestResult(
        name=guest.name,
        checks=checks,
        seconds=seconds,
        ended=guest.ended or "running",
        calls=guest.served,
        forwarded=guest.forwarded,
        rung_again=guest.rung_again,
        interrupts=guest.interrupts,
        alarms=tuple(guest.console.alarms),
        problems=tuple(problems),
    )


def microseconds(times: Sequence[int]) -> tuple[float, float]:
    """Median and maximum of times in ns."""
    if not times:
        return 0.0, 0.0
    return statistics.median(times) / 1000, max(times) / 1000
