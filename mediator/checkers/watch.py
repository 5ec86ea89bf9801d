# SPDX-License-Identifier: BSD-2-Clause
"""All checkers as one sink: one table look-up for each event, no fan-out of what nobody wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mediator.checkers.verdict import Checker, Event, Handler, Violation

MAX_VIOLATIONS: Final = 100
"""Violations kept; the first ones tell the story, the rest are only counted."""


class InvariantViolated(AssertionError):
    """At least one invariant did not hold; ``violations`` has the first ones."""

    def __init__(self, violations: Sequence[Violation], total: int) -> None:
        lines = [str(violation) for violation in violations[:10]]
        super().__init__(f"{total} violations of invariants\n" + "\n".join(lines))
        self.violations = tuple(violations)
        self.total = total


class Watch:
    """A sink that runs checkers. Register them, feed it events, and ask when the run is over."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.total = 0
        self.events = 0
        self._checkers: list[Checker] = []
        self._table: dict[type, tuple[Handler, ...]] = {}

    def add(self, checker: Checker) -> None:
        """Let ``checker`` see the events that it wants."""
        self._checkers.append(checker)
        for kind, handler in checker.handlers().items():
            self._table[kind] = (*self._table.get(kind, ()), handler)

    def report(self, invariant: str, guest: int, what: str) -> None:
        """Note a violation."""
        self.total += 1
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(invariant, guest, what, self.events))

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.events += 1
        for handler in self._table.get(type(event), ()):
            handler(event)

    def finish(self) -> tuple[Violation, ...]:
        """Let every checker have its last look; all violations so far."""
        for checker in self._checkers:
            checker.finish(self.report)
        return tuple(self.violations)

    def check(self) -> None:
        """:meth:`finish`, and raise :class:`InvariantViolated` unless all invariants hold."""
        self.finish()
        if self.total:
            raise InvariantViolated(self.violations, self.total)
