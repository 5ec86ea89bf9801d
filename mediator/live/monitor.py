# SPDX-License-Identifier: BSD-2-Clause
"""Time and interrupts of live guests: virtual time is real time here.

Work that the simulated secure world *charges* is time that has not passed yet. It becomes a debt of
the call that is being served, and the answer is held back for so long. A call that runs for longer
than a tick leaves the secure world for a foreign interrupt, so that its guest keeps ticking.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

TICK: Final = 4_000_000
"""ns after which a call leaves for the guest's own interrupts: the tick of a kernel at 250 Hz."""


class LiveMonitor:
    """Implements :class:`secure_world.monitor.Monitor` and the clock of the host."""

    __slots__ = ("_began", "_clock", "_latest", "_origin", "debt", "notify", "tick")

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns, tick: int = TICK) -> None:
        self._clock = clock
        self._origin = self._began = clock()
        self._latest = 0
        self.tick = tick
        self.debt = 0
        """ns that the call in progress has worked in the model, but not in reality."""
        self.notify: Callable[[], None] | None = None

    def begin(self) -> None:
        """A call begins."""
        self._began = self._clock()
        self.debt = 0

    def now(self) -> int:
        """ns since the platform began, with what the call in progress has charged.

        Never decreases: after a call with a debt time stands still until reality has caught up.
        """
        now = self._clock() - self._origin + self.debt
        if now < self._latest:
            return self._latest
        self._latest = now
        return now

    def time(self) -> int:
        """The same: this is the clock of what is recorded, as a machine's is."""
        return self.now()

    def charge(self, ns: int) -> None:
        """The secure world worked for ``ns``."""
        self.debt += ns

    def foreign_interrupt_pending(self) -> bool:
        """Whether the call has worked for a tick, in the model and in reality together."""
        return self._clock() - self._began + self.debt >= self.tick

    def raise_notification(self) -> None:
        """The secure world has a notification for somebody."""
        if self.notify is not None:
            self.notify()
