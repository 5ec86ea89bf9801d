# SPDX-License-Identifier: BSD-2-Clause
"""What the secure world asks of the machine around it: time, interrupts, nothing else."""

from __future__ import annotations

from typing import Protocol


class Monitor(Protocol):
    """The machine as the secure world sees it. All times are integer nanoseconds of virtual time."""

    def now(self) -> int:
        """Virtual time in ns."""

    def charge(self, ns: int) -> None:
        """The secure world used ``ns`` of processor time."""

    def foreign_interrupt_pending(self) -> bool:
        """True if an interrupt of the normal world waits on this processor. Asked at checkpoints."""

    def raise_notification(self) -> None:
        """Raise the asynchronous notification interrupt (one physical SPI; it names no guest)."""


class NullMonitor:
    """A machine without interrupts whose clock counts only charged time."""

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now = 0

    def now(self) -> int:
        """Virtual time in ns: the sum of all charges."""
        return self._now

    def charge(self, ns: int) -> None:
        """Advance the clock by ``ns``."""
        self._now += ns

    def foreign_interrupt_pending(self) -> bool:
        """Never."""
        return False

    def raise_notification(self) -> None:
        """Nobody listens."""
