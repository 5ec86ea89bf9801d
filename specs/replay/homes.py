# SPDX-License-Identifier: BSD-2-Clause
"""The mediator of a replay in either home: entries as coroutines, of which only ``smc`` suspends."""

from __future__ import annotations

from typing import Protocol, cast

from mediator.deployment.choice import IN_HYPERVISOR, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.hypervisor.host import ReferenceHost
from mediator.optee.events import Sink
from mediator.optee.mediator import OpteeMediator
from mediator.optee.settings import MediatorSettings
from specs.replay.drive import ReplaySyscalls, Work, secure_call


class Home(Protocol):
    """What a replay enters."""

    def probe(self) -> Work:
        """Look for the TEE."""

    def guest_created(self, guest: int) -> Work:
        """A guest begins."""

    def guest_destroyed(self, guest: int) -> Work:
        """A guest ends."""

    def handle(self, guest: int, vcpu: int, regs: tuple[int, ...]) -> Work:
        """A guest trapped."""

    def interrupt(self) -> Work:
        """The TEE raised its notification interrupt."""

    def close(self) -> None:
        """The replay is over."""


class InHypervisorHome:
    """The mediator in this process."""

    def __init__(self, host: ReferenceHost, settings: MediatorSettings, sink: Sink) -> None:
        self._mediator = OpteeMediator(settings, sink)
        self._sys = ReplaySyscalls(host)

    def probe(self) -> Work:
        return cast("Work", self._mediator.probe(self._sys))

    def guest_created(self, guest: int) -> Work:
        return cast("Work", self._mediator.guest_created(self._sys, guest))

    def guest_destroyed(self, guest: int) -> Work:
        return cast("Work", self._mediator.guest_destroyed(self._sys, guest))

    def handle(self, guest: int, vcpu: int, regs: tuple[int, ...]) -> Work:
        return cast("Work", self._mediator.handle(self._sys, guest, vcpu, regs))

    def interrupt(self) -> Work:
        return cast("Work", self._mediator.notification_interrupt(self._sys))

    def close(self) -> None:
        """Nothing has to be ended."""


class AppHome:
    """The mediator in a process of its own."""

    def __init__(
        self, host: ReferenceHost, settings: MediatorSettings, sink: Sink, home: Deployment
    ) -> None:
        self._app = El0App(
            host,
            settings,
            sink,
            manifest=home.manifest,
            control=None,
            require_isolation=home.require_isolation,
            pinned=home.pinned,
            pool=home.pool,
            launcher=home.launcher,
            secure_call=secure_call,
        )

    def probe(self) -> Work:
        return cast("Work", self._app.probing())

    def guest_created(self, guest: int) -> Work:
        return cast("Work", self._app.guest_created(guest))

    def guest_destroyed(self, guest: int) -> Work:
        return cast("Work", self._app.guest_destroyed(guest))

    def handle(self, guest: int, vcpu: int, regs: tuple[int, ...]) -> Work:
        frame = cast("tuple[int, int, int, int, int, int, int, int]", regs)
        return cast("Work", self._app.handle_regs(guest, vcpu, frame))

    def interrupt(self) -> Work:
        return cast("Work", self._app.physical_interrupt(0))

    def close(self) -> None:
        self._app.close()


def home_of(
    deployment: Deployment, host: ReferenceHost, settings: MediatorSettings, sink: Sink
) -> Home:
    """The mediator in the home that was chosen."""
    if deployment.name == IN_HYPERVISOR:
        return InHypervisorHome(host, settings, sink)
    return AppHome(host, settings, sink, deployment)
