# SPDX-License-Identifier: BSD-2-Clause
"""Killing a hypervisor, and looking whether its app is still there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 20.0
"""Seconds; far less than the app's own limit of processor time would take."""


def _gone(pid: int) -> bool:
    """Ended; a zombie has, too: nobody here may be its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def _spends_time(pid: int) -> None:
    """Wait until the app is in its loop: more time than its start and its greeting take."""
    until = time.monotonic() + PATIENCE
    start = _ticks(pid)
    while _ticks(pid) < start + 20:
        assert time.monotonic() < until, "it does not loop"
        time.sleep(0.02)


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def killed(hypervisor: str, *arguments: str, busy: bool) -> None:
    """Run the program ``hypervisor``, which prints the id of its app, kill it, and wait until the app
    is gone as well. ``busy``: not before the app is in a loop."""
    command = [sys.executable, "-c", hypervisor, *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        if busy:
            _spends_time(pid)
        assert not _gone(pid)
        running.kill()
        running.wait()
    until = time.monotonic() + PATIENCE
    while not _gone(pid):
        assert time.monotonic() < until, f"the app {pid} is still there"
        time.sleep(0.02)
