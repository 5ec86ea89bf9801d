# SPDX-License-Identifier: BSD-2-Clause
"""The one boundary through which anything under test is reached.

A *target* is a TEE mediator with just enough machine around it: guests with a memory map, a way to
make an SMC or HVC trap, and sight of what the mediator holds. The *world* is everything that the
test plays itself: the secure world, the answers to "stop here?", failing allocations and processors
that change memory meanwhile. Golden vectors, conformance cases, the fuzzer and the mutants speak to
a target only through these two protocols, so the same case runs against our deployments and
against a mediator of somebody else.

Addresses: ``ipa`` is what the guest sees, ``pa`` what the machine and the secure world see. A
target keeps the physical addresses of the map that it is given. Nothing here blocks or suspends;
``World.smc`` may call back into the target (another processor of a guest traps during the call).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Protocol

from attrs import field, frozen

PAGE_SIZE = 4096
"""Bytes of a page (OPTEE_MSG_NONCONTIG_PAGE_SIZE, ``optee_msg.h``)."""

Registers = tuple[int, int, int, int, int, int, int, int]
"""x0..x7 (or r0..r7) as unsigned integers."""


class PageKind(StrEnum):
    """What a page of a guest's stage 2 is."""

    RAM = "ram"
    READONLY = "readonly"
    FOREIGN = "foreign"
    FOREIGN_RO = "foreign_ro"
    GRANT = "grant"
    GRANT_RO = "grant_ro"
    MMIO = "mmio"
    ABSENT = "absent"

    @property
    def owned(self) -> bool:
        """Whether the page belongs to the guest that has it mapped."""
        return self in (PageKind.RAM, PageKind.READONLY)


@frozen
class Region:
    """``pages`` pages from ``ipa``; the i-th lies at ``pa + i * pa_step`` (``pa`` None: no memory)."""

    ipa: int
    pages: int
    kind: PageKind
    pa: int | None = None
    pa_step: int = PAGE_SIZE


@frozen
class GuestSpec:
    """A guest: its number, its execution state (32 or 64 bits) and its memory map."""

    number: int
    bits: int = 64
    regions: tuple[Region, ...] = ()


@frozen
class Setup:
    """What a target is built from.

    ``threads``: what the secure world reports as its thread count. ``preset``: name of the
    mediator's limits and offers. ``max_buffer_pages``: overrides that one limit of the preset.
    """

    guests: tuple[GuestSpec, ...]
    threads: int | None = None
    preset: str = "reference"
    max_buffer_pages: int | None = None


class SetupRefused(ValueError):
    """A target cannot be built as the setup says (its machine is smaller, say)."""


@frozen
class Trap:
    """A guest executed SMC or HVC. ``hvc`` picks the conduit, ``vcpu`` the processor."""

    guest: int
    regs: Registers
    hvc: bool = False
    aarch32: bool = False
    immediate: int = 0
    vcpu: int = 0


@frozen
class Outcome:
    """What a trap led to: registers, an undefined-instruction exception, or another handler.

    ``handled_by`` names the part of the hypervisor that took the call (``"psci"``); ``regs`` is
    then of no interest. With ``undefined`` the registers are the guest's own, unchanged.
    """

    regs: Registers
    undefined: bool = False
    handled_by: str | None = None


class World(Protocol):
    """What the test plays; the target calls it."""

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        """The mediator entered the secure world; the answer is x0..x3."""

    def should_preempt(self) -> bool:
        """The mediator asks whether it should stop and be called again."""

    def allocation_fails(self) -> bool:
        """The mediator is about to allocate memory: whether that is to fail."""

    def guest_memory_read(self) -> None:
        """The mediator has just copied from guest memory (page lists do not count)."""

    def guest_memory_write(self, pa: int) -> None:
        """The mediator is about to write into the guest page at ``pa`` (page aligned)."""


class Target(Protocol):
    """A mediator under test."""

    def probe(self, present: bool) -> bool:
        """Look for the secure world; True when a usable one was found.

        ``present``: whether the platform description has an OP-TEE node.
        """

    def create(self, guest: int, tee: bool) -> bool:
        """Create the guest, with or without the TEE. False when its creation was refused."""

    def destroy(self, guest: int) -> bool:
        """Tear down what the mediator has for the guest. False: preempted, call again."""

    def trap(self, trap: Trap) -> Outcome:
        """Let the guest execute its instruction."""

    def remap(self, guest: int, ipa: int, pages: int, kind: PageKind) -> None:
        """Change the kind of pages in stage 2; physical pages and contents stay."""

    def read(self, pa: int, length: int) -> bytes:
        """Physical memory, guest's or mediator's, without any check."""

    def write(self, pa: int, data: bytes) -> None:
        """Change physical memory, guest's or mediator's, without any check."""

    def pins(self, guest: int) -> Mapping[int, int]:
        """References that the mediator holds for the guest: physical page address to count."""

    def shadow(self, pa: int) -> int | None:
        """A number of the allocation that the mediator page at ``pa`` belongs to.

        None when the mediator does not own that page now. A page that goes back to the machine
        and is allocated again gets a new number.
        """

    def counters(self, guest: int) -> Mapping[str, int]:
        """Counters by name, for information; may be empty."""


TargetFactory = Callable[[Setup, World], Target]
"""Makes a fresh target for one case; raises :class:`SetupRefused` if it cannot.

``setup.threads`` None: the case probes by itself.
"""


@frozen
class PhysicalMap:
    """The memory maps of all guests of a setup, by physical page; answers who sees what where."""

    pa_of: Mapping[tuple[int, int], int] = field(repr=False)
    seen_at: Mapping[int, tuple[int, int]] = field(repr=False)
    guests: tuple[int, ...] = ()

    @classmethod
    def of(cls, guests: tuple[GuestSpec, ...]) -> PhysicalMap:
        """Index the maps of ``guests``; where two see one page, its owner gives the name."""
        pa_of: dict[tuple[int, int], int] = {}
        seen_at: dict[int, tuple[int, int]] = {}
        owned: set[int] = set()
        for guest in guests:
            for region in guest.regions:
                if region.pa is None:
                    continue
                for index in range(region.pages):
                    pa = region.pa + index * region.pa_step
                    ipa = region.ipa + index * PAGE_SIZE
                    pa_of[guest.number, ipa] = pa
                    if pa not in seen_at or (region.kind.owned and pa not in owned):
                        seen_at[pa] = (guest.number, ipa)
                    if region.kind.owned:
                        owned.add(pa)
        return cls(pa_of, seen_at, tuple(guest.number for guest in guests))

    def translate(self, guest: int, ipa: int) -> int | None:
        """The physical address behind ``ipa`` in the map (whatever stage 2 says now)."""
        page = self.pa_of.get((guest, ipa & ~(PAGE_SIZE - 1)))
        return None if page is None else page | (ipa & (PAGE_SIZE - 1))
