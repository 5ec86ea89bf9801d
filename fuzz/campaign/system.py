# SPDX-License-Identifier: BSD-2-Clause
"""One system of a campaign: built from its number, run to its end, and judged.

The end has three parts. First everything runs until the cells are done. Then nothing goes wrong any
more, what got lost is raised once more, and all guests that a fault concerned are destroyed: now
every other guest must come to its end, and nobody may be waiting. At last all are destroyed, and nothing may
be left in the mediator or the host.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Final

import attrs

from fuzz.campaign import honest
from fuzz.campaign.application import Requester
from fuzz.campaign.cell import FOREIGN_PAGES, NOTIFICATION, RAM, Cell, CellPlan
from fuzz.campaign.coverage import Coverage
from fuzz.campaign.faults import Denials, FaultyMonitor, Liar
from fuzz.campaign.operations import OPERATIONS
from fuzz.campaign.plan import LinuxPlan, SystemPlan, draw_plan
from fuzz.campaign.strikes import Strikes
from mediator.checkers.verdict import Violation
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings
from mediator.guest.kernel import RESCHEDULE_SGI
from mediator.host import PAGE_SHIFT, PAGE_SIZE
from mediator.hypervisor.guest import GuestSpec, GuestState, RamExtent
from mediator.hypervisor.machine import Created
from mediator.hypervisor.scheduler import Mode, RunEnd
from mediator.hypervisor.stage2 import OWN_RO
from mediator.scenario.platform import Platform, PlatformError, PlatformSettings
from secure_world.apps import default_registry
from smccc.constants import optee_smc as smc

Sink = Callable[[tuple[object, ...]], None]

CHUNK: Final = {Mode.DIRECT: 50, Mode.INTERLEAVE: 2_000}
"""Resumptions between two looks whether a part of the run is over."""
MAX_SMCS: Final = 3_000
"""SMCs of one part: a TEE that gets no memory for RPCs asks for it again and again."""
MAX_STEPS: Final = 400_000
"""Resumptions of one part; a part that takes more has not come to rest."""
LONGEST: Final = 2_000_000_000
"""Virtual ns of the first part: waits of cells for locks that nobody gives back end with it."""
LATEST: Final = 3_000_000_000
"""Virtual ns after which whoever still waits waits for ever."""
LINUX_RAM: Final = ((0x4000_0000, 512),)
MAX_PROBLEMS: Final = 20

_SPOILS_ANSWERS: Final = ("bad resume", "scribble", "bad message")
"""Operations that can answer an RPC wrongly."""


@attrs.frozen
class SystemResult:
    """What came of one system. ``checksum``: of all counters, steps and the virtual time at its end."""

    seed: int
    smcs: int
    kinds: Mapping[str, int]
    problems: tuple[str, ...]
    checksum: int


def run_system(seed: int, sinks: Iterable[Sink] = ()) -> SystemResult:
    """Build, run and judge the system of this number. An exception anywhere is a problem."""
    return System(draw_plan(seed), sinks).execute()


class System:
    """One system at work."""

    def __init__(self, plan: SystemPlan, sinks: Iterable[Sink] = ()) -> None:
        self.plan = plan
        self.problems: list[str] = []
        rng = Random(plan.seed + 1)
        self._registry = default_registry()
        self._registry.register(Requester)
        self.monitor = FaultyMonitor(
            Random(rng.getrandbits(64)), plan.lost_notifications, plan.preempted, self.count
        )
        self._liar = Liar(Random(rng.getrandbits(64)), plan.lie, self.count) if plan.lie else None
        self._virqs = Random(rng.getrandbits(64))
        self._coverage: Coverage | None = None
        self.platform = Platform(
            PlatformSettings(
                seed=plan.seed & 0xFFFF_FFFF,
                machine=plan.machine,
                mediator=plan.mediator,
                secure_world=plan.secure_world,
                shadow_limit=plan.shadow_limit,
            ),
            sinks=sinks,
            registry=self._registry,
            monitor=self.monitor,
            fault=self._liar,
        )
        self.machine = self.platform.machine
        self.host = self.platform.host
        self.coverage = Coverage(self.host.guest_read, self._calls_of, self._problem)
        self._coverage = self.coverage
        watch = self.platform.watch
        assert watch is not None
        watch.add(self.coverage)
        watch.add(Strikes(self))
        self._denials = Denials(Random(rng.getrandbits(64)), plan.deny, self.count)
        if plan.deny:
            self.host.faults = self._denials
        if plan.lost_virqs:
            self.machine.plan_lost_interrupts(self._loses)
        if self._liar is not None:
            self._liar.active = True
        images = self._registry.images()
        self.cells: dict[int, Cell] = {}
        self.linux: dict[int, tuple[LinuxPlan, Guest]] = {}
        self._cells = [Cell(cell, rng.getrandbits(48), OPERATIONS, images) for cell in plan.cells]
        self.order: list[int] = []
        self.involved: dict[int, None] = {}
        self._seeds = [rng.getrandbits(32) for _ in plan.linux]
        self.calm = False

    # --- small services ------------------------------------------------------------------------------

    def count(self, kind: str) -> None:
        if self._coverage is not None:
            self._coverage.count(kind)

    def _problem(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def _calls_of(self, guest: int) -> int:
        info = self.platform.tee.mediator.guest_info(guest)
        return 0 if info is None else info.calls

    def _loses(self, guest: int, intid: int, vcpu: int) -> bool:
        return not self.calm and self._virqs.random() < self.plan.lost_virqs

    # --- the run --------------------------------------------------------------------------------------

    def execute(self) -> SystemResult:
        """All parts, to the verdict."""
        try:
            self._begin()
            self._first_part()
            self._second_part()
            self._last_part()
        except Exception as error:
            self._problem(f"exception: {type(error).__name__}: {error}")
        coverage = self.coverage
        kinds = coverage.total()
        state = f"{sorted(kinds.items())} {self.machine.scheduler.steps} {self.machine.now()}"
        return SystemResult(
            self.plan.seed,
            coverage.smcs,
            kinds,
            tuple(self.problems),
            zlib.crc32(f"{state} {self.problems}".encode()),
        )

    def _begin(self) -> None:
        for cell in self._cells:
            self.create_cell(cell, None)
        for plan, seed in zip(self.plan.linux, self._seeds, strict=True):
            self._create_linux(plan, seed)

    def create_cell(self, cell: Cell, guest_id: int | None) -> bool:
        plan: CellPlan = cell.plan
        cell.forget()
        program = cell.program(cell.lives)
        cell.lives += 1
        scatter = cell.seed if plan.scatter else None
        spec = GuestSpec(
            plan.name,
            (program,) * plan.vcpus,
            (RamExtent(RAM, plan.pages, scatter=scatter),),
            bits=plan.bits,
            guest_id=guest_id,
        )
        created = self.machine.create_guest(spec)
        if not isinstance(created, Created):
            return False
        self.cells[created.guest] = cell
        if created.guest not in self.order:
            self.order.append(created.guest)
        self._share(created.guest, cell)
        return True

    def _share(self, guest: int, cell: Cell) -> None:
        """Map two pages of another guest behind the RAM of this one, as foreign or granted pages."""
        for other in self.order:
            if other == guest or other not in self.host.guests():
                continue
            runs = self.host.stage2(other).mappings(RAM >> PAGE_SHIFT, FOREIGN_PAGES)
            if sum(run.pages for run in runs if run.kind >= OWN_RO) == FOREIGN_PAGES:
                self.host.share(
                    guest,
                    RAM + cell.plan.pages * PAGE_SIZE,
                    FOREIGN_PAGES,
                    other,
                    RAM,
                    writable=bool(cell.seed & 1),
                    grant=bool(cell.seed & 2),
                )
                return

    def _create_linux(self, plan: LinuxPlan, seed: int) -> None:
        unknown = 0
        if plan.classic:
            unknown |= smc.OPTEE_SMC_SEC_CAP_RPC_ARG
        if not plan.notified:
            unknown |= smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
        settings = GuestSettings(
            plan.name,
            LINUX_RAM,
            plan.vcpus,
            seed=seed,
            driver=DriverSettings(hvc=plan.hvc, unknown_capabilities=unknown),
            images=self._registry.images(),
        )
        threads = honest.mains(
            seed,
            plan.rounds,
            tolerant=not self._must_succeed,
            supplicant_dies=plan.supplicant_dies,
        )
        if plan.supplicant_dies:
            self.count("supplicant death")
        try:
            number = self.platform.add_guest(settings, *threads)
        except PlatformError:
            return
        self.linux[number] = (plan, self.platform.guests[number])
        self.order.append(number)

    @property
    def _must_succeed(self) -> bool:
        """Whether a correct guest that no fault concerns has no reason to fail."""
        limits = self.plan.mediator.limits
        world = self.plan.secure_world
        return (
            self.plan.honest_host
            and limits.buffers >= 100
            and limits.buffer_pages >= 100
            and limits.total_pages >= 10_000
            and world.max_sessions > 100
            and world.max_objects > 100
            and world.dynamic_shm
        )

    @property
    def _must_end(self) -> bool:
        """Whether nobody may wait for ever.

        Two things are beyond a mediator: a TEE that cannot notify does not tell other partitions of a
        release, and OP-TEE forgets a SEND for which it gets no RPC argument, be it that pages are
        denied or that there may be fewer RPC buffers than threads.
        """
        mediator, world = self.plan.mediator, self.plan.secure_world
        buffers = mediator.limits.rpc_buffers
        return (
            self.plan.honest_host
            and world.async_notifications
            and mediator.hold_waits
            and mediator.limits.notifications >= world.max_notification
            and (buffers is None or buffers >= world.threads)
        )

    def _first_part(self) -> None:
        self._run(lambda: not self.cells or all(map(self._is_off, self.cells)), LONGEST)
        if self._liar is None:
            for guest in self.cells:
                self._balance(guest)

    def _balance(self, guest: int) -> None:
        """Mediator and TEE agree about what a guest has, once it does nothing any more (I3)."""
        record = self.machine.guest(guest)
        info = self.platform.tee.mediator.guest_info(guest)
        partition = self.platform.secure_world.partition(guest + self.plan.mediator.client_id_base)
        if record is None or record.halted or not all(vcpu.is_off for vcpu in record.vcpus):
            return
        if info is None or partition is None:
            self._problem(f"guest {guest} lives, but not in mediator and TEE")
            return
        inside = len(self.platform.secure_world.suspended(partition.client))
        if info.calls < inside:
            self._problem(f"guest {guest}: {inside} threads are suspended, {info.calls} calls")
        # OP-TEE forgets a FREE for which it gets no RPC argument, and one of a page that was named 0:
        # then the mediator keeps the pages until the guest ends.
        plan = self.cells[guest].plan
        rude = plan.lie > 0 or any(plan.weights.get(name) for name in _SPOILS_ANSWERS)
        forgets = rude or guest in self.involved or not self._must_end
        held = info.pages + info.rpc_buffers
        if not info.calls and self.host.pinned(guest) != held:
            self._problem(
                f"guest {guest}: {self.host.pinned(guest)} pages are pinned, the mediator accounts "
                f"for {info.pages} and {info.rpc_buffers} for RPC arguments"
            )
        inside = partition.shm.pages
        if not info.calls and (inside > held or (inside < held and not forgets)):
            self._problem(
                f"guest {guest}: the TEE has {partition.shm.pages} pages, the mediator "
                f"{info.pages} and {info.rpc_buffers} for RPC arguments"
            )

    def _run(self, over: Callable[[], bool], until: int) -> RunEnd:
        steps, smcs = self.machine.scheduler.steps, self.coverage.smcs
        chunk = CHUNK[self.plan.machine.mode]
        while True:
            result = self.machine.run(until_time=until, max_steps=chunk)
            if result.end is not RunEnd.STEPS:
                return result.end
            if over():
                return RunEnd.STOPPED
            if self.machine.scheduler.steps - steps > MAX_STEPS:
                return RunEnd.STEPS
            if self.coverage.smcs - smcs > MAX_SMCS:
                return RunEnd.STEPS

    def _is_off(self, guest: int) -> bool:
        record = self.machine.guest(guest)
        if record is None or record.state is not GuestState.RUNNING:
            return True
        return all(vcpu.is_off for vcpu in record.vcpus)

    def _second_part(self) -> None:
        """Nothing goes wrong any more, and whom nothing has concerned must come to an end."""
        self.calm = True
        self._denials.active = False
        self.monitor.calm()
        if self._liar is not None:
            self._liar.active = False
        machine = self.machine
        for guest in machine.guests:
            record = machine.guest(guest)
            while record is not None and record.paused:
                machine.resume_guest(guest)
        for guest in tuple(self.cells):
            self._destroy(guest)
        for guest in self.linux:
            if guest in self.involved:
                self._destroy(guest)
        self._raise_again()
        end = self._run(lambda: all(map(self._is_off, self.linux)), machine.now() + LATEST)
        if end is RunEnd.IDLE or all(map(self._is_off, self.linux)):
            # One more round: it lets teardowns and timers come to their end.
            end = self._run(lambda: False, machine.now() + LATEST)
        if end is RunEnd.STEPS and self._must_end:
            self._problem("the machine does not come to rest")
        if self._liar is None or not self._liar.told:
            self._judge_linux()
        watch = self.platform.watch
        if watch is not None and end is RunEnd.IDLE:
            watch.finish()

    def _raise_again(self) -> None:
        """What may have got lost, once more."""
        machine = self.machine
        machine.physical_interrupt(self.monitor.notification_intid)
        for guest in self.linux:
            record = machine.guest(guest)
            for vcpu in () if record is None else record.vcpus:
                machine.inject(guest, RESCHEDULE_SGI, vcpu.index)
            machine.inject(guest, NOTIFICATION, 0)

    def _judge_linux(self) -> None:
        for guest, (plan, system) in self.linux.items():
            if guest in self.involved:
                continue
            if not self._is_off(guest) and self._must_end:
                waits = "; ".join([f"{name} waits for {what}" for name, what in system.stuck()])
                inside = "; ".join(
                    [
                        str(wait)
                        for wait in self.platform.tee.mediator.waits()
                        if wait.guest == guest
                    ]
                )
                self._problem(f"guest {guest} ({plan.name}) never ends: {waits}; {inside}")
            elif self._is_off(guest) and self._must_succeed:
                for thread, error in system.kernel.failures:
                    self._problem(f"guest {guest} ({plan.name}) thread {thread.name}: {error!r}")
                if system.driver.counters.anomalies:
                    self._problem(f"guest {guest} ({plan.name}) gets answers that cannot be")
                info = self.platform.tee.mediator.guest_info(guest)
                if info is not None and (info.pages or info.rpc_buffers or self.host.pinned(guest)):
                    self._problem(
                        f"guest {guest} ({plan.name}) unloaded its driver, but has {info}"
                    )

    def _last_part(self) -> None:
        """Everybody goes; nothing may be left."""
        machine = self.machine
        for guest in machine.guests:
            if machine.state(guest) is not GuestState.QUARANTINED:
                machine.destroy_guest(guest)
        end = self._run(lambda: False, machine.now() + LATEST)
        for guest in machine.guests:
            if machine.state(guest) is GuestState.QUARANTINED:
                machine.release_quarantine(guest)
        if machine.guests or end is not RunEnd.IDLE:
            self._problem(f"guests {machine.guests} are left at the end ({end.value})")
        for _, system in self.linux.values():
            system.close()
        mediator = self.platform.tee.mediator
        if mediator.guests or mediator.waits():
            self._problem(f"the mediator still knows guests {mediator.guests}")
        kept, limit = self.host.shadows.in_use, self.plan.mediator.shadow_cache
        if kept > limit:
            self._problem(f"{kept} pages of the mediator are in use, it keeps {limit} at most")
        for guest in self.order:
            if self.host.pinned(guest):
                self._problem(f"{self.host.pinned(guest)} pages of guest {guest} are pinned")
        watch = self.platform.watch
        if watch is not None:
            for violation in watch.violations:
                if not self._excused(violation):
                    self._problem(str(violation))

    def _excused(self, violation: Violation) -> bool:
        """A TEE that lies about its threads and about what it let go of breaks its own invariants."""
        if violation.invariant == "I8" and not self._must_end:
            return not violation.what.startswith("vCPU")
        if self._liar is None or not self._liar.told:
            return False
        if violation.invariant in ("I5", "I8"):
            return not violation.what.startswith(("forwarded", "a guest reached"))
        return violation.invariant == "I2" and (
            violation.guest < 0 or violation.what.startswith("the TEE touches")
        )

    def crashed(self, guest: int, text: str) -> None:
        """A guest's program ended by an exception: a fault of ours unless the guest was concerned."""
        if guest not in self.involved:
            self._problem(f"guest {guest} crashed: {text}")

    def _destroy(self, guest: int) -> None:
        if self.machine.state(guest) in (GuestState.RUNNING, GuestState.SHUTDOWN):
            self.machine.destroy_guest(guest)
