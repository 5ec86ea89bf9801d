# SPDX-License-Identifier: BSD-2-Clause
"""The guests of a scenario: made from their plans, put on the platform, and looked at in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Final

from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings
from mediator.guest.hostile import LIES, Lie
from mediator.guest.profile import LINUX_6_1, LINUX_6_12
from mediator.guest.replayed import RecordedSession, ReplayedGuest
from mediator.hypervisor.guest import Guest as GuestRecord
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.scenario import model
from mediator.scenario.attacks import HostileGuest
from mediator.scenario.model import GuestPlan
from mediator.scenario.platform import Platform
from mediator.scenario.seeds import derived_seed
from mediator.scenario.tally import GuestTally
from mediator.scenario.workloads import WORKLOADS
from mediator.scenario.workloads.task import FAILED, Task
from smccc.constants import optee_smc as smc

LoadSession = Callable[[str, str, str], RecordedSession]
"""``load(trace, first, last)``: a recorded session, by the name that the scenario uses."""

NEVER_CREATED: Final = "never created"
REFUSED: Final = "refused"
STUCK: Final = "stuck"

_PROFILES: Final = {model.LINUX_6_1: LINUX_6_1, model.LINUX_6_12: LINUX_6_12}


class Actor:
    """One guest of the scenario, from its plan to its end. ``record``: the machine's own."""

    def __init__(self, plan: GuestPlan, seed: int, session: RecordedSession | None = None) -> None:
        self.plan = plan
        self.seed = derived_seed(seed, plan.name)
        self.id = -1
        self.tally: GuestTally | None = None
        self.record: GuestRecord | None = None
        self.refusal = ""
        self.guest: Guest | None = None
        self.hostile: HostileGuest | None = None
        self.replay: ReplayedGuest | None = None
        self.tasks: list[Task] = []
        if plan.kernel == model.HOSTILE:
            self.hostile = HostileGuest(plan.attacks, plan.rounds, plan.ram[0][0], self.seed)
        elif plan.kernel == model.REPLAY:
            assert session is not None
            self.replay = ReplayedGuest(session, plan.vcpus, hvc=plan.hvc)
        else:
            shared: dict[str, int] = {}
            for workload in plan.workloads:
                for _ in range(workload.instances):
                    number = sum(task.plan.run == workload.run for task in self.tasks)
                    drawn = derived_seed(self.seed, workload.run, number)
                    self.tasks.append(
                        Task(WORKLOADS[workload.run], workload, number, drawn, shared)
                    )

    @property
    def ram(self) -> tuple[tuple[int, int], ...]:
        """(IPA, pages) of each extent."""
        return self.plan.ram if self.replay is None else self.replay.session.ram

    def spec(self, platform: Platform, guest_id: int | None) -> GuestSpec:
        """What the machine makes it from."""
        plan = self.plan
        if self.hostile is not None:
            programs = self.hostile.programs(plan.vcpus)
        elif self.replay is not None:
            programs = self.replay.programs
        else:
            programs = self._boot(platform).programs
        extents = [
            RamExtent(ipa, pages, scatter=derived_seed(self.seed, ipa) if plan.scatter else None)
            for ipa, pages in self.ram
        ]
        return GuestSpec(plan.name, programs, extents, guest_id=guest_id)

    def _boot(self, platform: Platform) -> Guest:
        plan = self.plan
        unknown = 0
        if plan.style == model.CLASSIC:
            unknown |= smc.OPTEE_SMC_SEC_CAP_RPC_ARG
        if not plan.notifications:
            unknown |= smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
        settings = GuestSettings(
            plan.name,
            plan.ram,
            plan.vcpus,
            seed=derived_seed(self.seed, "memory"),
            driver=DriverSettings(
                profile=_PROFILES[plan.kernel],
                hvc=plan.hvc,
                migrate_every=plan.migrate_every,
                unknown_capabilities=unknown,
            ),
            images=platform.secure_world.registry.images(),
            supplicant=plan.supplicant,
        )
        guest = self.guest = Guest(settings, platform.sink)
        if plan.lies:
            guest.driver.alter_answer = self._liar()
        guest.start(*self.tasks)
        return guest

    def _liar(self) -> Lie:
        """Now and then a false answer, drawn from those of the plan."""
        rng = Random(derived_seed(self.seed, "lies"))
        told = 0

        def lie(fields: list[int]) -> None:
            nonlocal told
            told += 1
            if told % self.plan.lie_every == 0:
                LIES[rng.choice(self.plan.lies)](fields)

        return lie

    def outcome(self) -> str:
        """How it stands, once nothing moves any more."""
        if self.record is None or self.tally is None:
            return REFUSED if self.refusal else NEVER_CREATED
        if self.tally.dying is not None:
            return model.DESTROYED
        return model.DONE if all(vcpu.is_off for vcpu in self.record.vcpus) else STUCK

    def waits(self) -> list[str]:
        """Who waits for what, of a guest that is stuck."""
        if self.guest is not None:
            return [f"thread {name} waits for {what}" for name, what in self.guest.stuck()]
        vcpus = [] if self.record is None else self.record.vcpus
        return [f"vCPU {vcpu.index} is {vcpu.state}" for vcpu in vcpus if not vcpu.is_off]

    def problems(self) -> Iterator[str]:
        """What should not have happened to this guest."""
        plan, outcome = self.plan, self.outcome()
        if outcome != plan.outcome and plan.outcome != model.ANY:
            yield f"is {outcome}, not {plan.outcome}" + (
                f": {self.refusal}" if self.refusal else ""
            )
        if outcome == STUCK:
            yield from self.waits()
        for task in self.tasks:
            if task.state == FAILED:
                yield f"{task.name}: {task.problem}"
        if self.guest is not None and plan.honest:
            for thread, error in self.guest.kernel.failures:
                yield f"thread {thread.name}: {error!r}"
            if self.guest.driver.counters.anomalies:
                number = self.guest.driver.counters.anomalies
                yield f"{number} answers of the TEE that no correct one gives"
            if outcome == model.DONE and len(self.guest.driver.shms):
                yield f"{len(self.guest.driver.shms)} shared memories are left after unloading"
        if self.replay is not None and outcome == model.DONE:
            if not self.replay.finished:
                yield "the recorded session was not played to its end"
            yield from self.replay.differences
        if self.tally is None:
            return
        yield from self.tally.crashes
        found = sum(self.tally.findings.values())
        if plan.findings is not None and found > plan.findings:
            yield f"{found} findings, not at most {plan.findings}: " + self.tally.finding_texts[0]
        if self.tally.quarantined:
            yield "the TEE did not let go of it: its pages and its id are in quarantine"
