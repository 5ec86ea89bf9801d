# SPDX-License-Identifier: BSD-2-Clause
"""A recorded session as a guest of a scenario: from a trace to what the guest program needs."""

from __future__ import annotations

import struct
from pathlib import Path

import attrs

from mediator.guest.cpu import Registers
from mediator.guest.replayed import Bytes, RecordedCall, RecordedSession
from smccc.page_list import LINK_OFFSET
from smccc.registers import low32
from specs.replay import names
from specs.replay.chain import Enter, Leave, Step, follow
from specs.replay.reader import Trace, load_trace
from specs.replay.records import Call, Marker, TraceError
from specs.replay.survey import HYPERVISOR, Survey, survey

PAGE_SHIFT = 12


def load_session(path: Path, first: str = "", last: str = "") -> RecordedSession:
    """The stretch of a trace file between two markers (from its start, to its end if empty).

    Raises :class:`~specs.replay.records.TraceError`.
    """
    return recorded_session(load_trace(path), first, last)


def recorded_session(trace: Trace, first: str = "", last: str = "") -> RecordedSession:
    """The stretch of a trace between two markers. Raises ``TraceError`` if one does not exist."""
    facts = survey(trace)
    inside = not first
    ended = False
    calls: list[RecordedCall] = []
    numbers: dict[int, int] = {}
    """``seq`` of a call to its number among ``calls``."""
    over = 0
    returned: set[int] = set()
    for happening in follow(trace, facts):
        if isinstance(happening, Marker):
            if not inside and not ended and happening.text == first:
                inside = True
            elif inside and last and happening.text == last:
                inside, ended = False, True
        elif isinstance(happening, Enter) and inside:
            step = happening.step
            if not _of_hypervisor(step, facts):
                numbers[step.call.seq] = len(calls)
                calls.append(attrs.evolve(_call(step), ended=over))
        elif isinstance(happening, Leave) and happening.step.call.seq in numbers:
            returned.add(numbers[happening.step.call.seq])
            while over in returned:
                over += 1
    for marker, found in ((first, inside or ended), (last, ended)):
        if marker and not found:
            raise TraceError(trace.path, 0, "", f"has no marker {marker!r} in that place")
    ram = tuple([(base, size >> PAGE_SHIFT) for base, size in facts.ram])
    return RecordedSession(trace.meta.text("normal_world"), ram, tuple(calls))


def _of_hypervisor(step: Step, facts: Survey) -> bool:
    return facts.virtualization and step.client == HYPERVISOR


def _call(step: Step) -> RecordedCall:
    call, answer = step.call, step.answer
    request: tuple[int, int] | None = None
    if step.request is not None:
        command = names.command(step.request.rpc_arg)
        request = low32(step.request.regs[0]), -1 if command is None else command
    final = answer if answer is not None and not names.is_rpc(answer.regs[0]) else None
    return RecordedCall(
        cpu=call.cpu,
        regs=_registers(call),
        stores=tuple(_stores(call)),
        flight=-1 if step.flight is None else step.flight.number,
        message=None if call.msg is None else (call.msg.pa, call.msg.data),
        argument=None if call.rpc_arg is None else (call.rpc_arg.pa, call.rpc_arg.data),
        request=request,
        answer=None if answer is None else answer.regs[:4],
        final_message=None
        if final is None or final.msg is None
        else (final.msg.pa, final.msg.data),
        final_buffers=()
        if final is None
        else tuple([(buffer.pa, buffer.data) for buffer in final.buffers]),
    )


def _registers(call: Call) -> Registers:
    a0, a1, a2, a3, a4, a5, a6, _ = call.regs
    # a7 is the hypervisor's to fill in.
    return a0, a1, a2, a3, a4, a5, a6, 0


def _stores(call: Call) -> list[Bytes]:
    """Page lists and buffers; messages are stored with translated session ids."""
    found: list[Bytes] = []
    for page in call.page_list or ():
        found.append((page.pa, struct.pack(f"<{len(page.entries)}Q", *page.entries)))
        found.append((page.pa + LINK_OFFSET, struct.pack("<Q", page.next)))
    found += [(buffer.pa, buffer.data) for buffer in call.buffers]
    return found
