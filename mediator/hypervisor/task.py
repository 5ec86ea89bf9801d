# SPDX-License-Identifier: BSD-2-Clause
"""Tasks of the control domain: creation, teardown, interrupt entries, scripts. Strands of their own.

A task is a coroutine that executes in virtual time beside the pCPUs. It may await the mediator, and

- :data:`TURN`: let others go first; the task gets a new time slice;
- :data:`BLOCK`: until :meth:`Task.wake`;
- :func:`sleep`: for some virtual time.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Final, NamedTuple

from mediator.hypervisor.accounting import Account
from mediator.hypervisor.core import Core
from mediator.hypervisor.scheduler import Strand
from mediator.hypervisor.timer import Timer
from mediator.suspend import Suspend


class Turn(NamedTuple):
    """Request: go on after whoever is due."""


class Block(NamedTuple):
    """Request: do not go on before somebody wakes the task."""


class Sleep(NamedTuple):
    """Request: go on ``ns`` nanoseconds later."""

    ns: int


TURN: Final = Suspend[None](Turn())
BLOCK: Final = Suspend[None](Block())


def sleep(ns: int) -> Suspend[None]:
    """Awaitable: ``ns`` nanoseconds of virtual time pass."""
    return Suspend[None](Sleep(ns))


class Task(Strand):
    """A running coroutine. ``done``: it returned, with ``result``."""

    __slots__ = ("_blocked", "_core", "_timer", "done", "result")

    def __init__(
        self,
        core: Core,
        order: int,
        label: str,
        account: Account,
        coroutine: Coroutine[object, None, object],
    ) -> None:
        super().__init__(order, label, account)
        self._core = core
        self._blocked = True
        self._timer: Timer | None = None
        self.resume = coroutine.send
        self.done = False
        self.result: object = None

    def wake(self, at: int | None = None) -> None:
        """Let a new or blocked task run from ``at`` ns on (``None``: now); otherwise no effect."""
        if self._blocked and not self.done:
            self._blocked = False
            scheduler = self._core.scheduler
            scheduler.add(self, scheduler.instant() if at is None else at)
            self._renew()

    def handle(self, request: object) -> None:
        """Serve what the coroutine suspended with."""
        self._check()
        if isinstance(request, Turn):
            self._renew()
        elif isinstance(request, Block):
            self._block()
        elif isinstance(request, Sleep):
            self._block()
            if self._timer is None:
                self._timer = Timer(self.wake)
            self._core.scheduler.arm(self._timer, self.clock + request.ns)
        else:
            raise TypeError(f"{self.label}: suspended with {request!r}")

    def finished(self, result: object) -> None:
        """The coroutine returned."""
        self._check()
        self.done = True
        self.result = result
        self._core.scheduler.remove(self)

    def failed(self, error: BaseException) -> None:
        """A task is part of the machine: its exception is the caller's of ``run``."""
        self.done = True
        self._core.scheduler.remove(self)
        raise error

    def _renew(self) -> None:
        self.slice_end = self.stop_at = self.clock + self._core.settings.time_slice

    def _block(self) -> None:
        self._blocked = True
        self._core.scheduler.remove(self)

    def _check(self) -> None:
        if self._core.fault is not None:
            raise self._core.fault
