# SPDX-License-Identifier: BSD-2-Clause
"""Events of the machine. Plain values without a time: whoever records them asks the clock.

``guest`` and ``vcpu`` are the ids and indexes of the machine, registers are unsigned 64-bit words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

Sink: TypeAlias = Callable[[tuple[object, ...]], None]


class TrapEnter(NamedTuple):
    """A guest executed an HVC (``hvc``) or an SMC."""

    guest: int
    vcpu: int
    hvc: bool
    immediate: int
    regs: tuple[int, ...]


class TrapExit(NamedTuple):
    """The trap was answered. ``advance``: the host stepped over the instruction."""

    guest: int
    vcpu: int
    advance: bool
    regs: tuple[int, ...]


class TrapUndefined(NamedTuple):
    """The trap ended in an undefined instruction exception."""

    guest: int
    vcpu: int


class PsciCall(NamedTuple):
    """The trap was PSCI's. ``result`` is a signed PSCI code, or the name of what happens instead."""

    guest: int
    vcpu: int
    function: int
    result: int | str


class DeviceAccess(NamedTuple):
    """An access of a guest trapped and was served by the mediator, or not (``served`` 0: an abort).

    ``value``: what was stored or loaded, little-endian.
    """

    guest: int
    vcpu: int
    ipa: int
    size: int
    write: int
    value: int
    served: int


class VcpuState(NamedTuple):
    """A vCPU changed state: ``off``, ``ready``, ``running``, ``waiting`` or ``paused``.

    ``pcpu`` is the physical CPU that it is bound to.
    """

    guest: int
    vcpu: int
    pcpu: int
    state: str


class VirqPending(NamedTuple):
    """An interrupt became pending (or pending again) for ``vcpu``, -1 if no vCPU is online."""

    guest: int
    vcpu: int
    intid: int


class VirqLost(NamedTuple):
    """A planted fault: an interrupt that should have become pending did not."""

    guest: int
    vcpu: int
    intid: int


class VirqAcknowledged(NamedTuple):
    """``vcpu`` took an interrupt: it is active now."""

    guest: int
    vcpu: int
    intid: int


class VirqEnded(NamedTuple):
    """``vcpu`` ended an interrupt. ``active`` 0: it was not active there, a guest's mistake."""

    guest: int
    vcpu: int
    intid: int
    active: int


class PhysicalInterrupt(NamedTuple):
    """A physical interrupt that is not a timer's, e.g. the TEE's notification."""

    intid: int


class GuestCreated(NamedTuple):
    """A guest exists. ``tee`` 1: the TEE knows it too."""

    guest: int
    name: str
    tee: int


class GuestRefused(NamedTuple):
    """A guest could not be created; nothing of it is left."""

    guest: int
    name: str
    reason: str


class GuestShutdown(NamedTuple):
    """A guest switched itself off: ``off``, ``reset`` (PSCI) or ``done`` (last program returned)."""

    guest: int
    reason: str


class GuestDying(NamedTuple):
    """Destruction began: no vCPU of the guest runs guest code any more."""

    guest: int


class TeardownPreempted(NamedTuple):
    """The mediator's teardown of the guest stopped half-way and will be entered again."""

    guest: int


class TeeKeepsGuest(NamedTuple):
    """The TEE answered the end of the guest with ``answer`` instead of OK: it goes to quarantine."""

    guest: int
    answer: int


class GuestDestroyed(NamedTuple):
    """Destruction is complete. ``quarantined`` 0: frames and id are free; 1: kept for ever."""

    guest: int
    quarantined: int


class ProgramCrash(NamedTuple):
    """A guest program raised; its vCPU is off. ``text``: the traceback without directories."""

    guest: int
    vcpu: int
    text: str
