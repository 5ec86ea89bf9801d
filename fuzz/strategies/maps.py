# SPDX-License-Identifier: BSD-2-Clause
"""Memory maps of guests with every kind of page, small enough to look at after each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

from fuzz.strategies.remember import remembered
from fuzz.view import MIN_RAM
from specs.target import PAGE_SIZE, GuestSpec, PageKind, Region

FIRST_PA: Final = 0x1_4321_0000
"""Physical memory of the drawn guests starts here: above every IPA that is drawn, so that no IPA equals
a PA and no value that a strategy writes by accident is a physical address of the machine."""

RAM_BASES: Final = (0x4000_0000, 0x8000_0000, 0x20_0000_0000)
"""Where RAM regions start in IPA space; the last one needs the high word of a pair."""

OTHER_BASE: Final = 0xC000_0000
"""Where pages that are no ordinary RAM start."""

_OWN_OTHERS: Final = (PageKind.READONLY,)
_SHARED: Final = (PageKind.FOREIGN, PageKind.FOREIGN_RO, PageKind.GRANT, PageKind.GRANT_RO)
_GAP: Final = 4 * PAGE_SIZE


class _Frames:
    """Hands out physical addresses upwards."""

    def __init__(self) -> None:
        self.next = FIRST_PA

    def take(self, pages: int, step: int) -> int:
        pa = self.next
        self.next += pages * step + _GAP
        return pa


def _ram(draw: st.DrawFn, frames: _Frames, least: int, most: int) -> list[Region]:
    """One to three regions; at least one of a size that every use fits into."""
    regions: list[Region] = []
    left = draw(st.integers(least, most))
    for base in RAM_BASES:
        last = base == RAM_BASES[-1] or left < 2
        # Drawn as what is left over, so that it shrinks to a single region.
        pages = left if last else left - draw(st.integers(0, left // 2))
        if pages:
            step = PAGE_SIZE * draw(st.sampled_from((1, 3, 2)))
            regions.append(Region(base, pages, PageKind.RAM, frames.take(pages, step), step))
            left -= pages
    return regions


def _others(draw: st.DrawFn, frames: _Frames, kinds: Sequence[PageKind]) -> list[Region]:
    """Zero to two pages of each of ``kinds``, on memory that no guest of the map owns."""
    regions = []
    ipa = OTHER_BASE
    for kind in kinds:
        pages = draw(st.integers(0, 2))
        if pages:
            pa = None if kind is PageKind.MMIO else frames.take(pages, PAGE_SIZE)
            regions.append(Region(ipa, pages, kind, pa))
        ipa += 4 * PAGE_SIZE
    return regions


def _peeks(draw: st.DrawFn, victim: Sequence[Region], ipa: int) -> list[Region]:
    """Perhaps a page of another guest's RAM, mapped as foreign or granted."""
    kind = draw(st.sampled_from((None, *_SHARED)))
    if kind is None:
        return []
    region = victim[0]
    index = draw(st.integers(0, region.pages - 1))
    assert region.pa is not None
    return [Region(ipa, 1, kind, region.pa + index * region.pa_step)]


@remembered
@st.composite
def memory_maps(
    draw: st.DrawFn,
    guests: Sequence[int] = (1, 2),
    *,
    least: int = MIN_RAM,
    most: int = 48,
    low_page: bool = True,
) -> tuple[GuestSpec, ...]:
    """Maps of ``guests``: ``least`` to ``most`` read-write pages each, and up to two of every other kind.

    No IPA equals a physical address of the machine, regions may be scattered (``pa_step``), and a
    guest may see a page of the one before it as foreign or granted. ``low_page``: the guest may
    have RAM at IPA 0 (bug class 11). Shrinks towards one adjacent region per guest.
    """
    if least < MIN_RAM or most < least:
        raise ValueError(f"{least} to {most} pages: at least {MIN_RAM}, and in order")
    frames = _Frames()
    specs: list[GuestSpec] = []
    before: Sequence[Region] = ()
    for number in guests:
        ram = _ram(draw, frames, least, most)
        others = _others(draw, frames, (*_OWN_OTHERS, *_SHARED, PageKind.MMIO))
        peeks = _peeks(draw, before, OTHER_BASE + 0x10_0000) if before else []
        low = []
        if low_page and draw(st.booleans()):
            low = [Region(0, 1, PageKind.RAM, frames.take(1, PAGE_SIZE))]
        specs.append(GuestSpec(number, regions=(*low, *ram, *others, *peeks)))
        before = ram
    return tuple(specs)


@remembered
@st.composite
def page_ranges(draw: st.DrawFn, spec: GuestSpec, most: int = 4) -> tuple[int, int]:
    """(IPA, pages) of a few adjacent pages inside one region: what stage 2 is changed for."""
    region = draw(st.sampled_from(spec.regions))
    first = draw(st.integers(0, region.pages - 1))
    pages = draw(st.integers(1, min(most, region.pages - first)))
    return region.ipa + first * PAGE_SIZE, pages
