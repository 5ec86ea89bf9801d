# SPDX-License-Identifier: BSD-2-Clause
"""The machine: guests on virtual CPUs on physical CPUs, with interrupts, timers and virtual time.

It puts the other parts together and owns the life of guests:

- A guest is created in memory first, then in the TEE; refused by either, nothing of it is left.
- Destruction may begin at any moment. From then on no vCPU of the guest returns to guest code.
  Entries of the mediator that are in flight complete on their pCPUs; then a task of its own enters
  the mediator's teardown until it is done, and only after that frames and id become free.
- If the TEE does not let go of a guest, the machine keeps its frames and its id until it is told
  that the TEE did so after all.
- A guest can be paused in any state, and destroyed while it is paused. A trap that has begun ends
  on its pCPU all the same; the guest sees its result when it is resumed.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Coroutine
from typing import Final, TypeVar

from attrs import frozen

from mediator.hypervisor.accounting import TEARDOWN_STEP, Account
from mediator.hypervisor.core import Core, LoseInterrupt, MachineSettings
from mediator.hypervisor.guest import Guest, GuestSpec, GuestState, MachineMemory
from mediator.hypervisor.machine_events import (
    GuestCreated,
    GuestDestroyed,
    GuestDying,
    GuestRefused,
    GuestShutdown,
    PhysicalInterrupt,
    Sink,
    TeardownPreempted,
    TeeKeepsGuest,
    VirqPending,
)
from mediator.hypervisor.monitor import MachineMonitor
from mediator.hypervisor.pcpu import Pcpu
from mediator.hypervisor.scheduler import Chooser, RunEnd, Scheduler, SeededChooser, Strand
from mediator.hypervisor.task import BLOCK, TURN, Task, Turn
from mediator.hypervisor.tee import NoTee, TeeInterrupts, TeeMediator
from mediator.hypervisor.timer import NEVER, Timer
from mediator.hypervisor.traps import Dispatcher, SipHook
from mediator.hypervisor.vcpu import OFF, PAUSED, WAITING, Vcpu, count_interrupt, interrupt

T = TypeVar("T")

FIRST_GUEST_ID: Final = 1
"""Id 0 is the control domain's by custom; it is only given on request."""


@frozen
class Created:
    """The guest exists and its boot vCPUs can run."""

    guest: int


@frozen
class Refused:
    """The guest does not exist; ``reason`` is for people."""

    reason: str


@frozen
class RunResult:
    """How a run ended: why, at which virtual time (ns), after how many steps in all.

    ``waiting``: (guest, vCPU) pairs that wait for an interrupt, if the run ended because nothing
    can run any more.
    """

    end: RunEnd
    now: int
    steps: int
    waiting: tuple[tuple[int, int], ...]

    @property
    def deadlocked(self) -> bool:
        """Nothing will ever happen again, yet somebody waits."""
        return self.end is RunEnd.IDLE and bool(self.waiting)


class Machine:
    """One simulated machine.

    ``memory``: the guests' memory, usually the reference host. ``tee``: the mediator, ``None``: a machine without a TEE.
    ``seed``: of the scheduler's choices, unless ``choose`` makes them. ``sink``: gets the events of
    :mod:`mediator.hypervisor.machine_events`. ``monitor``: the services that secure world and host
    were built with. ``sip``: the platform's SiP calls. ``on_shutdown``: told (guest, reason) when a
    guest switched itself off.
    """

    __slots__ = (
        "_control",
        "_core",
        "_entries",
        "_free_ids",
        "_guests",
        "_mediator_timer",
        "_next_id",
        "_next_pcpu",
        "_next_task",
        "_on_shutdown",
        "_pcpus",
        "_raised",
        "_teardowns",
        "_tee",
        "costs",
        "monitor",
        "scheduler",
    )

    def __init__(
        self,
        settings: MachineSettings,
        memory: MachineMemory,
        tee: TeeMediator | None = None,
        *,
        seed: int = 0,
        sink: Sink | None = None,
        choose: Chooser | None = None,
        monitor: MachineMonitor | None = None,
        sip: SipHook | None = None,
        on_shutdown: Callable[[int, str], None] | None = None,
    ) -> None:
        dispatcher = Dispatcher(settings.services, tee, sip)
        self._core = Core(settings, memory, dispatcher, choose or SeededChooser(seed), self, sink)
        self._tee: TeeMediator = tee or NoTee()
        self._pcpus = [Pcpu(self._core, index) for index in range(settings.pcpus)]
        self._control = Strand(-1, "control", Account())
        self._control.slice_end = NEVER
        self._guests: dict[int, Guest] = {}
        self._teardowns: dict[int, Task] = {}
        self._entries: dict[int, Task] = {}
        self._raised: dict[int, bool] = {}
        self._free_ids: list[int] = []
        self._next_id = FIRST_GUEST_ID
        self._next_pcpu = 0
        self._next_task = settings.pcpus
        self._mediator_timer = Timer(self._mediator_timer_expired)
        self._on_shutdown = on_shutdown
        self.scheduler: Scheduler = self._core.scheduler
        self.costs = self._core.costs
        self.monitor = monitor or MachineMonitor()
        self.monitor.attach(self)

    # --- running ---------------------------------------------------------------------------------

    def run(
        self,
        until: Callable[[], bool] | None = None,
        *,
        until_time: int = NEVER,
        max_steps: int | None = None,
    ) -> RunResult:
        """Run until nothing can, ``until()`` is true, a virtual time or a number of steps is reached.

        Exceptions of the host, the mediator or a sink pass through; those of guest programs do not.
        """
        end = self.scheduler.run(stop=until, until=until_time, max_steps=max_steps)
        waiting = self.waiting() if end is RunEnd.IDLE else ()
        return RunResult(end, self.scheduler.now(), self.scheduler.steps, waiting)

    def now(self) -> int:
        """Virtual time in ns; never decreases."""
        return self.scheduler.now()

    def time(self) -> int:
        """The time of what happens right now on the strand where it happens, ns: for event stamps."""
        return self.scheduler.instant()

    def strand(self) -> Strand:
        """Who executes; the control strand if nobody does."""
        return self.scheduler.current or self._control

    def waiting(self) -> tuple[tuple[int, int], ...]:
        """(guest, vCPU) pairs that wait for an interrupt."""
        return tuple(
            (guest.id, vcpu.index)
            for guest in self._guests.values()
            for vcpu in guest.vcpus
            if vcpu.state is WAITING
        )

    def spawn(self, label: str, coroutine: Coroutine[object, None, object]) -> Task:
        """Run ``coroutine`` as a task of the control domain, from now on."""
        return self._spawn(label, coroutine, self._control.account)

    def at(self, deadline: int, action: Callable[[], None]) -> None:
        """Call ``action`` at virtual time ``deadline`` ns, on no strand."""
        self.scheduler.arm(Timer(lambda _: action()), deadline)

    # --- guests ----------------------------------------------------------------------------------

    @property
    def guests(self) -> tuple[int, ...]:
        """Ids in use: of live guests, of dying ones, and quarantined ids."""
        return tuple(self._guests)

    def guest(self, guest: int) -> Guest | None:
        """The machine's record of a guest, ``None`` if the id is not in use."""
        return self._guests.get(guest)

    def state(self, guest: int) -> GuestState | None:
        """The state of a guest, ``None`` if the id is not in use."""
        record = self._guests.get(guest)
        return None if record is None else record.state

    def create_guest(self, spec: GuestSpec) -> Created | Refused:
        """Create a guest at once; switch points inside the mediator's entry are passed over."""
        return self._inline(self.create(spec))

    async def create(self, spec: GuestSpec) -> Created | Refused:
        """The same as a coroutine, for a task: others may run between its steps."""
        guest_id = self._take_id(spec.guest_id)
        if guest_id is None:
            number = -1 if spec.guest_id is None else spec.guest_id
            return self._refuse(number, spec, self._why_not(spec.guest_id))
        guest = Guest(guest_id, spec)
        self._guests[guest_id] = guest
        memory = self._core.memory
        memory.add_guest(guest_id)
        for extent in spec.ram:
            if not memory.populate(
                guest_id, extent.ipa, extent.pages, pa=extent.pa, seed=extent.scatter
            ):
                memory.remove_guest(guest_id)
                return self._drop(guest, "not enough memory")
        if spec.tee:
            strand = self.strand()
            account, strand.account = strand.account, guest.account
            try:
                guest.tee = await self._tee.guest_created(guest_id)
            finally:
                strand.account = account
            if not guest.tee:
                memory.remove_guest(guest_id)
                return self._drop(guest, "the TEE refused it")
        if guest.halted:
            self._begin_teardown(guest)
            return Refused("destroyed while it was created")
        self._add_vcpus(guest)
        guest.state = GuestState.RUNNING
        self._emit(GuestCreated(guest_id, spec.name, int(guest.tee)))
        for vcpu in guest.vcpus[: spec.boot_vcpus]:
            vcpu.power_on(0, 0)
        return Created(guest_id)

    def destroy_guest(self, guest: int) -> None:
        """Begin the destruction of a guest; running the machine completes it.

        May be called at any moment, from anywhere. ``KeyError``: there is no such guest. A guest
        that is dying already is left to it.
        """
        record = self._guests[guest]
        if record.state in (GuestState.RUNNING, GuestState.SHUTDOWN):
            record.state = GuestState.DYING
            self._emit(GuestDying(guest))
            self._halt(record)
            self._begin_teardown(record)
        elif record.state is GuestState.CREATING:
            record.halted = True

    def pause_guest(self, guest: int) -> None:
        """Keep the guest's vCPUs from guest code until :meth:`resume_guest`. Pauses nest."""
        record = self._guests[guest]
        record.paused += 1
        for vcpu in record.vcpus:
            if vcpu.in_trap or vcpu.is_executing:
                vcpu.pcpu.urge()
            elif vcpu.state not in (OFF, WAITING, PAUSED):
                vcpu.pcpu.take_off(vcpu)
                vcpu.set_state(PAUSED)

    def resume_guest(self, guest: int) -> None:
        """Undo one :meth:`pause_guest`. ``ValueError``: it is not paused."""
        record = self._guests[guest]
        if not record.paused:
            raise ValueError(f"guest {guest} is not paused")
        record.paused -= 1
        if not record.paused:
            for vcpu in record.vcpus:
                if vcpu.state is PAUSED:
                    vcpu.make_runnable()

    def quarantine(self, guest: int, answer: int) -> None:
        """The TEE did not let go of ``guest``: its frames and id are kept back.

        Until :meth:`release_quarantine`, which is for whoever knows that it did so after all.
        """
        record = self._guests.get(guest)
        if record is not None and not record.quarantine:
            record.quarantine = True
            self._emit(TeeKeepsGuest(guest, answer))

    def release_quarantine(self, guest: int) -> None:
        """VM_DESTROYED of ``guest`` was answered OK after all: frames and id are free again.

        ``ValueError``: the guest is not in quarantine, or not gone yet.
        """
        record = self._guests.get(guest)
        if record is None or record.state is not GuestState.QUARANTINED:
            raise ValueError(f"guest {guest} is not in quarantine")
        self._core.memory.release_quarantine(guest)
        record.state = GuestState.DESTROYED
        self._give_id(record)

    def account(self, guest: int) -> Account:
        """The account of a guest; the control domain's if there is no such guest."""
        record = self._guests.get(guest)
        return self._control.account if record is None else record.account

    def counters(self, guest: int) -> dict[str, int]:
        """Operations of a guest by kind."""
        return self._guests[guest].account.operations()

    def spent(self, guest: int) -> dict[str, int]:
        """Virtual nanoseconds of a guest by kind."""
        return self._guests[guest].account.times(self.costs)

    def plan_lost_interrupts(self, plan: LoseInterrupt | None) -> None:
        """Ask ``plan`` (guest, intid, vCPU) whether an injected or software interrupt gets lost."""
        self._core.lose_interrupt = plan

    # --- interrupts ------------------------------------------------------------------------------

    def inject(self, guest: int, intid: int, vcpu: int = 0) -> None:
        """Latch an interrupt of a guest; nothing happens if the guest is gone or going."""
        record = self._guests.get(guest)
        if record is not None and not record.halted and record.vcpus:
            interrupt(self._core, record, intid, vcpu)

    def set_line(self, guest: int, intid: int, high: bool, vcpu: int = 0) -> None:
        """Drive a level of a guest's interrupt wire."""
        record = self._guests.get(guest)
        if record is None or record.halted or not record.vcpus:
            return
        target = record.vgic.set_line(intid, high, vcpu)
        if high:
            count_interrupt(self._core, record)
            self._emit(VirqPending(guest, target, intid))
            if target >= 0:
                record.vcpus[target].look()

    def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        """Let a vCPU rest until ``until`` ns after the trap that it is in."""
        record = self._guests.get(guest)
        if record is not None and not record.halted and vcpu < len(record.vcpus):
            record.vcpus[vcpu].rest(until)

    def wake_vcpu(self, guest: int, vcpu: int) -> None:
        """End the rest of a vCPU; nothing happens if it does not rest."""
        record = self._guests.get(guest)
        if record is not None and not record.halted and vcpu < len(record.vcpus):
            record.vcpus[vcpu].end_rest()

    def physical_interrupt(self, intid: int) -> None:
        """An interrupt of the board. A mediator that wants it is entered by a task of its own."""
        self._emit(PhysicalInterrupt(intid))
        if isinstance(self._tee, TeeInterrupts):
            self._raised[intid] = True
            entry = self._entries.get(intid)
            if entry is None or entry.done:
                self._entries[intid] = self.spawn(
                    f"interrupt {intid}", self._interrupt_entry(self._tee, intid)
                )

    def set_mediator_timer(self, deadline: int | None) -> None:
        """Arm or cancel (``None``) the timer whose expiry enters the mediator."""
        self.scheduler.arm(self._mediator_timer, deadline)

    # --- life cycle, called by the parts -----------------------------------------------------------

    def shut_down(self, guest: Guest, reason: str) -> None:
        """A guest switched itself off."""
        if guest.state is not GuestState.RUNNING:
            return
        guest.state = GuestState.SHUTDOWN
        self._emit(GuestShutdown(guest.id, reason))
        self._halt(guest)
        if self._on_shutdown is not None:
            self._on_shutdown(guest.id, reason)
        if self._core.settings.destroy_on_shutdown and guest.state is GuestState.SHUTDOWN:
            self.destroy_guest(guest.id)

    def vcpu_gone(self, guest: Guest) -> None:
        """A vCPU left its program: perhaps the one that teardown waits for."""
        task = self._teardowns.get(guest.id)
        if task is not None and not guest.in_flight():
            task.wake()

    # ---------------------------------------------------------------------------------------------

    def _add_vcpus(self, guest: Guest) -> None:
        spec = guest.spec
        for index, program in enumerate(spec.programs):
            if spec.affinity:
                number = spec.affinity[index] % len(self._pcpus)
            else:
                number = self._next_pcpu
                self._next_pcpu = (number + 1) % len(self._pcpus)
            guest.vcpus.append(Vcpu(self._core, guest, index, self._pcpus[number], program))

    def _halt(self, guest: Guest) -> None:
        """No vCPU goes back to guest code; those that are inside a trap finish it first."""
        guest.halted = True
        for vcpu in guest.vcpus:
            if vcpu.in_trap or vcpu.is_executing:
                vcpu.leave()
            elif vcpu.state is not OFF:
                vcpu.pcpu.kill(vcpu)

    def _begin_teardown(self, guest: Guest) -> None:
        guest.state = GuestState.DYING
        task = self._spawn(f"teardown {guest.id}", self._teardown(guest), guest.account)
        self._teardowns[guest.id] = task

    async def _teardown(self, guest: Guest) -> None:
        while guest.in_flight():
            await BLOCK
        if guest.tee:
            while True:
                guest.account.counts[TEARDOWN_STEP] += 1
                self.strand().clock += self.costs[TEARDOWN_STEP]
                if await self._tee.guest_destroyed(guest.id):
                    break
                self._emit(TeardownPreempted(guest.id))
                await TURN
        self._core.memory.remove_guest(guest.id, quarantine=guest.quarantine)
        del self._teardowns[guest.id]
        if guest.quarantine:
            guest.state = GuestState.QUARANTINED
        else:
            guest.state = GuestState.DESTROYED
            self._give_id(guest)
        self._emit(GuestDestroyed(guest.id, int(guest.quarantine)))

    async def _interrupt_entry(self, tee: TeeInterrupts, intid: int) -> None:
        """Enter the mediator for an interrupt; raised again meanwhile, once more."""
        while self._raised[intid]:
            self._raised[intid] = False
            while not await tee.physical_interrupt(intid):
                await TURN

    async def _timer_entry(self, tee: TeeInterrupts) -> None:
        while not await tee.timer_expired():
            await TURN

    def _mediator_timer_expired(self, deadline: int) -> None:
        if isinstance(self._tee, TeeInterrupts):
            self.spawn("mediator timer", self._timer_entry(self._tee))

    def _spawn(
        self, label: str, coroutine: Coroutine[object, None, object], account: Account
    ) -> Task:
        task = Task(self._core, self._next_task, label, account, coroutine)
        self._next_task += 1
        task.wake()
        return task

    def _inline(self, coroutine: Coroutine[object, None, T]) -> T:
        """Drive a coroutine of the machine to its end on the spot."""
        scheduler = self.scheduler
        if scheduler.current is not None:
            return _drive(coroutine)
        self._control.clock = scheduler.instant()
        scheduler.current = self._control
        try:
            return _drive(coroutine)
        finally:
            scheduler.now()
            scheduler.current = None

    def _take_id(self, wanted: int | None) -> int | None:
        """Reserve an id: the wanted one, or the smallest that is free."""
        if wanted is not None:
            return wanted if self._id_is_free(wanted) else None
        for guest_id in self._free_ids:
            if self._id_is_free(guest_id):
                self._free_ids.remove(guest_id)
                return guest_id
        while self._next_id < self._core.settings.max_guests:
            self._next_id += 1
            if self._id_is_free(self._next_id - 1):
                return self._next_id - 1
        return None

    def _id_is_free(self, guest: int) -> bool:
        """Not in use, not in quarantine, and no frame with references remembers it."""
        return (
            0 <= guest < self._core.settings.max_guests
            and guest not in self._guests
            and self._core.memory.reusable(guest)
        )

    def _why_not(self, wanted: int | None) -> str:
        """Why an id was not given, for people."""
        if wanted is None:
            return "no free id"
        if not 0 <= wanted < self._core.settings.max_guests:
            return f"id {wanted} is not 0 to {self._core.settings.max_guests - 1}"
        state = self.state(wanted)
        if state is GuestState.QUARANTINED:
            return f"id {wanted} is in quarantine: the TEE did not let go of its last guest"
        if state is GuestState.DYING:
            return f"id {wanted} is in use: its guest is being torn down"
        if state is not None:
            return f"id {wanted} is in use"
        return f"id {wanted} is not free: frames of its last guest are still held"

    def _give_id(self, guest: Guest) -> None:
        del self._guests[guest.id]
        if FIRST_GUEST_ID <= guest.id < self._next_id and guest.id not in self._free_ids:
            insort(self._free_ids, guest.id)

    def _drop(self, guest: Guest, reason: str) -> Refused:
        guest.state = GuestState.REFUSED
        self._give_id(guest)
        return self._refuse(guest.id, guest.spec, reason)

    def _refuse(self, guest: int, spec: GuestSpec, reason: str) -> Refused:
        self._emit(GuestRefused(guest, spec.name, reason))
        return Refused(reason)

    def _emit(self, event: tuple[object, ...]) -> None:
        if self._core.emit is not None:
            self._core.emit(event)


def _drive(coroutine: Coroutine[object, None, T]) -> T:
    """Resume a coroutine until it returns; it may only offer to switch."""
    while True:
        try:
            request = coroutine.send(None)
        except StopIteration as end:
            result: T = end.value
            return result
        if request is not None and not isinstance(request, Turn):
            coroutine.close()
            raise TypeError(f"suspended with {request!r} where nothing can be waited for")
