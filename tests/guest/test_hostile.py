# SPDX-License-Identifier: BSD-2-Clause
"""The building blocks of hostile guests do what they say, and the platform survives them."""

from __future__ import annotations

from random import Random

import pytest

from mediator.guest.client import Memref, TeeError, Value
from mediator.guest.cpu import GuestAbort, GuestCpu, GuestUndefined, Registers, VcpuProgram
from mediator.guest.guest import Guest
from mediator.guest.hostile import (
    ABORT,
    LIES,
    LOADED,
    RETURNED,
    STORED,
    UNDEFINED,
    Action,
    Attacker,
    Load,
    Outcome,
    ResumeLast,
    Smc,
    Store,
    linked_list,
    looping_list,
    message,
    racing_writer,
    script,
    sometimes,
)
from mediator.guest.profile import LINUX_6_12
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.scheduler import Mode
from mediator.optee.settings import MediatorSettings
from mediator.scenario.platform import Platform
from secure_world.apps import echo
from secure_world.apps.echo import Echo
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.page_list import read_page_list
from smccc.wire import PARAMS
from tests.guest.machine import FakeCpu, FakeMachine
from tests.guest.test_platform import CLASSIC, MODERN, STYLES, platform, settings
from tests.guest.test_secure_world import adder, echo_program

RAM = ((0x4000_0000, 256),)
CALL = smc.OPTEE_SMC_CALL_WITH_ARG


def test_a_script_records_every_outcome() -> None:
    def odd_tee(cpu: FakeCpu, regs: Registers) -> tuple[int, int, int, int]:
        if regs[0] == 0xDEAD:
            raise GuestUndefined
        return smc.OPTEE_SMC_RETURN_RPC_CMD, regs[1], regs[2], 5

    outcomes: list[Outcome] = []
    actions: list[Action] = [
        Smc((1, 2, 3, 4, 5, 6, 7, 8)),
        ResumeLast(a1=9),
        Smc((0xDEAD, 0, 0, 0, 0, 0, 0, 0), immediate=1, hvc=True),
        Store(0x4000_0000, b"x"),
        Load(0x4000_0000, 2),
        Store(0x1000, b"x"),
        Load(0x1000, 1),
    ]
    seen: list[Registers] = []

    def tee_function(cpu: FakeCpu, regs: Registers) -> tuple[int, int, int, int]:
        seen.append(regs)
        return odd_tee(cpu, regs)

    assert FakeMachine(RAM, tee_function).run([script(actions, outcomes)])
    assert [o.kind for o in outcomes] == [
        RETURNED,
        RETURNED,
        UNDEFINED,
        STORED,
        LOADED,
        ABORT,
        ABORT,
    ]
    assert outcomes[0].is_rpc
    assert outcomes[0].thread == 5
    assert seen[1] == (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 9, 0, 5, 0, 0, 0, 0)
    assert outcomes[4].data == b"x\0"
    assert not outcomes[5].is_rpc


def test_lists_that_loop_and_lead_astray() -> None:
    pages = [0x5000_0000 + 4096 * n for n in range(511)]
    base = 0x4100_0000
    image = looping_list(pages, base)
    # Twice as many entries as there are: the reader goes round once and stops by count.
    listed = read_page_list(
        lambda ipa: image[ipa - base : ipa - base + 4096], base, 1022 * 4096, 2000
    )
    assert list(listed.pages) == pages * 2
    assert linked_list(pages * 2, base, 0x77)[4088:4096] == (0x77).to_bytes(8, "little")
    assert linked_list(pages * 2, base, 0x77)[-8:] == (0x77).to_bytes(8, "little")


def test_messages_can_lie_about_their_parameters() -> None:
    image = message(1, [(1, 2, 3, 4)], num_params=200, session=7, ret=9, origin=8)
    assert len(image) == 64
    assert image[28:32] == (200).to_bytes(4, "little")


def attack(
    board: Platform, *programs: VcpuProgram, name: str = "attacker", pages: int = 256
) -> int:
    spec = GuestSpec(name, programs, [RamExtent(RAM[0][0], pages)])
    return board.create(spec)


@pytest.mark.parametrize("seed", range(3))
def test_raw_calls_get_an_answer_and_leave_nothing(seed: int) -> None:
    rng = Random(seed)
    functions = [
        value
        for name, value in vars(smc).items()
        if isinstance(value, int) and value >> 24 in (0x32, 0xB2, 0xBF)
    ]
    interesting = [0, 1, 0xFFF, 0x1000, 0x4000_0000, 0x4000_1000, 1 << 32, (1 << 64) - 1]
    actions: list[Smc | Store] = []
    for _ in range(300):
        words = [rng.choice(interesting) + rng.choice((0, 0, 8)) & (1 << 64) - 1 for _ in range(7)]
        actions.append(Smc((rng.choice(functions), *words)))  # type: ignore[arg-type]
    outcomes: list[Outcome] = []
    board = platform(MODERN, seed=seed)
    other = settings("other", LINUX_6_12)
    board.add_guest(other, adder)
    attack(board, script(actions, outcomes))
    board.run()
    board.check()
    assert len(outcomes) == 300
    assert {o.kind for o in outcomes} == {RETURNED}


def test_an_attacker_with_a_protocol() -> None:
    results: dict[str, int] = {}

    async def program(cpu: GuestCpu) -> None:
        attacker = Attacker(cpu, RAM[0][0], 256)
        # Registered twice under one cookie, unregistered twice.
        pages = [attacker.take() for _ in range(3)]
        results["first"], _ = await attacker.register(0xC0, pages)
        results["second"], _ = await attacker.register(0xC0, pages)
        results["unregister"], _ = await attacker.unregister(0xC0)
        results["again"], _ = await attacker.unregister(0xC0)
        results["foreign list"], _ = await attacker.register(0xC1, [0xDEAD_0000])
        list_image = looping_list([pages[0]] * 511, 0x4000_0000)
        results["loop"], _ = await attacker.register(
            0xC2, [pages[0]] * 511, image=list_image, size=1 << 60
        )
        # Rubbish above bit 31 does not count.
        body = message(msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=99)
        where, outcome = await attacker.call(body, high_rubbish=0x1234_5678)
        results["close"] = await attacker.result(where)
        results["close status"] = outcome.status
        # A message across two pages of a registered buffer.
        crossing, outcome = await attacker.crossing_message(0xC3, body, 16)
        results["crossing status"] = outcome.status
        results["crossing"] = int.from_bytes(await attacker.load(crossing[1] + 4, 4), "little")
        results["resume"] = (await attacker.resume(3)).status
        results["regd"] = (await attacker.call_registered(0xBAD, 0)).status
        results["immediate"] = (await attacker.smc(CALL, immediate=1)).kind == UNDEFINED
        assert await attacker.load(0, 4) == b""
        with pytest.raises(MemoryError):
            attacker.take(1000)

    board = platform(MODERN)
    attack(board, program)
    board.run()
    board.check()
    bad = tee.TEE_ERROR_BAD_PARAMETERS
    assert results == {
        "first": 0,
        "second": bad,
        "unregister": 0,
        "again": bad,
        "foreign list": bad,
        "loop": tee.TEE_ERROR_OUT_OF_MEMORY,
        "close": tee.TEE_ERROR_ITEM_NOT_FOUND,
        "close status": 0,
        "crossing status": 0,
        "crossing": tee.TEE_ERROR_ITEM_NOT_FOUND,
        "resume": smc.OPTEE_SMC_RETURN_ERESUME,
        "regd": smc.OPTEE_SMC_RETURN_EBADADDR,
        "immediate": True,
    }


@STYLES
def test_an_attacker_that_serves_no_rpc_ends_its_call(mediator: MediatorSettings) -> None:
    statuses: list[int] = []
    first, second = (int.from_bytes(Echo.uuid.bytes[n : n + 8], "little") for n in (0, 8))
    opening = message(msg.OPTEE_MSG_CMD_OPEN_SESSION, [(0x101, first, second, 0), (0x101, 0, 0, 0)])

    async def program(cpu: GuestCpu) -> None:
        attacker = Attacker(cpu, RAM[0][0], 256)
        modern = mediator is MODERN
        function = smc.OPTEE_SMC_CALL_WITH_RPC_ARG if modern else CALL
        where, outcome = await attacker.call(opening, function=function)
        end = await attacker.to_the_end(outcome, where + len(opening) if modern else 0)
        statuses.append(end.status)
        statuses.append(await attacker.result(where))

    board = platform(mediator)
    attack(board, program)
    board.run()
    board.check()
    assert statuses[0] == 0
    assert statuses[1] != 0


@pytest.mark.parametrize("name", LIES)
@STYLES
def test_a_driver_that_lies_harms_only_itself(name: str, mediator: MediatorSettings) -> None:
    async def lying(guest: Guest) -> None:
        guest.driver.alter_answer = LIES[name]
        client = guest.client()
        try:
            async with client.open_session(Echo.uuid) as session:
                await session.invoke(echo.ECHO, Memref(await client.buffer_of(b"x" * 5000)))
                await session.invoke(echo.REE_TIME, Value())
        except TeeError:
            pass
        guest.driver.alter_answer = None

    board = platform(mediator)
    liar = board.add_guest(settings("liar", LINUX_6_12, unload=False), lying)
    board.add_guest(settings("honest", LINUX_6_12), echo_program, adder)
    board.run()
    honest = next(g for g in board.guests.values() if g.name == "honest")
    assert not honest.stuck()
    honest.check()
    assert board.watch is not None
    board.watch.check()
    if board.machine.guest(liar):
        board.machine.destroy_guest(liar)
    board.run()
    board.watch.check()


def test_lies_change_what_they_say() -> None:
    answer = [rpc.OPTEE_RPC_CMD_SHM_ALLOC, 0, 0, 0, 0, 0, 2, 1, 0x20A, 0x5000, 4096, 0xC]
    for name, lie in LIES.items():
        fields = list(answer)
        lie(fields)
        if name not in ("success", "something else answered as an alloc"):
            assert fields != answer, name
        other = [rpc.OPTEE_RPC_CMD_GET_TIME, 0, 0, 0, 0, 1, 0, 1, 2, 5, 6, 0]
        lie(other)
        assert len(other) in (len(answer), len(answer) + 4)
    countdown = iter([False, True])
    lie = sometimes(LIES["no size"], lambda: next(countdown))
    fields = list(answer)
    lie(fields)
    assert fields == answer
    lie(fields)
    assert fields[PARAMS + 2] == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_racing_writer_never_breaks_an_invariant(seed: int) -> None:
    """One vCPU registers and calls, another scribbles over its message and list all the time."""
    done: list[int] = []

    async def caller(cpu: GuestCpu) -> None:
        attacker = Attacker(cpu, RAM[0][0] + 16 * 4096, 200)
        for cookie in range(1, 12):
            pages = [attacker.take(), attacker.take()]
            content = message(
                msg.OPTEE_MSG_CMD_REGISTER_SHM, [(0x20A, RAM[0][0] + 4096, 8192, cookie)]
            )
            await attacker.store(RAM[0][0] + 4096, b"".join(p.to_bytes(8, "little") for p in pages))
            await attacker.call(content, ipa=RAM[0][0])
            done.append(cookie)

    evil = [
        (RAM[0][0] + 28, b"\xff\xff\xff\xff"),
        (RAM[0][0] + 28, b"\x01\0\0\0"),
        (RAM[0][0] + 48, (1 << 40).to_bytes(8, "little")),
        (RAM[0][0] + 4096, (0xFFFF_F000).to_bytes(8, "little")),
        (RAM[0][0] + 4096, (RAM[0][0] + 5 * 4096).to_bytes(8, "little")),
    ]
    board = platform(MODERN, Mode.INTERLEAVE, seed)
    attack(board, caller, racing_writer(evil, 60))
    board.run()
    board.check()
    assert len(done) == 11


def test_a_guest_abort_says_where() -> None:
    assert GuestAbort(0x10, True).ipa == 0x10
    assert CLASSIC.capabilities != MODERN.capabilities
