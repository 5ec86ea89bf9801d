# SPDX-License-Identifier: BSD-2-Clause
"""Scenarios as text, run without the command."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from mediator.guest.replayed import RecordedSession
from mediator.scenario.reader import parse_scenario
from mediator.scenario.recorder import Event
from mediator.scenario.result import GuestResult, Result
from mediator.scenario.run import Run
from specs.replay.guest import load_session

DATA = Path(__file__).parent / "data"
TRACES = Path(__file__).parent.parent / "data" / "traces"

HEADER = 'format = "optee-mediator-scenario"\nversion = 1\nname = "test"\n'

E = TypeVar("E")

ALPHA = '[[guest]]\nname = "alpha"\nram = "16MiB"\n'


def session(trace: str, first: str, last: str) -> RecordedSession:
    """Recorded sessions of the tests by file name, and the one of the package."""
    if trace == "builtin:linux-session":
        trace = "linux-optee-session.jsonl"
    return load_session(TRACES / trace, first, last)


def make(text: str, **options: Any) -> Run:
    """A run of a scenario; the header is added."""
    scenario = parse_scenario((HEADER + text).encode(), "test.toml")
    return Run(scenario, load_session=options.pop("load_session", session), **options)


def run(text: str, **options: Any) -> Result:
    return make(text, **options).execute()


def passes(text: str, **options: Any) -> Result:
    result = run(text, **options)
    assert result.problems == ()
    assert result.ok
    assert (result.totals.pins, result.totals.violations) == (0, 0)
    return result


def guest(result: Result, name: str) -> GuestResult:
    return next(guest for guest in result.guests if guest.name == name)


def problems(result: Result) -> list[str]:
    return [f"{problem.where}: {problem.what}" for problem in result.problems]


def schema(name: str) -> dict[str, Any]:
    file = resources.files("mediator.scenario").joinpath(f"{name}.schema.json")
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


class Seen:
    """A listener that keeps all events of some classes with their times."""

    def __init__(self, *kinds: type) -> None:
        self.kinds = kinds
        self.events: list[tuple[int, Event]] = []

    def handlers(self) -> dict[type, Any]:
        return dict.fromkeys(self.kinds, self._keep)

    def _keep(self, time: int, event: Event) -> None:
        self.events.append((time, event))

    def of(self, kind: type[E]) -> list[E]:
        """The events of one class, in their order."""
        return [event for _, event in self.events if isinstance(event, kind)]


__all__ = [
    "ALPHA",
    "DATA",
    "HEADER",
    "TRACES",
    "Seen",
    "guest",
    "make",
    "parse_scenario",
    "passes",
    "problems",
    "run",
    "schema",
    "session",
]
