# SPDX-License-Identifier: BSD-2-Clause
"""A hypervisor model that knows nothing of TEEs: pages, stage 2, references, traps.

`ToyHypervisor` implements the host protocol of optee-mediator; that is all it takes.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence

from mediator.host import PAGE_LIST_ENTRIES, PAGE_MASK, PAGE_SIZE, Shadow

Regs4 = tuple[int, int, int, int]


def words(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 8}Q", data)


class ToyHypervisor:
    def __init__(self) -> None:
        self.frames: dict[int, bytearray | memoryview] = {}  # by physical address
        self.stage2: dict[tuple[int, int], int] = {}  # (guest, page IPA) -> physical address
        self.pins: Counter[int] = Counter()
        self.lent: dict[int, Shadow] = {}
        self.quarantined: list[int] = []
        self.firmware: Callable[..., Regs4] = lambda *regs: (0xFFFFFFFF, 0, 0, 0)
        self._next = 0x8_0000_0000

    # What the hypervisor is for.

    def add_memory(self, guest: int, ipa: int, pages: int) -> None:
        for i in range(pages):
            self.stage2[guest, ipa + i * PAGE_SIZE] = self._new_frame(bytearray(PAGE_SIZE))

    def _new_frame(self, memory: bytearray | memoryview) -> int:
        self._next += 2 * PAGE_SIZE  # no two frames are neighbours, no IPA equals its PA
        self.frames[self._next] = memory
        return self._next

    def store(self, guest: int, ipa: int, data: bytes) -> None:
        """The guest writes its memory."""
        assert self.write_guest(guest, ipa & ~PAGE_MASK, [(ipa & PAGE_MASK, data)])

    def load(self, guest: int, ipa: int, size: int) -> bytes:
        """The guest reads its memory."""
        data = self.read_guest(guest, ipa, size)
        assert data is not None
        return data

    # What the mediator needs (mediator.host.Host).

    def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        pa = self.stage2.get((guest, ipa & ~PAGE_MASK))
        return None if pa is None else bytes(self.frames[pa][ipa & PAGE_MASK :][:length])

    def write_guest(self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]) -> bool:
        pa = self.stage2.get((guest, ipa))
        if pa is None:
            return False
        self.write_pinned(guest, pa, segments)
        return True

    def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        found, link = b"", ipa
        while entries > 0:
            page = self.read_guest(guest, link & ~PAGE_MASK, PAGE_SIZE)
            if page is None:
                return None
            found += page[: 8 * min(entries, PAGE_LIST_ENTRIES)]
            entries -= PAGE_LIST_ENTRIES
            link = words(page)[PAGE_LIST_ENTRIES]
        return found, link

    def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        found = [self.stage2.get((guest, ipa & ~PAGE_MASK), -1) for ipa in words(ipas)]
        if -1 in found:
            return None
        self.pins.update(found)
        return struct.pack(f"<{len(found)}Q", *found)

    def unpin_pages(self, guest: int, frames: bytes) -> None:
        self.pins.subtract(words(frames))
        assert min(self.pins.values(), default=0) >= 0

    def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        return bytes(self.frames[pa & ~PAGE_MASK][pa & PAGE_MASK :][:length])

    def write_pinned(self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]) -> None:
        for offset, data in segments:
            self.frames[pa][offset : offset + len(data)] = data

    def alloc_shadow(self, pages: int) -> Shadow | None:
        memory = memoryview(bytearray(pages * PAGE_SIZE))
        views = [memory[i * PAGE_SIZE : (i + 1) * PAGE_SIZE] for i in range(pages)]
        addresses = [self._new_frame(view) for view in views]
        shadow = Shadow(struct.pack(f"<{pages}Q", *addresses), memory)
        self.lent[shadow.pa] = shadow
        return shadow

    def free_shadow(self, shadow: Shadow) -> None:
        del self.lent[shadow.pa]
        for pa in words(shadow.pages):
            del self.frames[pa]

    def map_shadow(self, pages: bytes) -> Shadow:
        return self.lent[words(pages)[0]]

    def smc(self, *regs: int) -> Regs4:
        return self.firmware(*regs)

    def should_preempt(self) -> bool:
        return False

    def inject_virq(self, guest: int, intid: int) -> None:
        raise NotImplementedError

    def now(self) -> int:
        return 0

    def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        """This model has no time to let pass: the guest asks again at once."""

    def wake_vcpu(self, guest: int, vcpu: int) -> None:
        """Nobody rests."""

    def set_timer(self, deadline: int | None) -> None:
        raise NotImplementedError

    def quarantine(self, guest: int, answer: int) -> None:
        self.quarantined.append(guest)

    def log(self, guest: int, message: str) -> None:
        print(f"guest {guest}: {message}")
