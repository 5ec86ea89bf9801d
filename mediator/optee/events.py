# SPDX-License-Identifier: BSD-2-Clause
"""What the mediator tells a sink. Typed, immutable, without time (the recorder stamps them)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Sink = Callable[[tuple[object, ...]], None]


NO_CALL = -1
"""In place of a call's serial number: a fast call or a life-cycle step."""
NO_GUEST = -1
"""In place of a guest: the TEE is entered for the hypervisor itself."""


class CallStarted(NamedTuple):
    """A yielding call was accepted: ``call`` is unique per guest, ``command`` a message command."""

    guest: int
    call: int
    vcpu: int
    function: int
    command: int


class Forwarded(NamedTuple):
    """The TEE is entered with these registers on behalf of ``guest`` (-1: the hypervisor itself)."""

    guest: int
    call: int
    vcpu: int
    registers: tuple[int, ...]


class Answered(NamedTuple):
    """The TEE returned x0..x3."""

    guest: int
    call: int
    vcpu: int
    registers: tuple[int, int, int, int]


class RpcToGuest(NamedTuple):
    """A suspended call goes to the guest; ``command`` is -1 unless the function is CMD."""

    guest: int
    call: int
    thread: int
    function: int
    command: int


class RpcAnswered(NamedTuple):
    """The guest came back to a suspended call on ``vcpu``."""

    guest: int
    call: int
    thread: int
    vcpu: int


class CallEnded(NamedTuple):
    """A yielding call is over; ``status`` is x0 for the guest."""

    guest: int
    call: int
    vcpu: int
    status: int


class BufferTaken(NamedTuple):
    """``pages`` pages were pinned under ``reference``; kind as in ``records.BUFFER_KINDS``."""

    guest: int
    kind: int
    reference: int
    pages: int


class BufferReleased(NamedTuple):
    """The pins of a buffer are gone."""

    guest: int
    kind: int
    reference: int
    pages: int


class WaitBegan(NamedTuple):
    """The TEE's ``thread`` waits for ``key``; ``held``: the mediator keeps the wait, not the guest."""

    guest: int
    call: int
    thread: int
    key: int
    held: int


class WaitEnded(NamedTuple):
    """That wait is over: sent, timed out, or its call is."""

    guest: int
    call: int
    thread: int
    key: int


class SendKept(NamedTuple):
    """The TEE sent ``key`` to a wait of the same guest that the mediator keeps, or will keep."""

    guest: int
    key: int


class NotificationsTaken(NamedTuple):
    """The TEE told these notification values of ``guest``: a bitmap."""

    guest: int
    values: int


class GuestInterrupted(NamedTuple):
    """There are new notification values for ``guest``: interrupt ``intid`` was injected."""

    guest: int
    intid: int


class GuestTornDown(NamedTuple):
    """The mediator holds nothing of the guest any more; ``answer`` is that of VM_DESTROYED."""

    guest: int
    answer: int


class Finding(NamedTuple):
    """Something that a well-behaved guest or secure world does not do; contained and counted."""

    guest: int
    rule: str
    detail: str
