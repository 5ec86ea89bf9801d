# SPDX-License-Identifier: BSD-2-Clause
"""Does the comparison notice? Bits are flipped and mediator errors planted, and all must be reported.

The trace is replayed twice. The first run counts the places where something can be planted; seeded
draws choose among them; in the second run, at each chosen place, the data is changed, the very
same comparison is asked again, and the change is undone. So one error cannot hide another, and N
errors cost one run.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import attrs

from mediator.deployment.choice import Deployment
from mediator.optee.settings import MediatorSettings
from specs.replay.chain import Step
from specs.replay.compare import FULL, Field, Item, Space
from specs.replay.faults import FAULTS, Alteration
from specs.replay.judge import Sight
from specs.replay.mediated import ANSWERED, FORWARDED, MediatorReplay, replay_with
from specs.replay.player import Answer
from specs.replay.reader import Trace
from specs.replay.records import BufferContent, Call, Content, ListPage, Return
from specs.replay.simulated import SecureReplay

Progress = Callable[[int], None]
BIT: Final = "single-bit change"
PAGE: Final = 4096


@attrs.frozen
class Planted:
    """One planted error. ``noticed``: the comparison reported it."""

    kind: str
    seq: int
    side: str
    where: str
    noticed: bool


@attrs.frozen
class SelfCheck:
    """What was planted into one trace. ``kinds``: kind to (planted, reported)."""

    path: str
    seed: int
    planted: tuple[Planted, ...]

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """Kind of error to how many were planted and how many reported."""
        found: dict[str, tuple[int, int]] = {}
        for plant in self.planted:
            total, noticed = found.get(plant.kind, (0, 0))
            found[plant.kind] = total + 1, noticed + plant.noticed
        return found

    @property
    def missed(self) -> tuple[Planted, ...]:
        """Errors that nobody reported."""
        return tuple([plant for plant in self.planted if not plant.noticed])

    @property
    def ok(self) -> bool:
        """Whether every planted error was reported."""
        return not self.missed


def _judge(replay: MediatorReplay, step: Step, side: str, regs: tuple[int, ...]) -> Sight:
    if side == FORWARDED:
        return replay.judge.forwarded(step, regs)
    return replay.judge.answered(step, regs)


# --- places for bits ---------------------------------------------------------------------------


def _bits(item: Item, recorded: bool) -> int:
    """How many bits of an item can be changed on the recorded or on the observed side."""
    if recorded:
        if item.field is Field.NONE:
            return 0
        if item.mask != FULL:
            return 64 if item.field is Field.BUFFERS else item.mask.bit_count()
        return 8 * len(item.expected)
    if item.space is Space.NOWHERE or item.observed is None:
        return 0
    size = len(item.observed)
    if item.space is Space.GUEST:
        size = min(size, PAGE - item.address % PAGE)  # the next page lies elsewhere
    return 8 * size


def _nth_bit(mask: int, number: int) -> int:
    """Position of the ``number``-th set bit."""
    position = 0
    while True:
        if mask >> position & 1:
            if not number:
                return position
            number -= 1
        position += 1


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _flip_content(content: Content | None, item: Item, bit: int) -> Content | None:
    assert content is not None
    return attrs.evolve(content, data=_flip(content.data, 8 * item.position + bit))


def _flip_list(
    pages: tuple[ListPage, ...] | None, item: Item, bit: int
) -> tuple[ListPage, ...] | None:
    assert pages is not None
    index = item.position + bit // 64
    changed: list[ListPage] = []
    for page in pages:
        if 0 <= index < len(page.entries):
            entries = list(page.entries)
            entries[index] ^= 1 << bit % 64
            page = attrs.evolve(page, entries=tuple(entries))
        index -= len(page.entries)
        changed.append(page)
    return tuple(changed)


def _flip_buffers(
    buffers: tuple[BufferContent, ...], item: Item, bit: int
) -> tuple[BufferContent, ...]:
    changed = list(buffers)
    buffer = changed[item.position]
    if item.mask == FULL:
        changed[item.position] = attrs.evolve(buffer, data=_flip(buffer.data, bit))
    else:
        changed[item.position] = attrs.evolve(buffer, pa=buffer.pa ^ 1 << bit)
    return tuple(changed)


def _flip_record(record: Call | Return, item: Item, bit: int) -> Call | Return:
    """The record with one bit of one field changed."""
    if item.field is Field.REGS:
        regs = list(record.regs)
        regs[item.position] ^= 1 << bit
        return attrs.evolve(record, regs=tuple(regs))
    if item.field is Field.MSG:
        return attrs.evolve(record, msg=_flip_content(record.msg, item, bit))
    if item.field is Field.RPC_ARG:
        return attrs.evolve(record, rpc_arg=_flip_content(record.rpc_arg, item, bit))
    if item.field is Field.PAGE_LIST:
        return attrs.evolve(record, page_list=_flip_list(record.page_list, item, bit))
    assert item.field is Field.BUFFERS
    return attrs.evolve(record, buffers=_flip_buffers(record.buffers, item, bit))


def _flip_step(step: Step, side: str, item: Item, bit: int) -> Step:
    if side == FORWARDED:
        changed = _flip_record(step.call, item, bit)
        assert isinstance(changed, Call)
        return attrs.evolve(step, call=changed)
    assert step.answer is not None
    answer = _flip_record(step.answer, item, bit)
    assert isinstance(answer, Return)
    return attrs.evolve(step, answer=answer)


def _plant_bit(
    replay: MediatorReplay,
    step: Step,
    side: str,
    regs: tuple[int, ...],
    random: Random,
) -> Planted | None:
    """Change one bit of the compared data, of the record or of what was found."""
    sight = _judge(replay, step, side, regs)

    def noticed_in(other: Sight) -> bool:
        # A changed record may also call for another rule, which the report would show.
        return not other.equal or other.rules != sight.rules

    recorded = bool(random.getrandbits(1))
    sizes = [_bits(item, recorded) for item in sight.items]
    if not any(sizes):
        recorded = not recorded
        sizes = [_bits(item, recorded) for item in sight.items]
        if not any(sizes):
            return None
    item = random.choices(sight.items, sizes)[0]
    bit = random.randrange(_bits(item, recorded))
    if recorded:
        if item.mask not in (FULL, 0):
            bit = _nth_bit(item.mask, bit)
        noticed = noticed_in(_judge(replay, _flip_step(step, side, item, bit), side, regs))
        return Planted(BIT, step.call.seq, side, f"recorded {item.name} bit {bit}", noticed)
    if item.space is Space.REGISTER:
        changed = list(regs)
        changed[item.address] ^= 1 << bit
        noticed = not _judge(replay, step, side, tuple(changed)).equal
    else:
        address: int | None = item.address + bit // 8
        assert address is not None
        if item.space is Space.GUEST:
            address = replay.machine.to_pa(step.client, address)
            assert address is not None
        noticed = _with_writes(
            replay,
            [(address, _flip(replay.machine.peek(address, 1), bit % 8))],
            lambda: not _judge(replay, step, side, regs).equal,
        )
    return Planted(BIT, step.call.seq, side, f"found {item.name} bit {bit}", noticed)


def _with_writes(
    replay: MediatorReplay, writes: list[tuple[int, bytes]], question: Callable[[], bool]
) -> bool:
    """Ask with these bytes in physical memory, then put back what was there."""
    before = [(address, replay.machine.peek(address, len(data))) for address, data in writes]
    for address, data in writes:
        replay.machine.poke(address, data)
    try:
        return question()
    finally:
        for address, data in before:
            replay.machine.poke(address, data)


def _plant_fault(
    replay: MediatorReplay,
    step: Step,
    side: str,
    kind: str,
    alteration: Alteration,
) -> Planted:
    noticed = _with_writes(
        replay,
        list(alteration.writes),
        lambda: not _judge(replay, step, side, alteration.regs).equal,
    )
    return Planted(kind, step.call.seq, side, alteration.story, noticed)


# --- choosing and planting ------------------------------------------------------------------------


@attrs.define
class _Count:
    """First run: at which comparisons something can be planted."""

    points: dict[str, list[int]] = attrs.Factory(lambda: {FORWARDED: [], ANSWERED: []})
    faults: dict[str, list[int]] = attrs.Factory(lambda: {fault.id: [] for fault in FAULTS})
    number: int = 0

    def __call__(
        self, replay: MediatorReplay, step: Step, side: str, regs: tuple[int, ...]
    ) -> None:
        self.points[side].append(self.number)
        for fault in FAULTS:
            if fault.alter(replay, step, side, regs):
                self.faults[fault.id].append(self.number)
        self.number += 1


@attrs.define
class _Planting:
    """Second run: plants what was chosen."""

    bits: dict[int, int]
    faults: dict[int, dict[str, int]]
    random: Random
    planted: list[Planted] = attrs.Factory(list)
    number: int = 0

    def __call__(
        self, replay: MediatorReplay, step: Step, side: str, regs: tuple[int, ...]
    ) -> None:
        for _ in range(self.bits.get(self.number, 0)):
            plant = _plant_bit(replay, step, side, regs, self.random)
            if plant is not None:
                self.planted.append(plant)
        for fault in FAULTS:
            for _ in range(self.faults.get(self.number, {}).get(fault.id, 0)):
                ways = fault.alter(replay, step, side, regs)
                way = self.random.choice(ways)
                self.planted.append(_plant_fault(replay, step, side, fault.id, way))
        self.number += 1


def self_check(
    trace: Trace,
    number: int,
    seed: int,
    settings: MediatorSettings | None = None,
    progress: Progress | None = None,
    *,
    as_mediator: bool = True,
    deployment: Deployment | None = None,
) -> SelfCheck:
    """Plant ``number`` single-bit changes and, as mediator, ``number`` mediator errors into a trace.

    The kinds of error take turns, as do the two sides; a kind that cannot happen in this trace (no
    page list, say) leaves its turn to the others. The same seed plants the same errors,
    wherever the mediator lives (``deployment``).
    """
    if not as_mediator:
        return _secure_check(trace, number, seed, progress)
    count = _Count()
    replay_with(trace, settings, count, progress, deployment)
    random = Random(seed)
    bits: dict[int, int] = {}
    sides = [points for points in count.points.values() if points]
    for turn in range(number if sides else 0):
        point = random.choice(sides[turn % len(sides)])
        bits[point] = bits.get(point, 0) + 1
    faults: dict[int, dict[str, int]] = {}
    kinds = [(kind, points) for kind, points in count.faults.items() if points]
    for turn in range(number if kinds else 0):
        kind, points = kinds[turn % len(kinds)]
        chosen = faults.setdefault(random.choice(points), {})
        chosen[kind] = chosen.get(kind, 0) + 1
    planting = _Planting(bits, faults, random)
    replay_with(trace, settings, planting, progress, deployment)
    return SelfCheck(trace.path, seed, tuple(planting.planted))


# --- as secure world ------------------------------------------------------------------------------


def _plant_answer_bit(
    replay: SecureReplay, step: Step, found: Answer, random: Random
) -> Planted | None:
    """Change one bit of an answer, in the record or in what our secure world did."""
    items = replay.items(step, found)
    recorded = bool(random.getrandbits(1))
    sizes = [_bits(item, recorded) for item in items]
    if not any(sizes):
        return None
    item = random.choices(items, sizes)[0]
    bit = random.randrange(_bits(item, recorded))
    if recorded:
        if item.mask not in (FULL, 0):
            bit = _nth_bit(item.mask, bit)
        changed = _flip_step(step, ANSWERED, item, bit)
        noticed = not all(i.equal for i in replay.items(changed, found))
        return Planted(BIT, step.call.seq, ANSWERED, f"recorded {item.name} bit {bit}", noticed)
    if item.space is Space.REGISTER:
        regs = list(found)
        regs[item.address] ^= 1 << bit
        a0, a1, a2, a3 = regs
        noticed = not all(i.equal for i in replay.items(step, (a0, a1, a2, a3)))
    else:
        address = item.address + bit // 8
        before = replay.memory.read(0, address, 1)
        replay.memory.write(0, address, _flip(before, bit % 8))
        noticed = not all(i.equal for i in replay.items(step, found))
        replay.memory.write(0, address, before)
    return Planted(BIT, step.call.seq, ANSWERED, f"found {item.name} bit {bit}", noticed)


def _secure_check(trace: Trace, number: int, seed: int, progress: Progress | None) -> SelfCheck:
    seen = 0

    def count(replay: SecureReplay, step: Step, found: Answer) -> None:
        nonlocal seen
        seen += 1

    SecureReplay(trace, progress, count).run()
    random = Random(seed)
    chosen: dict[int, int] = {}
    for _ in range(number if seen else 0):
        point = random.randrange(seen)
        chosen[point] = chosen.get(point, 0) + 1
    planted: list[Planted] = []
    at = 0

    def plant(replay: SecureReplay, step: Step, found: Answer) -> None:
        nonlocal at
        for _ in range(chosen.get(at, 0)):
            one = _plant_answer_bit(replay, step, found, random)
            if one is not None:
                planted.append(one)
        at += 1

    SecureReplay(trace, progress, plant).run()
    return SelfCheck(trace.path, seed, tuple(planted))
