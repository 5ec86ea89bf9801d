# SPDX-License-Identifier: BSD-2-Clause
"""A person at a guest's console: keys go in, what the guest writes comes out, until it ends."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator
from typing import Final

from mediator.live.guest import LiveGuest
from mediator.live.run import Run

LEAVE: Final = 0x1D
"""Ctrl-]: ends the guest."""
MAX_KEYS: Final = 1 << 12


@contextlib.contextmanager
def _raw(keys: int) -> Iterator[None]:
    """Each key at once and as it is, if ``keys`` is a terminal; as before afterwards."""
    if not os.isatty(keys):
        yield
        return
    before = termios.tcgetattr(keys)
    tty.setraw(keys)
    try:
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


def interact(run: Run, guest: LiveGuest, keys: int = 0, screen: int = 1) -> None:
    """Connect the files ``keys`` and ``screen`` with the console until the guest ends.

    Octets pass as they are: whoever sits there trusts the guest with the terminal. The end of
    ``keys`` ends the input, not the guest.
    """

    def show(shown: LiveGuest, data: bytes) -> None:
        if shown is guest:
            os.write(screen, data.replace(b"\n", b"\r\n") if os.isatty(screen) else data)

    def typed() -> None:
        data = os.read(keys, MAX_KEYS)
        if LEAVE in data:
            run.service.stop(guest, "left")
            return
        if not data:
            run.service.unwatch(keys)
        elif guest.ended is None:
            # A guest that does not read loses keys: its console has a buffer of 200 kB.
            with contextlib.suppress(OSError):
                guest.emulator.console.send(data)

    run.service.raw = show
    with _raw(keys):
        run.service.watch(keys, typed)
        try:
            run.serve(lambda: guest.ended is not None)
        finally:
            run.service.unwatch(keys)
            run.service.raw = None
