# SPDX-License-Identifier: BSD-2-Clause
"""Many guests: what an idle one costs in memory, and that a busy one does not notice them."""

from __future__ import annotations

import gc
import sys
import tracemalloc

from mediator.guest.cpu import GuestCpu
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec
from mediator.hypervisor.machine import Machine
from tests.hypervisor_machine.support import CALL, FakeMemory, ScriptedTee

GUESTS = 1_000
CEILING = 8 * 1024
"""Bytes for the machine's part of an idle guest with four waiting vCPUs (16 KiB is the whole)."""


async def idle(cpu: GuestCpu) -> None:
    while True:
        await cpu.wfi()


def machine_with(guests: int) -> Machine:
    machine = Machine(MachineSettings(pcpus=4), FakeMemory(), ScriptedTee())
    for _ in range(guests):
        machine.create_guest(GuestSpec("idle", (idle,) * 4))
    machine.run()
    return machine


def test_a_thousand_idle_guests_cost_little_memory() -> None:
    machine_with(2)
    gc.collect()
    tracemalloc.start()
    machine = machine_with(GUESTS)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(machine.waiting()) == 4 * GUESTS
    assert used / GUESTS < CEILING


def test_a_call_makes_as_many_python_calls_with_a_thousand_guests_as_with_one() -> None:
    def calls(machine: Machine) -> int:
        async def program(cpu: GuestCpu) -> None:
            for _ in range(100):
                await cpu.smc(CALL)

        machine.create_guest(GuestSpec("busy", (program,)))
        count = 0

        def tracer(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(tracer)
        try:
            machine.scheduler.run()
        finally:
            sys.setprofile(None)
        return count

    few, many = calls(machine_with(1)), calls(machine_with(GUESTS))
    assert abs(many - few) <= 10
    # The machine's own part of a trap: program loop, smc, trap, route, mediator.
    assert few / 100 < 12
