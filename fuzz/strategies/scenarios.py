# SPDX-License-Identifier: BSD-2-Clause
"""Small whole-platform scenarios and faults: what :func:`fuzz.platform.check_case` runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
from hypothesis import strategies as st

from fuzz.platform import (
    DENIABLE,
    STAGE2_KINDS,
    PlatformCase,
    PlatformFaults,
    SpuriousInterrupt,
    Stage2Change,
)
from fuzz.strategies.remember import remembered
from mediator.guest.hostile import LIES
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.scheduler import Mode
from mediator.optee.settings import Limits as MediatorLimits
from mediator.optee.settings import MediatorSettings
from mediator.scenario import model
from mediator.scenario.attacks import ATTACKS
from mediator.scenario.model import (
    EventPlan,
    GuestPlan,
    Limits,
    ParamValue,
    Scenario,
    Trigger,
    WorkloadPlan,
)
from mediator.scenario.workloads import WORKLOADS
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_smc as smc

STEPS: Final = 150_000
"""Resumptions of an actor: a hundred times what a drawn scenario takes."""

TIME: Final = 100 * 10**9
"""Virtual time at which a run is cut off, ns."""

EARLY: Final = 4_000_000
"""Virtual time in which things happen, ns: probing takes about a tenth of it, all programs two to four times it."""

RAM: Final = ((0x4000_0000, 1024), (0x8000_0000, 512))
"""6 MiB in two extents: twice what the drawn workloads need."""

SMALL: Final[Mapping[str, Mapping[str, int]]] = {
    "values": {},
    "sessions": {"sessions": 2},
    "time": {"sleep": 100_000},
    "memrefs": {"size": 9000},
    "short-buffers": {},
    "large-memory": {"from": 4096, "size": 70_000, "windows": 1},
    "resident": {"size": 40_000},
    "contention": {"lock": 0, "steps": 3, "sleep": 50_000},
    "busy": {"steps": 5, "step": 50_000},
    "panic": {},
}
"""Workloads that end soon, with small parameters. Those of :data:`WORKLOADS` that need the extra
``crypto``, pairs of instances or long runs are left out."""

INTIDS: Final = (0, 15, 27, 31, 32, 219, 1019)
"""SGIs, PPIs, the virtual timer, SPIs, among them the notification interrupt of the device tree."""


def _workload(name: str, rounds: int, instances: int) -> WorkloadPlan:
    kind = WORKLOADS[name]
    values: dict[str, ParamValue] = {}
    for field in kind.fields:
        default = field.default
        assert isinstance(default, bool | int | str)
        values[field.name] = SMALL[name].get(field.name, default)
    return WorkloadPlan(run=name, rounds=rounds, instances=instances, values=values)


def workload_plans() -> st.SearchStrategy[WorkloadPlan]:
    """One small client program."""
    return st.builds(_workload, st.sampled_from(tuple(SMALL)), st.integers(1, 2), st.integers(1, 2))


@remembered
@st.composite
def guest_plans(draw: st.DrawFn, name: str) -> GuestPlan:
    """An honest, a lying or a hostile guest; honest ones first."""
    kind = draw(st.sampled_from((model.LINUX_6_12, model.LINUX_6_1, "liar", model.HOSTILE)))
    vcpus = draw(st.integers(1, 3))
    if kind == model.HOSTILE:
        attacks = draw(
            st.lists(st.sampled_from(tuple(ATTACKS)), min_size=1, max_size=3, unique=True)
        )
        return GuestPlan(
            name=name,
            kernel=kind,
            vcpus=vcpus,
            ram=RAM,
            attacks=tuple(attacks),
            outcome=model.ANY,
            findings=None,
        )
    lies: list[str] = []
    if kind == "liar":
        lies = draw(st.lists(st.sampled_from(tuple(LIES)), min_size=1, max_size=3, unique=True))
    return GuestPlan(
        name=name,
        kernel=model.LINUX_6_12 if lies else kind,
        vcpus=vcpus,
        ram=RAM,
        scatter=draw(st.booleans()),
        hvc=draw(st.booleans()),
        style=draw(st.sampled_from(model.STYLES)),
        migrate_every=draw(st.sampled_from((0, 1, 3))),
        lies=tuple(lies),
        lie_every=draw(st.integers(1, 4)),
        outcome=model.ANY if lies else model.DONE,
        findings=None,
        workloads=tuple(draw(st.lists(workload_plans(), min_size=1, max_size=3))),
    )


def _triggers(names: tuple[str, ...]) -> st.SearchStrategy[Trigger]:
    early = st.integers(0, EARLY)
    return st.one_of(
        early.map(lambda time: Trigger(kind=model.AT, number=time)),
        st.builds(
            Trigger,
            kind=st.sampled_from((model.CALL, model.RPC)),
            number=st.integers(1, 30),
            guest=st.sampled_from(names),
        ),
    )


@st.composite
def _events(draw: st.DrawFn, guests: tuple[GuestPlan, ...]) -> tuple[EventPlan, ...]:
    """Up to two events: destroy, balloon (pinned or not), deny memory."""
    names = tuple([plan.name for plan in guests])
    # Only kernels count their calls, and only they have a balloon.
    kernels = tuple([plan.name for plan in guests if plan.kernel != model.HOSTILE])
    found: list[EventPlan] = []
    for _ in range(draw(st.integers(0, 2))):
        do = draw(st.sampled_from((model.DESTROY, model.BALLOON, model.DENY_MEMORY)))
        trigger = draw(
            _triggers(kernels)
            if kernels
            else st.integers(0, EARLY).map(lambda time: Trigger(kind=model.AT, number=time))
        )
        if do == model.DENY_MEMORY:
            found.append(EventPlan(do=do, trigger=trigger, duration=draw(st.integers(1, EARLY))))
        elif do == model.DESTROY:
            found.append(EventPlan(do=do, trigger=trigger, guest=draw(st.sampled_from(names))))
        elif kernels:
            found.append(
                EventPlan(
                    do=do,
                    trigger=trigger,
                    guest=draw(st.sampled_from(kernels)),
                    pages=draw(st.integers(1, 8)),
                    pinned=draw(st.booleans()),
                )
            )
    return tuple(found)


@st.composite
def _mediators(draw: st.DrawFn) -> tuple[MediatorSettings, str]:
    """All offers, the classic style only, or tight limits."""
    what = draw(st.sampled_from(("default", "classic", "tight")))
    default = MediatorSettings()
    if what == "classic":
        offers = default.capabilities & ~smc.OPTEE_SMC_SEC_CAP_RPC_ARG
        return MediatorSettings(capabilities=offers), "default"
    if what == "tight":
        pins = draw(st.sampled_from((511, 8176)))
        limits = MediatorLimits(walk_entries=511, pin_entries=pins)
        return MediatorSettings(limits=limits), "default"
    return default, "default"


@remembered
@st.composite
def scenarios(draw: st.DrawFn, most: int = 3) -> Scenario:
    """One to ``most`` guests with small programs, and up to two events. Any seed, either mode."""
    names = [f"guest{index}" for index in range(draw(st.integers(1, most)))]
    guests = tuple([draw(guest_plans(name)) for name in names])
    settings, preset = draw(_mediators())
    events = draw(_events(guests))
    destroyed = {event.guest for event in events}
    return Scenario(
        name="drawn",
        path="drawn",
        seed=draw(st.integers(0, 0xFFFF)),
        machine=MachineSettings(
            mode=draw(st.sampled_from((Mode.DIRECT, Mode.INTERLEAVE))),
            pcpus=draw(st.integers(1, 3)),
            time_slice=draw(st.sampled_from((4_000_000, 200_000))),
        ),
        mediator=settings,
        preset=preset,
        secure_world=SecureWorldSettings(
            threads=draw(st.sampled_from((4, 2, 1))),
            async_notifications=draw(st.booleans()),
            rpc_cache=draw(st.booleans()),
        ),
        guests=tuple([_may_end(plan, plan.name in destroyed) for plan in guests]),
        events=events,
        limits=Limits(steps=STEPS, time=TIME),
    )


def _may_end(plan: GuestPlan, destroyed: bool) -> GuestPlan:
    """A guest to which something happens may end in any way."""
    return attrs.evolve(plan, outcome=model.ANY) if destroyed else plan


@remembered
@st.composite
def platform_faults(draw: st.DrawFn, guests: int) -> PlatformFaults:
    """Faults of a machine with ``guests`` guests; mostly none or of one kind."""
    what = draw(
        st.sampled_from(("none", "deny", "lost", "spurious", "change", "preempt", "several"))
    )
    several = what == "several"
    guest = st.integers(0, guests - 1)
    time = st.integers(0, EARLY)
    return PlatformFaults(
        deny=tuple(
            draw(
                st.lists(
                    st.tuples(st.sampled_from(DENIABLE), st.integers(0, 40)),
                    max_size=2,
                    unique_by=lambda denial: denial[0],
                )
            )
            if several or what == "deny"
            else ()
        ),
        lost=tuple(
            draw(st.lists(st.integers(0, 30), max_size=2)) if several or what == "lost" else ()
        ),
        spurious=tuple(
            draw(
                st.lists(
                    st.builds(
                        SpuriousInterrupt, time, guest, st.integers(0, 2), st.sampled_from(INTIDS)
                    ),
                    max_size=2,
                )
            )
            if several or what == "spurious"
            else ()
        ),
        changes=tuple(
            draw(
                st.lists(
                    st.builds(
                        Stage2Change,
                        time,
                        guest,
                        st.integers(0, 7),
                        st.sampled_from(STAGE2_KINDS[1:]),
                        st.none() | st.integers(0, 2 * EARLY),
                    ),
                    max_size=3,
                )
            )
            if several or what == "change"
            else ()
        ),
        preempt=tuple(
            draw(st.lists(st.booleans(), min_size=1, max_size=24))
            if several or what == "preempt"
            else ()
        ),
    )


@remembered
@st.composite
def platform_cases(draw: st.DrawFn, most: int = 3) -> PlatformCase:
    """A scenario of up to ``most`` guests and its faults."""
    scenario = draw(scenarios(most))
    return PlatformCase(scenario=scenario, faults=draw(platform_faults(len(scenario.guests))))
