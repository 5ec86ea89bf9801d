# SPDX-License-Identifier: BSD-2-Clause
"""The guest on the simulated OP-TEE with no mediator between: its physical addresses are IPAs.

What works here and not behind a mediator is the mediator's doing.
"""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from mediator.guest.client import INPUT, OUTPUT, Client, Memref, Session, TeeError, Value
from mediator.guest.cpu import GuestAbort, Registers
from mediator.guest.driver import DEVICE_ENUMERATION
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings, Main
from mediator.guest.profile import LINUX_6_1, LINUX_6_12, PROFILES, Profile
from mediator.guest.rpc import RPC_COMMANDS
from secure_world.apps import echo
from secure_world.apps.basic import Arithmetic, Locker
from secure_world.apps.devices import DeviceEnumeration
from secure_world.apps.echo import Echo
from secure_world.apps.storage import Command, StorageApplication
from secure_world.bus import BusError
from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee
from tests.guest.machine import FakeCpu, FakeMachine

RAM = ((0x4000_0000, 4096),)


class FlatBus:
    """Normal-world RAM as the secure world sees it: everything is allowed."""

    def __init__(self) -> None:
        self.machine: FakeMachine

    def read(self, client: int, pa: int, n: int) -> bytes:
        try:
            return self.machine.load(pa, n)
        except GuestAbort:
            raise BusError(pa, n) from None

    def write(self, client: int, pa: int, data: bytes) -> None:
        try:
            self.machine.store(pa, data)
        except GuestAbort:
            raise BusError(pa, len(data), True) from None

    def check(self, client: int, pa: int, n: int) -> bool:
        return any(base <= pa and pa + n <= base + len(d) for base, d in self.machine.memory)

    def check_pages(self, client: int, pages: bytes) -> bool:
        words = struct.unpack(f"<{len(pages) // 8}Q", pages)
        return all(self.check(client, pa, 4096) for pa in words)


class Board:
    """The monitor of the secure world: the machine's time, an interrupt now and then."""

    def __init__(self, interrupt_every: int = 0) -> None:
        self.machine: FakeMachine
        self.interrupt_every = interrupt_every
        self.asked = 0

    def now(self) -> int:
        return self.machine.now

    def charge(self, ns: int) -> None:
        self.machine.now += ns

    def foreign_interrupt_pending(self) -> bool:
        self.asked += 1
        return bool(self.interrupt_every) and self.asked % self.interrupt_every == 0

    def raise_notification(self) -> None:
        self.machine.cpus[0].inject(219)


def run(
    *mains: Main,
    profile: Profile = LINUX_6_12,
    settings: SecureWorldSettings | None = None,
    vcpus: int = 2,
    seed: int = 0,
    suspending: bool = False,
    interrupt_every: int = 0,
    migrate_every: int = 0,
) -> Guest:
    """Run client programs to their end on a fresh secure world; nothing may be left of them."""
    bus, board = FlatBus(), Board(interrupt_every)
    world = SecureWorld(bus, settings or SecureWorldSettings(virtualization=False), board)

    def secure(cpu: FakeCpu, regs: Registers) -> tuple[int, int, int, int]:
        return world.smc(*regs)

    machine = FakeMachine(RAM, secure, vcpus, seed, suspending)
    bus.machine = board.machine = machine
    driver = DriverSettings(profile=profile, migrate_every=migrate_every)
    guest = Guest(
        GuestSettings("g", RAM, vcpus, seed, driver=driver, images=world.registry.images())
    )
    guest.start(*mains)
    assert machine.run(guest.programs), guest.stuck()
    guest.check()
    assert guest.driver.counters.anomalies == 0
    assert not len(guest.driver.shms)
    return guest


STYLES = pytest.mark.parametrize(
    "settings",
    [
        SecureWorldSettings(virtualization=False),
        SecureWorldSettings(virtualization=False, rpc_arg=False),
        SecureWorldSettings(virtualization=False, rpc_arg=False, async_notifications=False),
        SecureWorldSettings(virtualization=False, null_memref=False, rpc_cache=False),
    ],
    ids=["all", "classic", "classic without notifications", "without null references"],
)


async def echo_program(guest: Guest) -> None:
    client = guest.client()
    async with client.open_session(Echo.uuid) as session:
        value = Value(0x1000, 0x2000)
        await session.invoke(echo.ECHO, value)
        assert (value.a, value.b) == (0x1001, 0x2002)
        buffer = await client.buffer_of(b"\x33" * 5000)
        await session.invoke(echo.ECHO, Memref(buffer))
        assert await buffer.read() == b"\xcc" * 5000
        memory = await client.allocate(3 << 20)
        part = Memref(memory, 4000, 200, OUTPUT)
        await session.invoke(echo.SIZED_OUTPUT, part)
        assert part.size == echo.OUTPUT_SIZE
        assert await memory.read(4000, 100) == bytes([echo.OUTPUT_BYTE]) * 100
        short = Memref(memory, 0, 10, OUTPUT)
        with pytest.raises(TeeError) as caught:
            await session.invoke(echo.SIZED_OUTPUT, short)
        assert caught.value.result == tee.TEE_ERROR_SHORT_BUFFER
        assert short.size == echo.OUTPUT_SIZE
        await session.invoke(echo.ECHO, Memref(None))
        await session.invoke(echo.REE_TIME, seconds := Value(direction=OUTPUT))
        assert seconds.a >= 1_800_000_000
        await session.invoke(echo.WAIT, Value(20, 0, INPUT))
        await memory.release()
        client.free(buffer)


@STYLES
@pytest.mark.parametrize("profile", PROFILES, ids=[p.name for p in PROFILES])
def test_every_parameter_kind(settings: SecureWorldSettings, profile: Profile) -> None:
    guest = run(echo_program, profile=profile, settings=settings, interrupt_every=3)
    assert guest.pages.in_use == 0
    assert guest.driver.counters.foreign_interrupts > 0


async def adder(guest: Guest) -> None:
    async with guest.client().open_session(Arithmetic.uuid) as session:
        for n in range(5):
            await session.invoke(
                Arithmetic.ADD, Value(n, 2, INPUT), total := Value(direction=OUTPUT)
            )
            assert total.a == n + 2


@STYLES
@pytest.mark.parametrize("seed", range(3))
def test_concurrent_programs_on_three_vcpus(settings: SecureWorldSettings, seed: int) -> None:
    guest = run(
        echo_program,
        adder,
        echo_program,
        adder,
        settings=settings,
        vcpus=3,
        seed=seed,
        suspending=True,
        interrupt_every=4,
        migrate_every=3,
    )
    assert guest.driver.counters.migrated_rpcs > 0
    assert guest.kernel.counters.migrations > 0


@STYLES
@pytest.mark.parametrize("profile", PROFILES, ids=[p.name for p in PROFILES])
@pytest.mark.parametrize("seed", range(2))
def test_contention_waits_in_the_normal_world(
    settings: SecureWorldSettings, profile: Profile, seed: int
) -> None:
    """Six programs, two threads, one lock that is held asleep: everybody gets it."""
    done: list[int] = []

    async def contender(guest: Guest) -> None:
        async with guest.client().open_session(Locker.uuid) as session:
            for n in range(3):
                command = Locker.HOLD if n % 2 else Locker.HOLD_ASLEEP
                await session.invoke(command, Value(3, 1, INPUT))
                done.append(n)

    guest = run(
        *[contender] * 6,
        profile=profile,
        settings=settings,
        seed=seed,
        suspending=True,
        interrupt_every=5,
    )
    assert len(done) == 18
    assert guest.driver.counters.rpcs[RPC_COMMANDS + rpc.OPTEE_RPC_CMD_NOTIFICATION] > 0
    assert (guest.driver.counters.thread_limits > 0) == (profile is LINUX_6_1)


@pytest.mark.parametrize("seed", range(10))
def test_two_waiters_and_one_sender_always_end(seed: int) -> None:
    async def waiter(guest: Guest) -> None:
        async with guest.client().open_session(Locker.uuid) as session:
            await session.invoke(Locker.WAIT_SIGNAL, Value(0, 2, INPUT))

    async def sender(guest: Guest) -> None:
        async with guest.client().open_session(Locker.uuid) as session:
            await session.invoke(Locker.SIGNAL, Value(1, 2, INPUT))
            await session.invoke(Locker.SIGNAL, Value(1, 2, INPUT))

    threads = SecureWorldSettings(virtualization=False, threads=3)
    run(waiter, waiter, sender, settings=threads, seed=seed, vcpus=3, suspending=True)


def test_a_cancellation_ends_a_wait_when_the_sleep_is_over() -> None:
    results: list[int] = []

    async def main(guest: Guest) -> None:
        client = guest.client()
        async with client.open_session(Echo.uuid) as session:

            async def wait() -> None:
                with pytest.raises(TeeError) as caught:
                    await session.invoke(echo.WAIT, Value(100, 0, INPUT))
                results.append(caught.value.result)

            thread = guest.kernel.spawn(wait(), "wait")
            await guest.kernel.sleep(10_000_000)
            started = guest.kernel.cpu.now()
            await session.cancel()
            assert guest.kernel.cpu.now() - started < 1_000_000
            await thread.join()

    run(main)
    assert results == [tee.TEE_ERROR_CANCEL]


def test_what_a_ta_that_is_missing_or_dead_answers() -> None:
    async def main(guest: Guest) -> None:
        client = guest.client()
        with pytest.raises(TeeError) as missing:
            await client.open_session(UUID(int=77))
        assert missing.value.result == tee.TEE_ERROR_ITEM_NOT_FOUND
        assert missing.value.origin == tee.TEE_ORIGIN_TEE
        async with client.open_session(Echo.uuid) as session:
            for command in (echo.PANIC, echo.NOTHING):
                with pytest.raises(TeeError) as dead:
                    await session.invoke(command, Value(7, 0, INPUT))
                assert dead.value.result == tee.TEE_ERROR_TARGET_DEAD
                assert dead.value.origin == tee.TEE_ORIGIN_TEE

    run(main)


def test_the_enumeration_lists_devices_of_both_kinds() -> None:
    settings = SecureWorldSettings(
        virtualization=False, devices=((b"a" * 16,), (b"b" * 16, b"c" * 16))
    )
    seen: list[bytes] = []

    async def main(guest: Guest) -> None:
        seen.extend(guest.driver.devices)

    run(main, settings=settings)
    assert seen == [b"a" * 16, b"b" * 16, b"c" * 16]
    assert DeviceEnumeration.uuid == DEVICE_ENUMERATION


# Secure storage on the supplicant's disk


class Stored:
    """A client of the storage TA."""

    def __init__(self, client: Client, session: Session) -> None:
        self.client = client
        self.session = session

    async def create(self, name: bytes, data: bytes) -> None:
        flags = Value(tee.TEE_DATA_FLAG_ACCESS_WRITE)
        await self.session.invoke(
            Command.CREATE,
            Memref(await self.client.buffer_of(name), direction=INPUT),
            flags,
            Value(tee.TEE_STORAGE_PRIVATE, direction=INPUT),
            Memref(await self.client.buffer_of(data), direction=INPUT),
        )
        await self.session.invoke(Command.CLOSE, Value(flags.b, direction=INPUT))

    async def read(self, name: bytes, size: int) -> bytes:
        flags = Value(tee.TEE_DATA_FLAG_ACCESS_READ)
        await self.session.invoke(
            Command.OPEN,
            Memref(await self.client.buffer_of(name), direction=INPUT),
            flags,
            Value(tee.TEE_STORAGE_PRIVATE, direction=INPUT),
        )
        buffer = self.client.buffer(size)
        out = Memref(buffer, direction=OUTPUT)
        await self.session.invoke(Command.READ, out, count := Value(flags.b))
        await self.session.invoke(Command.CLOSE, Value(flags.b, direction=INPUT))
        return await buffer.read(0, count.b)


SECRET = b"attack at dawn " * 400


async def secure_storage(guest: Guest) -> None:
    """Store something and read it again."""
    client = guest.client()
    async with client.open_session(StorageApplication.uuid) as session:
        stored = Stored(client, session)
        await stored.create(b"note", SECRET)
        assert await stored.read(b"note", 10_000) == SECRET


@pytest.mark.parametrize("attack", ["none", "tamper", "roll back"])
def test_secure_storage_and_its_attackers(attack: str) -> None:
    async def main(guest: Guest) -> None:
        client = guest.client()
        async with client.open_session(StorageApplication.uuid) as session:
            stored = Stored(client, session)
            empty = guest.store.snapshot()
            await stored.create(b"first", SECRET)
            image = guest.store.snapshot()
            assert guest.store.paths()
            assert all(b"attack" not in data for data in image.values())
            await stored.create(b"second", b"x")
            if attack == "tamper":
                for path in guest.store.paths():
                    guest.store.tamper(path, len(guest.store.read(path)) // 2)
            elif attack == "roll back":
                guest.store.restore(image if image != empty else {})
            if attack == "none":
                assert await stored.read(b"first", 10_000) == SECRET
                return
            with pytest.raises(TeeError) as caught:
                await stored.read(b"first", 10_000)
            assert caught.value.result in (
                tee.TEE_ERROR_CORRUPT_OBJECT,
                tee.TEE_ERROR_SECURITY,
                tee.TEE_ERROR_STORAGE_NOT_AVAILABLE,
            )

    run(main)
