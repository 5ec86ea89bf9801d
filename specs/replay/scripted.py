# SPDX-License-Identifier: BSD-2-Clause
"""The recorded OP-TEE: it answers as recorded, on the memory that it is handed.

It reaches memory only over the bus and only by physical addresses from registers, messages and page
lists that were forwarded to it, as the real one does. What the trace knows of addresses is of no use
to it: those are the guest's.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from secure_world.bus import Bus, BusError
from smccc import page_list, wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from smccc.registers import low32, pair
from specs.replay import names
from specs.replay.chain import Flight, Step
from specs.replay.compare import Parameter, parameters, temporary
from specs.replay.records import MESSAGE_OWNER, BufferContent, Content, Return

PAGE: Final = 4096
MAX_LIST: Final = 1 << 20
"""Entries that are read of one list: 4 GiB; a mediator's limit is far below."""


@attrs.frozen
class Shared:
    """Memory of the normal world under a cookie: page addresses (u64 words), offset of byte 0."""

    words: bytes
    offset: int

    def address(self, position: int) -> int | None:
        """Physical address of a byte, None beyond the last page."""
        at = self.offset + position
        index = at // PAGE
        if not 0 <= index < len(self.words) // 8:
            return None
        return int.from_bytes(self.words[8 * index : 8 * index + 8], "little") + at % PAGE


@attrs.define
class Handed:
    """What the recorded OP-TEE was handed for one flight."""

    client: int
    message: int
    """Physical address of the message."""
    data: bytes
    """The message as forwarded, as much of it as was recorded."""
    lists: dict[int, Shared]
    """Parameter number to the temporary memory in it."""
    rpc_message: int | None = None
    """Physical address of the RPC argument."""


def list_words(bus: Bus, client: int, param: Parameter) -> bytes:
    """Read the page list of a parameter. Raises :class:`BusError`."""
    missing = min(page_list.entry_count(param.a % PAGE, param.b), MAX_LIST)
    at = param.a & -PAGE
    parts: list[bytes] = []
    while missing > 0:
        page = bus.read(client, at, PAGE)
        parts.append(page[: 8 * min(missing, page_list.ENTRIES)])
        missing -= page_list.ENTRIES
        at = int.from_bytes(page[page_list.LINK_OFFSET :], "little")
    return b"".join(parts)


class ScriptedSecureWorld:
    """The recorded OP-TEE. ``entered`` learns from a forwarded call, ``answer`` plays the return."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._flights: dict[int, Handed] = {}
        self._shared: dict[tuple[int, int], Shared] = {}
        self._rpc_messages: dict[tuple[int, int], int] = {}

    def handed(self, flight: Flight) -> Handed | None:
        """What it knows of a flight."""
        return self._flights.get(flight.number)

    # --- entering ---------------------------------------------------------------------------------

    def look(self, step: Step, regs: tuple[int, ...]) -> Handed | None:
        """Read the message of a call that starts a flight. Raises :class:`BusError`."""
        content = step.call.msg
        if content is None:
            return None
        address = pair(regs[1], regs[2])
        data = self._bus.read(step.client, address, len(content.data))
        handed = Handed(step.client, address, data, {})
        for param in temporary(data):
            if param.attr & msg.OPTEE_MSG_ATTR_NONCONTIG:
                words = list_words(self._bus, step.client, param)
                handed.lists[param.number] = Shared(words, param.a % PAGE)
        if low32(regs[0]) != names.CALL_WITH_ARG:
            handed.rpc_message = address + wire.message_size(content.num_params)
        return handed

    def entered(self, step: Step, regs: tuple[int, ...]) -> None:
        """Remember what was forwarded. What cannot be read is not remembered."""
        flight = step.flight
        if flight is None:
            return
        if step.function in names.CALLS_WITH_MESSAGE:
            try:
                handed = self.look(step, regs)
            except BusError:
                handed = None
            if handed is not None:
                self._flights[flight.number] = handed
            return
        handed, request = self._flights.get(flight.number), step.request
        if handed is None or request is None:
            return
        function = low32(request.regs[0]) & 0xFFFF
        if function == smc.OPTEE_SMC_RPC_FUNC_ALLOC:
            address = pair(regs[1], regs[2])
            if address:
                self._rpc_messages[step.client, pair(regs[4], regs[5])] = address
        elif names.command(request.rpc_arg) == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC:
            self._allocated(step, handed)

    def _allocated(self, step: Step, handed: Handed) -> None:
        """The normal world gave memory: read its list, as OP-TEE does before anything else."""
        at = handed.rpc_message
        if at is None or step.call.rpc_arg is None:
            return
        try:
            data = self._bus.read(step.client, at, wire.message_size(1))
            for param in temporary(data)[:1]:
                if param.attr & msg.OPTEE_MSG_ATTR_NONCONTIG:
                    words = list_words(self._bus, step.client, param)
                    self._shared[step.client, param.c] = Shared(words, param.a % PAGE)
        except BusError:
            return

    # --- addresses --------------------------------------------------------------------------------

    def rpc_message(self, step: Step) -> int | None:
        """Physical address of the RPC argument that a RETURN_FROM_RPC comes back with."""
        handed = None if step.flight is None else self._flights.get(step.flight.number)
        return None if handed is None else handed.rpc_message

    def knows(self, client: int, cookie: int) -> bool:
        """Whether memory is registered or allocated under a cookie, as far as it was forwarded."""
        return (client, cookie) in self._shared

    def knows_rpc_buffer(self, client: int, cookie: int) -> bool:
        """Whether an RPC message buffer is known under a cookie."""
        return (client, cookie) in self._rpc_messages

    def buffer_address(self, handed: Handed, content: Content, buffer: BufferContent) -> int | None:
        """Physical address of the first byte of a recorded memory parameter.

        None if OP-TEE could not know it: no such registration was forwarded.
        """
        for param in parameters(content.data):
            if param.number != buffer.param:
                continue
            if param.kind == wire.KIND_RMEM:
                shared = self._shared.get((handed.client, param.c))
                return None if shared is None else shared.address(param.a)
            if buffer.owner == MESSAGE_OWNER:
                shared = handed.lists.get(param.number)
                return None if shared is None else shared.address(0)
        return None

    # --- leaving ----------------------------------------------------------------------------------

    def answer(self, step: Step, answer: Return) -> tuple[int, int, int, int]:
        """Write what OP-TEE wrote before this return, and give its registers.

        Raises :class:`BusError` if memory that it was handed before cannot be written any more.
        """
        flight = step.flight
        if flight is not None:
            handed = self._flights.get(flight.number)
            if handed is not None:
                if names.is_rpc(answer.regs[0]):
                    self._request(flight, handed, answer)
                else:
                    self._final(flight, handed, answer)
        regs = answer.regs
        return regs[0], regs[1], regs[2], regs[3]

    def _buffers(self, handed: Handed, content: Content, answer: Return) -> None:
        for buffer in answer.buffers:
            address = self.buffer_address(handed, content, buffer)
            if address is not None:
                self._bus.write(handed.client, address, buffer.data)

    def _request(self, flight: Flight, handed: Handed, answer: Return) -> None:
        if low32(answer.regs[0]) == smc.OPTEE_SMC_RETURN_RPC_FREE:
            cookie = pair(answer.regs[1], answer.regs[2])
            self._rpc_messages.pop((flight.client, cookie), None)
        content = answer.rpc_arg
        if content is None:
            return
        if not flight.with_rpc_arg:
            cookie = pair(answer.regs[1], answer.regs[2])
            handed.rpc_message = self._rpc_messages.get((flight.client, cookie))
        if handed.rpc_message is None:
            return
        data = bytearray(content.data)
        for param in temporary(content.data):
            # OP-TEE would name the memory by the address that it was given, not by the guest's.
            shared = self._shared.get((flight.client, param.c))
            address = None if shared is None else shared.address(0)
            struct.pack_into("<Q", data, param.at + 8, param.a if address is None else address)
        if names.command(content) == optee_rpc.OPTEE_RPC_CMD_SHM_FREE:
            for param in parameters(content.data)[:1]:
                self._shared.pop((flight.client, param.b), None)
        self._buffers(handed, content, answer)
        self._bus.write(flight.client, handed.rpc_message, bytes(data))

    def _final(self, flight: Flight, handed: Handed, answer: Return) -> None:
        del self._flights[flight.number]
        content = answer.msg
        if content is None:
            return
        self._buffers(handed, content, answer)
        at = 0
        kept = [(p.at, p.at + 16) for p in temporary(handed.data)]
        kept += [(p.at + 24, p.at + 32) for p in temporary(handed.data)]
        for start, end in [*sorted(kept), (len(content.data), len(content.data))]:
            # Attribute, address and name of temporary memory stay as they were forwarded.
            if start > at:
                self._bus.write(flight.client, handed.message + at, content.data[at:start])
            at = max(at, end)
        self._book(flight, handed, answer)

    def _book(self, flight: Flight, handed: Handed, answer: Return) -> None:
        """A registration or its end, if it was accepted."""
        assert answer.msg is not None
        if low32(answer.regs[0]) or int.from_bytes(answer.msg.data[20:24], "little"):
            return
        command = names.command(answer.msg)
        params = parameters(handed.data)
        if not params:
            return
        if command == msg.OPTEE_MSG_CMD_REGISTER_SHM and 0 in handed.lists:
            self._shared.setdefault((flight.client, params[0].c), handed.lists[0])
        elif command == msg.OPTEE_MSG_CMD_UNREGISTER_SHM:
            self._shared.pop((flight.client, params[0].c), None)

    def forget(self, client: int) -> None:
        """The partition is gone."""
        for table in (self._shared, self._rpc_messages):
            for key in [key for key in table if key[0] == client]:
                del table[key]
