# SPDX-License-Identifier: BSD-2-Clause
"""The checkers of I1 to I8 for the reference machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from mediator.checkers.balance import Bounded, FetchedOnce, PinsBalance
from mediator.checkers.handed import HandedPages
from mediator.checkers.progress import Progress, Strangers, WakeUps
from mediator.checkers.secrets import NoLeak, OwnMemoryOnly
from mediator.checkers.view import ReferenceView
from mediator.checkers.watch import Watch
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.guests import GuestMemory
from mediator.hypervisor.machine import Machine
from mediator.hypervisor.memory import PhysicalMemory
from mediator.optee.lifecycle import DEFAULT_THREADS
from mediator.optee.mediator import GuestInfo
from mediator.optee.settings import MediatorSettings


class Watched(Protocol):
    """What the checkers ask of a mediator, wherever it lives."""

    @property
    def settings(self) -> MediatorSettings:
        """Its offers and limits."""

    @property
    def threads(self) -> int | None:
        """Threads that the TEE reported."""

    def guest_of(self, client: int) -> int:
        """The guest behind a client id of the TEE."""

    def client_of(self, guest: int) -> int:
        """The client id of a guest."""

    def guest_info(self, guest: int) -> GuestInfo | None:
        """Its counters of a guest."""


def standard_watch(
    watch: Watch,
    memory: PhysicalMemory,
    guests: GuestMemory,
    mediator: Watched,
    machine: Machine | None = None,
    bus: SecureBus | None = None,
) -> Watch:
    """Add all checkers to ``watch``.

    Without a machine nobody looks for vCPUs that sleep too long; without a bus nobody sees which
    pages of the mediator the TEE touches for whom.
    """
    view = ReferenceView(memory, guests)

    def asleep() -> Iterable[tuple[int, int]]:
        """vCPUs that wait although an interrupt is deliverable to them."""
        for guest, vcpu in () if machine is None else machine.waiting():
            record = None if machine is None else machine.guest(guest)
            if record is not None and record.vgic.deliverable(vcpu):
                yield guest, vcpu

    def alive(guest: int) -> bool:
        """Whether a vCPU of the guest is on."""
        record = None if machine is None else machine.guest(guest)
        return record is None or not all(vcpu.is_off for vcpu in record.vcpus)

    watch.add(NoLeak(view, watch.report))
    watch.add(OwnMemoryOnly(view, watch.report))
    handed = HandedPages(view, mediator.guest_of, watch.report)
    watch.add(handed)
    if bus is not None:
        bus.guard_shadows(handed.may)
    watch.add(PinsBalance(view, mediator.guest_info, watch.report))
    watch.add(FetchedOnce(watch.report))
    watch.add(Strangers(mediator.client_of, watch.report))
    watch.add(
        Bounded(mediator.settings.limits, lambda: mediator.threads or DEFAULT_THREADS, watch.report)
    )
    watch.add(Progress(watch.report))
    watch.add(WakeUps(asleep, watch.report, alive, mediator.guest_of))
    return watch
