# SPDX-License-Identifier: BSD-2-Clause
"""The scheduler of a guest: threads, waiting, timers, interrupts, more than one vCPU."""

from __future__ import annotations

import pytest

from mediator.guest.cpu import GuestCpu, Registers
from mediator.guest.kernel import Completion, Kernel, Mutex
from tests.guest.machine import FakeCpu, FakeMachine

RAM = ((0x4000_0000, 64),)


def no_tee(cpu: FakeCpu, regs: Registers) -> tuple[int, int, int, int]:
    return (cpu.index, 0, 0, 0)


def run(kernel: Kernel, vcpus: int = 2, **options: object) -> bool:
    suspending = bool(options.get("suspending", False))
    seed = options.get("seed", 0)
    assert isinstance(seed, int)
    machine = FakeMachine(RAM, no_tee, vcpus, seed, suspending)
    return machine.run([kernel.run] * vcpus)


def test_the_guest_stops_when_its_last_foreground_thread_ends() -> None:
    kernel = Kernel()

    async def service() -> None:
        await Completion(kernel, "nothing").wait()

    async def main() -> int:
        await kernel.sleep(1000)
        return 7

    kernel.spawn(service(), "service", daemon=True)
    thread = kernel.spawn(main(), "main")
    assert run(kernel)
    assert thread.ended
    assert thread.result == 7
    assert [(t.name, t.waiting_for) for t in kernel.abandoned] == [("service", "nothing")]


def test_a_thread_that_waits_for_ever_leaves_the_machine_stuck() -> None:
    kernel = Kernel()

    async def main() -> None:
        await Completion(kernel, "Godot").wait()

    kernel.spawn(main(), "main")
    assert not run(kernel)
    assert [(t.name, t.waiting_for) for t in kernel.abandoned] == [("main", "Godot")]


@pytest.mark.parametrize("suspending", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_completions_count_and_nothing_is_lost(seed: int, suspending: bool) -> None:
    kernel = Kernel()
    slots = Completion(kernel, "a slot")
    done: list[int] = []

    async def producer() -> None:
        for _ in range(20):
            await kernel.cpu.smc(0)
            slots.complete()

    async def consumer(number: int) -> None:
        for _ in range(5):
            await slots.wait()
            await kernel.cpu.smc(0)
            done.append(number)

    for number in range(4):
        kernel.spawn(consumer(number), f"consumer {number}")
    kernel.spawn(producer(), "producer")
    assert run(kernel, 3, seed=seed, suspending=suspending)
    assert sorted(done) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    assert not slots.done


@pytest.mark.parametrize("seed", range(6))
def test_a_mutex_lets_one_in_at_a_time(seed: int) -> None:
    kernel = Kernel()
    mutex = Mutex(kernel, "test")
    inside = 0
    entries = 0

    async def body() -> None:
        nonlocal inside, entries
        for _ in range(4):
            async with mutex:
                inside += 1
                assert inside == 1
                await kernel.cpu.smc(0)
                await kernel.yield_()
                inside -= 1
                entries += 1

    for number in range(5):
        kernel.spawn(body(), f"thread {number}")
    assert run(kernel, 3, seed=seed, suspending=True)
    assert not kernel.failures
    assert entries == 20


def test_a_wait_times_out_in_virtual_time() -> None:
    kernel = Kernel()
    seen: list[tuple[bool, int]] = []

    async def main() -> None:
        completion = Completion(kernel, "nobody")
        seen.append((await completion.wait(5_000), kernel.cpu.now()))
        kernel.start_timer(kernel.cpu.now() + 1_000, completion.complete)
        seen.append((await completion.wait(1_000_000), kernel.cpu.now()))

    kernel.spawn(main(), "main")
    assert run(kernel)
    assert seen == [(False, 5_000), (True, 6_000)]


def test_sleepers_wake_in_order_of_their_deadlines() -> None:
    kernel = Kernel()
    order: list[int] = []

    async def sleeper(duration: int) -> None:
        await kernel.sleep(duration)
        order.append(duration)

    for duration in (500, 100, 900, 300):
        kernel.spawn(sleeper(duration), "sleeper")
    assert run(kernel)
    assert order == [100, 300, 500, 900]


def test_a_thread_moves_to_the_vcpu_it_asks_for() -> None:
    kernel = Kernel()
    places: list[int] = []

    async def main() -> None:
        await kernel.sleep(10)
        for target in (1, 2, 0, 0, 1):
            await kernel.migrate(target)
            places.append((await kernel.cpu.smc(0))[0])

    kernel.spawn(main(), "main")
    assert run(kernel, 3)
    assert places == [1, 2, 0, 0, 1]
    assert kernel.counters.ipis > 0
    assert kernel.counters.migrations >= 3


def test_an_interrupt_is_handled_after_the_trap_and_its_thread_runs() -> None:
    kernel = Kernel()
    log: list[str] = []
    wanted = Completion(kernel, "an interrupt")

    async def handler(cpu: GuestCpu) -> None:
        log.append("handler")
        wanted.complete()

    async def service() -> None:
        await wanted.wait()
        log.append("service")

    machine = FakeMachine(RAM, no_tee, 1)
    kernel.request_irq(40, handler)
    kernel.spawn(service(), "service")

    async def main() -> None:
        machine.cpus[0].inject(40)
        machine.cpus[0].inject(41)
        await kernel.sleep(100)
        log.append("main")

    kernel.spawn(main(), "main")
    assert machine.run([kernel.run])
    assert log == ["handler", "service", "main"]
    assert kernel.counters.spurious_interrupts == 1
    with pytest.raises(ValueError, match="interrupt 40"):
        kernel.request_irq(40, handler)
    kernel.free_irq(40)


def test_an_exception_ends_its_thread_and_reaches_who_joins_it() -> None:
    kernel = Kernel()
    caught: list[str] = []

    async def broken() -> None:
        await kernel.sleep(5)
        raise RuntimeError("broken")

    async def main() -> None:
        thread = kernel.spawn(broken(), "joined")
        kernel.spawn(broken(), "not joined")
        try:
            await thread.join()
        except RuntimeError as error:
            caught.append(str(error))

    kernel.spawn(main(), "main")
    assert run(kernel)
    assert caught == ["broken"]
    assert [thread.name for thread, _ in kernel.failures] == ["not joined"]


def test_a_destroyed_guest_unwinds_without_a_sound() -> None:
    kernel = Kernel()
    unwound: list[str] = []

    async def body(name: str) -> None:
        try:
            if name == "blocked":
                await Completion(kernel, "ever").wait()
            while True:
                await kernel.cpu.smc(0)
        finally:
            unwound.append(name)

    kernel.spawn(body("blocked"), "blocked")
    kernel.spawn(body("trapping"), "trapping")
    machine = FakeMachine(RAM, no_tee, 1, suspending=True)
    assert not machine.run([kernel.run], steps=20)
    assert unwound == ["trapping", "blocked"]
    assert not kernel.threads
