# SPDX-License-Identifier: BSD-2-Clause
"""The deterministic scheduler: strands of execution with a clock each, and one loop that picks.

A *strand* is something that executes in virtual time: a physical CPU, or a task of the control
domain. The loop resumes one strand at a time until it suspends.

- ``DIRECT``: the strand with the smallest clock goes next, so no strand runs ahead of another by
  more than the sync quantum. Ties are choices.
- ``INTERLEAVE``: every suspension is a choice among all strands that can run.

Every choice goes through one function. The default draws from one ``random.Random(seed)`` of the
standard library (Mersenne Twister; a choice of ``n`` is ``int(random() * n)``), so a seed is a run.
An explorer passes its own function and thereby drives every choice; a choice of one is not asked.

Who suspends yields a request to the loop: ``None`` is a mere switch point, everything else is the
strand's own business (:meth:`Strand.handle`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import Enum
from operator import attrgetter
from typing import Final, Protocol, TypeAlias

from mediator.hypervisor.accounting import Account
from mediator.hypervisor.timer import NEVER, Timer, TimerQueue


class Mode(Enum):
    """What counts as a switch point."""

    DIRECT = "direct"
    INTERLEAVE = "interleave"


class RunEnd(Enum):
    """Why :meth:`Scheduler.run` returned."""

    IDLE = "idle"
    """Nothing can run and no timer is armed."""
    STOPPED = "stopped"
    """The caller's condition became true."""
    TIME = "time"
    """The virtual time limit is reached."""
    STEPS = "steps"
    """The step limit is reached."""


class Resume(Protocol):
    """The bound ``send`` of a coroutine."""

    def __call__(self, value: None, /) -> object: ...


class Strand:
    """One line of execution.

    ``clock``: its virtual time in ns. ``stop_at``: from this time on whoever executes here must
    suspend at the next opportunity. ``slice_end``: when its time slice is over; 0 asks for the
    scheduler at once. ``kicked``: an interrupt arrived for what executes here. ``resume``: the
    ``send`` of the coroutine that executes. ``order`` is unique and sorts strands.
    """

    __slots__ = ("account", "clock", "kicked", "label", "order", "resume", "slice_end", "stop_at")

    def __init__(self, order: int, label: str, account: Account) -> None:
        self.order = order
        self.label = label
        self.account = account
        self.clock = 0
        self.stop_at = 0
        self.slice_end = 0
        self.kicked = False
        self.resume: Resume = _nothing_to_resume

    def __repr__(self) -> str:
        return f"<{self.label} at {self.clock}>"

    def urge(self) -> None:
        """Make what executes here suspend at the next opportunity."""
        self.slice_end = self.stop_at = 0

    def handle(self, request: object) -> None:
        """Serve a request other than ``None`` of the coroutine, which is suspended."""
        raise NotImplementedError

    def finished(self, result: object) -> None:
        """The coroutine returned."""
        raise NotImplementedError

    def failed(self, error: BaseException) -> None:
        """The coroutine raised."""
        raise NotImplementedError


def _nothing_to_resume(value: None, /) -> object:
    raise AssertionError("a strand without a coroutine was resumed")


Chooser: TypeAlias = Callable[[Sequence[Strand]], int]
"""Picks one of at least two strands by index. They are sorted by ``order``."""


class SeededChooser:
    """The default choice: uniform draws from ``random.Random(seed)``."""

    __slots__ = ("draw",)

    def __init__(self, seed: int) -> None:
        self.draw: Callable[[], float] = random.Random(seed).random

    def __call__(self, strands: Sequence[Strand]) -> int:
        return int(self.draw() * len(strands))


_clock: Final = attrgetter("clock")
_order: Final = attrgetter("order")


class Scheduler:
    """The strands that can run, the timers, and the loop.

    ``quantum``: how far a strand may run ahead of the slowest one in direct mode, ns.
    """

    __slots__ = (
        "_choose",
        "_high",
        "_instant",
        "_interleave",
        "_quantum",
        "_running",
        "_stopped",
        "current",
        "ready",
        "steps",
        "timers",
    )

    def __init__(self, mode: Mode, quantum: int, choose: Chooser) -> None:
        self._interleave = mode is Mode.INTERLEAVE
        self._quantum = quantum
        self._choose = choose
        self._high = 0
        self._instant = NEVER
        self._stopped = False
        self._running = False
        self.ready: list[Strand] = []
        self.timers = TimerQueue()
        self.current: Strand | None = None
        self.steps = 0

    def now(self) -> int:
        """The latest time that anybody was asked at: never decreases, unlike the strands' clocks."""
        current = self.current
        if current is not None and current.clock > self._high:
            self._high = current.clock
        return self._high

    def instant(self) -> int:
        """The time at which whatever happens right now happens, ns.

        That is the executing strand's clock, or the deadline of the timer that expires.
        """
        current = self.current
        if current is not None:
            return current.clock
        return self._high if self._instant == NEVER else self._instant

    def arm(self, timer: Timer, deadline: int | None) -> None:
        """Set or cancel (``None``) a timer; whoever executes now stops in time for it."""
        self.timers.set(timer, deadline)
        current = self.current
        if current is not None and deadline is not None and deadline < current.stop_at:
            current.stop_at = deadline

    def add(self, strand: Strand, at: int) -> None:
        """``strand`` can run, from ``at`` ns on or from its own clock if that is later."""
        if strand.clock < at:
            strand.clock = at
        current = self.current
        if current is not None and not self._interleave:
            current.stop_at = min(current.stop_at, strand.clock + self._quantum)
        ready = self.ready
        ready.append(strand)
        if len(ready) > 1 and ready[-2].order > strand.order:
            ready.sort(key=_order)

    def remove(self, strand: Strand) -> None:
        """``strand`` cannot run any more."""
        self.ready.remove(strand)

    def run(
        self,
        *,
        stop: Callable[[], bool] | None = None,
        until: int = NEVER,
        max_steps: int | None = None,
    ) -> RunEnd:
        """Resume strands until nothing can run, or a limit is reached.

        ``stop`` is asked before every step. ``until`` is a virtual time in ns; in direct mode no
        strand whose clock has reached it is resumed, in interleave mode the first strand that
        reaches it ends the run. Exceptions of the machine's own parts pass through.
        ``RuntimeError`` if it is called from inside a run.
        """
        if self._running:
            raise RuntimeError("the machine is running already: run() does not nest")
        self._running = True
        try:
            return self._loop(stop, until, -1 if max_steps is None else max_steps)
        finally:
            self._running = False
            self.now()
            self.current = None

    def _loop(self, stop: Callable[[], bool] | None, until: int, budget: int) -> RunEnd:
        timers = self.timers
        while budget:
            if stop is not None:
                self._pass_time()
                if stop():
                    return RunEnd.STOPPED
            if not self.ready:
                if timers.next == NEVER:
                    return RunEnd.IDLE
                if timers.next >= until:
                    return self._reached(until)
                self._fire()
            elif self._interleave:
                high = self.now()
                if timers.next <= high:
                    self._fire()
                elif high >= until:
                    return RunEnd.TIME
                else:
                    budget -= self._burst(stop, budget, until)
                    if self._stopped:
                        self._stopped = False
                        return RunEnd.STOPPED
            else:
                strand = self._earliest()
                if timers.next <= strand.clock:
                    self._fire()
                elif strand.clock >= until:
                    return self._reached(until)
                else:
                    budget -= 1
                    self.steps += 1
                    self.current = strand
                    self._step(strand)
        return RunEnd.STEPS

    def _step(self, strand: Strand) -> None:
        """Resume a strand and serve what it suspends with."""
        try:
            request = strand.resume(None)
        except StopIteration as end:
            strand.finished(end.value)
        except (Exception, SystemExit, GeneratorExit) as error:
            strand.failed(error)
        else:
            if request is not None:
                strand.handle(request)

    def _burst(self, stop: Callable[[], bool] | None, budget: int, until: int) -> int:
        """Interleave up to ``budget`` steps (any number if negative); returns how many it made.

        Ends early when a timer falls due, ``until`` is reached or ``stop`` is true after a step.
        This loop is what a switch point costs, so :meth:`_step` is written out in it.
        """
        ready = self.ready
        timers = self.timers
        choose = self._choose
        draw = choose.draw if isinstance(choose, SeededChooser) else None
        left = budget
        last: Strand | None = None
        try:
            while left:
                count = len(ready)
                if count == 1:
                    strand = ready[0]
                elif not count:
                    break
                elif draw is not None:
                    strand = ready[int(draw() * count)]
                else:
                    strand = ready[choose(ready)]
                left -= 1
                if strand is not last:
                    self.now()  # remembers how late it was on the strand before
                    self.current = last = strand
                try:
                    request = strand.resume(None)
                except StopIteration as end:
                    strand.finished(end.value)
                except (Exception, SystemExit, GeneratorExit) as error:
                    strand.failed(error)
                else:
                    if request is not None:
                        strand.handle(request)
                clock = strand.clock
                if clock >= timers.next or clock >= until:
                    break
                if stop is not None:
                    if clock > self._high:
                        self._high = clock
                    self.current = None
                    if stop():
                        self._stopped = True
                        break
                    self.current = strand
        finally:
            self.steps += budget - left
        return budget - left

    def _earliest(self) -> Strand:
        """The strand with the smallest clock, told how far it may go (direct mode)."""
        ready = self.ready
        limit = self.timers.next
        strand = ready[0]
        if len(ready) > 1:
            clock = min(map(_clock, ready))
            tied = [candidate for candidate in ready if candidate.clock == clock]
            strand = tied[0] if len(tied) == 1 else tied[self._choose(tied)]
            others = min(other.clock for other in ready if other is not strand)
            limit = min(limit, others + self._quantum)
        strand.stop_at = min(strand.slice_end, limit)
        return strand

    def _fire(self) -> None:
        """Let the first timer expire; it happens at its deadline, on no strand."""
        self._pass_time()
        deadline = self.timers.next
        timer = self.timers.pop(deadline)
        if timer is not None:
            self._high = max(self._high, deadline)
            self._instant = deadline
            try:
                timer.expire(deadline)
            finally:
                self._instant = NEVER

    def _pass_time(self) -> None:
        """What happens now happens on no strand: remember how late it is."""
        self.now()
        self.current = None

    def _reached(self, until: int) -> RunEnd:
        self._high = max(self._high, until)
        return RunEnd.TIME
