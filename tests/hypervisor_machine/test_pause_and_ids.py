# SPDX-License-Identifier: BSD-2-Clause
"""Guests that are paused, in any state; ids that are not free, and why."""

from __future__ import annotations

import pytest

from mediator.guest.cpu import GuestCpu, VcpuProgram
from mediator.hypervisor.guest import GuestSpec, GuestState, RamExtent
from mediator.hypervisor.machine import Created, Refused
from mediator.hypervisor.scheduler import Mode
from tests.hypervisor_machine.support import CALL, RAM, Bench, ScriptedTee
from tests.hypervisor_machine.test_life import busy, idle, looks


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
@pytest.mark.parametrize("program", [busy, looks, idle])
def test_a_paused_guest_does_nothing_until_it_is_resumed(mode: Mode, program: VcpuProgram) -> None:
    bench = Bench(mode=mode, tee=ScriptedTee(points=2), time_slice=20_000)
    guest = bench.guest(program, program)
    bench.machine.run(max_steps=9)
    bench.machine.pause_guest(guest)
    bench.machine.pause_guest(guest)
    bench.machine.run(max_steps=1_000)
    mark = len(bench.events)
    bench.machine.inject(guest, 40)
    bench.machine.resume_guest(guest)
    bench.machine.run(max_steps=100)
    assert {type(event).__name__ for event in bench.events[mark:]} <= {"VirqPending", "VcpuState"}
    mark = len(bench.events)
    bench.machine.resume_guest(guest)
    bench.machine.run(max_steps=200)
    assert ("VcpuState", "running") in {
        (type(event).__name__, event[-1]) for event in bench.events[mark:]
    }
    with pytest.raises(ValueError, match="not paused"):
        bench.machine.resume_guest(guest)


def test_a_paused_guest_can_be_destroyed() -> None:
    for steps in range(12):
        bench = Bench(mode=Mode.INTERLEAVE, tee=ScriptedTee(points=2))
        guest = bench.guest(busy, looks)
        bench.machine.run(max_steps=steps)
        bench.machine.pause_guest(guest)
        bench.machine.run(max_steps=steps)
        bench.machine.destroy_guest(guest)
        bench.machine.run()
        assert bench.machine.guests == ()


def test_a_quarantine_ends_when_the_tee_has_let_go_after_all() -> None:
    tee = ScriptedTee(teardown=1)
    tee.keep = 7
    bench = Bench(tee=tee)
    free = bench.memory.free
    guest = bench.guest(idle)
    other = bench.guest(idle)
    for early in (guest, other, 77):
        with pytest.raises(ValueError, match=f"guest {early} is not in quarantine"):
            bench.machine.release_quarantine(early)
    bench.machine.destroy_guest(guest)
    with pytest.raises(ValueError, match="not in quarantine"):
        bench.machine.release_quarantine(guest)
    bench.machine.run()
    bench.machine.release_quarantine(guest)
    assert bench.machine.state(guest) is None
    assert bench.memory.free == free - 16
    tee.keep = None
    assert bench.guest(idle) == guest
    with pytest.raises(ValueError, match="not in quarantine"):
        bench.machine.release_quarantine(guest)


def test_a_refused_id_says_why() -> None:
    bench = Bench(tee=ScriptedTee(teardown=2), max_guests=10)

    def refusal(guest: int) -> str:
        answer = bench.machine.create_guest(GuestSpec("a", (idle,), guest_id=guest))
        assert isinstance(answer, Refused)
        return answer.reason

    guest = bench.guest(idle)
    assert refusal(guest) == "id 1 is in use"
    bench.machine.destroy_guest(guest)
    assert refusal(guest) == "id 1 is in use: its guest is being torn down"
    bench.machine.run()
    bench.memory.blocked[guest] = 3
    assert refusal(guest) == "id 1 is not free: frames of its last guest are still held"
    for number in (-1, 10):
        assert refusal(number) == f"id {number} is not 0 to 9"
    bench.memory.blocked.clear()
    assert bench.guest(idle, guest_id=guest) == guest


def test_a_guest_paused_while_it_is_created_does_not_start() -> None:
    bench = Bench(mode=Mode.INTERLEAVE, tee=ScriptedTee(points=6))
    spec = GuestSpec("late", (busy,), ram=(RamExtent(RAM, 1),))
    task = bench.machine.spawn("create", bench.machine.create(spec))
    bench.machine.run(max_steps=3)
    assert bench.machine.state(1) is GuestState.CREATING
    bench.machine.pause_guest(1)
    bench.machine.run(max_steps=200)
    assert task.result == Created(1)
    assert ("enter", 1) not in bench.tee.history
    bench.machine.resume_guest(1)
    bench.machine.run(max_steps=50)
    assert ("enter", 1) in bench.tee.history


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
def test_pausing_a_dying_guest_does_not_keep_it_alive(mode: Mode) -> None:
    for steps in range(10):
        bench = Bench(mode=mode, tee=ScriptedTee(points=3, teardown=2))
        guest = bench.guest(busy, looks)
        bench.machine.run(max_steps=steps)
        bench.machine.destroy_guest(guest)
        bench.machine.pause_guest(guest)
        bench.machine.run(max_steps=10_000)
        assert bench.machine.guests == ()
        assert bench.guest(idle) == guest
        with pytest.raises(ValueError, match="not paused"):
            bench.machine.resume_guest(guest)


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
def test_a_trap_that_has_begun_ends_while_its_guest_is_paused(mode: Mode) -> None:
    tee = ScriptedTee(points=4)
    bench = Bench(mode=mode, tee=tee)
    reached: list[str] = []

    async def program(cpu: GuestCpu) -> None:
        await cpu.smc(CALL)
        reached.append("guest code")

    guest = bench.guest(program)
    bench.tee.on_entry = lambda guest, vcpu, regs: bench.machine.pause_guest(guest)
    bench.machine.run(max_steps=1_000)
    assert bench.tee.history == [("created", guest), ("enter", guest), ("leave", guest)]
    assert reached == []
    before = len(bench.events)
    bench.machine.run(max_steps=100)
    assert len(bench.events) == before, "nothing happens"
    bench.machine.resume_guest(guest)
    bench.machine.run()
    assert reached == ["guest code"]
