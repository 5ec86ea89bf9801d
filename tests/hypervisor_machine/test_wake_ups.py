# SPDX-License-Identifier: BSD-2-Clause
"""An interrupt ends a wait, whether it comes before it or after it (bug class 22)."""

from __future__ import annotations

import pytest

from mediator.guest.cpu import GuestCpu
from mediator.hypervisor.scheduler import Mode
from tests.hypervisor_machine.support import Bench


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
def test_an_interrupt_that_came_before_the_wait_ends_it(mode: Mode) -> None:
    bench = Bench(mode=mode)
    took: list[int | None] = []

    async def program(cpu: GuestCpu) -> None:
        cpu.send_sgi(0, 3)
        await cpu.wfi()
        took.append(cpu.acknowledge())
        cpu.end_of_interrupt(3)

    bench.guest(program)
    assert not bench.machine.run().deadlocked
    assert took == [3]


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
def test_an_interrupt_that_comes_during_the_wait_ends_it(mode: Mode) -> None:
    """The sender goes on to wait for an answer: nothing else would wake the first."""
    bench = Bench(mode=mode)
    took: list[tuple[int, int | None]] = []

    async def sender(cpu: GuestCpu) -> None:
        cpu.set_timer(cpu.now() + 10_000_000)
        await cpu.wfi()
        cpu.set_timer(None)
        cpu.send_sgi(1, 5)
        await cpu.wfi()
        took.append((0, cpu.acknowledge()))

    async def sleeper(cpu: GuestCpu) -> None:
        await cpu.wfi()
        took.append((1, cpu.acknowledge()))
        cpu.send_sgi(0, 6)

    bench.guest(sender, sleeper)
    assert not bench.machine.run().deadlocked
    assert took == [(1, 5), (0, 6)]
