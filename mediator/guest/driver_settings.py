# SPDX-License-Identifier: BSD-2-Clause
"""What a driver is told, what it counts, and how it fails."""

from __future__ import annotations

from typing import Final

import attrs

from mediator.guest.profile import LINUX_6_12, Profile

NOTIFICATION_INTID: Final = 219
"""Default interrupt id of asynchronous notifications; a real guest reads it from its device tree."""

DEFAULT_EPOCH: Final = 1_800_000_000 * 10**9
"""Wall-clock time in ns at which virtual time 0 is; no meaning, but not zero."""


class ProbeError(Exception):
    """The driver does not want this secure world; ``reason`` is what its log would say."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RegistrationError(Exception):
    """The secure world refused to register memory: -EINVAL to whoever asked."""

    def __init__(self, result: int) -> None:
        super().__init__(f"REGISTER_SHM: {result:#x}")
        self.result = result


@attrs.frozen
class DriverSettings:
    """What differs between drivers and their machines.

    ``hvc``: the conduit (device tree property "method"). ``notification_intid``: interrupt id that
    the device tree names, None if it names none. ``epoch``: wall-clock ns at virtual time 0.
    ``migrate_every``: after every so many RPCs the thread that serves one moves to the next vCPU,
    so that the RPC is answered from there; 0 leaves it to the scheduler. ``unknown_capabilities``:
    bits (OPTEE_SMC_SEC_CAP_*) that this driver does not know and so ignores; RPC_ARG for Linux
    before 5.18, which makes it call in the classic style. ``processors``: what the kernel takes for
    their number (``nr_cpu_ids``); with one it says UNIPROCESSOR. 0: as many as the guest has.
    ``renews``: it knows that its mediator may die: a call that is answered ENOTAVAIL or ERESUME,
    which no TEE does, means that everything it had there is gone, and it probes again
    (:mod:`mediator.guest.renewal`).
    """

    profile: Profile = LINUX_6_12
    hvc: bool = False
    notification_intid: int | None = NOTIFICATION_INTID
    epoch: int = DEFAULT_EPOCH
    migrate_every: int = 0
    unknown_capabilities: int = 0
    processors: int = 0
    renews: bool = False


class DriverCounters:
    """What a driver counts. All start at 0."""

    __slots__ = (
        "anomalies",
        "bottom_halves",
        "calls",
        "foreign_interrupts",
        "interrupts",
        "migrated_rpcs",
        "notifications",
        "registered_pages",
        "registrations",
        "rpcs",
        "smcs",
        "thread_limits",
    )

    def __init__(self) -> None:
        self.smcs = 0
        """SMCs or HVCs of yielding calls, resumptions included."""
        self.calls = 0
        """Messages sent."""
        self.rpcs: dict[int, int] = {}
        """RPCs served by function (0, 2), or by command + RPC_COMMANDS (CMD)."""
        self.foreign_interrupts = 0
        self.migrated_rpcs = 0
        """RPCs whose answer left from another vCPU than the one they arrived on."""
        self.thread_limits = 0
        """Times ETHREAD_LIMIT was answered."""
        self.registrations = 0
        self.registered_pages = 0
        self.interrupts = 0
        """Notification interrupts."""
        self.notifications = 0
        """Notification values received."""
        self.bottom_halves = 0
        self.anomalies = 0
        """Answers of the secure world that no correct one gives."""
