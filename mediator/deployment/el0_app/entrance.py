# SPDX-License-Identifier: BSD-2-Clause
"""How an app is entered: a message in, its system calls served, until it returns or dies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mediator.deployment import app_abi as abi
from mediator.deployment.el0_app.channel import AppGone, Message
from mediator.deployment.el0_app.grants import NO_GUEST, Grant, Open
from mediator.deployment.el0_app.instance import RETURN, SMC, SWITCHES, Instance, entry_message
from mediator.deployment.el0_app.server import SecureCall, result
from mediator.suspend import PREEMPTION_POINT

MOST_TURNS: Final = 100_000
"""Turns of others that an entry waits for an app that serves one at a time: far more than an entry has
switch points."""


MOST_CALLS: Final = 1 << 16
"""System calls of one entry. The end of a guest with all the buffers that it may have takes some thousand;
an app that asks for ever is never silent."""

_ENDLESS: Final = f"protocol: more than {MOST_CALLS} system calls in one entry"


class Abandoned(Exception):
    """The vCPU whose entry this was is gone."""


class Entrance:
    """Enters apps. ``own``: the account of the hypervisor itself. ``runs``: whether an app has a
    process. ``died``: told of an app's death, with the guest and the reason. ``bury``: told when
    nothing of an app that is dead or of no use is on a stack any more. ``secure_call``: instead of ``host.smc``."""

    __slots__ = ("_bury", "_died", "_own", "_runs", "_secure_call")

    def __init__(
        self,
        own: Grant,
        runs: Callable[[int], bool],
        died: Callable[[Instance, int, str], None],
        bury: Callable[[Instance], None],
        secure_call: SecureCall | None,
    ) -> None:
        self._own = own
        self._runs = runs
        self._died = died
        self._bury = bury
        self._secure_call = secure_call

    async def serve(
        self, instance: Instance, entry: Open, message: bytes, switching: bool
    ) -> Message:
        """Send ``message`` and serve the entry until it returns. Raises :class:`AppGone`."""
        server = instance.server
        nested = switching and not instance.capabilities & abi.CAP_INTERLEAVING
        for _ in range(MOST_CALLS):
            final = instance.turn(entry, message)
            if final.number == RETURN:
                return instance.returned(entry, final)
            if switching and final.number in SWITCHES:
                try:
                    await PREEMPTION_POINT
                    while nested and not instance.dead and instance.open[-1] is not entry:
                        await PREEMPTION_POINT
                except GeneratorExit:
                    self._abandon(instance, entry, final)
                    raise
                if instance.dead:
                    raise AppGone(instance.dead)
            if final.number == SMC and self._secure_call is not None:
                message = await server.execute_smc(entry, final, self._secure_call)
                if instance.is_dead():
                    raise AppGone(instance.dead)
            else:
                message = server.execute(entry, final)
            entry.key = None
        raise AppGone(_ENDLESS)

    def _abandon(self, instance: Instance, entry: Open, message: Message) -> None:
        """The vCPU is gone: let the app give back what the entry holds."""
        if not self._runs(instance.app):
            return
        entry.failed = entry.failed or Abandoned()
        reply = result(message, abi.HOST_FAILED)
        try:
            for _ in range(MOST_CALLS):
                final = instance.turn(entry, reply)
                if final.number == RETURN:
                    return
                reply = instance.server.execute(entry, final)
            raise AppGone(_ENDLESS)
        except AppGone as error:
            self._died(instance, entry.guest, str(error))

    async def enter(
        self,
        instance: Instance,
        grant: Grant,
        number: int,
        payload: bytes,
        args: tuple[int, ...],
        switching: bool,
    ) -> Message | None:
        """One entry from its beginning to its end; ``None``: the app died."""
        entry = instance.begin(number, grant.guest, grant)
        try:
            return await self.serve(
                instance, entry, entry_message(entry, payload, *args), switching
            )
        except AppGone as error:
            self._died(instance, grant.guest, str(error))
            return None
        finally:
            self.leave(instance, entry)

    async def initialise(self, instance: Instance, payload: bytes, *args: int) -> Message:
        """INIT of an app that nobody else knows yet. Raises :class:`AppGone`."""
        entry = instance.begin(abi.ENTRY_INIT, NO_GUEST, self._own)
        try:
            return await self.serve(instance, entry, entry_message(entry, payload, *args), False)
        finally:
            instance.end(entry)

    async def free(self, instance: Instance, switching: bool) -> bool:
        """Wait until the app can be entered; False: it cannot, and nobody may wait here, or not for
        ever: who resumes this may let nobody else run."""
        for _ in range(MOST_TURNS):
            if instance.may_enter():
                return True
            if not switching:
                return False
            await PREEMPTION_POINT
        return False

    def leave(self, instance: Instance, entry: Open) -> None:
        """The entry is over; the last one out of an app that is dead or of no use buries it."""
        instance.end(entry)
        if (instance.dead or instance.needless) and not instance.open:
            self._bury(instance)
