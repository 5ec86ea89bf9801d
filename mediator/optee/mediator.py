# SPDX-License-Identifier: BSD-2-Clause
"""The mediator: which entry goes where.

It stands between guests and OP-TEE and knows nothing but system calls and the ABI. One coroutine
serves one entry and ends; what outlives it is a record (:mod:`mediator.optee.records`).

Not supported, on purpose: reserved shared memory, protected memory, L2CC mutex, secondary boot,
pages other than 4 KiB.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import attrs

from mediator.optee import call, events, fast, lifecycle, notify, snapshots
from mediator.optee.core import M32, Core, FinalWrite, FusedWalk, Registers
from mediator.optee.lifecycle import Probe
from mediator.optee.records import Guest
from mediator.optee.settings import MediatorSettings
from mediator.optee.syscalls import Syscalls
from smccc.constants import optee_smc as smc

FastHandler = Callable[[Core, Syscalls, Guest, Registers], Awaitable[Registers]]
YieldingHandler = Callable[[Core, Syscalls, Guest, int, Registers], Awaitable[Registers]]

FAST: Final[tuple[tuple[int, FastHandler], ...]] = (
    (smc.OPTEE_SMC_CALLS_COUNT, fast.calls_count),
    (smc.OPTEE_SMC_CALLS_UID, fast.calls_uid),
    (smc.OPTEE_SMC_CALLS_REVISION, fast.calls_revision),
    (smc.OPTEE_SMC_CALL_GET_OS_UUID, fast.os_uuid),
    (smc.OPTEE_SMC_CALL_GET_OS_REVISION, fast.os_revision),
    (smc.OPTEE_SMC_GET_SHM_CONFIG, fast.shm_config),
    (smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, fast.exchange_capabilities),
    (smc.OPTEE_SMC_DISABLE_SHM_CACHE, fast.disable_shm_cache),
    (smc.OPTEE_SMC_ENABLE_SHM_CACHE, fast.enable_shm_cache),
)
NOTIFICATIONS: Final[tuple[tuple[int, FastHandler], ...]] = (
    (smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF, notify.enable),
    (smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE, notify.value),
)
YIELDING: Final[tuple[tuple[int, YieldingHandler], ...]] = (
    (smc.OPTEE_SMC_CALL_WITH_ARG, call.call_with_arg),
    (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, call.return_from_rpc),
)
RPC_ARG: Final[tuple[tuple[int, YieldingHandler], ...]] = (
    (smc.OPTEE_SMC_CALL_WITH_RPC_ARG, call.call_with_rpc_arg),
    (smc.OPTEE_SMC_CALL_WITH_REGD_ARG, call.call_with_regd_arg),
)


@attrs.frozen
class GuestInfo:
    """Counters of one guest: calls in flight, buffers and their pages, RPC buffers, findings."""

    calls: int
    buffers: int
    pages: int
    rpc_buffers: int
    findings: int


@attrs.frozen
class Wait:
    """A thread of the TEE that waits for notification ``key``.

    ``vcpu``: the one that carried it when it left. ``since``, ``deadline``: virtual ns (``None``: for
    ever). ``held``: the mediator keeps the wait, because the guest could not learn of its end.
    """

    guest: int
    call: int
    thread: int
    key: int
    vcpu: int
    since: int
    deadline: int | None
    held: bool


class OpteeMediator:
    """The OP-TEE mediator as coroutines over :class:`~mediator.optee.syscalls.Syscalls`.

    ``settings``: offers and limits. ``sink``: gets the events of :mod:`mediator.optee.events`.
    """

    __slots__ = ("_core", "_fast", "_yielding")

    def __init__(
        self, settings: MediatorSettings | None = None, sink: events.Sink | None = None
    ) -> None:
        settings = settings or MediatorSettings()
        self._core = Core(settings, sink)
        offered = list(FAST)
        if settings.capabilities & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF:
            offered += NOTIFICATIONS
        if settings.thread_count:
            offered.append((smc.OPTEE_SMC_GET_THREAD_COUNT, fast.thread_count))
        self._fast = dict(offered)
        yielding = list(YIELDING)
        if settings.capabilities & smc.OPTEE_SMC_SEC_CAP_RPC_ARG:
            yielding += RPC_ARG
        self._yielding = dict(yielding)
        if settings.calls_count is None:
            self._core.calls_count = len(offered) + len(yielding)

    @property
    def settings(self) -> MediatorSettings:
        """What this mediator was made with."""
        return self._core.settings

    @property
    def calls_count(self) -> int:
        """The answer to CALLS_COUNT."""
        return self._core.calls_count

    @property
    def threads(self) -> int | None:
        """Threads that the TEE reported when it was probed."""
        return self._core.threads

    @property
    def guests(self) -> tuple[int, ...]:
        """Ids of the guests that have a context, in order of creation."""
        return tuple(self._core.guests)

    async def probe(self, sys: Syscalls) -> Probe:
        """Look for an OP-TEE with virtualization and learn its thread count."""
        return await lifecycle.probe(self._core, sys)

    def guest_of(self, client: int) -> int:
        """The guest behind a client id of the TEE."""
        return client - self._core.settings.client_id_base

    def client_of(self, guest: int) -> int:
        """The client id of a guest by the settings: what is in use is measured by it (I5)."""
        return self._core.settings.client_id_base + guest

    def probed(self, threads: int) -> None:
        """The TEE was found before, by somebody else, and has ``threads`` threads."""
        self._core.threads = threads

    def fuse(self, walker: FusedWalk, finish: FinalWrite | None = None) -> None:
        """From now on read and pin page lists with ``walker``, and end calls with ``finish``."""
        self._core.fused = walker
        self._core.finish = finish

    async def guest_created(self, sys: Syscalls, guest: int, client: int | None = None) -> bool:
        """``False``: the TEE refused the guest. ``ValueError``: the id is in use.

        ``client``: its client id, if it is not the one that the settings say.
        """
        return await lifecycle.guest_created(self._core, sys, guest, client)

    async def guest_destroyed(self, sys: Syscalls, guest: int) -> bool:
        """``False``: preempted, or entries are still in flight; enter again."""
        return await lifecycle.guest_destroyed(self._core, sys, guest)

    async def notification_interrupt(self, sys: Syscalls) -> bool:
        """The TEE raised its notification interrupt. ``False``: preempted, enter again."""
        return await notify.interrupt(self._core, sys)

    async def handle(
        self, sys: Syscalls, guest: int, vcpu: int, regs: Registers
    ) -> Registers | None:
        """Serve a trapped SMC or HVC: the guest's registers x0..x7 afterwards.

        ``regs``: x0..x7, 64 bits each. ``None``: not a call of this mediator, or a guest without
        a TEE; the hypervisor answers "unknown function".
        """
        core = self._core
        record = core.guests.get(guest)
        if record is None or record.dying:
            return None
        function = regs[0] & M32
        record.entries += 1
        try:
            yielding = self._yielding.get(function)
            if yielding is not None:
                return await yielding(core, sys, record, vcpu, regs)
            handler = self._fast.get(function)
            if handler is None:
                return None
            return await handler(core, sys, record, regs)
        finally:
            record.entries -= 1

    def guest_info(self, guest: int) -> GuestInfo | None:
        """Counters of a guest, ``None`` if it has no context."""
        record = self._core.guests.get(guest)
        if record is None:
            return None
        return GuestInfo(
            len(record.live_calls),
            len(record.buffers) + record.held,
            record.pages,
            len(record.rpc_buffers),
            record.findings,
        )

    def waits(self) -> tuple[Wait, ...]:
        """The threads of the TEE that wait now, in the order of guests and keys."""
        return tuple(
            [
                Wait(
                    guest.id,
                    call.serial,
                    call.thread,
                    call.wait_key,
                    call.vcpu,
                    call.wait_since,
                    call.wait_deadline or None,
                    call.held,
                )
                for guest in self._core.guests.values()
                for waiters in guest.waiters.values()
                for call in waiters.values()
            ]
        )

    def snapshot(self) -> dict[str, object]:
        """All state as plain data (ints, bytes, lists, dicts), between entries.

        Memory is not part of it: a host that goes back in time restores pages and pins itself.
        ``RuntimeError`` while an entry is in flight.
        """
        return snapshots.take(self._core)

    async def restore(self, sys: Syscalls, data: dict[str, object]) -> None:
        """Replace all state by that of a snapshot. ``ValueError``: not a snapshot of this version."""
        await snapshots.restore(self._core, sys, data)
