# SPDX-License-Identifier: BSD-2-Clause
"""Recording a trace at the SMC boundary, as the tracer in EL3 did: one record in, one record out.

The recorder stands between whoever calls a secure world and that secure world. It sees registers and
physical memory, follows flights by client and thread, and remembers registered buffers, so that it can
add what a call names: the message, the RPC argument, page lists, and the first bytes of buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import attrs

from smccc import page_list, wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from smccc.registers import low32, pair
from specs.replay import names
from specs.replay.compare import Parameter, parameters
from specs.replay.records import (
    MAX_BUFFER_BYTES,
    MAX_DUMPED_PARAMS,
    MESSAGE_OWNER,
    RPC_OWNER,
    BufferContent,
    Call,
    Content,
    ListPage,
    Marker,
    Return,
    SecureInterrupt,
)

PAGE: Final = 4096
NONCONTIG: Final = msg.OPTEE_MSG_ATTR_NONCONTIG
MAX_LIST_PAGES: Final = 1 << 11
"""List pages that are recorded of one buffer: 4 GiB."""

_VALUES: Final = (
    smc.OPTEE_SMC_CALLS_UID,
    smc.OPTEE_SMC_CALLS_REVISION,
    smc.OPTEE_SMC_CALLS_COUNT,
    smc.OPTEE_SMC_CALL_GET_OS_UUID,
    smc.OPTEE_SMC_CALL_GET_OS_REVISION,
)
"""Functions that answer with values instead of a status."""

ReadMemory = Callable[[int, int], bytes | None]
"""Reads physical memory: address and length; None if it is not normal-world RAM."""

WriteRecord = Callable[[Marker | Call | Return | SecureInterrupt], None]


@attrs.define
class _Buffer:
    """Registered memory: page addresses and the offset of its first byte."""

    pages: tuple[int, ...]
    offset: int

    def address(self, position: int) -> int | None:
        at = self.offset + position
        index = at // PAGE
        return self.pages[index] + at % PAGE if 0 <= index < len(self.pages) else None


@attrs.define
class _Flight:
    """A yielding call: where its message and its RPC argument lie, and what its start registers."""

    client: int
    function: int
    msg_pa: int | None = None
    carrier: _Buffer | None = None
    position: int = 0
    rpc_pa: int | None = None
    pages: tuple[ListPage, ...] | None = None
    request: Content | None = None
    asked: str = ""
    """Name of its last RPC."""


class Recorder:
    """Makes records of calls and returns. Time is given in microseconds since the first event."""

    def __init__(self, read: ReadMemory, write: WriteRecord) -> None:
        self._read = read
        self._write = write
        self._seq = 0
        self._open: dict[int, tuple[Call, _Flight | None]] = {}
        self._suspended: dict[tuple[int, int], _Flight] = {}
        self._buffers: dict[tuple[int, int], list[_Buffer]] = {}
        self._rpc_buffers: dict[tuple[int, int], int] = {}

    def _next(self) -> int:
        seq = self._seq
        self._seq += 1
        return seq

    def marker(self, text: str) -> None:
        """Note what the normal world is about to do."""
        self._write(Marker(text))

    def interrupt(self, cpu: int, entered: bool, t_us: float = 0.0) -> None:
        """A secure interrupt while the normal world runs."""
        self._write(SecureInterrupt(self._next(), cpu, t_us, entered))

    # --- calls ------------------------------------------------------------------------------------

    def call(self, cpu: int, regs: tuple[int, ...], t_us: float = 0.0) -> Call:
        """OP-TEE is about to be entered with a0..a7."""
        function, client = low32(regs[0]), regs[7] & 0xFFFF
        flight: _Flight | None = None
        content: Content | None = None
        owner = MESSAGE_OWNER
        if function in names.CALLS_WITH_MESSAGE:
            flight = _Flight(client, function)
            self._find_message(flight, regs)
            content = self._message(flight)
        elif function == names.RETURN_FROM_RPC:
            flight = self._suspended.get((client, low32(regs[3])))
            if flight is not None:
                content, owner = self._answered(flight, regs), RPC_OWNER
        pages = self._pages(content, owner, flight)
        if flight is not None and function in names.CALLS_WITH_MESSAGE:
            flight.pages = pages
        record = Call(
            self._next(),
            cpu,
            t_us,
            self._call_name(regs, content, flight),
            tuple(regs),
            content if owner == MESSAGE_OWNER else None,
            content if owner == RPC_OWNER else None,
            pages,
            self._contents(client, content, owner, pages),
        )
        self._open[cpu] = record, flight
        self._write(record)
        return record

    @staticmethod
    def _call_name(regs: tuple[int, ...], content: Content | None, flight: _Flight | None) -> str:
        name = names.function_name(regs[0])
        if low32(regs[0]) in names.CALLS_WITH_MESSAGE:
            return f"{name} {names.message_command_name(content)}".strip()
        return name if flight is None else f"{name} {flight.asked}".strip()

    def _find_message(self, flight: _Flight, regs: tuple[int, ...]) -> None:
        if flight.function != names.CALL_WITH_REGD_ARG:
            flight.msg_pa = pair(regs[1], regs[2])
            return
        known = self._buffers.get((flight.client, pair(regs[1], regs[2])))
        if known:
            flight.carrier, flight.position = known[-1], low32(regs[3])
            flight.msg_pa = known[-1].address(flight.position)

    def _message(self, flight: _Flight) -> Content | None:
        """The message, which may go on in the next page of its registered buffer."""
        if flight.msg_pa is None:
            return None
        carrier = flight.carrier
        room = PAGE - flight.msg_pa % PAGE
        content = self._content(flight.msg_pa)
        if carrier is None or content is None or len(content.data) <= room:
            return content
        following = carrier.address(flight.position + room)
        rest = None if following is None else self._read(following, len(content.data) - room)
        return None if rest is None else Content(content.pa, content.data[:room] + rest)

    def _content(self, pa: int) -> Content | None:
        header = self._read(pa, wire.HEADER_SIZE)
        if header is None:
            return None
        count = int.from_bytes(header[28:32], "little")
        if count > MAX_DUMPED_PARAMS:
            return Content(pa, header)
        data = self._read(pa, wire.message_size(count))
        return None if data is None else Content(pa, data)

    def _answered(self, flight: _Flight, regs: tuple[int, ...]) -> Content | None:
        """The RPC argument as the normal world hands it back; books of RPC ALLOC."""
        if flight.request is not None and flight.rpc_pa is not None:
            return self._content(flight.rpc_pa)
        if pair(regs[1], regs[2]) and pair(regs[4], regs[5]):
            self._rpc_buffers[flight.client, pair(regs[4], regs[5])] = pair(regs[1], regs[2])
        return None

    # --- what a message names ------------------------------------------------------------------------

    def _pages(
        self, content: Content | None, owner: str, flight: _Flight | None
    ) -> tuple[ListPage, ...] | None:
        """The list of a registration, or of an answered SHM_ALLOC."""
        if content is None or flight is None:
            return None
        if owner == MESSAGE_OWNER:
            wanted = names.command(content) == msg.OPTEE_MSG_CMD_REGISTER_SHM
        else:
            wanted = names.command(flight.request) == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC
        params = parameters(content.data)
        if not wanted or not params:
            return None
        param = params[0]
        if param.kind != wire.KIND_TMEM or not param.attr & NONCONTIG or not param.a:
            return None
        pages = self._list(param)
        if owner == RPC_OWNER and pages:
            self._register(flight.client, param, pages)
        return pages

    def _list(self, param: Parameter) -> tuple[ListPage, ...]:
        missing = page_list.entry_count(param.a % PAGE, param.b)
        at = param.a & -PAGE
        found: list[ListPage] = []
        while missing > 0 and len(found) < MAX_LIST_PAGES:
            data = self._read(at, PAGE)
            if data is None:
                break
            count = min(missing, page_list.ENTRIES)
            link = int.from_bytes(data[page_list.LINK_OFFSET :], "little")
            found.append(ListPage(at, struct.unpack_from(f"<{count}Q", data), link))
            missing -= count
            at = link
        return tuple(found)

    def _register(self, client: int, param: Parameter, pages: tuple[ListPage, ...]) -> None:
        entries = tuple([entry for page in pages for entry in page.entries])
        buffer = _Buffer(entries, param.a % PAGE)
        self._buffers.setdefault((client, param.c), []).append(buffer)

    def _contents(
        self,
        client: int,
        content: Content | None,
        owner: str,
        pages: tuple[ListPage, ...] | None,
    ) -> tuple[BufferContent, ...]:
        """The first bytes of every memory parameter that has a size."""
        if content is None or pages is not None or _is_registration(content, owner):
            return ()
        found: list[BufferContent] = []
        for param in parameters(content.data):
            address = self._address(client, param)
            if address is None or not param.b:
                continue
            size = min(param.b, MAX_BUFFER_BYTES, PAGE - address % PAGE)
            data = self._read(address, size)
            if data is not None:
                found.append(BufferContent(owner, param.number, address, data))
        return tuple(found)

    def _address(self, client: int, param: Parameter) -> int | None:
        if param.kind == wire.KIND_RMEM:
            known = self._buffers.get((client, param.c))
            return known[-1].address(param.a) if known else None
        if param.kind != wire.KIND_TMEM or not param.a:
            return None
        if not param.attr & NONCONTIG:
            return param.a
        page = self._read(param.a & -PAGE, 8)
        return None if page is None else int.from_bytes(page, "little") + param.a % PAGE

    # --- returns --------------------------------------------------------------------------------------

    def answer(self, cpu: int, regs: tuple[int, ...], t_us: float = 0.0) -> Return:
        """OP-TEE came back to this CPU with a0..a3 (a4..a7 are the caller's own)."""
        call, flight = self._open.pop(cpu)
        content: Content | None = None
        owner = MESSAGE_OWNER
        status = low32(regs[0])
        refused = status in (smc.OPTEE_SMC_RETURN_ERESUME, smc.OPTEE_SMC_RETURN_ENOTAVAIL)
        if low32(call.regs[0]) == names.RETURN_FROM_RPC and refused:
            flight = None
        elif flight is not None:
            self._suspended = {k: f for k, f in self._suspended.items() if f is not flight}
        if flight is not None and names.is_rpc(status):
            content, owner = self._requested(flight, regs), RPC_OWNER
        elif flight is not None:
            if call.msg is not None or low32(call.regs[0]) == names.RETURN_FROM_RPC:
                content = self._message(flight)
            self._book(flight, status, content)
        elif status == smc.OPTEE_SMC_RETURN_OK:
            self._life_cycle(call)
        client = 0 if flight is None else flight.client
        name = self._answer_name(call, status, content)
        if flight is not None:
            flight.asked = name
        record = Return(
            self._next(),
            cpu,
            t_us,
            call.seq,
            name,
            (*regs[:4], *call.regs[4:]),
            content if owner == MESSAGE_OWNER else None,
            content if owner == RPC_OWNER else None,
            None,
            self._contents(client, content, owner, None) if flight is not None else (),
        )
        self._write(record)
        return record

    @staticmethod
    def _answer_name(call: Call, status: int, content: Content | None) -> str:
        if not low32(call.regs[0]) >> 31 and names.is_rpc(status):
            name = names.rpc_name(status, content)
            is_command = status == smc.OPTEE_SMC_RETURN_RPC_CMD
            return f"RPC_CMD {name}" if is_command else f"RPC_{name}"
        if low32(call.regs[0]) in _VALUES and status != smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION:
            return "VALUES"
        return names.STATUSES.get(status, "VALUES")

    def _requested(self, flight: _Flight, regs: tuple[int, ...]) -> Content | None:
        self._suspended[flight.client, low32(regs[3])] = flight
        flight.request = None
        if low32(regs[0]) == smc.OPTEE_SMC_RETURN_RPC_FREE:
            self._rpc_buffers.pop((flight.client, pair(regs[1], regs[2])), None)
        if low32(regs[0]) != smc.OPTEE_SMC_RETURN_RPC_CMD:
            return None
        if flight.function == names.CALL_WITH_ARG:
            cookie = pair(regs[1], regs[2])
            flight.rpc_pa = self._rpc_buffers.get((flight.client, cookie))
        elif flight.rpc_pa is None:
            message = self._message(flight)
            if message is not None:
                behind = wire.message_size(message.num_params)
                flight.rpc_pa = message.pa + behind
                if flight.carrier is not None:
                    flight.rpc_pa = flight.carrier.address(flight.position + behind)
        if flight.rpc_pa is None:
            return None
        content = flight.request = self._content(flight.rpc_pa)
        if names.command(content) == optee_rpc.OPTEE_RPC_CMD_SHM_FREE and content is not None:
            for param in parameters(content.data)[:1]:
                self._drop(flight.client, param.b)
        return content

    def _drop(self, client: int, cookie: int) -> None:
        known = self._buffers.get((client, cookie))
        if known:
            known.pop()
            if not known:
                del self._buffers[client, cookie]

    def _book(self, flight: _Flight, status: int, content: Content | None) -> None:
        """An accepted registration, or the end of one."""
        if status or content is None or any(content.data[20:24]):
            return
        params = parameters(content.data)
        if not params:
            return
        if names.command(content) == msg.OPTEE_MSG_CMD_REGISTER_SHM and flight.pages:
            self._register(flight.client, params[0], flight.pages)
        elif names.command(content) == msg.OPTEE_MSG_CMD_UNREGISTER_SHM:
            self._drop(flight.client, params[0].c)

    def _life_cycle(self, call: Call) -> None:
        if low32(call.regs[0]) != smc.OPTEE_SMC_VM_DESTROYED:
            return
        client = low32(call.regs[1]) & 0xFFFF
        for key in [key for key in self._suspended if key[0] == client]:
            del self._suspended[key]
        for key in [key for key in self._buffers if key[0] == client]:
            del self._buffers[key]


def _is_registration(content: Content, owner: str) -> bool:
    """Whether a message registers memory: then its parameter is shown as a page list."""
    if owner == MESSAGE_OWNER:
        return names.command(content) == msg.OPTEE_MSG_CMD_REGISTER_SHM
    return names.command(content) == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC
