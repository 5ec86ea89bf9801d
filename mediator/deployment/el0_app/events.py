# SPDX-License-Identifier: BSD-2-Clause
"""What happens to apps, for a sink. ``app``: a number that is never used again."""

from __future__ import annotations

from typing import NamedTuple


class AppStarted(NamedTuple):
    """A process was started and has said HELLO; ``isolation``: layers that are missing, if any."""

    app: int
    name: str
    missing: str


class AppRefused(NamedTuple):
    """A system call of the app was refused; ``call`` and ``status`` are numbers of the app ABI."""

    app: int
    guest: int
    call: int
    status: int


class AppDied(NamedTuple):
    """The app was ended: it crashed, was silent, or said what no app may say."""

    app: int
    guest: int
    reason: str


class GuestLost(NamedTuple):
    """What the app knew of the guest is gone: its calls are refused until it is made anew."""

    app: int
    guest: int


class PartitionCleaned(NamedTuple):
    """The TEE was told that ``client`` is gone, and ``pins`` pages were released."""

    guest: int
    client: int
    answer: int
    pins: int


class PartitionRenewed(NamedTuple):
    """The control domain has a new partition under a client id that was never used."""

    guest: int
    client: int


class AppUsed(NamedTuple):
    """What apps did for a guest that is gone now: entries, round trips, system calls, those that were
    refused, bytes of payload copied, and the most shadow pages that it had."""

    guest: int
    entries: int
    turns: int
    syscalls: int
    refused: int
    copied: int
    shadow_peak: int


class AppGivenUp(NamedTuple):
    """The app cannot be started again, or died too often without serving anything."""

    app: int
    reason: str
