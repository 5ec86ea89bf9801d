# SPDX-License-Identifier: BSD-2-Clause
"""Recording what a live guest and its TEE said to each other, in the format that ``replay`` reads.

Recorded is the guest's side of the mediator: its own addresses, and a TEE that knows no other guest.
So a recording needs neither the emulator nor the kernel to be played again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from mediator.live.bundle import Bundle
from mediator.live.mailbox import KERNEL_RAM, RAM_BASE
from specs.replay.recorder import Recorder
from specs.replay.writer import create_trace

if TYPE_CHECKING:
    from mediator.live.guest import LiveGuest
    from mediator.live.platform import LivePlatform


class Recording:
    """A trace file of one guest."""

    def __init__(self, path: Path, guest: LiveGuest, platform: LivePlatform, files: Bundle) -> None:
        world = platform.settings.secure_world
        size = guest.board.ram - (KERNEL_RAM - RAM_BASE)
        self._ram: memoryview | None = guest.memory.view
        self._end = RAM_BASE + guest.board.ram
        self._began = time.monotonic()
        self._writer = create_trace(
            path,
            {
                "scenario": "live guest",
                "kernel": files.release,
                "vcpus": guest.board.vcpus,
                "ram": [[f"{KERNEL_RAM:#x}", f"{size:#x}"]],
                "threads": world.threads,
                "optee_config": f"CFG_NUM_THREADS={world.threads}",
            },
        )
        self._recorder = Recorder(self._read, self._writer.write)

    def _read(self, ipa: int, length: int) -> bytes | None:
        ram = self._ram
        if ram is None or ipa < KERNEL_RAM or ipa + length > self._end:
            return None
        return ram[ipa - RAM_BASE : ipa - RAM_BASE + length].tobytes()

    def _now(self) -> float:
        return round((time.monotonic() - self._began) * 1e6, 1)

    def call(self, vcpu: int, regs: tuple[int, ...]) -> None:
        """A vCPU calls."""
        self._recorder.call(vcpu, regs, self._now())

    def answer(self, vcpu: int, regs: tuple[int, ...]) -> None:
        """It was answered."""
        self._recorder.answer(vcpu, regs, self._now())

    def close(self) -> None:
        """Finish the file."""
        if self._ram is not None:
            self._ram = None
            self._writer.__exit__(None, None, None)
