# SPDX-License-Identifier: BSD-2-Clause
"""A machine for tests: memory as a dictionary, a TEE that records, and a log of events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mediator.guest.cpu import GuestAbort, VcpuProgram
from mediator.host import PAGE_SIZE
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.machine import Created, Machine
from mediator.hypervisor.monitor import MachineMonitor
from mediator.hypervisor.scheduler import Chooser, Mode
from mediator.hypervisor.tee import Registers
from mediator.suspend import PREEMPTION_POINT

CALL = 0x32000004
"""A function id of the Trusted OS range."""
RAM = 0x4000_0000


class FakeMemory:
    """Memory of all guests; a page that nobody wrote reads as zeroes."""

    def __init__(self, pages: int = 1 << 20) -> None:
        self.free = pages
        self.guests: dict[int, dict[int, bytearray | None]] = {}
        self.blocked: dict[int, int] = {}

    def reusable(self, guest: int) -> bool:
        return guest not in self.guests and guest not in self.blocked

    def add_guest(self, guest: int) -> None:
        assert self.reusable(guest)
        self.guests[guest] = {}

    def populate(
        self, guest: int, ipa: int, pages: int, *, pa: int | None = None, seed: int | None = None
    ) -> bool:
        if pages > self.free:
            return False
        self.free -= pages
        for page in range(pages):
            self.guests[guest][ipa + page * PAGE_SIZE] = None
        return True

    def remove_guest(self, guest: int, *, quarantine: bool = False) -> None:
        pages = self.guests.pop(guest)
        if quarantine:
            self.blocked[guest] = len(pages)
        else:
            self.free += len(pages)

    def release_quarantine(self, guest: int) -> None:
        self.free += self.blocked.pop(guest)

    def guest_read(self, guest: int, ipa: int, length: int) -> bytes:
        page = self._page(guest, ipa, False)
        offset = ipa % PAGE_SIZE
        return bytes(page[offset : offset + length])

    def guest_write(self, guest: int, ipa: int, data: bytes) -> None:
        page = self._page(guest, ipa, True)
        offset = ipa % PAGE_SIZE
        page[offset : offset + len(data)] = data

    def _page(self, guest: int, ipa: int, write: bool) -> bytearray:
        pages = self.guests[guest]
        start = ipa - ipa % PAGE_SIZE
        if start not in pages:
            raise GuestAbort(ipa, write)
        page = pages[start]
        if page is None:
            page = pages[start] = bytearray(PAGE_SIZE)
        return page


class ScriptedTee:
    """A mediator stand-in: keeps the history of its entries and answers x0 = 0.

    ``points``: switch points in each entry. ``teardown``: how often teardown is preempted.
    ``keep``: the answer with which the TEE refuses to let go.
    """

    def __init__(self, points: int = 0, teardown: int = 0, refuse: bool = False) -> None:
        self.points = points
        self.teardown = teardown
        self.refuse = refuse
        self.keep: int | None = None
        self.monitor: MachineMonitor | None = None
        self.history: list[tuple[str, int]] = []
        self.inside: dict[int, int] = {}
        self.on_entry: Callable[[int, int, Registers], None] | None = None
        self.left: dict[int, int] = {}

    async def handle_regs(self, guest: int, vcpu: int, regs: Registers) -> Registers | None:
        assert self.inside.get(guest) is not None, "a call of a guest that the TEE does not know"
        self.inside[guest] += 1
        self.history.append(("enter", guest))
        if self.on_entry is not None:
            self.on_entry(guest, vcpu, regs)
        for _ in range(self.points):
            await PREEMPTION_POINT
        self.history.append(("leave", guest))
        self.inside[guest] -= 1
        if regs[0] & 0xFFFFFFFF != CALL:
            return None
        return (0, *regs[1:])

    async def guest_created(self, guest: int) -> bool:
        for _ in range(self.points):
            await PREEMPTION_POINT
        self.history.append(("created", guest))
        if self.refuse:
            return False
        self.inside[guest] = 0
        self.left[guest] = self.teardown
        return True

    async def guest_destroyed(self, guest: int) -> bool:
        assert self.inside[guest] == 0, "teardown while an entry of the guest is in flight"
        for _ in range(self.points):
            await PREEMPTION_POINT
        if self.left[guest]:
            self.left[guest] -= 1
            return False
        del self.inside[guest]
        self.history.append(("destroyed", guest))
        if self.keep is not None and self.monitor is not None:
            self.monitor.quarantine(guest, self.keep)
        return True


class Bench:
    """A machine with everything around it."""

    def __init__(
        self,
        *,
        mode: Mode = Mode.DIRECT,
        pcpus: int = 2,
        seed: int = 0,
        tee: ScriptedTee | None = None,
        choose: Chooser | None = None,
        pages: int = 1 << 20,
        **settings: Any,
    ) -> None:
        self.events: list[tuple[object, ...]] = []
        self.tee = tee or ScriptedTee()
        self.memory = FakeMemory(pages)
        self.monitor = MachineMonitor()
        self.tee.monitor = self.monitor
        self.machine = Machine(
            MachineSettings(mode=mode, pcpus=pcpus, **settings),
            self.memory,
            self.tee,
            seed=seed,
            sink=self.events.append,
            choose=choose,
            monitor=self.monitor,
        )

    def guest(self, *programs: VcpuProgram, **spec: Any) -> int:
        ram = (RamExtent(RAM, 16),)
        answer = self.machine.create_guest(GuestSpec("guest", programs, ram=ram, **spec))
        assert isinstance(answer, Created), answer
        return answer.guest

    def seen(self, kind: type[tuple[object, ...]]) -> list[tuple[object, ...]]:
        return [event for event in self.events if type(event) is kind]

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


def values(events: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [tuple(event) for event in events]
