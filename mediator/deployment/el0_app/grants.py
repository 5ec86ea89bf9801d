# SPDX-License-Identifier: BSD-2-Clause
"""What the hypervisor's side knows: of the guests that an app serves, and of its open entries."""

from __future__ import annotations

from typing import Final

import attrs

from mediator.deployment.el0_app.events import AppUsed
from mediator.deployment.el0_app.ledger import Pins
from mediator.deployment.el0_app.lent import Lent, Wrote

NO_GUEST: Final = -1
"""Guest of an entry that serves all of them."""


Ahead = tuple[int, int, int]
"""A read: number of the system call, address, length."""


class Grant:
    """What the hypervisor knows about a guest that an app serves.

    ``partition``: the TEE has one for it. ``answer``: that of VM_DESTROYED. ``lost``: the app that
    knew it is gone. ``renewed``: it has a new partition, and its driver has not probed again. ``listens``:
    it has asked for notifications; ``owed``: values (bits) that nobody else will tell it; ``lent``: memory
    that its driver must get back. The counters are what the app did for it: entries, turns (round trips), system
    calls, those of them that were refused, bytes of payload that were copied, and shadow pages that were
    taken for it and not given back, now and at most.
    """

    __slots__ = (
        "ahead",
        "answer",
        "client",
        "copied",
        "entries",
        "guest",
        "lent",
        "listens",
        "lost",
        "owed",
        "partition",
        "pins",
        "quarantined",
        "refused",
        "renewed",
        "shadow_pages",
        "shadow_peak",
        "syscalls",
        "turns",
    )

    def __init__(self, guest: int, client: int) -> None:
        self.guest = guest
        self.client = client
        self.partition = False
        self.answer = 0
        self.lost = False
        self.renewed = False
        self.listens = False
        self.owed = 0
        self.lent = Lent()
        self.quarantined = False
        self.pins = Pins()
        self.ahead: dict[tuple[int, ...], Ahead] = {}
        """What the app read first in the last call with these x0..x3."""
        self.entries = 0
        self.turns = 0
        self.syscalls = 0
        self.refused = 0
        self.copied = 0
        self.shadow_pages = 0
        self.shadow_peak = 0


class Open:
    """An entry that has not returned.

    ``failed``: what a service of the host raised meanwhile; ``stopped``: the app was told to stop.
    ``wrote``: what it wrote to the guest last; ``lent_at``: where the answer lies by which the guest lends
    memory, 0: nowhere. ``key``: x0..x3 of a call until its first system call was served; ``missed``: see :mod:`.ahead`.
    """

    __slots__ = (
        "failed",
        "grant",
        "guest",
        "key",
        "lent_at",
        "missed",
        "name",
        "number",
        "refused_x0",
        "stopped",
        "wrote",
    )

    def __init__(self, name: int, number: int, guest: int, grant: Grant) -> None:
        self.name = name
        self.number = number
        self.guest = guest
        self.grant = grant
        self.failed: Exception | None = None
        self.stopped = False
        self.wrote: Wrote | None = None
        self.lent_at = 0
        self.key: tuple[int, ...] | None = None
        self.missed: tuple[Ahead, Exception | None] | None = None
        self.refused_x0: int | None = None
        """x0 of a call whose results could not be written."""


@attrs.frozen
class Usage:
    """What an app did for one guest; see :class:`Grant`."""

    entries: int
    turns: int
    syscalls: int
    refused: int
    copied: int
    pinned_pages: int
    shadow_pages: int

    def __add__(self, other: Usage) -> Usage:
        mine, others = attrs.astuple(self), attrs.astuple(other)
        return Usage(*(one + two for one, two in zip(mine, others, strict=True)))


def usage(grant: Grant) -> Usage:
    """The counters of a guest as they are now."""
    return Usage(
        grant.entries,
        grant.turns,
        grant.syscalls,
        grant.refused,
        grant.copied,
        grant.pins.count,
        grant.shadow_pages,
    )


def used(grant: Grant) -> AppUsed:
    """The same for a recorder, when the guest is gone."""
    return AppUsed(
        grant.guest,
        grant.entries,
        grant.turns,
        grant.syscalls,
        grant.refused,
        grant.copied,
        grant.shadow_peak,
    )
