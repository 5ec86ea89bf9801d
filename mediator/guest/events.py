# SPDX-License-Identifier: BSD-2-Clause
"""What a guest tells its sink: results as a client program sees them. Events carry no time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

Sink = Callable[[tuple[object, ...]], None]

LOG_ENTRIES: Final = 10_000
"""Results that a :class:`ResultLog` keeps by default; older ones go, so a long run stays bounded."""

OPEN: Final = "open"
INVOKE: Final = "invoke"
CLOSE: Final = "close"
CANCEL: Final = "cancel"
REGISTER: Final = "register"
RELEASE: Final = "release"


class ClientCall(NamedTuple):
    """A client's operation has ended.

    ``operation``: one of the names above; ``target``: UUID of the TA, or bytes of shared memory;
    ``number``: command of an invoke, otherwise 0; ``result`` and ``origin``: TEE_Result codes.
    """

    guest: str
    thread: str
    operation: str
    target: str
    number: int
    result: int
    origin: int


class GuestBooted(NamedTuple):
    """The driver has probed: what it was offered."""

    guest: str
    profile: str
    capabilities: int
    threads: int
    devices: int


class GuestStopped(NamedTuple):
    """All programs of a guest have ended; ``failures`` of them by an exception."""

    guest: str
    failures: int


class ResultLog:
    """A sink that keeps the latest client results, for tables."""

    def __init__(self, entries: int = LOG_ENTRIES) -> None:
        self.entries: deque[ClientCall] = deque(maxlen=entries)
        self.total = 0

    def __call__(self, event: tuple[object, ...]) -> None:
        """Keep ``event`` if it is a :class:`ClientCall`."""
        if isinstance(event, ClientCall):
            self.entries.append(event)
            self.total += 1
