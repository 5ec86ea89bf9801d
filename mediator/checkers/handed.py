# SPDX-License-Identifier: BSD-2-Clause
"""I2 for pages of the mediator: the TEE touches one only for the guest that it was handed to.

All pages of the mediator look alike to the bus. Which guest one was made for follows from the
entries of the TEE alone: a message page is handed over with its call, a list with the parameter that
names it, a page for RPC messages with the answer to ALLOC. It is taken back when the TEE is done with
it: the call ends, the next list of the call comes, FREE and DISABLE_SHM_CACHE name the cookie. The
mediator's own books play no part, so a page that it gives away too early shows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, Protocol, cast

from mediator.checkers.verdict import Event, Handler, Report
from mediator.host import PAGE_LIST_ENTRIES, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from mediator.optee import events
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.registers import MASK32, pair
from smccc.wire import HEADER_SIZE, KIND_TMEM, MAX_PARAMS, PARAM_KIND, PARAM_SIZE

CARRIES_MESSAGE: Final = frozenset((smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG))

MAX_LIST_PAGES: Final = 1 << 12
"""Pages of one list that are followed: 8 GiB of buffer, more than any limit allows."""

_NUM_PARAMS: Final = struct.Struct("<I")
_PARAM: Final = struct.Struct("<3Q")

Call = tuple[int, int]
"""Guest and serial number of a call."""


class _Pages:
    """What the TEE has in hand for one call."""

    __slots__ = ("asked", "behind", "lists", "message")

    def __init__(self) -> None:
        self.message = 0
        self.behind = 0
        self.lists: list[int] = []
        self.asked: tuple[int, int] = (0, 0)
        """Status of the RPC that the TEE left with, and the cookie in it."""


class Memory(Protocol):
    """The part of :class:`~mediator.checkers.view.MachineView` that shows pages of the mediator."""

    def read(self, pa: int, length: int) -> bytes | None:
        """Physical memory; ``None`` where there is none."""

    def is_mediators(self, pa: int) -> bool:
        """Whether the mediator owns the page at ``pa`` and has it in use."""


class HandedPages:
    """I2: whose page of the mediator is whose. :meth:`may` is what the bus asks about each touch."""

    def __init__(self, view: Memory, guest_of: Callable[[int], int], report: Report) -> None:
        self._view = view
        self._guest_of = guest_of
        self._report = report
        self._holder: dict[int, int] = {}
        self._calls: dict[Call, _Pages] = {}
        # (guest, cookie) → page number and the thread that asked for it.
        self._rpc: dict[Call, tuple[int, int]] = {}
        # (guest, thread) → cookie of an answer to ALLOC that came without a page.
        self._refused: dict[Call, int] = {}
        self._fast: dict[int, list[int]] = {}

    def handlers(self) -> Mapping[type, Handler]:
        """Entries of the TEE, its answers, and the end of a guest."""
        return {
            events.Forwarded: self._forwarded,
            events.Answered: self._answered,
            events.GuestTornDown: self._gone,
        }

    def may(self, client: int, pfn: int) -> bool:
        """Whether ``client`` has the page of the mediator with this number in hand; else reported."""
        guest = self._guest_of(client)
        holder = self._holder.get(pfn)
        if holder == guest:
            return True
        whose = "nobody" if holder is None else f"guest {holder}"
        self._report(
            "I2", guest, f"the TEE touches mediator page {pfn << PAGE_SHIFT:#x}, handed to {whose}"
        )
        return False

    # --- entries --------------------------------------------------------------------------------

    def _forwarded(self, event: Event) -> None:
        guest, serial, _, regs = cast("events.Forwarded", event)
        if serial == events.NO_CALL:
            if guest != events.NO_GUEST:
                self._fast.setdefault(guest, []).append(regs[0])
            return
        call = guest, serial
        if regs[0] in CARRIES_MESSAGE:
            at = pair(regs[1], regs[2])
            pages = self._calls[call] = _Pages()
            pages.message = at >> PAGE_SHIFT
            self._hand(guest, pages.message)
            size = self._lists(guest, pages, at)
            if regs[0] == smc.OPTEE_SMC_CALL_WITH_RPC_ARG:
                pages.behind = at + size
        elif regs[0] == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            self._resumed(call, regs)

    def _resumed(self, call: Call, regs: tuple[int, ...]) -> None:
        pages = self._calls.get(call)
        if pages is None:
            return
        guest, thread = call[0], regs[3]
        status, cookie = pages.asked
        if status == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            page, cookie = pair(regs[1], regs[2]) >> PAGE_SHIFT, pair(regs[4], regs[5])
            if page:
                self._rpc[guest, cookie] = page, thread
                self._hand(guest, page)
            else:
                self._refused[guest, thread] = cookie
        elif status == smc.OPTEE_SMC_RETURN_RPC_CMD:
            at = pages.behind or self._rpc.get((guest, cookie), (0, 0))[0] << PAGE_SHIFT
            if at:
                self._lists(guest, pages, at)

    def _hand(self, guest: int, page: int) -> None:
        self._holder[page] = guest

    def _lists(self, guest: int, pages: _Pages, at: int) -> int:
        """Hand over the lists that a message names, instead of those before; the message's size."""
        data = self._view.read(at & ~PAGE_MASK, PAGE_SIZE) or b""
        data = data[at & PAGE_MASK :]
        if len(data) < HEADER_SIZE:
            return HEADER_SIZE
        count: int = _NUM_PARAMS.unpack_from(data, HEADER_SIZE - 4)[0]
        size = HEADER_SIZE + count * PARAM_SIZE
        if count > MAX_PARAMS or size > len(data):
            return HEADER_SIZE
        found: list[int] = []
        for start in range(HEADER_SIZE, size, PARAM_SIZE):
            attr, address, length = _PARAM.unpack_from(data, start)
            listed = attr & msg.OPTEE_MSG_ATTR_NONCONTIG and address
            if PARAM_KIND[attr & 0xFF] == KIND_TMEM and listed:
                found += self._chain(address, length)
        if found:
            for page in pages.lists:
                self._take(guest, page)
            pages.lists = found
            for page in found:
                self._hand(guest, page)
        return size

    def _chain(self, address: int, length: int) -> list[int]:
        """Page numbers of the list at ``address``."""
        left = ((address & PAGE_MASK) + length + PAGE_MASK) >> PAGE_SHIFT
        pages: list[int] = []
        link = address
        while left > 0 and len(pages) < MAX_LIST_PAGES:
            if not self._view.is_mediators(link):
                break
            pages.append(link >> PAGE_SHIFT)
            left -= PAGE_LIST_ENTRIES
            page = self._view.read(link & ~PAGE_MASK, PAGE_SIZE) or bytes(PAGE_SIZE)
            link = int.from_bytes(page[-8:], "little")
        return pages

    # --- answers --------------------------------------------------------------------------------

    def _answered(self, event: Event) -> None:
        guest, serial, _, answer = cast("events.Answered", event)
        status, cookie = answer[0] & MASK32, pair(answer[1], answer[2])
        if serial == events.NO_CALL:
            self._drained(guest, status, cookie)
            return
        pages = self._calls.get((guest, serial))
        if pages is None:
            return
        if status >> 16 != 0xFFFF or status == smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION:
            del self._calls[guest, serial]
            for page in (pages.message, *pages.lists):
                self._take(guest, page)
            return
        pages.asked = status, cookie
        if status == smc.OPTEE_SMC_RETURN_RPC_FREE:
            self._freed(guest, answer[3] & MASK32, cookie)

    def _freed(self, guest: int, thread: int, cookie: int) -> None:
        known = self._rpc.get((guest, cookie))
        refused = self._refused.pop((guest, thread), None)
        # A thread that got no page gives the cookie back all the same: it may be another thread's.
        if known is not None and (known[1] == thread or cookie != refused):
            del self._rpc[guest, cookie]
            self._take(guest, known[0])

    def _drained(self, guest: int, status: int, cookie: int) -> None:
        """Of fast calls that overlap, the answer of DISABLE_SHM_CACHE is the one with a known cookie."""
        running = self._fast.get(guest)
        if not running:
            return
        known = self._rpc.get((guest, cookie))
        drain = smc.OPTEE_SMC_DISABLE_SHM_CACHE
        if known is not None and status == smc.OPTEE_SMC_RETURN_OK and drain in running:
            running.remove(drain)
            del self._rpc[guest, cookie]
            self._take(guest, known[0])
        else:
            running.pop(0)

    def _take(self, guest: int, page: int) -> None:
        if self._holder.get(page) == guest:
            del self._holder[page]

    def _gone(self, event: Event) -> None:
        guest = cast("events.GuestTornDown", event).guest
        self._holder = {page: who for page, who in self._holder.items() if who != guest}
        for table in (self._calls, self._rpc, self._refused):
            for key in [key for key in table if key[0] == guest]:
                del table[key]
        self._fast.pop(guest, None)

    def finish(self, report: Report) -> None:
        """Nothing is left to see."""
