# SPDX-License-Identifier: BSD-2-Clause
"""Register frames: calls as the headers define them, and what an attacker puts there instead."""

from __future__ import annotations

from typing import Final

import attrs
from hypothesis import strategies as st

from fuzz.strategies.function_ids import function_ids, optee_function_ids
from fuzz.strategies.integers import asymmetric_pairs, edge_integers
from fuzz.strategies.remember import remembered
from smccc.calls import CALLS
from smccc.calls.slots import Call, Native, Pair, Signed, Slot, Whole
from smccc.registers import MASK32, MASK64, REGISTERS, RegisterFrame
from specs.target import Registers, Trap

_TYPES: Final = tuple(dict.fromkeys(CALLS.values()))
_TEE_TYPES: Final = tuple([call for call in _TYPES if call.FUNCTION >> 24 & 0x3F >= 50])

MARKS: Final = tuple([0xA0A0_0000 + index for index in range(REGISTERS)])
"""Register values that differ from each other, so that a lost or swapped one shows."""


def frame_of(values: tuple[int, ...]) -> Registers:
    """Up to eight values as a frame; those left out get their :data:`MARKS`."""
    full = (*values, *MARKS[len(values) :])
    a0, a1, a2, a3, a4, a5, a6, a7 = full
    return (a0, a1, a2, a3, a4, a5, a6, a7)


def _field(slot: Slot) -> st.SearchStrategy[int]:
    match slot:
        case Pair():
            return edge_integers(64) | asymmetric_pairs()
        case Whole():
            return edge_integers(64)
        case Signed():
            return st.integers(-(1 << 31), (1 << 31) - 1)
        case Native():
            return edge_integers(32)
        case _:
            return edge_integers(32)


@remembered
def calls(kinds: tuple[type[Call], ...] = _TYPES) -> st.SearchStrategy[Call]:
    """Typed calls (:mod:`smccc.calls`) with their fields at the edges.

    ``kinds``: which, by default every call that a header of SMCCC, PSCI or OP-TEE defines.
    """
    return st.sampled_from(kinds).flatmap(_fields)


@remembered
def _fields(kind: type[Call]) -> st.SearchStrategy[Call]:
    by_name = {slot.field: _field(slot) for slot in kind.SLOTS}
    names = [field.name for field in attrs.fields(kind) if field.name in by_name]
    return st.builds(kind, **{name: by_name[name] for name in names})


@remembered
def any_frames() -> st.SearchStrategy[Registers]:
    """Eight registers without any sense, at the edges."""
    return st.tuples(*[edge_integers(64)] * REGISTERS).map(frame_of)


@remembered
def call_frames(kinds: tuple[type[Call], ...] = _TYPES) -> st.SearchStrategy[Registers]:
    """Correct frames of typed calls; registers that the call does not use have :data:`MARKS`."""
    over = RegisterFrame(MARKS)
    return calls(kinds).map(lambda call: frame_of(call.registers(over).x))


@remembered
@st.composite
def rubbish_above(draw: st.DrawFn, frames: st.SearchStrategy[Registers]) -> Registers:
    """The same frames with rubbish in bits 63:32 of every register (bug class 8)."""
    frame = draw(frames)
    rubbish = draw(st.lists(st.integers(1, MASK32), min_size=REGISTERS, max_size=REGISTERS))
    return frame_of(
        tuple([high << 32 | value & MASK32 for high, value in zip(rubbish, frame, strict=True)])
    )


def swapped_pairs(frames: st.SearchStrategy[Registers]) -> st.SearchStrategy[Registers]:
    """The same frames with a1:a2 and a4:a5 in the wrong order (bug class 9)."""
    return frames.map(lambda x: (x[0], x[2], x[1], x[3], x[5], x[4], x[6], x[7]))


@remembered
@st.composite
def misaligned(draw: st.DrawFn, frames: st.SearchStrategy[Registers]) -> Registers:
    """The same frames with low bits set in a2, where addresses end."""
    frame = draw(frames)
    low = draw(st.sampled_from((1, 4, 8, 0x800, 0xFF8, 0xFFF)))
    return frame_of((frame[0], frame[1], frame[2] | low, *frame[3:]))


@remembered
def hostile_frames() -> st.SearchStrategy[Registers]:
    """Frames that no driver sends: rubbish, swaps, low bits, unknown functions, anything at all."""
    good = call_frames(_TEE_TYPES)
    odd = st.tuples(function_ids(), *[edge_integers(64)] * (REGISTERS - 1)).map(frame_of)
    half = st.tuples(optee_function_ids(), *[edge_integers(32)] * (REGISTERS - 1)).map(frame_of)
    return st.one_of(
        rubbish_above(good), swapped_pairs(good), misaligned(good), half, odd, any_frames()
    )


@remembered
def register_frames() -> st.SearchStrategy[Registers]:
    """Correct and hostile frames."""
    return call_frames() | hostile_frames()


def is_rubbish(frame: Registers) -> bool:
    """Whether any register has something above its low word."""
    return any(value >> 32 for value in frame) and all(value <= MASK64 for value in frame)


@remembered
def traps(
    guest: int, frames: st.SearchStrategy[Registers] | None = None, vcpus: int = 2
) -> st.SearchStrategy[Trap]:
    """SMC and HVC of ``guest`` with any immediate, mostly 0, from a 64-bit or a 32-bit state."""
    return st.builds(
        Trap,
        guest=st.just(guest),
        regs=register_frames() if frames is None else frames,
        hvc=st.booleans(),
        aarch32=st.booleans(),
        immediate=st.one_of(st.just(0), st.just(0), st.sampled_from((1, 0xEA1, 0xFFFF))),
        vcpu=st.integers(0, vcpus - 1),
    )
