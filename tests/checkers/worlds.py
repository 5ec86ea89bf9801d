# SPDX-License-Identifier: BSD-2-Clause
"""Small platforms under the watch of all checkers: honest work, and guests that attack."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from uuid import UUID

from mediator.checkers.verdict import Violation
from mediator.guest.cpu import GuestCpu
from mediator.guest.hostile import Attacker, message
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.scheduler import Mode
from mediator.hypervisor.stage2 import OWN_RO
from mediator.optee.settings import Limits, MediatorSettings
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps.basic import Locker
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from tests.platform.workload import CLASSIC, platform
from tests.platform.workload import lock as take_lock

RAM = 0x4000_0000
PAGES = 1024
STEPS = 100_000
"""Far above what these runs take; a planted bug may make one endless."""

UNDISTURBED = 1_000_000_000
"""A time slice of a second: no foreign interrupt ends what does not end by itself."""

RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
META_VALUE = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT

World = Callable[[int], Platform]
"""Runs a platform with a seed; a world of one guest and one processor does not depend on it."""


def watched(world: World, seed: int) -> tuple[Violation, ...]:
    """What the checkers say about a run, whatever else goes wrong in it."""
    made = world(seed)
    assert made.watch is not None
    return made.watch.finish()


def _run(made: Platform) -> None:
    made.run(max_steps=STEPS)


def honest(seed: int) -> Platform:
    """Two guests with drivers that do a bit of everything, in the style of today."""
    made = platform(seed, Mode.INTERLEAVE)
    _run(made)
    return made


def contended(seed: int) -> Platform:
    """Programs that want one lock: each unlock races with the wait that it ends.

    Who holds it is sent out at each checkpoint, so that there is much to race with.
    """
    often = SecureWorldSettings(checkpoints_per_entry=1)
    made = platform(seed, Mode.INTERLEAVE, guests=1, mains=(take_lock,) * 3, secure_world=often)
    _run(made)
    return made


def classic(seed: int) -> Platform:
    """The same in the classic style."""
    made = platform(seed, Mode.INTERLEAVE, CLASSIC)
    _run(made)
    return made


def sleepers(_seed: int) -> Platform:
    """Two vCPUs that wait for interrupts: one comes before the wait, one after it."""
    made = Platform(PlatformSettings(machine=MachineSettings(mode=Mode.DIRECT)))

    async def first(cpu: GuestCpu) -> None:
        cpu.send_sgi(0, 3)
        await cpu.wfi()
        assert cpu.acknowledge() == 3
        cpu.end_of_interrupt(3)
        cpu.set_timer(cpu.now() + 10_000_000)
        await cpu.wfi()
        cpu.set_timer(None)
        cpu.send_sgi(1, 5)
        await cpu.wfi()

    async def second(cpu: GuestCpu) -> None:
        await cpu.wfi()
        assert cpu.acknowledge() == 5
        cpu.end_of_interrupt(5)
        cpu.send_sgi(0, 6)

    made.create(GuestSpec("sleepers", (first, second), (RamExtent(RAM, 16),)))
    _run(made)
    return made


def destroyed_with_a_full_cache(seed: int) -> Platform:
    """A classic guest ends while the TEE keeps RPC buffers of it."""
    made = platform(seed, Mode.DIRECT, CLASSIC)
    first, _ = made.guests

    def cached() -> bool:
        info = made.tee.guest_info(first)
        return info is not None and info.rpc_buffers > 0

    made.run(cached, max_steps=STEPS)
    made.machine.destroy_guest(first)
    _run(made)
    return made


def hostile(
    program: Callable[[Platform, Attacker, int], Awaitable[object]],
    settings: MediatorSettings | None = None,
) -> Platform:
    """One guest without a driver that runs ``program(platform, attacker, guest)``."""
    made = Platform(
        PlatformSettings(
            machine=MachineSettings(mode=Mode.DIRECT, time_slice=UNDISTURBED),
            mediator=settings or MediatorSettings(),
        )
    )

    async def main(cpu: GuestCpu) -> None:
        await program(made, Attacker(cpu, RAM, PAGES), cpu.guest_id)

    made.create(GuestSpec("hostile", (main,), (RamExtent(RAM, PAGES),)))
    _run(made)
    return made


def too_many_buffers(_seed: int) -> Platform:
    """Six registrations where three are allowed."""

    async def program(_: Platform, attacker: Attacker, guest: int) -> None:
        for cookie in range(1, 7):
            await attacker.register(cookie, [attacker.take()])

    return hostile(program, MediatorSettings(limits=Limits(buffers=3)))


def too_many_calls(_seed: int) -> Platform:
    """Calls that are left suspended where two are allowed: each holds a lock of its own, asleep."""

    async def program(_: Platform, attacker: Attacker, guest: int) -> None:
        for lock in range(4):
            session = await open_session(attacker, Locker.uuid)
            await hold(attacker, session, lock)

    return hostile(program, MediatorSettings(limits=Limits(calls=2)))


def lists_with_a_bad_page(_seed: int) -> Platform:
    """Registrations that cannot be pinned, after one that can."""

    async def program(_: Platform, attacker: Attacker, guest: int) -> None:
        await attacker.register(1, [attacker.take()])
        for cookie in range(2, 5):
            await attacker.register(cookie, [attacker.take(), 0x7000_0000])

    return hostile(program)


def only_bad_lists(_seed: int) -> Platform:
    """Nothing of this guest is ever pinned."""

    async def program(_: Platform, attacker: Attacker, guest: int) -> None:
        await attacker.register(1, [0x7000_0000])

    return hostile(program)


def another_client_id(_seed: int) -> Platform:
    """Calls with the id of somebody else in a7."""

    async def program(_: Platform, attacker: Attacker, guest: int) -> None:
        page = attacker.take()
        await attacker.store(page, message(msg.OPTEE_MSG_CMD_CLOSE_SESSION))
        await attacker.smc(RPC_ARG, page >> 32, page & 0xFFFF_FFFF, 0, 0, 0, 0, 77)

    return hostile(program)


def created_by_a_guest(_seed: int) -> Platform:
    """A guest that tells the TEE of another guest."""

    async def program(_: Platform, attacker: Attacker, guest: int) -> None:
        await attacker.smc(smc.OPTEE_SMC_VM_CREATED, 9)

    return hostile(program)


def request_that_cannot_be_written(_seed: int) -> Platform:
    """A call waits for a lock; its page, with the RPC argument, is read-only by then."""

    async def program(made: Platform, attacker: Attacker, guest: int) -> None:
        sessions = [await open_session(attacker, Locker.uuid) for _ in range(2)]
        await hold(attacker, sessions[0], 0)
        page = attacker.take()
        await attacker.store(page, hold_message(sessions[1], 0, Locker.HOLD))
        made.host.set_kind(guest, page, 1, OWN_RO)
        await attacker.smc(RPC_ARG, page >> 32, page & 0xFFFF_FFFF)

    return hostile(program)


async def open_session(attacker: Attacker, uuid: UUID) -> int:
    """OPEN_SESSION of a pseudo TA; its number."""
    a, b = struct.unpack("<2Q", uuid.bytes)
    content = message(
        msg.OPTEE_MSG_CMD_OPEN_SESSION, [(META_VALUE, a, b, 0), (META_VALUE, 0, 0, 0)]
    )
    where, outcome = await attacker.call(content, function=RPC_ARG)
    assert outcome.status == smc.OPTEE_SMC_RETURN_OK
    session: int = struct.unpack("<I", await attacker.load(where + 8, 4))[0]
    return session


def hold_message(session: int, lock: int, command: int) -> bytes:
    """INVOKE_COMMAND of the locker."""
    value = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 1, lock, 0)
    return message(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, [value], function=command, session=session)


async def hold(attacker: Attacker, session: int, lock: int) -> None:
    """Take a lock and stay suspended with it."""
    await attacker.call(hold_message(session, lock, Locker.HOLD_ASLEEP), function=RPC_ARG)
