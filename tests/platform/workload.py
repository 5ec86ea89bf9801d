# SPDX-License-Identifier: BSD-2-Clause
"""A mixed workload for tests of the whole platform."""

from __future__ import annotations

from uuid import UUID

import pytest

from mediator.guest.client import INPUT, OUTPUT, Memref, TeeError, Value
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings, Main
from mediator.guest.profile import LINUX_6_1, LINUX_6_12
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.scheduler import Mode
from mediator.optee.settings import MediatorSettings
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps.basic import Arithmetic, Clock, Locker, MemoryReferences
from secure_world.apps.echo import ECHO, Echo
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_smc as smc

RAM = ((0x4000_0000, 4096), (0x8000_0000, 4096))
CLASSIC = MediatorSettings(
    capabilities=MediatorSettings().capabilities & ~smc.OPTEE_SMC_SEC_CAP_RPC_ARG
)


async def arithmetic(guest: Guest) -> None:
    async with guest.client("arithmetic").open_session(Arithmetic.uuid) as session:
        for step in range(5):
            result = Value(direction=OUTPUT)
            await session.invoke(Arithmetic.MULTIPLY, Value(step, 1 << 30, INPUT), result)
            assert result.b << 32 | result.a == step << 30, result


async def echo(guest: Guest) -> None:
    client = guest.client("echo")
    async with client.open_session(Echo.uuid) as session:
        value = Value(1, 2)
        data = await client.buffer_of(bytes(range(200)))
        await session.invoke(ECHO, value, Memref(data, size=200))
        client.free(data)


async def memory(guest: Guest) -> None:
    client = guest.client("memory")
    async with client.open_session(MemoryReferences.uuid) as session:
        async with await client.allocate(3 << 20) as shared:
            await shared.write(b"mediator" * 512, 0x1234)
            total = Value(direction=OUTPUT)
            await session.invoke(MemoryReferences.SUM, Memref(shared, direction=INPUT), total)
            assert (total.a, total.b) == (sum(b"mediator") * 512, 3 << 20)
        data = bytes(range(256)) * 40
        buffer = await client.buffer_of(data, offset=0xF01)
        await session.invoke(MemoryReferences.REVERSE, Memref(buffer))
        assert await buffer.read(0, len(data)) == data[::-1]
        client.free(buffer)


async def lock(guest: Guest) -> None:
    async with guest.client("lock").open_session(Locker.uuid) as session:
        for _ in range(3):
            await session.invoke(Locker.HOLD, Value(4, 1, INPUT))
            await session.invoke(Locker.HOLD_ASLEEP, Value(1, 1, INPUT))


async def clock(guest: Guest) -> None:
    async with guest.client("clock").open_session(Clock.uuid) as session:
        await session.invoke(Clock.WORK, Value(30, 300_000, INPUT))
        await session.invoke(Clock.SLEEP, Value(2, 0, INPUT))


async def missing(guest: Guest) -> None:
    with pytest.raises(TeeError) as caught:
        await guest.client("missing").open_session(UUID(int=77))
    assert caught.value.result == 0xFFFF0008


MAINS: tuple[Main, ...] = (arithmetic, echo, memory, lock, lock, clock, missing)


def platform(
    seed: int,
    mode: Mode,
    settings: MediatorSettings | None = None,
    guests: int = 2,
    mains: tuple[Main, ...] = MAINS,
    secure_world: SecureWorldSettings | None = None,
) -> Platform:
    """A platform whose guests run everything at once, under the watch of all checkers."""
    made = Platform(
        PlatformSettings(
            seed=seed,
            machine=MachineSettings(mode=mode, pcpus=2),
            mediator=settings or MediatorSettings(),
            secure_world=secure_world or SecureWorldSettings(),
        )
    )
    for index in range(guests):
        profile = LINUX_6_1 if index % 2 else LINUX_6_12
        made.add_guest(
            GuestSettings(
                f"guest{index}",
                RAM,
                vcpus=2,
                seed=seed + index,
                driver=DriverSettings(profile=profile),
            ),
            *mains,
        )
    return made
