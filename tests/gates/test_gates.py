# SPDX-License-Identifier: BSD-2-Clause
"""Deterministic gates that stand for speed: counts with a fixed ceiling, the same on any machine.

An invoke here has four parameters (value, registered memory, none, none) and makes no RPC, in the
classic call style and in the one that Linux uses today. Ratios of times are benchmarks, not tests.
"""

from __future__ import annotations

import gc
import struct
import sys
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import ClassVar

import pytest

from mediator.guest.cpu import GuestCpu
from mediator.host import Host
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps.basic import Arithmetic
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.message import Message, Param, parse_message, uuid_to_value

RAM = 0x4000_0000
LIST = RAM + 0x1000
SLOTS = RAM + 0x2000
COOKIE = 0xFFFF_0000_1234_0000
SLOT = 0x180
STYLES = ("CALL_WITH_ARG", "CALL_WITH_REGD_ARG")

MAX_SYSCALLS = 3
"""Per plain invoke: read the message, enter the secure world, write the results back."""
MAX_READ = 4096
"""Octets: what the one page of the message holds from its start on, once."""
MAX_WRITTEN = 4 + 4 + 4 * 24
"""Octets: ret, ret_origin and what parameters can carry back."""
MAX_CALLS = 90
"""Python functions entered for one invoke, from the guest's trap to its return."""
MAX_IDLE_GUEST = 16 * 1024
"""Octets that an idle guest of 1 GiB in 8 extents takes beyond its RAM."""


class Recorder:
    """A host that notes each call of the mediator and the octets of guest memory that it moves."""

    calls: ClassVar[Counter[str]] = Counter()
    octets: ClassVar[Counter[str]] = Counter()

    def __init__(self, host: Host, monitor: object) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Callable[..., object]:
        method: Callable[..., object] = getattr(self._host, name)

        def call(*args: object) -> object:
            result = method(*args)
            Recorder.calls[name] += 1
            if name in ("read_guest", "read_pinned"):
                assert isinstance(result, bytes)
                Recorder.octets["read"] += len(result)
            elif name in ("write_guest", "write_pinned"):
                segments = args[-1]
                assert isinstance(segments, list | tuple)
                Recorder.octets["written"] += sum(len(data) for _, data in segments)
            return result

        return call


Frame = tuple[int, int, int, int, int, int, int, int]
BY_ADDRESS: Frame = (smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0, 0, 0, 0, 0)
BY_COOKIE: Frame = (
    smc.OPTEE_SMC_CALL_WITH_REGD_ARG,
    COOKIE >> 32,
    COOKIE & 0xFFFFFFFF,
    SLOT,
    0,
    0,
    0,
    0,
)


async def send(
    cpu: GuestCpu, message: Message, at: int = RAM, frame: Frame = BY_ADDRESS
) -> Message:
    await cpu.write(at, message.build())
    regs = await cpu.smc(*frame)
    assert regs[0] == smc.OPTEE_SMC_RETURN_OK
    answer = parse_message(await cpu.read(at, message.size))
    assert answer.ret == 0
    return answer


async def prepare(cpu: GuestCpu) -> int:
    """Register the page of message slots and open a session; its id."""
    await cpu.write(LIST, struct.pack("<Q", SLOTS))
    attr = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
    page = Param(attr, LIST, 4096, COOKIE)
    await send(cpu, Message(msg.OPTEE_MSG_CMD_REGISTER_SHM, params=(page,)))
    meta = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
    params = (Param(meta, *uuid_to_value(Arithmetic.uuid)), Param(meta))
    return (await send(cpu, Message(msg.OPTEE_MSG_CMD_OPEN_SESSION, params=params))).session


async def invoke(cpu: GuestCpu, session: int, style: str) -> None:
    values = (
        Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 20, 22),
        Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT),
        Param(),
        Param(),
    )
    message = Message(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, session=session, params=values)
    if style == "CALL_WITH_ARG":
        answer = await send(cpu, message)
    else:
        answer = await send(cpu, message, SLOTS + SLOT, BY_COOKIE)
    assert answer.params[1].a == 42


def run(program: Callable[[GuestCpu], Awaitable[object]]) -> None:
    settings = PlatformSettings(machine=MachineSettings(pcpus=1), checkers=False)
    platform = Platform(settings)
    finished: list[bool] = []

    async def whole(cpu: GuestCpu) -> None:
        await program(cpu)
        finished.append(True)

    platform.create(GuestSpec(name="busy", programs=(whole,), ram=(RamExtent(RAM, 64),)))
    platform.run()
    assert finished


@pytest.mark.parametrize("style", STYLES)
def test_system_calls_and_octets_of_an_invoke(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.scenario.platform.ChargedHost", Recorder)
    seen: list[tuple[Counter[str], Counter[str]]] = []

    async def program(cpu: GuestCpu) -> None:
        session = await prepare(cpu)
        await invoke(cpu, session, style)
        for _ in range(3):
            Recorder.calls.clear()
            Recorder.octets.clear()
            await invoke(cpu, session, style)
            seen.append((Recorder.calls.copy(), Recorder.octets.copy()))

    run(program)
    assert seen[0] == seen[1] == seen[2]
    calls, octets = seen[0]
    assert calls["smc"] == 1
    assert calls.total() <= MAX_SYSCALLS
    assert 0 < octets["read"] <= MAX_READ
    assert 0 < octets["written"] <= MAX_WRITTEN


@pytest.mark.parametrize("style", STYLES)
def test_python_calls_of_an_invoke(style: str) -> None:
    """Counts entries of Python functions and coroutine resumptions, which is what time goes into."""
    counts: list[int] = []
    entered = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    async def program(cpu: GuestCpu) -> None:
        nonlocal entered
        session = await prepare(cpu)
        await invoke(cpu, session, style)
        body = Message(
            msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
            session=session,
            params=(
                Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 20, 22),
                Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT),
                Param(),
                Param(),
            ),
        ).build()
        frame, at = (BY_ADDRESS, RAM) if style == STYLES[0] else (BY_COOKIE, SLOTS + SLOT)
        for _ in range(3):
            await cpu.write(at, body)
            entered = 0
            # A collection in the midst of it would count: other tests' tools listen to them.
            gc.disable()
            sys.setprofile(count)
            try:
                await cpu.smc(*frame)
            finally:
                sys.setprofile(None)
                gc.enable()
            counts.append(entered)

    run(program)
    assert len(set(counts)) == 1
    assert 0 < counts[0] <= MAX_CALLS


def test_memory_of_an_idle_guest() -> None:
    settings = PlatformSettings(machine=MachineSettings(pcpus=1), checkers=False)
    platform = Platform(settings)

    async def idle(cpu: GuestCpu) -> None:
        while True:
            await cpu.wfi()

    # Eight extents with holes between them, together 1 GiB.
    pages = (1 << 30) // 4096 // 8
    ram = tuple(RamExtent(RAM + n * (pages + 16) * 4096, pages) for n in range(8))

    def add(count: int) -> None:
        for n in range(count):
            platform.create(GuestSpec(name=f"idle {n}", programs=(idle,) * 4, ram=ram))
        platform.run()

    add(2)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        add(10)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0 < used // 10 <= MAX_IDLE_GUEST
