# SPDX-License-Identifier: BSD-2-Clause
"""A whole simulated platform: memory, secure world, mediator, machine, checkers, guests.

One seed decides everything that is drawn, so that it reproduces a run byte for byte. All parts
report to one sink; the checkers of the invariants are part of it unless they are switched off.

>>> platform = Platform()
>>> from mediator.guest.guest import GuestSettings
>>> async def hello(guest):
...     async with guest.client() as client:
...         pass
>>> first = platform.add_guest(GuestSettings("hello", ram=((0x40000000, 4096),)), hello)
>>> platform.run().deadlocked
False
>>> platform.check()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import attrs

from mediator.checkers.standard import standard_watch
from mediator.checkers.watch import Watch
from mediator.deployment.choice import Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.guest.guest import Guest, GuestSettings, Main
from mediator.guest.storage import FileStore
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.charged_host import ChargedHost
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.machine import Created, Machine, Refused, RunResult
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.monitor import MachineMonitor
from mediator.hypervisor.scheduler import Chooser, Mode
from mediator.optee.settings import MediatorSettings
from mediator.scenario.seeds import derived_seed
from secure_world.fault import Fault
from secure_world.settings import SecureWorldSettings
from secure_world.ta import TaRegistry
from secure_world.world import SecureWorld

Sink = Callable[[tuple[object, ...]], None]

DEFAULT_THREADS: Final = 4
"""Threads of the simulated TEE for each guest: enough to run two vCPUs with calls to spare."""


class PlatformError(Exception):
    """The platform cannot be built or a guest cannot be created; the message says which and why."""


@attrs.frozen(kw_only=True)
class PlatformSettings:
    """What a platform is built from. ``checkers``: watch the invariants I1 to I8 (not of an app that does not
    tell what it does).
    ``charged``: the mediator's work costs virtual time and is counted per guest. ``deployment``:
    where the mediator lives.
    """

    seed: int = 0
    machine: MachineSettings = attrs.field(factory=MachineSettings)
    mediator: MediatorSettings = attrs.field(factory=MediatorSettings)
    secure_world: SecureWorldSettings = attrs.field(
        factory=lambda: SecureWorldSettings(threads=DEFAULT_THREADS)
    )
    checkers: bool = True
    charged: bool = True
    shadow_limit: int | None = None
    deployment: Deployment = attrs.field(factory=Deployment)


class _Fan:
    """Hands an event to several sinks in order."""

    __slots__ = ("_sinks",)

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = tuple(sinks)

    def __call__(self, event: tuple[object, ...]) -> None:
        for sink in self._sinks:
            sink(event)


class Platform:
    """One simulated platform. ``sinks`` get every event of all parts, in order.

    ``registry``: the trusted applications, by default all built-in ones. ``choose``: who runs
    next, instead of the seed (explorers). ``monitor``: one that interferes. ``fault``: what the
    secure world lies about.
    """

    def __init__(
        self,
        settings: PlatformSettings | None = None,
        *,
        sinks: Iterable[Sink] = (),
        registry: TaRegistry | None = None,
        choose: Chooser | None = None,
        monitor: MachineMonitor | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.settings = settings = settings or PlatformSettings()
        self.watch: Watch | None = Watch() if settings.checkers else None
        listeners: list[Sink] = [] if self.watch is None else [self.watch]
        listeners += sinks
        sink: Sink | None = None
        if listeners:
            sink = listeners[0] if len(listeners) == 1 else _Fan(listeners)
        self.sink = sink
        self.memory = PhysicalMemory()
        self.monitor = MachineMonitor() if monitor is None else monitor
        self.bus = SecureBus(self.memory, guest_of=self._guest_of, sink=sink)
        # Not one number for both: then a drawn byte of one would say something about the other's.
        secure_seed = derived_seed(settings.seed, "secure world", settings.secure_world.seed)
        self.secure_world = SecureWorld(
            self.bus,
            attrs.evolve(settings.secure_world, seed=secure_seed),
            self.monitor,
            sink,
            registry=registry,
            fault=fault,
        )
        self.host = ReferenceHost(
            self.memory,
            secure_smc=self.secure_world.smc,
            should_preempt=self.monitor.should_preempt,
            inject_virq=self.monitor.inject_virq,
            now=self.monitor.now,
            set_timer=self.monitor.set_timer,
            park_vcpu=self.monitor.park_vcpu,
            wake_vcpu=self.monitor.wake_vcpu,
            quarantine=self.monitor.quarantine,
            shadow_limit=settings.shadow_limit,
            sink=sink,
        )
        self.tee = settings.deployment.make(
            ChargedHost(self.host, self.monitor) if settings.charged else self.host,
            settings.mediator,
            sink,
            shadows=self.host.shadows,
            suspending=settings.machine.mode is not Mode.DIRECT,
            charge=self.monitor.charge_app if settings.charged else None,
            payer=self.monitor.on_account,
        )
        self.machine = Machine(
            settings.machine,
            self.host,
            self.tee,
            seed=settings.seed,
            sink=sink,
            choose=choose,
            monitor=self.monitor,
        )
        if isinstance(self.tee, El0App) and not self.tee.traces:
            # Nobody could tell what it forwards from what it should not.
            self.watch = None
        if self.watch is not None:
            standard_watch(
                self.watch, self.memory, self.host, self.tee.mediator, self.machine, self.bus
            )
        probe = self.tee.probe()
        if not probe.found:
            self.close()
            raise PlatformError(f"the secure world is not usable: {probe.reason}")
        self.guests: dict[int, Guest] = {}

    def _guest_of(self, client: int) -> int:
        return self.tee.guest_of(client)

    def close(self) -> None:
        """End the processes of the mediator, if it has any."""
        self.tee.close()

    def add_guest(
        self, settings: GuestSettings, *mains: Main, store: FileStore | None = None
    ) -> int:
        """Create a guest that runs ``mains`` once its driver is ready; its id.

        TA images of the registry are put into its supplicant unless the settings have images.
        ``PlatformError`` if the machine or the TEE refuses it.
        """
        if not settings.images:
            settings = attrs.evolve(settings, images=self.secure_world.registry.images())
        guest = Guest(settings, self.sink, store)
        guest.start(*mains)
        spec = GuestSpec(
            name=settings.name,
            programs=guest.programs,
            ram=tuple([RamExtent(ipa, pages) for ipa, pages in settings.ram]),
        )
        try:
            created = self.create(spec)
        except PlatformError:
            guest.close()
            raise
        late = self.guests.pop(created, None)
        if late is not None:
            late.close()
        self.guests[created] = guest
        return created

    def create(self, spec: GuestSpec) -> int:
        """Create a guest from programs of any kind; its id. ``PlatformError`` if it is refused."""
        result: Created | Refused = self.machine.create_guest(spec)
        if isinstance(result, Refused):
            raise PlatformError(f"guest {spec.name!r} was refused: {result.reason}")
        return result.guest

    def destroy_at(self, guest: int, when: int) -> None:
        """Destroy ``guest`` at virtual time ``when`` (ns), whatever it is doing."""
        self.machine.at(when, partial(self.machine.destroy_guest, guest))

    def run(
        self, until: Callable[[], bool] | None = None, *, max_steps: int | None = None
    ) -> RunResult:
        """Run until all is quiet, ``until`` holds or ``max_steps`` resumptions were made."""
        result = self.machine.run(until, max_steps=max_steps)
        for number, guest in self.guests.items():
            if self.machine.guest(number) is None:
                guest.close()
        return result

    def check(self) -> None:
        """Raise what went wrong: a violated invariant, or an exception in a guest's thread."""
        if self.watch is not None:
            self.watch.check()
        for guest in self.guests.values():
            guest.check()
