# SPDX-License-Identifier: BSD-2-Clause
"""A physical CPU: a strand that executes one vCPU at a time and queues the others.

Round robin with a time slice. A vCPU is bound to its pCPU; while it is inside a trap it is not
descheduled, because the hypervisor does not preempt itself.
"""

from __future__ import annotations

import os.path
import traceback
from collections import deque
from typing import Final

from mediator.hypervisor.accounting import CONTEXT_SWITCH, Account
from mediator.hypervisor.core import Core
from mediator.hypervisor.machine_events import ProgramCrash
from mediator.hypervisor.requests import Fault, PowerOff, Restart, Stop, Wait
from mediator.hypervisor.scheduler import Strand
from mediator.hypervisor.vcpu import (
    OFF,
    PAUSED,
    READY,
    RUNNING,
    WAITING,
    Vcpu,
)

TRACEBACK_FRAMES: Final = 12
"""Innermost frames kept of a crash: enough to see where, bounded for a program that recurses."""


class GuestRequest(Exception):
    """A guest program suspended with a request that no machine knows: a defect of the program."""


def describe_crash(error: BaseException) -> str:
    """A traceback without directories, so that two checkouts tell the same story."""
    lines = [
        f"  {os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)[-TRACEBACK_FRAMES:]
    ]
    return "\n".join((*lines, f"{type(error).__name__}: {error}"))


class Pcpu(Strand):
    """One pCPU. ``current``: the vCPU that it executes; ``queue``: those that wait for it."""

    __slots__ = ("_core", "_last", "current", "index", "queue")

    def __init__(self, core: Core, index: int) -> None:
        super().__init__(index, f"pCPU {index}", Account())
        self._core = core
        self._last: Vcpu | None = None
        self.index = index
        self.current: Vcpu | None = None
        self.queue: deque[Vcpu] = deque()

    # --- queue -----------------------------------------------------------------------------------

    def enqueue(self, vcpu: Vcpu, at: int) -> None:
        """``vcpu`` wants to run from ``at`` ns on."""
        vcpu.set_state(READY)
        self.queue.append(vcpu)
        if self.current is None:
            self._core.scheduler.add(self, at)
            self._next()

    def take_off(self, vcpu: Vcpu) -> None:
        """Remove a vCPU that is queued, or current and suspended. Its state is the caller's business."""
        if self.current is vcpu:
            self._leave()
        elif vcpu in self.queue:
            self.queue.remove(vcpu)

    def _next(self) -> None:
        """Execute the vCPU at the head of the queue."""
        vcpu = self.queue.popleft()
        core = self._core
        self.current = vcpu
        self.kicked = False
        self.account = vcpu.guest.account
        if self._last is not vcpu:
            self._last = vcpu
            self.clock += core.costs[CONTEXT_SWITCH]
            self.account.counts[CONTEXT_SWITCH] += 1
        self.slice_end = self.stop_at = self.clock + core.settings.time_slice
        vcpu.set_state(RUNNING)
        if vcpu.coroutine is None:
            self.resume = self._first_resume
        else:
            self.resume = vcpu.coroutine.send

    def _first_resume(self, value: None, /) -> object:
        """Create the program of the current vCPU, then run it; the creation may raise, too."""
        vcpu = self.current
        assert vcpu is not None
        vcpu.create_program()
        assert vcpu.coroutine is not None
        self.resume = vcpu.coroutine.send
        return self.resume(None)

    def _leave(self) -> None:
        """The current vCPU leaves this pCPU."""
        self.current = None
        if self.queue:
            self._next()
        else:
            self._core.scheduler.remove(self)

    # --- requests of the current vCPU --------------------------------------------------------------

    def handle(self, request: object) -> None:
        """Serve what the current vCPU suspended with."""
        vcpu = self._suspended()
        if isinstance(request, Fault):
            raise request.error
        if vcpu.guest.halted:
            self.kill(vcpu)
        elif isinstance(request, Stop):
            self._stop(vcpu)
        elif isinstance(request, Wait):
            vcpu.set_state(WAITING)
            self._leave()
        elif isinstance(request, PowerOff):
            self.kill(vcpu)
        elif isinstance(request, Restart):
            entry, context = vcpu.entry, vcpu.context
            self.kill(vcpu)
            vcpu.power_on(entry, context)
        else:
            self.failed(GuestRequest(f"suspended with {request!r}"))

    def _stop(self, vcpu: Vcpu) -> None:
        if vcpu.guest.paused:
            vcpu.set_state(PAUSED)
            self._leave()
        elif self.clock >= self.slice_end:
            if self.queue:
                vcpu.set_state(READY)
                self.queue.append(vcpu)
                self._next()
            else:
                self.slice_end = self.stop_at = self.clock + self._core.settings.time_slice

    def finished(self, result: object) -> None:
        """The program of the current vCPU returned: the vCPU is off."""
        self.kill(self._suspended())

    def failed(self, error: BaseException) -> None:
        """The program of the current vCPU raised: a guest's mistake, which ends that vCPU only."""
        vcpu = self._suspended()
        self._report(vcpu, error)
        self.kill(vcpu)

    def kill(self, vcpu: Vcpu) -> None:
        """Take a suspended vCPU away from its program for good."""
        if vcpu.state is OFF:
            return
        self.take_off(vcpu)
        if self._last is vcpu:
            self._last = None
        error = vcpu.close()
        if error is not None:
            self._report(vcpu, error)
        self._core.lifecycle.vcpu_gone(vcpu.guest)

    def _suspended(self) -> Vcpu:
        """The current vCPU, unless something of the machine failed while it executed."""
        if self._core.fault is not None:
            raise self._core.fault
        vcpu = self.current
        assert vcpu is not None
        return vcpu

    def _report(self, vcpu: Vcpu, error: BaseException) -> None:
        emit = self._core.emit
        if emit is not None:
            emit(ProgramCrash(vcpu.guest_id, vcpu.index, describe_crash(error)))
