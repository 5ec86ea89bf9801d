# SPDX-License-Identifier: BSD-2-Clause
"""The reference host and the simulated OP-TEE with the mediator in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from mediator.app.trial import NAME, TRIAL
from mediator.deployment.el0_app.deployment import ENOTAVAIL, El0App
from mediator.deployment.el0_app.manifest import Manifest, optee_manifest
from mediator.deployment.face import Completed
from mediator.optee.settings import MediatorSettings
from tests.mediator.with_optee import GUEST, WithOptee


def trial_manifest(**changes: Any) -> Manifest:
    """The manifest of the app that does what it should not."""
    manifest = attrs.evolve(optee_manifest(), name=NAME, program="python:mediator.app.trial")
    return attrs.evolve(manifest, **changes)


class AppRig(WithOptee):
    """Guests 1 and 2 as in :class:`WithOptee`; ``kind`` makes the deployment."""

    def __init__(
        self,
        kind: type[El0App] = El0App,
        settings: MediatorSettings | None = None,
        **options: Any,
    ) -> None:
        self._kind = kind
        self._options = options
        super().__init__(settings)

    def deploy(self, settings: MediatorSettings | None) -> El0App:
        self.app = self._kind(self.host, settings, self.events.append, **self._options)
        self.bus._guest_of = self.app.guest_of
        return self.app

    def trial(self, what: int, *more: int, guest: int = GUEST) -> tuple[int, ...]:
        """What the app answers to a trial; x0 is ENOTAVAIL if it died of it."""
        frame = (TRIAL, what, *more, 0, 0, 0, 0, 0, 0)[:8]
        out = self.app.handle(guest, 0, frame)
        assert isinstance(out, Completed)
        return out.regs

    def died(self, regs: tuple[int, ...]) -> bool:
        return regs[0] == ENOTAVAIL

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@contextmanager
def app_rig(
    kind: type[El0App] = El0App, settings: MediatorSettings | None = None, **options: Any
) -> Iterator[AppRig]:
    """A rig that is ended."""
    rig = AppRig(kind, settings, **options)
    try:
        yield rig
    finally:
        rig.app.close()
