# SPDX-License-Identifier: BSD-2-Clause
"""A host that charges what it does: virtual time and counts, to the guest whose trap is served.

Wraps any :class:`mediator.host.Host`. What a mediator's work costs depends on how many services it
uses, how many pages it copies and how many it pins; here is the one place that sees all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from mediator.host import PAGE_LIST_ENTRIES, Host, Shadow
from mediator.hypervisor.accounting import PAGE_COPY, PAGE_PIN, SYSCALL, WORLD_SWITCH
from mediator.hypervisor.monitor import MachineMonitor

_WORD = 8


class ChargedHost:
    """Implements :class:`mediator.host.Host` by ``host``, charging to ``monitor``'s machine."""

    __slots__ = ("_count", "_host")

    def __init__(self, host: Host, monitor: MachineMonitor) -> None:
        self._host = host
        self._count = monitor.count

    def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        """See :meth:`mediator.host.Host.read_guest`; likewise below."""
        self._count(SYSCALL)
        self._count(PAGE_COPY)
        return self._host.read_guest(guest, ipa, length)

    def write_guest(self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]) -> bool:
        self._count(SYSCALL)
        self._count(PAGE_COPY)
        return self._host.write_guest(guest, ipa, segments)

    def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        self._count(SYSCALL)
        answer = self._host.read_page_list(guest, ipa, entries)
        if answer is not None:
            self._count(PAGE_COPY, -(-entries // PAGE_LIST_ENTRIES))
        return answer

    def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        self._count(SYSCALL)
        self._count(PAGE_PIN, len(ipas) // _WORD)
        return self._host.pin_pages(guest, ipas)

    def unpin_pages(self, guest: int, frames: bytes) -> None:
        self._count(SYSCALL)
        self._count(PAGE_PIN, len(frames) // _WORD)
        self._host.unpin_pages(guest, frames)

    def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        self._count(SYSCALL)
        self._count(PAGE_COPY)
        return self._host.read_pinned(guest, pa, length)

    def write_pinned(self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]) -> None:
        self._count(SYSCALL)
        self._count(PAGE_COPY)
        self._host.write_pinned(guest, pa, segments)

    def alloc_shadow(self, pages: int) -> Shadow | None:
        self._count(SYSCALL)
        return self._host.alloc_shadow(pages)

    def free_shadow(self, shadow: Shadow) -> None:
        self._count(SYSCALL)
        self._host.free_shadow(shadow)

    def map_shadow(self, pages: bytes) -> Shadow:
        self._count(SYSCALL)
        return self._host.map_shadow(pages)

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        self._count(SYSCALL)
        self._count(WORLD_SWITCH)
        return self._host.smc(a0, a1, a2, a3, a4, a5, a6, a7)

    def should_preempt(self) -> bool:
        self._count(SYSCALL)
        return self._host.should_preempt()

    def inject_virq(self, guest: int, intid: int) -> None:
        self._count(SYSCALL)
        self._host.inject_virq(guest, intid)

    def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        self._count(SYSCALL)
        self._host.park_vcpu(guest, vcpu, until)

    def wake_vcpu(self, guest: int, vcpu: int) -> None:
        self._count(SYSCALL)
        self._host.wake_vcpu(guest, vcpu)

    def now(self) -> int:
        self._count(SYSCALL)
        return self._host.now()

    def set_timer(self, deadline: int | None) -> None:
        self._count(SYSCALL)
        self._host.set_timer(deadline)

    def quarantine(self, guest: int, answer: int) -> None:
        self._count(SYSCALL)
        self._host.quarantine(guest, answer)

    def log(self, guest: int, message: str) -> None:
        self._count(SYSCALL)
        self._host.log(guest, message)
