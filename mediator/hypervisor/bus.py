# SPDX-License-Identifier: BSD-2-Clause
"""The bus between secure world and RAM, which enforces invariant I2 on every touch.

A partition (client) may touch pages of the mediator, which are copies made for it, and pages of *its*
guest as long as the mediator pins them. Anything else is a breach: an event, and a
:class:`secure_world.bus.BusError`. It does not matter how the secure world came by the address; if it
was handed out wrongly, the mediator is to blame, and the event shows it.

Client 0 is the hypervisor's own identity: no guest's pages, but those of the secure world itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from mediator.hypervisor.events import BusBreach, BusRefusal, Sink
from mediator.hypervisor.frames import (
    FIRST_GUEST,
    MEDIATOR,
    OWNER_SHIFT,
    PIN_MASK,
    POOL,
    SECURE,
    ZOMBIE,
)
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.pages import SMALL_LIST, numbers
from secure_world.bus import Bus, BusError

_NO_OWNER: Final = -1

# Of any access, these words of a frame are the usual ones: a shadow of the mediator, and a page that
# is pinned for its guest and mapped nowhere else (its word without references plus 1 to PIN_MASK).
_SHADOW: Final = MEDIATOR << OWNER_SHIFT
_NO_WORD: Final = -1
"""No frame has this word."""


def guest_of_client(client: int) -> int:
    """The default: client ``g + 1`` is guest ``g``."""
    return client - 1


class SecureBus:
    """Implements :class:`secure_world.bus.Bus` over ``memory``.

    ``guest_of``: guest of a client id, or a negative number for a client that is no guest.
    ``breaches`` counts what :class:`BusBreach` reports. By default every page of the mediator is one
    of the client's own; whoever knows for whom each was made says so in :meth:`guard_shadows`.
    """

    __slots__ = (
        "_end",
        "_guard",
        "_guest_of",
        "_memory",
        "_own",
        "_owners",
        "_shadow",
        "_sink",
        "_views",
        "_words",
        "breaches",
    )

    def __init__(
        self,
        memory: PhysicalMemory,
        *,
        guest_of: Callable[[int], int] = guest_of_client,
        sink: Sink | None = None,
    ) -> None:
        self._memory = memory
        self._words = memory.words
        self._views = memory.views
        self._end = memory.end
        self._guest_of = guest_of
        self._guard: Callable[[int, int], bool] | None = None
        self._shadow = _SHADOW
        self._owners: dict[int, int] = {0: SECURE}
        self._own: dict[int, int] = {}
        self._sink = sink
        self.breaches = 0

    def guard_shadows(self, may: Callable[[int, int], bool]) -> None:
        """Ask ``may(client, page number)`` before each touch of a page of the mediator.

        Such a touch takes the long way then; without a guard the short one costs nothing more.
        """
        self._guard = may
        self._shadow = _NO_WORD

    def read(self, client: int, pa: int, n: int) -> bytes:
        """``n`` bytes from physical address ``pa``; raises :class:`BusError`."""
        pfn, offset = pa >> PAGE_SHIFT, pa & PAGE_MASK
        if offset + n <= PAGE_SIZE and pfn < self._end:
            word = self._words[pfn]
            if word == self._shadow or 0 < word - self._own.get(client, word) <= PIN_MASK:
                view = self._views.get(pfn)
                if view is not None:
                    return view[offset : offset + n].tobytes()
        return self._read_pieces(self._pieces(client, pa, n, False))

    def write(self, client: int, pa: int, data: bytes) -> None:
        """Store ``data`` at physical address ``pa``; raises :class:`BusError`, then writes nothing."""
        pfn, offset, n = pa >> PAGE_SHIFT, pa & PAGE_MASK, len(data)
        if offset + n <= PAGE_SIZE and pfn < self._end:
            word = self._words[pfn]
            if word == self._shadow or 0 < word - self._own.get(client, word) <= PIN_MASK:
                view = self._views.get(pfn)
                if view is not None:
                    view[offset : offset + n] = data
                    return
        for start, size in self._pieces(client, pa, n, True):
            self._memory.write(start, data[start - pa : start - pa + size])

    def check(self, client: int, pa: int, n: int) -> bool:
        """True if ``client`` may touch ``n`` bytes at ``pa``. A refusal is reported, not a breach."""
        pfn = pa >> PAGE_SHIFT
        if (pa & PAGE_MASK) + n <= PAGE_SIZE and pfn < self._end:
            word = self._words[pfn]
            if word == self._shadow or 0 < word - self._own.get(client, word) <= PIN_MASK:
                return True
        end = pa + max(n, 1)
        for pfn in range(pa >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1):
            reason = self._objection(client, pfn)
            if reason:
                self._refuse(client, pa, n, reason)
                return False
        return True

    def check_pages(self, client: int, pages: bytes) -> bool:
        """The same for whole pages, given as little-endian u64 page addresses."""
        if len(pages) < 8 * SMALL_LIST:
            own = self._own
            for at in range(0, len(pages), 8):
                pa = int.from_bytes(pages[at : at + 8], "little")
                pfn = pa >> PAGE_SHIFT
                if not pa & PAGE_MASK and pfn < self._end:
                    word = self._words[pfn]
                    if 0 < word - own.get(client, word) <= PIN_MASK:
                        continue
                reason = "not a page" if pa & PAGE_MASK else self._objection(client, pfn)
                if reason:
                    self._refuse(client, pa, PAGE_SIZE, reason)
                    return False
            return True
        memory = self._memory
        pfns = numbers(pages)
        if int(pfns.min()) >= memory.first and int(pfns.max()) < memory.end:
            words = memory.array.take(pfns)
            owners = words >> np.int64(OWNER_SHIFT)
            pinned = (words & np.int64(PIN_MASK)) != 0
            unaligned = np.frombuffer(pages, "<u8") & np.uint64(PAGE_MASK)
            allowed = ((owners == self._owner(client)) & (pinned | (client == 0))) | (
                owners == MEDIATOR
            )
            if bool(allowed.all()) and not unaligned.any():
                guard = self._guard
                shadows = () if guard is None else pfns[owners == MEDIATOR].tolist()
                if guard is None or all(guard(client, pfn) for pfn in shadows):
                    return True
        self._refuse(client, int.from_bytes(pages[:8], "little"), len(pages) << 9, "page list")
        return False

    # -- inside -----------------------------------------------------------------------------------

    def _owner(self, client: int) -> int:
        owner = self._owners.get(client)
        if owner is None:
            guest = self._guest_of(client)
            owner = self._owners[client] = FIRST_GUEST + guest if guest >= 0 else _NO_OWNER
            if owner >= 0:
                self._own[client] = owner << OWNER_SHIFT
        return owner

    def _objection(self, client: int, pfn: int) -> str:
        """Why ``client`` may not touch the frame; empty if it may."""
        memory = self._memory
        if not memory.first <= pfn < memory.end:
            return "not RAM"
        word = memory.word(pfn)
        owner = word >> OWNER_SHIFT
        if owner == MEDIATOR:
            if self._guard is None or self._guard(client, pfn):
                return ""
            return "a page that the mediator did not hand to this client"
        if owner == self._owner(client) and (word & PIN_MASK or client == 0):
            return ""
        if owner == POOL:
            return "a page that the mediator has given back"
        if not word:
            return "a free page"
        if owner != self._owner(client):
            return f"a page of owner {owner}"
        return "a page of the guest that is not pinned" + (" (zombie)" if word & ZOMBIE else "")

    def _pieces(self, client: int, pa: int, n: int, write: bool) -> list[tuple[int, int]]:
        """``(address, length)`` page by page, all allowed; otherwise a breach."""
        pieces: list[tuple[int, int]] = []
        at, end = pa, pa + n
        while at < end:
            reason = self._objection(client, at >> PAGE_SHIFT)
            if reason:
                self.breaches += 1
                if self._sink is not None:
                    self._sink(BusBreach(client, pa, n, write, reason))
                raise BusError(at, n, write)
            size = min(end, (at | PAGE_MASK) + 1) - at
            pieces.append((at, size))
            at += size
        return pieces

    def _read_pieces(self, pieces: list[tuple[int, int]]) -> bytes:
        return b"".join([self._memory.read(start, size) for start, size in pieces])

    def _refuse(self, client: int, pa: int, n: int, reason: str) -> None:
        if self._sink is not None:
            self._sink(BusRefusal(client, pa, n, reason))


if TYPE_CHECKING:

    def _is_a_bus(bus: SecureBus) -> Bus:
        return bus
