# SPDX-License-Identifier: BSD-2-Clause
"""An honest guest whose calls must go on working, whatever its neighbour does (I5, I6)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Final

from fuzz.bench import Bench
from fuzz.inspector import mark, tuple_of
from fuzz.service import Service
from secure_world.apps.basic import Arithmetic, MemoryReferences
from smccc.calls import messages as commands
from smccc.calls.messages import OpenSessionAnswer
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.message import Message, Param, attribute, parse_message
from smccc.page_list import build_page_list
from smccc.registers import MASK32, split
from specs.target import PAGE_SIZE, Outcome, Registers

MAX_ROUNDS: Final = 64
"""RPCs of one call: far more than the applications used here need."""

RUBBISH: Final = tuple([0xDEAD_0000 + index for index in range(8)])
"""What its compiler leaves above the 32-bit arguments."""

COOKIE: Final = 0x0BAD_5EED_0000_2000
"""The victim's only registered buffer."""

LIST_COOKIE: Final = 0x0BAD_5EED_0000_3000
"""The reference of its temporary buffers."""


class Victim:
    """Keeps two sessions and uses them. What does not go as it should is reported as I5.

    ``function``: CALL_WITH_ARG or CALL_WITH_RPC_ARG.
    """

    def __init__(
        self,
        bench: Bench,
        guest: int,
        images: Mapping[uuid.UUID, bytes],
        function: int = smc.OPTEE_SMC_CALL_WITH_ARG,
    ) -> None:
        self.guest = guest
        self._bench = bench
        self._view = bench.views[guest]
        self._service = Service(self._view, images)
        self._function = function
        self._turn = 0
        self._sessions: dict[uuid.UUID, int] = {}

    def call(self, message: Message) -> Message | None:
        """One call to its end; None (and a report) if it did not end well for the driver."""
        bench, guest = self._bench, self.guest
        carrier = self._view.carriers[self._turn % len(self._view.carriers)]
        bench.store(guest, ((carrier, message.build()),))
        outcome = self._trap((self._function, *split(carrier), 1, 0, 0, 0, 0))
        for _ in range(MAX_ROUNDS):
            pending = bench.pending(guest)
            if not pending:
                break
            reply = self._service.answer(pending[0])
            bench.store(guest, reply.writes)
            outcome = self._trap(reply.registers)
        if outcome.regs[0] & MASK32 != smc.OPTEE_SMC_RETURN_OK:
            self._report(f"an honest call of command {message.cmd} returns {outcome.regs[0]:#x}")
            return None
        return parse_message(bench.load(guest, carrier, PAGE_SIZE))

    def _trap(self, registers: Registers) -> Outcome:
        """Every other time with rubbish in the high words, which do not count (bug class 8)."""
        if self._turn % 2:
            registers = tuple_of(
                [rubbish << 32 | word for rubbish, word in zip(RUBBISH, registers, strict=True)]
            )
        return self._bench.trap_registers(self.guest, registers)

    def start(self) -> None:
        """Open the sessions."""
        for application in (Arithmetic.uuid, MemoryReferences.uuid):
            answer = self.call(commands.OpenSession(application).message())
            if answer is None:
                continue
            opened = OpenSessionAnswer.parse(answer)
            if opened.ret:
                self._report(f"OPEN_SESSION of {application} is refused with {opened.ret:#x}")
            self._sessions[application] = opened.session

    def step(self) -> None:
        """Use what there is: values each time, memory every fourth, registration every eighth."""
        self._turn += 1
        self._add()
        if self._turn % 4 == 0:
            self._reverse()
        if self._turn % 8 == 0:
            self._register()

    def stop(self) -> None:
        """Close the sessions."""
        for session in self._sessions.values():
            self._succeeds(commands.CloseSession(session).message())
        self._sessions.clear()

    # --- what it does ---------------------------------------------------------------------------------

    def _add(self) -> None:
        a, b = 0xFFFF_FF00 + self._turn, 0x1_0000 + self._turn
        answer = self._succeeds(
            commands.InvokeCommand(
                self._sessions.get(Arithmetic.uuid, 0),
                Arithmetic.ADD,
                (
                    Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, a & MASK32, b),
                    Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT),
                ),
            ).message()
        )
        if answer is not None:
            got = answer.params[1].b << 32 | answer.params[1].a
            if got != (a & MASK32) + b:
                self._report(f"{a & MASK32:#x} + {b:#x} is {got:#x}")

    def _reverse(self) -> None:
        pages = self._view.data[:3]
        data = struct.pack("<Q", self._turn) + bytes(range(256)) * 20
        self._bench.store(self.guest, tuple(self._pieces(pages, data)))
        lists = build_page_list(pages, self._view.lists)
        self._bench.store(self.guest, tuple(lists))
        attr = attribute(msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT, noncontig=True)
        answer = self._succeeds(
            commands.InvokeCommand(
                self._sessions.get(MemoryReferences.uuid, 0),
                MemoryReferences.REVERSE,
                (Param(attr, lists[0][0], len(data), LIST_COOKIE),),
            ).message()
        )
        if answer is None:
            return
        got = b"".join([self._bench.load(self.guest, page, PAGE_SIZE) for page in pages])
        if got[: len(data)] != data[::-1]:
            self._report("a shared buffer does not hold what the TEE wrote")
        fresh = mark(self.guest) * (PAGE_SIZE // len(mark(self.guest)))
        self._bench.store(self.guest, tuple([(page, fresh) for page in pages]))

    def _register(self) -> None:
        pages = self._view.data[:5]
        lists = build_page_list(pages, self._view.lists)
        self._bench.store(self.guest, tuple(lists))
        size = len(pages) * PAGE_SIZE
        self._succeeds(commands.RegisterShm(lists[0][0], size, COOKIE).message())
        self._succeeds(commands.UnregisterShm(COOKIE).message())

    def _pieces(self, pages: tuple[int, ...], data: bytes) -> list[tuple[int, bytes]]:
        return [
            (page, data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
            for index, page in enumerate(pages)
        ]

    def _succeeds(self, message: Message) -> Message | None:
        answer = self.call(message)
        if answer is not None and answer.ret != tee.TEE_SUCCESS:
            self._report(f"an honest call of command {message.cmd} fails with {answer.ret:#x}")
            return None
        return answer

    def _report(self, what: str) -> None:
        self._bench.inspector.report("I5", self.guest, what)
