# SPDX-License-Identifier: BSD-2-Clause
"""The invariants judged on any target, by what it shows of itself and by memory; it changes nothing.

The checkers of :mod:`mediator.checkers` watch the events of our own platform. This one knows only
the :class:`specs.target.Target` protocol, so it judges a mediator of somebody else as well.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from attrs import frozen

from fuzz.view import Writes
from mediator.checkers.verdict import Violation
from mediator.checkers.watch import MAX_VIOLATIONS, InvariantViolated
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.page_list import ENTRIES, LINK_OFFSET, entry_count
from smccc.registers import MASK32, MASK64, pair
from smccc.wire import HEADER_SIZE, KIND_TMEM, MAX_PARAMS, PARAM_KIND, PARAM_SIZE
from specs.target import PAGE_SIZE, GuestSpec, Outcome, PhysicalMap, Registers, Target, Trap

_OFFSET: Final = PAGE_SIZE - 1
MARK_SIZE: Final = 16
"""Bytes of the mark that fills a guest's memory and that no other guest may ever see."""

TEE_OWNERS: Final = range(48, 64)
"""Owner numbers of trusted applications and trusted OSes (Arm DEN0028)."""

STATUSES: Final = frozenset((*range(8), smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION))
"""Results of ``optee_smc.h`` beside RPCs."""

DATA_IN_A0: Final = frozenset(
    (
        smc.OPTEE_SMC_CALLS_COUNT,
        smc.OPTEE_SMC_CALLS_UID,
        smc.OPTEE_SMC_CALLS_REVISION,
        smc.OPTEE_SMC_CALL_GET_OS_UUID,
        smc.OPTEE_SMC_CALL_GET_OS_REVISION,
    )
)
"""Functions without a status register."""

PHYSICAL_ADDRESS_CALLS: Final = frozenset(
    (smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG)
)


def mark(guest: int) -> bytes:
    """What fills the memory of a guest that has not been used: 16 bytes that name it."""
    return b"<guest %08d>" % guest


@frozen
class Bounds:
    """Caps of the mediator under test (I6); ``None``: not judged."""

    pages: int | None = None
    """References that it may hold for one guest."""


class Inspector:
    """Collects violations; :meth:`check` raises them. Attach the target before anything else."""

    def __init__(self, guests: tuple[GuestSpec, ...], bounds: Bounds) -> None:
        self.violations: list[Violation] = []
        self.total = 0
        self.steps = 0
        """Rules so far: the number that a violation is stamped with."""
        self._bounds = bounds
        self._map = PhysicalMap.of(guests)
        self._own: dict[int, tuple[int, ...]] = {}
        for guest in guests:
            pages = [
                region.pa + index * region.pa_step
                for region in guest.regions
                if region.kind.owned and region.pa is not None
                for index in range(region.pages)
            ]
            self._own[guest.number] = tuple(pages)
        self._own_sets = {guest: frozenset(pages) for guest, pages in self._own.items()}
        every = [page for pages in self._own.values() for page in pages]
        self._low, self._high = min(every, default=0), max(every, default=0) + PAGE_SIZE
        self._shadows: dict[int, None] = {}
        self._innocent: dict[int, None] = {}
        self._target: Target | None = None

    def attach(self, target: Target) -> None:
        """The target to look at. Fills the guests' memory with their marks."""
        self._target = target
        for guest, pages in self._own.items():
            filling = mark(guest) * (PAGE_SIZE // MARK_SIZE)
            for page in pages:
                target.write(page, filling)

    @property
    def target(self) -> Target:
        """What is looked at."""
        assert self._target is not None, "attach a target first"
        return self._target

    @property
    def map(self) -> PhysicalMap:
        """The physical memory of the guests."""
        return self._map

    def report(self, invariant: str, guest: int, what: str) -> None:
        """Note a violation."""
        self.total += 1
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(invariant, guest, what, self.steps))

    def check(self) -> None:
        """Raise :class:`~mediator.checkers.watch.InvariantViolated` if anything was noted."""
        if self.total:
            raise InvariantViolated(self.violations, self.total)

    # --- what guests know by themselves -----------------------------------------------------------

    def guest_wrote(self, writes: Writes) -> None:
        """Numbers that a guest wrote itself are no leaks when they are found there again."""
        for _, data in writes:
            words = len(data) // 8
            for word in struct.unpack_from(f"<{words}Q", data):
                self._excuse(word)

    def guest_passed(self, registers: Registers) -> None:
        """The same for what a guest had in its registers."""
        for value in (
            *registers,
            pair(registers[1], registers[2]),
            pair(registers[4], registers[5]),
        ):
            self._excuse(value)

    def _excuse(self, word: int) -> None:
        if self._low <= word < self._high or word & ~_OFFSET in self._shadows:
            self._innocent[word] = None

    # --- I2: what the secure world is handed --------------------------------------------------------

    def owns(self, guest: int, pa: int) -> bool:
        """Whether the page at ``pa`` is memory of ``guest``."""
        return pa & ~_OFFSET in self._own_sets.get(guest, frozenset())

    def is_mediators(self, pa: int) -> bool:
        """Whether the page at ``pa`` is the mediator's now; it is remembered as a secret."""
        page = pa & ~_OFFSET
        if self.target.shadow(page) is None:
            return False
        if page not in self._shadows:
            self._shadows[page] = None
            self._low, self._high = min(self._low, page), max(self._high, page + PAGE_SIZE)
        return True

    def message_handed(self, guest: int, pa: int, before: bytes = b"") -> int:
        """Judge the message at ``pa`` that the secure world is handed; its size in bytes.

        ``before``: what the secure world itself had written there; its own words are its own affair.
        """
        if not self.is_mediators(pa):
            self.report("I2", guest, f"the message at {pa:#x} is in no page of the mediator")
            return HEADER_SIZE
        start = pa & _OFFSET
        data = self.target.read(pa & ~_OFFSET, PAGE_SIZE)[start:]
        if len(data) < HEADER_SIZE:
            return HEADER_SIZE
        (count,) = struct.unpack_from("<I", data, 28)
        if count > MAX_PARAMS or HEADER_SIZE + count * PARAM_SIZE > len(data):
            return HEADER_SIZE
        for index in range(count):
            at = HEADER_SIZE + index * PARAM_SIZE
            if data[at : at + PARAM_SIZE] == before[at : at + PARAM_SIZE]:
                continue
            attr, address, size, _ = struct.unpack_from("<4Q", data, at)
            if PARAM_KIND[attr & 0xFF] == KIND_TMEM and address:
                self._buffer_handed(guest, attr, address, size)
        return HEADER_SIZE + PARAM_SIZE * int(count)

    def _buffer_handed(self, guest: int, attr: int, address: int, size: int) -> None:
        if not attr & msg.OPTEE_MSG_ATTR_NONCONTIG:
            self.report("I2", guest, f"the TEE gets the untranslated address {address:#x}")
            return
        left = entry_count(address & _OFFSET, size)
        link = address & ~_OFFSET
        pins = self.target.pins(guest)
        while left > 0:
            if not self.is_mediators(link):
                self.report("I2", guest, f"the list page {link:#x} is not the mediator's")
                return
            page = self.target.read(link, PAGE_SIZE)
            for pa in struct.unpack_from(f"<{min(left, ENTRIES)}Q", page):
                # Low bits of an entry are the guest's own; OP-TEE refuses a list that has any.
                if not self.owns(guest, pa) or not pins.get(pa & ~_OFFSET):
                    self.report(
                        "I2", guest, f"the TEE gets {pa:#x}: not pinned memory of the guest"
                    )
                    return
            left -= ENTRIES
            (link,) = struct.unpack_from("<Q", page, LINK_OFFSET)

    def page_handed(self, guest: int, pa: int) -> None:
        """Judge the page for RPC arguments that the secure world is handed."""
        if pa & _OFFSET or not self.is_mediators(pa):
            self.report("I2", guest, f"the TEE gets {pa:#x} for its RPC arguments")

    # --- I1 and defined results -----------------------------------------------------------------------

    def returned(self, trap: Trap, outcome: Outcome, *, honest: bool = True) -> None:
        """Judge the registers that a guest gets back. ``honest``: so is the secure world, whose status
        a mediator passes on as it is.
        """
        before, now = trap.regs, outcome.regs
        if len(now) != len(before) or not all(0 <= value <= MASK64 for value in now):
            self.report("I7", trap.guest, f"registers {now} are no eight 64-bit numbers")
            return
        if outcome.handled_by is not None:
            return
        if outcome.undefined:
            if now != before:
                self.report("I7", trap.guest, "an undefined instruction changed registers")
            return
        function = before[0] & MASK32
        if honest and function >> 24 & 0x3F in TEE_OWNERS and function not in DATA_IN_A0:
            status = now[0] & MASK32
            if status not in STATUSES and status >> 16 != 0xFFFF:
                self.report("I7", trap.guest, f"function {function:#x} returns {now[0]:#x}")
        if trap.aarch32:
            before = tuple_of(value & MASK32 for value in before)
        for value in (*now, pair(now[1], now[2]), pair(now[4], now[5])):
            if value not in before and self.is_secret(value):
                self.report("I1", trap.guest, f"a register holds the physical address {value:#x}")

    def is_secret(self, value: int) -> bool:
        """Whether ``value`` is a physical address of the machine that no guest came up with."""
        if value in self._innocent:
            return False
        page = value & ~_OFFSET
        if page in self._shadows or any(page in own for own in self._own_sets.values()):
            return True
        return value == value & MASK64 and page != 0 and self.target.shadow(page) is not None

    def written(self, guest: int, pa: int) -> None:
        """Judge the page that the mediator is about to write on behalf of ``guest``."""
        if not self.owns(guest, pa):
            self.report("I2", guest, f"the mediator writes {pa:#x}, which is not the guest's")

    def memory(self, guest: int) -> None:
        """Look through all memory of ``guest`` for what must not be there."""
        pages = self._own[guest]
        read = self.target.read
        image = b"".join([read(page, PAGE_SIZE) for page in pages])
        for other in self._own:
            if other != guest and mark(other) in image:
                at = image.index(mark(other))
                self.report("I1", guest, f"memory of guest {other} at {pages[at // PAGE_SIZE]:#x}")
        words = np.frombuffer(image, "<u8")
        low, high = np.uint64(self._low), np.uint64(self._high)
        for index in np.flatnonzero((words >= low) & (words < high)):
            word = int(words[index])
            if self.is_secret(word):
                where = pages[int(index) * 8 // PAGE_SIZE]
                self.report("I1", guest, f"page {where:#x} holds the physical address {word:#x}")

    # --- I3 and I6 ----------------------------------------------------------------------------------------

    def pins(
        self, guest: int, must_hold: Mapping[int, int] | None = None, rest: bool = False
    ) -> None:
        """Judge the references held for ``guest``.

        ``must_hold``: page to count that the secure world has in use; each must be pinned so often,
        and with ``rest`` (no call in flight) no more than that.
        """
        pins = self.target.pins(guest)
        for page, count in pins.items():
            if count < 1 or not self.owns(guest, page):
                self.report(
                    "I3", guest, f"{count} references on {page:#x}, not a page of the guest"
                )
        held = sum(pins.values())
        if self._bounds.pages is not None and held > self._bounds.pages:
            self.report("I6", guest, f"{held} references, the cap is {self._bounds.pages}")
        if must_hold is None:
            return
        for page, count in must_hold.items():
            if pins.get(page, 0) < count:
                self.report("I2", guest, f"the TEE uses {page:#x}, which is not pinned")
        if rest:
            for page, count in pins.items():
                if count > must_hold.get(page, 0):
                    self.report("I3", guest, f"{page:#x} is pinned at rest, the TEE let go of it")

    def gone(self, guest: int) -> None:
        """Judge what is left of a guest that was destroyed."""
        pins = self.target.pins(guest)
        if pins:
            self.report("I3", guest, f"{sum(pins.values())} references are left after destruction")


def tuple_of(values: Iterable[int]) -> Registers:
    """Eight registers from an iterable."""
    a0, a1, a2, a3, a4, a5, a6, a7 = values
    return (a0, a1, a2, a3, a4, a5, a6, a7)
