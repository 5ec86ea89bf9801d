# SPDX-License-Identifier: BSD-2-Clause
"""What a live run came to: the guests' reports, figures, violated invariants, and one verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import attrs

from mediator.live.guest import LiveGuest
from mediator.live.initramfs import MARK

OK, FAIL, SKIP, INFO = "ok", "fail", "skip", "info"
_STATES: Final = (OK, FAIL, SKIP, INFO)
SURVIVED, HUNG, BROKE, KILLED, MISSED = (
    "the driver survived",
    "the guest hung",
    "the kernel complained",
    "the guest was killed",
    "the call was never made",
)
"""Verdicts about a guest that faults were planned for."""
SURVIVORS: Final = (SURVIVED, KILLED)
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

    ``faults`` were planned for the first guest; ``verdict`` says what became of it.
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

    @property
    def good(self) -> bool:
        """No failed check, no alarm of a kernel, no violated invariant."""
        if self.violations:
            return False
        if self.faults:
            # The first guest is the victim: failed checks are what it is for, its end is not.
            well = self.verdict in SURVIVORS
            return well and not any(guest.problems for guest in self.guests[1:])
        return not any(guest.problems for guest in self.guests)

    def as_json(self) -> dict[str, object]:
        """Plain data, with the format's name and version first."""
        return {"format": FORMAT, "version": VERSION, "good": self.good, **attrs.asdict(self)}


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
