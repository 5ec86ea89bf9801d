# SPDX-License-Identifier: BSD-2-Clause
"""What is compared: an item is one piece of data, recorded and observed, and where each came from.

The places matter twice: a difference can be shown with its address, and the self-check changes one
bit at either place and asks the same comparison again.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

import attrs

from smccc import wire
from smccc.registers import MASK32
from specs.replay.records import Content, Event

WORD: Final = 8
FULL: Final = -1
"""Mask: every bit of the recorded value counts."""


class Space(Enum):
    """Where an observed value was found."""

    REGISTER = "register"
    BUS = "secure world's view"
    GUEST = "guest memory"
    NOWHERE = "computed"


class Field(Enum):
    """Which field of the record holds a recorded value."""

    REGS = "regs"
    MSG = "msg"
    RPC_ARG = "rpc_arg"
    PAGE_LIST = "page_list"
    BUFFERS = "bufs"
    NONE = "computed"


class Item(NamedTuple):
    """One compared piece of data.

    ``expected``: the recorded value as it must appear on this side (addresses translated, hidden
    bits removed). ``observed``: None if it could not be read. ``space``, ``address``: where the
    observed value is (register number, bus address, IPA). ``field``, ``position``: where the
    recorded one is (register number, byte offset, flat index of a list entry, or buffer number);
    ``mask``: the bits of it that count, as a little-endian number.
    """

    name: str
    expected: bytes
    observed: bytes | None
    space: Space = Space.NOWHERE
    address: int = 0
    field: Field = Field.NONE
    position: int = 0
    mask: int = FULL

    @property
    def equal(self) -> bool:
        """Whether recorded and observed agree."""
        return self.expected == self.observed


class Difference(NamedTuple):
    """A compared piece of data that differs, in words. ``line`` of the trace file, 1-based."""

    seq: int
    line: int
    event: str
    side: str
    field: str
    recorded: str
    observed: str

    def __str__(self) -> str:
        return (
            f"seq {self.seq} (line {self.line}), {self.event}, {self.side}: "
            f"{self.field}: recorded {self.recorded}, found {self.observed}"
        )


def register_item(
    number: int, expected: int, observed: int, mask: int = MASK32, *, recorded: bool = True
) -> Item:
    """The low 32 bits of a register."""
    return Item(
        f"a{number}",
        (expected & MASK32).to_bytes(4, "little"),
        (observed & MASK32).to_bytes(4, "little"),
        Space.REGISTER,
        number,
        Field.REGS if recorded else Field.NONE,
        number,
        mask,
    )


def _show(name: str, data: bytes | None) -> str:
    if data is None:
        return "nothing that can be read"
    if len(data) <= WORD:
        return f"{int.from_bytes(data, 'little'):#x}"
    return f"{len(data)} bytes {data[:32].hex()}{'...' if len(data) > 32 else ''}"


def _split(item: Item) -> list[tuple[str, bytes, bytes | None]]:
    """A message item field by field, a list entry by entry; only those that differ."""
    if item.observed is None or len(item.observed) != len(item.expected):
        return [(item.name, item.expected, item.observed)]
    pieces: list[tuple[str, int, int]] = []
    if item.field in (Field.MSG, Field.RPC_ARG) and item.space is not Space.NOWHERE:
        at, end = item.position, item.position + len(item.expected)
        while at < end:
            size = 4 if at < wire.HEADER_SIZE else WORD
            pieces.append((f"{item.field.value}.{wire.field_at(at)}", at - item.position, size))
            at += size
    elif item.field is Field.PAGE_LIST:
        pieces = [
            (f"{item.name}[{index}]", WORD * index, WORD)
            for index in range(len(item.expected) // WORD)
        ]
    else:
        return [(item.name, item.expected, item.observed)]
    found: list[tuple[str, bytes, bytes | None]] = []
    for name, at, size in pieces:
        expected, observed = item.expected[at : at + size], item.observed[at : at + size]
        if expected != observed:
            found.append((name, expected, observed))
    return found


MAX_SHOWN: Final = 8
"""Differences shown of one item; a list of 1 GiB could differ in every entry."""


def differences(event: Event, name: str, side: str, items: list[Item]) -> list[Difference]:
    """The differing items in words."""
    found: list[Difference] = []
    for item in items:
        if item.equal:
            continue
        pieces = _split(item)
        for field, expected, observed in pieces[:MAX_SHOWN]:
            found.append(
                Difference(
                    event.seq,
                    event.line,
                    name,
                    side,
                    field,
                    _show(field, expected),
                    _show(field, observed),
                )
            )
        if len(pieces) > MAX_SHOWN:
            more = f"{len(pieces) - MAX_SHOWN} more"
            found.append(Difference(event.seq, event.line, name, side, item.name, more, more))
    return found


@attrs.frozen
class Extent:
    """Bytes ``start`` to ``end`` of a message that are compared as they are."""

    start: int
    end: int


def extents(content: Content, holes: list[tuple[int, int]]) -> list[Extent]:
    """The parts of a recorded message outside ``holes`` (start, end), in order."""
    found: list[Extent] = []
    at = 0
    for start, end in sorted(holes):
        if start > at:
            found.append(Extent(at, start))
        at = max(at, end)
    if at < len(content.data):
        found.append(Extent(at, len(content.data)))
    return found


class Parameter(NamedTuple):
    """A parameter of a message: its number, attribute, and three words."""

    number: int
    attr: int
    a: int
    b: int
    c: int

    @property
    def kind(self) -> int:
        """``smccc.wire.KIND_*``."""
        return wire.PARAM_KIND[self.attr & 0xFF]

    @property
    def at(self) -> int:
        """Byte offset of the parameter in its message."""
        return wire.HEADER_SIZE + wire.PARAM_SIZE * self.number


def parameters(data: bytes) -> list[Parameter]:
    """The parameters that ``data`` holds completely, whatever ``num_params`` says."""
    count = (len(data) - wire.HEADER_SIZE) // wire.PARAM_SIZE
    count = min(count, int.from_bytes(data[28:32], "little"))
    if count <= 0:
        return []
    words = wire.MESSAGE[min(count, wire.MAX_PARAMS)].unpack_from(data)[wire.PARAMS :]
    return [
        Parameter(i, words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3])
        for i in range(len(words) // 4)
    ]


def temporary(data: bytes) -> list[Parameter]:
    """The parameters that name temporary memory by address (null references do not)."""
    return [p for p in parameters(data) if p.kind == wire.KIND_TMEM and p.a]
