# SPDX-License-Identifier: BSD-2-Clause
"""What happens to a mediator while it works: races, stage-2 changes, failures, preemption."""

from __future__ import annotations

from typing import Final

import attrs
from attrs import frozen
from hypothesis import strategies as st

from fuzz.strategies.integers import edge_integers
from fuzz.strategies.maps import page_ranges
from fuzz.strategies.registers import frame_of
from fuzz.strategies.remember import remembered
from fuzz.view import GuestView, Shown, Writes, shown_writes
from smccc.constants import optee_smc as smc
from specs.target import GuestSpec, PageKind, Trap


@frozen
class Remap:
    """Stage 2 shows these pages as ``kind`` from now on."""

    ipa: int
    pages: int
    kind: PageKind


@frozen(repr=False)
class Disturbance(Shown):
    """What comes between two steps of a trap; nothing by default.

    ``race_after``: after so many copies from guest memory (1: the first) ``race_writes`` happen and
    ``race_remap`` is made. ``preempt``: answers to "stop here?", then no more. ``fail_allocation``:
    number of the allocation (0: the first) that fails. ``interrupts``: answers to the secure world's
    question whether a foreign interrupt is pending. ``meanwhile``: traps of another processor while
    the secure world works on the first entry; ``meanwhile_remap`` likewise.
    """

    race_after: int = 0
    race_writes: Writes = ()
    race_remap: Remap | None = None
    preempt: tuple[bool, ...] = ()
    fail_allocation: int | None = None
    interrupts: tuple[bool, ...] = ()
    meanwhile: tuple[Trap, ...] = ()
    meanwhile_remap: Remap | None = None

    def __repr__(self) -> str:
        """What differs from nothing."""
        told = [
            f"{field.name}={_shown(field.name, getattr(self, field.name))}"
            for field in attrs.fields(Disturbance)
            if getattr(self, field.name) != field.default
        ]
        return f"Disturbance({', '.join(told)})"


def _shown(name: str, value: Writes | object) -> str:
    if name == "race_writes" and isinstance(value, tuple):
        return shown_writes(value)
    return repr(value)


QUIET: Final = Disturbance()

KINDS: Final = (PageKind.RAM, PageKind.ABSENT, PageKind.READONLY, PageKind.FOREIGN, PageKind.MMIO)
"""Kinds that a page of the guest is turned into; back to RAM first, so that a shrunk run is quiet."""


@remembered
@st.composite
def remaps(draw: st.DrawFn, spec: GuestSpec) -> Remap:
    """Changes of the kind of a few of the guest's own pages (:data:`KINDS`)."""
    own = GuestSpec(
        spec.number, spec.bits, tuple([region for region in spec.regions if region.kind.owned])
    )
    ipa, pages = draw(page_ranges(own))
    return Remap(ipa, pages, draw(st.sampled_from(KINDS)))


@remembered
@st.composite
def racing_writes(draw: st.DrawFn, view: GuestView) -> Writes:
    """A few words stored into pages of the guest: headers, parameters and list entries change."""
    word = st.one_of(
        edge_integers(64), st.sampled_from(view.ram), st.just(0x20A), st.sampled_from((1, 4, 127))
    )
    writes = []
    for _ in range(draw(st.integers(1, 3))):
        page = draw(st.sampled_from((*view.carriers, *view.lists, *view.rpc)))
        offset = 4 * draw(st.sampled_from((0, 2, 5, 7, 8, 10, 12, 16, 48, 1022)))
        writes.append((page + offset, draw(word).to_bytes(8, "little")))
    return tuple(writes)


@remembered
@st.composite
def meanwhile_traps(draw: st.DrawFn, view: GuestView, cookies: tuple[int, ...]) -> tuple[Trap, ...]:
    """What another processor of the same guest does: resume, call again, drain the cache."""
    carrier = draw(st.sampled_from(view.carriers))
    cookie = draw(st.sampled_from(cookies))
    frames = st.sampled_from(
        (
            frame_of((smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, draw(st.integers(0, 2)), 0, 0)),
            frame_of((smc.OPTEE_SMC_CALL_WITH_ARG, carrier >> 32, carrier & 0xFFFF_FFFF)),
            frame_of((smc.OPTEE_SMC_CALL_WITH_RPC_ARG, carrier >> 32, carrier & 0xFFFF_FFFF)),
            frame_of((smc.OPTEE_SMC_CALL_WITH_REGD_ARG, cookie >> 32, cookie & 0xFFFF_FFFF, 0)),
            frame_of((smc.OPTEE_SMC_DISABLE_SHM_CACHE,)),
        )
    )
    found = draw(st.lists(frames, max_size=2))
    return tuple([Trap(view.guest, regs, vcpu=1) for regs in found])


@remembered
@st.composite
def disturbances(
    draw: st.DrawFn, spec: GuestSpec, *, cookies: tuple[int, ...] = (0x1000, 0x2000)
) -> Disturbance:
    """Nothing, or one or several things at once; shrinks to nothing."""
    view = GuestView.of(spec)
    what = draw(
        st.sampled_from(
            (
                "nothing",
                "nothing",
                "race",
                "preempt",
                "allocation",
                "interrupts",
                "meanwhile",
                "all",
            )
        )
    )
    if what == "nothing":
        return QUIET
    everything = what == "all"
    race = everything or what == "race"
    other = everything or what == "meanwhile"
    bits = st.lists(st.booleans(), min_size=1, max_size=4).map(tuple)
    return Disturbance(
        race_after=draw(st.integers(1, 3)) if race else 0,
        race_writes=draw(racing_writes(view)) if race else (),
        race_remap=draw(st.none() | remaps(spec)) if race else None,
        preempt=draw(bits) if everything or what == "preempt" else (),
        fail_allocation=draw(st.integers(0, 2)) if everything or what == "allocation" else None,
        interrupts=draw(bits) if everything or what == "interrupts" else (),
        meanwhile=draw(meanwhile_traps(view, cookies)) if other else (),
        meanwhile_remap=draw(st.none() | remaps(spec)) if other else None,
    )
