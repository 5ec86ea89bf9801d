# SPDX-License-Identifier: BSD-2-Clause
"""What the secure world asks of the machine around it: time, interrupts, nothing else."""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable


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


SITE_ENTRY: Final = 0
"""The call was accepted; no lock of the core is held."""
SITE_RUNNING: Final = 1
"""The command's work begins: in the TA, or with its instance locked or marked as loading."""
SITE_CHECKPOINT: Final = 2
"""A checkpoint that the TA asked for."""
SITE_RPC: Final = 3
"""The answer of an RPC was read."""
SITE_WAITED: Final = 4
"""A NOTIFICATION WAIT came back; the thread has not looked yet whether it may go on."""
SITE_EXIT: Final = 5
"""The results are written; no lock of the core is held."""

STIMULUS_FOREIGN_INTERRUPT: Final = 0
STIMULUS_WAIT: Final = 1
STIMULUS_SEND: Final = 2


@runtime_checkable
class Stimuli(Protocol):
    """A monitor that decides at every legal point what interrupts a thread: replays and explorers.

    A monitor with this method is asked instead of :meth:`Monitor.foreign_interrupt_pending`, at
    more sites, and again after each stimulus until it answers None.
    """

    def stimulus(self, client: int, thread: int, site: int) -> tuple[int, int] | None:
        """What happens to thread ``thread`` of partition ``client`` at ``site`` (SITE_*).

        ``(STIMULUS_FOREIGN_INTERRUPT, 0)``; ``(STIMULUS_WAIT, value)`` or ``(STIMULUS_SEND, value)``
        for a NOTIFICATION of a lock that this model does not have; None to go on.
        """


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
