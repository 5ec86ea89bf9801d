# SPDX-License-Identifier: BSD-2-Clause
"""Running a scenario: the platform, its guests, what happens to them, and what is found in the end.

>>> from mediator.scenario.reader import parse_scenario
>>> scenario = parse_scenario(b'''
... format = "optee-mediator-scenario"
... version = 1
... name = "one guest"
... [[guest]]
... name = "alpha"
... [[guest.workload]]
... run = "values"
... ''', "example")
>>> result = Run(scenario).execute()
>>> result.ok, result.totals.pins
(True, 0)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, cast

import attrs

from mediator.deployment.choice import Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.grants import NO_GUEST
from mediator.guest.memory import PAGE_SIZE, OutOfMemory
from mediator.guest.replayed import RecordedSession
from mediator.guest.shm import USER
from mediator.hypervisor import machine_events
from mediator.hypervisor.machine import Created, Refused
from mediator.hypervisor.scheduler import Mode, RunEnd
from mediator.optee import events
from mediator.scenario import model
from mediator.scenario.actors import STUCK, Actor, LoadSession
from mediator.scenario.errors import ScenarioError
from mediator.scenario.model import EventPlan, Scenario
from mediator.scenario.platform import Platform, PlatformSettings
from mediator.scenario.recorder import Event, Handler, Listener, Recorder
from mediator.scenario.result import (
    INVARIANTS,
    GuestResult,
    HostileResult,
    InvariantResult,
    OpenWait,
    Problem,
    ReplayResult,
    Result,
    Totals,
    WorkloadResult,
)
from mediator.scenario.tally import FOREIGN_INTR, GuestTally, Tally, rpc_kind
from mediator.scenario.waits import WaitLog
from mediator.scenario.workloads.task import SKIPPED
from secure_world.ta import TaRegistry

APP_SUMS: Final = ("entries", "turns", "syscalls", "refused", "copied")
"""What is summed up of apps' accounts; the rest is memory, which nobody has in the end."""

CHUNK: Final = {Mode.DIRECT: 200, Mode.INTERLEAVE: 20_000}
"""Resumptions between two reports of progress: some hundredths of a second. Always the same, so that
watching a run does not change it."""


@attrs.frozen
class Progress:
    """How far a run is. ``done`` of ``guests`` guests have ended; ``time`` in virtual ns."""

    time: int
    calls: int
    done: int
    guests: int


class Run:
    """One run of a scenario. ``seed`` overrides the scenario's; ``listeners`` get events with times.

    ``registry``: the trusted applications, by default all built-in ones. ``load_session`` reads
    recorded sessions for guests that replay one; :class:`ScenarioError` if one is needed and there
    is no reader.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: int | None = None,
        listeners: Iterable[Listener] = (),
        load_session: LoadSession | None = None,
        registry: TaRegistry | None = None,
        checkers: bool = True,
        deployment: Deployment | None = None,
    ) -> None:
        self.scenario = scenario
        self.seed = scenario.seed if seed is None else seed
        self.actors = [
            Actor(plan, self.seed, _session(scenario, index, load_session))
            for index, plan in enumerate(scenario.guests)
        ]
        self._by_name = {actor.plan.name: actor for actor in self.actors}
        self._by_id: dict[int, Actor] = {}
        self.tally = Tally(scenario.mediator.client_id_base)
        base = scenario.mediator.client_id_base
        self.waits = WaitLog(lambda client: client - base)
        self.recorder = Recorder([self.tally, self.waits, *listeners, _Triggers(self)])
        self.platform = Platform(
            PlatformSettings(
                seed=self.seed,
                machine=scenario.machine,
                mediator=scenario.mediator,
                secure_world=scenario.secure_world,
                checkers=checkers,
                shadow_limit=scenario.shadow_pages,
                deployment=deployment or Deployment(),
            ),
            sinks=[self.recorder],
            registry=registry,
        )
        self.machine = self.platform.machine
        self.recorder.attach(self.machine)

    def close(self) -> None:
        """End the processes of the mediator, if it has any."""
        self.platform.close()

    # --- what happens ----------------------------------------------------------------------------

    def execute(self, progress: Callable[[Progress], None] | None = None) -> Result:
        """Run to the end. Exceptions of the host, the mediator or a listener pass through."""
        for event in self.scenario.events:
            if event.trigger.kind == model.AT:
                self.machine.at(event.trigger.number, partial(self._act, event))
        for actor in self.actors:
            if not actor.plan.later:
                spec = actor.spec(self.platform, None)
                self._note(actor, self.machine.create_guest(spec))
        end = self._run(progress)
        watch = self.platform.watch
        if watch is not None:
            watch.finish()
        outcomes = [actor.outcome() for actor in self.actors]
        problems = list(self._problems(end))
        waiting = tuple([wait for _, wait in self._still_waiting()])
        time = max(self.machine.now(), self.recorder.latest)
        self._switch_off()
        return self._result(end, time, outcomes, problems, waiting)

    def _run(self, progress: Callable[[Progress], None] | None) -> RunEnd:
        limits = self.scenario.limits
        chunk = CHUNK[self.scenario.machine.mode]
        while True:
            left = limits.steps - self.machine.scheduler.steps
            if left <= 0:
                return RunEnd.STEPS
            result = self.machine.run(until_time=limits.time, max_steps=min(chunk, left))
            if progress is not None:
                progress(self._progress())
            if result.end is not RunEnd.STEPS:
                return result.end

    def _progress(self) -> Progress:
        records = [actor.record for actor in self.actors]
        done = sum(r is not None and all(vcpu.is_off for vcpu in r.vcpus) for r in records)
        calls = sum(tally.calls for tally in self.tally.guests)
        return Progress(self.machine.now(), calls, done, len(self.actors))

    def _switch_off(self) -> None:
        """Destroy all guests, so that what is left over shows."""
        for guest in self.machine.guests:
            self.machine.destroy_guest(guest)
        self.machine.run()
        for actor in self.actors:
            if actor.guest is not None:
                actor.guest.close()

    def _note(self, actor: Actor, created: Created | Refused) -> None:
        """A guest was created, or not."""
        if isinstance(created, Refused):
            actor.refusal = created.reason
            self.tally.tell(self.machine.now(), f"{actor.plan.name} is refused: {created.reason}")
            if actor.guest is not None:
                actor.guest.close()
            return
        actor.id = created.guest
        actor.record = self.machine.guest(created.guest)
        actor.tally = self.tally.of(created.guest)
        self._by_id[created.guest] = actor

    # --- events of the plan ----------------------------------------------------------------------

    def actor_of(self, guest: int) -> Actor | None:
        """The guest that has this id now, or had it last."""
        return self._by_id.get(guest)

    def fire(self, event: EventPlan) -> None:
        """Let an event of the plan happen as soon as nobody executes."""
        self.machine.at(self.machine.time(), partial(self._act, event))

    def _act(self, event: EventPlan) -> None:
        now = self.machine.now()
        if event.do == model.DENY_MEMORY:
            self._deny(now, event.duration)
            return
        actor = self._by_name[event.guest]
        if event.do == model.CREATE:
            self.machine.spawn(f"create {actor.plan.name}", self._create(actor))
        elif actor.outcome() in (model.DONE, model.DESTROYED) or actor.record is None:
            self.tally.tell(now, f"{event.do}: {actor.plan.name} is not there any more")
        elif event.do == model.DESTROY:
            self.tally.tell(now, f"{actor.plan.name} is destroyed{_in_flight(actor.tally)}")
            self.machine.destroy_guest(actor.id)
        else:
            self._balloon(now, actor, event)

    async def _create(self, actor: Actor) -> None:
        """Create a guest while others run; a task of the control domain."""
        plan = actor.plan
        wanted: int | None = None
        text = f"{plan.name} is created"
        if plan.same_id:
            wanted = self._by_name[plan.same_id].id
            text += f" under the id of {plan.same_id}, {wanted}"
        self._note(actor, await self.machine.create(actor.spec(self.platform, wanted)))
        if actor.record is not None:
            self.tally.tell(self.machine.now(), text)

    def _deny(self, now: int, duration: int) -> None:
        """The mediator gets no memory for a while beyond what it has."""
        pool = self.platform.host.shadows
        before = pool.limit
        pool.limit = pool.in_use

        def allow() -> None:
            pool.limit = before

        self.tally.tell(now, f"the mediator gets no memory for {duration / 1e6:g} ms")
        self.machine.at(now + duration, allow)

    def _balloon(self, now: int, actor: Actor, event: EventPlan) -> None:
        """Take pages from a guest: such as its balloon gives, or some that it shares with the TEE."""
        guest, pages = actor.guest, event.pages
        assert guest is not None
        if event.pinned:
            table = guest.driver.shms
            shared = [shm for cookie in table.cookies() if (shm := table.find(cookie)) is not None]
            lists = [shm.pages for shm in shared if shm.kind == USER]
            longest = max(lists, key=len, default=())
            # The first page stays: the client works on it.
            taken = list(longest[1:][-pages:])
        else:
            try:
                taken = guest.pages.alloc_user(pages)
            except OutOfMemory:
                taken = []
        for ipa in taken:
            self.platform.host.balloon_out(actor.id, ipa, 1)
        kind = "pages that it shares with the TEE" if event.pinned else "pages"
        self.tally.tell(now, f"{len(taken)} {kind} are taken from {actor.plan.name}")

    # --- the result ------------------------------------------------------------------------------

    def _problems(self, end: RunEnd) -> Iterable[Problem]:
        if end is not RunEnd.IDLE:
            yield Problem(where="run", what=f"was cut off by its limit of {end.value}")
        for actor in self.actors:
            for what in actor.problems():
                yield Problem(where=actor.plan.name, what=what)
        honest = {actor.id for actor in self.actors if actor.plan.honest}
        for guest, wait in self._still_waiting():
            if guest in honest:
                yield Problem(where=wait.guest, what=str(wait))
        watch = self.platform.watch
        if watch is not None and watch.total:
            for violation in watch.violations:
                yield Problem(where=f"invariant {violation.invariant}", what=str(violation))
        expect = self.scenario.expect
        rpcs = self._rpcs()
        # A client that could not run here (a missing extra) cannot cause what it was to cause.
        skipped = any(task.state == SKIPPED for actor in self.actors for task in actor.tasks)
        for kind in expect.rpcs:
            if not rpcs[kind] and not skipped:
                yield Problem(where="expectation", what=f"no RPC {kind} occurred")
        calls = sum(tally.calls for tally in self.tally.guests)
        if calls < expect.calls:
            yield Problem(where="expectation", what=f"{calls} calls, not at least {expect.calls}")

    def _names(self) -> dict[int, str]:
        return {actor.id: actor.plan.name for actor in self.actors}

    def _still_waiting(self) -> list[tuple[int, OpenWait]]:
        locks = self.platform.secure_world.lock_waits()
        return list(self.waits.still_waiting(self._names(), locks))

    def _rpcs(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for tally in self.tally.guests:
            total.update(tally.rpcs)
        return total

    def _result(
        self,
        end: RunEnd,
        time: int,
        outcomes: list[str],
        problems: list[Problem],
        waiting: tuple[OpenWait, ...],
    ) -> Result:
        scenario, platform, tally = self.scenario, self.platform, self.tally
        totals = self._totals(time)
        if totals.pins:
            problems.append(Problem(where="end", what=f"{totals.pins} pages are still pinned"))
        if totals.shadow_pages > totals.shadow_cache:
            what = f"the mediator holds {totals.shadow_pages} pages, at most {totals.shadow_cache}"
            problems.append(Problem(where="end", what=what))
        watch = platform.watch
        late = 0 if watch is None else watch.total - totals.violations
        if late:
            problems.append(
                Problem(where="end", what=f"{late} violations during the last teardown")
            )
        return Result(
            scenario=scenario.name,
            description=scenario.description,
            path=scenario.path,
            seed=self.seed,
            mode=scenario.machine.mode.value,
            pcpus=scenario.machine.pcpus,
            threads=scenario.secure_world.threads,
            preset=scenario.preset,
            checked=watch is not None,
            end=end.value,
            digest=self.recorder.digest(),
            guests=tuple(
                [
                    self._guest(actor, outcome, time)
                    for actor, outcome in zip(self.actors, outcomes, strict=True)
                ]
            ),
            invariants=() if watch is None else tuple(self._invariants()),
            story=tuple(tally.story),
            waits=self.waits.totals(self._names()),
            waiting=waiting,
            totals=totals,
            problems=tuple(problems),
        )

    def _totals(self, time: int) -> Totals:
        tally, platform = self.tally, self.platform
        host = platform.host
        return Totals(
            time=time,
            steps=self.machine.scheduler.steps,
            events=self.recorder.events,
            calls=sum(guest.calls for guest in tally.guests),
            traps=sum(guest.traps for guest in tally.guests),
            rpcs=dict(sorted(self._rpcs().items())),
            sessions=sum(guest.sessions for guest in tally.guests),
            ta_panics=tally.panics,
            thread_limits=tally.thread_limits,
            bus_breaches=tally.breaches,
            preempted_teardowns=tally.preempted_teardowns,
            findings=sum(sum(guest.findings.values()) for guest in tally.guests),
            pins=sum(host.pinned(guest.id) for guest in tally.guests),
            shadow_pages=host.shadows.in_use,
            shadow_cache=self.scenario.mediator.shadow_cache,
            violations=0 if platform.watch is None else platform.watch.total,
            app=self._app_usage(None),
            app_own=self._app_usage(NO_GUEST),
        )

    def _app_usage(self, guest: int | None) -> dict[str, int]:
        """The sums over all apps, for one account or for all; nothing in the hypervisor."""
        tee = self.platform.tee
        if not isinstance(tee, El0App):
            return {}
        usage = tee.total_usage() if guest is None else tee.usage(guest)
        return {name: getattr(usage, name) for name in APP_SUMS}

    def _guest(self, actor: Actor, outcome: str, end: int) -> GuestResult:
        plan, record = actor.plan, actor.record
        tally = actor.tally or GuestTally(-1, plan.name, 0)
        guest = actor.guest
        style = plan.style
        if guest is not None and guest.booted:
            style = model.RPC_ARG if guest.driver.rpc_param_count else model.CLASSIC
        return GuestResult(
            name=plan.name,
            id=actor.id,
            kernel=plan.kernel,
            style="" if guest is None else style,
            conduit="hvc" if plan.hvc else "smc",
            vcpus=plan.vcpus,
            ram=sum(pages for _, pages in actor.ram) * PAGE_SIZE,
            outcome=outcome,
            created=tally.created,
            ended=end if outcome == STUCK else tally.last,
            calls=tally.calls,
            traps=tally.traps,
            sessions=tally.sessions,
            rpcs=dict(sorted(tally.rpcs.items())),
            pages_peak=tally.pages_peak,
            pinned_peak=tally.pinned_peak,
            findings=dict(sorted(tally.findings.items())),
            finding_texts=tuple(tally.finding_texts),
            operations={} if record is None else record.account.operations(),
            spent={} if record is None else record.account.times(self.machine.costs),
            app=dict(tally.app),
            counters={} if guest is None else guest.counters(),
            checks=sum(task.checks for task in actor.tasks),
            workloads=tuple(
                [
                    WorkloadResult(
                        name=task.name,
                        run=task.plan.run,
                        state=task.state,
                        rounds=task.rounds,
                        checks=task.checks,
                        tolerated=task.tolerated,
                        problem=task.problem,
                    )
                    for task in actor.tasks
                ]
            ),
            replay=_replay(actor),
            hostile=_hostile(actor),
        )

    def _invariants(self) -> Iterable[InvariantResult]:
        watch = self.platform.watch
        assert watch is not None
        counts = self.recorder.counts
        for ident, meaning, what, kinds in INVARIANTS:
            yield InvariantResult(
                id=ident,
                meaning=meaning,
                looked_at=sum(counts.get(kind, 0) for kind in kinds),
                what=what,
                violations=tuple([str(v) for v in watch.violations if v.invariant == ident]),
            )


class _Triggers:
    """Counts calls and RPCs, and lets the plan's events happen when their turn comes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._waiting = [e for e in run.scenario.events if e.trigger.kind != model.AT]
        self._counts: Counter[tuple[str, str]] = Counter()

    def handlers(self) -> Mapping[type, Handler]:
        """Nothing, unless the plan has events that wait for something."""
        if not self._waiting:
            return {}
        return {
            events.CallStarted: self._call,
            events.RpcToGuest: self._rpc,
            machine_events.GuestDestroyed: self._gone,
        }

    def _call(self, time: int, event: Event) -> None:
        self._count(model.CALL, cast("int", event[0]))

    def _rpc(self, time: int, event: Event) -> None:
        guest, _, _, function, command = cast("events.RpcToGuest", event)
        if rpc_kind(function, command) != FOREIGN_INTR:
            self._count(model.RPC, guest)

    def _gone(self, time: int, event: Event) -> None:
        self._count(model.GONE, cast("int", event[0]))

    def _count(self, kind: str, guest: int) -> None:
        actor = self._run.actor_of(guest)
        if actor is None:
            return
        name = actor.plan.name
        self._counts[kind, name] += 1
        number = self._counts[kind, name]
        for event in list(self._waiting):
            trigger = event.trigger
            if trigger.kind == kind and trigger.guest == name and trigger.number in (0, number):
                self._waiting.remove(event)
                self._run.fire(event)


def _session(scenario: Scenario, index: int, load: LoadSession | None) -> RecordedSession | None:
    plan = scenario.guests[index]
    if plan.kernel != model.REPLAY:
        return None
    if load is None:
        reason = "a replayed guest needs a reader of traces (load_session)"
        raise ScenarioError(scenario.path, 0, f"guest[{index}].trace", reason)
    return load(plan.trace, plan.first, plan.last)


def _in_flight(tally: GuestTally | None) -> str:
    """What a guest leaves behind at this moment, in words."""
    if tally is None or not tally.in_flight:
        return " between calls"
    waits = [kind for kind in tally.in_flight.values() if kind]
    text = (
        f" with {len(tally.in_flight)} calls in flight" if len(tally.in_flight) > 1 else " mid-call"
    )
    if waits:
        text += ", waiting for RPC " + " and ".join(dict.fromkeys(waits))
    return f"{text}; {tally.pinned} pages are pinned"


def _replay(actor: Actor) -> ReplayResult | None:
    replay = actor.replay
    if replay is None:
        return None
    return ReplayResult(
        recording=replay.session.title,
        calls=len(replay.session.calls),
        answers=replay.session.answers,
        alike=replay.alike,
        astray=replay.astray,
        different=replay.different,
        differences=tuple(replay.differences),
    )


def _hostile(actor: Actor) -> HostileResult | None:
    hostile = actor.hostile
    if hostile is None:
        return None
    return HostileResult(attacks=hostile.done, statuses=dict(sorted(hostile.outcomes.items())))
