# SPDX-License-Identifier: BSD-2-Clause
"""The recorder: one sink for a whole run that stamps every event with the machine's time.

It keeps a SHA-256 digest of the stream, so that two runs can be compared by one number, counts
events by class, and hands each to the listeners that want its class. Listeners are tables, the
trace of a run, a log: whatever wants to know *when*.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from mediator.deployment.el0_app.events import AppStarted, AppUsed

Event = tuple[object, ...]
_ABOUT_HOMES = frozenset((AppStarted, AppUsed))
Handler = Callable[[int, Event], None]
"""``handler(time, event)``; time in virtual ns."""


class Clock(Protocol):
    """Who knows what time it is: a machine, or whatever stands for one."""

    def time(self) -> int:
        """Now, ns."""


class Listener(Protocol):
    """Somebody who wants events with their time."""

    def handlers(self) -> Mapping[type, Handler]:
        """Event class to what is done about it."""


class Recorder:
    """A sink. Until :meth:`attach` there is no machine and all is at time 0."""

    __slots__ = ("_clock", "_hash", "_table", "counts", "latest")

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._clock: Callable[[], int] = _beginning
        self._hash = hashlib.sha256()
        self._table: dict[type, tuple[Handler, ...]] = {}
        self.counts: dict[type, int] = {}
        """Events by class."""
        self.latest = 0
        """The latest time of an event, virtual ns."""
        for listener in listeners:
            for kind, handler in listener.handlers().items():
                self._table[kind] = (*self._table.get(kind, ()), handler)

    def attach(self, clock: Clock) -> None:
        """Take the time of events from this machine."""
        self._clock = clock.time

    def __call__(self, event: Event) -> None:
        """Take one event."""
        kind = type(event)
        time = self._clock()
        if time > self.latest:
            self.latest = time
        counts = self.counts
        counts[kind] = counts.get(kind, 0) + 1
        # The plain tuple's repr: integers, texts, bytes and tuples of them, the same everywhere.
        # Where the mediator lives is no part of what it does.
        if kind not in _ABOUT_HOMES:
            self._hash.update(f"{time} {kind.__name__}{tuple.__repr__(event)}\n".encode())
        for handler in self._table.get(kind, ()):
            handler(time, event)

    @property
    def events(self) -> int:
        """Events so far."""
        return sum(self.counts.values())

    def digest(self) -> str:
        """SHA-256 of the stream so far, hexadecimal."""
        return self._hash.hexdigest()


def _beginning() -> int:
    return 0
