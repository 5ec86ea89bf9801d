# SPDX-License-Identifier: BSD-2-Clause
"""A live guest: its emulator, its RAM and mailboxes, and what its console says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from mediator.live import stub
from mediator.live.image import Software, load
from mediator.live.mailbox import Mailbox
from mediator.live.power import Power
from mediator.live.qemu import BoardSettings, Emulator, Memory, at_el3

MAX_LINE: Final = 4096
"""Octets of one console line; a longer one is cut, so that a guest cannot make us grow."""
MAX_KEPT: Final = 20_000
"""Console lines that are kept of one guest."""

_OOPS: Final = re.compile(
    r"Internal error: |Kernel panic|Unable to handle kernel|BUG: |kernel BUG at|WARNING: CPU"
    r"|INFO: task .* blocked for more than|rcu: INFO: .* detected|Out of memory: "
)
"""What the kernel prints when something broke (``traps.c``, ``panic.c``, ``bug.c``, ``hung_task.c``)."""

LineSink = Callable[["LiveGuest", str], None]


class Console:
    """Lines of a serial console."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.alarms: list[str] = []
        """Lines that say that the kernel is broken."""
        self.received = 0
        """Octets so far."""
        self._rest = b""

    def take(self, data: bytes) -> list[str]:
        """Add octets; the lines that are complete now."""
        self.received += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            whole.append(self._rest)
            self._rest = b""
        lines = [line[:MAX_LINE].decode("utf-8", "replace").rstrip("\r") for line in whole]
        room = MAX_KEPT - len(self.lines)
        self.lines += lines[: max(room, 0)]
        for line in lines:
            if _OOPS.search(line):
                self.alarms.append(line)
        return lines


class LiveGuest:
    """One emulated board that runs. ``ident``: its number in the platform."""

    def __init__(
        self, name: str, board: BoardSettings, software: Software, *, ident: int, memory: Memory
    ) -> None:
        self.name = name
        self.ident = ident
        self.board = board
        self.memory = memory
        self.console = Console()
        self.mailboxes: list[Mailbox] = load(memory.view, board, software)
        self.power = Power(self.mailboxes) if at_el3(board) else None
        """Who is on, if the emulator does not know."""
        code = stub.code(stub.EL2 if self.power is None else stub.EL3)
        self.emulator = Emulator(board, memory, code)
        self.ended: str | None = None
        """Why it is over; ``None`` while it runs."""
        self.served = 0
        """Calls that the mediator answered."""
        self.forwarded = 0
        """PSCI calls that the emulator answered."""
        self.rung_again = 0
        """Bells that were repeated because another vCPU had taken them."""
        self.interrupts = 0

    def ring(self) -> None:
        """Wake whoever sleeps in the bell. A full socket rings already."""
        try:
            self.emulator.bell.send(b"!")
        except BlockingIOError:
            return
        except OSError:
            return  # the emulator is going; its end is noticed by itself

    def raise_interrupt(self, intid: int) -> None:
        """Make a shared peripheral interrupt pending in the guest's distributor."""
        register = 0x0800_0000 + 0x200 + intid // 32 * 4  # GICD_ISPENDR<n> of the board's GIC
        try:
            self.emulator.interrupts.send(b"writel %#x %#x\n" % (register, 1 << intid % 32))
        except OSError:
            return
        self.interrupts += 1
