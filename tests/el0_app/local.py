# SPDX-License-Identifier: BSD-2-Clause
"""An app in the test's own process: :mod:`fuzz.containment.local` for tests."""

from __future__ import annotations

from collections.abc import Callable

from fuzz.containment.local import LocalLauncher, LocalLink
from mediator.app.optee import OpteeApp
from mediator.app.runtime import App
from mediator.deployment.el0_app.deployment import El0App
from mediator.host import Host

Tamper = Callable[[bytes], bytes]


class LocalApp(El0App):
    """The deployment with its app in this process. ``tamper``: changes what it says."""

    app: Callable[[], App] = OpteeApp
    tamper: Tamper | None = None

    def __init__(self, host: Host, *args: object, **options: object) -> None:
        # The signature is that of the deployment; a test names what it wants.
        self.local = LocalLauncher(self, type(self).app)
        super().__init__(host, *args, launcher=self.local, **options)  # type: ignore[arg-type]

    def turn(self, link: LocalLink, message: bytes) -> bytes:
        """Implements ``Interference``."""
        said = link.say(message)
        return said if self.tamper is None else self.tamper(said)
