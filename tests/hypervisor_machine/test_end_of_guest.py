# SPDX-License-Identifier: BSD-2-Clause
"""The order in which a guest ends: its traps, then the TEE, then its memory, then its id (class 12)."""

from __future__ import annotations

import pytest

from mediator.guest.cpu import GuestCpu
from mediator.hypervisor.scheduler import Mode
from tests.hypervisor_machine.support import CALL, Bench, ScriptedTee


@pytest.mark.parametrize("preempted", [0, 3])
@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
def test_memory_outlives_what_the_tee_holds(mode: Mode, preempted: int) -> None:
    """The TEE may touch the guest's pages until the mediator has said that it has let go."""
    seen: list[bool] = []

    class Looking(ScriptedTee):
        async def guest_destroyed(self, guest: int) -> bool:
            seen.append(guest in bench.memory.guests)
            return await super().guest_destroyed(guest)

    bench = Bench(mode=mode, tee=Looking(points=2, teardown=preempted))

    async def program(cpu: GuestCpu) -> None:
        while True:
            await cpu.smc(CALL)

    guest = bench.guest(program, program)
    bench.machine.run(max_steps=20)
    bench.machine.destroy_guest(guest)
    bench.machine.run(max_steps=10_000)
    assert seen == [True] * (preempted + 1)
    assert guest not in bench.memory.guests
    assert bench.machine.guests == ()
