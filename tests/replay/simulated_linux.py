# SPDX-License-Identifier: BSD-2-Clause
"""Recordings of our simulated Linux driver on our simulated OP-TEE, with no mediator between them.

Every trap gives the other processors a chance before OP-TEE is entered and after it came back, so
calls overlap in the recording as they do on a real machine with several processors.
"""

from __future__ import annotations

import contextlib

from mediator.guest.client import INPUT, OUTPUT, Memref, TeeError, Value
from mediator.guest.cpu import Registers
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings, Main
from mediator.guest.profile import LINUX_6_1, Profile
from mediator.suspend import PREEMPTION_POINT
from secure_world.apps import echo
from secure_world.apps.echo import Echo, EchoShared
from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from specs.replay.reader import Trace, build_trace
from specs.replay.recorder import Recorder
from specs.replay.records import Meta, Record
from tests.guest.machine import SMC_NS, FakeCpu, FakeMachine
from tests.guest.test_secure_world import RAM, Board, FlatBus


class TracedCpu(FakeCpu):
    """A processor whose traps are recorded at EL3."""

    async def smc(
        self,
        a0: int,
        a1: int = 0,
        a2: int = 0,
        a3: int = 0,
        a4: int = 0,
        a5: int = 0,
        a6: int = 0,
        a7: int = 0,
        *,
        immediate: int = 0,
    ) -> Registers:
        machine = self.machine
        assert isinstance(machine, TracedMachine)
        client = machine.client
        regs = (a0, a1, a2, a3, a4, a5, a6, client)
        machine.now += SMC_NS
        machine.recorder.call(self.index, regs, machine.now / 1000)
        await PREEMPTION_POINT
        answer = machine.world.smc(*regs)
        await PREEMPTION_POINT
        machine.recorder.answer(self.index, answer, machine.now / 1000)
        return (*answer, a4, a5, a6, a7)


class TracedMachine(FakeMachine):
    """A machine with a tracer."""

    def __init__(self, world: SecureWorld, recorder: Recorder, vcpus: int, seed: int) -> None:
        super().__init__(RAM, lambda cpu, regs: world.smc(*regs), vcpus, seed, True)
        self.world = world
        self.recorder = recorder
        self.client = 1 if world.settings.virtualization else 0
        self.cpus: list[FakeCpu] = [TracedCpu(self, index) for index in range(vcpus)]


def record(
    *mains: Main,
    settings: SecureWorldSettings | None = None,
    profile: Profile = LINUX_6_1,
    vcpus: int = 2,
    seed: int = 0,
    interrupt_every: int = 0,
    migrate_every: int = 0,
) -> Trace:
    """Run client programs on a fresh machine and return what EL3 saw."""
    settings = settings or SecureWorldSettings(virtualization=False)
    bus, board = FlatBus(), Board(interrupt_every)
    world = SecureWorld(bus, settings, board)
    records: list[Record] = []
    recorder = Recorder(
        lambda pa, n: bus.read(0, pa, n) if bus.check(0, pa, n) else None, records.append
    )
    machine = TracedMachine(world, recorder, vcpus, seed)
    bus.machine = board.machine = machine
    if settings.virtualization:
        created = (0xB200000D, 1, 0, 0, 0, 0, 0, 0)
        recorder.call(0, created)
        recorder.answer(0, world.smc(*created))
    driver = DriverSettings(profile=profile, migrate_every=migrate_every)
    guest = Guest(
        GuestSettings("traced", RAM, vcpus, seed, driver=driver, images=world.registry.images())
    )
    guest.start(*mains)
    assert machine.run(guest.programs), guest.stuck()
    guest.check()
    base, pages = RAM[0]
    meta = Meta(
        {
            "scenario": "simulated Linux on simulated OP-TEE",
            "ram": [[hex(base), hex(pages * 4096)]],
            "optee_config": f"CFG_NUM_THREADS={settings.threads}, CFG_CORE_RESERVED_SHM=n, "
            f"CFG_NS_VIRTUALIZATION={'y' if settings.virtualization else 'n'}",
        }
    )
    return build_trace("simulated", iter([meta, *records]), {})


async def everything(guest: Guest) -> None:
    """A session with the echo TA: values, buffers, sleeping, time, an unknown TA."""
    client = guest.client()
    async with client.open_session(Echo.uuid) as session:
        await session.invoke(echo.ECHO, Value(1, 2), Memref(await client.buffer_of(b"\x33" * 5000)))
        memory = await client.allocate(70_000)
        await session.invoke(
            echo.ECHO, Memref(memory, 4000, 200, OUTPUT), Memref(memory, 1, 9, INPUT)
        )
        await session.invoke(echo.WAIT, Value(2, 0))
        await session.invoke(echo.REE_TIME, Value(0, 0))
        with contextlib.suppress(TeeError):
            await session.invoke(echo.PANIC, Value(7, 0))


async def contention(guest: Guest) -> None:
    """Calls into one instance that many clients share."""
    async with guest.client().open_session(EchoShared.uuid) as session:
        for number in range(4):
            await session.invoke(echo.LOOP, Value(30_000, number, INPUT))
            await session.invoke(echo.WAIT, Value(1, 0))
