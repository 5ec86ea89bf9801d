# SPDX-License-Identifier: BSD-2-Clause
"""One case: a session in which some turns of the app go wrong, run to its end and judged.

The run has four parts. In the first the faults strike. Then the machine is at rest: nobody may wait for
ever, what was lost is empty, who was not concerned has the results of a run without faults. In the
third all guests that were concerned are destroyed and created again, and must be served. In the last
all are destroyed, and nothing may be left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import attrs

from fuzz.containment.system import (
    BRIEF,
    CONTROL,
    SHORT,
    UID,
    VARIANTS,
    GuestPlan,
    System,
    Variant,
    guests_of,
)
from fuzz.containment.turns import Turn, Turns
from mediator.checkers.verdict import Violation
from mediator.deployment.el0_app import events as app_events
from mediator.deployment.el0_app.deployment import ENOTAVAIL
from mediator.deployment.el0_app.launch import LaunchError
from mediator.deployment.el0_app.manifest import PER_GUEST
from mediator.deployment.face import Completed
from mediator.hypervisor.scheduler import RunEnd
from mediator.optee.settings import MediatorSettings
from mediator.scenario.platform import PlatformError

MAX_PROBLEMS: Final = 10
_FIRST: Final = "the session"
Lines = Mapping[str, tuple[tuple[tuple[str, object], ...], ...]]
"""What each thread of each guest wrote down, by the guest's name."""


@attrs.frozen
class Case:
    """``faults``: turn and name. ``seed``: of what the faults draw."""

    variant: str
    faults: tuple[tuple[int, str], ...]
    seed: int = 0

    def __str__(self) -> str:
        """As ``--case`` takes it."""
        told = ",".join([f"{turn}={name}" for turn, name in self.faults])
        return f"{self.variant}:{told}:{self.seed}"


@attrs.frozen
class CaseResult:
    """``kinds``: what occurred, counted. ``problems``: what must not have happened."""

    case: Case
    kinds: Mapping[str, int]
    problems: tuple[str, ...]


def variant_of(name: str) -> Variant:
    """The machine of this name. ``KeyError``: there is none."""
    return {variant.name: variant for variant in (*VARIANTS, *BRIEF)}[name]


def lines_of(system: System) -> Lines:
    """What was written down."""
    return {
        name: tuple([tuple(diary.lines) for diary in diaries])
        for name, diaries in system.diaries.items()
    }


def recorded(variant: Variant) -> tuple[list[Turn], Lines]:
    """A session without faults: its turns and results."""
    turns = Turns({}, record=True)
    system = System(variant, turns, [turns.calls])
    try:
        system.begin()
        if system.run() is not RunEnd.IDLE:
            raise AssertionError("a session without faults does not end")
        # The checkers ask the app, too.
        seen = list(turns.seen)
        for number, guest in system.guests.items():
            if number != SHORT.number:
                guest.check()
        system.platform.check()
        return seen, lines_of(system)
    finally:
        system.close()


def run_case(case: Case, expected: Lines) -> CaseResult:
    """Run and judge. An exception anywhere is a problem."""
    return Trial(case, expected).execute()


class Trial:
    """One case at work. Others may begin differently: :meth:`begin` and :meth:`end`."""

    def __init__(self, case: Case, expected: Lines) -> None:
        self.case = case
        self.expected = expected
        self.turns = Turns(dict(case.faults), case.seed)
        self.kinds: Counter[str] = Counter()
        self.problems: list[str] = []
        self.story: list[tuple[object, ...]] = []
        self.variant = variant_of(case.variant)
        self.guests = guests_of(self.variant)
        self._deaf = False

    def problem(self, text: str) -> None:
        """Something must not have happened."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def expect(self, found: object, wanted: object, what: str) -> None:
        """Two things must be equal."""
        if found != wanted:
            self.problem(f"{what}: {found!r} instead of {wanted!r}")

    def _same(self, system: System, name: str, whose: str) -> None:
        """A guest has seen what it sees in a session without faults."""
        for number, (diary, wanted) in enumerate(
            zip(system.diaries[name], self.expected[name], strict=True)
        ):
            if tuple(diary.lines) != wanted:
                told = [what for what, _ in diary.lines]
                whole = [what for what, _ in wanted]
                lost = ", then its TEE was lost" if diary.lost else ""
                self.problem(f"results {whose}, thread {number}: {told}{lost} instead of {whole}")

    def begin(self) -> System:
        """The machine."""
        return System(self.variant, self.turns, [self.turns.calls, self.hear])

    def end(self, system: System) -> None:
        """The machine is switched off."""
        system.close()
        self.expect(system.local.running, 0, "apps after the end")
        self.expect(len(system.app.isolation), 0, "processes after the end")

    def execute(self) -> CaseResult:
        """All parts, to the verdict."""
        try:
            system = self.begin()
        except (LaunchError, PlatformError):
            self.kinds["no app, or no TEE behind it"] += 1
        except Exception as error:
            self.problem(f"the start: {type(error).__name__}: {error}")
        else:
            try:
                self._parts(system)
            except Exception as error:
                self.problem(f"exception: {type(error).__name__}: {error}")
            finally:
                self.end(system)
        for fault in self.turns.struck:
            self.kinds[f"fault: {fault.name}"] += 1
        for turn in self.turns.told:
            self.kinds[f"entry: {turn.entry or 'start'}"] += 1
            for kind in turn.suspended:
                self.kinds[f"suspended: {kind}"] += 1
            if turn.open > 1:
                self.kinds["another entry open"] += 1
        return CaseResult(self.case, self.kinds, tuple(self.problems))

    def hear(self, event: tuple[object, ...]) -> None:
        if type(event).__module__ == app_events.__name__ and not self._deaf:
            self.story.append(event)
            self.kinds[f"event: {type(event).__name__}"] += 1

    # --- parts ----------------------------------------------------------------------------------

    def _parts(self, system: System) -> None:
        system.begin()
        self._rest(system, _FIRST)
        self._after_faults(system)
        concerned: tuple[GuestPlan, ...] = ()
        while (now := self._concerned(system)) != concerned:
            # Whoever has waited for one of them goes on now; and their end may be the app's, too.
            concerned = now
            self._destroy(system, concerned)
            self._rest(system, "the end of those concerned")
        self._unconcerned(system, concerned)
        if self._confused():
            # It was told something false: an operator gives it up.
            system.app.kill("misled")
            self._rest(system, "the restart")
            concerned = self.guests
            self._destroy(system, concerned)
            self._rest(system, "the end of all")
        before = -1
        while not self._given_up and before < len(self.turns.struck):
            # A second fault may have struck meanwhile.
            before = len(self.turns.struck)
            for plan in self.guests:
                if plan.number in system.app.lost and plan not in concerned:
                    concerned += (plan,)
            self._destroy(system, concerned)
            self._rest(system, "the end before the second session")
            self._again(system, concerned)
        self._last(system)
        self._checkers(system)

    def _rest(self, system: System, part: str) -> None:
        end = system.run()
        if end is not RunEnd.IDLE and not (self._liars and part == _FIRST):
            self.problem(f"after {part}: the machine does not come to rest ({end.value})")

    def _confused(self) -> bool:
        """Whether an app lives on that was told something false, or never said what it wants."""
        pairs = zip(self.turns.told, self.turns.struck, strict=True)
        return any(
            fault.misled or (turn.entry == "init" and not fault.fatal) for turn, fault in pairs
        )

    @property
    def _given_up(self) -> bool:
        return any(isinstance(event, app_events.AppGivenUp) for event in self.story)

    @property
    def _fatal(self) -> bool:
        return any(fault.fatal for fault in self.turns.struck)

    @property
    def _liars(self) -> bool:
        return any(not fault.fatal for fault in self.turns.struck)

    def _after_faults(self, system: System) -> None:
        app, world = system.app, system.platform.secure_world
        self.expect(len(self.turns.struck) > 0, True, "a fault struck")
        if self._fatal and not self._liars:
            self._everybody_ends(system)
        for guest in app.lost:
            answer = app.handle(guest, 0, UID)
            self.expect(answer, Completed((ENOTAVAIL, *UID[1:])), f"a call of lost guest {guest}")
            self.expect(system.host.pinned(guest), 0, f"pins of lost guest {guest}")
        live = sorted([app.client_of(guest) for guest in app.guests])
        self.expect(sorted(world.clients()), live, "partitions of the TEE")
        if self._fatal:
            self.expect(app.deaths > 0, True, "the app died")
        if CONTROL in app.lost:
            self.expect(self._given_up, True, "the control domain is lost: apps are given up")
        self._processes(system)
        self._accounts(system)
        self._told(system)
        watch = system.platform.watch
        if watch is not None and not self._liars:
            watch.finish()

    def _everybody_ends(self, system: System) -> None:
        """Nobody waits for ever: every guest has heard of it and come to an end."""
        for number, guest in system.guests.items():
            if not system.is_off(number):
                self.problem(f"guest {number} waits for ever: {guest.stuck()}")
            for thread, error in guest.kernel.failures:
                if type(error).__name__ != "ProbeError":
                    self.problem(f"guest {number}, {thread.name}: {error!r}")
        if CONTROL in system.app.guests and "control" in system.diaries:
            self._same(system, "control", "of the control domain")

    def _processes(self, system: System) -> None:
        if self._given_up:
            return
        app = system.app
        wanted = 1
        if self.variant.instances == PER_GUEST:
            wanted += len(app.guests)
        self.expect(len(app.isolation), wanted, "running apps")

    def _accounts(self, system: System) -> None:
        """What was counted for guests and hypervisor adds up to what there was."""
        total = system.app.total_usage()
        if system.local.starts:
            self.expect(total.turns, system.local.turns, "turns on all accounts")
        pinned = sum(system.host.pinned(guest) for guest in range(SHORT.number + 1))
        self.expect(total.pinned_pages, pinned, "pinned pages on all accounts")
        self.expect(total.shadow_pages, system.host.shadows.in_use, "shadow pages on all accounts")

    def _told(self, system: System) -> None:
        """The events tell what happened, in this order."""
        deaths = [event for event in self.story if isinstance(event, app_events.AppDied)]
        self.expect(len(deaths), system.app.deaths, "deaths that were reported")
        for death in deaths:
            after = self.story[self.story.index(death) + 1 :]
            lost = [
                event.guest
                for event in after
                if isinstance(event, app_events.GuestLost) and event.app == death.app
            ]
            cleaned = [
                event.guest for event in after if isinstance(event, app_events.PartitionCleaned)
            ]
            for guest in lost:
                self.expect(guest in cleaned, True, f"partition of lost guest {guest} cleaned")
            fresh = [
                event
                for event in after
                if isinstance(event, (app_events.AppStarted, app_events.AppGivenUp))
            ]
            if self.variant.instances != PER_GUEST:
                self.expect(bool(fresh), True, "an app in place of the one that died")
            if CONTROL in lost and CONTROL in system.app.guests:
                renewed = [
                    event for event in after if isinstance(event, app_events.PartitionRenewed)
                ]
                self.expect(bool(renewed), True, "a new partition of the control domain")
        clients = [
            event.client for event in self.story if isinstance(event, app_events.PartitionRenewed)
        ]
        first = MediatorSettings().client_id_base + CONTROL
        self.expect(len({first, *clients}), 1 + len(clients), "client ids of the control domain")

    # --- who was concerned -----------------------------------------------------------------------

    def _concerned(self, system: System) -> tuple[GuestPlan, ...]:
        """Guests that the rules allow to have noticed: lost, refused, or lied about."""
        lost = {event.guest for event in self.story if isinstance(event, app_events.GuestLost)}
        lied = {turn.guest for turn, fault in self._struck() if not fault}
        own = self.variant.instances == PER_GUEST
        misled = any(fault.misled for fault in self.turns.struck)
        if -1 in lied or (misled and not own):
            return self.guests
        return tuple(
            [
                plan
                for plan in self.guests
                if plan.number in lied
                or (plan.number in lost and plan.number not in system.app.guests)
                or plan.name in system.refused
                or (plan.number == CONTROL and CONTROL in lost and self._liars)
            ]
        )

    def _struck(self) -> list[tuple[Turn, bool]]:
        pairs = zip(self.turns.told, self.turns.struck, strict=True)
        return [(turn, fault.fatal) for turn, fault in pairs]

    def _unconcerned(self, system: System, concerned: tuple[GuestPlan, ...]) -> None:
        for plan in self.guests:
            if plan in concerned or plan.name not in system.diaries:
                continue
            if not system.is_off(plan.number):
                guest = system.guests[plan.number]
                self.problem(f"guest {plan.number} waits for nobody: {guest.stuck()}")
            self._same(system, plan.name, f"of {plan.name}")
            self.kinds["guest that noticed nothing"] += 1

    def _destroy(self, system: System, plans: tuple[GuestPlan, ...]) -> None:
        for plan in plans:
            system.destroy(plan.number)
        system.destroy(SHORT.number)

    def _again(self, system: System, concerned: tuple[GuestPlan, ...]) -> None:
        """All that were concerned are created anew and served as if nothing had been."""
        struck = len(self.turns.struck)
        for plan in concerned:
            made = system.create(plan)
            if len(self.turns.struck) == struck:
                self.expect(made, True, f"{plan.name} is created again")
            self.kinds["guest made anew"] += made
        self._rest(system, "the second session")
        if len(self.turns.struck) > struck:
            return
        for plan in concerned:
            if not system.is_off(plan.number):
                stuck = system.guests[plan.number].stuck()
                self.problem(f"{plan.name}, made anew, waits for ever: {stuck}")
            else:
                self._same(system, plan.name, f"of {plan.name}, made anew")

    # --- the end --------------------------------------------------------------------------------

    def _last(self, system: System) -> None:
        for guest in system.machine.guests:
            system.destroy(guest)
        self._rest(system, "the end of all guests")
        self.expect(system.machine.guests, (), "guests after their end")
        self.expect(system.app.guests, (), "guests that an app knows after their end")
        for guest in range(SHORT.number + 1):
            self.expect(system.host.pinned(guest), 0, f"pins of guest {guest} after its end")
        self.expect(system.platform.secure_world.clients(), (), "partitions after the end")
        if system.host.shadows.in_use > MediatorSettings().shadow_cache:
            self.problem(f"{system.host.shadows.in_use} pages of apps are in use")
        if not self._given_up:
            self.expect(len(system.app.isolation), 1, "running apps without guests")
            self._accounts(system)
        self._deaf = True
        system.app.kill("the end")
        self.expect(system.host.shadows.in_use, 0, "shadow pages of dead apps")
        self.expect(system.app.iommu.mappings, 0, "mappings of devices")

    def _checkers(self, system: System) -> None:
        watch = system.platform.watch
        if watch is None:
            return
        lied = {turn.guest for turn, fatal in self._struck() if not fatal}
        for violation in watch.violations:
            if not self._excused(violation, lied):
                self.problem(str(violation))

    def _excused(self, violation: Violation, lied: set[int]) -> bool:
        """What an app says of itself it may lie about: then no checker can know better. Nor can the
        one that follows pages from guest to TEE if nobody tells it of them."""
        untold = not self.variant.traced and violation.what.startswith("the TEE touches")
        return bool(lied) or untold
