# SPDX-License-Identifier: BSD-2-Clause
"""What strikes a system of the campaign, and when: deaths, pauses, interrupts, changed pages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from fuzz.campaign.cell import NOTIFICATION
from fuzz.campaign.plan import Strike
from fuzz.platform import ipa_of
from mediator.checkers.verdict import Event, Handler, Report
from mediator.guest.kernel import RESCHEDULE_SGI
from mediator.host import PAGE_SHIFT, PAGE_SIZE
from mediator.hypervisor import machine_events
from mediator.hypervisor.guest import GuestState
from mediator.hypervisor.stage2 import ABSENT, FOREIGN_RW, OWN_RO, OWN_RW
from mediator.optee import events

if TYPE_CHECKING:
    from fuzz.campaign.system import System

NEVER_RAM: Final = 0x9000_0000
"""IPA where pages that change hands appear with their new owner."""

_POINTS: Final = (
    machine_events.TrapExit,
    events.CallStarted,
    events.Forwarded,
    events.Answered,
    events.BufferTaken,
    events.BufferReleased,
    events.RpcToGuest,
    events.RpcAnswered,
    events.CallEnded,
    events.WaitBegan,
    events.WaitEnded,
    events.NotificationsTaken,
)
"""Where a strike can happen: between two steps of the mediator, or at the border of the guest."""


class Strikes:
    """Lets strikes happen at their SMC and depth; a checker, so that all others look first."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._strikes = list(reversed(system.plan.strikes))
        self._next = self._strikes[-1].at if self._strikes else -1
        self._armed: list[tuple[int, Strike]] = []
        self._smcs = 0

    def handlers(self) -> Mapping[type, Handler]:
        """Every point at which something can strike."""
        return {
            **dict.fromkeys(_POINTS, self._point),
            machine_events.TrapEnter: self._trap,
            machine_events.ProgramCrash: self._crash,
        }

    def finish(self, report: Report) -> None:
        """Nothing is left to see."""

    def _trap(self, event: Event) -> None:
        self._smcs += 1
        if self._smcs == self._next:
            self._arm()
        if self._armed:
            self._strike()

    def _point(self, event: Event) -> None:
        if self._armed:
            self._strike()

    def _crash(self, event: Event) -> None:
        crash = cast("machine_events.ProgramCrash", event)
        self._system.crashed(crash.guest, crash.text)

    def _arm(self) -> None:
        strikes = self._strikes
        while strikes and strikes[-1].at <= self._smcs:
            strike = strikes.pop()
            self._armed.append((strike.depth, strike))
        self._next = strikes[-1].at if strikes else -1

    def _strike(self) -> None:
        armed, self._armed = self._armed, []
        for depth, strike in armed:
            if depth:
                self._armed.append((depth - 1, strike))
            else:
                self._happen(strike)

    # --- what happens ----

    def _happen(self, strike: Strike) -> None:
        """Something happens, wherever the system is."""
        system = self._system
        if system.calm or not system.order:
            return
        guest = system.order[strike.guest % len(system.order)]
        kind, number = strike.kind, strike.number
        machine = system.machine
        record = machine.guest(guest)
        if kind == "spurious notification interrupt":
            machine.physical_interrupt(system.monitor.notification_intid)
            system.count(kind)
        elif record is None or record.state is not GuestState.RUNNING:
            return
        elif kind in ("death", "death and another life", "death while paused"):
            system.involved[guest] = None
            if kind == "death while paused":
                machine.pause_guest(guest)
            system.count(kind)
            machine.destroy_guest(guest)
            if kind != "death":
                machine.at(machine.now() + 1 + number % 200_000, partial(self._again, guest, 20))
        elif kind == "pause":
            machine.pause_guest(guest)
            system.count(kind)
            machine.at(machine.now() + 1 + number % 300_000, partial(self._resume, guest))
        elif kind == "spurious vIRQ":
            vcpu = number % len(record.vcpus)
            intid = (NOTIFICATION, 33, RESCHEDULE_SGI, 40, NOTIFICATION)[number // 7 % 5]
            machine.inject(guest, intid, vcpu)
            system.count(kind)
        elif kind in ("bottom half wanted", "asynchronous value", "masked value"):
            self._secure_interrupt(guest, kind, number)
        elif kind.startswith("page"):
            self._change_page(guest, kind, number)

    def _again(self, guest: int, tries: int) -> None:
        """The same id for another life, once it is free."""
        system = self._system
        cell = system.cells.get(guest)
        if system.calm or cell is None:
            return
        machine = system.machine
        if machine.state(guest) is GuestState.QUARANTINED:
            # Whoever knows better says that the TEE has let go after all.
            machine.release_quarantine(guest)
        if machine.state(guest) is None and system.create_cell(cell, guest):
            system.coverage.life("guest created again under its id")
        elif tries:
            machine.at(machine.now() + 20_000, partial(self._again, guest, tries - 1))

    def _resume(self, guest: int) -> None:
        system = self._system
        record = system.machine.guest(guest)
        if record is not None and record.paused:
            system.machine.resume_guest(guest)
            system.coverage.life("guest resumed")

    def _secure_interrupt(self, guest: int, kind: str, number: int) -> None:
        """A device of the secure world has something to say."""
        system = self._system
        world = system.platform.secure_world
        client = guest + system.plan.mediator.client_id_base
        partition = world.partition(client)
        if partition is None or not system.plan.secure_world.async_notifications:
            return
        notifications = partition.notifications
        if kind == "bottom half wanted":
            if world.notify(client, 0):
                system.count(kind)
            return
        value = notifications.allocate(64)
        if value < 0:
            notifications.free(1 + number % 63)
            return
        if kind == "masked value":
            notifications.mask(value, True)
            world.notify(client, value)
            if notifications.mask(value, False):
                system.monitor.raise_notification()
            system.count(kind)
        elif world.notify(client, value):
            system.count(kind)

    def _change_page(self, guest: int, kind: str, number: int) -> None:
        """A pinned page changes in stage 2, or one that lies about is."""
        system = self._system
        host = system.host
        pinned = sorted(host.pins(guest))
        if not pinned:
            return
        ipa = ipa_of(host.stage2(guest), pinned[number % len(pinned)])
        if ipa is None:
            return
        system.involved[guest] = None
        if kind == "page replaced":
            if not host.balloon_out(guest, ipa, 1) or not host.populate(guest, ipa, 1):
                return
        elif kind == "page given away":
            others = [other for other in system.order if other != guest and other in host.guests()]
            if not others:
                return
            taker = others[number // 64 % len(others)]
            at = NEVER_RAM + system.coverage.smcs * PAGE_SIZE
            runs = host.stage2(guest).mappings(ipa >> PAGE_SHIFT, 1)
            if (
                not runs
                or runs[0].kind < OWN_RO
                or host.stage2(taker).mappings(at >> PAGE_SHIFT, 1)
            ):
                return
            if not host.transfer(guest, ipa, taker, at):
                return
            host.populate(guest, ipa, 1)
        else:
            kinds = {
                "page taken away": ABSENT,
                "page read-only": OWN_RO,
                "page of another": FOREIGN_RW,
            }
            host.set_kind(guest, ipa, 1, kinds[kind])
            if number & 1:
                back = system.machine.now() + number % 200_000
                system.machine.at(back, partial(self._restore, guest, ipa))
        system.count(kind)

    def _restore(self, guest: int, ipa: int) -> None:
        system = self._system
        host = system.host
        if guest in host.guests():
            runs = host.stage2(guest).mappings(ipa >> PAGE_SHIFT, 1)
            if runs and host.memory.owner(runs[0].pfn) == host.record(guest).owner:
                host.set_kind(guest, ipa, 1, OWN_RW)
