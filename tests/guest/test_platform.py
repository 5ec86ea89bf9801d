# SPDX-License-Identifier: BSD-2-Clause
"""Guests on the whole platform: their own IPAs, stage 2, the mediator, the simulated OP-TEE.

The client programs are those that also run without a mediator; here several guests run them at
once, with every invariant watched.
"""

from __future__ import annotations

from typing import Any

import pytest

from mediator.guest.client import INPUT, OUTPUT, Memref, TeeError, Value
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings
from mediator.guest.profile import LINUX_6_1, LINUX_6_12, PROFILES, Profile
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.scheduler import Mode
from mediator.optee.settings import MediatorSettings
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps import echo
from secure_world.apps.basic import Locker
from secure_world.apps.echo import Echo
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.guest.test_secure_world import adder, echo_program, secure_storage

RAM = ((0x4000_0000, 4096),)
MODERN = MediatorSettings()
CLASSIC = MediatorSettings(
    capabilities=MODERN.capabilities
    & ~(smc.OPTEE_SMC_SEC_CAP_RPC_ARG | smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF)
)
STYLES = pytest.mark.parametrize("mediator", [CLASSIC, MODERN], ids=["classic", "rpc-arg"])
MODES = pytest.mark.parametrize("mode", list(Mode), ids=[mode.value for mode in Mode])


def settings(name: str, profile: Profile, vcpus: int = 2, **options: Any) -> GuestSettings:
    driver = DriverSettings(profile=profile, migrate_every=3)
    return GuestSettings(name, RAM, vcpus, driver=driver, **options)


def platform(mediator: MediatorSettings, mode: Mode = Mode.DIRECT, seed: int = 0) -> Platform:
    return Platform(
        PlatformSettings(seed=seed, mediator=mediator, machine=MachineSettings(mode=mode))
    )


def finish(board: Platform) -> None:
    result = board.run()
    stuck = {guest.name: guest.stuck() for guest in board.guests.values() if guest.stuck()}
    assert not stuck
    assert not result.deadlocked
    board.check()
    for guest in board.guests.values():
        assert guest.driver.counters.anomalies == 0
        assert not len(guest.driver.shms)


@STYLES
@MODES
@pytest.mark.parametrize("profile", PROFILES, ids=[p.name for p in PROFILES])
def test_two_guests_run_the_same_programs(
    mediator: MediatorSettings, mode: Mode, profile: Profile
) -> None:
    board = platform(mediator, mode)
    for number in range(2):
        board.add_guest(settings(f"guest {number}", profile), echo_program, adder)
    finish(board)
    for guest in board.guests.values():
        assert guest.booted
        assert bool(guest.driver.rpc_param_count) == (mediator is MODERN)


@STYLES
def test_contention_in_three_guests_with_storage(mediator: MediatorSettings) -> None:
    async def contender(guest: Guest) -> None:
        async with guest.client().open_session(Locker.uuid) as session:
            for n in range(3):
                await session.invoke(
                    Locker.HOLD if n % 2 else Locker.HOLD_ASLEEP, Value(2, 1, INPUT)
                )

    board = platform(mediator)
    profiles = (LINUX_6_1, LINUX_6_12, LINUX_6_1)
    for number, profile in enumerate(profiles):
        board.add_guest(settings(f"guest {number}", profile, 3), *[contender] * 5, secure_storage)
    finish(board)


def test_secondary_vcpus_come_up_by_psci() -> None:
    board = platform(MODERN)
    guest = Guest(settings("smp", LINUX_6_12, 4, bring_up=True, supplicant=False))
    seen: set[int] = set()

    async def main(guest: Guest) -> None:
        await guest.kernel.sleep(1_000_000)
        for index in range(4):
            await guest.kernel.migrate(index)
            seen.add(guest.kernel.cpu.index)

    guest.start(main)
    spec = GuestSpec("smp", guest.programs, [RamExtent(*RAM[0])], boot_vcpus=1)
    board.guests[board.create(spec)] = guest
    finish(board)
    assert seen == {0, 1, 2, 3}


@STYLES
def test_a_guest_destroyed_mid_call_disturbs_nobody(mediator: MediatorSettings) -> None:
    async def victim_program(guest: Guest) -> None:
        client = guest.client()
        memory = await client.allocate(1 << 20)
        async with client.open_session(Echo.uuid) as session:
            while True:
                await session.invoke(echo.WAIT, Value(5, 0, INPUT))
                await session.invoke(echo.ECHO, Memref(memory))

    board = platform(mediator)
    victim = board.add_guest(settings("victim", LINUX_6_12), victim_program, victim_program)
    board.add_guest(settings("other", LINUX_6_12), echo_program, adder, echo_program)
    board.destroy_at(victim, 30_000_000)
    board.run()
    board.check()
    other = next(g for g in board.guests.values() if g.name == "other")
    assert not other.stuck()
    assert board.machine.guest(victim) is None
    assert [name for name, _ in board.guests[victim].stuck()].count("victim_program") == 2


def test_sixty_four_megabytes_scattered() -> None:
    size = 64 << 20
    ram = ((0x4000_0000, 3 * 4096), (0x1_0000_0000, 2 * 4096))

    async def main(guest: Guest) -> None:
        client = guest.client()
        buffer = client.buffer(size, offset=0x123)
        memory = await client.register(buffer)
        async with client.open_session(Echo.uuid) as session:
            for offset in (0, size // 2, size - 100):
                await memory.write(b"\x0f" * 100, offset)
                await session.invoke(echo.ECHO, Memref(memory, offset, 100))
                assert await memory.read(offset, 100) == b"\xf0" * 100
            with pytest.raises(TeeError) as caught:
                await session.invoke(echo.ECHO, Memref(memory, size, 8192, OUTPUT))
            assert caught.value.result == tee.TEE_ERROR_SECURITY
        await memory.release()

    board = platform(MODERN)
    board.add_guest(GuestSettings("large", ram, 1), main)
    finish(board)
    guest = next(iter(board.guests.values()))
    assert guest.driver.counters.registered_pages > size // 4096


def test_client_ids_may_begin_anywhere() -> None:
    """The bus and the mediator have to agree whose memory a client's is."""
    based = MediatorSettings(client_id_base=77)
    whole = Platform(PlatformSettings(mediator=based))

    async def share(guest: Guest) -> None:
        async with guest.client() as client, await client.allocate(5000) as memory:
            await memory.write(b"shared")

    whole.add_guest(GuestSettings("one", ((0x4000_0000, 512),)), share)
    assert not whole.run().deadlocked
    whole.check()
    assert not whole.bus.breaches
