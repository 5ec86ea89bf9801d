# SPDX-License-Identifier: BSD-2-Clause
"""Memory of a replay as secure world: the recorded machine's RAM at its recorded addresses.

There is no hypervisor and no translation, so any normal-world RAM is open to the secure world, as it
was in the recording; everything else (secure memory, devices, nothing at all) is refused.
"""

from __future__ import annotations

import struct
from typing import Final

from secure_world.bus import BusError
from specs.replay.survey import Survey

PAGE: Final = 4096
_MASK: Final = PAGE - 1


class RecordedMemory:
    """Sparse RAM; implements :class:`secure_world.bus.Bus`."""

    def __init__(self, facts: Survey) -> None:
        self._ranges = facts.ram
        self._pages: dict[int, bytearray] = {}

    def load(self, pa: int, length: int) -> bytes | None:
        """Bytes at an address, None if part of it is not RAM."""
        if not self.check(0, pa, length):
            return None
        return b"".join(
            [
                bytes(self._pages[page][at : at + part]) if page in self._pages else bytes(part)
                for page, at, part in _pieces(pa, length)
            ]
        )

    def store(self, pa: int, data: bytes) -> bool:
        """Write bytes; False, and nothing written, if part of it is not RAM."""
        if not self.check(0, pa, len(data)):
            return False
        done = 0
        for page, at, part in _pieces(pa, len(data)):
            frame = self._pages.setdefault(page, bytearray(PAGE))
            frame[at : at + part] = data[done : done + part]
            done += part
        return True

    @property
    def ram(self) -> tuple[int, int]:
        """First address and bytes of the first RAM range."""
        return self._ranges[0]

    # --- the bus --------------------------------------------------------------------------------

    def read(self, client: int, pa: int, n: int) -> bytes:
        """``n`` bytes; raises :class:`BusError` outside RAM."""
        data = self.load(pa, n)
        if data is None:
            raise BusError(pa, n)
        return data

    def write(self, client: int, pa: int, data: bytes) -> None:
        """Store bytes; raises :class:`BusError` outside RAM."""
        if not self.store(pa, data):
            raise BusError(pa, len(data), write=True)

    def check(self, client: int, pa: int, n: int) -> bool:
        """Whether all of it is RAM."""
        end = pa + max(n, 1)
        return any(base <= pa and end <= base + size for base, size in self._ranges)

    def check_pages(self, client: int, pages: bytes) -> bool:
        """The same for whole pages."""
        return all(self.check(client, page, PAGE) for (page,) in struct.iter_unpack("<Q", pages))


class FlatMemory:
    """Recorded memory as :class:`specs.replay.normal_world.GuestMemory`: nobody translates."""

    def __init__(self, memory: RecordedMemory) -> None:
        self._memory = memory

    @property
    def ram(self) -> tuple[int, int]:
        """First address and bytes of the first RAM range."""
        return self._memory.ram

    def load(self, client: int, ipa: int, length: int, /) -> bytes | None:
        """Bytes, None if part of them is not RAM."""
        return self._memory.load(ipa, length)

    def store(self, client: int, ipa: int, data: bytes, /) -> bool:
        """Write; False, and nothing written, if part of it is not RAM."""
        return self._memory.store(ipa, data)


def _pieces(pa: int, length: int) -> list[tuple[int, int, int]]:
    """(page, offset in it, bytes) of a range."""
    found: list[tuple[int, int, int]] = []
    while length > 0:
        part = min(length, PAGE - (pa & _MASK))
        found.append((pa & ~_MASK, pa & _MASK, part))
        pa += part
        length -= part
    return found
