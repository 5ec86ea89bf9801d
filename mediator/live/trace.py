# SPDX-License-Identifier: BSD-2-Clause
"""A live run as a picture for Perfetto, in real time: see :mod:`mediator.scenario.perfetto`.

This process serves one call after the other, so it is shown as a machine with one pCPU. A guest is
seen only when it calls: what its vCPUs do in between is the emulator's.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final

from mediator.hypervisor.machine_events import PsciCall, TrapExit
from mediator.live.monitor import LiveMonitor
from mediator.scenario.perfetto import Picture
from mediator.scenario.recorder import Recorder
from mediator.scenario.trace_file import TraceFile


class _Process:
    """What executes: this process."""

    order: Final = 0


class _Executor:
    def strand(self) -> _Process:
        """See :class:`mediator.scenario.perfetto.Executor`."""
        return _PROCESS


_PROCESS: Final = _Process()


class LiveTrace:
    """A trace file being written; a context manager. ``OSError`` if it cannot be.

    :attr:`sink` takes events from the beginning; they have times after :meth:`begin`. A run that is
    broken off leaves what there was.
    """

    def __init__(self, path: Path, client_id_base: int) -> None:
        self._file = TraceFile(path).__enter__()
        self._picture = Picture(self._file, 1, client_id_base)
        self._recorder = Recorder([self._picture])

    def begin(self, clock: LiveMonitor) -> None:
        """Take the time from this clock."""
        self._recorder.attach(clock)
        self._picture.attach(_Executor())

    def sink(self, event: tuple[object, ...]) -> None:
        """Take one event."""
        self._recorder(event)
        if isinstance(event, PsciCall):
            # Answered by the emulator, which does not tell: for us the trap is over.
            self._recorder(TrapExit(event.guest, event.vcpu, True, (event.function,)))

    def __enter__(self) -> LiveTrace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(None, None, None)
