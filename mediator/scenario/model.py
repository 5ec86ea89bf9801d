# SPDX-License-Identifier: BSD-2-Clause
"""What a scenario says, as frozen values. Times are virtual nanoseconds, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from mediator.hypervisor.core import MachineSettings
from mediator.optee.settings import MediatorSettings
from secure_world.settings import SecureWorldSettings

FORMAT: Final = "optee-mediator-scenario"
VERSION: Final = 1

LINUX_6_1: Final = "linux-6.1"
LINUX_6_12: Final = "linux-6.12"
HOSTILE: Final = "hostile"
REPLAY: Final = "replay"
KERNELS: Final = (LINUX_6_12, LINUX_6_1, HOSTILE, REPLAY)

RPC_ARG: Final = "rpc-arg"
CLASSIC: Final = "classic"
STYLES: Final = (RPC_ARG, CLASSIC)

DONE: Final = "done"
DESTROYED: Final = "destroyed"
ANY: Final = "any"
OUTCOMES: Final = (DONE, DESTROYED, ANY)

AT: Final = "at"
CALL: Final = "call"
RPC: Final = "rpc"
GONE: Final = "gone"

DESTROY: Final = "destroy"
CREATE: Final = "create"
BALLOON: Final = "balloon"
DENY_MEMORY: Final = "deny-memory"
ACTIONS: Final = (DESTROY, CREATE, BALLOON, DENY_MEMORY)

ParamValue = bool | int | str


@attrs.frozen(kw_only=True)
class WorkloadPlan:
    """One client program. ``tolerate``: TEE results that end a round but are no failure, None: all.

    ``values``: the parameters of this kind of workload by name.
    """

    run: str
    instances: int = 1
    rounds: int = 1
    forever: bool = False
    pause: int = 0
    tolerate: frozenset[int] | None = frozenset()
    values: Mapping[str, ParamValue] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class GuestPlan:
    """One guest. ``ram``: (IPA, pages). ``later``: an event creates it, not the start.

    ``same_id``: name of a guest whose id it takes over. ``lies``: names of false RPC answers, told
    every ``lie_every`` RPCs. ``attacks`` and ``rounds`` are for hostile guests; ``trace``, ``first``
    and ``last`` (markers) for a replayed one. ``findings``: how many the mediator may note, None:
    any number.
    """

    name: str
    kernel: str = LINUX_6_12
    vcpus: int = 2
    ram: tuple[tuple[int, int], ...] = ()
    scatter: bool = True
    hvc: bool = False
    style: str = RPC_ARG
    supplicant: bool = True
    notifications: bool = True
    migrate_every: int = 0
    lies: tuple[str, ...] = ()
    lie_every: int = 5
    attacks: tuple[str, ...] = ()
    rounds: int = 1
    trace: str = ""
    first: str = ""
    last: str = ""
    later: bool = False
    same_id: str = ""
    outcome: str = DONE
    findings: int | None = 0
    workloads: tuple[WorkloadPlan, ...] = ()

    @property
    def honest(self) -> bool:
        """Whether it is a simulated kernel that does what a correct one does."""
        return self.kernel in (LINUX_6_1, LINUX_6_12) and not self.lies


@attrs.frozen(kw_only=True)
class Trigger:
    """When something happens: AT a time, with the CALL or RPC ``number`` of ``guest``, or once it is
    GONE."""

    kind: str
    number: int = 0
    guest: str = ""


@attrs.frozen(kw_only=True)
class EventPlan:
    """Something that happens to a guest, or to the mediator (DENY_MEMORY).

    BALLOON takes ``pages`` pages from the guest; ``pinned``: pages that it shares with the TEE
    right now, without asking it. DENY_MEMORY lasts for ``duration``.
    """

    do: str
    trigger: Trigger
    guest: str = ""
    pages: int = 0
    pinned: bool = False
    duration: int = 0


@attrs.frozen(kw_only=True)
class Limits:
    """Where a run is cut off. ``steps``: resumptions of an actor; ``time``: virtual ns."""

    steps: int
    time: int


@attrs.frozen(kw_only=True)
class Expectations:
    """What must have happened in the whole run: ``rpcs`` of these kinds, at least ``calls`` calls."""

    rpcs: tuple[str, ...] = ()
    calls: int = 0


@attrs.frozen(kw_only=True)
class Scenario:
    """A whole scenario. ``path``: where it was read; traces are named relative to it."""

    name: str
    path: str
    description: str = ""
    seed: int = 1
    machine: MachineSettings = attrs.field(factory=MachineSettings)
    mediator: MediatorSettings = attrs.field(factory=MediatorSettings)
    preset: str = "default"
    secure_world: SecureWorldSettings = attrs.field(factory=SecureWorldSettings)
    shadow_pages: int | None = None
    guests: tuple[GuestPlan, ...] = ()
    events: tuple[EventPlan, ...] = ()
    limits: Limits
    expect: Expectations = Expectations()
