# SPDX-License-Identifier: BSD-2-Clause
"""Which cases there are: the end of the app at every turn of every machine's session, and every other
fault in every state that occurs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Final

import attrs

from fuzz.containment.case import Case, Lines, recorded
from fuzz.containment.faults import FAULTS, Fault
from fuzz.containment.system import VARIANTS, Variant
from fuzz.containment.turns import Turn
from mediator.optee.syscalls import Syscall

DEATHS: Final = ("death after", "death before", "silence", "cut short")
"""What ends the app in the cases of every turn, in turn."""

EACH: Final = 1
"""Other faults of one kind in one stratum of turns at most, in all machines together."""

TWICE: Final = 40
"""Pairs of deaths in each machine: the second one while the first is being made up for, or soon after."""

THRICE: Final = 8
"""Runs of deaths in each machine that make the hypervisor give up."""


@attrs.frozen(kw_only=True)
class Recorded:
    """A session without faults on one machine."""

    variant: Variant
    turns: Sequence[Turn]
    lines: Lines = attrs.field(repr=False)


def record(variants: Iterable[Variant] = VARIANTS) -> dict[str, Recorded]:
    """Sessions by the name of their machine."""
    found: dict[str, Recorded] = {}
    for variant in variants:
        turns, lines = recorded(variant)
        found[variant.name] = Recorded(variant=variant, turns=turns, lines=lines)
    return found


def all_cases(sessions: Mapping[str, Recorded], seed: int) -> list[Case]:
    """Every case, in an order that ``seed`` draws: any number of the first ones is a fair sample."""
    cases = list(_deaths(sessions, seed))
    cases += _in_every_state(sessions, seed)
    for session in sessions.values():
        cases += _in_a_row(session, seed)
    Random(seed).shuffle(cases)
    return cases


def _deaths(sessions: Mapping[str, Recorded], seed: int) -> Iterable[Case]:
    for session in sessions.values():
        for turn in session.turns:
            name = DEATHS[turn.number % len(DEATHS)]
            yield Case(session.variant.name, ((turn.number, name),), seed + turn.number)


def _in_every_state(sessions: Mapping[str, Recorded], seed: int) -> Iterable[Case]:
    """A stratum: one kind of entry, system call, and what is suspended meanwhile."""
    strata: dict[tuple[object, ...], list[tuple[str, Turn]]] = {}
    for session in sessions.values():
        for turn in session.turns:
            key = (turn.entry, turn.call, turn.suspended, turn.open > 1)
            strata.setdefault(key, []).append((session.variant.name, turn))
    rng = Random(seed)
    for fault in FAULTS.values():
        for members in strata.values():
            possible = [member for member in members if _fits(fault, member[1])]
            for name, turn in rng.sample(possible, min(EACH, len(possible))):
                yield Case(name, ((turn.number, fault.name),), rng.getrandbits(32))


def _fits(fault: Fault, turn: Turn) -> bool:
    return not fault.wants or Syscall[turn.call] in fault.wants


def _in_a_row(session: Recorded, seed: int) -> Iterable[Case]:
    rng = Random(f"{seed} {session.variant.name}")
    name, last = session.variant.name, len(session.turns)
    for _ in range(TWICE):
        first = rng.randrange(last)
        second = first + rng.choice((1, 2, 3, 4, 5, 6, 8, 12, 20, 60, 150))
        yield Case(name, ((first, "death after"), (second, "death before")), rng.getrandbits(32))
    for _ in range(THRICE):
        first = rng.randrange(last)
        turns = range(first, first + rng.randrange(3, 40))
        yield Case(name, tuple([(turn, "panic") for turn in turns]), rng.getrandbits(32))
