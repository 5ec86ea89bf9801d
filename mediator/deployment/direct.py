# SPDX-License-Identifier: BSD-2-Clause
"""System calls of a mediator in the hypervisor that run inline: plain calls of the host."""

from __future__ import annotations

from collections.abc import Sequence

from mediator.host import Host, Shadow


class Immediate:
    """System calls that are no switch points in any mode."""

    __slots__ = ("_host",)

    def __init__(self, host: Host) -> None:
        self._host = host

    async def free_shadow(self, shadow: Shadow) -> None:
        """See :meth:`mediator.host.Host.free_shadow`; likewise below."""
        self._host.free_shadow(shadow)

    async def map_shadow(self, pages: bytes) -> Shadow:
        return self._host.map_shadow(pages)

    async def inject_virq(self, guest: int, intid: int) -> None:
        self._host.inject_virq(guest, intid)

    async def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        self._host.park_vcpu(guest, vcpu, until)

    async def wake_vcpu(self, guest: int, vcpu: int) -> None:
        self._host.wake_vcpu(guest, vcpu)

    async def now(self) -> int:
        return self._host.now()

    async def set_timer(self, deadline: int | None) -> None:
        self._host.set_timer(deadline)

    async def quarantine(self, guest: int, answer: int) -> None:
        self._host.quarantine(guest, answer)

    async def log(self, guest: int, message: str) -> None:
        self._host.log(guest, message)


class DirectSyscalls(Immediate):
    """System calls that run inline and never suspend."""

    __slots__ = ()

    async def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        """See :meth:`mediator.host.Host.read_guest`; likewise below."""
        return self._host.read_guest(guest, ipa, length)

    async def write_guest(
        self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]
    ) -> bool:
        return self._host.write_guest(guest, ipa, segments)

    async def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        return self._host.read_page_list(guest, ipa, entries)

    async def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        return self._host.pin_pages(guest, ipas)

    async def unpin_pages(self, guest: int, frames: bytes) -> None:
        self._host.unpin_pages(guest, frames)

    async def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        return self._host.read_pinned(guest, pa, length)

    async def write_pinned(
        self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]
    ) -> None:
        self._host.write_pinned(guest, pa, segments)

    async def alloc_shadow(self, pages: int) -> Shadow | None:
        return self._host.alloc_shadow(pages)

    async def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        return self._host.smc(a0, a1, a2, a3, a4, a5, a6, a7)

    async def should_preempt(self) -> bool:
        return self._host.should_preempt()
