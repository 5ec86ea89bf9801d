# SPDX-License-Identifier: BSD-2-Clause
"""The mailbox pages through which a live guest's vCPUs and this process speak.

One page of the guest's RAM for each vCPU, outside what the device tree calls memory. The stub (EL2)
writes registers and syndrome, then sets the state to REQUEST; this side writes the answer, then sets
the state to ANSWER or FORWARD; the stub takes it and sets RUNNING. Results first, state last.
"""

from __future__ import annotations

import struct
from typing import Final

RAM_BASE: Final = 0x4000_0000
"""Where RAM of the emulated board ("virt") starts."""
MAILBOX: Final = RAM_BASE + (1 << 20)
"""Behind the place where the emulator leaves its own device tree at reset (1 MiB at most)."""
KERNEL_RAM: Final = RAM_BASE + (2 << 20)
"""First address that the kernel may use; it wants to start at a multiple of 2 MiB."""
MAX_VCPUS: Final = 8
"""vCPUs of one guest: the GIC of the board has room for more, our two cores do not."""

RUNNING: Final = 0
"""The vCPU executes guest code."""
REQUEST: Final = 1
"""The vCPU waits: its registers are a call."""
ANSWER: Final = 2
"""x0..x3 are the answer."""
FORWARD: Final = 3
"""The stub shall execute the call itself, with x0..x7 as they are: the emulator's own PSCI."""
FAULT: Final = 4
"""The stub took an exception that it does not know; the vCPU has stopped."""

OFF: Final = 5
"""The vCPU shall switch itself off and wait for an entry (EL3)."""
UNDEFINED: Final = 6
"""The call is an undefined instruction: the vCPU takes that exception in the guest."""

_SYNDROME: Final = 8
_STATE: Final = 10
_ENTRY: Final = 11
_CONTEXT: Final = 12
_BELL: Final = 13

_CALL: Final = struct.Struct("<9Q")
"""x0..x7 and the syndrome."""

CLASS_HVC64: Final = 0x16
CLASS_SMC64: Final = 0x17
"""Exception classes (ESR_ELx.EC) of calls from AArch64 (Arm ARM, "ESR_EL2")."""


class Mailbox:
    """The page of one vCPU, as 64-bit words."""

    __slots__ = ("_page", "words")

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self.words = page.cast("Q")

    @property
    def state(self) -> int:
        """RUNNING, REQUEST, ANSWER, FORWARD or FAULT."""
        return self.words[_STATE]

    def prepare(self, entry: int, context: int, *, rings: bool) -> None:
        """Before the emulator starts: where the vCPU starts. ``rings``: it has a bell."""
        self.start_at(entry, context)
        self.words[_BELL] = 0 if rings else 1
        self.words[_STATE] = RUNNING

    def start_at(self, entry: int, context: int) -> None:
        """Where the vCPU starts in the guest, and x0 there. No effect on one that runs already."""
        self.words[_CONTEXT] = context
        self.words[_ENTRY] = entry  # last: a vCPU may be waiting for it

    def call(self) -> tuple[int, tuple[int, ...]]:
        """ESR_EL2 and x0..x7 of the waiting call."""
        found = _CALL.unpack_from(self._page)
        return found[_SYNDROME], found[:_SYNDROME]

    def switch_off(self) -> None:
        """Let the vCPU stop until :meth:`start_at`."""
        self.words[_ENTRY] = 0
        self.words[_STATE] = OFF

    def answer(self, regs: tuple[int, ...]) -> None:
        """Let the vCPU go on with these x0..x3."""
        words = self.words
        words[0], words[1], words[2], words[3] = regs[:4]
        words[_STATE] = ANSWER

    def undefined(self) -> None:
        """Let the vCPU take an exception at its call; x0..x7 stay as they are."""
        self.words[_STATE] = UNDEFINED

    def forward(self, *changes: tuple[int, int]) -> None:
        """Let the stub make the call, after ``(register, value)`` changes."""
        for register, value in changes:
            self.words[register] = value
        self.words[_STATE] = FORWARD
