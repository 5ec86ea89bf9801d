# SPDX-License-Identifier: BSD-2-Clause
"""One system of a swarm, drawn from one number: its guests, its machine, its faults.

Swarm testing: each system leaves out most of what could happen and does much of the rest.
"""

from __future__ import annotations

from random import Random
from typing import Final

import attrs

from fuzz.campaign.cell import (
    CALL_WITH_ARG,
    CALL_WITH_REGD_ARG,
    CALL_WITH_RPC_ARG,
    CellPlan,
)
from fuzz.campaign.operations import OPERATIONS
from mediator.host import PAGE_LIST_ENTRIES
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.host import REFUSABLE
from mediator.hypervisor.scheduler import Mode
from mediator.optee.settings import OFFERED_CAPABILITIES, Limits, MediatorSettings
from mediator.scenario.seeds import derived_seed
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_smc as smc

STRIKES: Final = (
    "death",
    "death and another life",
    "pause",
    "death while paused",
    "page taken away",
    "page read-only",
    "page of another",
    "page replaced",
    "page given away",
    "spurious vIRQ",
    "spurious notification interrupt",
    "bottom half wanted",
    "asynchronous value",
    "masked value",
    "supplicant death",
)
"""What strikes once, at one SMC, and perhaps a few steps of the mediator later."""

ROUNDS: Final = 500
"""Operations of all cells of a system together, on average: some 800 SMCs."""

_STYLES: Final = (
    (CALL_WITH_ARG,),
    (CALL_WITH_RPC_ARG,),
    (CALL_WITH_REGD_ARG, CALL_WITH_RPC_ARG),
    (CALL_WITH_ARG, CALL_WITH_RPC_ARG, CALL_WITH_REGD_ARG),
)
_ALWAYS: Final = {"fast": 1.0, "open": 1.0, "register": 0.7, "carrier": 0.4, "go on": 0.8}
"""Operations of every cell, so that others find sessions, buffers and suspended calls."""


@attrs.frozen
class Strike:
    """``kind`` happens at the ``at``-th SMC of the system, ``depth`` events of the mediator later.

    ``guest``: which guest, ``number``: a drawn number for the rest of it.
    """

    at: int
    depth: int
    kind: str
    guest: int
    number: int


@attrs.frozen(kw_only=True)
class LinuxPlan:
    """A simulated Linux guest. ``involved``: faults may concern it, so it may fail."""

    name: str
    vcpus: int
    classic: bool
    notified: bool
    hvc: bool
    rounds: int
    supplicant_dies: bool


@attrs.frozen(kw_only=True)
class SystemPlan:
    """Everything about one system. Shares are of the calls or interrupts concerned."""

    seed: int
    machine: MachineSettings
    mediator: MediatorSettings
    secure_world: SecureWorldSettings
    shadow_limit: int | None
    cells: tuple[CellPlan, ...]
    linux: tuple[LinuxPlan, ...]
    strikes: tuple[Strike, ...]
    deny: dict[str, float]
    lost_virqs: float
    lost_notifications: float
    preempted: float
    lie: float

    @property
    def guests(self) -> int:
        """How many guests it begins with."""
        return len(self.cells) + len(self.linux)

    @property
    def honest_host(self) -> bool:
        """Whether nothing is refused or told falsely, so that correct guests must succeed."""
        return not self.deny and not self.lie and self.shadow_limit is None


def system_seed(campaign: int, index: int) -> int:
    """The number of one system of a campaign."""
    return derived_seed(campaign, "campaign", index)


def draw_plan(seed: int) -> SystemPlan:
    """The system of this number."""
    rng = Random(seed)
    cells = [_cell(rng, index) for index in range(rng.choice((1, 1, 2, 2, 3)))]
    total = sum(cell.vcpus for cell in cells)
    cells = [attrs.evolve(cell, rounds=ROUNDS // total) for cell in cells]
    linux = [_linux(rng, index) for index in range(rng.choice((0, 0, 0, 0, 0, 1, 1, 2)))]
    lies = rng.random() < 0.25
    count = len(cells) + len(linux)
    mediator, world = _mediator(rng), _secure_world(rng)
    shadow_limit = rng.choice((4, 9, 20)) if rng.random() < 0.1 else None
    if linux:
        # A TEE that gets no memory for RPCs keeps asking, and a driver that serves it sees nothing else.
        shadow_limit = None
        buffers = mediator.limits.rpc_buffers
        enough = buffers if buffers is None else max(buffers, world.threads)
        limits = attrs.evolve(mediator.limits, rpc_buffers=enough)
        mediator = attrs.evolve(mediator, limits=limits)
    return SystemPlan(
        seed=seed,
        machine=MachineSettings(
            pcpus=rng.choice((1, 2, 2, 3)),
            mode=Mode.INTERLEAVE if rng.random() < 0.35 else Mode.DIRECT,
            time_slice=rng.choice((100_000, 1_000_000, 4_000_000)),
            quantum=rng.choice((0, 5_000, 100_000)),
            max_guests=8,
        ),
        mediator=mediator,
        secure_world=world,
        shadow_limit=shadow_limit,
        cells=tuple(cells),
        linux=tuple(linux),
        strikes=_strikes(rng, count),
        deny=_deny(rng),
        lost_virqs=rng.choice((0.2, 0.6)) if rng.random() < 0.4 else 0.0,
        lost_notifications=rng.choice((0.3, 0.7)) if rng.random() < 0.5 else 0.0,
        preempted=rng.choice((0.1, 0.5, 0.9)) if rng.random() < 0.5 else 0.0,
        lie=rng.choice((0.02, 0.1)) if lies else 0.0,
    )


def _cell(rng: Random, index: int) -> CellPlan:
    weights = dict(_ALWAYS)
    names = tuple(OPERATIONS)
    for name in rng.sample(names, rng.randrange(5, 16)):
        weights[name] = rng.choice((0.5, 1.0, 2.0, 4.0))
    if rng.random() < 0.4:
        weights["lock"] = 2.0
    return CellPlan(
        name=f"cell {index}",
        vcpus=rng.choice((1, 1, 2, 3)),
        weights=weights,
        styles=rng.choice(_STYLES),
        lie=rng.choice((0.05, 0.3)) if rng.random() < 0.35 else 0.0,
        leave=rng.choice((0.02, 0.15)) if rng.random() < 0.5 else 0.0,
        rubbish=rng.random() < 0.3,
        notified=rng.random() < 0.5,
        cache=rng.random() < 0.5,
        hvc=rng.random() < 0.2,
        bits=32 if rng.random() < 0.1 else 64,
        scatter=rng.random() < 0.7,
    )


def _linux(rng: Random, index: int) -> LinuxPlan:
    return LinuxPlan(
        name=f"linux {index}",
        vcpus=rng.choice((1, 2)),
        classic=rng.random() < 0.4,
        notified=rng.random() < 0.6,
        hvc=rng.random() < 0.2,
        rounds=rng.choice((2, 5)),
        supplicant_dies=rng.random() < 0.5,
    )


def _mediator(rng: Random) -> MediatorSettings:
    small = rng.random() < 0.4
    limits = Limits(
        calls=rng.choice((None, None, 1, 2, 3)),
        returning=rng.choice((0, 1, 64)),
        buffers=rng.choice((3, 8, 20)) if small else 4096,
        buffer_pages=rng.choice((2, 20, 1100)) if small else 262_145,
        total_pages=rng.choice((10, 100, 2000)) if small else 1_048_576,
        rpc_buffers=rng.choice((1, 2, None)) if small else 256,
        notifications=rng.choice((66, 70, 8191)),
        walk_entries=rng.choice((1, 1, 2, 64)) * PAGE_LIST_ENTRIES,
        pin_entries=rng.choice((1, 2, 16)) * PAGE_LIST_ENTRIES,
    )
    if rng.random() < 0.1:
        return attrs.evolve(MediatorSettings.reference(), limits=attrs.evolve(limits, returning=0))
    hidden = 0
    for bit in (
        smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF,
        smc.OPTEE_SMC_SEC_CAP_RPC_ARG,
        smc.OPTEE_SMC_SEC_CAP_RPMB_PROBE,
        smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL,
    ):
        if rng.random() < 0.08:
            hidden |= bit
    return MediatorSettings(
        limits=limits,
        capabilities=OFFERED_CAPABILITIES & ~hidden,
        hold_waits=rng.random() < 0.9,
        contiguous=rng.random() < 0.9,
        shadow_cache=rng.choice((0, 2, 64)),
        client_id_base=rng.choice((1, 1, 77)),
    )


def _secure_world(rng: Random) -> SecureWorldSettings:
    settings = SecureWorldSettings(
        threads=rng.choice((1, 2, 2, 3, 4, 8)),
        guests=rng.choice((2, 3, 64, 64, 64)),
        dynamic_shm=rng.random() >= 0.01,
        null_memref=rng.random() < 0.95,
        async_notifications=rng.random() < 0.93,
        rpc_arg=rng.random() < 0.9,
        rpmb_probe=rng.random() < 0.9,
        rpc_cache=rng.random() < 0.9,
        reserved_shm=(0x7E00_0000, 0x20_0000) if rng.random() < 0.1 else None,
        max_sessions=rng.choice((4, 4096)),
        max_objects=rng.choice((16, 65536)),
        checkpoints_per_entry=rng.choice((3, 4096)),
    )
    if rng.random() < 0.15:
        # What the simulated OP-TEE does not have, but others report.
        bits = settings.reported_capabilities | smc.OPTEE_SMC_SEC_CAP_UNREGISTERED_SHM
        bits |= rng.choice((0, smc.OPTEE_SMC_SEC_CAP_PROTMEM, 3 << 8))
        settings = attrs.evolve(settings, capabilities=bits)
    return settings


def _strikes(rng: Random, guests: int) -> tuple[Strike, ...]:
    kinds = rng.sample(STRIKES, rng.randrange(2, 8))
    strikes = [
        Strike(
            at=rng.randrange(20, 700),
            depth=rng.choice((0, 0, 1, 2, 3, 5, 9)),
            kind=rng.choice(kinds),
            guest=rng.randrange(guests),
            number=rng.getrandbits(32),
        )
        for _ in range(rng.choice((6, 12, 24, 40)))
    ]
    return tuple(sorted(strikes, key=lambda strike: strike.at))


def _deny(rng: Random) -> dict[str, float]:
    if rng.random() >= 0.3:
        return {}
    calls = rng.sample(REFUSABLE, rng.randrange(1, 3))
    return {call: rng.choice((0.01, 0.04, 0.15)) for call in calls}
