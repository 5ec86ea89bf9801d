# SPDX-License-Identifier: BSD-2-Clause
"""What a checker says, and the shape of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import attrs

Event = tuple[object, ...]
Handler = Callable[[Event], None]


@attrs.frozen
class Violation:
    """An invariant does not hold. ``number``: how many events had been seen."""

    invariant: str
    guest: int
    what: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.invariant} guest {self.guest}: {self.what}"


Report = Callable[[str, int, str], None]
"""``report(invariant, guest, what)``."""


class Checker(Protocol):
    """Watches some invariants: which events it wants, and a last look when the run is over."""

    def handlers(self) -> Mapping[type, Handler]:
        """Event class → what to do about it."""

    def finish(self, report: Report) -> None:
        """The run is over and the machine at rest."""
