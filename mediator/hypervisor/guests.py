# SPDX-License-Identifier: BSD-2-Clause
"""Memory of the guests: what a hypervisor does with stage 2 and frames while guests run.

Give RAM, take it back (balloon), write-protect it, map pages of others, move pages between guests,
and end a guest, at any moment and whatever is pinned. The rule behind all of it (bug class 21): stage
2 changes at once; a frame with references stays alive and is given to nobody until the last one goes.

Operations are the host's own doing. A wrong one (a range that is mapped already, a page that is not
there) raises :class:`InvariantError` before anything changed. ``False`` means that the machine cannot
now: no RAM is left, or pages are pinned and the host was told to refuse such changes.
"""

from __future__ import annotations

from mediator.guest.cpu import GuestAbort
from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from mediator.hypervisor import events
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import (
    FIRST_GUEST,
    HELD,
    MAX_GUESTS,
    OUTSIDER,
    OWNER_SHIFT,
    PIN_MASK,
)
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.stage2 import (
    ABSENT,
    FOREIGN_RO,
    FOREIGN_RW,
    GRANT_RO,
    GRANT_RW,
    KIND_MASK,
    KIND_SHIFT,
    MMIO,
    OWN_RO,
    OWN_RW,
    Mapping,
    Stage2,
)


class GuestRecord:
    """What the host keeps of one guest. Plain counters; reading them costs nothing."""

    __slots__ = (
        "ident",
        "own",
        "owner",
        "pinned",
        "quarantined",
        "stage2",
        "tlb",
    )

    def __init__(self, ident: int, stage2: Stage2) -> None:
        self.ident = ident
        self.owner = FIRST_GUEST + ident
        self.own = self.owner << OWNER_SHIFT
        """The frame word of a page of this guest without references."""
        self.stage2 = stage2
        self.tlb = stage2.tlb
        self.pinned = 0
        """References that the mediator holds on pages of this guest."""
        self.quarantined = False


class GuestMemory:
    """The guests of a machine and their stage-2 tables, over one physical memory."""

    def __init__(
        self,
        memory: PhysicalMemory,
        *,
        refuse_pinned_changes: bool = False,
        sink: events.Sink | None = None,
    ) -> None:
        self.memory = memory
        self.refuse_pinned_changes = refuse_pinned_changes
        self._sink = sink
        self._guests: dict[int, GuestRecord] = {}
        self._departed: dict[int, GuestRecord] = {}  # gone, but some of their frames are alive
        self._words = memory.words
        self._banks = memory.banks
        self._views = memory.views
        self._end = memory.end

    # -- who there is ---------------------------------------------------------------------------

    def add_guest(self, guest: int) -> Stage2:
        """A new guest with nothing mapped; returns its table, which is for looking only.

        Raises :class:`InvariantError` for an id that is not :meth:`reusable`.
        """
        if not 0 <= guest < MAX_GUESTS or not self.reusable(guest):
            raise InvariantError(
                "add_guest", f"guest id {guest} is in use, or frames of it are alive"
            )
        record = self._guests[guest] = GuestRecord(guest, Stage2())
        if self._sink is not None:
            self._sink(events.GuestAdded(guest))
        return record.stage2

    def remove_guest(self, guest: int, *, quarantine: bool = False) -> events.GuestRemoved:
        """End a guest: nothing is mapped any more and its frames are free.

        Frames with references stay alive until the last goes, and the id is not reusable before.
        With ``quarantine`` (the TEE did not confirm the end) no frame is given to anybody, and the
        id stays blocked, until :meth:`release_quarantine`.
        """
        record = self._record("remove_guest", guest)
        quarantine = quarantine or record.quarantined
        for run in record.stage2.mappings():
            if run.kind < OWN_RO:
                self._drop_mappings(record, run)
        del self._guests[guest]
        record.stage2 = Stage2()
        record.tlb = record.stage2.tlb
        owned = self.memory.owned(record.owner)
        freed = held = 0
        if quarantine:
            record.quarantined = True
        else:
            freed, held = self.memory.release_owner(record.owner)
        if quarantine or self.memory.owned(record.owner):
            self._departed[guest] = record
        removed = events.GuestRemoved(guest, freed, held)
        if self._sink is not None:
            if quarantine:
                self._sink(events.GuestQuarantined(guest, owned))
            self._sink(removed)
        return removed

    def release_quarantine(self, guest: int) -> events.GuestRemoved:
        """The TEE has let go after all: free the frames as :meth:`remove_guest` would have."""
        record = self._departed.get(guest)
        if record is None or not record.quarantined:
            raise InvariantError("release_quarantine", f"guest {guest} is not in quarantine")
        record.quarantined = False
        removed = events.GuestRemoved(guest, *self.memory.release_owner(record.owner))
        self._forget(record)
        if self._sink is not None:
            self._sink(removed)
        return removed

    def reusable(self, guest: int) -> bool:
        """Whether the id may be given to a new guest: none has it and no frame remembers it."""
        return guest not in self._guests and guest not in self._departed

    def guests(self) -> list[int]:
        """Ids of the guests that live, ascending."""
        return sorted(self._guests)

    def quarantined(self) -> dict[int, int]:
        """Frames in quarantine by guest id."""
        return {
            guest: self.memory.owned(record.owner)
            for guest, record in sorted(self._departed.items())
            if record.quarantined
        }

    def record(self, guest: int) -> GuestRecord:
        """Books of a guest that lives, or of a dead one that frames remember."""
        record = self._guests.get(guest) or self._departed.get(guest)
        if record is None:
            raise InvariantError("record", f"there is no guest {guest}")
        return record

    def stage2(self, guest: int) -> Stage2:
        """Table of a guest that lives, for looking."""
        return self._record("stage2", guest).stage2

    def pins(self, guest: int) -> dict[int, int]:
        """``{pfn: references}`` that the mediator holds on pages of ``guest``, dead or alive."""
        record = self._guests.get(guest) or self._departed.get(guest)
        if record is None or not record.pinned:
            return {}
        words = self.memory.referenced(record.owner, PIN_MASK)
        return {pfn: word & PIN_MASK for pfn, word in words.items()}

    def pinned(self, guest: int) -> int:
        """All references that the mediator holds on pages of ``guest``: the sum of :meth:`pins`."""
        record = self._guests.get(guest) or self._departed.get(guest)
        return 0 if record is None else record.pinned

    # -- stage 2 ----------------------------------------------------------------------------------

    def populate(
        self,
        guest: int,
        ipa: int,
        pages: int,
        *,
        kind: int = OWN_RW,
        pa: int | None = None,
        pa_step: int = PAGE_SIZE,
        seed: int | None = None,
    ) -> bool:
        """Give the guest fresh, zeroed RAM at ``ipa``, where nothing is mapped.

        The frames: those at ``pa``, ``pa + pa_step``, …; in an order that ``seed`` fixes; or, with
        neither, the lowest that fit in as few runs as possible.
        """
        record = self._vacant("populate", guest, ipa, pages)
        memory, owner = self.memory, record.owner
        if kind < OWN_RO:
            raise InvariantError("populate", "RAM is mapped as the guest's own")
        if pa is not None:
            if (pa | pa_step) & PAGE_MASK:
                raise InvariantError("populate", f"bad address {pa:#x} or step {pa_step:#x}")
            memory.claim(owner, pa >> PAGE_SHIFT, pages, pa_step >> PAGE_SHIFT)
            record.stage2.map_range(ipa, pages, kind, pa, pa_step)
        elif seed is not None:
            pfns = memory.allocate_scattered(owner, pages, seed)
            if pfns is None:
                return False
            record.stage2.map_frames(ipa, kind, pfns)
        else:
            runs = memory.allocate(owner, pages)
            if runs is None:
                return False
            at = ipa
            for pfn, length in runs:
                record.stage2.map_range(at, length, kind, pfn << PAGE_SHIFT)
                at += length << PAGE_SHIFT
        self._note(guest, ipa, pages, kind)
        return True

    def map_other(
        self, guest: int, ipa: int, pages: int, kind: int, pa: int = 0, pa_step: int = PAGE_SIZE
    ) -> None:
        """Map pages that are not the guest's: a device, or foreign or granted RAM at ``pa``.

        Frames that nobody owns become an outsider's first. Every foreign or grant mapping keeps its
        frame alive. Nothing may be mapped at ``ipa``.
        """
        record = self._vacant("map_other", guest, ipa, pages)
        memory = self.memory
        if not ABSENT < kind < OWN_RO:
            raise InvariantError("map_other", "own RAM comes from populate")
        if (pa | pa_step) & PAGE_MASK or pa_step < PAGE_SIZE:
            raise InvariantError("map_other", f"bad address {pa:#x} or step {pa_step:#x}")
        if kind == MMIO:
            if memory.overlaps(pa, pages << PAGE_SHIFT):
                raise InvariantError("map_other", f"there is RAM at {pa:#x}, not a device")
        else:
            pfns = range(
                pa >> PAGE_SHIFT, (pa + pages * pa_step) >> PAGE_SHIFT, pa_step >> PAGE_SHIFT
            )
            if not all(memory.mappable(pfn) and memory.owner(pfn) != record.owner for pfn in pfns):
                raise InvariantError("map_other", f"a frame from {pa:#x} on cannot be mapped here")
            for pfn in pfns:
                if not memory.word(pfn):
                    memory.claim(OUTSIDER, pfn)
                memory.add_mapping(pfn)
        record.stage2.map_range(ipa, pages, kind, pa, pa_step)
        self._note(guest, ipa, pages, kind)

    def share(
        self,
        guest: int,
        ipa: int,
        pages: int,
        source: int,
        source_ipa: int,
        *,
        writable: bool = False,
        grant: bool = False,
    ) -> None:
        """Map RAM of guest ``source`` into ``guest``, as foreign pages or as granted ones."""
        self._vacant("share", guest, ipa, pages)
        runs = self._own_runs("share", source, source_ipa, pages)
        if grant:
            kind = GRANT_RW if writable else GRANT_RO
        else:
            kind = FOREIGN_RW if writable else FOREIGN_RO
        for run in runs:
            at = ipa + (run.gfn << PAGE_SHIFT) - source_ipa
            self.map_other(
                guest, at, run.pages, kind, run.pfn << PAGE_SHIFT, run.step << PAGE_SHIFT
            )

    def set_kind(self, guest: int, ipa: int, pages: int, kind: int) -> bool:
        """Change how stage 2 presents mapped pages; each keeps its frame, owner and content.

        Also to ``ABSENT``: the frame stays the guest's and comes back with the next change.
        """
        record = self._record("set_kind", guest)
        runs = record.stage2.mappings(ipa >> PAGE_SHIFT, pages)
        if kind >= OWN_RO and not all(self._owns(record, run) for run in runs):
            raise InvariantError("set_kind", f"pages at {ipa:#x} are not all the guest's")
        if self.refuse_pinned_changes and self._any_pinned(runs):
            return False
        record.stage2.remap(ipa, pages, kind)
        self._note(guest, ipa, pages, kind)
        return True

    def balloon_out(self, guest: int, ipa: int, pages: int) -> bool:
        """Unmap pages, whatever they are, and take frames that are the guest's from it."""
        record = self._record("balloon_out", guest)
        runs = record.stage2.mappings(ipa >> PAGE_SHIFT, pages)
        if self.refuse_pinned_changes and self._any_pinned(runs):
            return False
        record.stage2.unmap(ipa, pages)
        for run in runs:
            if run.kind >= OWN_RO:
                self.memory.release(record.owner, run.pfn, run.pages, run.step)
            else:
                self._drop_mappings(record, run, release_own=True)
        self._note(guest, ipa, pages, ABSENT)
        return True

    def transfer(
        self, guest: int, ipa: int, receiver: int, receiver_ipa: int, pages: int = 1
    ) -> bool:
        """Move RAM with its contents from one guest to another, where it appears read-write.

        A page with references leaves a zombie behind and the receiver gets a copy as of now.
        """
        runs = self._own_runs("transfer", guest, ipa, pages)
        giver = self._guests[guest]
        taker = self._vacant("transfer", receiver, receiver_ipa, pages)
        memory = self.memory
        pfns = [run.pfn + index * run.step for run in runs for index in range(run.pages)]
        copies = sum(memory.is_referenced(pfn) for pfn in pfns)
        if copies > memory.free_frames or (self.refuse_pinned_changes and self._any_pinned(runs)):
            return False
        giver.stage2.unmap(ipa, pages)
        at = receiver_ipa
        for pfn in pfns:
            target = memory.transfer(pfn, taker.owner)
            if target is None:
                raise InvariantError("transfer", "RAM ran out although there was enough")
            taker.stage2.map_range(at, 1, OWN_RW, target << PAGE_SHIFT)
            at += PAGE_SIZE
        if self._sink is not None:
            self._sink(events.PagesTransferred(guest, receiver, pages, copies))
        self._note(guest, ipa, pages, ABSENT)
        self._note(receiver, receiver_ipa, pages, OWN_RW)
        return True

    # -- accesses of the guest itself -------------------------------------------------------------

    def guest_read(self, guest: int, ipa: int, length: int) -> bytes:
        """What a load of the guest's own vCPU gives; pages may be crossed.

        Raises :class:`mediator.guest.cpu.GuestAbort` at the first page that it may not read.
        """
        record = self._guests.get(guest)
        if record is None:
            raise InvariantError("guest_read", f"there is no guest {guest}")
        offset = ipa & PAGE_MASK
        if offset + length > PAGE_SIZE:
            return self._guest_read_pages(guest, ipa, length)
        gfn = ipa >> PAGE_SHIFT
        entry = record.tlb.get(gfn) or record.stage2.translate(gfn)
        if entry & KIND_MASK < GRANT_RO:
            raise GuestAbort(ipa, False)
        view = self._views.get(entry >> KIND_SHIFT)
        if view is None:
            return self.memory.read((entry >> KIND_SHIFT << PAGE_SHIFT) + offset, length)
        return view[offset : offset + length].tobytes()

    def _guest_read_pages(self, guest: int, ipa: int, length: int) -> bytes:
        pieces = _pieces(ipa, length)
        return b"".join([self.guest_read(guest, start, size) for start, size in pieces])

    def guest_write(self, guest: int, ipa: int, data: bytes) -> None:
        """What a store of the guest's own vCPU does; pages may be crossed.

        Raises :class:`mediator.guest.cpu.GuestAbort` at the first page that it may not write; the
        pages before it are written then.
        """
        record = self._guests.get(guest)
        if record is None:
            raise InvariantError("guest_write", f"there is no guest {guest}")
        offset, length = ipa & PAGE_MASK, len(data)
        if offset + length > PAGE_SIZE:
            for start, size in _pieces(ipa, length):
                self.guest_write(guest, start, data[start - ipa : start - ipa + size])
            return
        gfn = ipa >> PAGE_SHIFT
        entry = record.tlb.get(gfn) or record.stage2.translate(gfn)
        if not entry & 1 or entry & KIND_MASK == MMIO:
            raise GuestAbort(ipa, True)
        view = self._views.get(entry >> KIND_SHIFT)
        if view is None:
            view = self.memory.view(entry >> KIND_SHIFT << PAGE_SHIFT)
        view[offset : offset + length] = data

    # -- inside -----------------------------------------------------------------------------------

    def _record(self, call: str, guest: int) -> GuestRecord:
        record = self._guests.get(guest)
        if record is None:
            raise InvariantError(call, f"there is no guest {guest}")
        return record

    def _vacant(self, call: str, guest: int, ipa: int, pages: int) -> GuestRecord:
        record = self._record(call, guest)
        Stage2.check_range(call, ipa, pages)
        if record.stage2.mappings(ipa >> PAGE_SHIFT, pages):
            raise InvariantError(call, f"something is mapped in {pages} pages from {ipa:#x} on")
        return record

    def _own_runs(self, call: str, guest: int, ipa: int, pages: int) -> list[Mapping]:
        runs = self._record(call, guest).stage2.mappings(ipa >> PAGE_SHIFT, pages)
        if sum(run.pages for run in runs if run.kind >= OWN_RO) != pages:
            raise InvariantError(call, f"{pages} pages at {ipa:#x} are not all guest {guest}'s RAM")
        return runs

    def _owns(self, record: GuestRecord, run: Mapping) -> bool:
        return run.kind >= OWN_RO or all(
            self.memory.owner(pfn) == record.owner for pfn in _frames(run)
        )

    def _any_pinned(self, runs: list[Mapping]) -> bool:
        memory = self.memory
        return any(memory.word(pfn) & HELD for run in runs for pfn in _frames(run))

    def _drop_mappings(
        self, record: GuestRecord, run: Mapping, *, release_own: bool = False
    ) -> None:
        """Give up pages that stage 2 does not present as own: foreign ones, or own ones in disguise."""
        memory = self.memory
        for pfn in _frames(run):
            owner = memory.owner(pfn)
            if owner == record.owner:
                if release_own:
                    memory.release(record.owner, pfn)
            elif owner:
                memory.drop_mapping(pfn)
                self._forget_owner(owner)

    def _forget_owner(self, owner: int) -> None:
        record = self._departed.get(owner - FIRST_GUEST)
        if record is not None:
            self._forget(record)

    def _forget(self, record: GuestRecord) -> None:
        """Make the id of a dead guest reusable if no frame remembers it any more."""
        if not record.quarantined and not self.memory.owned(record.owner):
            del self._departed[record.ident]

    def _note(self, guest: int, ipa: int, pages: int, kind: int) -> None:
        if self._sink is not None:
            self._sink(events.Stage2Changed(guest, ipa, pages, kind))


def _frames(run: Mapping) -> range:
    if run.step == 0:
        return range(run.pfn, run.pfn + 1)
    return range(run.pfn, run.pfn + run.pages * run.step, run.step)


def _pieces(ipa: int, length: int) -> list[tuple[int, int]]:
    """``(address, length)`` of the pages that a range crosses."""
    end = ipa + length
    pieces: list[tuple[int, int]] = []
    while ipa < end:
        size = min(end, (ipa | PAGE_MASK) + 1) - ipa
        pieces.append((ipa, size))
        ipa += size
    return pieces
