# SPDX-License-Identifier: BSD-2-Clause
"""Creation and destruction of guests, in every state, and what is left afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mediator.guest.cpu import GuestCpu
from mediator.host import PAGE_SIZE
from mediator.hypervisor.guest import GuestSpec, GuestState, RamExtent
from mediator.hypervisor.machine import Created, Machine, Refused
from mediator.hypervisor.machine_events import (
    GuestCreated,
    GuestDestroyed,
    GuestDying,
    GuestRefused,
    ProgramCrash,
    TeardownPreempted,
    TeeKeepsGuest,
    TrapExit,
)
from mediator.hypervisor.monitor import MachineMonitor
from mediator.hypervisor.scheduler import Mode
from mediator.hypervisor.tee import Registers
from mediator.suspend import PREEMPTION_POINT
from tests.hypervisor_machine.support import CALL, RAM, Bench, FakeMemory, ScriptedTee


async def idle(cpu: GuestCpu) -> None:
    while True:
        await cpu.wfi()


async def busy(cpu: GuestCpu) -> None:
    while True:
        await cpu.smc(CALL)


async def looks(cpu: GuestCpu) -> None:
    while True:
        await cpu.write(RAM, b"x")
        await cpu.read(RAM, 1)


async def nothing(cpu: GuestCpu) -> None:
    pass


def destroyer(bench: Bench) -> Callable[[int, int, Registers], None]:
    return lambda guest, vcpu, regs: bench.machine.destroy_guest(guest)


def test_a_guest_that_the_tee_refuses_leaves_nothing() -> None:
    bench = Bench(tee=ScriptedTee(refuse=True))
    free = bench.memory.free
    answer = bench.machine.create_guest(GuestSpec("a", (idle,), ram=(RamExtent(RAM, 8),)))
    assert answer == Refused("the TEE refused it")
    assert bench.memory.free == free
    assert bench.machine.guests == ()
    assert bench.seen(GuestRefused) == [GuestRefused(1, "a", "the TEE refused it")]
    without = bench.machine.create_guest(GuestSpec("b", (idle,), tee=False))
    assert without == Created(1)


def test_a_machine_without_a_tee_has_guests_without_a_tee() -> None:
    machine = Machine(Bench().machine._core.settings, FakeMemory())
    assert isinstance(machine.create_guest(GuestSpec("a", (nothing,))), Refused)
    assert machine.create_guest(GuestSpec("a", (nothing,), tee=False)) == Created(1)
    machine.destroy_guest(1)
    machine.run()
    assert machine.guests == ()


def test_a_guest_that_does_not_fit_leaves_nothing() -> None:
    bench = Bench(pages=10)
    ram = (RamExtent(0, 8), RamExtent(RAM, 8))
    answer = bench.machine.create_guest(GuestSpec("a", (idle,), ram=ram))
    assert answer == Refused("not enough memory")
    assert bench.memory.guests == {}
    assert bench.memory.free == 10
    assert bench.tee.history == []


def test_ram_must_be_pages_that_do_not_overlap() -> None:
    for ram in (
        (RamExtent(1, 1),),
        (RamExtent(0, 0),),
        (RamExtent(PAGE_SIZE, 2), RamExtent(0, 2)),
    ):
        with pytest.raises(ValueError, match="RAM"):
            GuestSpec("a", (idle,), ram=ram)


def test_ids_are_the_smallest_free_ones_and_zero_only_on_request() -> None:
    bench = Bench()
    assert [bench.guest(idle) for _ in range(4)] == [1, 2, 3, 4]
    for guest in (3, 2):
        bench.machine.destroy_guest(guest)
    bench.machine.run()
    assert bench.guest(idle, guest_id=6) == 6
    assert bench.guest(idle, guest_id=0) == 0
    assert [bench.guest(idle) for _ in range(4)] == [2, 3, 5, 7]
    answer = bench.machine.create_guest(GuestSpec("a", (idle,), guest_id=6))
    assert answer == Refused("id 6 is in use")
    bench.machine.destroy_guest(0)
    bench.machine.destroy_guest(6)
    bench.machine.run()
    assert bench.guest(idle) == 6
    assert bench.guest(idle) == 8


def test_an_id_is_not_reused_before_its_teardown_is_done() -> None:
    bench = Bench(tee=ScriptedTee(teardown=3))
    guest = bench.guest(idle)
    bench.machine.destroy_guest(guest)
    assert bench.guest(idle) == 2
    bench.machine.run(max_steps=2)
    assert bench.machine.state(guest) is GuestState.DYING
    assert bench.guest(idle) == 3
    bench.machine.run()
    assert bench.guest(idle) == guest


STATES = {
    "never run": (busy, 0),
    "in guest code": (looks, 5),
    "in the mediator": (busy, 5),
    "waiting": (idle, 10),
    "ended": (nothing, 10),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
@pytest.mark.parametrize("pcpus", [1, 3])
def test_destruction_in_every_state(state: str, mode: Mode, pcpus: int) -> None:
    program, steps = STATES[state]
    for extra in range(6):
        tee = ScriptedTee(points=3 if mode is Mode.INTERLEAVE else 0, teardown=2)
        bench = Bench(mode=mode, pcpus=pcpus, tee=tee, seed=extra, time_slice=10_000)
        free = bench.memory.free
        bystander = bench.guest(idle)
        guest = bench.guest(program, program, program)
        bench.machine.run(max_steps=steps + extra if steps else 0)
        bench.machine.destroy_guest(guest)
        bench.machine.destroy_guest(guest)  # once is enough
        mark = len(bench.events)
        result = bench.machine.run(max_steps=10_000)
        assert result.waiting == ((bystander, 0),)
        assert bench.machine.guests == (bystander,)
        assert bench.memory.free == free - 16
        assert bench.memory.guests.keys() == {bystander}
        assert bench.tee.history[-1] == ("destroyed", guest)
        assert bench.tee.inside == {bystander: 0}
        assert bench.tee.history.count(("enter", guest)) == bench.tee.history.count(
            ("leave", guest)
        )
        after = [type(event) for event in bench.events[mark:]]
        assert after.count(GuestDestroyed) == 1
        assert after.count(TeardownPreempted) == 2
        assert not bench.seen(ProgramCrash)
        # Of entries in flight the end is seen, a new one never begins.
        assert "TrapEnter" not in bench.names()[mark:]
        assert after.count(TrapExit) <= 3


def test_an_entry_in_flight_completes_before_teardown_begins() -> None:
    bench = Bench(mode=Mode.INTERLEAVE, tee=ScriptedTee(points=8))
    reached: list[str] = []

    async def program(cpu: GuestCpu) -> None:
        await cpu.smc(CALL)
        reached.append("guest code")

    guest = bench.guest(program)
    bench.machine.run(until=lambda: ("enter", guest) in bench.tee.history)
    bench.machine.destroy_guest(guest)
    bench.machine.run()
    assert bench.tee.history == [
        ("created", guest),
        ("enter", guest),
        ("leave", guest),
        ("destroyed", guest),
    ]
    assert reached == []
    kinds = bench.names()
    assert kinds.index("GuestDying") < kinds.index("TrapExit") < kinds.index("GuestDestroyed")


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
def test_a_guest_may_be_destroyed_from_inside_its_own_trap_or_its_own_code(mode: Mode) -> None:
    for place in ("trap", "code"):
        bench = Bench(mode=mode, tee=ScriptedTee(points=2))
        reached: list[str] = []

        async def program(
            cpu: GuestCpu,
            bench: Bench = bench,
            reached: list[str] = reached,
            place: str = place,
        ) -> None:
            if place == "code":
                bench.machine.destroy_guest(cpu.guest_id)
            await cpu.smc(CALL)
            reached.append("guest code")

        guest = bench.guest(program)
        if place == "trap":
            bench.tee.on_entry = destroyer(bench)
        bench.machine.run()
        assert reached == []
        assert bench.machine.guests == ()
        before = "leave" if place == "trap" else "created"
        assert bench.tee.history[-2:] == [(before, guest), ("destroyed", guest)]


def test_clean_up_of_a_dying_program_cannot_trap() -> None:
    bench = Bench()
    tried: list[str] = []

    async def program(cpu: GuestCpu) -> None:
        try:
            await cpu.wfi()
        finally:
            for attempt in (cpu.smc(CALL), cpu.read(RAM, 1), cpu.write(RAM, b""), cpu.wfi()):
                try:
                    await attempt
                    tried.append("served")
                except GeneratorExit:
                    tried.append("refused")

    guest = bench.guest(program)
    bench.machine.run()
    bench.machine.destroy_guest(guest)
    bench.machine.run()
    assert tried == ["refused"] * 4
    assert ("enter", guest) not in bench.tee.history


def test_a_program_that_will_not_go_is_reported() -> None:
    bench = Bench()

    async def stubborn(cpu: GuestCpu) -> None:
        try:
            while True:
                await PREEMPTION_POINT
        except GeneratorExit:
            await PREEMPTION_POINT

    guest = bench.guest(stubborn)
    bench.machine.run(max_steps=3)
    bench.machine.destroy_guest(guest)
    bench.machine.run()
    assert bench.machine.guests == ()
    assert "ignored GeneratorExit" in str(bench.seen(ProgramCrash)[0][2])


def test_a_guest_that_the_tee_keeps_goes_to_quarantine_with_frames_and_id() -> None:
    tee = ScriptedTee()
    tee.keep = 7
    bench = Bench(tee=tee)
    free = bench.memory.free
    guest = bench.guest(idle)
    bench.machine.destroy_guest(guest)
    bench.machine.run()
    assert bench.machine.state(guest) is GuestState.QUARANTINED
    assert bench.memory.free == free - 16
    assert bench.memory.blocked == {guest: 16}
    assert bench.seen(TeeKeepsGuest) == [TeeKeepsGuest(guest, 7)]
    assert bench.seen(GuestDestroyed) == [GuestDestroyed(guest, 1)]
    assert bench.guest(idle) == guest + 1
    answer = bench.machine.create_guest(GuestSpec("a", (idle,), guest_id=guest))
    assert answer == Refused("id 1 is in quarantine: the TEE did not let go of its last guest")
    bench.machine.inject(guest, 40)  # nobody there
    bench.machine.destroy_guest(guest)  # nothing left to do
    bench.machine.run()


def test_unknown_guests_are_key_errors() -> None:
    bench = Bench()
    for method in (bench.machine.destroy_guest, bench.machine.pause_guest, bench.machine.counters):
        with pytest.raises(KeyError):
            method(5)
    assert bench.machine.state(5) is None
    bench.machine.inject(5, 40)
    bench.machine.quarantine(5, 1)


def test_creation_as_a_task_interleaves_with_running_guests() -> None:
    bench = Bench(mode=Mode.INTERLEAVE, tee=ScriptedTee(points=4), seed=3)
    first = bench.guest(busy)
    spec = GuestSpec("late", (nothing,), ram=(RamExtent(RAM, 1),))
    task = bench.machine.spawn("create", bench.machine.create(spec))
    bench.machine.run(until=lambda: task.done)
    assert task.result == Created(2)
    history = bench.tee.history
    assert ("enter", first) in history[: history.index(("created", 2))]


def test_destroyed_while_it_is_created() -> None:
    bench = Bench(mode=Mode.INTERLEAVE, tee=ScriptedTee(points=6))
    free = bench.memory.free
    spec = GuestSpec("late", (busy,), ram=(RamExtent(RAM, 1),))
    task = bench.machine.spawn("create", bench.machine.create(spec))
    bench.machine.run(max_steps=3)
    assert bench.machine.state(1) is GuestState.CREATING
    bench.machine.destroy_guest(1)
    bench.machine.run()
    assert task.result == Refused("destroyed while it was created")
    assert bench.tee.history == [("created", 1), ("destroyed", 1)]
    assert bench.memory.free == free
    assert bench.machine.guests == ()
    assert not bench.seen(GuestCreated)


def test_foreign_interrupts_slice_timer_and_kick() -> None:
    """What the secure world is told at its checkpoints."""
    bench = Bench(pcpus=2, time_slice=1_000_000, quantum=1 << 40)
    monitor = bench.monitor
    seen: dict[str, list[bool]] = {"slice": [], "timer": [], "kick": []}

    def work(guest: int, vcpu: int, regs: Registers) -> None:
        case = ("slice", "timer", "kick")[regs[1]]
        for _ in range(4):
            seen[case].append(monitor.foreign_interrupt_pending())
            monitor.charge(400_000)
            if case == "kick" and len(seen["kick"]) == 1:
                bench.machine.scheduler.current = None  # as if another pCPU did it
                bench.machine.inject(guest, 40)
                bench.machine.scheduler.current = bench.machine._pcpus[0]

    bench.tee.on_entry = work

    async def program(cpu: GuestCpu) -> None:
        for case in range(3):
            start = cpu.now()
            if case == 1:
                cpu.set_timer(start + 500_000)
            await cpu.smc(CALL, case)
            cpu.set_timer(None)
        assert cpu.acknowledge() == 40

    guest = bench.guest(program)
    bench.machine.run()
    assert seen["slice"] == [False, False, False, True]
    assert seen["timer"] == [False, False, True, True]
    # The kick is reported once; the slice ends later anyway.
    assert seen["kick"] == [False, True, False, True]
    assert bench.machine.spent(guest)["secure_world"] == 12 * 400_000
    assert not bench.seen(ProgramCrash)


def test_a_monitor_without_a_machine_counts_its_charges() -> None:
    monitor = MachineMonitor()
    monitor.charge(5)
    monitor.raise_notification()
    monitor.inject_virq(1, 40)
    monitor.set_timer(3)
    monitor.quarantine(1, 2)
    monitor.count(0)
    assert monitor.now() == 5
    assert not monitor.foreign_interrupt_pending()
    assert not monitor.should_preempt()
    monitor.preempt = lambda: True
    assert monitor.should_preempt()
    machine = Bench().machine
    with pytest.raises(ValueError, match="already"):
        machine.monitor.attach(machine)


class InterruptTee(ScriptedTee):
    """Wants physical interrupts and timer entries; each is preempted once."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, int]] = []
        self.again: Machine | None = None

    async def physical_interrupt(self, intid: int) -> bool:
        self.entries.append(("interrupt", intid))
        if len(self.entries) == 1 and self.again is not None:
            self.again.physical_interrupt(intid)
            self.again.physical_interrupt(intid)
        return len(self.entries) > 1

    async def timer_expired(self) -> bool:
        self.entries.append(("timer", 0))
        return True


def test_physical_interrupts_and_the_mediators_timer_enter_the_mediator() -> None:
    tee = InterruptTee()
    bench = Bench(tee=tee)
    tee.again = bench.machine
    bench.monitor.raise_notification()
    bench.monitor.raise_notification()
    bench.machine.run()
    # Both raises before the entry: one entry (and its preempted half); the raise inside: one more.
    assert tee.entries == [("interrupt", 32)] * 3
    bench.monitor.set_timer(bench.machine.now() + 1_000)
    bench.monitor.set_timer(bench.machine.now() + 2_000)
    start = bench.machine.now()
    bench.machine.run()
    assert tee.entries[3:] == [("timer", 0)]
    assert bench.machine.now() >= start + 2_000
    bench.monitor.set_timer(bench.machine.now() + 1_000)
    bench.monitor.set_timer(None)
    bench.machine.run()
    assert len(tee.entries) == 4


def test_a_storm_of_dying_guests() -> None:
    bench = Bench(mode=Mode.INTERLEAVE, pcpus=4, tee=ScriptedTee(points=2, teardown=1), seed=11)
    free = bench.memory.free
    created = 0
    for round_ in range(40):
        guest = bench.guest(busy, looks, idle)
        created += 1
        bench.machine.run(max_steps=round_ % 7)
        if round_ % 3:
            bench.machine.destroy_guest(guest)
    for guest in bench.machine.guests:
        bench.machine.destroy_guest(guest)
    bench.machine.run()
    assert bench.machine.guests == ()
    assert bench.memory.free == free
    assert len(bench.seen(GuestDestroyed)) == len(bench.seen(GuestDying)) == created
