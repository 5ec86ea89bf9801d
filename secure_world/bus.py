# SPDX-License-Identifier: BSD-2-Clause
"""The memory bus of the secure world: physical addresses, and who may touch what (invariant I2)."""

from __future__ import annotations

from typing import Protocol


class BusError(Exception):
    """An access by the secure world that the bus does not allow; ``address`` is physical."""

    def __init__(self, address: int, size: int, write: bool = False) -> None:
        super().__init__(f"{'write' if write else 'read'} of {size} bytes at {address:#x}")
        self.address = address
        self.size = size
        self.write = write


class Bus(Protocol):
    """What the secure world touches normal-world memory through.

    ``client`` is the partition's VM id (0 without virtualization); the implementation decides
    which pages that partition may touch. Accesses may cross page boundaries.
    """

    def read(self, client: int, pa: int, n: int) -> bytes:
        """``n`` bytes from physical address ``pa``; raises :class:`BusError`."""

    def write(self, client: int, pa: int, data: bytes) -> None:
        """Store ``data`` at physical address ``pa``; raises :class:`BusError`, then writes nothing."""

    def check(self, client: int, pa: int, n: int) -> bool:
        """Whether ``n`` bytes at ``pa`` are RAM that ``client`` may use. Asking is no breach."""

    def check_pages(self, client: int, pages: bytes) -> bool:
        """The same for whole 4 KiB pages, given as little-endian u64 page addresses."""
