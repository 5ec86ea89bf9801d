# SPDX-License-Identifier: BSD-2-Clause
"""Two streams of operations side by side: what is the same, what differs, and why.

A session has three parts. Before and after the programs that run at the same time, operations are
aligned in order and compared line by line. In between the order is the scheduler's, so the two sides
are compared as collections, without session numbers and message slots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Final

import attrs

from mediator.live.comparison.reasons import (
    is_rng_read,
    reason_for_figure,
    reason_for_lines,
    reason_for_missing,
)
from mediator.live.comparison.stream import Operation, Stream
from smccc.constants import optee_msg as msg

ORDERED: Final = "in order"
CROWD: Final = "at the same time"
FIGURES: Final = "figures"

_SESSION: Final = re.compile(r"\bsession \d+")
_KERNEL_SESSION: Final = 1
"""Of the random number generator, which is open from the probe to the unload."""
_DETAILS: Final = ("contents of", "request", "ended", "ALLOC", "FREE", "a1 to a7")


class ComparisonError(ValueError):
    """A recording does not hold the built-in workload; the message says what is missing."""


@attrs.frozen
class Difference:
    """``part`` of the session, ``seq`` in the recording (-1: only simulated), what, both sides."""

    part: str
    seq: int
    what: str
    real: str
    simulated: str
    reason: str = ""


@attrs.frozen
class Comparison:
    """The outcome. ``real`` and ``simulated``: operations; ``paired``, ``equal``: of those."""

    name: str
    real: int
    simulated: int
    paired: int
    equal: int
    lines: int
    differences: tuple[Difference, ...]

    @property
    def findings(self) -> tuple[Difference, ...]:
        """Differences that nothing explains."""
        return tuple([d for d in self.differences if not d.reason])

    @property
    def explained(self) -> dict[str, int]:
        """Number of differences by reason."""
        return dict(sorted(Counter(d.reason for d in self.differences if d.reason).items()))


def _parts(operations: Sequence[Operation]) -> tuple[int, int]:
    """Where the programs that run at the same time begin and end."""
    close = msg.OPTEE_MSG_CMD_CLOSE_SESSION
    cancelled = [n for n, o in enumerate(operations) if o.command == msg.OPTEE_MSG_CMD_CANCEL]
    if not cancelled:
        raise ComparisonError("no call is cancelled: not the whole built-in workload")
    begin = cancelled[-1]
    while operations[begin].command != close:
        begin += 1
        if begin == len(operations):
            raise ComparisonError("the cancelled call's session is not closed")
    for end in range(begin + 1, len(operations)):
        found = operations[end]
        if found.command == close and found.session == _KERNEL_SESSION:
            return begin + 1, end
    raise ComparisonError("the driver is not unloaded")


def _key(operation: Operation) -> tuple[str, ...]:
    """What two operations must have in common to be a pair: call, message, parameters."""
    for number, line in enumerate(operation.lines):
        if number and line.startswith(_DETAILS):
            return operation.lines[:number]
    return operation.lines


def _loose(operation: Operation) -> tuple[str, ...]:
    """Without what follows from the order: session numbers, message slots, threads not yet used."""
    return tuple(
        [
            _SESSION.sub("session ?", line)
            for number, line in enumerate(operation.lines)
            if number != 1 and not line.startswith("ALLOC ")
        ]
    )


class _Comparer:
    def __init__(self) -> None:
        self.differences: list[Difference] = []
        self.paired = 0
        self.equal = 0
        self.lines = 0

    def ordered(self, real: Sequence[Operation], simulated: Sequence[Operation]) -> None:
        """Align and compare."""
        matcher = SequenceMatcher(None, [*map(_key, real)], [*map(_key, simulated)], autojunk=False)
        for tag, i, j, k, end in matcher.get_opcodes():
            if tag == "equal":
                for a, b in zip(real[i:j], simulated[k:end], strict=True):
                    self._pair(a, b)
                continue
            rest = list(simulated[k:end])
            for a in real[i:j]:
                partner = next((b for b in rest if b.head == a.head), None)
                if partner is None or reason_for_missing(a):
                    self._missing(a, a.seq, ORDERED, real=True)
                else:
                    rest.remove(partner)
                    self._pair(a, partner)
            for b in rest:
                self._missing(b, -1, ORDERED, real=False)

    def _missing(self, operation: Operation, seq: int, part: str, *, real: bool) -> None:
        text = "; ".join(operation.lines[1:5])
        self.differences.append(
            Difference(
                part,
                seq,
                operation.head,
                text if real else "no such call",
                "no such call" if real else text,
                reason_for_missing(operation),
            )
        )

    def _pair(self, a: Operation, b: Operation) -> None:
        self.paired += 1
        self.lines += len(a.lines)
        self.equal += a.lines == b.lines
        for number in range(max(len(a.lines), len(b.lines))):
            real = a.lines[number] if number < len(a.lines) else "nothing"
            simulated = b.lines[number] if number < len(b.lines) else "nothing"
            if real != simulated:
                reason = reason_for_lines(a, real, simulated)
                self.differences.append(Difference(ORDERED, a.seq, a.head, real, simulated, reason))

    def crowd(self, real: Sequence[Operation], simulated: Sequence[Operation]) -> None:
        """Compare as collections."""
        ours = Counter([_loose(b) for b in simulated if not is_rng_read(b)])
        for a in real:
            if is_rng_read(a):
                self._missing(a, a.seq, CROWD, real=True)
                continue
            loose = _loose(a)
            if ours[loose]:
                ours[loose] -= 1
                self.paired += 1
                self.equal += 1
                self.lines += len(loose)
            else:
                self._missing(a, a.seq, CROWD, real=True)
        for loose in ours.elements():
            self.differences.append(
                Difference(CROWD, -1, loose[0], "no such call", "; ".join(loose[1:5]))
            )

    def figure(self, name: str, real: int, simulated: int) -> None:
        """Compare a number."""
        if real != simulated:
            reason = reason_for_figure(name)
            self.differences.append(
                Difference(FIGURES, -1, name, str(real), str(simulated), reason)
            )


def compare(name: str, real: Stream, simulated: Stream) -> Comparison:
    """Compare two recorded workloads. :class:`ComparisonError` if one is something else."""
    a, b = real.operations, simulated.operations
    (begin_a, end_a), (begin_b, end_b) = _parts(a), _parts(b)
    comparer = _Comparer()
    comparer.ordered(a[:begin_a], b[:begin_b])
    comparer.crowd(a[begin_a:end_a], b[begin_b:end_b])
    comparer.ordered(a[end_a:], b[end_b:])
    comparer.figure("interrupts", sum(o.interrupts for o in a), sum(o.interrupts for o in b))
    comparer.figure("waits", sum(o.waits for o in a), sum(o.waits for o in b))
    comparer.figure("limits", sum(o.limits for o in a), sum(o.limits for o in b))
    comparer.figure("allocated RPC arguments", real.facts.allocated, simulated.facts.allocated)
    comparer.figure("registrations", real.facts.registrations, simulated.facts.registrations)
    comparer.figure("reused cookies", real.facts.reused, simulated.facts.reused)
    comparer.figure("places of cookies", real.stride(), simulated.stride())
    comparer.figure("unknown cookies", len(real.facts.unknown), len(simulated.facts.unknown))
    return Comparison(
        name, len(a), len(b), comparer.paired, comparer.equal, comparer.lines,
        tuple(comparer.differences),
    )  # fmt: skip
