# SPDX-License-Identifier: BSD-2-Clause
"""Watching a rig: what the mediator reads, what the TEE sees, and striking in between."""

from __future__ import annotations

from collections.abc import Callable

from mediator.host import PAGE_LIST_ENTRIES, PAGE_MASK, PAGE_SIZE
from tests.mediator.rig import Answer, Rig

Journey = Callable[[Rig], None]
Read = tuple[int, int]
"""Guest's or physical address of the first byte, and how many were read."""

READS = ("read_guest", "read_pinned", "read_page_list")


class Reads:
    """Every read of guest memory that the mediator makes in one trap, and a hook after each.

    Pages are named by where they really are, so that a page read by IPA and by physical address
    is the same page.
    """

    def __init__(self, rig: Rig) -> None:
        self.traps: list[list[Read]] = []
        self.total = 0
        self.after: Callable[[int, list[Read]], None] | None = None
        """Called with the number of the read (from 1) and its pieces."""
        host = rig.host
        for name in READS:
            self._wrap(rig, name, getattr(host, name))
        call = rig.call

        def traced(*regs: int, guest: int = 0) -> tuple[int, ...]:
            self.traps.append([])
            return call(*regs, guest=guest)

        rig.call = traced  # type: ignore[method-assign]

    def _wrap(self, rig: Rig, name: str, method: Callable[[int, int, int], object]) -> None:
        def read(guest: int, where: int, size: int) -> object:
            result = method(guest, where, size)
            if result is not None:
                pieces = self._pieces(rig, name, guest, where, size)
                self.traps[-1] += pieces
                self.total += 1
                if self.after is not None:
                    self.after(self.total, pieces)
            return result

        setattr(rig.host, name, read)

    @staticmethod
    def _pieces(rig: Rig, name: str, guest: int, where: int, size: int) -> list[Read]:
        if name == "read_pinned":
            return [(where, size)]
        if name == "read_guest":
            return [(rig.host.pa(guest, where), size)]
        pieces = []
        while size:
            page = rig.host.pa(guest, where & ~PAGE_MASK)
            entries = min(size, PAGE_LIST_ENTRIES)
            size -= entries
            pieces.append((page, PAGE_SIZE if size else entries * 8))
            link = bytes(rig.host.page(page)[PAGE_LIST_ENTRIES * 8 :])
            where = int.from_bytes(link, "little")
        return pieces

    def twice(self) -> list[Read]:
        """Bytes that were read twice in one trap: the later reads that touch them."""
        found = []
        for trap in self.traps:
            for index, (start, size) in enumerate(trap):
                if any(start < low + n and low < start + size for low, n in trap[:index]):
                    found.append((start, size))
        return found


def scramble(rig: Rig, pieces: list[Read]) -> None:
    """Change every byte that was just read."""
    for start, size in pieces:
        page = rig.host.page(start & ~PAGE_MASK)
        at = start & PAGE_MASK
        page[at : at + size] = bytes(byte ^ 0xFF for byte in page[at : at + size])


def tee_sees(rig: Rig) -> list[tuple[object, ...]]:
    """From now on: the registers of each entry of the TEE, and all of the mediator's memory then."""
    seen: list[tuple[object, ...]] = []
    smc = rig.host.smc

    def watched(*regs: int) -> Answer:
        pages = {pa: bytes(shadow.mem) for pa, shadow in rig.host.shadows.items()}
        seen.append((regs, pages, dict(rig.host.pins)))
        return smc(*regs)

    rig.host.smc = watched  # type: ignore[method-assign, assignment]
    return seen


class Cut(Exception):
    """The guest is destroyed here."""


def until_trap(rig: Rig, journey: Journey, count: int) -> bool:
    """Run a journey up to, and without, its trap number ``count`` (0: the first). False: it ended."""
    call, left = rig.call, count

    def counted(*regs: int, guest: int = 0) -> tuple[int, ...]:
        nonlocal left
        if not left:
            raise Cut
        left -= 1
        return call(*regs, guest=guest)

    rig.call = counted  # type: ignore[method-assign]
    try:
        journey(rig)
    except Cut:
        return True
    finally:
        rig.call = call  # type: ignore[method-assign]
    return False
