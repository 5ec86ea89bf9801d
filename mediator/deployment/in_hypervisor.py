# SPDX-License-Identifier: BSD-2-Clause
"""The mediator as part of the hypervisor: every system call is a direct call of the host.

:class:`InHypervisor` is the public face for hosts that know nothing of coroutines: they implement
:class:`mediator.host.Host` and call :meth:`~mediator.deployment.face.Face.handle` for each trap.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import cast

from mediator.deployment.direct import DirectSyscalls as DirectSyscalls
from mediator.deployment.face import (
    DONE,
    PREEMPTED,
    REFUSED,
    Done,
    Face,
    Preempted,
    Refused,
    Registers8,
)
from mediator.deployment.suspending import SuspendingSyscalls as SuspendingSyscalls
from mediator.host import Host
from mediator.optee.events import Sink
from mediator.optee.lifecycle import Probe
from mediator.optee.mediator import GuestInfo, OpteeMediator, Wait
from mediator.optee.settings import MediatorSettings
from mediator.optee.syscalls import Syscalls


class InHypervisor(Face):
    """A mediator on a host, in the hypervisor.

    ``host``: the services. ``settings``: offers and limits. ``sink``: gets the mediator's events.
    ``suspending``: every system call of the async methods is a switch point.
    """

    __slots__ = ("_direct", "_syscalls", "host", "mediator")

    def __init__(
        self,
        host: Host,
        settings: MediatorSettings | None = None,
        sink: Sink | None = None,
        *,
        suspending: bool = False,
    ) -> None:
        super().__init__()
        self.host = host
        self.mediator = OpteeMediator(settings, sink)
        self._direct: Syscalls = DirectSyscalls(host)
        self._syscalls: Syscalls = SuspendingSyscalls(host) if suspending else self._direct

    def guest_of(self, client: int) -> int:
        """The guest behind a client id of the TEE."""
        return self.mediator.guest_of(client)

    def close(self) -> None:
        """Nothing has to be ended here."""

    # --- for hosts without coroutines -------------------------------------------------------

    def probe(self, *, device_tree_node: bool = True) -> Probe:
        """Look for OP-TEE. Without its device tree node the TEE is not even asked."""
        if not device_tree_node:
            return Probe(False, 0, "no linaro,optee-tz node in the device tree")
        return self._run(self.mediator.probe(self._direct))

    def create_guest(self, guest: int) -> Done | Refused:
        """Tell the TEE of a new guest. ``Refused``: it has no room for it."""
        taken = self._run(self.mediator.guest_created(self._direct, guest))
        return DONE if taken else REFUSED

    def destroy_guest(self, guest: int) -> Done | Preempted:
        """Release everything of a guest. ``Preempted``: enter again."""
        done = self._run(self.mediator.guest_destroyed(self._direct, guest))
        return DONE if done else PREEMPTED

    def _trapped(
        self, guest: int, vcpu: int, regs: tuple[int, ...]
    ) -> Coroutine[object, None, tuple[int, ...] | None]:
        return self.mediator.handle(self._direct, guest, vcpu, regs)

    def notification_interrupt(self) -> Done | Preempted:
        """The TEE raised its notification interrupt. ``Preempted``: enter again."""
        done = self._run(self.mediator.notification_interrupt(self._direct))
        return DONE if done else PREEMPTED

    def waits(self) -> tuple[Wait, ...]:
        """The threads of the TEE that wait now."""
        return self.mediator.waits()

    def guest_info(self, guest: int) -> GuestInfo | None:
        """Counters of a guest, ``None`` if it has no context."""
        return self.mediator.guest_info(guest)

    def snapshot(self) -> dict[str, object]:
        """The mediator's state as plain data, between entries."""
        return self.mediator.snapshot()

    def restore(self, data: dict[str, object]) -> None:
        """Go back to a snapshot. ``ValueError`` if it is none of this version."""
        self._run(self.mediator.restore(self._direct, data))

    # --- for hosts that are coroutines themselves -------------------------------------------

    def handle_regs(
        self, guest: int, vcpu: int, regs: Registers8
    ) -> Coroutine[object, None, Registers8 | None]:
        """As :meth:`handle`, for a driver of coroutines; ``None``: not mine."""
        out = self.mediator.handle(self._syscalls, guest, vcpu, regs)
        return cast("Coroutine[object, None, Registers8 | None]", out)

    async def guest_created(self, guest: int) -> bool:
        """``False``: the TEE refused."""
        return await self.mediator.guest_created(self._syscalls, guest)

    async def physical_interrupt(self, intid: int) -> bool:
        """The TEE raised interrupt ``intid``, and it has only one. ``False``: enter again."""
        return await self.mediator.notification_interrupt(self._syscalls)

    async def timer_expired(self) -> bool:
        """Nothing here sets a timer: what waits is asked for when its vCPU has rested."""
        return True

    async def guest_destroyed(self, guest: int) -> bool:
        """``False``: enter again."""
        return await self.mediator.guest_destroyed(self._syscalls, guest)
