# SPDX-License-Identifier: BSD-2-Clause
"""What keeps the hypervisor and its guests alive when an app is not (I9).

A dead app's guests are *lost*: their calls are refused until they are made anew. Their partitions of
the TEE are ended, their pins and the app's shadow pages given back, all from the books of the
hypervisor's side. This waits until no entry into the dead app is left on any stack, because a TEE that
is still executing for a guest must not have its memory taken away. Then the app is started again.

The control domain cannot be made anew: it gets a new partition under a client id that was never used.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, Protocol

from mediator.deployment.el0_app.events import (
    AppDied,
    AppGivenUp,
    GuestLost,
    PartitionCleaned,
    PartitionRenewed,
)
from mediator.deployment.el0_app.grants import NO_GUEST, Grant
from mediator.deployment.el0_app.instance import Instance, Payer
from mediator.deployment.el0_app.iommu import Iommu
from mediator.deployment.el0_app.launch import LaunchError
from mediator.deployment.el0_app.server import SharedShadows, Sink
from mediator.host import Host
from mediator.optee.events import GuestTornDown
from smccc.constants import optee_smc as smc

M32: Final = 0xFFFF_FFFF

MAX_RESTARTS: Final = 3
"""Apps in a row that died before they had served anything for a guest; the next is not started. Also: tries
to start one."""

LAST_CLIENT: Final = 0xFFFF
"""The highest client id (OP-TEE looks at 16 bits). New ids of the control domain count down from it,
those of guests up from the base."""


class Starter(Protocol):
    """What the supervisor needs of the deployment."""

    def start(self) -> Instance:
        """Start an app. Raises :class:`LaunchError` or :class:`AppGone`."""

    def admit(self, instance: Instance, grant: Grant) -> bool:
        """Let ``instance`` create the guest of ``grant``."""

    def rouse(self, grant: Grant) -> None:
        """Nobody will send what the guest's threads wait for: let them go on, to an error."""


class Supervisor:
    """Buries apps. ``control``: the control domain, ``None`` if there is none."""

    __slots__ = (
        "_all",
        "_clients",
        "_control",
        "_deaths",
        "_host",
        "_iommu",
        "_payer",
        "_pool",
        "_sink",
        "_starter",
        "deaths",
        "given_up",
        "next_client",
        "sources",
    )

    def __init__(
        self,
        host: Host,
        pool: SharedShadows,
        iommu: Iommu,
        starter: Starter,
        grants: dict[int, Grant],
        control: int | None,
        sink: Sink | None,
        payer: Payer,
    ) -> None:
        self._host = host
        self._pool = pool
        self._iommu = iommu
        self._starter = starter
        self._all = grants
        self._control = control
        self._payer = payer
        self._sink = sink
        self._deaths = 0
        self._clients: dict[int, int] = {}
        self.sources: dict[int, int] = {}
        """Source of shadow pages by app."""
        self.deaths = 0
        """Apps that died."""
        self.given_up = ""
        """Why no app is started any more; empty as long as one is."""
        self.next_client = LAST_CLIENT

    def guest_of(self, client: int) -> int | None:
        """The guest that a renewed partition belongs to."""
        return self._clients.get(client)

    def died(self, instance: Instance, guest: int, reason: str, end: Callable[[], None]) -> None:
        """The app cannot be talked to: end its process; its guests are lost."""
        if instance.dead:
            return
        instance.dead = reason
        self.deaths += 1
        self._deaths = 0 if instance.served else self._deaths + 1
        end()
        self._emit(AppDied(instance.app, guest, reason))
        self._host.log(guest, f"app {instance.app} has died: {reason}")
        for grant in instance.grants.values():
            grant.lost = True
            if grant.listens:
                self._starter.rouse(grant)
            self._emit(GuestLost(instance.app, grant.guest))

    def bury(self, instance: Instance) -> None:
        """Give back what a dead app had. Called when no entry into it is left."""
        for grant in list(instance.grants.values()):
            self.clean(grant)
        self._pool.select(self.sources[instance.app])
        for shadow in instance.server.shadows.all():
            instance.server.shadows.give_back(shadow)
            self._host.free_shadow(shadow)

    def clean(self, grant: Grant) -> None:
        """As :meth:`_clean`, on the account of that guest, whoever executes."""
        with self._payer(grant.guest):
            self._clean(grant)

    def _clean(self, grant: Grant) -> None:
        """End the partition of a guest, and release its pages, without the app.

        If the TEE does not let go, the pages stay pinned and the host is told to keep them.
        """
        host, pins = self._host, grant.pins
        self._iommu.forget(grant.guest)
        if grant.partition:
            grant.partition = False
            answer = host.smc(smc.OPTEE_SMC_VM_DESTROYED, grant.client, 0, 0, 0, 0, 0, 0)
            grant.answer = answer[0]
        released = 0
        if grant.answer & M32 != smc.OPTEE_SMC_RETURN_OK:
            if not grant.quarantined:
                grant.quarantined = True
                host.quarantine(grant.guest, grant.answer)
        elif pins.count:
            released = pins.count
            host.unpin_pages(grant.guest, pins.everything())
            pins.clear()
        self._emit(GuestTornDown(grant.guest, grant.answer))
        self._emit(PartitionCleaned(grant.guest, grant.client, grant.answer, released))

    def restart(self, instance: Instance) -> Instance | None:
        """A new app in place of one that is buried or taken; ``None``: not any more."""
        if self.given_up:
            return None
        reason = ""
        while self._deaths < MAX_RESTARTS:
            deaths = self.deaths
            try:
                return self._starter.start()
            except LaunchError as error:
                # A machine that is too busy for one start may have the time for the next.
                reason = f": {error}"
                self._host.log(NO_GUEST, str(error))
                if self.deaths == deaths:
                    # It did not even begin.
                    self._deaths += 1
        self._give_up(
            instance, f"{self._deaths} apps in a row died before they served anything{reason}"
        )
        return None

    def must_renew(self, homes: Container[int]) -> bool:
        """Whether the control domain waits for a new partition. ``homes``: guests with an app, alive or
        not buried yet."""
        old = None if self._control is None else self._all.get(self._control)
        return old is not None and old.lost and old.guest not in homes

    def renew(self, instance: Instance) -> None:
        """Give the control domain, which was lost, a new partition in ``instance``."""
        assert self._control is not None
        old = self._all[self._control]
        grant = Grant(old.guest, self.next_client)
        self.next_client -= 1
        self._clients[grant.client] = grant.guest
        _inherit(grant, old)
        if self._starter.admit(instance, grant):
            self._emit(PartitionRenewed(grant.guest, grant.client))

    def _give_up(self, instance: Instance, reason: str) -> None:
        self.given_up = reason
        self._emit(AppGivenUp(instance.app, reason))
        self._host.log(NO_GUEST, f"app {instance.app} is not started again: {reason}")

    def _emit(self, event: tuple[object, ...]) -> None:
        if self._sink is not None:
            self._sink(event)


def _inherit(grant: Grant, old: Grant) -> None:
    """What a guest has used stays on its account; so do pages that the TEE did not let go of.

    Its driver waits for what it waited for, and has to probe again.
    """
    grant.entries, grant.turns = old.entries, old.turns
    grant.syscalls, grant.refused, grant.copied = old.syscalls, old.refused, old.copied
    grant.renewed, grant.listens, grant.owed = True, old.listens, old.owed
    grant.lent = old.lent
    if old.pins.count:
        grant.quarantined = old.quarantined
