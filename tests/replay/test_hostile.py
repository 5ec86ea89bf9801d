# SPDX-License-Identifier: BSD-2-Clause
"""Traces that are well-formed and make no sense: a result or a ``TraceError``, and nothing else."""

from __future__ import annotations

import io
import json
from random import Random

import attrs
import pytest

from secure_world.settings import SecureWorldSettings
from specs.replay.mediated import replay_as_mediator
from specs.replay.reader import Trace, TraceReader, build_trace
from specs.replay.records import Call, Marker, Meta, Record, Return, SecureInterrupt, TraceError
from specs.replay.simulated import replay_as_secure_world
from specs.replay.writer import trace_line
from tests.replay.bare_metal import ECHO, BareMetal
from tests.replay.golden import PARAMS, SESSION, trace
from tests.replay.test_edges import CLASSIC, create, destroy, start, virtual
from tests.replay.test_interleaving import recording

WORDS = (
    *(0, 1, 2, 4, 7, 60, 61, 127, 128, 0x1000, 0x4000_0000, 0x7FFF_F000),
    *(0x3200_0003, 0x3200_0004, 0x3200_0012, 0x3200_0013, 0xB200_000D, 0xB200_000E),
    *(0xFFFF_0000, 0xFFFF_0002, 0xFFFF_0004, 0xFFFF_0005, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF),
)
"""Values that mean something somewhere."""


def spoilt(data: bytes, random: Random) -> bytes:
    octets = bytearray(data)
    if not octets:
        return data
    if random.random() < 0.4:
        octets[random.randrange(len(octets))] ^= 1 << random.randrange(8)
    else:
        at = random.randrange(0, len(octets), 8)
        octets[at : at + 8] = random.choice(WORDS).to_bytes(8, "little")[: len(octets) - at]
    return bytes(octets)


def mutated(event: Call | Return, random: Random) -> Call | Return:
    kind = random.randrange(6)
    if kind == 0 and event.msg is not None:
        return attrs.evolve(event, msg=attrs.evolve(event.msg, data=spoilt(event.msg.data, random)))
    if kind == 1 and event.msg is not None:
        return attrs.evolve(event, msg=attrs.evolve(event.msg, pa=random.choice(WORDS)))
    if kind == 2 and event.rpc_arg is not None:
        argument = attrs.evolve(event.rpc_arg, data=spoilt(event.rpc_arg.data, random))
        return attrs.evolve(event, rpc_arg=argument)
    if kind == 3 and event.page_list and event.page_list[0].entries:
        first, *rest = event.page_list
        entries = list(first.entries)
        entries[random.randrange(len(entries))] = random.choice(WORDS)
        first = attrs.evolve(first, entries=tuple(entries), next=random.choice(WORDS))
        return attrs.evolve(event, page_list=(first, *rest))
    if kind == 4 and event.buffers:
        first_buffer, *others = event.buffers
        moved = attrs.evolve(first_buffer, pa=random.choice(WORDS), param=random.randrange(9))
        return attrs.evolve(event, buffers=(moved, *others))
    regs = list(event.regs)
    at = random.randrange(8)
    regs[at] = random.choice((regs[at] ^ 1 << random.randrange(64), *random.sample(WORDS, 2)))
    return attrs.evolve(event, regs=tuple(regs))


def through_a_file(meta: Meta, records: list[Record]) -> Trace:
    """As the reader accepts it, which checks more than our types do."""
    head = {"format": "optee-smc-trace", "version": 1, "meta": meta.values}
    rows = [json.dumps(head)]
    for record in records:
        assert isinstance(record, (Call, Return, Marker, SecureInterrupt))
        rows.append(trace_line(record))
    data = "".join([row + "\n" for row in rows]).encode()
    with TraceReader(io.BytesIO(data), "hostile") as reader:
        return build_trace("hostile", iter(reader), reader.unknown)


def sources() -> list[Trace]:
    guests = virtual()
    create(guests, 1, 2)
    session = guests.open(ECHO, client=1)[1]
    start(guests, session, client=1)
    destroy(guests, 1)
    classic = BareMetal(CLASSIC)
    classic.open(ECHO, function=0x3200_0004)
    return [
        trace(SESSION),
        trace(SESSION),
        trace(PARAMS),
        guests.trace(),
        classic.trace(),
        recording("virtualization", 1),
    ]


SOURCES = sources()


@pytest.mark.parametrize("seed", range(60))
def test_nonsense_ends_in_a_result_or_in_the_one_error(seed: int) -> None:
    random = Random(seed)
    source = SOURCES[seed % len(SOURCES)]
    records: list[Record] = list(source.records)
    for _ in range(random.choice((1, 3, 10, 40))):
        at = random.randrange(len(records))
        event = records[at]
        if isinstance(event, (Call, Return)):
            records[at] = mutated(event, random)
    try:
        nonsense = through_a_file(source.meta, records)
        through = replay_as_mediator(nonsense)
        answered = replay_as_secure_world(nonsense)
    except TraceError:
        return
    assert through.events == sum(c.events for c in through.classes) == len(nonsense.events)
    assert not through.pinned
    assert not [d for d in through.differences if d.field == "exception"]
    assert answered.answers == sum(c.answers for c in answered.classes) == len(nonsense.answers)


def test_sizes_are_checked_before_they_are_used() -> None:
    """A TA image of many exabytes, a million threads."""
    program = BareMetal(SecureWorldSettings(virtualization=False, reserved_shm=None))
    program.open(ECHO)
    records: list[Record] = []
    for record in program.records:
        if isinstance(record, Call) and "LOAD_TA" in record.name:
            assert record.rpc_arg is not None
            data = record.rpc_arg.data
            data = data[:80] + ((1 << 63) - 1).to_bytes(8, "little") + data[88:]
            record = attrs.evolve(record, rpc_arg=attrs.evolve(record.rpc_arg, data=data))
        records.append(record)
    assert records != program.records
    assert replay_as_secure_world(through_a_file(program.meta, records)).answers
