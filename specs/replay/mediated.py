# SPDX-License-Identifier: BSD-2-Clause
"""Replay as mediator: the recorded normal world above our mediator, the recorded OP-TEE below it.

Each recorded call is one entry of the mediator, run as a coroutine in which only the system call
``smc`` suspends. What is forwarded is compared with the record of that call; when the record of the
matching return comes, the recorded OP-TEE writes what it wrote then, at the addresses that it was
handed, and the coroutine goes on with the recorded registers. So calls of several processors
interleave here exactly as they did on the recorded machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from mediator.deployment.choice import Deployment
from mediator.optee.events import Finding
from mediator.optee.settings import MediatorSettings
from secure_world.bus import BusError
from smccc.constants import optee_smc as smc
from smccc.registers import low32, pair
from specs.replay import names, rules
from specs.replay.allowed import Allowance
from specs.replay.chain import Enter, Flight, Leave, Step, adopted, follow
from specs.replay.compare import Difference, differences, temporary
from specs.replay.drive import (
    NO_ANSWER,
    OWN_CALLS,
    Answer,
    Driver,
    Entry,
    SmcRequest,
)
from specs.replay.homes import home_of
from specs.replay.judge import Judge, Sight
from specs.replay.machine import Machine
from specs.replay.normal_world import NormalWorld
from specs.replay.notified import values_read
from specs.replay.reader import Trace
from specs.replay.records import Marker, Return
from specs.replay.result import MediatorResult, Tally
from specs.replay.scripted import ScriptedSecureWorld
from specs.replay.survey import HYPERVISOR, Survey, survey

FORWARDED: Final = "forwarded"
ANSWERED: Final = "answered"

MAX_EXTRA_CALLS: Final = 32
"""Entries of the secure world that one recorded return may lead to; a mediator gives up at 16."""

Plant = Callable[["MediatorReplay", Step, str, tuple[int, ...]], None]
"""Called after each comparison (self-check): replay, step, side, the registers on that side."""


class MediatorReplay:
    """One trace, replayed once. ``plant``: see :mod:`specs.replay.selfcheck`."""

    def __init__(
        self,
        trace: Trace,
        settings: MediatorSettings | None = None,
        plant: Plant | None = None,
        progress: Callable[[int], None] | None = None,
        deployment: Deployment | None = None,
    ) -> None:
        self.trace = trace
        self.facts: Survey = survey(trace)
        # The mediator keeps the waits of a guest without notifications for the sake of what another
        # guest may release. The recorded OP-TEE has released nothing that way.
        self.settings = settings or MediatorSettings(hold_waits=False)
        # What may be hidden does not follow the mediator's own defaults.
        known = settings or attrs.evolve(self.settings, capabilities=rules.PASSED_CAPABILITIES)
        self.machine = Machine(self.facts)
        self.normal = NormalWorld(self.machine)
        self.scripted = ScriptedSecureWorld(self.machine.bus)
        self.judge = Judge(self.facts, self.machine, self.normal, self.scripted, known)
        self.allowed = Allowance(
            self.facts, self.settings, self.machine, self.normal, self.scripted, self.judge
        )
        self.tally = Tally()
        self._findings: list[str] = []
        self.home = home_of(
            deployment or Deployment(), self.machine.host, self.settings, self._sink
        )
        self._driver = Driver(self.facts)
        self._plant = plant
        self._progress = progress
        self._entries: dict[int, Entry] = {}
        self._live: set[int] = set()
        self._more: dict[int, int] = {}
        """Client to the instances that the recorded OP-TEE has of it beyond the first."""
        self._dying: dict[int, None] = {}
        self._values = values_read([])
        self._lost: dict[Flight, tuple[list[Difference], list[str]]] = {}
        self._by_mediator = 0
        self._unanswered = 0
        self._markers = 0
        self._interrupts = 0

    # --- the whole run ------------------------------------------------------------------------------

    def run(self) -> MediatorResult:
        """Replay the trace from end to end."""
        self._driver.complete(self.home.probe())
        happenings = follow(self.trace, self.facts)
        self._values = values_read(
            [happening.step for happening in happenings if isinstance(happening, Enter)]
        )
        for client in adopted(happenings, self.facts):
            self._create(client)
        for number, happening in enumerate(happenings):
            if isinstance(happening, Enter):
                self._enter(happening.step)
            elif isinstance(happening, Leave):
                self._leave(happening.step)
            elif isinstance(happening, Marker):
                self._markers += 1
            else:
                self._interrupts += happening.entered
            if self._progress is not None and not number & 0xFF:
                self._progress(number)
        return self._finish()

    def _finish(self) -> MediatorResult:
        for entry in self._entries.values():
            # The trace ends inside this call: whatever it is answered is compared with nothing.
            self._unanswered += 1
            self._judge_call(entry)
            if not entry.finished and entry.work is not None:
                self._driver.drive(entry, NO_ANSWER)
        self._entries.clear()
        before = self.machine.pinned()
        for client in sorted(self._live):
            self._destroy(client)
        return MediatorResult(
            path=self.trace.path,
            scenario=self.trace.meta.text("scenario"),
            threads=self.facts.threads,
            events=self.facts.events,
            transparent=self.tally.transparent,
            unanswered=self._unanswered,
            classes=self.tally.classes(),
            rules=self.tally.rules,
            differences=tuple(self.tally.differences),
            different_events=self.tally.different_events,
            blind=self.tally.blind,
            own_calls=self._driver.own,
            answered_by_mediator=self._by_mediator,
            interrupts=self._interrupts,
            markers=self._markers,
            pinned_before_teardown=before,
            pinned=self.machine.pinned(),
            shadow_pages=len(self.machine.shadow_addresses()),
            findings=tuple(self._findings),
            notes=tuple(
                [f"unknown field {f}, {n} times" for f, n in sorted(self.trace.unknown.items())]
            ),
        )

    def _sink(self, event: tuple[object, ...]) -> None:
        if isinstance(event, Finding):
            self._findings.append(f"guest {event.guest}: {event.rule}: {event.detail}")

    # --- guests that the trace does not create ------------------------------------------------------

    def _create(self, client: int) -> None:
        if not self.machine.has_guest(client):
            self.machine.add_guest(client)
        self._driver.complete(self.home.guest_created(client - 1))
        self._live.add(client)

    def _destroy(self, client: int) -> None:
        self._driver.complete(self.home.guest_destroyed(client - 1))
        self._live.discard(client)
        self.scripted.forget(client)
        self.normal.forget(client)

    # --- a recorded call ---------------------------------------------------------------------------------

    def _enter(self, step: Step) -> None:
        call = step.call
        if self.facts.virtualization and step.client == HYPERVISOR:
            entry = self._hypervisor(step)
        else:
            if not self.machine.has_guest(step.client):
                self.machine.add_guest(step.client)
            self.normal.enter(step)
            if step.function == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE:
                self._values.tell(step, self._notify)
            work = self.home.handle(step.client - 1, call.cpu, call.regs)
            entry = Entry(step, work)
            self._driver.start(entry)
        self._entries[call.cpu] = entry
        if entry.forwarded is not None:
            self._forwarded(entry)
        elif (
            entry.finished
            and step.request is not None
            and isinstance(entry.result, tuple)
            and low32(entry.result[0]) == smc.OPTEE_SMC_RETURN_RPC_CMD
        ):
            self._free_for_the_mediator(entry)

    def _notify(self, client: int, numbers: list[int]) -> None:
        """The secure world has notification values for ``client`` and raises its interrupt."""
        self._driver.pending[client] = numbers
        self._driver.complete(self.home.interrupt())
        self._driver.pending.clear()

    def _hypervisor(self, step: Step) -> Entry:
        """A call of the hypervisor itself: a life-cycle step of a guest, or none of our business."""
        client = low32(step.call.regs[1]) & 0xFFFF
        create = step.function == smc.OPTEE_SMC_VM_CREATED
        destroy = step.function == smc.OPTEE_SMC_VM_DESTROYED
        if create and client != HYPERVISOR and client not in self._live:
            if not self.machine.has_guest(client):
                self.machine.add_guest(client)
            entry = Entry(step, self.home.guest_created(client - 1))
        elif destroy and client in self._live and not self._more.get(client):
            entry = Entry(step, self.home.guest_destroyed(client - 1))
        else:
            if client in self._live and step.answer is not None:
                # OP-TEE accepts a second instance of a client; it takes as many ends.
                accepted = low32(step.answer.regs[0]) == smc.OPTEE_SMC_RETURN_OK
                change = (create - destroy) * accepted
                self._more[client] = self._more.get(client, 0) + change
            rule = rules.LIFE_CYCLE if create or destroy else rules.HYPERVISOR_CALL
            return Entry(step, None, rules=[rule])
        request = self._driver.drive(entry, None)
        entry.forwarded = None if request is None else request.regs
        if request is None and destroy:
            # Entries of the guest are still under way on other processors.
            entry.rules.append(rules.TEARDOWN)
            self._dying[client] = None
        return entry

    def _forwarded(self, entry: Entry) -> None:
        step, regs = entry.step, entry.forwarded
        assert regs is not None
        sight = self.judge.forwarded(step, regs)
        self._note(sight)
        entry.found += differences(step.call, step.name, FORWARDED, sight.items)
        entry.rules += sight.rules
        if self._plant is not None and sight.equal:
            self._plant(self, step, FORWARDED, regs)
        self.scripted.entered(step, regs)

    def _note(self, sight: Sight) -> None:
        for reason in sight.blind:
            self.tally.not_seen(reason)

    def _free_for_the_mediator(self, entry: Entry) -> None:
        """The mediator asks the guest to free an allocation: allowed if it cannot be shared."""
        step = entry.step
        if not self.allowed.unshareable(step):
            return
        assert isinstance(entry.result, tuple)
        _, a1, a2, thread = entry.result[:4]
        regs = (names.RETURN_FROM_RPC, a1, a2, thread, 0, 0, 0, step.call.regs[7])
        work = self.home.handle(step.client - 1, step.call.cpu, regs)
        entry.work, entry.finished, entry.result = work, False, None
        request = self._driver.drive(entry, None)
        if request is None:
            return
        entry.forwarded = request.regs
        entry.rules.append(rules.UNTRANSLATABLE)
        # OP-TEE is told that its allocation failed: only the call itself is as recorded.
        plain = attrs.evolve(step, call=attrs.evolve(step.call, rpc_arg=None, buffers=()))
        sight = self.judge.forwarded(plain, request.regs)
        entry.found += differences(step.call, step.name, FORWARDED, sight.items)

    # --- a recorded return ------------------------------------------------------------------------------

    def _leave(self, step: Step) -> None:
        entry = self._entries.pop(step.call.cpu)
        answer = step.answer
        assert answer is not None
        if entry.work is None:
            self._judge_call(entry)
            self.tally.judge(answer, step.name, [], entry.rules)
            return
        lost = None if step.flight is None else self._lost.get(step.flight)
        if lost is not None:
            self._follow_lost(entry, lost)
            return
        if entry.forwarded is not None:
            self._resume(entry)
        else:
            self._by_mediator += 1
        if step.client == HYPERVISOR:
            self._life_cycle(entry)
            return
        found, by = self._judge_answer(entry)
        if entry.forwarded is None:
            # Nothing was forwarded: the answer alone decides about the call, too.
            entry.rules += by
            self._judge_call(entry, [_not_forwarded(entry)] if found else None)
        else:
            self._judge_call(entry)
        self.tally.judge(answer, step.name, found, by)
        if step.flight is not None:
            self._lose_if_out_of_step(entry, found, by)
        self.normal.leave(step, answer)
        self._retry_teardown()

    def _resume(self, entry: Entry) -> None:
        """Play the recorded answer and let the mediator finish."""
        step = entry.step
        assert step.answer is not None
        value = self._played(entry, step.answer)
        request = self._driver.drive(entry, value)
        rounds = 0
        while request is not None:
            function = low32(request.regs[0])
            if function in OWN_CALLS:
                value = self._driver.answer(request)
            else:
                self._entered_again(entry, request)
                value = self._final_answer(entry)
            rounds += 1
            if rounds > MAX_EXTRA_CALLS:
                assert entry.work is not None
                entry.work.close()
                entry.finished = True
                return
            request = self._driver.drive(entry, value)

    def _played(self, entry: Entry, answer: Return) -> Answer:
        """What the recorded OP-TEE does for a return; memory that it lost is a difference."""
        try:
            return self.scripted.answer(entry.step, answer)
        except BusError as error:
            entry.found.append(
                Difference(
                    answer.seq,
                    answer.line,
                    entry.step.answer_name,
                    ANSWERED,
                    "bus",
                    "memory that OP-TEE was handed",
                    str(error),
                )
            )
            return answer.regs[0], answer.regs[1], answer.regs[2], answer.regs[3]

    def _entered_again(self, entry: Entry, request: SmcRequest) -> None:
        """The mediator does not hand a recorded return to the guest but enters OP-TEE again."""
        step = entry.step
        assert step.answer is not None
        content = step.answer.rpc_arg
        if content is not None and temporary(content.data):
            entry.diverted = rules.ADDRESS_IN_REQUEST
        elif (step.client, pair(*step.answer.regs[1:3])) in self.judge.dropped:
            entry.diverted = rules.RESERVED
        if entry.diverted:
            entry.rules.append(entry.diverted)
            return
        entry.found.append(
            Difference(
                step.answer.seq,
                step.answer.line,
                step.answer_name,
                ANSWERED,
                "smc",
                "none",
                " ".join([f"{register:#x}" for register in request.regs]),
            )
        )

    def _final_answer(self, entry: Entry) -> Answer:
        """End a flight that left the recorded path with the end that it had in the recording."""
        flight = entry.step.flight
        if flight is None or flight.final is None:
            return NO_ANSWER
        return self._played(entry, attrs.evolve(flight.final, buffers=()))

    def _judge_call(self, entry: Entry, more: list[Difference] | None = None) -> None:
        found = entry.found + (more or [])
        self.tally.judge(entry.step.call, entry.step.name, found, entry.rules)

    def _judge_answer(self, entry: Entry) -> tuple[list[Difference], list[str]]:
        step = entry.step
        answer = step.answer
        assert answer is not None
        if entry.diverted:
            return [], [entry.diverted]
        sight = self.judge.answered(step, entry.regs)
        self._note(sight)
        if sight.equal:
            if self._plant is not None:
                self._plant(self, step, ANSWERED, entry.regs)
            return [], sight.rules
        if entry.forwarded is None:
            rule = self.allowed.answer(step, entry.result, step.client in self._live)
            if rule:
                return [], [rule]
        return differences(answer, step.answer_name, ANSWERED, sight.items), sight.rules

    # --- flights that left the recorded path ----------------------------------------------------------------

    def _lose_if_out_of_step(self, entry: Entry, found: list[Difference], by: list[str]) -> None:
        """After this answer the guest and the trace may disagree on whether the flight goes on."""
        step = entry.step
        assert step.flight is not None
        assert step.answer is not None
        suspended = names.is_rpc(step.answer.regs[0])
        still = names.is_rpc(entry.regs[0]) and not step.function >> 31
        if suspended and not still:
            self._lost[step.flight] = (found or entry.found, by or entry.rules)

    def _follow_lost(self, entry: Entry, lost: tuple[list[Difference], list[str]]) -> None:
        """A later event of a flight that is over for the mediator: counted under the same head."""
        step = entry.step
        assert step.answer is not None
        found, by = lost
        if entry.forwarded is not None and not entry.finished:
            self._driver.drive(entry, NO_ANSWER)
        first = f"out of step since seq {found[0].seq}" if found else ""
        for event, name in ((step.call, step.name), (step.answer, step.answer_name)):
            late = (
                [Difference(event.seq, event.line, name, FORWARDED, "flight", "in step", first)]
                if found
                else []
            )
            self.tally.judge(event, step.name, late, by)
        self.normal.leave(step, step.answer)

    # --- life cycle -------------------------------------------------------------------------------------------

    def _life_cycle(self, entry: Entry) -> None:
        step = entry.step
        answer = step.answer
        assert answer is not None
        client = low32(step.call.regs[1]) & 0xFFFF
        accepted = low32(answer.regs[0]) == smc.OPTEE_SMC_RETURN_OK
        if step.function == smc.OPTEE_SMC_VM_CREATED:
            agreed = entry.result is accepted
            if entry.result is True:
                self._live.add(client)
        else:
            agreed = entry.result is True or rules.TEARDOWN in entry.rules
            if entry.result is True:
                self._live.discard(client)
            self.scripted.forget(client)
            self.normal.forget(client)
        found: list[Difference] = []
        if not agreed:
            found.append(
                Difference(
                    answer.seq,
                    answer.line,
                    step.answer_name,
                    ANSWERED,
                    "life cycle",
                    str(accepted),
                    str(entry.result),
                )
            )
        gone = step.function == smc.OPTEE_SMC_VM_DESTROYED and entry.result is True
        left = self.machine.pinned(client) if gone else 0
        if left:
            found.append(
                Difference(
                    answer.seq, answer.line, step.answer_name, ANSWERED, "pins", "0", str(left)
                )
            )
        self._judge_call(entry)
        self.tally.judge(answer, step.name, found, entry.rules)

    def _retry_teardown(self) -> None:
        """Guests whose teardown had to wait for entries on other processors."""
        for client in list(self._dying):
            if self._driver.complete(self.home.guest_destroyed(client - 1)):
                del self._dying[client]
                self._live.discard(client)


def _not_forwarded(entry: Entry) -> Difference:
    call = entry.step.call
    return Difference(
        call.seq,
        call.line,
        entry.step.name,
        FORWARDED,
        "call",
        "forwarded",
        "answered by the mediator",
    )


def replay_as_mediator(
    trace: Trace,
    settings: MediatorSettings | None = None,
    progress: Callable[[int], None] | None = None,
    deployment: Deployment | None = None,
) -> MediatorResult:
    """Replay a trace with our mediator between its two worlds, in the home of ``deployment``."""
    return replay_with(trace, settings, None, progress, deployment)


def replay_with(
    trace: Trace,
    settings: MediatorSettings | None,
    plant: Plant | None,
    progress: Callable[[int], None] | None,
    deployment: Deployment | None,
) -> MediatorResult:
    """The same, where ``plant`` may interfere; the mediator's home is left in the end."""
    replay = MediatorReplay(trace, settings, plant, progress, deployment)
    try:
        return replay.run()
    finally:
        replay.home.close()
