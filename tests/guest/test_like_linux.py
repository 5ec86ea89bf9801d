# SPDX-License-Identifier: BSD-2-Clause
"""Behaviour of the real driver that recordings of live guests taught the simulated one."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from mediator.guest.client import Session, TeeError, Value
from mediator.guest.cpu import Registers
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings, Main
from mediator.guest.hwrng import POOL_SIZE, RngDevice, RngError
from mediator.guest.identity import group_identity, user_identity
from mediator.guest.memory import PAGE_SIZE, CookieAllocator
from mediator.guest.profile import LINUX_6_1, LINUX_6_12, PROFILES, Profile
from secure_world.apps.echo import Echo
from secure_world.apps.rng import registry_with_rng
from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.wire import MESSAGE
from tests.guest.machine import FakeCpu, FakeMachine
from tests.guest.test_secure_world import RAM, Board, FlatBus


class Rig:
    """A guest on a secure world that has random numbers; keeps what was called.

    ``calls``: registers; ``messages``: (command, session).
    """

    def __init__(self, *mains: Main, supplicant: bool = True, **settings: Any) -> None:
        bus, board = FlatBus(), Board()
        registry = registry_with_rng()
        options = SecureWorldSettings(virtualization=False)
        self.world = SecureWorld(bus, options, board, registry=registry)
        self.calls: list[Registers] = []
        self.messages: list[tuple[int, int]] = []
        vcpus = settings.pop("vcpus", 2)
        assert isinstance(vcpus, int)
        machine = FakeMachine(RAM, self._smc, vcpus)
        bus.machine = board.machine = machine
        driver = DriverSettings(**settings)
        self.guest = Guest(
            GuestSettings(
                "g", RAM, vcpus, driver=driver, images=registry.images(), supplicant=supplicant
            )
        )
        self.machine = machine
        self.guest.start(*mains)
        assert machine.run(self.guest.programs), self.guest.stuck()
        self.guest.check()
        assert not len(self.guest.driver.shms)

    def _smc(self, cpu: FakeCpu, regs: Registers) -> tuple[int, int, int, int]:
        self.calls.append(regs)
        if regs[0] == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
            page = self.guest.driver.shms.find(regs[1] << 32 | regs[2])
            assert page is not None
            self._note(page.ipa + regs[3])
        elif regs[0] in (smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG):
            self._note(regs[1] << 32 | regs[2])
        return self.world.smc(*regs)

    def _note(self, ipa: int) -> None:
        fields = MESSAGE[0].unpack(self.machine.load(ipa, 32))
        self.messages.append((fields[0], fields[2]))


def exchanged(rig: Rig) -> int:
    return next(r[1] for r in rig.calls if r[0] == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)


@pytest.mark.parametrize(
    ("vcpus", "processors", "said"),
    [(1, 0, smc.OPTEE_SMC_NSEC_CAP_UNIPROCESSOR), (2, 0, 0), (1, 2, 0), (2, 1, 1)],
)
def test_a_kernel_with_one_processor_says_so(vcpus: int, processors: int, said: int) -> None:
    assert exchanged(Rig(vcpus=vcpus, processors=processors)) == said


def test_memory_that_a_process_leaves_is_released_before_its_sessions_the_newest_first() -> None:
    async def leaver(guest: Guest) -> None:
        client = guest.client()
        one = await client.allocate(PAGE_SIZE)
        await client.open_session(Echo.uuid)
        await client.register(client.buffer(5000))
        await client.open_session(Echo.uuid)
        await client.exit()
        assert not client.memories
        assert not client.sessions
        await one.release()

    rig = Rig(leaver)
    ends = [m for m in rig.messages if m[0] in (2, 5)]
    commands = [command for command, _ in ends]
    close, unregister = msg.OPTEE_MSG_CMD_CLOSE_SESSION, msg.OPTEE_MSG_CMD_UNREGISTER_SHM
    where = [n for n in range(len(ends)) if commands[n : n + 4] == [unregister] * 2 + [close] * 2]
    assert len(where) == 1
    sessions = [session for command, session in ends[where[0] :][:4] if command == close]
    assert sessions == sorted(sessions, reverse=True)


def test_a_closed_session_makes_no_call() -> None:
    seen: list[tuple[int, int]] = []

    async def main(guest: Guest) -> None:
        session: Session = await guest.client().open_session(Echo.uuid)
        await session.close()
        calls = guest.driver.counters.calls
        for attempt in (session.invoke(1, Value()), session.cancel()):
            with pytest.raises(TeeError) as caught:
                await attempt
            seen.append((caught.value.result, caught.value.origin))
        await session.close()
        assert guest.driver.counters.calls == calls

    Rig(main)
    assert seen == [(tee.TEE_ERROR_BAD_PARAMETERS, tee.TEE_ORIGIN_COMMS)] * 2


def test_who_waits_for_a_supplicant_can_be_killed() -> None:
    results: list[int] = []

    async def main(guest: Guest) -> None:
        queue = guest.driver.supplicant

        async def load() -> None:
            with pytest.raises(TeeError) as caught:
                await guest.client().open_session(Echo.uuid)
            results.append(caught.value.result)

        waiting = guest.kernel.spawn(load(), "load")
        assert not queue.interrupt(waiting)
        await guest.kernel.sleep(1_000_000)
        assert queue.interrupt(waiting)
        await waiting.join()
        assert not queue.interrupt(waiting)

    Rig(main, supplicant=False)
    assert results == [tee.TEE_ERROR_COMMUNICATION]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_random_numbers_for_the_kernel(profile: Profile) -> None:
    async def main(guest: Guest) -> None:
        device = RngDevice(guest.driver)
        with pytest.raises(RngError):
            await device.read()
        calls = guest.driver.counters.calls
        await device.probe()
        early = bool(profile.early_randomness)
        assert guest.driver.counters.calls == calls + 3 + early
        assert device.bound
        assert device.data_rate > 0
        first, second = await device.read(), await device.read(8000)
        assert (len(first), len(second)) == (64, POOL_SIZE)
        assert first != second[:64]
        await device.remove()
        assert not device.bound

    Rig(main, profile=profile)


def test_registered_kernel_memory_is_zeroed() -> None:
    async def main(guest: Guest) -> None:
        driver = guest.driver
        shm = await driver.alloc_kernel(100)
        await guest.kernel.cpu.write(shm.ipa, b"\xff" * PAGE_SIZE)
        await driver.unregister(shm)
        again = await driver.alloc_kernel(PAGE_SIZE)
        assert again.ipa == shm.ipa
        assert await guest.kernel.cpu.read(again.ipa, PAGE_SIZE) == bytes(PAGE_SIZE)
        await driver.unregister(again)

    Rig(main)


@pytest.mark.parametrize(("profile", "size"), [(LINUX_6_1, 0x80), (LINUX_6_12, 0x60)])
def test_kernel_objects_lie_as_in_a_slab(profile: Profile, size: int) -> None:
    cookies = CookieAllocator(size=profile.object_size)
    found = [cookies.alloc() for _ in range(100)]
    assert len(set(found)) == 100
    assert {cookie % PAGE_SIZE % size for cookie in found} == {0}
    assert all(cookie // PAGE_SIZE == (cookie + size - 1) // PAGE_SIZE for cookie in found)


def test_identities_are_those_of_recorded_kernels() -> None:
    """User 0 and group 0, as Linux 6.1 and 6.12 sent them."""
    assert user_identity(0) == UUID("ef0180a3-13f3-5d1c-b7f5-888c0e21059a")
    assert group_identity(0) == UUID("d93bc168-f863-58d3-a1fe-bb2039421b99")
