# SPDX-License-Identifier: BSD-2-Clause
"""Reading ahead: what an app will ask for first goes out with the entry, and saves a round trip.

A mediator begins a call by reading its message. The hypervisor's side remembers which read came first in
the last call with the same x0..x3, and does it before it enters the app the next time. The app takes
the data if the read is the one that it would ask for now, before anything else; otherwise it asks. So
nothing is read that the app did not read itself before, nothing is read at another moment than it would
be (nobody else runs in between), and whether it is right to remember decides about time only.
"""

from __future__ import annotations

from typing import Final

from mediator.deployment.el0_app.grants import Ahead, Open
from mediator.host import Host
from mediator.optee.syscalls import Syscall

ENTRIES: Final = 64
"""Calls of a guest that are remembered. A driver has a few pages for its messages."""

READ_GUEST: Final = int(Syscall.READ_GUEST)

NOTHING: Final[Ahead] = (0, 0, 0)


def learn(entry: Open, read: Ahead) -> None:
    """``read`` succeeded; remember it if it was the first thing in its entry."""
    key = entry.key
    if key is None:
        return
    known = entry.grant.ahead
    if key not in known and len(known) >= ENTRIES:
        del known[next(iter(known))]
    known[key] = read


def fetch(host: Host, entry: Open, read: Ahead) -> bytes | None:
    """Do ``read``; ``None``: there is nothing to send, and it is forgotten."""
    number, address, length = read
    error: Exception | None = None
    try:
        if number == READ_GUEST:
            data = host.read_guest(entry.guest, address, length)
        elif entry.grant.pins.holds(address):
            data = host.read_pinned(entry.guest, address, length)
        else:
            # Not pinned any more: the app will be refused if it asks.
            _forget(entry)
            return None
    except Exception as failure:
        data, error = None, failure
    if data is None:
        # The host was asked, and is not asked again for the same.
        entry.missed = read, error
        _forget(entry)
    return data


def missed(entry: Open, read: Ahead) -> bool:
    """Whether the host has refused this very read already. Raises what the host raised then."""
    if entry.missed is None or entry.missed[0] != read:
        return False
    error = entry.missed[1]
    entry.missed = None
    if error is not None:
        raise error
    return True


def _forget(entry: Open) -> None:
    if entry.key is not None:
        entry.grant.ahead.pop(entry.key, None)
