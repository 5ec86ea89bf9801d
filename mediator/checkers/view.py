# SPDX-License-Identifier: BSD-2-Clause
"""What a checker may look at beside the events: memory and references, without any effect."""

from __future__ import annotations

import struct
from typing import Protocol

import numpy as np

from mediator.host import PAGE_SHIFT
from mediator.hypervisor.frames import FIRST_GUEST, MEDIATOR, OWNER_SHIFT, PIN_MASK, POOL, SECURE
from mediator.hypervisor.guests import GuestMemory
from mediator.hypervisor.memory import PhysicalMemory

SMALL_LIST = 64
"""Frames up to which a plain loop beats a gather."""


class MachineView(Protocol):
    """The machine as a checker sees it; any host can provide one."""

    def read(self, pa: int, length: int) -> bytes | None:
        """Physical memory without any check of rights; ``None`` where there is none."""

    def is_hidden(self, pa: int) -> bool:
        """Whether ``pa`` is a page that no guest may know of: the mediator's or the TEE's."""

    def is_mediators(self, pa: int) -> bool:
        """Whether the mediator owns the page at ``pa`` and has it in use."""

    def shared(self, guest: int, frames: bytes) -> bool:
        """Whether every frame (u64 words, low 12 bits ignored) is pinned RAM of ``guest``."""

    def pinned(self, guest: int) -> int:
        """References that the mediator holds on pages of ``guest``."""


class ReferenceView:
    """The view of the reference host."""

    __slots__ = ("_guests", "_memory")

    def __init__(self, memory: PhysicalMemory, guests: GuestMemory) -> None:
        self._memory = memory
        self._guests = guests

    def read(self, pa: int, length: int) -> bytes | None:
        """See :meth:`MachineView.read`; likewise below."""
        return self._memory.read(pa, length) if self._memory.is_ram(pa, length) else None

    def is_hidden(self, pa: int) -> bool:
        return self._memory.owner(pa >> PAGE_SHIFT) in (MEDIATOR, SECURE, POOL)

    def is_mediators(self, pa: int) -> bool:
        return self._memory.owner(pa >> PAGE_SHIFT) == MEDIATOR

    def shared(self, guest: int, frames: bytes) -> bool:
        memory = self._memory
        count = len(frames) // 8
        owner = FIRST_GUEST + guest
        if count <= SMALL_LIST:
            return all(
                memory.owner(pa >> PAGE_SHIFT) == owner and memory.pins(pa >> PAGE_SHIFT)
                for pa in struct.unpack(f"<{count}Q", frames)
            )
        pfns = (np.frombuffer(frames, "<u8") >> np.uint64(PAGE_SHIFT)).astype(np.int64)
        if pfns.min() < memory.first or pfns.max() >= memory.end:
            return False
        memory.fill_for(pfns)
        words = memory.array[pfns]
        return bool(((words >> OWNER_SHIFT) == owner).all() and (words & PIN_MASK).all())

    def pinned(self, guest: int) -> int:
        return self._guests.pinned(guest)
