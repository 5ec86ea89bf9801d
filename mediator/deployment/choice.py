# SPDX-License-Identifier: BSD-2-Clause
"""Which home a mediator gets: the choice as a value, and the one place that makes it true."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.instance import Charge, Payer, whoever
from mediator.deployment.el0_app.launch import Arena, Isolation, Launcher, Running, launch
from mediator.deployment.el0_app.manifest import Manifest
from mediator.deployment.el0_app.pool import AppPool
from mediator.deployment.el0_app.server import SharedShadows
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import Host
from mediator.optee.events import Sink
from mediator.optee.settings import MediatorSettings

IN_HYPERVISOR: Final = "in-hypervisor"
EL0_APP: Final = "el0-app"
NAMES: Final = (IN_HYPERVISOR, EL0_APP)
"""Names of the deployments."""

AnyDeployment = InHypervisor | El0App


class Launches:
    """Starts apps, and notes what each process was seen to be: ``isolation``, in order."""

    def __init__(self) -> None:
        self.isolation: list[Isolation] = []

    def __call__(
        self,
        manifest: Manifest,
        arena: Arena,
        settings: bytes,
        offers: int,
        *,
        cpu: int | None,
        require_isolation: bool,
    ) -> Running:
        """As :func:`~mediator.deployment.el0_app.launch.launch`."""
        running = launch(
            manifest, arena, settings, offers, cpu=cpu, require_isolation=require_isolation
        )
        self.isolation.append(running.isolation)
        return running

    def as_json(self) -> list[dict[str, object]]:
        """For ``--json``."""
        return [isolation.as_json() for isolation in self.isolation]


@frozen
class Deployment:
    """A deployment by name. The rest is for an app: its manifest (``None``: the OP-TEE mediator),
    whether every layer of isolation must be there, whether it shares the caller's processor, where
    processes come from, and who starts them."""

    name: str = IN_HYPERVISOR
    manifest: Manifest | None = None
    require_isolation: bool = False
    pinned: bool = True
    pool: AppPool | None = None
    launcher: Launcher = launch

    def make(
        self,
        host: Host,
        settings: MediatorSettings | None = None,
        sink: Sink | None = None,
        *,
        shadows: SharedShadows | None = None,
        suspending: bool = False,
        charge: Charge | None = None,
        payer: Payer = whoever,
    ) -> AnyDeployment:
        """The mediator in its home; :meth:`close` it afterwards.

        Raises :class:`~mediator.deployment.el0_app.launch.LaunchError` if an app cannot be had.
        """
        if self.name == IN_HYPERVISOR:
            return InHypervisor(host, settings, sink, suspending=suspending)
        if self.name != EL0_APP:
            raise ValueError(f"{self.name!r} is no deployment: {', '.join(NAMES)}")
        return El0App(
            host,
            settings,
            sink,
            manifest=self.manifest,
            shadows=shadows,
            suspending=suspending,
            require_isolation=self.require_isolation,
            pinned=self.pinned,
            charge=charge,
            payer=payer,
            pool=self.pool,
            launcher=self.launcher,
        )


def isolation_of(tee: AnyDeployment) -> list[dict[str, object]]:
    """What ``--json`` says of the isolation of each app; nothing in the hypervisor."""
    if isinstance(tee, InHypervisor):
        return []
    return [isolation.as_json() for isolation in tee.isolation]
