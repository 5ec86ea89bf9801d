# SPDX-License-Identifier: BSD-2-Clause
"""The mediator as an EL0 app: the faces of :class:`InHypervisor`, with a process behind them.

An entry is sent to the app, and its system calls are served, until it returns; the app runs exactly
then, on the processor of the caller, and never by itself. Everything here is a coroutine that suspends
only where the deployment is ``suspending``; the methods for hosts without coroutines run them inline.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, MutableMapping
from types import TracebackType
from typing import Final, TypeVar, cast

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import REGISTERS, TRAPPED
from mediator.deployment.el0_app import aftermath, ahead, plain
from mediator.deployment.el0_app.channel import AppGone, Message
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
    DONE,
    MASK32,
    PREEMPTED,
    REFUSED,
    Done,
    Face,
    Preempted,
    Refused,
    Registers8,
)
from mediator.host import Host, Shadow
from mediator.optee.lifecycle import Probe
from mediator.optee.mediator import GuestInfo, Wait
from mediator.optee.settings import MediatorSettings
from smccc.constants import optee_smc as smc
from smccc.registers import pair

T = TypeVar("T")

ENOTAVAIL: Final = smc.OPTEE_SMC_RETURN_ENOTAVAIL
"""x0 of a call whose app died, and of the calls of a guest whose state was lost; see :mod:`.aftermath`."""
BUSY: Final = smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
"""x0 of a call that comes while an app that serves one at a time is at work: wait for another call."""

RETURN_FROM_RPC: Final = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC

NOTIFICATION_INTID: Final = 32
"""The physical interrupt of notifications, if the caller does not say."""

CONTROL_DOMAIN: Final = 0
"""The guest that cannot be made anew, if the caller does not say."""

_REGISTERS: Final = REGISTERS.size
_trapped = TRAPPED.pack


class El0App(Face):
    """A mediator on a host, in a process of its own. Close it, or use it as a context manager.

    ``host``: the services. ``settings``: offers and limits. ``sink``: gets the mediator's events and
    those of :mod:`.events`. ``manifest``: the app, by default the OP-TEE mediator. ``shadows``: pages
    that can be shared with it, by default ``host.shadows``. ``suspending``: every system call of the
    async methods is a switch point. ``control``: the guest that cannot be made anew (``None``: there
    is none). ``pinned``: caller and app on one processor, where they belong. ``charge``: told of the
    price of the boundary; ``payer``: puts other work on the account of whom it is for. ``devices``: pages of registers by physical address. ``pool``: where
    processes come from and go to. ``launcher``: starts them. ``secure_call``: instead of ``host.smc``, a coroutine (replays).

    Raises :class:`~mediator.deployment.el0_app.launch.LaunchError`.
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

    def __enter__(self) -> El0App:
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
    def mediator(self) -> El0App:
        """What a checker asks for settings, threads and counters: here, too."""
        return self

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

    async def _trap(
        self, guest: int, vcpu: int, regs: tuple[int, ...], switching: bool
    ) -> tuple[int, ...] | None:
        grant = self._grants.get(guest)
        if grant is None:
            return None
        if grant.lost or grant.renewed:
            refused = aftermath.answer(self.host, grant, regs)
            if refused is not None:
                return refused
        instance = self._homes[guest]
        if not instance.server.hooked(abi.HOOK_SMC, regs[0] & MASK32):
            return None
        if not instance.may_enter() and not await self._entrance.free(instance, switching):
            return (BUSY, *regs[1:])
        if instance.is_dead():
            return (aftermath.ended(regs[0] & MASK32), *regs[1:])
        entrance = self._entrance
        entry = instance.begin(abi.ENTRY_HANDLE_SMC, guest, grant)
        lent = grant.lent
        if (lent.asked or lent.waits) and regs[0] & MASK32 == RETURN_FROM_RPC:
            entry.lent_at = lent.returns(regs)
        size, number, address, length = _REGISTERS, 0, 0, 0
        data: bytes | None = None
        if instance.reads_ahead:
            entry.key = key = regs[:4]
            read = grant.ahead.get(key)
            if read is not None:
                data = ahead.fetch(self.host, entry, read)
                if data is not None:
                    number, address, length = read
                    size += len(data)
                    if entry.lent_at == address != 0:
                        entry.lent_at = 0
                        lent.answered(data)
        message = _trapped(
            abi.ENTRY,
            abi.ENTRY_HANDLE_SMC,
            0,
            entry.name,
            size,
            0,
            guest,
            vcpu,
            number,
            address,
            length,
            0,
            0,
            0,
            0,
            *regs,
        )
        if data is not None:
            message += data
        try:
            answer = await entrance.serve(instance, entry, message, switching)
        except AppGone as error:
            self._died(instance, guest, str(error))
            return (aftermath.ended(regs[0] & MASK32), *regs[1:])
        finally:
            entrance.leave(instance, entry)
        if answer.status != abi.OUTCOME_DONE:
            return None
        if entry.refused_x0 is not None:
            return (entry.refused_x0, *answer.args[1:])
        if answer.args[0] >= smc.OPTEE_SMC_RETURN_RPC_PREFIX:
            lent.leaves(answer.args, entry.wrote)
        elif lent.cookies and regs[0] & MASK32 == smc.OPTEE_SMC_DISABLE_SHM_CACHE:
            lent.back(pair(answer.args[1], answer.args[2]))
        return answer.args

    async def _access(
        self, guest: int, vcpu: int, ipa: int, size: int, value: int | None, switching: bool
    ) -> int | None:
        if not self.wants_access(guest, ipa):
            return None
        grant, instance = self._grants[guest], self._homes[guest]
        if not await self._entrance.free(instance, switching) or instance.is_dead():
            return None
        args = (guest, vcpu, ipa, size, int(value is not None), value or 0)
        answer = await self._entrance.enter(
            instance, grant, abi.ENTRY_HANDLE_MMIO, b"", args, switching
        )
        if answer is None or answer.status != abi.OUTCOME_DONE:
            return None
        return answer.args[0] & (1 << 8 * size) - 1

    async def _event(
        self, hook: tuple[int, int], number: int, owed: dict[int, None], switching: bool
    ) -> bool:
        """Enter the apps in ``owed`` that want this hook (kind, value), and take them out; False: some
        stopped on the way, or could not be entered."""
        done = True
        args = (hook[1],) if number == abi.ENTRY_HANDLE_INTERRUPT else ()
        for instance in self._instances():
            if instance.app not in owed:
                continue
            if not await self._entrance.free(instance, switching):
                done = False
                continue
            owed.pop(instance.app, None)
            if instance.is_dead() or not instance.server.hooked(*hook):
                continue
            answer = await self._entrance.enter(instance, self._own, number, b"", args, switching)
            if answer is not None and answer.status == abi.OUTCOME_PREEMPTED:
                owed[instance.app] = None
                done = False
        return done

    async def _interrupt(self, intid: int, switching: bool) -> bool:
        # Entered again after one was stopped: all of them, for it may have been raised again.
        owed = dict.fromkeys([instance.app for instance in self._instances()])
        hook = (abi.HOOK_INTERRUPT, intid)
        return await self._event(hook, abi.ENTRY_HANDLE_INTERRUPT, owed, switching)

    async def _timer(self, switching: bool) -> bool:
        timers = self._timers
        if timers:
            # The host says that the earliest has come; others may have come with it.
            now = max(self.host.now(), min(timers.values()))
            for app in [app for app, deadline in timers.items() if deadline <= now]:
                del timers[app]
                self._expired[app] = None
            self.host.set_timer(min(timers.values(), default=None))
        hook = (abi.HOOK_TIMER, 0)
        return await self._event(hook, abi.ENTRY_HANDLE_TIMER, self._expired, switching)

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

    # --- for hosts without coroutines -----------------------------------------------------------

    def probe(self, *, device_tree_node: bool = True) -> Probe:
        """Look for OP-TEE. Without its device tree node the TEE is not even asked."""
        if not device_tree_node:
            return Probe(False, 0, "no linaro,optee-tz node in the device tree")
        return self._run(self._probe(False))

    def probing(self) -> Coroutine[object, None, Probe]:
        """The same as a coroutine."""
        return self._probe(self._suspending)

    async def _probe(self, switching: bool) -> Probe:
        instance = self._spare
        if instance is None:
            return Probe(False, 0, self._supervisor.given_up or "no app")
        answer = await self._entrance.enter(
            instance, self._own, abi.ENTRY_INIT, b"", (abi.INIT_PROBE,), switching
        )
        if answer is None:
            return Probe(False, 0, "the app died")
        if answer.status != abi.OUTCOME_DONE:
            return Probe(False, 0, answer.payload.decode("utf-8", "replace"))
        self.threads = answer.args[0] & MASK32
        for other in dict.fromkeys(self._homes.values()):
            if other is not instance and not other.dead:
                args = (abi.INIT_KNOWN, self.threads)
                await self._entrance.enter(other, self._own, abi.ENTRY_INIT, b"", args, False)
        return Probe(True, self.threads, "")

    def create_guest(self, guest: int) -> Done | Refused:
        """Tell the TEE of a new guest. ``Refused``: it has no room for it."""
        return DONE if self._run(self._guest_created(guest, False)) else REFUSED

    def destroy_guest(self, guest: int) -> Done | Preempted:
        """Release everything of a guest. ``Preempted``: enter again."""
        return DONE if self._run(self._guest_destroyed(guest, False)) else PREEMPTED

    def _trapped(
        self, guest: int, vcpu: int, regs: tuple[int, ...]
    ) -> Coroutine[object, None, tuple[int, ...] | None]:
        return self._trap(guest, vcpu, regs, False)

    def handle_mmio(
        self, guest: int, vcpu: int, ipa: int, size: int, value: int | None = None
    ) -> int | None:
        """Serve a trapped load, or a store of ``value``; ``None``: not this app's."""
        return self._run(self._access(guest, vcpu, ipa, size, value, False))

    def notification_interrupt(self, intid: int = NOTIFICATION_INTID) -> Done | Preempted:
        """The TEE raised its notification interrupt. ``Preempted``: enter again."""
        return DONE if self._run(self._interrupt(intid, False)) else PREEMPTED

    def timer_interrupt(self) -> Done | Preempted:
        """The deadline of ``host.set_timer`` has come. ``Preempted``: enter again."""
        return DONE if self._run(self._timer(False)) else PREEMPTED

    # --- the state of apps ----------------------------------------------------------------------

    def _state(self, instance: Instance, number: int, payload: bytes = b"") -> Message | None:
        if instance.dead or not instance.capabilities & abi.CAP_STATE or not instance.may_enter():
            return None
        return self._run(self._entrance.enter(instance, self._own, number, payload, (), False))

    def waits(self) -> tuple[Wait, ...]:
        """The threads of the TEE that wait now."""
        found: list[Wait] = []
        for instance in self._instances():
            answer = self._state(instance, abi.ENTRY_INSPECT)
            if answer is not None:
                found += plain.waits(answer.payload)
        return tuple(found)

    def guest_info(self, guest: int) -> GuestInfo | None:
        """Counters of a guest, ``None`` if the app has no context for it. Of an app that cannot tell them
        only what the hypervisor's own books say: pages that are pinned."""
        instance = self._homes.get(guest)
        if instance is None:
            return None
        if not instance.capabilities & abi.CAP_STATE:
            return GuestInfo(0, 0, self._grants[guest].pins.count, 0, 0)
        answer = self._state(instance, abi.ENTRY_INSPECT)
        return None if answer is None else plain.guest_info(answer.payload, guest)

    def _only(self) -> Instance:
        """The one app, between entries. ``RuntimeError``: there is none, or there are several."""
        instance = self._spare
        if instance is None or self.manifest.instances == PER_GUEST:
            raise RuntimeError("a snapshot needs one app for all guests")
        if instance.open:
            guest = instance.open[0].guest
            raise RuntimeError(f"guest {guest} has {len(instance.open)} entries in flight")
        return instance

    def snapshot(self) -> dict[str, object]:
        """The mediator's state and the books of the boundary as plain data.

        ``RuntimeError``: an entry is in flight, or the app cannot tell its state.
        """
        instance = self._only()
        answer = self._state(instance, abi.ENTRY_SNAPSHOT)
        if answer is None:
            raise RuntimeError("the app has no state to tell")
        data = cast("dict[str, object]", plain.decoded(answer.payload))
        shadows = [shadow.pages for shadow in instance.server.shadows.all()]
        return {**data, plain.BOOKS: plain.books(instance.grants.values(), shadows)}

    def restore(self, data: dict[str, object]) -> None:
        """Go back to a snapshot of this deployment.

        ``ValueError`` if it is none of this version, or if its shadow pages are not in this app's
        arena; ``RuntimeError`` as for :meth:`snapshot`.
        """
        instance = self._only()
        mine = dict(data)
        grants, pages = plain.books_from(mine.pop(plain.BOOKS, None))
        before = instance.server.shadows.replace(self._mapped(instance, pages), self._own)
        answer = self._state(instance, abi.ENTRY_RESTORE, plain.encoded(mine))
        if answer is None or answer.status != abi.OUTCOME_DONE:
            instance.server.shadows.put_back(before)
            raise ValueError("" if answer is None else answer.payload.decode("utf-8", "replace"))
        instance.grants.clear()
        self._grants.clear()
        self._homes.clear()
        for grant in grants:
            self._grants[grant.guest] = instance.grants[grant.guest] = grant
            self._homes[grant.guest] = instance

    def _mapped(self, instance: Instance, lists: list[bytes]) -> list[Shadow]:
        self._shadows.select(self._supervisor.sources[instance.app])
        found: list[Shadow] = []
        for pages in lists:
            try:
                shadow = self.host.map_shadow(pages)
                self._shadows.offset(shadow.pa)
            except Exception as error:
                raise ValueError(f"shadow pages of the snapshot: {error}") from error
            found.append(shadow)
        return found

    # --- for hosts that are coroutines themselves -----------------------------------------------

    async def handle_regs(self, guest: int, vcpu: int, regs: Registers8) -> Registers8 | None:
        """As :meth:`handle`, for a driver of coroutines; ``None``: not mine."""
        out = await self._trap(guest, vcpu, regs, self._suspending)
        return cast("Registers8 | None", out)

    async def guest_created(self, guest: int) -> bool:
        """``False``: the TEE refused."""
        return await self._guest_created(guest, self._suspending)

    async def guest_destroyed(self, guest: int) -> bool:
        """``False``: enter again."""
        return await self._guest_destroyed(guest, self._suspending)

    async def physical_interrupt(self, intid: int) -> bool:
        """A physical interrupt of the TEE. ``False``: enter again."""
        return await self._interrupt(intid, self._suspending)

    async def timer_expired(self) -> bool:
        """A deadline of an app has come. ``False``: enter again."""
        return await self._timer(self._suspending)

    def wants_access(self, guest: int, ipa: int) -> bool:
        """Whether an app stands for a device of the guest at this address."""
        instance = self._homes.get(guest)
        return (
            instance is not None
            and not instance.dead
            and instance.server.hooked(abi.HOOK_MMIO, ipa)
        )

    async def handle_access(
        self, guest: int, vcpu: int, ipa: int, size: int, value: int | None
    ) -> int | None:
        """As :meth:`handle_mmio`, for a driver of coroutines."""
        return await self._access(guest, vcpu, ipa, size, value, self._suspending)


def _shadows_of(host: Host) -> SharedShadows:
    shadows = getattr(host, "shadows", None)
    if shadows is None or not hasattr(shadows, "share"):
        raise TypeError("this host has no shadow pages that can be shared with an app")
    return cast("SharedShadows", shadows)
