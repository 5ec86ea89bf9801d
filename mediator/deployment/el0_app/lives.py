# SPDX-License-Identifier: BSD-2-Clause
"""The lives of apps, and of the guests that they serve: who is started, who is lost, who is buried."""

from __future__ import annotations

import contextlib
from collections.abc import MutableMapping
from types import TracebackType
from typing import Final, Self, cast

from mediator.deployment import app_abi as abi
from mediator.deployment.el0_app import plain
from mediator.deployment.el0_app.channel import AppGone
from mediator.deployment.el0_app.entrance import Entrance
from mediator.deployment.el0_app.events import AppStarted
from mediator.deployment.el0_app.fleet import Fleet
from mediator.deployment.el0_app.grants import NO_GUEST, Grant, Usage, usage, used
from mediator.deployment.el0_app.instance import (
    Charge,
    Instance,
    Payer,
    whoever,
)
from mediator.deployment.el0_app.iommu import Iommu
from mediator.deployment.el0_app.launch import Isolation, Launcher, LaunchError, launch
from mediator.deployment.el0_app.manifest import PER_GUEST, Manifest, optee_manifest
from mediator.deployment.el0_app.pool import AppPool
from mediator.deployment.el0_app.server import (
    SecureCall,
    Server,
    SharedShadows,
    Sink,
)
from mediator.deployment.el0_app.supervisor import Supervisor
from mediator.deployment.el0_app.windows import Windows
from mediator.deployment.face import (
    MASK32,
    Face,
)
from mediator.host import Host
from mediator.optee.settings import MediatorSettings

CONTROL_DOMAIN: Final = 0
"""The guest that cannot be made anew, if the caller does not say."""


class Lives(Face):
    """Apps and guests, from their beginning to their end; what is served is for who inherits this.

    The arguments are those of :class:`~.deployment.El0App`.
    """

    def __init__(
        self,
        host: Host,
        settings: MediatorSettings | None = None,
        sink: Sink | None = None,
        *,
        manifest: Manifest | None = None,
        shadows: SharedShadows | None = None,
        suspending: bool = False,
        control: int | None = CONTROL_DOMAIN,
        require_isolation: bool = False,
        pinned: bool = True,
        charge: Charge | None = None,
        payer: Payer = whoever,
        devices: MutableMapping[int, bytearray] | None = None,
        pool: AppPool | None = None,
        launcher: Launcher = launch,
        secure_call: SecureCall | None = None,
    ) -> None:
        super().__init__()
        self.host = host
        self.settings = settings or MediatorSettings()
        self.manifest = manifest or optee_manifest()
        self.iommu = Iommu()
        self.threads: int | None = None
        self._sink = sink
        self._shadows = shadows if shadows is not None else _shadows_of(host)
        self._suspending = suspending
        self._charge = charge
        self._payer = payer
        self._devices = {} if devices is None else devices
        offers = 0 if suspending else abi.OFFER_POSTING | abi.OFFER_FUSED
        if sink is not None:
            offers |= abi.OFFER_TRACE
        self._apps = 0
        self._own = Grant(NO_GUEST, 0)
        self._grants: dict[int, Grant] = {}
        self._homes: dict[int, Instance] = {}
        self._past = Usage(0, 0, 0, 0, 0, 0, 0)
        self._timers: dict[int, int] = {}
        self._expired: dict[int, None] = {}
        self._spare: Instance | None = None
        self._supervisor = Supervisor(
            host, self._shadows, self.iommu, self, self._grants, control, sink, payer
        )
        self._fleet = Fleet(
            self.manifest,
            plain.settings(self.settings),
            offers,
            self._shadows,
            launcher,
            pinned=pinned,
            require_isolation=require_isolation,
            pool=pool,
        )
        self._entrance = Entrance(self._own, self._fleet.runs, self._died, self._bury, secure_call)
        try:
            self._spare = self.start()
        except BaseException:
            self.close()
            raise

    # --- the process ----------------------------------------------------------------------------

    def start(self) -> Instance:
        """Start an app and let it register its hooks."""
        sink = self._sink
        number = self._apps
        self._apps += 1
        process, arena, source, used = self._fleet.obtain(number)
        windows = Windows(arena.view, self.host, self._devices)
        grants: dict[int, Grant] = {}
        server = Server(
            number,
            self.host,
            self._shadows,
            source,
            self.manifest,
            grants,
            windows,
            self.iommu,
            lambda deadline: self._set_timer(number, deadline),
            sink,
        )
        instance = Instance(
            number, process.link, process.capabilities, server, grants, windows, self._charge
        )
        # Where other actors may run before each system call, and where a recorder is to see each one,
        # nothing is read before it is asked for.
        if not self._suspending and sink is None:
            instance.reads_ahead = bool(process.capabilities & abi.CAP_READ_AHEAD)
        self._supervisor.sources[number] = source
        if sink is not None:
            missing = ",".join(process.isolation.missing)
            sink(AppStarted(number, self.manifest.name, missing))
        mode = abi.INIT_START if self.threads is None else abi.INIT_KNOWN
        try:
            if used:
                self._run(
                    self._entrance.initialise(
                        instance, plain.settings(self.settings), abi.INIT_RESET
                    )
                )
            answer = self._run(self._entrance.initialise(instance, b"", mode, self.threads or 0))
            if answer.status != abi.OUTCOME_DONE:
                raise AppGone("it refused to begin")
            if not server.hooks:
                raise AppGone("protocol: it wants to be entered for nothing")
        except AppGone as error:
            # Not yet known to anybody: no guest is lost with it.
            self._died(instance, NO_GUEST, str(error))
            self._bury_one(instance)
            raise LaunchError(f"app {self.manifest.name!r}: {error}") from error
        return instance

    def _end_process(self, instance: Instance) -> None:
        self._fleet.end(instance.app)
        self._forget_timer(instance.app)

    def _retire(self, instance: Instance) -> None:
        self._fleet.retire(instance.app)
        self._forget_timer(instance.app)

    def _forget_timer(self, app: int) -> None:
        self._expired.pop(app, None)
        if app in self._timers:
            self._set_timer(app, None)

    def close(self) -> None:
        """End all apps. What they held of guests is not given back: the host ends too."""
        spare = self._spare
        if spare is not None and not spare.dead and not spare.open:
            self._fleet.keep(spare.app)
        self._fleet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.close()

    @property
    def guests(self) -> tuple[int, ...]:
        """Ids of the guests that an app knows, in order of creation."""
        return tuple([guest for guest, grant in self._grants.items() if not grant.lost])

    @property
    def isolation(self) -> tuple[Isolation, ...]:
        """What each running app's process was seen to be."""
        return self._fleet.isolation

    def process_of(self, guest: int) -> int:
        """The process that serves a guest. ``KeyError``: none does."""
        return self._fleet.pid(self._homes[guest].app)

    @property
    def traces(self) -> bool:
        """Whether the apps tell a sink what they do: checkers that follow a mediator's events need it."""
        return all(instance.capabilities & abi.CAP_TRACE for instance in self._instances())

    @property
    def deaths(self) -> int:
        """Apps that died."""
        return self._supervisor.deaths

    @property
    def lost(self) -> tuple[int, ...]:
        """Guests whose state was lost and that were not made anew."""
        return tuple(guest for guest, grant in self._grants.items() if grant.lost)

    def guest_of(self, client: int) -> int:
        """The guest behind a client id of the TEE."""
        renewed = self._supervisor.guest_of(client)
        return client - self.settings.client_id_base if renewed is None else renewed

    def client_of(self, guest: int) -> int:
        """The client id of a guest."""
        grant = self._grants.get(guest)
        return self.settings.client_id_base + guest if grant is None else grant.client

    # --- accounts -------------------------------------------------------------------------------

    def usage(self, guest: int) -> Usage:
        """What the apps did for a guest that is known now (-1: for the hypervisor itself)."""
        if guest == NO_GUEST:
            return usage(self._own)
        return usage(self._grants[guest])

    def total_usage(self) -> Usage:
        """What they did for all guests, also for those that are gone, and for the hypervisor."""
        total = self._past + usage(self._own)
        for grant in self._grants.values():
            total += usage(grant)
        return total

    # --- death ----------------------------------------------------------------------------------

    def _died(self, instance: Instance, guest: int, reason: str) -> None:
        self._supervisor.died(instance, guest, reason, lambda: self._end_process(instance))

    def _bury(self, instance: Instance) -> None:
        if not instance.buried:
            with self._payer(NO_GUEST):
                self._buried(instance)

    def _buried(self, instance: Instance) -> None:
        self._bury_one(instance)
        if not instance.dead:
            return  # it had nothing to do any more
        if self._spare is instance:
            self._spare = None
        supervisor = self._supervisor
        if self._spare is None and not supervisor.given_up:
            self._spare = supervisor.restart(instance)
        if supervisor.must_renew(self._homes) and self._spare is not None:
            home = self._instance(instance)
            if home is not None:
                supervisor.renew(home)

    def _bury_one(self, instance: Instance) -> None:
        instance.buried = True
        self._supervisor.bury(instance)
        self._retire(instance)
        for guest in instance.grants:
            if self._homes.get(guest) is instance:
                del self._homes[guest]

    def admit(self, instance: Instance, grant: Grant) -> bool:
        """Let ``instance`` create the control domain anew."""
        self._own_usage(grant.guest)
        with self._payer(grant.guest):
            return self._run(self._create(instance, grant, False))

    def rouse(self, grant: Grant) -> None:
        """Tell a guest that listens of every value that one of its threads waits for."""
        grant.owed = grant.lent.awaited()
        if grant.owed:
            self.host.inject_virq(grant.guest, self.settings.notification_virq)

    def _own_usage(self, guest: int) -> None:
        old = self._grants.get(guest)
        if old is not None:
            old.entries = old.turns = old.syscalls = old.refused = old.copied = 0

    def kill(self, reason: str = "killed") -> None:
        """End all apps as if they had died: what an operator can do, and a test."""
        for instance in self._instances():
            if not instance.dead:
                self._died(instance, NO_GUEST, reason)
                if not instance.open:
                    self._bury(instance)

    # --- guests ---------------------------------------------------------------------------------

    def _instance(self, before: Instance | None = None) -> Instance | None:
        """The app for a new guest. ``before``: one that died, whose guest it is."""
        instance = self._spare
        if instance is not None and self.manifest.instances == PER_GUEST:
            # The guest gets this one, whether or not there is another for the next guest.
            with self._payer(NO_GUEST):
                self._spare = self._supervisor.restart(before or instance)
        return instance

    async def _guest_created(self, guest: int, switching: bool) -> bool:
        old = self._grants.get(guest)
        if old is not None and not old.lost:
            raise ValueError(f"guest {guest} exists already")
        client = self.settings.client_id_base + guest
        if not 0 < client <= self._supervisor.next_client:
            return False
        if old is not None and guest in self._homes:
            return False  # the dead app that knew it is not buried yet
        instance = self._instance()
        if instance is None or not await self._entrance.free(instance, switching):
            return False
        if old is not None:
            self._forget(old)
        return await self._create(instance, Grant(guest, client), switching)

    async def _create(self, instance: Instance, grant: Grant, switching: bool) -> bool:
        guest = grant.guest
        self._grants[guest] = instance.grants[guest] = grant
        self._homes[guest] = instance
        try:
            answer = await self._entrance.enter(
                instance, grant, abi.ENTRY_GUEST_CREATED, b"", (guest, grant.client), switching
            )
        except BaseException:
            if not grant.lost:
                self._dismiss(instance, grant)
            raise
        if answer is not None:
            taken = answer.status == abi.OUTCOME_DONE
            if taken and grant.partition:
                return True
            if taken:
                self._lied(instance, guest, "a guest was created without the TEE")
            elif grant.partition:
                self._lied(instance, guest, "a guest was refused that the TEE has taken")
            else:
                self._dismiss(instance, grant)
        # The control domain may have got a partition from the next app meanwhile.
        now = self._grants.get(guest)
        return now is not None and now is not grant and not now.lost

    def _lied(self, instance: Instance, guest: int, what: str) -> None:
        """The app's last word contradicts what it did."""
        self._died(instance, guest, f"protocol: {what}")
        if not instance.open:
            self._bury(instance)

    def _dismiss(self, instance: Instance, grant: Grant) -> None:
        """The guest is not the app's any more: nothing of it may be left."""
        grant.lost = True  # whoever traps meanwhile is not served
        instance.grants.pop(grant.guest, None)
        self._homes.pop(grant.guest, None)
        if grant.partition or grant.pins.count or grant.answer & MASK32:
            self._supervisor.clean(grant)
        self.iommu.forget(grant.guest)
        instance.server.shadows.inherit(grant, self._own)
        self._forget(grant)
        if self.manifest.instances == PER_GUEST and not instance.dead:
            instance.needless = True
            if not instance.open:
                self._bury(instance)

    def _forget(self, grant: Grant) -> None:
        self._past += usage(grant)
        if self._sink is not None:
            self._sink(used(grant))
        if self._grants.get(grant.guest) is grant:
            del self._grants[grant.guest]

    async def _guest_destroyed(self, guest: int, switching: bool) -> bool:
        done = await self._ended(guest, switching)
        if done:
            self.iommu.end(guest)
        return done

    async def _ended(self, guest: int, switching: bool) -> bool:
        grant = self._grants.get(guest)
        if grant is None:
            return True
        instance = self._homes.get(guest)
        if instance is None:
            self._forget(grant)
            return True
        if instance.dead or not await self._entrance.free(instance, switching):
            return False  # entries into the dead app are still on their way out
        answer = await self._entrance.enter(
            instance, grant, abi.ENTRY_GUEST_DESTROYED, b"", (guest,), switching
        )
        if answer is not None:
            if answer.status != abi.OUTCOME_DONE:
                return False
            if not grant.partition:
                self._dismiss(instance, grant)
                return True
            self._lied(instance, guest, "a guest is gone that the TEE still has")
        if guest in self._homes:
            return False
        self._forget(grant)
        return True

    def _instances(self) -> list[Instance]:
        """All apps that are not buried, each once."""
        found = dict.fromkeys([*self._homes.values(), self._spare])
        return [instance for instance in found if instance is not None]

    def _set_timer(self, app: int, deadline: int | None) -> None:
        """The host has one timer: the earliest deadline of all apps."""
        if deadline is None:
            self._timers.pop(app, None)
        else:
            self._timers[app] = deadline
        self.host.set_timer(min(self._timers.values(), default=None))


def _shadows_of(host: Host) -> SharedShadows:
    shadows = getattr(host, "shadows", None)
    if shadows is None or not hasattr(shadows, "share"):
        raise TypeError("this host has no shadow pages that can be shared with an app")
    return cast("SharedShadows", shadows)
