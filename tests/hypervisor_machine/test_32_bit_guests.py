# SPDX-License-Identifier: BSD-2-Clause
"""A 32-bit guest and OP-TEE: only low words go in, only low words come out, nothing else differs."""

from __future__ import annotations

import struct
from random import Random
from typing import Final

import pytest

from mediator.deployment.face import NOT_MINE, Completed
from mediator.guest.cpu import GuestCpu
from mediator.guest.guest import Guest, GuestSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.machine import Created
from mediator.hypervisor.machine_events import TrapExit
from mediator.hypervisor.scheduler import RunEnd
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps.basic import Arithmetic, Clock
from smccc.constants import optee_smc as smc
from tests.mediator import rig as scripted
from tests.mediator.rig import msg
from tests.platform import workload

M32: Final = 0xFFFF_FFFF
RAM: Final = 0x1_4000_0000
"""Above 4 GiB, where a 32-bit guest has memory, too (LPAE): addresses are pairs of words."""
PAGES: Final = 64
LIST, DATA = RAM + 0x2000, RAM + 0x4000
COOKIE: Final = 0xDEAD_0000_BEEF_0000
SLOT: Final = 0x180
INTR: Final = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR

FAST: Final = (
    smc.OPTEE_SMC_CALLS_COUNT,
    smc.OPTEE_SMC_CALLS_UID,
    smc.OPTEE_SMC_CALLS_REVISION,
    smc.OPTEE_SMC_CALL_GET_OS_UUID,
    smc.OPTEE_SMC_CALL_GET_OS_REVISION,
    smc.OPTEE_SMC_GET_SHM_CONFIG,
    smc.OPTEE_SMC_GET_THREAD_COUNT,
    smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
    smc.OPTEE_SMC_DISABLE_SHM_CACHE,
    smc.OPTEE_SMC_ENABLE_SHM_CACHE,
    smc.OPTEE_SMC_L2CC_MUTEX,
    smc.OPTEE_SMC_VM_CREATED,
    smc.OPTEE_SMC_GET_PROTMEM_CONFIG,
    0xB2001234,
    0x8600FF01,
    0x84000000,
)


class Driver:
    """Raw OP-TEE calls of one vCPU; ``rubbish``: what is put into the upper half of each register."""

    def __init__(self, rubbish: Random | None) -> None:
        self.rubbish = rubbish
        self.answers: list[tuple[int, ...]] = []
        self.memory: list[bytes] = []

    async def smc(self, cpu: GuestCpu, *regs: int) -> tuple[int, ...]:
        frame = (*regs, *range(0x70 + len(regs), 0x78))
        if self.rubbish is not None:
            frame = tuple(word | self.rubbish.getrandbits(32) << 32 for word in frame)
        out = await cpu.smc(*frame)
        self.answers.append(out)
        return out

    async def call(self, cpu: GuestCpu, *regs: int) -> None:
        out = await self.smc(cpu, *regs)
        while out[0] & M32 == INTR:
            out = await self.smc(cpu, smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, out[3])

    async def by_address(self, cpu: GuestCpu, body: bytes) -> tuple[int, ...]:
        await cpu.write(RAM, body)
        await self.call(cpu, smc.OPTEE_SMC_CALL_WITH_RPC_ARG, RAM >> 32, RAM & M32)
        return await self.result(cpu, RAM, len(body))

    async def result(self, cpu: GuestCpu, ipa: int, size: int) -> tuple[int, ...]:
        data = await cpu.read(ipa, size)
        self.memory.append(data)
        return struct.unpack_from("<8I", data)

    async def program(self, cpu: GuestCpu) -> None:
        for function in FAST:
            await self.smc(cpu, function, 0)
        listed = [(DATA + 0x1000 * index) for index in range(2)]
        await cpu.write(LIST, struct.pack("<2Q", *listed))
        done = await self.by_address(cpu, msg(4, params=[(0x20A, LIST, 0x2000, COOKIE)]))
        assert done[5] == 0
        high, low = struct.unpack("<2Q", Arithmetic.uuid.bytes)
        opened = await self.by_address(
            cpu, msg(0, session=0, params=[(0x101, high, low, 0), (0x101, 0, 0, 0)])
        )
        assert opened[5] == 0
        body = msg(1, func=2, session=opened[2], params=[(1, 1 << 20, 1 << 20, 0), (2, 0, 0, 0)])
        await cpu.write(DATA + SLOT, body)
        carrier = (COOKIE >> 32, COOKIE & M32, SLOT)
        await self.call(cpu, smc.OPTEE_SMC_CALL_WITH_REGD_ARG, *carrier)
        assert (await self.result(cpu, DATA + SLOT, len(body)))[5] == 0
        assert struct.unpack_from("<2Q", self.memory[-1], 72) == (0, 1 << 8)
        await self.by_address(cpu, msg(2, session=opened[2]))
        await self.by_address(cpu, msg(5, params=[(5, 0, 0, COOKIE)]))
        # Errors, too: no such thread, no such cookie, an address that only the upper half spoils.
        await self.smc(cpu, smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, 9)
        await self.smc(cpu, smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 1, 2, 0)
        await self.smc(cpu, smc.OPTEE_SMC_CALL_WITH_ARG, 0, 8)


def played(bits: int, rubbish: Random | None) -> Driver:
    platform = Platform(PlatformSettings())
    driver = Driver(rubbish)
    platform.create(GuestSpec("raw", (driver.program,), ram=(RamExtent(RAM, PAGES),), bits=bits))
    result = platform.run(max_steps=100_000)
    assert result.end is RunEnd.IDLE
    platform.check()
    assert len(driver.memory) == 5, "the program ran to its end"
    return driver


def test_what_a_32_bit_guest_sees_is_the_low_words_of_what_a_64_bit_guest_sees() -> None:
    clean = played(64, None)
    small = played(32, None)
    assert small.answers == [tuple(word & M32 for word in regs) for regs in clean.answers]
    assert small.memory == clean.memory
    unknown = small.answers[FAST.index(0xB2001234)]
    assert unknown == (M32, 0, *range(0x72, 0x78))


@pytest.mark.parametrize("seed", range(4))
def test_upper_halves_do_not_count(seed: int) -> None:
    """As an emulator leaves them, or a host that does not clear them on exception entry."""
    small = played(32, None)
    noisy = played(32, Random(seed))
    assert noisy.answers == small.answers
    assert noisy.memory == small.memory
    for regs in noisy.answers:
        assert all(word <= M32 for word in regs), "results come back zero-extended"


@pytest.mark.parametrize("seed", range(4))
def test_upper_halves_of_a_64_bit_guest_do_not_count_either(seed: int) -> None:
    """Its registers keep them where a call has no result."""
    clean = played(64, None)
    noisy = played(64, Random(seed))
    low = [tuple(word & M32 for word in regs) for regs in noisy.answers]
    assert low == [tuple(word & M32 for word in regs) for regs in clean.answers]
    assert noisy.memory == clean.memory
    assert any(word > M32 for regs in noisy.answers for word in regs[4:])


@pytest.mark.parametrize(
    "function",
    [smc.OPTEE_SMC_CALLS_UID | 1 << 30, smc.OPTEE_SMC_CALL_WITH_ARG | 1 << 30, 0xC4000003],
)
def test_the_64_bit_convention_is_not_for_a_32_bit_guest(function: int) -> None:
    events: list[tuple[object, ...]] = []
    platform = Platform(PlatformSettings(checkers=False), sinks=[events.append])
    answers: list[tuple[int, ...]] = []

    async def program(cpu: GuestCpu) -> None:
        answers.append(await cpu.smc(function, 1, 2, 3, 4, 5, 6, 7))

    platform.create(GuestSpec("raw", (program,), ram=(RamExtent(RAM, 1),), bits=32))
    mark = len(events)
    platform.run(max_steps=1000)
    assert answers == [(M32, 1, 2, 3, 4, 5, 6, 7)]
    names = [type(event).__name__ for event in events[mark:]]
    assert TrapExit.__name__ in names
    assert "Forwarded" not in names


def test_a_whole_32_bit_kernel_works() -> None:
    """Driver, supplicant and clients of a simulated guest, on 32-bit vCPUs beside 64-bit ones."""
    platform = Platform(PlatformSettings(seed=3))
    platform.add_guest(GuestSettings("wide", workload.RAM, vcpus=2), *workload.MAINS)
    images = platform.secure_world.registry.images()
    settings = GuestSettings("narrow", workload.RAM, vcpus=2, images=images)
    guest = Guest(settings, platform.sink, None)
    guest.start(*workload.MAINS)
    ram = tuple([RamExtent(ipa, pages) for ipa, pages in settings.ram])
    created = platform.machine.create_guest(GuestSpec("narrow", guest.programs, ram=ram, bits=32))
    assert isinstance(created, Created)
    platform.guests[created.guest] = guest
    result = platform.run(max_steps=2_000_000)
    platform.check()
    assert not result.deadlocked
    assert guest.counters()["calls"] > 20
    assert platform.host.pinned(created.guest) == 0


def test_time_passes_in_a_32_bit_guest_as_in_any_other() -> None:
    """Calls that are interrupted, resumed and answered from RPCs."""

    async def clock(guest: Guest) -> None:
        await workload.clock(guest)

    assert Clock.pseudo
    platform = Platform(PlatformSettings(seed=1))
    guest = Guest(GuestSettings("narrow", workload.RAM), platform.sink, None)
    guest.start(clock)
    ram = tuple([RamExtent(ipa, pages) for ipa, pages in workload.RAM])
    platform.machine.create_guest(GuestSpec("narrow", guest.programs, ram=ram, bits=32))
    platform.run(max_steps=2_000_000)
    guest.check()
    assert guest.counters()["calls"] >= 4


def test_a_host_without_a_machine_says_that_its_guest_is_32_bit() -> None:
    """The face for hypervisor models cuts the registers itself."""
    rig = scripted.Rig()
    high = 0xABCD << 32
    rig.host.script = [scripted.answer(0, 5, 6, 7)]
    regs = [high | word for word in (smc.OPTEE_SMC_CALLS_REVISION, 1, 2, 3, 4, 5, 6, 7)]
    assert rig.tee.handle(0, 0, regs, aarch32=True) == Completed((0, 5, 2, 3, 4, 5, 6, 7))
    rig.host.script = [scripted.answer((1 << 64) - 1, high | 5, high, high)]
    assert rig.tee.handle(0, 0, regs, aarch32=True) == Completed((M32, 5, 2, 3, 4, 5, 6, 7))
    regs[0] = high | smc.OPTEE_SMC_CALLS_REVISION | 1 << 30
    assert rig.tee.handle(0, 0, regs, aarch32=True) is NOT_MINE
