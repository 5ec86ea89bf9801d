# SPDX-License-Identifier: BSD-2-Clause
"""The reference host: :class:`mediator.host.Host` over real books, and the hooks of a test bench.

Everything that a mediator may do to the machine passes through here, so this is also where faults
are planted (:class:`FaultPlan`) and where another processor of the guest can strike between two looks
of the mediator (``read_hook``). What a *guest* did wrong is an answer, as the Protocol says; what the *mediator* does wrong (a reference dropped twice, an access outside the page)
raises :class:`InvariantError` and changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from mediator.host import PAGE_LIST_ENTRIES, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Host, Shadow
from mediator.hypervisor import events
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import (
    GUARD,
    HELD,
    OWNER_MASK,
    OWNER_SHIFT,
    PIN_MASK,
    PINNABLE,
    ZOMBIE,
)
from mediator.hypervisor.guests import GuestMemory, GuestRecord
from mediator.hypervisor.memory import BANK_MASK, BANK_SHIFT, PhysicalMemory
from mediator.hypervisor.pages import SMALL_LIST, addresses, numbers, pin, translate, unpin
from mediator.hypervisor.shadows import ShadowPool
from mediator.hypervisor.stage2 import KIND_MASK, KIND_SHIFT, OWN_RO, OWN_RW

SecureCall: TypeAlias = Callable[
    [int, int, int, int, int, int, int, int], tuple[int, int, int, int]
]
ReadHook: TypeAlias = Callable[[int, int, int], None]
"""Called with guest, address and length after the mediator read guest memory (no page lists)."""

REFUSABLE: Final = (
    "read_guest",
    "write_guest",
    "read_page_list",
    "pin_pages",
    "alloc_shadow",
)
"""Methods of the host boundary that a :class:`FaultPlan` can fail."""

_WORDS: Final = tuple(struct.Struct(f"<{count}Q") for count in range(SMALL_LIST))
_LINK: Final = struct.Struct("<Q")
_LIST_BYTES: Final = 8 * PAGE_LIST_ENTRIES
_UNKNOWN: Final = 0xFFFF_FFFF
"""What firmware without a TEE answers, SMCCC "unknown function" (Arm DEN 0028)."""


class FaultPlan:
    """Lets the ``nth`` call (0: the next) of a host method fail, once.

    Methods with a refusal in their contract (``pin_pages``, ``alloc_shadow``, ``read_guest``,
    ``write_guest``, ``read_page_list``) give that, or raise ``error`` if there is one.
    """

    __slots__ = ("_after", "_errors", "hits")

    def __init__(self) -> None:
        self._after: dict[str, int] = {}
        self._errors: dict[str, Exception | None] = {}
        self.hits = 0
        """Faults that came true."""

    def fail(self, call: str, nth: int = 0, error: Exception | None = None) -> None:
        """Plant a fault; a method has at most one at a time."""
        if call not in REFUSABLE:
            raise ValueError(f"{call} cannot refuse")
        self._after[call] = nth
        self._errors[call] = error

    def strikes(self, call: str) -> bool:
        """Whether this call is the one."""
        left = self._after.get(call)
        if left is None:
            return False
        if left:
            self._after[call] = left - 1
            return False
        del self._after[call]
        self.hits += 1
        error = self._errors.pop(call)
        if error is not None:
            raise error
        return True


class ReferenceHost(GuestMemory):
    """Implements :class:`mediator.host.Host`. Every hook is optional and may be set later.

    ``secure_smc``: the secure world; ``should_preempt``: the preemption policy; ``inject_virq``:
    ``(guest, intid)``; ``now`` and ``set_timer``: virtual time in ns; ``park_vcpu``: ``(guest, vcpu,
    until)``, ``wake_vcpu``: ``(guest, vcpu)``; ``quarantine``: ``(guest,
    answer)``; ``log``: ``(guest, message)``. ``shadow_limit`` caps the pages of the mediator.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        *,
        secure_smc: SecureCall | None = None,
        should_preempt: Callable[[], bool] | None = None,
        inject_virq: Callable[[int, int], None] | None = None,
        now: Callable[[], int] | None = None,
        set_timer: Callable[[int | None], None] | None = None,
        park_vcpu: Callable[[int, int, int], None] | None = None,
        wake_vcpu: Callable[[int, int], None] | None = None,
        quarantine: Callable[[int, int], None] | None = None,
        log: Callable[[int, str], None] | None = None,
        shadow_limit: int | None = None,
        refuse_pinned_changes: bool = False,
        sink: events.Sink | None = None,
    ) -> None:
        super().__init__(memory, refuse_pinned_changes=refuse_pinned_changes, sink=sink)
        self.secure_smc = secure_smc
        self.preempt_policy = should_preempt
        self.virq_sink = inject_virq
        self.clock = now
        self.timer = set_timer
        self.parker = park_vcpu
        self.waker = wake_vcpu
        self.quarantine_sink = quarantine
        self.log_sink = log
        self.read_hook: ReadHook | None = None
        self.faults: FaultPlan | None = None
        self.shadows = ShadowPool(memory, shadow_limit)

    # -- guest memory -----------------------------------------------------------------------------

    def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        """See :class:`mediator.host.Host`."""
        record = self._guests.get(guest)
        if record is None:
            raise InvariantError("read_guest", f"there is no guest {guest}")
        offset = ipa & PAGE_MASK
        if offset + length > PAGE_SIZE or length < 1:
            raise InvariantError("read_guest", f"{length} bytes at {ipa:#x} are not in one page")
        if self.faults is not None and self.faults.strikes("read_guest"):
            return None
        gfn = ipa >> PAGE_SHIFT
        entry = record.tlb.get(gfn) or record.stage2.translate(gfn)
        if entry & KIND_MASK < OWN_RO:
            return None
        view = self._views.get(entry >> KIND_SHIFT)
        if view is None:
            data = self.memory.read((entry >> KIND_SHIFT << PAGE_SHIFT) + offset, length)
        else:
            data = view[offset : offset + length].tobytes()
        if self._sink is not None:
            self._sink(events.GuestRead(guest, ipa, length))
        if self.read_hook is not None:
            self.read_hook(guest, ipa, length)
        return data

    def write_guest(self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]) -> bool:
        """See :class:`mediator.host.Host`."""
        record = self._guests.get(guest)
        if record is None or ipa & PAGE_MASK:
            raise InvariantError("write_guest", f"no guest {guest}, or {ipa:#x} is not a page")
        if self.faults is not None and self.faults.strikes("write_guest"):
            return False
        gfn = ipa >> PAGE_SHIFT
        entry = record.tlb.get(gfn) or record.stage2.translate(gfn)
        if entry & KIND_MASK != OWN_RW:
            return False
        self._store("write_guest", entry >> KIND_SHIFT, segments)
        if self._sink is not None:
            self._sink(events.GuestWritten(guest, ipa, tuple(segments)))
        return True

    def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        """See :class:`mediator.host.Host`."""
        record = self._guests.get(guest)
        if record is None or entries < 1:
            raise InvariantError("read_page_list", f"no guest {guest}, or {entries} entries")
        if self.faults is not None and self.faults.strikes("read_page_list"):
            return None
        lookup, banks = record.stage2.entry, self._banks
        parts: list[bytes] = []
        left, gfn = entries, ipa >> PAGE_SHIFT
        while True:
            entry = lookup(gfn)
            if entry & KIND_MASK != OWN_RW:
                return None
            pa = entry >> KIND_SHIFT << PAGE_SHIFT
            offset = pa & BANK_MASK
            bank = banks.get(pa >> BANK_SHIFT)
            if bank is None:
                bank = self.memory.bank(pa)
            if left < PAGE_LIST_ENTRIES:
                words = bank[offset : offset + 8 * left].tobytes()
                link = 0
                break
            words = bank[offset : offset + _LIST_BYTES].tobytes()
            (link,) = _LINK.unpack_from(bank, offset + _LIST_BYTES)
            left -= PAGE_LIST_ENTRIES
            if not left:
                break
            parts.append(words)
            gfn = link >> PAGE_SHIFT
        if parts:
            parts.append(words)
            words = b"".join(parts)
        if self._sink is not None:
            self._sink(events.PageListRead(guest, ipa, entries))
        return words, link

    # -- pins -------------------------------------------------------------------------------------

    def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        """See :class:`mediator.host.Host`."""
        record = self._record("pin_pages", guest)
        count, rest = divmod(len(ipas), 8)
        if rest:
            raise InvariantError("pin_pages", f"{len(ipas)} bytes are no list of u64 words")
        if self.faults is not None and self.faults.strikes("pin_pages"):
            return None
        if count < SMALL_LIST:
            frames = self._pin_few(record, _WORDS[count].unpack(ipas))
        else:
            pfns = translate(record.stage2, ipas)
            pinned = pfns is not None and pin(self.memory, pfns, record.own)
            frames = addresses(pfns) if pinned and pfns is not None else None
        if frames is None:
            if self._sink is not None:
                self._sink(events.PinRefused(guest, count))
            return None
        record.pinned += count
        if self._sink is not None:
            self._sink(events.PagesPinned(guest, frames))
        return frames

    def unpin_pages(self, guest: int, frames: bytes) -> None:
        """See :class:`mediator.host.Host`. Also for a guest that is gone already."""
        record = self.record(guest)
        count, rest = divmod(len(frames), 8)
        if rest:
            raise InvariantError("unpin_pages", f"{len(frames)} bytes are no list of u64 words")
        if count < SMALL_LIST:
            released = self._unpin_few(record, _WORDS[count].unpack(frames))
        else:
            released = unpin(self.memory, numbers(frames), record.own)
        if released is None:
            raise InvariantError(
                "unpin_pages", f"a frame is not pinned (so often) for guest {guest}"
            )
        record.pinned -= count
        if released and guest in self._departed:
            self._forget(record)
        if self._sink is not None:
            self._sink(events.PagesUnpinned(guest, frames))
            if released:
                self._sink(events.FramesReleased(record.owner, released))

    def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        """See :class:`mediator.host.Host`."""
        record = self._guests.get(guest) or self.record(guest)
        pfn, offset = pa >> PAGE_SHIFT, pa & PAGE_MASK
        word = self._words[pfn] if pfn < self._end else 0
        if not 0 < word - record.own <= PIN_MASK:
            self._check_pinned("read_pinned", record, pa)
        view = self._views.get(pfn)
        if view is None or offset + length > PAGE_SIZE:
            data = self.memory.read(pa, length)
        else:
            data = view[offset : offset + length].tobytes()
        if self._sink is not None:
            self._sink(events.PinnedRead(guest, pa, length))
        if self.read_hook is not None:
            self.read_hook(guest, pa, length)
        return data

    def write_pinned(self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]) -> None:
        """See :class:`mediator.host.Host`."""
        record = self._guests.get(guest) or self.record(guest)
        pfn = pa >> PAGE_SHIFT
        word = self._words[pfn] if pfn < self._end else 0
        if not 0 < word - record.own <= PIN_MASK:
            self._check_pinned("write_pinned", record, pa)
        if pa & PAGE_MASK:
            raise InvariantError("write_pinned", f"{pa:#x} is not a page")
        self._store("write_pinned", pfn, segments)
        if self._sink is not None:
            self._sink(events.PinnedWritten(guest, pa, tuple(segments)))

    # -- pages of the mediator --------------------------------------------------------------------

    def alloc_shadow(self, pages: int) -> Shadow | None:
        """See :class:`mediator.host.Host`."""
        if self.faults is not None and self.faults.strikes("alloc_shadow"):
            return None
        shadow = self.shadows.alloc(pages)
        if shadow is not None and self._sink is not None:
            self._sink(events.ShadowAllocated(shadow.pa, pages))
        return shadow

    def free_shadow(self, shadow: Shadow) -> None:
        """See :class:`mediator.host.Host`. The shadow's memory view is closed."""
        self.shadows.free(shadow)
        if self._sink is not None:
            self._sink(events.ShadowFreed(shadow.pa, len(shadow.pages) >> 3))

    def map_shadow(self, pages: bytes) -> Shadow:
        """See :class:`mediator.host.Host`."""
        return self.shadows.at(pages)

    # -- the rest of the machine --------------------------------------------------------------------

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        """See :class:`mediator.host.Host`."""
        if self.secure_smc is None:
            return _UNKNOWN, a1, a2, a3
        return self.secure_smc(a0, a1, a2, a3, a4, a5, a6, a7)

    def should_preempt(self) -> bool:
        """See :class:`mediator.host.Host`."""
        return self.preempt_policy is not None and self.preempt_policy()

    def inject_virq(self, guest: int, intid: int) -> None:
        """See :class:`mediator.host.Host`."""
        if self.virq_sink is not None:
            self.virq_sink(guest, intid)

    def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        """See :class:`mediator.host.Host`."""
        if self.parker is not None:
            self.parker(guest, vcpu, until)

    def wake_vcpu(self, guest: int, vcpu: int) -> None:
        """See :class:`mediator.host.Host`."""
        if self.waker is not None:
            self.waker(guest, vcpu)

    def now(self) -> int:
        """See :class:`mediator.host.Host`. Time stands still without a clock."""
        return 0 if self.clock is None else self.clock()

    def set_timer(self, deadline: int | None) -> None:
        """See :class:`mediator.host.Host`."""
        if self.timer is not None:
            self.timer(deadline)

    def quarantine(self, guest: int, answer: int) -> None:
        """See :class:`mediator.host.Host`: :meth:`remove_guest` will keep frames and id."""
        self.record(guest).quarantined = True
        if self.quarantine_sink is not None:
            self.quarantine_sink(guest, answer)

    def log(self, guest: int, message: str) -> None:
        """See :class:`mediator.host.Host`."""
        if self.log_sink is not None:
            self.log_sink(guest, message)

    # -- inside -----------------------------------------------------------------------------------

    def _store(self, call: str, pfn: int, segments: Sequence[tuple[int, bytes]]) -> None:
        """Write segments into a page; all or, after :class:`InvariantError`, none."""
        for offset, data in segments:
            if offset < 0 or offset + len(data) > PAGE_SIZE:
                raise InvariantError(call, f"segment at {offset} + {len(data)} leaves its page")
        view = self._views.get(pfn)
        if view is None:
            view = self.memory.view(pfn << PAGE_SHIFT)
        for offset, data in segments:
            view[offset : offset + len(data)] = data

    def _check_pinned(self, call: str, record: GuestRecord, pa: int) -> None:
        """Also true of a page that is mapped elsewhere, and of one that its guest gave up."""
        word = self.memory.word(pa >> PAGE_SHIFT)
        if word >> OWNER_SHIFT != record.owner or not word & PIN_MASK:
            raise InvariantError(call, f"{pa:#x} is not pinned for guest {record.ident}")

    def _pin_few(self, record: GuestRecord, ipas: tuple[int, ...]) -> bytes | None:
        lookup, own, words = record.stage2.entry, record.own, self._words
        frames: list[int] = []
        for ipa in ipas:
            entry = lookup(ipa >> PAGE_SHIFT)
            if entry & KIND_MASK != OWN_RW:
                break
            pfn = entry >> KIND_SHIFT
            word = words[pfn]
            if (word ^ own) & PINNABLE:
                word = self.memory.word(pfn)
                if (word ^ own) & PINNABLE:
                    break
            words[pfn] = word + 1
            frames.append(pfn << PAGE_SHIFT)
        else:
            return _WORDS[len(frames)].pack(*frames)
        for pa in frames:
            words[pa >> PAGE_SHIFT] -= 1
        return None

    def _unpin_few(self, record: GuestRecord, frames: tuple[int, ...]) -> int | None:
        memory, own, words = self.memory, record.own, self._words
        done = 0
        zombies = False
        for pa in frames:
            pfn = pa >> PAGE_SHIFT
            word = words[pfn] if memory.first <= pfn < memory.end else 0
            if (word ^ own) & (OWNER_MASK | GUARD) or not word & PIN_MASK:
                break
            words[pfn] = word - 1
            if word & ZOMBIE:
                zombies = True
            done += 1
        else:
            if zombies:
                return sum(
                    memory.reap(pa >> PAGE_SHIFT)
                    for pa in frames
                    if words[pa >> PAGE_SHIFT] & (ZOMBIE | HELD) == ZOMBIE
                )
            return 0
        for pa in frames[:done]:
            words[pa >> PAGE_SHIFT] += 1
        return None


if TYPE_CHECKING:

    def _is_a_host(host: ReferenceHost) -> Host:
        return host
