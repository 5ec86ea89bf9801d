# SPDX-License-Identifier: BSD-2-Clause
"""Whole simulated platforms under faults: run one, and say what must not have happened.

A case is a scenario (:mod:`mediator.scenario.model`) and faults that a scenario file cannot say. The
checkers of all invariants watch; guests that no fault concerns must not notice anything.

>>> from fuzz.strategies.scenarios import platform_cases
>>> from hypothesis import given, settings
>>> @settings(max_examples=3, deadline=None)
... @given(platform_cases())
... def all_is_well(case):
...     check_case(case)
>>> all_is_well()
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from typing import Final

import attrs

from mediator.host import PAGE_SHIFT
from mediator.hypervisor.host import FaultPlan
from mediator.hypervisor.stage2 import ABSENT, FOREIGN_RW, OWN_RO, OWN_RW, Stage2
from mediator.scenario import model
from mediator.scenario.model import Scenario
from mediator.scenario.result import Problem, Result
from mediator.scenario.run import Run

STAGE2_KINDS: Final = (OWN_RW, OWN_RO, ABSENT, FOREIGN_RW)
"""What a stage-2 change turns a pinned page into."""

DENIABLE: Final = ("pin_pages", "alloc_shadow", "read_guest", "write_guest", "read_page_list")
"""Services of the host that may refuse."""


@attrs.frozen
class Stage2Change:
    """At ``time`` ns the ``which``-th pinned page of a guest is shown as ``kind``; ``back``: until then."""

    time: int
    guest: int
    which: int
    kind: int
    back: int | None = None


@attrs.frozen
class SpuriousInterrupt:
    """At ``time`` ns a vCPU gets an interrupt that nobody raised."""

    time: int
    guest: int
    vcpu: int
    intid: int


@attrs.frozen(kw_only=True)
class PlatformFaults:
    """Faults beside the events of a scenario; guests by their place in it.

    ``deny``: services of the host and which of their calls (0: the first) fails. ``lost``: numbers of
    the injected or software interrupts that get lost. ``preempt``: the first answers to "stop here?",
    then no more; empty: the machine's own. A host that says yes for ever gets nothing done.
    """

    deny: tuple[tuple[str, int], ...] = ()
    lost: tuple[int, ...] = ()
    spurious: tuple[SpuriousInterrupt, ...] = ()
    changes: tuple[Stage2Change, ...] = ()
    preempt: tuple[bool, ...] = ()


@attrs.frozen(kw_only=True)
class PlatformCase:
    """A scenario and its faults."""

    scenario: Scenario
    faults: PlatformFaults = attrs.field(factory=PlatformFaults)

    def uninvolved(self) -> tuple[str, ...]:
        """Names of the guests that must not notice anything."""
        scenario, faults = self.scenario, self.faults
        if faults.deny or faults.lost:
            return ()
        if any(event.do == model.DENY_MEMORY for event in scenario.events):
            return ()
        involved = {event.guest for event in scenario.events}
        involved |= {scenario.guests[change.guest].name for change in faults.changes}
        return tuple(
            [plan.name for plan in scenario.guests if plan.honest and plan.name not in involved]
        )


class CaseFailed(AssertionError):
    """Something happened that no fault excuses; ``problems`` are in the order of their discovery."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join([f"{problem.where}: {problem.what}" for problem in problems]))
        self.problems = tuple(problems)


def run_case(case: PlatformCase) -> Result:
    """Run a case to its end. Exceptions of mediator and machine pass through."""
    run = _prepared(case)
    return run.execute()


def _prepared(case: PlatformCase) -> Run:
    run = Run(case.scenario)
    _Faults(run, case.faults).plant()
    return run


def check_case(case: PlatformCase) -> Result:
    """Run a case; :class:`CaseFailed` if an invariant was violated, something was left at the end, or
    a guest that no fault concerns noticed anything.
    """
    run = _prepared(case)
    result = run.execute()
    quiet = case.uninvolved()
    own = tuple(
        [f"I8 guest {run.actors[change.guest].id}: TEE thread" for change in case.faults.changes]
    )
    serious = [problem for problem in result.problems if _serious(problem, case, quiet, own)]
    if serious:
        raise CaseFailed(serious)
    return result


def _serious(
    problem: Problem, case: PlatformCase, quiet: Sequence[str], own: tuple[str, ...]
) -> bool:
    """``own``: how reports of waits begin that a guest may have left behind by itself."""
    names = [plan.name for plan in case.scenario.guests]
    if problem.where in names:
        return problem.where in quiet
    if problem.where != "invariant I8":
        return True
    # I8 promises a wake-up for what arrived; what was lost on purpose did not. And a driver that
    # faults on a page that its own stage 2 takes away leaves its call, and the TEE's thread, waiting.
    return not case.faults.lost and not problem.what.startswith(own)


class _Faults:
    """Plants the faults of one run."""

    def __init__(self, run: Run, faults: PlatformFaults) -> None:
        self._run = run
        self._faults = faults
        self._interrupts = 0

    def plant(self) -> None:
        """Before the run begins."""
        platform, faults = self._run.platform, self._faults
        if faults.deny:
            plan = FaultPlan()
            for call, nth in faults.deny:
                plan.fail(call, nth)
            platform.host.faults = plan
        if faults.lost:
            platform.machine.plan_lost_interrupts(self._loses)
        if faults.preempt:
            answers = chain(faults.preempt, repeat(False))
            platform.monitor.preempt = partial(next, answers)
        for spurious in faults.spurious:
            platform.machine.at(spurious.time, partial(self._inject, spurious))
        for change in faults.changes:
            platform.machine.at(change.time, partial(self._change, change))

    def _loses(self, guest: int, intid: int, vcpu: int) -> bool:
        self._interrupts += 1
        return self._interrupts - 1 in self._faults.lost

    def _inject(self, spurious: SpuriousInterrupt) -> None:
        actor = self._run.actors[spurious.guest]
        if actor.record is not None and spurious.vcpu < len(actor.record.vcpus):
            self._run.machine.inject(actor.id, spurious.intid, spurious.vcpu)

    def _change(self, change: Stage2Change) -> None:
        actor = self._run.actors[change.guest]
        host = self._run.platform.host
        if actor.record is None or actor.id not in host.guests():
            return
        pinned = sorted(host.pins(actor.id))
        if not pinned:
            return
        ipa = ipa_of(host.stage2(actor.id), pinned[change.which % len(pinned)])
        if ipa is None:
            return
        host.set_kind(actor.id, ipa, 1, change.kind)
        if change.back is not None:
            self._run.machine.at(change.back, partial(self._restore, actor.id, ipa))

    def _restore(self, guest: int, ipa: int) -> None:
        host = self._run.platform.host
        if guest in host.guests():
            runs = host.stage2(guest).mappings(ipa >> PAGE_SHIFT, 1)
            # The guest may be another one by now, or have lost the page to its balloon.
            if runs and host.memory.owner(runs[0].pfn) == host.record(guest).owner:
                host.set_kind(guest, ipa, 1, OWN_RW)


def ipa_of(stage2: Stage2, pfn: int) -> int | None:
    """The address at which the guest sees a frame."""
    for run in stage2.mappings():
        offset = pfn - run.pfn
        if run.step and offset % run.step == 0 and 0 <= offset // run.step < run.pages:
            return (run.gfn + offset // run.step) << PAGE_SHIFT
        if offset == 0:
            return run.gfn << PAGE_SHIFT
    return None
