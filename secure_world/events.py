# SPDX-License-Identifier: BSD-2-Clause
"""What the simulated OP-TEE reports to a sink: plain named tuples, no time (the recorder stamps)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Sink = Callable[[tuple[object, ...]], None]


class PartitionCreated(NamedTuple):
    """VM_CREATED was accepted."""

    client: int


class PartitionDestroyed(NamedTuple):
    """VM_DESTROYED: ``suspended`` threads and ``buffers`` went with the partition."""

    client: int
    suspended: int
    buffers: int


class ThreadStarted(NamedTuple):
    """A yielding call took a thread; ``function`` is a0."""

    client: int
    thread: int
    function: int


class ThreadSuspended(NamedTuple):
    """A thread left for the normal world; ``rpc`` is a0, ``command`` the RPC command or -1."""

    client: int
    thread: int
    rpc: int
    command: int


class ThreadResumed(NamedTuple):
    """RETURN_FROM_RPC found a suspended thread."""

    client: int
    thread: int


class ThreadEnded(NamedTuple):
    """A yielding call ended with ``result`` in a0."""

    client: int
    thread: int
    result: int


class ThreadRefused(NamedTuple):
    """No thread was free (ETHREAD_LIMIT)."""

    client: int


class SessionOpened(NamedTuple):
    """A session exists; ``uuid`` are the 16 octets of the TA."""

    client: int
    session: int
    uuid: bytes


class SessionClosed(NamedTuple):
    """A session is gone."""

    client: int
    session: int


class ShmRegistered(NamedTuple):
    """A buffer of ``pages`` pages is known under ``cookie``; ``guarded`` ones OP-TEE frees itself."""

    client: int
    cookie: int
    pages: int
    guarded: bool


class ShmReleased(NamedTuple):
    """The last reference to a buffer is gone; OP-TEE touches its pages no more."""

    client: int
    cookie: int
    pages: int


class Breach(NamedTuple):
    """The bus refused an access of the secure world (I2), or a page list named such a page."""

    client: int
    address: int
    size: int
    write: bool


class TaPanicked(NamedTuple):
    """A TA instance died."""

    client: int
    uuid: bytes
    code: int


class ImageRefused(NamedTuple):
    """The normal world delivered a TA image that is not genuine."""

    client: int
    uuid: bytes


class NotificationRaised(NamedTuple):
    """An asynchronous notification value became pending in a partition and the interrupt went up."""

    client: int
    value: int


class BottomHalf(NamedTuple):
    """DO_BOTTOM_HALF was served."""

    client: int


Event = (
    PartitionCreated
    | PartitionDestroyed
    | ThreadStarted
    | ThreadSuspended
    | ThreadResumed
    | ThreadEnded
    | ThreadRefused
    | SessionOpened
    | SessionClosed
    | ShmRegistered
    | ShmReleased
    | Breach
    | TaPanicked
    | ImageRefused
    | NotificationRaised
    | BottomHalf
)
