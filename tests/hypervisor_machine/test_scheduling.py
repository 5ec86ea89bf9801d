# SPDX-License-Identifier: BSD-2-Clause
"""Time, slices, waiting and waking; choices and their reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pytest

from mediator.guest.cpu import GuestAbort, GuestCpu, GuestUndefined, VcpuProgram
from mediator.host import PAGE_SIZE
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec
from mediator.hypervisor.machine_events import (
    ProgramCrash,
    TrapEnter,
    TrapExit,
    TrapUndefined,
    VcpuState,
    VirqAcknowledged,
    VirqEnded,
    VirqLost,
    VirqPending,
)
from mediator.hypervisor.scheduler import Mode, RunEnd, Strand
from mediator.hypervisor.task import BLOCK, TURN, sleep
from mediator.hypervisor.vcpu import Vcpu
from mediator.suspend import PREEMPTION_POINT, Suspend
from tests.hypervisor_machine.support import CALL, RAM, Bench, ScriptedTee

MODES = pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])


@MODES
def test_a_trap_returns_the_answer_and_is_logged(mode: Mode) -> None:
    bench = Bench(mode=mode)
    answers = []

    async def program(cpu: GuestCpu) -> None:
        answers.append(await cpu.smc(CALL, 1, 2, 3, 4, 5, 6, 7))
        answers.append(await cpu.hvc(CALL, 9))
        answers.append(await cpu.smc(0xB2000000, 8))

    guest = bench.guest(program)
    result = bench.machine.run()
    assert result.end is RunEnd.IDLE
    assert answers == [
        (0, 1, 2, 3, 4, 5, 6, 7),
        (0, 9, 0, 0, 0, 0, 0, 0),
        (2**64 - 1, 8, 0, 0, 0, 0, 0, 0),
    ]
    assert bench.seen(TrapEnter)[0] == (guest, 0, 0, 0, (CALL, 1, 2, 3, 4, 5, 6, 7))
    assert bench.seen(TrapExit)[:2] == [(guest, 0, 1, answers[0]), (guest, 0, 0, answers[1])]
    assert bench.machine.counters(guest)["trap"] == 3


@MODES
def test_an_undefined_instruction_reaches_the_program(mode: Mode) -> None:
    bench = Bench(mode=mode)
    caught: list[str] = []

    async def program(cpu: GuestCpu) -> None:
        for trap in (cpu.smc, cpu.hvc):
            try:
                await trap(CALL, immediate=1)
            except GuestUndefined:
                caught.append("undefined")

    guest = bench.guest(program)
    bench.machine.run()
    assert caught == ["undefined", "undefined"]
    assert bench.seen(TrapUndefined) == [TrapUndefined(guest, 0)] * 2
    assert bench.tee.history == [("created", guest)]


def test_a_32_bit_guest_sees_low_words() -> None:
    bench = Bench()
    answers = []

    async def program(cpu: GuestCpu) -> None:
        answers.append(await cpu.smc(0x82000000, 0x1_00000002))
        answers.append(await cpu.smc(0xC4000003))
        answers.append(await cpu.smc(CALL, immediate=3))

    bench.guest(program, bits=32)
    bench.machine.run()
    assert answers[0] == (0xFFFFFFFF, 2, 0, 0, 0, 0, 0, 0)
    assert answers[1] == (0xFFFFFFFF, 0, 0, 0, 0, 0, 0, 0)
    assert answers[2][0] == 0


def test_memory_accesses_and_aborts() -> None:
    bench = Bench()
    seen: list[object] = []

    async def program(cpu: GuestCpu) -> None:
        await cpu.write(RAM + 8, b"abc")
        seen.append(await cpu.read(RAM + 7, 5))
        for access in (cpu.read(RAM + 16 * PAGE_SIZE, 1), cpu.write(0x10, b"x")):
            try:
                await access
            except GuestAbort as abort:
                seen.append((abort.ipa, abort.write))

    bench.guest(program)
    bench.machine.run()
    assert seen == [b"\0abc\0", (RAM + 16 * PAGE_SIZE, False), (0x10, True)]


@MODES
def test_a_crash_costs_one_vcpu_and_nothing_else(mode: Mode) -> None:
    bench = Bench(mode=mode)
    done: list[int] = []

    async def crashes(cpu: GuestCpu) -> None:
        await cpu.smc(CALL)
        raise ValueError("no such thing")

    async def aborts(cpu: GuestCpu) -> None:
        await cpu.read(0, 1)

    async def exits(cpu: GuestCpu) -> None:
        raise SystemExit(3)

    async def strange(cpu: GuestCpu) -> None:
        await Suspend[None]("a request of another machine")

    def no_coroutine(cpu: GuestCpu) -> NoReturn:
        raise RuntimeError("at birth")

    async def lives(cpu: GuestCpu) -> None:
        for _ in range(5):
            await cpu.smc(CALL)
        done.append(cpu.index)

    guest = bench.guest(crashes, aborts, exits, strange, no_coroutine, lives)
    result = bench.machine.run()
    assert done == [5]
    assert not result.deadlocked
    crashes_seen = {event[1]: str(event[2]) for event in bench.seen(ProgramCrash)}
    assert crashes_seen.keys() == {0, 1, 2, 3, 4}
    assert crashes_seen[0].endswith("ValueError: no such thing")
    assert "test_scheduling.py" in crashes_seen[0]
    assert "/" not in crashes_seen[0]
    assert bench.machine.state(guest) is not None


def test_an_exception_of_the_mediator_is_not_the_guests_and_cannot_be_swallowed() -> None:
    bench = Bench()

    class Broken(Exception):
        pass

    def fail(guest: int, vcpu: int, regs: object) -> None:
        raise Broken

    bench.tee.on_entry = fail
    swallowed: list[int] = []

    async def program(cpu: GuestCpu) -> None:
        try:
            await cpu.smc(CALL)
        except Exception:
            swallowed.append(1)

    bench.guest(program)
    with pytest.raises(Broken):
        bench.machine.run()
    assert not swallowed
    assert not bench.seen(ProgramCrash)


@pytest.mark.parametrize("kind", [TrapEnter, TrapExit, VirqAcknowledged, VcpuState])
def test_a_checker_that_raises_stops_the_machine(kind: type[tuple[object, ...]]) -> None:
    bench = Bench()

    class Violation(Exception):
        pass

    def check(event: tuple[object, ...]) -> None:
        if type(event) is kind and armed:
            raise Violation

    armed: list[int] = []
    bench.machine._core._sink = check

    async def program(cpu: GuestCpu) -> None:
        while True:
            try:
                cpu.send_sgi(0, 1)
                cpu.acknowledge()
                cpu.end_of_interrupt(1)
                await cpu.smc(CALL)
                await cpu.wfi()
            except Exception:
                await cpu.smc(CALL)

    bench.guest(program)
    armed.append(1)
    with pytest.raises(Violation):
        bench.machine.run()


@MODES
def test_wfi_blocks_until_the_timer_and_the_timer_is_a_level(mode: Mode) -> None:
    bench = Bench(mode=mode)
    log: list[object] = []

    async def program(cpu: GuestCpu) -> None:
        start = cpu.now()
        cpu.set_timer(start + 1_000_000)
        assert cpu.acknowledge() is None
        await cpu.wfi()
        log.append(cpu.now() - start >= 1_000_000)
        assert cpu.acknowledge() == 27
        cpu.end_of_interrupt(27)
        assert cpu.acknowledge() == 27  # still high
        cpu.end_of_interrupt(27)
        cpu.set_timer(None)
        assert cpu.acknowledge() is None
        cpu.set_timer(0)  # long past
        await cpu.wfi()
        assert cpu.acknowledge() == 27
        log.append("end")

    bench.guest(program)
    result = bench.machine.run()
    assert log == [True, "end"]
    assert result.now >= 1_000_000


@MODES
def test_inter_processor_interrupts_wake_and_carry_memory(mode: Mode) -> None:
    bench = Bench(mode=mode, pcpus=2, seed=5)
    got: list[tuple[int, bytes]] = []

    async def sender(cpu: GuestCpu) -> None:
        for number in range(10):
            await cpu.write(RAM, bytes([number]))
            cpu.send_sgi(1, number % 16)
            await cpu.wfi()
            assert cpu.acknowledge() == 15
            cpu.end_of_interrupt(15)
        cpu.send_sgi(9, 1)  # nobody
        cpu.send_sgi(1, 16)  # no SGI

    async def receiver(cpu: GuestCpu) -> None:
        for _ in range(10):
            await cpu.wfi()
            intid = cpu.acknowledge()
            assert intid is not None
            got.append((intid, await cpu.read(RAM, 1)))
            cpu.end_of_interrupt(intid)
            cpu.send_sgi(0, 15)

    guest = bench.guest(sender, receiver)
    result = bench.machine.run()
    assert got == [(number, bytes([number])) for number in range(10)]
    assert not result.deadlocked
    assert len(bench.seen(VirqEnded)) == 20
    assert bench.machine.counters(guest)["virq"] == 20
    assert not bench.seen(ProgramCrash)


def test_a_waiting_guest_without_timer_is_reported_as_deadlock() -> None:
    bench = Bench()

    async def waits(cpu: GuestCpu) -> None:
        await cpu.wfi()

    async def ends(cpu: GuestCpu) -> None:
        await cpu.smc(CALL)

    guest = bench.guest(ends, waits)
    result = bench.machine.run()
    assert result.deadlocked
    assert result.waiting == ((guest, 1),)
    bench.machine.inject(guest, 40)
    result = bench.machine.run()
    assert not result.deadlocked


def test_an_interrupt_for_a_guest_goes_to_the_first_online_vcpu() -> None:
    bench = Bench()
    took: list[int] = []

    async def waits(cpu: GuestCpu) -> None:
        await cpu.wfi()
        took.append(cpu.index)
        assert cpu.acknowledge() == 50
        cpu.end_of_interrupt(50)

    async def ends(cpu: GuestCpu) -> None:
        pass

    guest = bench.guest(ends, waits, waits)
    bench.machine.run()
    bench.machine.inject(guest, 50)
    assert bench.machine.run().waiting == ((guest, 2),)
    bench.machine.set_line(guest, 51, True)  # edge-triggered: latched
    bench.machine.set_line(guest, 51, False)
    bench.machine.run()
    assert took == [1, 2]
    assert [event[1] for event in bench.seen(VirqPending)] == [1, 2]


def test_a_guest_that_never_acknowledges_does_not_stop_time() -> None:
    bench = Bench(pcpus=1)
    other: list[int] = []

    async def ignores(cpu: GuestCpu) -> None:
        cpu.send_sgi(0, 1)
        while True:
            await cpu.wfi()

    async def works(cpu: GuestCpu) -> None:
        await cpu.smc(CALL)
        other.append(1)

    bench.guest(ignores)
    bench.guest(works)
    result = bench.machine.run(until_time=5_000_000)
    assert result.end is RunEnd.TIME
    assert other == [1]


def test_time_slices_share_a_pcpu_evenly() -> None:
    bench = Bench(pcpus=1, time_slice=100_000)
    guests = []

    async def busy(cpu: GuestCpu) -> None:
        while True:
            await cpu.smc(CALL)

    for _ in range(3):
        guests.append(bench.guest(busy))
    bench.machine.run(until_time=30_000_000)
    traps = [bench.machine.counters(guest)["trap"] for guest in guests]
    assert max(traps) < 1.1 * min(traps)


def test_the_accounts_of_the_guests_add_up_to_the_time_that_passed() -> None:
    bench = Bench(pcpus=1, time_slice=30_000, tee=ScriptedTee(teardown=2))
    bench.tee.on_entry = lambda guest, vcpu, regs: bench.monitor.charge(100 * vcpu + 1)

    async def busy(cpu: GuestCpu) -> None:
        assert isinstance(cpu, Vcpu)
        for number in range(200):
            await cpu.smc(CALL)
            await cpu.write(RAM, await cpu.read(RAM + 8, 4))
            cpu.send_sgi(1 - cpu.index, 1)
            await cpu.wfi()
            intid = cpu.acknowledge()
            assert intid is not None
            cpu.end_of_interrupt(intid)
            await cpu.compute(number)

    guests = [bench.guest(busy, busy) for _ in range(2)]
    bench.machine.run()
    spent = sum(sum(bench.machine.spent(guest).values()) for guest in guests)
    # One pCPU that never idled but for the last waits of each guest.
    assert spent == bench.machine._pcpus[0].clock
    assert bench.machine.spent(guests[0])["secure_world"] == 200 * 102


def test_compute_is_cut_by_slices_and_timers() -> None:
    bench = Bench(pcpus=1, time_slice=50_000)
    log: list[tuple[str, int]] = []

    async def computes(cpu: GuestCpu) -> None:
        assert isinstance(cpu, Vcpu)
        await cpu.compute(1_000_000)
        log.append(("computed", cpu.now()))

    async def ticks(cpu: GuestCpu) -> None:
        for tick in range(1, 4):
            cpu.set_timer(tick * 200_000)
            await cpu.wfi()
            cpu.acknowledge()
            cpu.set_timer(None)
            cpu.end_of_interrupt(27)
            log.append(("tick", cpu.now() // 100_000))

    guest = bench.guest(computes)
    bench.guest(ticks)
    bench.machine.run()
    assert log[:3] == [("tick", 2), ("tick", 4), ("tick", 6)]
    assert log[3][0] == "computed"
    assert bench.machine.spent(guest)["compute"] == 1_000_000


def test_pcpus_advance_together_within_the_quantum() -> None:
    bench = Bench(pcpus=3, quantum=10_000)
    clocks = [0, 0, 0]
    worst = 0

    async def busy(cpu: GuestCpu) -> None:
        nonlocal worst
        for _ in range(500):
            await cpu.smc(CALL)
            clocks[cpu.index] = cpu.now()
            if min(clocks):
                worst = max(worst, max(clocks) - min(clocks))

    bench.guest(busy, busy, busy)
    bench.machine.run()
    assert 0 < worst < 3 * 10_000


def test_the_mediators_time_never_decreases() -> None:
    bench = Bench(pcpus=3)
    times: list[int] = []
    bench.tee.on_entry = lambda guest, vcpu, regs: times.append(bench.monitor.now())

    async def busy(cpu: GuestCpu) -> None:
        for _ in range(300):
            await cpu.smc(CALL)

    bench.guest(busy, busy, busy)
    bench.machine.run()
    assert len(times) == 900
    assert times == sorted(times)


@MODES
def test_limits_of_a_run(mode: Mode) -> None:
    bench = Bench(mode=mode)
    count: list[int] = []

    async def busy(cpu: GuestCpu) -> None:
        while True:
            await cpu.smc(CALL)
            count.append(1)

    bench.guest(busy)
    result = bench.machine.run(max_steps=1)
    assert (result.end, result.steps) == (RunEnd.STEPS, 1)
    result = bench.machine.run(until=lambda: len(count) >= 20_000)
    assert result.end is RunEnd.STOPPED
    assert len(count) >= 20_000
    # A slice at most beyond what was asked for.
    assert len(count) < 30_000
    now = bench.machine.now()
    result = bench.machine.run(until_time=now + 1_000_000)
    assert result.end is RunEnd.TIME
    assert now + 1_000_000 <= bench.machine.now() < now + 10_000_000


@MODES
def test_actions_and_tasks_happen_in_virtual_time(mode: Mode) -> None:
    bench = Bench(mode=mode)
    log: list[tuple[str, int]] = []
    machine = bench.machine

    async def task() -> str:
        log.append(("task", machine.time()))
        await sleep(5_000)
        log.append(("slept", machine.time()))
        await TURN
        await PREEMPTION_POINT
        await BLOCK
        return "woken"

    running = machine.spawn("task", task())
    machine.at(3_000, lambda: log.append(("action", machine.time())))
    machine.at(9_000, running.wake)
    machine.run()
    assert log == [("task", 0), ("action", 3_000), ("slept", 5_000)]
    assert running.done
    assert running.result == "woken"


def test_a_run_does_not_nest() -> None:
    bench = Bench()

    def nested() -> None:
        bench.machine.run()

    bench.machine.at(10, nested)
    with pytest.raises(RuntimeError, match="does not nest"):
        bench.machine.run()
    assert bench.machine.run().end is RunEnd.IDLE


def test_interrupts_can_be_lost_on_purpose() -> None:
    bench = Bench()
    took: list[int | None] = []

    async def program(cpu: GuestCpu) -> None:
        cpu.send_sgi(0, 3)
        cpu.send_sgi(0, 4)
        await cpu.wfi()
        took.append(cpu.acknowledge())

    guest = bench.guest(program)
    bench.machine.plan_lost_interrupts(lambda guest, intid, vcpu: intid == 3)
    bench.machine.run()
    assert took == [4]
    assert bench.seen(VirqLost) == [VirqLost(guest, 0, 3)]


def test_an_exception_of_a_task_is_the_callers() -> None:
    bench = Bench()

    async def broken() -> None:
        raise LookupError("script")

    async def confused() -> None:
        await Suspend[None]("nonsense")

    bench.machine.spawn("broken", broken())
    with pytest.raises(LookupError, match="script"):
        bench.machine.run()
    bench.machine.spawn("confused", confused())
    with pytest.raises(TypeError, match="confused: suspended with 'nonsense'"):
        bench.machine.run()


def test_choices_are_asked_for_in_a_stable_order_and_only_when_there_is_one() -> None:
    asked: list[tuple[str, ...]] = []

    def last(strands: Sequence[Strand]) -> int:
        asked.append(tuple(strand.label for strand in strands))
        assert [strand.order for strand in strands] == sorted(strand.order for strand in strands)
        assert len(strands) > 1
        return len(strands) - 1

    bench = Bench(mode=Mode.INTERLEAVE, pcpus=2, choose=last, tee=ScriptedTee(points=1))
    order: list[int] = []

    async def program(cpu: GuestCpu) -> None:
        await cpu.smc(CALL)
        order.append(cpu.index)

    bench.guest(program, program)
    bench.machine.run()
    assert order == [1, 0]
    assert asked == [("pCPU 0", "pCPU 1")] * 3


def test_all_interleavings_of_two_independent_actors_are_reached_once() -> None:
    """m and n steps: C(m+n, n). Each program step is one switch point before a trap."""
    outcomes: list[tuple[int, ...]] = []
    prefix: list[int] = []
    while True:
        trail: list[list[int]] = []  # [choice, options]

        def choose(
            strands: Sequence[Strand],
            trail: list[list[int]] = trail,
            prefix: list[int] = prefix,
        ) -> int:
            depth = len(trail)
            pick = prefix[depth] if depth < len(prefix) else 0
            trail.append([pick, len(strands)])
            return pick

        bench = Bench(mode=Mode.INTERLEAVE, pcpus=2, choose=choose)
        order: list[int] = []

        def actor(steps: int, order: list[int] = order) -> VcpuProgram:
            async def program(cpu: GuestCpu) -> None:
                order.append(cpu.index)
                for _ in range(steps - 1):
                    await PREEMPTION_POINT
                    order.append(cpu.index)

            return program

        bench.guest(actor(3), actor(4))
        bench.machine.run()
        outcomes.append(tuple(order))
        while trail and trail[-1][0] + 1 >= trail[-1][1]:
            trail.pop()
        if not trail:
            break
        prefix = [choice for choice, _ in trail[:-1]] + [trail[-1][0] + 1]
    assert len(outcomes) == len(set(outcomes)) == 35


def test_settings_that_make_no_machine_are_refused() -> None:
    for wrong in ({"pcpus": 0}, {"pcpus": 300}, {"time_slice": 0}, {"quantum": -1}):
        with pytest.raises(ValueError, match=r"pCPUs|slice"):
            MachineSettings(**wrong)  # type: ignore[arg-type]

    async def program(cpu: GuestCpu) -> None:
        pass

    with pytest.raises(ValueError, match="bits"):
        GuestSpec("a", (program,), bits=16)
    with pytest.raises(ValueError, match="vCPUs"):
        GuestSpec("a", ())
