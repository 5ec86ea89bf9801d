# SPDX-License-Identifier: BSD-2-Clause
"""The system calls of a mediator in the hypervisor as switch points."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from types import coroutine

from mediator.deployment.direct import Immediate
from mediator.host import Shadow


class SuspendingSyscalls(Immediate):
    """The same, but every call first offers to switch: what an explorer or a scheduler drives.

    Coroutines written as generators: the bare ``yield`` is a ``PREEMPTION_POINT`` without an
    object and a frame of its own.
    """

    __slots__ = ()

    @coroutine
    def read_guest(self, guest: int, ipa: int, length: int) -> Generator[None, None, bytes | None]:
        """See :meth:`mediator.host.Host.read_guest`; likewise below."""
        yield
        return self._host.read_guest(guest, ipa, length)

    @coroutine
    def write_guest(
        self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]
    ) -> Generator[None, None, bool]:
        yield
        return self._host.write_guest(guest, ipa, segments)

    @coroutine
    def read_page_list(
        self, guest: int, ipa: int, entries: int
    ) -> Generator[None, None, tuple[bytes, int] | None]:
        yield
        return self._host.read_page_list(guest, ipa, entries)

    @coroutine
    def pin_pages(self, guest: int, ipas: bytes) -> Generator[None, None, bytes | None]:
        yield
        return self._host.pin_pages(guest, ipas)

    @coroutine
    def unpin_pages(self, guest: int, frames: bytes) -> Generator[None, None, None]:
        yield
        self._host.unpin_pages(guest, frames)

    @coroutine
    def read_pinned(self, guest: int, pa: int, length: int) -> Generator[None, None, bytes]:
        yield
        return self._host.read_pinned(guest, pa, length)

    @coroutine
    def write_pinned(
        self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]
    ) -> Generator[None, None, None]:
        yield
        self._host.write_pinned(guest, pa, segments)

    @coroutine
    def alloc_shadow(self, pages: int) -> Generator[None, None, Shadow | None]:
        yield
        return self._host.alloc_shadow(pages)

    @coroutine
    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> Generator[None, None, tuple[int, int, int, int]]:
        yield
        return self._host.smc(a0, a1, a2, a3, a4, a5, a6, a7)

    @coroutine
    def should_preempt(self) -> Generator[None, None, bool]:
        yield
        return self._host.should_preempt()
