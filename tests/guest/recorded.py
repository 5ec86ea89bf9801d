# SPDX-License-Identifier: BSD-2-Clause
"""A recorded OP-TEE behind our driver: it answers as recorded and compares every call.

The driver under test must make the recorded calls in the recorded order. Addresses and cookies are
its own; what they point to, their offsets, sizes and reuse must agree. The answers (registers,
messages, RPC arguments, buffer contents) are the recorded ones, with references translated.
"""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

from mediator.guest.cpu import Registers
from mediator.guest.memory import PAGE_SIZE
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.page_list import ENTRIES
from smccc.wire import KIND_RMEM, MESSAGE, PARAM_KIND, PARAM_OUTPUT, PARAMS
from tests.guest.machine import FakeCpu

TRACES = Path(__file__).parent.parent / "data" / "traces"
MASK32 = 0xFFFF_FFFF
NOTIFICATION_INTID = 219

Record = dict[str, Any]


def load_trace(name: str) -> list[Record]:
    """The records of a trace file, markers included, the meta line and secure interrupts not."""
    path = TRACES / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [r for r in records if "marker" in r or r.get("dir") in ("call", "return")]


def between(records: list[Record], first: str | None, last: str | None) -> list[Record]:
    """The records after marker ``first`` and before marker ``last``."""
    start, end = 0, len(records)
    for index, record in enumerate(records):
        if record.get("marker") == first and not start:
            start = index
        if record.get("marker") == last and index > start:
            end = index
            break
    return records[start:end]


def calls(records: list[Record]) -> list[Record]:
    """The calls and returns of the guest, without those of its hypervisor."""
    of_hypervisor: set[int] = set()
    kept = []
    for record in records:
        if str(record.get("name")).startswith("VM_"):
            of_hypervisor.add(record["seq"])
        elif "dir" in record and record.get("of") not in of_hypervisor:
            kept.append(record)
    return kept


class Different(AssertionError):
    """The driver did not do what was recorded."""


def unpack(text: str) -> tuple[int, ...]:
    data = bytes.fromhex(text)
    return MESSAGE[(len(data) - 32) // 32].unpack(data)


class RecordedTee:
    """Plays the secure world of a recording. ``cookies``: recorded to the driver's."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.position = 0
        self.cookies: dict[int, int] = {0: 0}
        self.memory: dict[int, tuple[list[int], int]] = {}
        self.messages: dict[int, int] = {}
        self.threads: dict[int, tuple[int, int]] = {}
        self.calls = 0
        self.compared_buffers = 0
        self.reused_cookies = 0
        self._gone: set[tuple[int, int]] = set()

    @property
    def finished(self) -> bool:
        return self.position == len(self.records)

    def fail(self, record: Record, what: str, ours: object, theirs: object) -> None:
        raise Different(f"seq {record['seq']} {record.get('name')}: {what}: {ours} != {theirs}")

    def same(self, record: Record, what: str, ours: object, theirs: object) -> None:
        if ours != theirs:
            self.fail(record, what, ours, theirs)

    def __call__(self, cpu: FakeCpu, regs: Registers) -> tuple[int, int, int, int]:
        if self.finished:
            raise Different(f"a call after the last recorded one: {regs[0]:#x}")
        call = self.records[self.position]
        if call["dir"] != "call":
            raise Different(f"seq {call['seq']}: {call['dir']} where a call was expected")
        answer = self.records[self.position + 1]
        if answer.get("of") != call["seq"]:
            raise Different(f"seq {call['seq']}: its return does not follow it")
        self.position += 2
        self.calls += 1
        theirs = [int(call["regs"][n], 16) for n in range(8)]
        self.same(call, "function", hex(regs[0]), hex(theirs[0]))
        if regs[0] == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            self.same(call, "a1..a6", regs[1:7], tuple(theirs[1:7]))
            message, argument = self.threads.pop(theirs[3])
            if "rpc_arg" in call:
                self._compare_rpc(cpu, call, argument)
        elif regs[0] in (
            smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
            smc.OPTEE_SMC_CALL_WITH_REGD_ARG,
            smc.OPTEE_SMC_CALL_WITH_ARG,
        ):
            self.same(call, "a3..a6", regs[3:7], tuple(theirs[3:7]))
            message = self._message(call, regs, theirs)
            self._compare_message(cpu, call, message)
            argument = message + len(bytes.fromhex(call["msg"]))
        else:
            self.same(call, "a1..a6", regs[1:7], tuple(theirs[1:7]))
            message = argument = 0
        self._answer(cpu, answer, message, argument)
        self._raise_interrupt(cpu)
        x0, x1, x2, x3 = [int(answer["regs"][n], 16) for n in range(4)]
        return x0, x1, x2, x3

    # The driver's side

    def _message(self, call: Record, regs: Registers, theirs: list[int]) -> int:
        """Where the driver's message is."""
        ours = (regs[1] & MASK32) << 32 | regs[2] & MASK32
        recorded = (theirs[1] & MASK32) << 32 | theirs[2] & MASK32
        if regs[0] != smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
            self.same(call, "message alignment", ours % PAGE_SIZE, recorded % PAGE_SIZE)
            for pages, _ in self.memory.values():
                if ours in pages:
                    self.fail(call, "message page", hex(ours), "a page that is not registered")
            return ours
        self.same(call, "message cookie", ours, self.cookies.get(recorded))
        return self._address(ours, regs[3])

    def _address(self, cookie: int, offset: int) -> int:
        pages, first = self.memory[cookie]
        page, inside = divmod(first + offset, PAGE_SIZE)
        return pages[page] + inside

    def _compare_message(self, cpu: FakeCpu, call: Record, address: int) -> None:
        theirs = unpack(call["msg"])
        data = cpu.machine.load(address, len(bytes.fromhex(call["msg"])))
        ours = MESSAGE[(len(data) - 32) // 32].unpack(data)
        self.same(call, "message header", ours[:PARAMS], theirs[:PARAMS])
        command = theirs[0]
        for index, place in enumerate(range(PARAMS, len(theirs), 4)):
            mine, wanted = ours[place : place + 4], theirs[place : place + 4]
            self.same(call, f"attr of parameter {index}", mine[0], wanted[0])
            if command == msg.OPTEE_MSG_CMD_REGISTER_SHM:
                self._register(cpu, call, mine, wanted)
            elif PARAM_KIND[wanted[0] & 0xFF] == KIND_RMEM:
                self.same(call, f"parameter {index}", mine[1:3], wanted[1:3])
                self.same(call, f"cookie {index}", mine[3], self.cookies.get(wanted[3]))
            else:
                self.same(call, f"parameter {index}", mine, wanted)
        if command == msg.OPTEE_MSG_CMD_UNREGISTER_SHM:
            self._unregister(theirs[PARAMS + 3])
        self._compare_buffers(cpu, call, ours, "msg")

    def _register(
        self, cpu: FakeCpu, record: Record, mine: tuple[int, ...], wanted: tuple[int, ...]
    ) -> None:
        """Compare a page list and remember the memory."""
        self.same(record, "offset in list address", mine[1] % PAGE_SIZE, wanted[1] % PAGE_SIZE)
        self.same(record, "size", mine[2], wanted[2])
        list_pages = record["page_list"]
        pages: list[int] = []
        where = mine[1] - mine[1] % PAGE_SIZE
        for number, listed in enumerate(list_pages):
            words = struct.unpack("<512Q", cpu.machine.load(where, PAGE_SIZE))
            count = len(listed["entries"])
            pages += words[:count]
            full = count == ENTRIES
            self.same(record, "link", bool(words[511]), int(listed["next"], 16) != 0)
            if full:
                # Linux allocates list pages side by side and links them even behind the last.
                self.same(record, "next list page", words[511], where + PAGE_SIZE)
            if number + 1 < len(list_pages):
                where = words[511]
        theirs = [int(entry, 16) for listed in list_pages for entry in listed["entries"]]
        self.same(record, "pages in the list", len(pages), len(theirs))
        self.same(record, "page alignment", {p % PAGE_SIZE for p in pages}, {0})
        self.same(record, "repeated pages", len(set(pages)), len(set(theirs)))
        if (wanted[3], mine[3]) in self._gone:
            self.reused_cookies += 1
        self.cookies[wanted[3]] = mine[3]
        self.memory[mine[3]] = (pages, mine[1] % PAGE_SIZE)

    def _unregister(self, recorded: int) -> None:
        ours = self.cookies.pop(recorded)
        self._gone.add((recorded, ours))
        del self.memory[ours]

    def _compare_rpc(self, cpu: FakeCpu, call: Record, address: int) -> None:
        theirs = unpack(call["rpc_arg"])
        data = cpu.machine.load(address, len(bytes.fromhex(call["rpc_arg"])))
        ours = MESSAGE[(len(data) - 32) // 32].unpack(data)
        self.same(call, "RPC argument header", ours[:PARAMS], theirs[:PARAMS])
        for index, place in enumerate(range(PARAMS, len(theirs), 4)):
            mine, wanted = ours[place : place + 4], theirs[place : place + 4]
            if theirs[0] == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                self.same(call, "attr", mine[0], wanted[0])
                self._register(cpu, call, mine, wanted)
            elif theirs[0] == rpc.OPTEE_RPC_CMD_SHM_FREE:
                self._unregister(wanted[2])
            elif theirs[0] == rpc.OPTEE_RPC_CMD_GET_TIME:
                self.same(call, "attr", mine[0], wanted[0])
            elif PARAM_KIND[wanted[0] & 0xFF] == KIND_RMEM:
                self.same(call, f"RPC parameter {index}", mine[:3], wanted[:3])
                self.same(call, f"RPC cookie {index}", mine[3], self.cookies.get(wanted[3]))
            else:
                self.same(call, f"RPC parameter {index}", mine, wanted)
        self._compare_buffers(cpu, call, ours, "rpc_arg")

    def _compare_buffers(
        self, cpu: FakeCpu, call: Record, ours: tuple[int, ...], source: str
    ) -> None:
        """Contents that mean something in this direction: inputs of a call, outputs of an RPC."""
        for buffer in call.get("bufs", ()):
            place = PARAMS + 4 * buffer["param"]
            attr, offset, _, cookie = ours[place : place + 4]
            wanted = PARAM_OUTPUT[attr & 0xFF] if source == "rpc_arg" else attr & 1
            if buffer["in"] != source or PARAM_KIND[attr & 0xFF] != KIND_RMEM or not wanted:
                continue
            theirs = bytes.fromhex(buffer["hex"])
            address = self._address(cookie, offset)
            self.same(call, "contents", cpu.machine.load(address, len(theirs)).hex(), theirs.hex())
            self.compared_buffers += 1

    # The recorded side

    def _answer(self, cpu: FakeCpu, answer: Record, message: int, argument: int) -> None:
        status = int(answer["regs"][0], 16)
        if smc.OPTEE_SMC_RETURN_RPC_PREFIX <= status < MASK32:
            self.threads[int(answer["regs"][3], 16)] = (message, argument)
        if "msg" in answer:
            self._store(cpu, answer, "msg", message)
        if "rpc_arg" in answer:
            self._store(cpu, answer, "rpc_arg", argument)

    def _store(self, cpu: FakeCpu, answer: Record, source: str, address: int) -> None:
        fields = list(unpack(answer[source]))
        command = fields[0]
        for place in range(PARAMS, len(fields), 4):
            if PARAM_KIND[fields[place] & 0xFF] == KIND_RMEM:
                fields[place + 3] = self.cookies.get(fields[place + 3], 0)
            elif source == "rpc_arg" and command == rpc.OPTEE_RPC_CMD_SHM_FREE:
                fields[place + 2] = self.cookies[fields[place + 2]]
        cpu.machine.store(address, MESSAGE[fields[7]].pack(*fields))
        for buffer in answer.get("bufs", ()):
            place = PARAMS + 4 * buffer["param"]
            attr, offset, _, cookie = fields[place : place + 4]
            if buffer["in"] == source and PARAM_KIND[attr & 0xFF] == KIND_RMEM:
                cpu.machine.store(self._address(cookie, offset), bytes.fromhex(buffer["hex"]))

    def _raise_interrupt(self, cpu: FakeCpu) -> None:
        """The notification interrupt came before the next recorded call, if that call asks why."""
        if not self.finished:
            following = self.records[self.position]["regs"][0]
            if int(following, 16) == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE:
                cpu.inject(NOTIFICATION_INTID)
