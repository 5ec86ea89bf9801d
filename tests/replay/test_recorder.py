# SPDX-License-Identifier: BSD-2-Clause
"""Our recorder against the real tracer, and what it does at the edges."""

from __future__ import annotations

import struct
from pathlib import Path

import attrs
import pytest

from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.page_list import LINK_OFFSET
from smccc.registers import split
from specs.replay.recorded_memory import RecordedMemory
from specs.replay.recorder import Recorder
from specs.replay.records import Call, Marker, Record, Return, SecureInterrupt
from specs.replay.survey import survey
from tests.replay.bare_metal import EMPTY, LIST, PAGE, RAM, RESERVED, BareMetal, message
from tests.replay.golden import ALL, trace


def remember(memory: RecordedMemory, event: Call | Return) -> None:
    """Make memory what the real tracer saw."""
    for content in (event.msg, event.rpc_arg):
        if content is not None:
            memory.store(content.pa, content.data)
    for page in event.page_list or ():
        memory.store(page.pa, struct.pack(f"<{len(page.entries)}Q", *page.entries))
        memory.store(page.pa + LINK_OFFSET, struct.pack("<Q", page.next))
    for buffer in event.buffers:
        memory.store(buffer.pa, buffer.data)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_the_recorder_records_what_the_real_tracer_recorded(path: Path) -> None:
    recorded = trace(path)
    memory = RecordedMemory(survey(recorded))
    ours: list[Record] = []
    recorder = Recorder(memory.load, ours.append)
    for event in recorded.records:
        if isinstance(event, Marker):
            recorder.marker(event.text)
        elif isinstance(event, SecureInterrupt):
            recorder.interrupt(event.cpu, event.entered, event.t_us)
        else:
            remember(memory, event)
            if isinstance(event, Call):
                recorder.call(event.cpu, event.regs, event.t_us)
            else:
                recorder.answer(event.cpu, event.regs, event.t_us)
    for made, real in zip(ours, recorded.records, strict=True):
        if isinstance(made, Return) and isinstance(real, Return):
            # a4 to a7 of an answer are the caller's own, which only the caller knows.
            made = attrs.evolve(made, regs=real.regs[:4] + made.regs[4:])
            real = attrs.evolve(real, regs=made.regs)
        assert attrs.evolve(made, line=0) == attrs.evolve(real, line=0)


def last(program: BareMetal) -> Call:
    call = [r for r in program.records if isinstance(r, Call)][-1]
    assert isinstance(call, Call)
    return call


def test_long_messages_are_recorded_as_headers() -> None:
    program = BareMetal()
    for count, size in ((64, 32 + 64 * 32), (65, 32), (0xFFFF_FFFF, 32)):
        program.call(message(msg.OPTEE_MSG_CMD_CANCEL, count=count))
        content = last(program).msg
        assert content is not None
        assert len(content.data) == size


def test_pointers_into_nothing_have_no_message() -> None:
    program = BareMetal()
    for address in (0, 0x0E10_0000, 0xFFFF_FFFF_FFFF_FFF0):
        program.enter(smc.OPTEE_SMC_CALL_WITH_ARG, *split(address))
        assert last(program).msg is None
    program.enter(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, 0x9999, 0)
    assert last(program).msg is None


def test_buffers_are_cut_at_256_bytes_and_at_their_page() -> None:
    program = BareMetal()
    page = program.pages(2)
    program.register([page, page + PAGE], 0x1000)
    for offset, size, length in ((0, 5000, 256), (0, 7, 7), (PAGE - 16, 100, 16), (0, 0, 0)):
        program.invoke(1, 0, (6, offset, size, 0x1000))
        buffers = last(program).buffers
        assert [len(buffer.data) for buffer in buffers] == [length] * bool(length)
        assert all(buffer.pa == page + offset for buffer in buffers)
    program.invoke(1, 0, (6, 3 * PAGE, 8, 0x1000), (6, 0, 8, 0x9999), EMPTY)
    assert last(program).buffers == ()
    program.invoke(1, 0, (0xA, RESERVED[0] + 0x1000, 16, 0))
    assert [buffer.pa for buffer in last(program).buffers] == [RESERVED[0] + 0x1000]


def test_endless_lists_are_recorded_as_far_as_they_say() -> None:
    program = BareMetal()
    listed = program.page_list([RAM] * 511)
    program.place(struct.pack("<Q", listed), listed + LINK_OFFSET)
    program.call(message(msg.OPTEE_MSG_CMD_REGISTER_SHM, (LIST, listed, 600 * PAGE, 7)))
    pages = last(program).page_list
    assert pages is not None
    assert [len(page.entries) for page in pages] == [511, 89]
    program.call(message(msg.OPTEE_MSG_CMD_REGISTER_SHM, (LIST, 0x0E10_0000, PAGE, 7)))
    assert last(program).page_list == ()


def test_an_unregistered_buffer_is_forgotten() -> None:
    program = BareMetal()
    page = program.pages()
    program.register([page], 0x1000)
    program.unregister(0x1000)
    program.enter(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, 0x1000, 0)
    assert last(program).msg is None
