# SPDX-License-Identifier: BSD-2-Clause
"""How far a long piece of work is, on standard error."""

from __future__ import annotations

import time
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.status import Status

PROGRESS_AFTER: Final = 2.0
"""Seconds after which progress is shown; what is quicker needs none."""


class FileProgress:
    """Shows how far a file is, once it has taken long enough to wonder.

    A bar on a terminal, a line every few seconds elsewhere. ``title``: the file, printable;
    ``unit``: what is counted. ``total`` may be set later; 0: not known yet.
    """

    def __init__(self, title: str, unit: str) -> None:
        self.total = 0
        self._title = title
        self._unit = unit
        self._shown = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> FileProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        """``done`` units are behind us."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total or None)
        elif time.monotonic() - self._shown > PROGRESS_AFTER:
            console = Console(stderr=True)
            if console.is_terminal:
                self._bar = Progress(console=console, transient=True)
                self._task = self._bar.add_task(
                    escape(self._title), total=self.total or None, completed=done
                )
                self._bar.start()
            else:
                of = f" of {self.total}" if self.total else ""
                click.echo(f"{self._title}: {done}{of} {self._unit}", err=True)
                self._shown = time.monotonic()

    def update_of(self, done: int, total: int) -> None:
        """``done`` of ``total`` units are behind us."""
        self.total = total
        self.update(done)


class StatusLine:
    """A sentence on how far something is: it changes in place on a terminal, elsewhere it is said now
    and then. ``first``: what it says before anything is known."""

    def __init__(self, first: str, *, quiet: bool = False) -> None:
        self._first = first
        self._quiet = quiet
        self._shown = time.monotonic()
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._status: Status | None = None

    def __enter__(self) -> StatusLine:
        if not self._quiet and self._console.is_terminal:
            self._status = self._console.status(self._first)
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, text: str) -> None:
        """Say ``text`` now, if it is time."""
        if self._quiet:
            return
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._shown > PROGRESS_AFTER:
            click.echo(text, err=True)
            self._shown = time.monotonic()
