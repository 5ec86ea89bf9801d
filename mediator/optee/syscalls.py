# SPDX-License-Identifier: BSD-2-Clause
"""The system calls of a mediator: everything it may ask of the machine, numbered.

The same services as :class:`mediator.host.Host` (its docstrings hold here too), as coroutines:
a deployment decides whether a call runs inline, crosses a process boundary or a ring. The numbers
are the app ABI; 0 to 2 follow the original EL0-app proof of concept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from enum import IntEnum
from typing import Protocol

from mediator.host import Shadow


class Syscall(IntEnum):
    """Numbers of the system calls. From 21 on they exist only where an app crosses a boundary."""

    RETURN = 0
    LOG = 1
    PANIC = 2
    READ_GUEST = 3
    WRITE_GUEST = 4
    READ_PAGE_LIST = 5
    PIN_PAGES = 6
    UNPIN_PAGES = 7
    READ_PINNED = 8
    WRITE_PINNED = 9
    ALLOC_SHADOW = 10
    FREE_SHADOW = 11
    SMC = 12
    SHOULD_PREEMPT = 13
    INJECT_VIRQ = 14
    NOW = 15
    SET_TIMER = 16
    MAP_SHADOW = 17
    QUARANTINE = 18
    PARK_VCPU = 19
    WAKE_VCPU = 20
    REGISTER_HOOK = 21
    MAP_GUEST_PAGE = 22
    UNMAP_GUEST_PAGE = 23
    MAP_DEVICE = 24
    IOMMU = 25
    READ_AND_PIN = 26
    TRACE = 27
    WRITE_RESULT = 28
    PIN_LIST = 29


class Syscalls(Protocol):
    """What a deployment hands to the mediator for one entry."""

    def read_guest(self, guest: int, ipa: int, length: int) -> Awaitable[bytes | None]: ...

    def write_guest(
        self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]
    ) -> Awaitable[bool]: ...

    def read_page_list(
        self, guest: int, ipa: int, entries: int
    ) -> Awaitable[tuple[bytes, int] | None]: ...

    def pin_pages(self, guest: int, ipas: bytes) -> Awaitable[bytes | None]: ...

    def unpin_pages(self, guest: int, frames: bytes) -> Awaitable[None]: ...

    def read_pinned(self, guest: int, pa: int, length: int) -> Awaitable[bytes]: ...

    def write_pinned(
        self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]
    ) -> Awaitable[None]: ...

    def alloc_shadow(self, pages: int) -> Awaitable[Shadow | None]: ...

    def free_shadow(self, shadow: Shadow) -> Awaitable[None]: ...

    def map_shadow(self, pages: bytes) -> Awaitable[Shadow]: ...

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> Awaitable[tuple[int, int, int, int]]: ...

    def should_preempt(self) -> Awaitable[bool]: ...

    def inject_virq(self, guest: int, intid: int) -> Awaitable[None]: ...

    def park_vcpu(self, guest: int, vcpu: int, until: int) -> Awaitable[None]: ...

    def wake_vcpu(self, guest: int, vcpu: int) -> Awaitable[None]: ...

    def now(self) -> Awaitable[int]: ...

    def set_timer(self, deadline: int | None) -> Awaitable[None]: ...

    def quarantine(self, guest: int, answer: int) -> Awaitable[None]: ...

    def log(self, guest: int, message: str) -> Awaitable[None]: ...
