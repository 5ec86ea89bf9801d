# SPDX-License-Identifier: BSD-2-Clause
"""Shared memory of the driver: private pages, registered memory, message slots.

What a real driver does (Linux ``drivers/tee/tee_shm.c``, ``drivers/tee/optee/{call,smc_abi}.c``):
every piece of shared memory is a kernel object, and the object's address is the reference (cookie)
by which the secure world knows it. Private memory is never registered; messages of REGISTER_SHM and
UNREGISTER_SHM live in it, because registering them would never end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mediator.guest.call_queue import Waiter
from mediator.guest.kernel import Kernel
from mediator.guest.memory import (
    PAGE_SIZE,
    Buffer,
    CookieAllocator,
    PageAllocator,
    page_count,
)
from smccc.constants import optee_smc as smc

PRIVATE: Final = 0
"""Adjacent kernel pages that the secure world learns of by address only."""
KERNEL: Final = 1
"""Adjacent kernel pages, registered."""
USER: Final = 2
"""Pages of a client program, registered."""
SUPPLICANT: Final = 3
"""Pages of the supplicant, made known by the answer to SHM_ALLOC."""

MESSAGE_PARAMS: Final = 6
"""Parameters that a message slot has room for (MAX_ARG_PARAM_COUNT of Linux)."""


class Shm:
    """One shared memory object, ``struct tee_shm`` of Linux.

    ``pages`` are IPAs; ``offset`` is where in the first of them the ``size`` bytes begin.
    """

    __slots__ = ("cookie", "kind", "offset", "pages", "size")

    def __init__(
        self, cookie: int, kind: int, pages: Sequence[int], offset: int, size: int
    ) -> None:
        self.cookie = cookie
        self.kind = kind
        self.pages = pages
        self.offset = offset
        self.size = size

    @property
    def ipa(self) -> int:
        """IPA of the first byte."""
        return self.pages[0] + self.offset


class ShmTable:
    """All shared memory objects of a driver, by cookie."""

    def __init__(self, pages: PageAllocator, cookies: CookieAllocator) -> None:
        self._pages = pages
        self._cookies = cookies
        self._by_cookie: dict[int, Shm] = {}

    def __len__(self) -> int:
        return len(self._by_cookie)

    def find(self, cookie: int) -> Shm | None:
        """The living object behind a cookie. (The real driver would follow any pointer.)"""
        return self._by_cookie.get(cookie)

    def add(self, kind: int, pages: Sequence[int], offset: int, size: int) -> Shm:
        """Make an object for memory that somebody else owns."""
        cookie = self._cookies.alloc()
        shm = Shm(cookie, kind, pages, offset, size)
        self._by_cookie[cookie] = shm
        return shm

    def alloc(self, kind: int, size: int) -> Shm:
        """Allocate whole adjacent kernel pages for ``size`` bytes; may raise OutOfMemory."""
        count = page_count(0, size)
        first = self._pages.alloc_run(count)
        pages = range(first, first + count * PAGE_SIZE, PAGE_SIZE)
        return self.add(kind, pages, 0, count * PAGE_SIZE)

    def free(self, shm: Shm) -> None:
        """Drop an object, and its pages if they are the driver's own."""
        del self._by_cookie[shm.cookie]
        if shm.kind in (PRIVATE, KERNEL):
            self._pages.free_run(shm.pages[0], len(shm.pages))
        self._cookies.free(shm.cookie)

    def cookies(self) -> list[int]:
        """Cookies of all living objects, oldest first."""
        return list(self._by_cookie)

    def of_buffer(self, kind: int, buffer: Buffer, size: int) -> Shm:
        """An object for ``size`` bytes from the start of ``buffer``."""
        count = page_count(buffer.offset, size)
        return self.add(kind, buffer.pages[:count], buffer.offset, size)


class Slot:
    """Room for one message and its RPC argument.

    ``request``: a0..a3 that enter the secure world with it. ``waiter``: its place among the calls
    in flight, of which no slot has two.
    """

    __slots__ = ("bit", "ipa", "page", "request", "waiter")

    def __init__(
        self, kernel: Kernel, page: SlotPage, bit: int, function: int, offset: int
    ) -> None:
        self.page = page
        self.bit = bit
        self.ipa = page.shm.ipa + offset
        self.waiter = Waiter(kernel)
        name, place = self.ipa, 0
        if function == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
            name, place = page.shm.cookie, offset
        self.request = (function, name >> 32, name & 0xFFFF_FFFF, place)


class SlotPage:
    """One page of message slots; ``free`` has a bit for each slot that is free."""

    __slots__ = ("all_free", "free", "shm", "slots")

    def __init__(
        self, kernel: Kernel, shm: Shm, function: int, count: int = 1, slot_size: int = 0
    ) -> None:
        """``function``: the SMC that takes its messages; ``slot_size`` in bytes."""
        self.shm = shm
        self.all_free = self.free = (1 << count) - 1
        self.slots = {
            1 << index: Slot(kernel, self, 1 << index, function, index * slot_size)
            for index in range(count)
        }
