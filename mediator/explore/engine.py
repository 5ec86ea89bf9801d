# SPDX-License-Identifier: BSD-2-Clause
"""All interleavings of a small system, one fresh system for each run.

A system is a handful of actors: coroutines that suspend wherever another may go on. A *schedule*
says which actor makes each step, and decides everything: a run is its schedule. :func:`explore`
goes through all schedules, depth first, by starting a new system, repeating the steps up to the
last choice that has an untried alternative, and going on from there.

Two ways, and a third that is no proof:

- :attr:`Reduction.NONE` executes every schedule from its beginning to its end. Their number on
  independent actors with m and n steps is C(m + n, n).
- :attr:`Reduction.STATES` compares the whole state of the system after each step
  (:mod:`mediator.explore.state`) and does not go on from a state that another schedule has led to:
  from there everything is the same. It finds the same findings and the same ends, and it counts
  the schedules, executed or not, exactly.
- A bound on preemptions leaves schedules out, and a limit on runs does too. The result says so:
  :attr:`Exploration.complete` is true only if nothing was left out.

Where an actor waits for a condition it is not chosen until the condition holds. Nothing else is
left out: no actor has a priority, and there is no fairness.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Hashable, Sequence
from enum import Enum
from typing import Final, Protocol

import attrs

from mediator.explore.state import fingerprint

MAX_STEPS: Final = 2000
"""Steps of one run. The systems make fewer than a hundred: more is an actor that runs in circles."""

MAX_FINDINGS: Final = 100
"""Different findings that are kept with their schedules."""

CLOSE_TRIES: Final = 64
"""Clean-up blocks of one actor that may try to suspend while it is given up."""

Actor = Coroutine[object, None, Hashable]


class Until:
    """Awaited by an actor that cannot go on before ``condition()`` holds; ``what`` says which.

    ``idle``: it may wait for ever, as an interrupt handler does.
    """

    __slots__ = ("condition", "idle", "what")

    def __init__(self, condition: Callable[[], bool], what: str, *, idle: bool = False) -> None:
        self.condition = condition
        self.what = what
        self.idle = idle


class Run(Protocol):
    """One fresh system."""

    @property
    def actors(self) -> Sequence[tuple[str, Actor]]:
        """Names and coroutines; none has begun."""

    def violations(self) -> Sequence[str]:
        """What has been wrong so far, in the order in which it was seen. Asked after each step."""

    def finish(self) -> None:
        """Nobody can go on: the last look, after which :meth:`violations` is complete."""

    def outcome(self) -> Hashable:
        """What is to be seen of the end."""

    def state(self) -> Sequence[object]:
        """The objects that the whole state can be reached from, without the actors."""


class System(Protocol):
    """Makes runs that differ in nothing."""

    @property
    def name(self) -> str:
        """What the command line calls it."""

    def start(self) -> Run:
        """A fresh system."""


class Reduction(Enum):
    """What is not executed twice."""

    NONE = "none"
    STATES = "states"


@attrs.frozen
class Failure:
    """One thing that is wrong, and the first schedule that showed it: numbers of actors."""

    what: str
    schedule: tuple[int, ...]


@attrs.frozen
class Exploration:
    """What an exploration did and found.

    ``complete``: every schedule was executed, or is one that leads into a state that was.
    ``schedules``: how many there are (of those that were looked at, unless complete); one that
    fails counts up to its failure. ``runs``: systems that were started; ``steps``: steps that were
    made in them, repetitions included. ``states``: different states (0 without reduction).
    ``longest``: steps of the longest schedule. ``outcomes``: the different ends.
    """

    system: str
    reduction: Reduction
    preemptions: int | None
    complete: bool
    schedules: int
    runs: int
    steps: int
    states: int
    longest: int
    outcomes: tuple[Hashable, ...]
    failures: tuple[Failure, ...]

    @property
    def extent(self) -> str:
        """``all``, or why it is not."""
        if self.complete:
            return "all"
        return "stopped" if self.preemptions is None else f"at most {self.preemptions} preemptions"


class Execution:
    """One run on its way."""

    __slots__ = ("_actors", "_pending", "_sends", "counts", "ended", "results", "run", "wrong")

    def __init__(self, system: System) -> None:
        self.run = system.start()
        self._actors = [actor for _, actor in self.run.actors]
        self._sends = [actor.send for actor in self._actors]
        self._pending: list[object] = ["begins"] * len(self._actors)
        self.counts = [0] * len(self._actors)
        self.ended = [False] * len(self._actors)
        self.results: list[Hashable] = [None] * len(self._actors)
        self.wrong: list[str] = []

    def enabled(self) -> tuple[int, ...]:
        """Numbers of the actors that can make a step."""
        found = []
        for number, request in enumerate(self._pending):
            if not self.ended[number] and (type(request) is not Until or request.condition()):
                found.append(number)
        return tuple(found)

    def pending(self, number: int) -> str:
        """What actor ``number`` does first in its next step."""
        request = self._pending[number]
        return request.what if isinstance(request, Until) else str(request or "goes on")

    def step(self, number: int) -> None:
        """Let an actor go on until it suspends or ends."""
        self.counts[number] += 1
        try:
            self._pending[number] = self._sends[number](None)
        except StopIteration as end:
            self.results[number] = end.value
            self.ended[number] = True
        except Exception as error:
            self.ended[number] = True
            name = self.run.actors[number][0]
            self.wrong.append(f"{name} raised {type(error).__name__}: {error}")

    def failures(self) -> list[str]:
        """What has been wrong so far."""
        return [*self.wrong, *self.run.violations()]

    def finish(self) -> list[str]:
        """Nobody can go on. Whoever has not ended waits for ever, and that is wrong."""
        stuck = [
            f"{name} waits for ever: {self.pending(number)}"
            for number, (name, _) in enumerate(self.run.actors)
            if not self.ended[number] and not self._idle(number)
        ]
        self.run.finish()
        return [*self.failures(), *stuck]

    def _idle(self, number: int) -> bool:
        request = self._pending[number]
        return isinstance(request, Until) and request.idle

    def digest(self) -> bytes:
        """The whole state."""
        return fingerprint(
            (*self.run.state(), self.counts, self.ended, self.results, self._pending, self._actors)
        )

    def close(self) -> None:
        """Give up what has not ended. What its clean-up code does then is of no interest."""
        for actor in self._actors:
            for _ in range(CLOSE_TRIES):
                try:
                    actor.close()
                except RuntimeError:
                    continue  # it suspended while it was given up
                except Exception:
                    pass
                break


class _Choice:
    """A point at which somebody must go on."""

    __slots__ = ("index", "key", "last", "options", "schedules", "used")

    def __init__(self, options: tuple[int, ...], key: bytes, last: int, used: int) -> None:
        self.options = options
        self.index = 0
        self.key = key
        self.schedules = 0
        self.last = last
        self.used = used

    def preempted(self) -> int:
        """Preemptions up to and with the step that is tried now."""
        if self.last in self.options and self.options[self.index] != self.last:
            return self.used + 1
        return self.used


class _Search:
    def __init__(self, system: System, reduction: Reduction, preemptions: int | None) -> None:
        self.system = system
        self.merge = reduction is Reduction.STATES
        self.bound = preemptions
        self.stack: list[_Choice] = []
        self.known: dict[bytes, int] = {}
        self.outcomes: dict[Hashable, None] = {}
        self.failures: dict[str, tuple[int, ...]] = {}
        self.left_out = False
        self.steps = 0
        self.longest = 0

    def schedule(self) -> tuple[int, ...]:
        return tuple([choice.options[choice.index] for choice in self.stack])

    def execute(self) -> int:
        """One run: repeat the choices, go on to the end or to a known state; schedules counted."""
        execution = Execution(self.system)
        try:
            for choice in self.stack:
                execution.step(choice.options[choice.index])
            return self._go_on(execution)
        finally:
            self.steps += sum(execution.counts)
            self.longest = max(self.longest, len(self.stack))
            execution.close()

    def _go_on(self, execution: Execution) -> int:
        stack = self.stack
        while True:
            wrong = execution.failures()
            if wrong:
                self._failed(wrong)
                return 1
            options = execution.enabled()
            if not options:
                self._failed(execution.finish())
                self.outcomes[(tuple(execution.results), execution.run.outcome())] = None
                return 1
            last, used = (
                (stack[-1].options[stack[-1].index], stack[-1].preempted()) if stack else (-1, 0)
            )
            if self.bound is not None:
                options = self._within(options, last, used)
            key = b""
            if self.merge:
                key = execution.digest()
                if self.bound is not None:
                    key += b"%d %d" % (last, used)
                known = self.known.get(key)
                if known is not None:
                    return known
            if len(stack) >= MAX_STEPS:
                self._failed([f"no end after {MAX_STEPS} steps"])
                return 1
            stack.append(_Choice(options, key, last, used))
            execution.step(options[0])

    def _within(self, options: tuple[int, ...], last: int, used: int) -> tuple[int, ...]:
        """Who may go on within the bound: whoever went on last comes first."""
        if last not in options:
            return options
        others = tuple([number for number in options if number != last])
        if others and used == self.bound:
            self.left_out = True
            return (last,)
        return (last, *others)

    def _failed(self, wrong: Sequence[str]) -> None:
        for what in wrong:
            if what not in self.failures and len(self.failures) < MAX_FINDINGS:
                self.failures[what] = self.schedule()

    def advance(self, schedules: int) -> bool:
        """Go to the next untried choice; False: there is none."""
        while self.stack:
            choice = self.stack[-1]
            choice.schedules += schedules
            choice.index += 1
            if choice.index < len(choice.options):
                return True
            self.stack.pop()
            schedules = choice.schedules
            if self.merge:
                self.known[choice.key] = schedules
        self.schedules = schedules
        return False


def explore(
    system: System,
    reduction: Reduction = Reduction.STATES,
    *,
    preemptions: int | None = None,
    max_runs: int | None = None,
    stop_at_failure: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Exploration:
    """Go through the schedules of ``system``.

    ``preemptions``: only schedules with at most so many switches away from an actor that could go
    on (bounded, not all). ``max_runs``: stop after so many runs. ``stop_at_failure``: stop at the
    first one. ``progress`` gets the number of runs.
    """
    search = _Search(system, reduction, preemptions)
    runs = total = 0
    complete = False
    while True:
        schedules = search.execute()
        runs += 1
        if progress is not None:
            progress(runs)
        if not search.advance(schedules):
            complete = not search.left_out
            total = search.schedules
            break
        if runs == max_runs or (stop_at_failure and search.failures):
            total = sum(choice.schedules for choice in search.stack)
            break
    return Exploration(
        system.name,
        reduction,
        preemptions,
        complete,
        total,
        runs,
        search.steps,
        len(search.known),
        search.longest,
        tuple(search.outcomes),
        tuple([Failure(what, schedule) for what, schedule in search.failures.items()]),
    )


def minimal_failure(
    system: System, *, max_preemptions: int = 8, max_runs: int | None = None
) -> Failure | None:
    """A failure with the fewest preemptions: no schedule with fewer fails. ``None``: none found.

    Schedules with 0, 1, 2 … preemptions are tried in turn, ``max_runs`` of each at most.
    """
    for bound in range(max_preemptions + 1):
        found = explore(
            system, Reduction.NONE, preemptions=bound, max_runs=max_runs, stop_at_failure=True
        )
        if found.failures:
            return found.failures[0]
        if found.complete:
            return None
    return None


def sample(system: System, runs: int, seed: int) -> tuple[int, Failure | None]:
    """Random schedules: how many of ``runs`` fail, and the first that did.

    Each choice is uniform among those who can go on, from ``random.Random(seed)``.
    """
    generator = random.Random(seed)
    failed = 0
    first: Failure | None = None
    for _ in range(runs):
        execution = Execution(system)
        schedule: list[int] = []
        wrong: list[str] = []
        while not wrong and len(schedule) < MAX_STEPS:
            options = execution.enabled()
            if not options:
                wrong = execution.finish()
                break
            number = options[int(generator.random() * len(options))]
            schedule.append(number)
            execution.step(number)
            wrong = execution.failures()
        execution.close()
        if wrong:
            failed += 1
            first = first or Failure(wrong[0], tuple(schedule))
    return failed, first
