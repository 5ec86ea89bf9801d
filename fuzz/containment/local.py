# SPDX-License-Identifier: BSD-2-Clause
"""An app in the process of its hypervisor: the same messages, no process.

What is attacked thousands of times needs the boundary, not a fresh interpreter each time. Whether a
process keeps to itself is another question, and asked of real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from mediator.app.optee import OpteeApp
from mediator.app.runtime import App, Conversation
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER
from mediator.deployment.el0_app.channel import AppGone, Message, cut
from mediator.deployment.el0_app.launch import LAYERS, Arena, Isolation, Running
from mediator.deployment.el0_app.manifest import Manifest

ENDED: Final = "closed: the app has ended"


class Interference(Protocol):
    """What comes between the hypervisor and an app."""

    def turn(self, link: LocalLink, message: bytes) -> bytes:
        """What the hypervisor hears after ``message``; raises :class:`AppGone` for nothing at all."""


class Honest:
    """Nothing does. ``turns``: how many there were."""

    def __init__(self) -> None:
        self.turns = 0

    def turn(self, link: LocalLink, message: bytes) -> bytes:
        """See :class:`Interference`."""
        self.turns += 1
        return link.say(message)


class LocalLink:
    """Implements :class:`~mediator.deployment.el0_app.channel.Link` by calling the app.

    ``app``: which one it is, in order of their starts. ``entries``: names of open entries and what
    they are (numbers of the app ABI), oldest first. ``arena``: the memory that it shares.
    """

    def __init__(
        self,
        app: App,
        number: int,
        arena: memoryview,
        offers: int,
        settings: bytes,
        interference: Interference,
        heard: Callable[[], None],
    ) -> None:
        self.number = number
        self._heard = heard
        self.entries: dict[int, int] = {}
        self.closed = False
        self.arena = arena
        self._interference = interference
        self._talk = Conversation(app, arena)
        self._talk.hello()
        words = (abi.MAJOR, abi.MINOR, offers, len(arena), abi.MAX_ENTRIES, 0, 0, 0)
        head = HEADER.pack(abi.WELCOME, 0, 0, 0, len(settings), 0, *words, 0)
        if not self._talk.welcome(head + settings):
            raise AssertionError("the app does not want this hypervisor")

    def exchange(self, message: bytes) -> list[Message]:
        """See :class:`~mediator.deployment.el0_app.channel.Link`."""
        if self.closed:
            raise AppGone(ENDED)
        kind, number, _, entry, *_ = HEADER.unpack_from(message)
        if kind == abi.ENTRY:
            self.entries[entry] = number
        said = cut(self._interference.turn(self, message), _no_more)
        self._heard()
        if said[-1].number == 0:
            self.entries.pop(said[-1].entry, None)
        return said

    def say(self, message: bytes) -> bytes:
        """Let the app hear ``message``, and nobody else what it says."""
        try:
            return self._talk.turn(message)
        except Exception as error:
            # As the runtime of a process does.
            return self._talk.panic(message, error)

    def close(self) -> None:
        """See :class:`~mediator.deployment.el0_app.channel.Link`."""
        self.closed = True


def _no_more(_data: bytes, _length: int) -> bytes:
    raise AppGone(ENDED)


class LocalProcess:
    """In place of a process."""

    def __init__(self, link: LocalLink, capabilities: int, ended: Callable[[], None]) -> None:
        self.link = link
        self.capabilities = capabilities
        self.isolation = Isolation(dict.fromkeys(LAYERS, False), 0, "", "")
        self._ended = ended

    def end(self) -> None:
        """See :class:`~mediator.deployment.el0_app.launch.Running`; likewise below."""
        if not self.link.closed:
            self._ended()
        self.link.close()

    def move(self, cpu: int) -> None:
        """It runs where its hypervisor does."""


class LocalLauncher:
    """Implements :class:`~mediator.deployment.el0_app.launch.Launcher`.

    ``make``: the app. ``traced``: it may report what it does. ``starts``: how many there were, ``running``: those that were not ended.
    ``turns``: of all of them, those that a channel would have taken.
    """

    def __init__(
        self,
        interference: Interference | None = None,
        make: Callable[[], App] = OpteeApp,
        *,
        traced: bool = True,
    ) -> None:
        self._withheld = 0 if traced else abi.OFFER_TRACE
        self._interference = interference or Honest()
        self._make = make
        self.starts = 0
        self.running = 0
        self.turns = 0

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
        """Start an app."""
        app = self._make()
        offers &= ~self._withheld
        link = LocalLink(
            app, self.starts, arena.view, offers, settings, self._interference, self._heard
        )
        self.starts += 1
        self.running += 1
        return LocalProcess(link, app.capabilities, self._gone)

    def _gone(self) -> None:
        self.running -= 1

    def _heard(self) -> None:
        self.turns += 1
