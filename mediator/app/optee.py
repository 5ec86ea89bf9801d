# SPDX-License-Identifier: BSD-2-Clause
"""The OP-TEE mediator as an app."""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable
from typing import Final, cast

from mediator.app import state
from mediator.app.calls import AppSyscalls, finish, walk
from mediator.app.runtime import Conversation, Entry, arguments, returned
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER, HEADER_SIZE, REGISTERS, SYSCALL
from mediator.optee.events import Sink
from mediator.optee.mediator import OpteeMediator
from mediator.optee.settings import Limits, MediatorSettings

NAME: Final = "optee-mediator"

TOS_RANGES: Final = ((0x3200_0000, 0x3FFF_FFFF), (0xB200_0000, 0xBFFF_FFFF))
"""Yielding and fast calls of a Trusted OS, 32-bit convention (Arm DEN 0028, table 6-1)."""

LAST_INTERRUPT: Final = 1019
"""The highest interrupt id of a GIC that is not special."""

_TRAPPED: Final = struct.Struct("<5Q")
_ARGS_AT: Final = 24
_pack = HEADER.pack
_AHEAD_AT: Final = HEADER_SIZE + REGISTERS.size

_Serve = Callable[["OpteeApp", AppSyscalls, bytes], Awaitable[bytes]]


class OpteeApp:
    """Implements :class:`mediator.app.runtime.App` over :class:`OpteeMediator`."""

    name = NAME
    capabilities = abi.CAP_NESTING | abi.CAP_INTERLEAVING | abi.CAP_TRACE | abi.CAP_STATE
    capabilities |= abi.CAP_READ_AHEAD

    def __init__(self) -> None:
        self._mediator = OpteeMediator()
        self._sink: Sink | None = None
        self._fused = False

    def welcome(self, talk: Conversation, offers: int, settings: dict[str, object]) -> None:
        """Make the mediator that the hypervisor wants."""
        self._sink = talk.trace if offers & abi.OFFER_TRACE else None
        self._fused = bool(offers & abi.OFFER_FUSED)
        self._make(settings)

    def _make(self, settings: dict[str, object]) -> None:
        self._mediator = OpteeMediator(settings_of(settings), self._sink)
        if self._fused:
            # What a recorder is told of the end of a call must be what became of it.
            self._mediator.fuse(walk, finish if self._sink is None else None)

    def enter(self, sys: AppSyscalls, number: int, message: bytes) -> Entry:
        """Serve one entry."""
        return cast("Entry", _SERVE[number](self, sys, message))

    async def _smc(self, sys: AppSyscalls, message: bytes) -> bytes:
        guest, vcpu, number, address, length = _TRAPPED.unpack_from(message, _ARGS_AT)
        if number:
            sys.ahead = number, guest, address, length, message[_AHEAD_AT:]
        out = await self._mediator.handle(
            sys, guest, vcpu, REGISTERS.unpack_from(message, HEADER_SIZE)
        )
        if out is None:
            return returned(abi.OUTCOME_NOT_MINE)
        return _pack(SYSCALL, 0, 0, sys.entry, 0, abi.OUTCOME_DONE, *out, 0)

    async def _init(self, sys: AppSyscalls, message: bytes) -> bytes:
        mode, threads = arguments(message)[:2]
        if mode == abi.INIT_PROBE:
            probe = await self._mediator.probe(sys)
            if not probe.found:
                return returned(abi.OUTCOME_REFUSED, (), probe.reason.encode())
            return returned(abi.OUTCOME_DONE, (probe.threads,))
        if mode == abi.INIT_RESET:
            self._make(json.loads(message[HEADER_SIZE:]))
            return returned(abi.OUTCOME_DONE)
        for first, last in TOS_RANGES:
            await sys.register_hook(abi.HOOK_SMC, first, last)
        await sys.register_hook(abi.HOOK_INTERRUPT, 0, LAST_INTERRUPT)
        if mode == abi.INIT_KNOWN:
            self._mediator.probed(threads)
        return returned(abi.OUTCOME_DONE, (threads,))

    async def _created(self, sys: AppSyscalls, message: bytes) -> bytes:
        guest, client = arguments(message)[:2]
        taken = await self._mediator.guest_created(sys, guest, client)
        return returned(abi.OUTCOME_DONE if taken else abi.OUTCOME_REFUSED)

    async def _destroyed(self, sys: AppSyscalls, message: bytes) -> bytes:
        done = await self._mediator.guest_destroyed(sys, arguments(message)[0])
        return returned(abi.OUTCOME_DONE if done else abi.OUTCOME_PREEMPTED)

    async def _interrupt(self, sys: AppSyscalls, message: bytes) -> bytes:
        done = await self._mediator.notification_interrupt(sys)
        return returned(abi.OUTCOME_DONE if done else abi.OUTCOME_PREEMPTED)

    async def _none(self, sys: AppSyscalls, message: bytes) -> bytes:
        return returned(abi.OUTCOME_NOT_MINE)

    async def _timer(self, sys: AppSyscalls, message: bytes) -> bytes:
        return returned(abi.OUTCOME_DONE)

    async def _inspect(self, sys: AppSyscalls, message: bytes) -> bytes:
        return returned(abi.OUTCOME_DONE, (), state.inspected(self._mediator))

    async def _snapshot(self, sys: AppSyscalls, message: bytes) -> bytes:
        return returned(abi.OUTCOME_DONE, (), state.encoded(self._mediator.snapshot()))

    async def _restore(self, sys: AppSyscalls, message: bytes) -> bytes:
        try:
            await self._mediator.restore(sys, state.decoded(message[HEADER_SIZE:]))
        except ValueError as error:
            return returned(abi.OUTCOME_REFUSED, (), str(error).encode())
        return returned(abi.OUTCOME_DONE)


_SERVE: Final[dict[int, _Serve]] = {
    abi.ENTRY_INIT: OpteeApp._init,
    abi.ENTRY_GUEST_CREATED: OpteeApp._created,
    abi.ENTRY_GUEST_DESTROYED: OpteeApp._destroyed,
    abi.ENTRY_HANDLE_SMC: OpteeApp._smc,
    abi.ENTRY_HANDLE_MMIO: OpteeApp._none,
    abi.ENTRY_HANDLE_TIMER: OpteeApp._timer,
    abi.ENTRY_HANDLE_INTERRUPT: OpteeApp._interrupt,
    abi.ENTRY_INSPECT: OpteeApp._inspect,
    abi.ENTRY_SNAPSHOT: OpteeApp._snapshot,
    abi.ENTRY_RESTORE: OpteeApp._restore,
}


def settings_of(plain: dict[str, object]) -> MediatorSettings:
    """The settings of WELCOME as the mediator's own."""
    values = dict(cast("dict[str, int]", plain["mediator"]))
    limits = cast("dict[str, int]", values.pop("limits"))
    return MediatorSettings(limits=Limits(**limits), **values)  # type: ignore[arg-type]
