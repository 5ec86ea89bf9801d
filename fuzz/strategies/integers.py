# SPDX-License-Identifier: BSD-2-Clause
"""Integers at the edges: the values of bug class 20, register words, offsets and sizes of buffers."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from fuzz.strategies.remember import remembered
from smccc.page_list import ENTRIES, PAGE_SIZE
from smccc.registers import MASK32, MASK64

EDGES: Final = (
    0,
    1,
    PAGE_SIZE - 1,
    PAGE_SIZE,
    (1 << 32) - 1,
    1 << 32,
    1 << 44,
    1 << 48,
    1 << 52,
    1 << 63,
    MASK64,
)
"""Where addresses, lengths and counts go wrong: page size, word size, address sizes, sign, the end."""

LIST_EDGES: Final = (1, ENTRIES - 1, ENTRIES, ENTRIES + 1, 2 * ENTRIES, 2 * ENTRIES + 1)
"""Entries of a page list around its roll-overs: 1, 510, 511, 512, 1022, 1023."""

OFFSETS: Final = (0, 1, 8, 0x800, PAGE_SIZE - 8, PAGE_SIZE - 1)
"""Offsets in a page worth trying."""


def _around(bits: int) -> tuple[int, ...]:
    """The edges and their neighbours that fit ``bits``, in ascending order."""
    mask = (1 << bits) - 1
    near = {edge + delta & mask for edge in (*EDGES, mask) for delta in (-1, 0, 1)}
    return tuple(sorted(near))


@remembered
def edge_integers(bits: int = 64) -> st.SearchStrategy[int]:
    """Unsigned integers of ``bits`` bits (at least 12): two in three at an edge or next to one.

    Shrinks towards 0. The edges: :data:`EDGES`.
    """
    if bits < 12:
        raise ValueError(f"{bits} bits are too few to have these edges")
    near = _around(bits)
    return st.one_of(
        st.sampled_from(near),
        st.sampled_from(near),
        st.integers(0, (1 << bits) - 1),
    )


@remembered
def asymmetric_pairs() -> st.SearchStrategy[int]:
    """64-bit values whose high and low words differ, so that a swap shows (bug class 9)."""
    return (
        st.tuples(edge_integers(32), edge_integers(32))
        .filter(lambda words: words[0] != words[1])
        .map(lambda words: words[0] << 32 | words[1])
    )


def with_rubbish(value: int) -> st.SearchStrategy[int]:
    """``value`` in the low word of a register and anything above it (bug class 8)."""
    return st.one_of(
        st.just(0),
        st.just(MASK32),
        st.integers(1, MASK32),
    ).map(lambda high: high << 32 | value & MASK32)


@remembered
def page_offsets() -> st.SearchStrategy[int]:
    """Offsets in a page, 0..4095, often at its ends."""
    return st.one_of(st.just(0), st.sampled_from(OFFSETS), st.integers(0, PAGE_SIZE - 1))


@remembered
def page_counts(most: int = LIST_EDGES[-1]) -> st.SearchStrategy[int]:
    """Pages of a buffer, 1..``most``: mostly a few, now and then at a roll-over of the list."""
    edges = [edge for edge in LIST_EDGES if edge <= most]
    few = st.integers(1, min(8, most))
    return st.one_of(few, few, few, st.sampled_from(edges))


@remembered
def buffer_sizes() -> st.SearchStrategy[int]:
    """Sizes that a message may claim, in bytes: page multiples and their neighbours, or any edge."""
    pages = st.sampled_from((0, 1, 2, *LIST_EDGES))
    near = st.tuples(pages, st.sampled_from((0, 1, -1))).map(
        lambda drawn: max(drawn[0] * PAGE_SIZE + drawn[1], 0)
    )
    return st.one_of(near, near, edge_integers(64))
