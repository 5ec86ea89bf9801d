# SPDX-License-Identifier: BSD-2-Clause
"""A fault at each call in turn: what becomes of the driver, of the other guests, and of the mediator.

Each attempt is a run of its own, so nothing of one fault is left for the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import attrs

from mediator.live.bundle import Bundle
from mediator.live.faults import PlannedFault
from mediator.live.result import MISSED, SERVED_AGAIN, Result
from mediator.live.run import RunSettings, execute

FORMAT: Final = "optee-mediator-live-sweep"
VERSION: Final = 1


@attrs.frozen(kw_only=True)
class Attempt:
    """One fault. ``failed``: checks of the victim that failed; ``alarms``: its kernel's complaints.

    ``disturbed``: problems of the other guests; ``pins``: pages still pinned after the end; ``deaths``:
    processes of the mediator that died.
    """

    fault: str
    verdict: str
    seconds: float
    calls: int
    failed: tuple[str, ...]
    alarms: tuple[str, ...]
    disturbed: tuple[str, ...]
    violations: tuple[str, ...]
    pins: int
    deaths: int = 0

    @property
    def good(self) -> bool:
        """Our side is well: whatever the driver does is a finding about the driver.

        But if the mediator itself died, the driver must be served again.
        """
        if self.disturbed or self.violations or self.pins:
            return False
        return not self.deaths or self.verdict == SERVED_AGAIN


@attrs.frozen(kw_only=True)
class Sweep:
    """All attempts, in order."""

    release: str
    guests: int
    vcpus: int
    conduit: str
    bell: str
    deployment: str
    attempts: tuple[Attempt, ...]

    @property
    def good(self) -> bool:
        """No other guest was disturbed, no invariant violated, no page left pinned, nobody lost the TEE
        for good."""
        return all(attempt.good for attempt in self.attempts)

    @property
    def verdicts(self) -> dict[str, int]:
        """How often each verdict came."""
        return dict(Counter(attempt.verdict for attempt in self.attempts))

    def as_json(self) -> dict[str, object]:
        """Plain data, with the format's name and version first."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "good": self.good,
            "verdicts": self.verdicts,
            **attrs.asdict(self),
        }


def attempt_of(fault: PlannedFault, result: Result) -> Attempt:
    """What came of one fault."""
    victim, *others = result.guests
    return Attempt(
        fault=str(fault),
        verdict=result.verdict,
        seconds=result.seconds,
        calls=victim.calls,
        failed=tuple([check.name for check in victim.checks if check.state == "fail"]),
        alarms=victim.alarms,
        disturbed=tuple(
            [f"{guest.name}: {text}" for guest in others for text in result.disturbed(guest)]
        ),
        violations=result.violations,
        pins=result.pins,
        deaths=result.deaths,
    )


def sweep(
    files: Bundle,
    settings: RunSettings,
    kinds: Iterable[str],
    numbers: Iterable[int],
    *,
    calls: int = 1,
    cache: Path,
    say: Callable[[Attempt], None] = lambda _attempt: None,
) -> Sweep:
    """Try each of ``kinds`` at each of ``numbers``, until the driver ends without having made the call.

    ``settings``: of each run; its own faults are replaced. Raises what a run raises.
    """
    attempts: list[Attempt] = []
    places = tuple(numbers)
    for kind in kinds:
        for number in places:
            fault = PlannedFault(kind, number, calls)
            result = execute(files, attrs.evolve(settings, faults=(fault,)), cache=cache)
            if result.verdict == MISSED and result.guests[0].finished:
                break
            attempts.append(attempt_of(fault, result))
            say(attempts[-1])
    return Sweep(
        release=files.release,
        guests=settings.guests,
        vcpus=settings.board.vcpus,
        conduit=settings.conduit,
        bell=settings.board.bell,
        deployment=settings.platform.deployment.name,
        attempts=tuple(attempts),
    )
