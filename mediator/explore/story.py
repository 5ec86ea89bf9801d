# SPDX-License-Identifier: BSD-2-Clause
"""A schedule as a story: who did what, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from mediator.explore.bench import Event
from mediator.explore.engine import Execution
from mediator.explore.systems import Scenario

DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
"""One for each actor."""


@attrs.frozen
class Step:
    """One step of one actor. ``does``: the system call that it begins with; ``events``: what came."""

    actor: int
    name: str
    does: str
    events: tuple[str, ...]


@attrs.frozen
class Story:
    """A run by its schedule. ``wrong``: what was wrong when it ended; empty if nothing was."""

    system: str
    schedule: str
    steps: tuple[Step, ...]
    wrong: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        width = max((len(step.name) for step in self.steps), default=0)
        lines = [f"{self.system} {self.schedule}"]
        for number, step in enumerate(self.steps, 1):
            lines.append(f"{number:4}  {step.name:{width}}  {step.does}")
            lines += [f"{'':4}  {'':{width}}    {event}" for event in step.events]
        return lines + [f"  !!  {what}" for what in self.wrong]


def written(schedule: Sequence[int]) -> str:
    """A schedule as one digit for each step."""
    return "".join([DIGITS[number] for number in schedule])


def read(text: str) -> tuple[int, ...]:
    """The inverse of :func:`written`. ``ValueError`` for anything else."""
    numbers = tuple([DIGITS.find(digit) for digit in text])
    if -1 in numbers:
        raise ValueError(f"{text!r} is no schedule: one digit for each step is needed")
    return numbers


def replay(system: Scenario, schedule: Sequence[int]) -> Story:
    """Run a schedule; after its end the actor with the lowest number goes on.

    ``ValueError`` if an actor of the schedule cannot go on when it should.
    """
    events: list[Event] = []

    def make_it_known() -> tuple[str, ...]:
        told = tuple([_told(event) for event in events])
        events.clear()
        return told

    class _Recorded:
        name = system.name

        @staticmethod
        def start() -> object:
            return system.make(events)

    execution = Execution(_Recorded)  # type: ignore[arg-type]
    names = [name for name, _ in execution.run.actors]
    events.clear()
    steps: list[Step] = []
    made: list[int] = []
    wrong: list[str] = []
    try:
        while not wrong:
            options = execution.enabled()
            if not options:
                wrong = execution.finish()
                break
            number = schedule[len(made)] if len(made) < len(schedule) else options[0]
            if number not in options:
                raise ValueError(
                    f"actor {number} cannot make step {len(made) + 1} of {system.name}"
                )
            does = execution.pending(number)
            execution.step(number)
            made.append(number)
            steps.append(Step(number, names[number], does, make_it_known()))
            wrong = execution.failures()
    finally:
        execution.close()
    return Story(system.name, written(made), tuple(steps), tuple(wrong))


def _told(event: Event) -> str:
    fields = getattr(event, "_fields", ())
    values = [f"{name}={_value(value)}" for name, value in zip(fields, event, strict=False)]
    return f"{type(event).__name__}({', '.join(values)})"


def _value(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | tuple | bytes):
        return str(value)
    if isinstance(value, int):
        return str(value) if -1 <= value < 10 else hex(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return "[" + " ".join(map(_value, value)) + "]"
