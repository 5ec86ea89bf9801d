# SPDX-License-Identifier: BSD-2-Clause
"""A simulated IOMMU: which page a device of a guest reaches under which address.

The hypervisor says which streams belong to a guest; an app maps pages of that guest for them. Whoever
models a device asks :meth:`Iommu.translate`.
"""

from __future__ import annotations

import struct
from typing import Final

READ: Final = 1
WRITE: Final = 2

MAX_MAPPINGS: Final = 1 << 16
"""Of one machine: 256 MiB that devices reach through apps."""


class Iommu:
    """Streams, their guests, and their mappings."""

    __slots__ = ("_guests", "_mappings")

    def __init__(self) -> None:
        self._guests: dict[int, int] = {}
        self._mappings: dict[tuple[int, int], tuple[int, int, int]] = {}

    @property
    def mappings(self) -> int:
        """Pages that devices reach."""
        return len(self._mappings)

    def assign(self, stream: int, guest: int | None) -> None:
        """Give the device behind ``stream`` to a guest (``None``: to nobody); its mappings go."""
        for key in [key for key in self._mappings if key[0] == stream]:
            del self._mappings[key]
        if guest is None:
            self._guests.pop(stream, None)
        else:
            self._guests[stream] = guest

    def owned(self, guest: int, stream: int) -> bool:
        """Whether the device is the guest's."""
        return self._guests.get(stream) == guest

    def map(self, guest: int, stream: int, iova: int, pa: int, access: int) -> bool:
        """Let the device reach the page at ``pa`` under ``iova``. False: there are too many."""
        key = (stream, iova)
        if key not in self._mappings and len(self._mappings) >= MAX_MAPPINGS:
            return False
        self._mappings[key] = (guest, pa, access)
        return True

    def unmap(self, stream: int, iova: int) -> None:
        """The device does not reach that page any more; nothing happens if it did not."""
        self._mappings.pop((stream, iova), None)

    def forget(self, guest: int) -> None:
        """No device reaches a page of the guest any more."""
        for key in [key for key, mapping in self._mappings.items() if mapping[0] == guest]:
            del self._mappings[key]

    def end(self, guest: int) -> None:
        """The guest is no more: its devices are nobody's, whoever gets its id."""
        self.forget(guest)
        self._guests = {stream: owner for stream, owner in self._guests.items() if owner != guest}

    def maps_any(self, guest: int, frames: bytes) -> bool:
        """Whether a device reaches one of these pages (u64 words) of the guest."""
        if not self._mappings:
            return False
        mapped = {pa for owner, pa, _ in self._mappings.values() if owner == guest}
        return any(pa in mapped for (pa,) in struct.iter_unpack("<Q", frames))

    def translate(self, stream: int, iova: int, access: int) -> int | None:
        """The physical address behind ``iova`` for ``access``, ``None``: a fault."""
        mapping = self._mappings.get((stream, iova & ~0xFFF))
        if mapping is None or access & ~mapping[2]:
            return None
        return mapping[1] | iova & 0xFFF
