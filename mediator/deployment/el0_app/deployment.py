# SPDX-License-Identifier: BSD-2-Clause
"""The mediator as an EL0 app: the faces of :class:`InHypervisor`, with a process behind them.

An entry is sent to the app, and its system calls are served, until it returns; the app runs exactly
then, on the processor of the caller, and never by itself. Everything here is a coroutine that suspends
only where the deployment is ``suspending``; the methods for hosts without coroutines run them inline.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Final, cast

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import REGISTERS, TRAPPED
from mediator.deployment.el0_app import aftermath, ahead, plain
from mediator.deployment.el0_app.channel import AppGone, Message
from mediator.deployment.el0_app.instance import (
    Instance,
)
from mediator.deployment.el0_app.lives import Lives
from mediator.deployment.el0_app.manifest import PER_GUEST
from mediator.deployment.face import (
    DONE,
    MASK32,
    PREEMPTED,
    REFUSED,
    Done,
    Preempted,
    Refused,
    Registers8,
)
from mediator.host import Shadow
from mediator.optee.lifecycle import Probe
from mediator.optee.mediator import GuestInfo, Wait
from smccc.constants import optee_smc as smc
from smccc.registers import pair

ENOTAVAIL: Final = smc.OPTEE_SMC_RETURN_ENOTAVAIL
"""x0 of a call whose app died, and of the calls of a guest whose state was lost; see :mod:`.aftermath`."""
BUSY: Final = smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
"""x0 of a call that comes while an app that serves one at a time is at work: wait for another call."""

RETURN_FROM_RPC: Final = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC

NOTIFICATION_INTID: Final = 32
"""The physical interrupt of notifications, if the caller does not say."""

_REGISTERS: Final = REGISTERS.size
_trapped = TRAPPED.pack


class El0App(Lives):
    """A mediator on a host, in a process of its own. Close it, or use it as a context manager.

    ``host``: the services. ``settings``: offers and limits. ``sink``: gets the mediator's events and
    those of :mod:`.events`. ``manifest``: the app, by default the OP-TEE mediator. ``shadows``: pages
    that can be shared with it, by default ``host.shadows``. ``suspending``: every system call of the
    async methods is a switch point. ``control``: the guest that cannot be made anew (``None``: there
    is none). ``pinned``: caller and app on one processor, where they belong. ``charge``: told of the
    price of the boundary; ``payer``: puts other work on the account of whom it is for. ``devices``:
    pages of registers by physical address. ``pool``: where processes come from and go to.
    ``launcher``: starts them. ``secure_call``: instead of ``host.smc``, a coroutine (replays).

    Raises :class:`~mediator.deployment.el0_app.launch.LaunchError`.
    """

    @property
    def mediator(self) -> El0App:
        """What a checker asks for settings, threads and counters: here, too."""
        return self

    # --- traps -----------------------------------------------------------------------------------

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
