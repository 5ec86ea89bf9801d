# SPDX-License-Identifier: BSD-2-Clause
"""The machine of a replay as mediator: the reference host, with guests as they were recorded.

Recorded addresses become IPAs. RAM lies far above every IPA, so that no physical address is an IPA
of anybody, and around every page that the trace names the physical pages come in a shuffled order,
so that what is contiguous for the guest is not so for the machine.
"""

from __future__ import annotations

from typing import Final

from mediator.guest.cpu import GuestAbort
from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import DEFAULT_FIRST, DEFAULT_FRAMES, PhysicalMemory
from specs.replay.survey import SLOT_SIZE, Survey

SPARE_FRAMES: Final = 1 << 20
"""Frames beyond the guests' RAM, for the mediator's pages: 4 GiB, touched only when used."""

MAX_GUESTS_AT_ONCE: Final = 8
"""Guests whose RAM must fit at the same time; recorded builds have room for two."""


class Machine:
    """Reference host, bus of the secure world, and the view of a bystander on guest memory.

    Guests are named by their client id, which is the host's guest id plus one.
    """

    def __init__(self, facts: Survey) -> None:
        self._facts = facts
        pages = sum([size for _, size in facts.ram]) >> PAGE_SHIFT
        top = max([base + size for base, size in facts.ram]) >> PAGE_SHIFT
        self.memory = PhysicalMemory(
            frames=max(DEFAULT_FRAMES, MAX_GUESTS_AT_ONCE * pages + SPARE_FRAMES),
            first=max(DEFAULT_FIRST, top),
        )
        self.log_lines: list[str] = []
        self.host = ReferenceHost(self.memory, log=self._log)
        self.bus = SecureBus(self.memory)
        self._reverse: dict[int, dict[int, int]] = {}

    def _log(self, guest: int, message: str) -> None:
        self.log_lines.append(f"guest {guest}: {message}")

    # --- guests ---------------------------------------------------------------------------------

    def add_guest(self, client: int) -> None:
        """Give the guest with this client id its recorded RAM, all zero."""
        guest = client - 1
        self.host.add_guest(guest)
        for base, size in self._facts.ram:
            at, end = base, base + size
            while at < end:
                slot = at // SLOT_SIZE
                if slot in self._facts.slots:
                    stop = min(end, (slot + 1) * SLOT_SIZE)
                    self.host.populate(guest, at, (stop - at) >> PAGE_SHIFT, seed=slot + client)
                else:
                    following = [s for s in self._facts.slots if s > slot]
                    stop = min([end, *[s * SLOT_SIZE for s in following[:1]]])
                    self.host.populate(guest, at, (stop - at) >> PAGE_SHIFT)
                at = stop

    def has_guest(self, client: int) -> bool:
        """Whether a guest with this client id has memory."""
        return client - 1 in self.host.guests()

    def pinned(self, client: int | None = None) -> int:
        """Pins of a guest, or of all guests."""
        if client is not None:
            return self.host.pinned(client - 1)
        return sum([self.host.pinned(guest) for guest in self.host.guests()])

    @property
    def ram(self) -> tuple[int, int]:
        """First IPA and bytes of the guests' first RAM range."""
        return self._facts.ram[0]

    def to_pa(self, client: int, ipa: int) -> int | None:
        """Physical address behind an IPA, None if it is not the guest's RAM."""
        entry = self.host.stage2(client - 1).entry(ipa >> PAGE_SHIFT)
        return entry >> 3 << PAGE_SHIFT | ipa & PAGE_MASK if entry else None

    def to_ipa(self, client: int, pa: int) -> int | None:
        """The IPA behind a physical address, None if it is not this guest's."""
        table = self._reverse.get(client)
        if table is None:
            table = self._reverse[client] = {
                run.pfn + i * run.step: run.gfn + i
                for slot in self._facts.slots
                for run in self.host.stage2(client - 1).mappings(
                    slot * (SLOT_SIZE >> PAGE_SHIFT), SLOT_SIZE >> PAGE_SHIFT
                )
                for i in range(run.pages)
            }
        gfn = table.get(pa >> PAGE_SHIFT)
        return None if gfn is None else gfn << PAGE_SHIFT | pa & PAGE_MASK

    def load(self, client: int, ipa: int, length: int) -> bytes | None:
        """What the guest sees at an IPA; None if part of it is not RAM."""
        try:
            return self.host.guest_read(client - 1, ipa, length)
        except GuestAbort:
            return None

    def store(self, client: int, ipa: int, data: bytes) -> bool:
        """Write as the guest; False, and nothing written, if part of it is not RAM."""
        for page in range(ipa & ~PAGE_MASK, ipa + len(data), PAGE_SIZE):
            if self.to_pa(client, page) is None:
                return False
        self.host.guest_write(client - 1, ipa, data)
        return True

    # --- physical memory ------------------------------------------------------------------------

    def shadow_addresses(self) -> list[int]:
        """Physical addresses of the mediator's pages, ascending."""
        return self.host.shadows.pages_in_use()

    def peek(self, pa: int, length: int) -> bytes:
        """Bytes inside one physical page, without any check."""
        return self.memory.read(pa, length)

    def poke(self, pa: int, data: bytes) -> None:
        """Write inside one physical page, without any check."""
        self.memory.write(pa, data)
