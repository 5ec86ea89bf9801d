# SPDX-License-Identifier: BSD-2-Clause
"""The recorded normal world: it puts into the guest's memory what the trace found there.

It knows the guest's own view only: IPAs, its messages, its registered buffers. Where the trace does
not say what lies in memory (a page list in an invoke), it makes up something that fits.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Final, Protocol

import attrs

from smccc import page_list, wire
from smccc.constants import optee_msg as msg
from smccc.registers import low32, pair
from specs.replay import names
from specs.replay.chain import Flight, Step
from specs.replay.compare import parameters
from specs.replay.invention import invented_lists
from specs.replay.records import Content, ListPage, Return

PAGE: Final = 4096
LINK_OFFSET: Final = page_list.LINK_OFFSET


@attrs.frozen
class Place:
    """Where a message lies: one run of IPAs, or pages of a registered buffer.

    ``pages``: IPAs of the buffer's pages, empty for a run; ``start``: IPA of byte 0, or byte 0's
    position counted from the first byte of ``pages``.
    """

    client: int
    start: int
    pages: tuple[int, ...] = ()

    def pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(IPA, bytes) of a part; pages that the buffer does not have are left out."""
        at = self.start + offset
        found: list[tuple[int, int]] = []
        while length > 0:
            part = min(length, PAGE - at % PAGE)
            if not self.pages:
                found.append((at, part))
            elif at // PAGE < len(self.pages):
                found.append((self.pages[at // PAGE] + at % PAGE, part))
            at += part
            length -= part
        return found


@attrs.define
class GuestBuffer:
    """A registered buffer as the driver knows it: page IPAs and the offset of its first byte."""

    pages: tuple[int, ...]
    offset: int


class GuestMemory(Protocol):
    """Memory as a normal world sees it; ``client`` names the guest."""

    @property
    def ram(self) -> tuple[int, int]:
        """First address and bytes of its first RAM range."""

    def load(self, client: int, ipa: int, length: int, /) -> bytes | None:
        """Bytes, None if part of them is not RAM."""

    def store(self, client: int, ipa: int, data: bytes, /) -> bool:
        """Write; False, and nothing written, if part of it is not RAM."""


class NormalWorld:
    """All guests of the trace, as far as their drivers' memory goes."""

    def __init__(self, machine: GuestMemory) -> None:
        self._machine = machine
        self._ram = machine.ram
        self._buffers: dict[tuple[int, int], GuestBuffer] = {}
        self._met: set[tuple[int, int]] = set()
        self._places: dict[int, Place] = {}
        """Flight number to the place of its message."""

    # --- before a call --------------------------------------------------------------------------

    def enter(self, step: Step) -> None:
        """Make the guest's memory what it was when this call was recorded."""
        call, client = step.call, step.client
        if names.command(call.msg) == msg.OPTEE_MSG_CMD_REGISTER_SHM and call.msg is not None:
            self._met.update((client, param.c) for param in parameters(call.msg.data))
        if call.page_list is not None:
            self._store_list(client, call.page_list)
        if step.function in names.CALLS_WITH_MESSAGE and step.flight is not None:
            place = self.message_place(step)
            if place is not None:
                self._places[step.flight.number] = place
                if call.msg is not None:
                    self.store(place, 0, call.msg.data)
                    invented = invented_lists(call, partial(self._machine.load, client), self._ram)
                    for address, data in list(invented):
                        self._machine.store(client, address, data)
        elif step.flight is not None and call.rpc_arg is not None:
            self.store(self.rpc_place(step.flight, call.rpc_arg), 0, call.rpc_arg.data)
        for buffer in call.buffers:
            self._machine.store(client, buffer.pa, buffer.data)

    def knows(self, step: Step) -> bool:
        """Whether the buffer that a CALL_WITH_REGD_ARG names is in the driver's books."""
        return (step.client, pair(step.call.regs[1], step.call.regs[2])) in self._buffers

    def met(self, step: Step) -> bool:
        """Whether a REGISTER_SHM of the cookie of a CALL_WITH_REGD_ARG was in the trace, ever."""
        return (step.client, pair(step.call.regs[1], step.call.regs[2])) in self._met

    def message_place(self, step: Step) -> Place | None:
        """Where the registers of a call say that its message lies; None without a message."""
        call, client = step.call, step.client
        if step.function != names.CALL_WITH_REGD_ARG:
            address = pair(call.regs[1], call.regs[2])
            return Place(client, address) if call.msg is not None else None
        buffer = self._buffers.get((client, pair(call.regs[1], call.regs[2])))
        if buffer is not None:
            place = Place(client, buffer.offset + low32(call.regs[3]), buffer.pages)
            first = place.pieces(0, 1)
            # A cookie that was registered twice: the record tells which buffer it was.
            if call.msg is None or (first and first[0][0] == call.msg.pa):
                return place
        return Place(client, call.msg.pa) if call.msg is not None else None

    def _store_list(self, client: int, pages: tuple[ListPage, ...]) -> None:
        for page in pages:
            data = struct.pack(f"<{len(page.entries)}Q", *page.entries)
            self._machine.store(client, page.pa, data)
            self._machine.store(client, page.pa + LINK_OFFSET, struct.pack("<Q", page.next))

    # --- after a return --------------------------------------------------------------------------

    def leave(self, step: Step, answer: Return) -> None:
        """Note what a final answer changed in the driver's books."""
        flight = step.flight
        if flight is None or names.is_rpc(answer.regs[0]):
            return
        self._places.pop(flight.number, None)
        if answer.msg is None or low32(answer.regs[0]):
            return
        command = names.command(answer.msg)
        result = int.from_bytes(answer.msg.data[20:24], "little")
        params = parameters(answer.msg.data)
        if result or not params:
            return
        client = step.client
        if command == msg.OPTEE_MSG_CMD_REGISTER_SHM and flight.start.page_list:
            pages = tuple([e for page in flight.start.page_list for e in page.entries])
            self._buffers.setdefault((client, params[0].c), GuestBuffer(pages, params[0].a % PAGE))
        elif command == msg.OPTEE_MSG_CMD_UNREGISTER_SHM:
            self._buffers.pop((client, params[0].c), None)

    def forget(self, client: int) -> None:
        """The guest is gone: its registrations mean nothing any more."""
        for key in [key for key in self._buffers if key[0] == client]:
            del self._buffers[key]

    # --- the guest's view ------------------------------------------------------------------------

    def place(self, flight: Flight) -> Place | None:
        """Where the flight's message lies."""
        return self._places.get(flight.number)

    def rpc_place(self, flight: Flight, content: Content) -> Place:
        """Where the RPC argument lies: behind the message, or where the trace says."""
        place = self._places.get(flight.number)
        start = flight.start.msg
        if flight.with_rpc_arg and place is not None and start is not None:
            behind = wire.message_size(start.num_params)
            pieces = place.pieces(behind, 1)
            if pieces and pieces[0][0] == content.pa:
                return attrs.evolve(place, start=place.start + behind)
        return Place(flight.client, content.pa)

    def store(self, place: Place, offset: int, data: bytes) -> None:
        """Write into a message; what lies outside RAM is left out."""
        at = 0
        for ipa, part in place.pieces(offset, len(data)):
            self._machine.store(place.client, ipa, data[at : at + part])
            at += part

    def load(self, place: Place, offset: int, length: int) -> bytes | None:
        """Read from a message; None if part of it cannot be read."""
        parts = [
            self._machine.load(place.client, ipa, part)
            for ipa, part in place.pieces(offset, length)
        ]
        data = b"".join([part for part in parts if part is not None])
        return data if len(data) == length else None
