# SPDX-License-Identifier: BSD-2-Clause
"""One machine with an app: its guests, their session, and what comes between the app and its hypervisor."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

import attrs

from fuzz.containment import session
from fuzz.containment.local import Interference, LocalLauncher
from fuzz.containment.session import Diary, Part
from mediator.app.optee import OpteeApp
from mediator.deployment import app_abi as abi
from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.launch import Launcher
from mediator.deployment.el0_app.manifest import ALL_GUESTS, PER_GUEST, Manifest, optee_manifest
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, GuestState, RamExtent
from mediator.hypervisor.machine import Refused
from mediator.hypervisor.scheduler import Mode, RunEnd
from mediator.optee.events import Sink
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_smc as smc

CONTROL: Final = 0
RAM: Final = ((0x4000_0000, 2048),)
ARENA_PAGES: Final = 512
"""2 MiB: a case needs some fifty pages, and there are thousands of cases."""
TIME_SLICE: Final = 250_000
LONGEST: Final = 2_000_000_000
"""Virtual ns after which whoever still waits waits for ever: the session takes some 50 ms."""
MAX_STEPS: Final = 300_000
"""Resumptions of one part of a run."""
THREADS: Final = 6
"""Of the TEE for each guest: three calls that wait for locks, and more that go on."""
BORN: Final = 3_000_000
DIES: Final = 6_000_000
"""Virtual ns at which the guest that lives for a short time begins and ends."""

UID: Final = (smc.OPTEE_SMC_CALLS_UID, 0, 0, 0, 0, 0, 0, 0)


class Nesting(OpteeApp):
    """An app that can be entered again meanwhile, and must return last in, first out."""

    capabilities = OpteeApp.capabilities & ~abi.CAP_INTERLEAVING


class Serial(OpteeApp):
    """An app that takes one entry at a time."""

    capabilities = Nesting.capabilities & ~abi.CAP_NESTING


@attrs.frozen
class Variant:
    """A machine to be tried. ``suspending``: every system call is a switch point. ``instances``: of
    the app. ``app``: what it can. ``nested``: others are entered from inside an SMC of the app.
    ``preempted``: long work is told to stop, again and again. ``traced``: the mediator reports what it
    does; without, results go with the RETURN of a call. ``brief``: guests do little.
    """

    name: str
    suspending: bool = False
    instances: str = ALL_GUESTS
    app: type[OpteeApp] = OpteeApp
    nested: bool = False
    preempted: bool = False
    traced: bool = True
    brief: bool = False
    seed: int = 1


VARIANTS: Final = (
    Variant("one app"),
    Variant("an app per guest", instances=PER_GUEST),
    Variant("one app; nested entries", nested=True),
    Variant("one app; preempted", preempted=True),
    Variant("one app; no recorder", traced=False),
    Variant("one app; interleaved", suspending=True),
    Variant("an app per guest; interleaved", suspending=True, instances=PER_GUEST),
    Variant("one app that only nests; interleaved", suspending=True, app=Nesting),
    Variant("one serial app; interleaved", suspending=True, app=Serial),
)


BRIEF: Final = (
    Variant("one app; brief", brief=True),
    Variant("an app per guest; brief", instances=PER_GUEST, brief=True),
    Variant("one app; brief, interleaved", suspending=True, brief=True),
)
"""Machines for samples."""


@attrs.frozen(kw_only=True)
class GuestPlan:
    """One guest. ``classic``: the older call style; ``notified``: it takes notifications."""

    name: str
    number: int
    classic: bool
    notified: bool
    parts: tuple[Part, ...]
    vcpus: int = 1


GUESTS: Final = (
    GuestPlan(
        name="control",
        number=CONTROL,
        classic=False,
        notified=True,
        parts=(session.everything, session.pair),
    ),
    GuestPlan(
        name="classic",
        number=1,
        classic=True,
        notified=False,
        parts=(session.everything, session.pair),
        vcpus=2,
    ),
    GuestPlan(
        name="modern",
        number=2,
        classic=False,
        notified=True,
        parts=(session.large, session.pair),
        vcpus=2,
    ),
)
_FEW: Final = (
    attrs.evolve(GUESTS[0], parts=(session.brief,)),
    attrs.evolve(GUESTS[1], parts=(session.brief,)),
)
SHORT: Final = GuestPlan(
    name="short", number=3, classic=False, notified=False, parts=(session.everything,)
)


def guests_of(variant: Variant) -> tuple[GuestPlan, ...]:
    """The guests of a machine, without the one that lives for a short time."""
    return _FEW if variant.brief else GUESTS


class System:
    """A machine of ``variant`` and its guests. Close it.

    ``interference``: between hypervisor and app. ``sinks``: get all events. ``launcher``: starts
    processes instead. Raises :class:`~mediator.deployment.el0_app.launch.LaunchError` or
    ``PlatformError`` if there is no app, or no TEE behind it.
    """

    def __init__(
        self,
        variant: Variant,
        interference: Interference | None = None,
        sinks: Iterable[Sink] = (),
        *,
        launcher: Launcher | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self.variant = variant
        self.local = LocalLauncher(interference, variant.app, traced=variant.traced)
        if manifest is None:
            manifest = _manifest(variant.instances)
        self.platform = Platform(
            PlatformSettings(
                seed=variant.seed,
                machine=MachineSettings(
                    pcpus=2,
                    mode=Mode.INTERLEAVE if variant.suspending else Mode.DIRECT,
                    time_slice=TIME_SLICE,
                    max_guests=16,
                ),
                secure_world=SecureWorldSettings(threads=THREADS),
                deployment=Deployment(
                    EL0_APP, manifest=manifest, pinned=False, launcher=launcher or self.local
                ),
            ),
            sinks=sinks,
        )
        tee = self.platform.tee
        assert isinstance(tee, El0App)
        self.app = tee
        self.machine = self.platform.machine
        self.host = self.platform.host
        self.diaries: dict[str, list[Diary]] = {}
        self.guests: dict[int, Guest] = {}
        self.refused: list[str] = []
        self.nested = 0
        if not variant.traced:
            # Nobody tells which page is whose.
            self.platform.bus.guard_shadows(_anybodys)
        if variant.nested:
            self._nest()
        if variant.preempted:
            self.platform.monitor.preempt = _Stops()

    def close(self) -> None:
        """End what runs."""
        for guest in self.guests.values():
            guest.close()
        self.platform.close()

    # --- guests ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Create the guests; one more comes and goes while the others are at work."""
        for plan in guests_of(self.variant):
            self.create(plan)
        self.machine.at(BORN // 4 if self.variant.brief else BORN, self._bear)
        self.machine.at(
            DIES // 4 if self.variant.brief else DIES, partial(self.destroy, SHORT.number)
        )

    def _bear(self) -> None:
        self.create(attrs.evolve(SHORT, parts=(session.brief,)) if self.variant.brief else SHORT)

    def create(self, plan: GuestPlan) -> bool:
        """Create a guest; False, and it is noted, if it was refused."""
        unknown = smc.OPTEE_SMC_SEC_CAP_RPC_ARG if plan.classic else 0
        if not plan.notified:
            unknown |= smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
        settings = GuestSettings(
            plan.name,
            RAM,
            plan.vcpus,
            seed=plan.number,
            driver=DriverSettings(unknown_capabilities=unknown, renews=True),
            images=self.platform.secure_world.registry.images(),
        )
        diaries = [Diary() for _ in plan.parts]
        guest = Guest(settings, self.platform.sink)
        guest.start(
            *[
                session.program(part, diary, plan.number * 16 + index)
                for index, (part, diary) in enumerate(zip(plan.parts, diaries, strict=True))
            ]
        )
        spec = GuestSpec(
            plan.name,
            guest.programs,
            tuple([RamExtent(ipa, pages) for ipa, pages in RAM]),
            guest_id=plan.number,
        )
        if isinstance(self.machine.create_guest(spec), Refused):
            guest.close()
            self.refused.append(plan.name)
            return False
        self.guests[plan.number] = guest
        self.diaries[plan.name] = diaries
        return True

    def destroy(self, guest: int) -> None:
        """Begin the destruction of a guest that lives."""
        if self.machine.state(guest) in (GuestState.RUNNING, GuestState.SHUTDOWN):
            self.machine.destroy_guest(guest)

    # --- running --------------------------------------------------------------------------------

    def run(self) -> RunEnd:
        """Until nothing happens any more, or for far too long."""
        until = self.machine.now() + LONGEST
        result = self.machine.run(
            until_time=until, max_steps=self.machine.scheduler.steps + MAX_STEPS
        )
        return result.end

    def is_off(self, guest: int) -> bool:
        """Whether no vCPU of the guest is on."""
        record = self.machine.guest(guest)
        return record is None or all(vcpu.is_off for vcpu in record.vcpus)

    # --- entries inside entries ------------------------------------------------------------------

    def _nest(self) -> None:
        """The model of another processor traps while the first one is inside the TEE."""
        inner = self.host.secure_smc
        assert inner is not None
        deep = [False]

        def nesting(*regs: int) -> tuple[int, int, int, int]:
            answer = inner(*regs)
            self.nested += 1
            if not deep[0] and not self.nested % 3:
                deep[0] = True
                try:
                    self._another(self.nested // 3)
                finally:
                    deep[0] = False
            return answer

        self.host.secure_smc = nesting

    def _another(self, number: int) -> None:
        app = self.app
        if number % 4 == 0:
            app.notification_interrupt(self.platform.monitor.notification_intid)
        else:
            app.handle(number % 4, 0, UID)


def _anybodys(_client: int, _pfn: int) -> bool:
    return True


class _Stops:
    """Asks to stop every third time."""

    def __init__(self) -> None:
        self._times = 0

    def __call__(self) -> bool:
        self._times += 1
        return self._times % 3 == 0


def _manifest(instances: str) -> Manifest:
    """The manifest of the mediator; nobody starts its image, so nobody need hash it."""
    if instances not in _MANIFESTS:
        raise ValueError(instances)
    return _MANIFESTS[instances]


_MANIFESTS: Final[dict[str, Manifest]] = {
    instances: optee_manifest(instances=instances, arena_pages=ARENA_PAGES)
    for instances in (ALL_GUESTS, PER_GUEST)
}
