# SPDX-License-Identifier: BSD-2-Clause
"""The host boundary: what a hypervisor (model) must provide so that a TEE mediator can run on it.

A host implements :class:`Host` once, synchronously, and gets a working mediator. Everything a
mediator may do to the machine passes through these methods; the list *is* its privilege.

Page arrays cross this boundary as ``bytes`` of little-endian unsigned 64-bit words, the format that
guests write into page lists and the TEE reads from them (``optee_msg.h``, OPTEE_MSG_ATTR_NONCONTIG):
``struct.unpack(f"<{n}Q", words)`` reads a short one, ``numpy.frombuffer(words, "<u8")`` a long one.

Guests are small non-negative integers that the host chooses; a guest id may be used again after its
destruction is complete. Addresses are IPAs (guest view) or PAs (machine view), never mixed: the
parameter name says which.

What a method must never do: block, raise for something that a *guest* did (that is an answer, see
each method), or keep a reference to a buffer that it was handed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

PAGE_SIZE: Final = 4096
"""Bytes of a page, OPTEE_MSG_NONCONTIG_PAGE_SIZE in ``optee_msg.h``."""

PAGE_SHIFT: Final = 12
PAGE_MASK: Final = PAGE_SIZE - 1
PAGE_LIST_ENTRIES: Final = 511
"""Addresses in one page of a non-contiguous list; word 511 links to the next page (``optee_msg.h``)."""


class Shadow:
    """Pages that the mediator owns and no guest can reach.

    ``pages``: physical addresses, little-endian u64 each. ``pa``: the first of them.
    ``mem``: writable memory of all pages, one after the other, ``len(pages) // 8 * 4096`` bytes;
    the pages need not be physically adjacent. Fresh pages are zero.
    """

    __slots__ = ("mem", "pa", "pages")

    def __init__(self, pages: bytes, mem: memoryview) -> None:
        self.pages = pages
        self.mem = mem
        self.pa = int.from_bytes(pages[:8], "little")


class HostError(Exception):
    """A host broke the :class:`Host` protocol. ``call`` names the method, ``rule`` what it broke."""

    def __init__(self, call: str, rule: str) -> None:
        super().__init__(f"host.{call}: {rule}")
        self.call = call
        self.rule = rule


class Host(Protocol):
    """Services of the machine, as plain calls. All are made on behalf of one guest."""

    def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        """Copy ``length`` bytes (1..4096, inside one page) of guest memory at ``ipa``, once.

        ``None`` unless the page is RAM that the guest owns, mapped read-write *or* read-only.
        """

    def write_guest(self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]) -> bool:
        """Write ``(offset, data)`` segments into the guest page at ``ipa`` (page aligned).

        ``False``, and nothing written, unless the page is the guest's own RAM mapped read-write
        in stage 2 *now*.
        """

    def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        """Copy ``entries`` words of the page list that starts at ``ipa`` (its low 12 bits ignored).

        Follows word 511 of each list page while entries are missing, reading every page once.
        Returns the words and word 511 of the last page read (0 if ``entries`` ended before it).
        ``None`` as soon as a list page is not the guest's own read-write RAM. The walk is bounded
        by ``entries``, so a list that loops is harmless.
        """

    def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        """Translate and pin: one reference more on each listed page. All or nothing.

        ``ipas``: u64 words, low 12 bits ignored, a page may occur several times (and is then
        pinned as often). Returns the physical page addresses in the same order, or ``None`` (and
        nothing pinned) unless every page is the guest's own read-write RAM. A pinned page may
        leave the guest's stage 2, but is given to nobody else before its last pin goes.
        """

    def unpin_pages(self, guest: int, frames: bytes) -> None:
        """Release one reference on each frame, exactly as :meth:`pin_pages` returned them."""

    def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        """Copy ``length`` bytes (inside one page) at ``pa`` of a page pinned for ``guest``."""

    def write_pinned(self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]) -> None:
        """Write ``(offset, data)`` segments into the pinned page at ``pa`` (page aligned)."""

    def alloc_shadow(self, pages: int) -> Shadow | None:
        """``pages`` zeroed pages of mediator memory, or ``None`` when the host has none left."""

    def free_shadow(self, shadow: Shadow) -> None:
        """Give shadow pages back."""

    def map_shadow(self, pages: bytes) -> Shadow:
        """The shadow pages with these physical addresses again, contents and all (after a restore)."""

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        """Execute an SMC towards the secure world and return x0..x3."""

    def should_preempt(self) -> bool:
        """Whether long work should stop here and be entered again later."""

    def inject_virq(self, guest: int, intid: int) -> None:
        """Make interrupt ``intid`` pending for ``guest``."""

    def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        """Let ``vcpu`` rest after this trap: back in the guest at virtual time ``until``, or earlier.

        Earlier for an interrupt that it can take, and for :meth:`wake_vcpu`. A host may ignore
        both; its guests then ask again and again, as after any foreign interrupt.
        """

    def wake_vcpu(self, guest: int, vcpu: int) -> None:
        """End the rest of ``vcpu``, if it rests."""

    def now(self) -> int:
        """Virtual time in nanoseconds; never decreases."""

    def set_timer(self, deadline: int | None) -> None:
        """Ask for a timer entry at virtual time ``deadline`` (``None``: cancel)."""

    def quarantine(self, guest: int, answer: int) -> None:
        """The TEE answered VM_DESTROYED of ``guest`` with ``answer`` instead of OK.

        The mediator holds nothing of the guest any more, but the TEE may: the host must give
        neither the guest's pages nor its id to anyone else, and report it.
        """

    def log(self, guest: int, message: str) -> None:
        """A diagnostic for the operator. The mediator limits its rate per guest."""
