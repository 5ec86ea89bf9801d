# SPDX-License-Identifier: BSD-2-Clause
"""One mediator and one simulated secure world for live guests, in real time.

The same parts as in a simulated platform, but for the machine: each guest is an emulator, and its
RAM, which begins at the same address in every guest, lies in a range of its own of our physical
memory. So a translation that is missing anywhere reaches no RAM, or that of the mediator.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import attrs

from mediator.checkers.standard import standard_watch
from mediator.checkers.watch import Watch
from mediator.deployment.choice import Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.face import DONE, Preempted
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.machine_events import (
    GuestCreated,
    GuestDestroyed,
    GuestDying,
    PhysicalInterrupt,
    PsciCall,
    TrapEnter,
    TrapExit,
    TrapUndefined,
)
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.monitor import NOTIFICATION_INTID as RAISED_INTID
from mediator.hypervisor.services import NOT_SUPPORTED, ServiceSettings
from mediator.hypervisor.traps import PSCI, TEE, Dispatcher
from mediator.hypervisor.traps import UNDEFINED as UNDEFINED_TRAP
from mediator.live.image import NOTIFICATION_INTID
from mediator.live.mailbox import KERNEL_RAM, RAM_BASE
from mediator.live.monitor import LiveMonitor
from mediator.optee.settings import MediatorSettings
from secure_world.apps.rng import registry_with_rng
from secure_world.fault import Fault
from secure_world.settings import SecureWorldSettings
from secure_world.ta import TaRegistry
from secure_world.world import SecureWorld
from smccc.constants import optee_smc as smc

Sink = Callable[[tuple[object, ...]], None]
Registers8 = tuple[int, int, int, int, int, int, int, int]

_PAGE_SHIFT: Final = 12
SPAN: Final = 4 << 30
"""Physical addresses from one guest's range to the next."""
FIRST_PA: Final = 32 << 30
"""Where physical memory begins; the first span is the mediator's, no guest's IPA is in any."""
MAX_GUESTS: Final = 64
"""Guests in the life of one platform; their ranges are not used again."""
MAX_TEARDOWN_STEPS: Final = 1 << 16
"""Entries that the end of one guest or an interrupt may take; the largest legal one takes a few hundred."""


class LiveError(Exception):
    """The platform or a guest cannot be made; the message says which and why."""


@attrs.frozen(kw_only=True)
class LiveSettings:
    """What the platform is built from. ``checkers``: watch the invariants I1 to I8. ``deployment``:
    where the mediator lives; not ``pinned``, because emulators started later would be pinned, too.
    """

    seed: int = 1
    mediator: MediatorSettings = attrs.field(factory=MediatorSettings)
    secure_world: SecureWorldSettings = attrs.field(factory=lambda: SecureWorldSettings(threads=4))
    checkers: bool = True
    deployment: Deployment = attrs.field(factory=Deployment)


class Listener(Protocol):
    """Somebody who wants to know what a guest and its TEE say to each other."""

    def call(self, vcpu: int, regs: tuple[int, ...]) -> None:
        """``vcpu`` calls with x0..x7."""

    def answer(self, vcpu: int, regs: tuple[int, ...]) -> None:
        """It is answered with x0..x7."""


class Forward:
    """The call is PSCI's, which the emulator itself serves."""


class UndefinedCall:
    """The call is an undefined instruction: an exception of the guest."""


FORWARD: Final = Forward()
UNDEFINED: Final = UndefinedCall()


class LivePlatform:
    """Memory, secure world and mediator of all live guests of this process.

    ``sinks`` get every event of all parts. ``fault``: a liar in the secure world. ``inject``:
    ``(guest, intid)``, the way into a guest. The secure world's own interrupt enters the mediator as soon
    as no call of it is in progress.
    """

    def __init__(
        self,
        settings: LiveSettings | None = None,
        *,
        sinks: Iterable[Sink] = (),
        registry: TaRegistry | None = None,
        fault: Fault | None = None,
        inject: Callable[[int, int], None] | None = None,
        log: Callable[[int, str], None] | None = None,
    ) -> None:
        self.settings = settings = settings or LiveSettings()
        self.lost: Callable[[], bool] | None = None
        """Asked when the secure world raises its interrupt: whether it gets lost."""
        self.wake: Callable[[int, int], None] | None = None
        """``(guest, vCPU)``: told when a rest ends early."""
        self.rests: dict[tuple[int, int], int] = {}
        """``(guest, vCPU)`` whose call was served: until when, by the monitor's clock, it shall rest.
        Whoever serves takes it out."""
        self._inside = 0
        self._raised = False
        self.watch = Watch() if settings.checkers else None
        listeners = tuple(filter(None, (self.watch, *sinks)))
        self.sink: Sink | None = None
        if listeners:
            self.sink = listeners[0] if len(listeners) == 1 else _Fan(listeners)
        sink = self.sink
        pages = (MAX_GUESTS + 1) * SPAN >> _PAGE_SHIFT
        self.memory = PhysicalMemory(pages, FIRST_PA >> _PAGE_SHIFT)
        self.monitor = LiveMonitor()
        self.bus = SecureBus(self.memory, guest_of=self._guest_of, sink=sink)
        world = attrs.evolve(settings.secure_world, seed=settings.seed ^ settings.secure_world.seed)
        self.registry = registry if registry is not None else registry_with_rng()
        self.monitor.notify = self._raise
        self.secure_world = SecureWorld(
            self.bus, world, self.monitor, sink, registry=self.registry, fault=fault
        )
        self.host = ReferenceHost(
            self.memory,
            secure_smc=self.secure_world.smc,
            inject_virq=inject,
            now=self.monitor.now,
            park_vcpu=self._park,
            wake_vcpu=self._wake,
            log=log,
            sink=sink,
        )
        # The guests' device trees say the same.
        offers = attrs.evolve(settings.mediator, notification_virq=NOTIFICATION_INTID)
        self.tee = settings.deployment.make(self.host, offers, sink)
        self._dispatcher = Dispatcher(ServiceSettings(), self.tee)
        if isinstance(self.tee, El0App) and not self.tee.traces:
            # Nobody could tell what it forwards from what it should not.
            self.watch = None
        if self.watch is not None:
            standard_watch(self.watch, self.memory, self.host, self.tee.mediator, bus=self.bus)
        probe = self.tee.probe()
        if not probe.found:
            self.close()
            raise LiveError(f"the secure world is not usable: {probe.reason}")
        self.recordings: dict[int, Listener] = {}
        """Who is told of the calls of a guest, and of the answers."""
        self._born = 0
        self._ranges: dict[int, tuple[int, int]] = {}

    @property
    def offers_notifications(self) -> bool:
        """Whether guests are offered asynchronous notifications."""
        offered = self.settings.mediator.capabilities & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
        return bool(offered) and self.settings.secure_world.async_notifications

    def _guest_of(self, client: int) -> int:
        return self.tee.guest_of(client)

    def close(self) -> None:
        """End the processes of the mediator, if it has any."""
        self.tee.close()

    def kill_app(self) -> None:
        """Kill the process that the mediator lives in, as anything on this machine might."""
        if isinstance(self.tee, El0App):
            for isolation in self.tee.isolation:
                os.kill(isolation.pid, signal.SIGKILL)

    def add_guest(self, name: str, ram: memoryview) -> int:
        """A guest whose RAM is ``ram``; its id. :class:`LiveError` if there is no room for it.

        Its first 2 MiB (mailboxes) are not the guest's: no buffer of it can lie there.
        """
        guest = self._born
        if guest >= MAX_GUESTS:
            raise LiveError(f"guest {name!r}: one platform has room for {MAX_GUESTS} guests")
        self._born += 1
        offset = KERNEL_RAM - RAM_BASE
        pa = FIRST_PA + (guest + 1) * SPAN + offset
        self.memory.attach(pa, ram[offset:])
        self._ranges[guest] = pa, len(ram) - offset
        self.host.add_guest(guest)
        self.host.populate(guest, KERNEL_RAM, len(ram) - offset >> _PAGE_SHIFT, pa=pa)
        self._inside += 1
        try:
            taken = self.tee.create_guest(guest) == DONE
        finally:
            self._inside -= 1
        if not taken:
            self.memory.detach(*self._ranges.pop(guest))
            self.host.remove_guest(guest)
            raise LiveError(f"guest {name!r} was refused by the secure world")
        if self.sink is not None:
            self.sink(GuestCreated(guest, name, 1))
        return guest

    def remove_guest(self, guest: int) -> None:
        """The guest is gone: release everything of it."""
        if self.sink is not None:
            self.sink(GuestDying(guest))
        self._inside += 1
        try:
            for _ in range(MAX_TEARDOWN_STEPS):
                if not isinstance(self.tee.destroy_guest(guest), Preempted):
                    break
            else:
                raise LiveError(f"the mediator does not come to an end with guest {guest}")
        finally:
            self._inside -= 1
        self._take_interrupt()  # a lock that the guest held is another's now
        quarantined = self.host.record(guest).quarantined
        if not quarantined:
            self.memory.detach(*self._ranges.pop(guest))
        self.host.remove_guest(guest)
        if self.sink is not None:
            self.sink(GuestDestroyed(guest, int(quarantined)))

    def serve(
        self, guest: int, vcpu: int, regs: tuple[int, ...], hvc: bool, immediate: int
    ) -> tuple[int, ...] | Forward | UndefinedCall:
        """Answer a trap: x0..x3 and more, :data:`FORWARD` or :data:`UNDEFINED`."""
        sink = self.sink
        if sink is not None:
            sink(TrapEnter(guest, vcpu, hvc, immediate, regs))
        frame = (regs[0], regs[1], regs[2], regs[3], regs[4], regs[5], regs[6], regs[7])
        self.monitor.begin()
        route = self._dispatcher.route(guest, vcpu, frame, hvc, immediate, False)
        if route is PSCI:
            if sink is not None:
                sink(PsciCall(guest, vcpu, regs[0], "forwarded"))
            return FORWARD
        answer: tuple[int, ...]
        if route is TEE:
            listener = self.recordings.get(guest)
            if listener is not None:
                listener.call(vcpu, frame)
            self._inside += 1
            try:
                outcome = self.tee.serve(guest, vcpu, frame)
            finally:
                self._inside -= 1
            if self._raised:
                self._take_interrupt()
            answer = (NOT_SUPPORTED, *regs[1:]) if outcome is None else outcome
            if listener is not None:
                listener.answer(vcpu, answer)
        elif route is UNDEFINED_TRAP:
            if sink is not None:
                sink(TrapUndefined(guest, vcpu))
            return UNDEFINED
        else:
            answer = route
        if sink is not None:
            sink(TrapExit(guest, vcpu, not hvc, answer))
        return answer

    def _raise(self) -> None:
        """The secure world raises its interrupt, in a call or between calls."""
        if self.lost is not None and self.lost():
            return
        self._raised = True
        self._take_interrupt()

    def _take_interrupt(self) -> None:
        """Enter the mediator for the secure world's interrupt, unless it is in a call."""
        while self._raised and not self._inside:
            self._raised = False
            if self.sink is not None:
                self.sink(PhysicalInterrupt(RAISED_INTID))
            self._inside += 1
            try:
                for _ in range(MAX_TEARDOWN_STEPS):
                    if not isinstance(self.tee.notification_interrupt(), Preempted):
                        break
                else:
                    raise LiveError("the mediator does not come to an end with an interrupt")
            finally:
                self._inside -= 1

    def _park(self, guest: int, vcpu: int, until: int) -> None:
        self.rests[guest, vcpu] = until

    def _wake(self, guest: int, vcpu: int) -> None:
        if self.rests.pop((guest, vcpu), None) is None and self.wake is not None:
            self.wake(guest, vcpu)


class _Fan:
    __slots__ = ("_sinks",)

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks

    def __call__(self, event: tuple[object, ...]) -> None:
        for sink in self._sinks:
            sink(event)
