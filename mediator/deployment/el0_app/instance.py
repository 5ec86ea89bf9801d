# SPDX-License-Identifier: BSD-2-Clause
"""One app: its process, its arena, the guests that it serves, and what it has open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER
from mediator.deployment.el0_app.channel import AppGone, Link, Message
from mediator.deployment.el0_app.grants import Grant, Open
from mediator.deployment.el0_app.server import Server
from mediator.deployment.el0_app.windows import Windows
from mediator.optee.syscalls import Syscall

RETURN: Final = int(Syscall.RETURN)
PANIC: Final = int(Syscall.PANIC)
SMC: Final = int(Syscall.SMC)

SWITCHES: Final = frozenset(
    int(call)
    for call in (
        Syscall.READ_GUEST,
        Syscall.WRITE_GUEST,
        Syscall.READ_PAGE_LIST,
        Syscall.PIN_PAGES,
        Syscall.UNPIN_PAGES,
        Syscall.READ_PINNED,
        Syscall.WRITE_PINNED,
        Syscall.ALLOC_SHADOW,
        Syscall.SMC,
        Syscall.SHOULD_PREEMPT,
    )
)
"""System calls before which others may run, where the deployment is suspending: those that are switch
points in the hypervisor too (:mod:`mediator.deployment.suspending`)."""

OUTCOMES: Final = {
    abi.ENTRY_INIT: (abi.OUTCOME_DONE, abi.OUTCOME_REFUSED),
    abi.ENTRY_GUEST_CREATED: (abi.OUTCOME_DONE, abi.OUTCOME_REFUSED),
    abi.ENTRY_GUEST_DESTROYED: (abi.OUTCOME_DONE, abi.OUTCOME_PREEMPTED),
    abi.ENTRY_HANDLE_SMC: (abi.OUTCOME_DONE, abi.OUTCOME_NOT_MINE),
    abi.ENTRY_HANDLE_MMIO: (abi.OUTCOME_DONE, abi.OUTCOME_NOT_MINE),
    abi.ENTRY_HANDLE_TIMER: (abi.OUTCOME_DONE, abi.OUTCOME_PREEMPTED),
    abi.ENTRY_HANDLE_INTERRUPT: (abi.OUTCOME_DONE, abi.OUTCOME_PREEMPTED),
    abi.ENTRY_INSPECT: (abi.OUTCOME_DONE,),
    abi.ENTRY_SNAPSHOT: (abi.OUTCOME_DONE,),
    abi.ENTRY_RESTORE: (abi.OUTCOME_DONE, abi.OUTCOME_REFUSED),
}
"""What each entry may return; FAILED only after a service of the host failed."""

_NAME_BITS: Final = 8
_SERIALS: Final = 1 << 24
_SHORT: Final = 64
"""Bytes of payload that cost no more than the registers of a message."""
_PAGE: Final = 4096

Payer = Callable[[int], AbstractContextManager[None]]
"""Within the context, work is on the account of this guest (-1: of the machine itself)."""
Charge = Callable[[int, int], None]
"""Told of round trips and of pages copied across the boundary: ``(round trips, pages)``."""

_pack = HEADER.pack


def whoever(_guest: int) -> AbstractContextManager[None]:
    """A payer where nobody keeps accounts: work is on that of whoever executes."""
    return nullcontext()


class Instance:
    """An app that runs, or has run (``dead``), and of which nothing is left (``buried``).

    ``needless``: it was for one guest, which is gone.
    ``open``: entries that have not returned, oldest first.
    """

    __slots__ = (
        "_exchange",
        "app",
        "buried",
        "capabilities",
        "charge",
        "dead",
        "grants",
        "link",
        "needless",
        "open",
        "reads_ahead",
        "serial",
        "served",
        "server",
        "windows",
    )

    def __init__(
        self,
        app: int,
        link: Link,
        capabilities: int,
        server: Server,
        grants: dict[int, Grant],
        windows: Windows,
        charge: Charge | None,
    ) -> None:
        self.app = app
        self.link = link
        self._exchange = link.exchange
        self.capabilities = capabilities
        self.reads_ahead = False
        """Whether the app is sent what it will read first (:mod:`.ahead`)."""
        self.server = server
        self.grants = grants
        self.windows = windows
        self.charge = charge
        self.open: list[Open] = []
        self.dead = ""
        self.buried = False
        self.needless = False
        self.serial = 0
        self.served = 0
        """Entries for a guest that came to their end."""

    def is_dead(self) -> bool:
        """Whether the app has died."""
        return bool(self.dead)

    def may_enter(self) -> bool:
        """Whether the app can take another entry now."""
        if not self.open:
            return True
        return bool(self.capabilities & abi.CAP_NESTING) and len(self.open) < abi.MAX_ENTRIES

    def begin(self, number: int, guest: int, grant: Grant) -> Open:
        """Note a new entry."""
        self.serial = (self.serial + 1) % _SERIALS
        entry = Open(self.serial << _NAME_BITS | len(self.open), number, guest, grant)
        grant.entries += 1
        self.open.append(entry)
        return entry

    def end(self, entry: Open) -> None:
        """The entry is over, one way or the other."""
        self.open.remove(entry)
        if self.windows.opened:
            self.windows.end(entry.name)

    def turn(self, entry: Open, message: bytes) -> Message:
        """Send an ENTRY or a RESULT; serve what the app posts; what it wants an answer to.

        Raises :class:`AppGone`.
        """
        if self.dead:
            raise AppGone(self.dead)
        opened = self.windows.opened
        if opened:
            self.windows.show()
        turn = self._exchange(message)
        if opened:
            self.windows.take()
        # What it says is paid for, whatever it is.
        final = turn.pop()
        grant = entry.grant
        grant.turns += 1
        copied = len(message) - abi.HEADER_SIZE + len(final.payload)
        # What is left was posted.
        for said in turn:
            copied += len(said.payload)
        grant.copied += copied
        if self.charge is not None:
            self.charge(1, -(-(copied - _SHORT) // _PAGE) if copied > _SHORT else 0)
        if final.number == PANIC:
            text = final.payload[: abi.MAX_LOG].decode("utf-8", "replace")
            raise AppGone(f"panic: {text}")
        name = entry.name
        if final.entry != name:
            raise AppGone(f"protocol: it spoke for entry {final.entry:#x}")
        for said in turn:
            if said.entry != name:
                raise AppGone(f"protocol: it spoke for entry {said.entry:#x}")
        for said in turn:
            self.server.post(entry, said)
        return final

    def returned(self, entry: Open, message: Message) -> Message:
        """Check a RETURN."""
        if entry.failed is not None:
            raise entry.failed
        if message.status not in OUTCOMES[entry.number]:
            raise AppGone(f"protocol: entry {entry.number} returned {message.status}")
        if (
            message.status == abi.OUTCOME_PREEMPTED
            and not entry.stopped
            and all(other is entry or other.guest != entry.guest for other in self.open)
        ):
            # Only entries of the same guest on their way out are a reason, too; otherwise this app
            # would let somebody try for ever.
            raise AppGone(f"protocol: entry {entry.number} stopped without being told to")
        if entry.guest >= 0:
            self.served += 1
        return message


def entry_message(entry: Open, payload: bytes = b"", *args: int) -> bytes:
    """The ENTRY."""
    words = args + (0,) * (8 - len(args))
    return _pack(abi.ENTRY, entry.number, 0, entry.name, len(payload), 0, *words, 0) + payload
