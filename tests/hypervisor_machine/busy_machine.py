# SPDX-License-Identifier: BSD-2-Clause
"""A machine with a bit of everything, and the digest of all that happened. Also run as a program."""

from __future__ import annotations

import hashlib
import random
import sys

from mediator.guest.cpu import GuestCpu
from mediator.hypervisor.scheduler import Mode
from tests.hypervisor_machine.support import CALL, RAM, Bench, ScriptedTee


def digest(mode: Mode, seed: int, *, steps: int = 6_000) -> str:
    """SHA-256 over every event with its time, of guests that come, talk, crash and go."""
    bench = Bench(
        mode=mode,
        pcpus=3,
        seed=seed,
        tee=ScriptedTee(points=2, teardown=2),
        time_slice=50_000,
        quantum=5_000,
    )
    machine = bench.machine
    story = hashlib.sha256()

    def record(event: tuple[object, ...]) -> None:
        story.update(f"{machine.time()} {type(event).__name__} {event!r}\n".encode())

    machine._core._sink = record
    draws = random.Random(seed)

    async def leader(cpu: GuestCpu) -> None:
        for number in range(draws.randrange(5, 40)):
            await cpu.write(RAM, number.to_bytes(4, "little"))
            cpu.send_sgi(1, number % 16)
            await cpu.smc(CALL, number)
            cpu.set_timer(cpu.now() + draws.randrange(100_000))
            await cpu.wfi()
            intid = cpu.acknowledge()
            cpu.set_timer(None)
            if intid is not None:
                cpu.end_of_interrupt(intid)
        if draws.random() < 0.3:
            raise ValueError("enough")
        await cpu.smc(0x84000008)

    async def follower(cpu: GuestCpu) -> None:
        while True:
            await cpu.wfi()
            intid = cpu.acknowledge()
            await cpu.read(RAM, 4)
            await cpu.hvc(CALL, intid or 0)
            if intid is not None:
                cpu.end_of_interrupt(intid)

    def arrive() -> None:
        bench.guest(leader, follower)
        machine.at(machine.now() + draws.randrange(200_000), arrive)
        if draws.random() < 0.4:
            victims = [guest for guest in machine.guests if machine.state(guest)]
            machine.destroy_guest(draws.choice(victims))

    arrive()
    machine.run(max_steps=steps)
    return f"{story.hexdigest()} {machine.now()} {len(machine.guests)}"


if __name__ == "__main__":
    print(digest(Mode(sys.argv[1]), int(sys.argv[2])))
