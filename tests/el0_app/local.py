# SPDX-License-Identifier: BSD-2-Clause
"""An app in the test's own process: the same messages, no process.

What is compared or attacked thousands of times needs the boundary, not a fresh interpreter each time.
Whether the process keeps it is tested with real ones.
"""

from __future__ import annotations

from collections.abc import Callable

from mediator.app.optee import OpteeApp
from mediator.app.runtime import App, Conversation
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER
from mediator.deployment.el0_app.channel import AppGone, Message, cut
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.launch import LAYERS, Arena, Isolation
from mediator.deployment.el0_app.manifest import Manifest
from mediator.host import Host

Tamper = Callable[[bytes], bytes]


class LocalLink:
    """Implements ``Link`` by calling the app. ``tamper``: changes what it says."""

    def __init__(self, app: App, arena: memoryview, offers: int, settings: bytes) -> None:
        self.talk = Conversation(app, arena)
        self.talk.hello()
        words = (abi.MAJOR, abi.MINOR, offers, len(arena), abi.MAX_ENTRIES, 0, 0, 0)
        head = HEADER.pack(abi.WELCOME, 0, 0, 0, len(settings), 0, *words, 0)
        assert self.talk.welcome(head + settings)
        self.tamper: Tamper | None = None
        self.closed = False
        self.turns = 0

    def exchange(self, message: bytes) -> list[Message]:
        if self.closed:
            raise AppGone("closed: the app has ended")
        self.turns += 1
        said = self.talk.turn(message)
        if self.tamper is not None:
            said = self.tamper(said)
        return cut(said, _no_more)

    def close(self) -> None:
        self.closed = True


def _no_more(_data: bytes, _length: int) -> bytes:
    raise AppGone("closed: the app has ended")


class LocalProcess:
    """In place of a process."""

    def __init__(self, link: LocalLink, capabilities: int) -> None:
        self.link = link
        self.capabilities = capabilities
        self.isolation = Isolation(dict.fromkeys(LAYERS, False), 0, "", "")

    def end(self) -> None:
        self.link.close()

    def move(self, cpu: int) -> None:
        """It runs where the test does."""


class LocalApp(El0App):
    """The deployment with its app in this process."""

    app: Callable[[], App] = OpteeApp
    tamper: Tamper | None = None

    def __init__(self, host: Host, *args: object, **options: object) -> None:
        # The signature is that of the deployment; a test names what it wants.
        super().__init__(host, *args, launcher=self.launched, **options)  # type: ignore[arg-type]

    @classmethod
    def launched(
        cls,
        _manifest: Manifest,
        arena: Arena,
        settings: bytes,
        offers: int,
        *,
        cpu: int | None,
        require_isolation: bool,
    ) -> LocalProcess:
        """As ``launch``."""
        app = cls.app()
        link = LocalLink(app, arena.view, offers, settings)
        link.tamper = cls.tamper
        return LocalProcess(link, app.capabilities)
