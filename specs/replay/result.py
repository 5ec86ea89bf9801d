# SPDX-License-Identifier: BSD-2-Clause
"""The outcome of a replay as values, and how it is counted."""

from __future__ import annotations

from typing import Final

import attrs

from specs.replay.compare import Difference
from specs.replay.records import Event

MAX_DIFFERENCES: Final = 10_000
"""Differences that are kept; more are only counted."""


@attrs.frozen
class ClassCount:
    """Events of one class: how many there were, and how each was judged."""

    name: str
    events: int
    identical: int
    by_rule: int
    different: int


@attrs.define
class _Row:
    events: int = 0
    identical: int = 0
    by_rule: int = 0
    different: int = 0


class Tally:
    """Counts events by class and verdict, rules by use, and keeps the differences."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self.rules: dict[str, int] = {}
        self.differences: list[Difference] = []
        self.different_events = 0
        self.blind: dict[str, int] = {}

    def judge(
        self,
        event: Event,
        name: str,
        found: list[Difference],
        rules: list[str] | tuple[str, ...] = (),
    ) -> None:
        """Count one event: different if anything was found, else by rule or identical."""
        row = self._rows.setdefault(name, _Row())
        row.events += 1
        if found:
            row.different += 1
            self.different_events += 1
            if len(self.differences) < MAX_DIFFERENCES:
                self.differences.extend(found)
        elif rules:
            row.by_rule += 1
            for rule in dict.fromkeys(rules):
                self.rules[rule] = self.rules.get(rule, 0) + 1
        else:
            row.identical += 1

    def not_seen(self, reason: str) -> None:
        """Count something that could not be compared."""
        self.blind[reason] = self.blind.get(reason, 0) + 1

    @property
    def events(self) -> int:
        """Events judged so far."""
        return sum([row.events for row in self._rows.values()])

    @property
    def transparent(self) -> int:
        """Events judged identical or allowed by a rule."""
        return sum([row.identical + row.by_rule for row in self._rows.values()])

    def classes(self) -> tuple[ClassCount, ...]:
        """All classes, the most frequent first, then by name."""
        rows = sorted(self._rows.items(), key=lambda row: (-row[1].events, row[0]))
        return tuple(
            [
                ClassCount(name, row.events, row.identical, row.by_rule, row.different)
                for name, row in rows
            ]
        )


@attrs.frozen
class MediatorResult:
    """Replay as mediator of one trace.

    ``events``: calls and returns in the trace; ``transparent``: those that are identical on both
    sides of the mediator or differ by a rule. ``unanswered``: calls that the trace ends in (they
    count as events; only what was forwarded is compared). ``own_calls``: calls of the mediator for
    itself, answered by the harness. ``pinned_before_teardown``: pins when the trace ended.
    """

    path: str
    scenario: str
    threads: int
    events: int
    transparent: int
    unanswered: int
    classes: tuple[ClassCount, ...]
    rules: dict[str, int]
    differences: tuple[Difference, ...]
    different_events: int
    blind: dict[str, int]
    own_calls: dict[str, int]
    answered_by_mediator: int
    interrupts: int
    markers: int
    pinned_before_teardown: int
    pinned: int
    shadow_pages: int
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Every event transparent and nothing pinned at the end."""
        return self.events == self.transparent and not self.pinned


@attrs.frozen
class SecureClass:
    """Answers to one class of call. ``apart``: those that depend on what we do not have."""

    name: str
    answers: int
    equal: int
    different: int
    apart: int


@attrs.frozen
class SecureResult:
    """Replay as secure world of one trace.

    ``apart``: answers that are counted apart, by name of the TA or part of OP-TEE that gave them.
    ``hidden_waits``: waits and wake-ups of locks that came in another order than recorded.
    """

    path: str
    scenario: str
    threads: int
    answers: int
    equal: int
    different: int
    classes: tuple[SecureClass, ...]
    apart: dict[str, int]
    differences: tuple[Difference, ...]
    hidden_waits: int
    interrupts: int
    markers: int
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No difference."""
        return not self.different
