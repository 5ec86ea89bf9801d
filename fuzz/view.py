# SPDX-License-Identifier: BSD-2-Clause
"""A guest's memory as an attacker sees it: which pages there are, of which kind, for what use."""

from __future__ import annotations

from typing import Final, Protocol

from attrs import field, frozen

from specs.target import PAGE_SIZE, GuestSpec, PageKind, Region

Writes = tuple[tuple[int, bytes], ...]
"""What a guest stores before a call: (IPA, bytes), in order. Pages may be crossed."""


class _Printer(Protocol):
    def text(self, text: str) -> None: ...


class Shown:
    """Makes Hypothesis show a value by its ``repr`` and not field by field."""

    __slots__ = ()

    def _repr_pretty_(self, printer: _Printer, cycle: bool) -> None:
        printer.text(repr(self))


SHOWN: Final = 96
"""Bytes of a store that its description shows."""


def shown_bytes(data: bytes) -> str:
    """Bytes for a reader: hexadecimal, trailing zeroes counted, long ones cut."""
    used = data.rstrip(b"\0")
    text = used[:SHOWN].hex()
    if len(used) > SHOWN:
        text += f"... ({len(used) - SHOWN} more)"
    return text if len(used) == len(data) else f"{text} + {len(data) - len(used)} zero"


def shown_writes(writes: Writes) -> str:
    """Stores for a reader."""
    return "{" + ", ".join([f"{ipa:#x}: {shown_bytes(data)}" for ipa, data in writes]) + "}"


def shown_registers(registers: tuple[int, ...]) -> str:
    """Registers for a reader."""
    return "(" + ", ".join([f"{value:#x}" for value in registers]) + ")"


MIN_RAM: Final = 16
"""Read-write pages that a view needs, so that each use below has at least two."""


@frozen(cache_hash=True)
class GuestView:
    """The pages of one guest by kind, as IPAs in ascending order.

    Uses of the read-write pages that do not overlap, so that a *valid* call can be built without
    looking at memory: ``carriers`` (an eighth) hold messages, ``lists`` (a quarter) page lists,
    ``rpc`` (an eighth) RPC arguments, ``data`` (the other half) is shared with the secure world.
    """

    guest: int
    pages: tuple[tuple[PageKind, tuple[int, ...]], ...] = field(repr=False)

    @classmethod
    def of(cls, guest: GuestSpec) -> GuestView:
        """The view of a guest. ``ValueError`` if it has less than 16 read-write pages."""
        found: dict[PageKind, list[int]] = {kind: [] for kind in PageKind}
        for region in guest.regions:
            found[region.kind] += [region.ipa + index * PAGE_SIZE for index in range(region.pages)]
        if len(found[PageKind.RAM]) < MIN_RAM:
            raise ValueError(f"guest {guest.number} has less than {MIN_RAM} read-write pages")
        return cls(
            guest.number, tuple([(kind, tuple(sorted(ipas))) for kind, ipas in found.items()])
        )

    @classmethod
    def simple(cls, guest: int = 1, ipa: int = 0x4000_0000, pages: int = 64) -> GuestView:
        """A guest with nothing but adjacent read-write pages from ``ipa`` on."""
        return cls.of(GuestSpec(guest, regions=(Region(ipa, pages, PageKind.RAM, pa=0),)))

    def of_kind(self, kind: PageKind) -> tuple[int, ...]:
        """The pages of one kind."""
        return dict(self.pages).get(kind, ())

    @property
    def ram(self) -> tuple[int, ...]:
        """Read-write pages."""
        return self.of_kind(PageKind.RAM)

    @property
    def others(self) -> tuple[int, ...]:
        """Pages of all other kinds: read-only, foreign, granted, devices."""
        return tuple([ipa for kind, ipas in self.pages if kind is not PageKind.RAM for ipa in ipas])

    @property
    def carriers(self) -> tuple[int, ...]:
        """Pages for messages."""
        return self.ram[: len(self.ram) // 8]

    @property
    def rpc(self) -> tuple[int, ...]:
        """Pages for RPC arguments."""
        eighth = len(self.ram) // 8
        return self.ram[eighth : 2 * eighth]

    @property
    def lists(self) -> tuple[int, ...]:
        """Pages for page lists."""
        quarter = len(self.ram) // 8 * 2
        return self.ram[quarter : 2 * quarter]

    @property
    def data(self) -> tuple[int, ...]:
        """Pages to share."""
        return self.ram[len(self.ram) // 8 * 4 :]

    @property
    def hole(self) -> int:
        """The IPA of a page where nothing is mapped."""
        mapped = {ipa for _, ipas in self.pages for ipa in ipas}
        ipa = self.ram[-1] + PAGE_SIZE
        while ipa in mapped:
            ipa += PAGE_SIZE
        return ipa
