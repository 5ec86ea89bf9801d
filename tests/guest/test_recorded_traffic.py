# SPDX-License-Identifier: BSD-2-Clause
"""Our driver behind a recorded OP-TEE makes the calls that the real Linux driver made.

Given a recording of Linux 6.1 or 6.12, when our guest runs the same programs against the recorded
secure world, then every call has the same function, registers, message, page list shape, RPC answer
and buffer content, in the same order. The program below follows the markers of the recordings.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from mediator.guest.client import INPUT, OUTPUT, Client, Memref, Param, Session, TeeError, Value
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestFailed, GuestSettings
from mediator.guest.memory import Buffer
from mediator.guest.profile import LINUX_6_1, LINUX_6_12, Profile
from smccc.constants import tee
from tests.guest.machine import FakeMachine
from tests.guest.recorded import RecordedTee, between, calls, load_trace, unpack

RAM = ((0x4000_0000, 4096), (0x8000_0000, 4096))
SESSION_TRACE = "linux-optee-session.jsonl"
TRACE_6_1 = "linux61-params.jsonl.gz"
TRACE_6_12 = "linux612-virtualization-guest1.jsonl.gz"
CONCURRENT = "concurrent single-instance multi-session TA: 6 processes x 12 invokes of loop 300000"
"""Its order of calls is that of the real scheduler, so the comparison ends before it."""

Main = Callable[[Guest], Awaitable[None]]
Mains = Callable[[list[UUID]], list[Main]]

PTA = "d96a5b40-c3e5-21e3-8794-1002a5d5c61b"


def uuid_of(record: dict[str, object]) -> UUID:
    fields = unpack(str(record["msg"]))
    return UUID(bytes=b"".join(word.to_bytes(8, "little") for word in fields[9:11]))


def ta_image(records: list[dict[str, object]]) -> bytes:
    """As long as the recorded image, with its recorded beginning."""
    for record in records:
        if record.get("name") == "RETURN_FROM_RPC RPC_CMD LOAD_TA" and record.get("bufs"):
            size = unpack(str(record["rpc_arg"]))[14]
            buffers = record["bufs"]
            assert isinstance(buffers, list)
            return bytes.fromhex(buffers[0]["hex"]).ljust(size, b"\0")
    return b""


async def pause(guest: Guest) -> None:
    """What a person's time between two commands is for: everything pending gets done."""
    await guest.kernel.sleep(1_000_000)


async def refused(
    guest: Guest, session: Session, command: int, *params: Param, result: int
) -> None:
    with pytest.raises(TeeError) as caught:
        await session.invoke(command, *params)
    assert caught.value.result == result


async def pseudo_ta(guest: Guest, uuid: UUID) -> None:
    client = guest.client()
    session = await client.open_session(uuid)
    await session.invoke(0)
    number = Value(0x1000, 0x2000)
    await session.invoke(1, number)
    assert (number.a, number.b) == (0x3000, 0x2000)
    total = Value(direction=OUTPUT)
    inputs = [Value(n * 0x1000, n * 0x2000, INPUT) for n in (2, 3, 4)]
    await session.invoke(1, total, *inputs)
    assert (total.a, total.b) == (0x9000, 0x12000)
    offset = {LINUX_6_1: 0xDE0, LINUX_6_12: 0x80}[guest.settings.driver.profile]
    if guest.name == TRACE_6_12:
        offset = 0xD20
    buffer = await client.buffer_of(bytes(range(64)), offset=offset)
    await session.invoke(1, Memref(buffer))
    assert (await buffer.read())[:2] == b"\xe0\x01"
    await session.invoke(10, Memref(None))
    await refused(guest, session, 9999, result=tee.TEE_ERROR_BAD_PARAMETERS)
    await session.close()


async def values(session: Session) -> None:
    await session.invoke(0)
    await session.invoke(1, Value(0x1000, 0x2000, INPUT))
    await session.invoke(1, Value(direction=OUTPUT))
    await session.invoke(1, Value(0x1000, 0x2000))
    mixed = (Value(0x1000, 0x2000, INPUT), Value(direction=OUTPUT), Value(0x3000, 0x6000))
    await session.invoke(1, *mixed)
    assert [(v.a, v.b) for v in mixed] == [(0x1000, 0x2000), (0xA1, 0xB1), (0x3001, 0x6002)]
    await session.invoke(1, *[Value(n * 0x1000, n * 0x2000) for n in (1, 2, 3, 4)])


async def temporary_buffers(guest: Guest, client: Client, session: Session) -> None:
    page = client.buffer(3 * 4096, offset=0)

    def part(offset: int, size: int) -> Buffer:
        return client_view(client, page, offset, size)

    await page.write(b"\x11" * 3 * 4096)
    await session.invoke(1, Memref(part(0x64, 64), direction=INPUT))
    await session.invoke(1, Memref(part(0, 64), direction=OUTPUT))
    await session.invoke(1, Memref(part(0xFF6, 20)))
    buffers = [await client.buffer_of(b"\x11" * 5000, offset=8) for _ in range(3)]
    buffers[0] = part(8, 5000)
    await session.invoke(
        1,
        Memref(buffers[0]),
        Memref(buffers[1], direction=INPUT),
        Memref(buffers[2], direction=OUTPUT),
        Value(0x4000, 0x8000),
    )
    await session.invoke(1, Memref(None))
    await session.invoke(1, Memref(part(0, 8), size=0, direction=INPUT))
    short = Memref(part(0, 10), direction=OUTPUT)
    await refused(guest, session, 6, short, result=tee.TEE_ERROR_SHORT_BUFFER)
    assert short.size == 100
    longer = Memref(part(0, 200), direction=OUTPUT)
    await session.invoke(6, longer)
    assert longer.size == 100


def client_view(client: Client, buffer: Buffer, offset: int, size: int) -> Buffer:
    return Buffer(client.driver.kernel, buffer.pages, offset, size)


async def registered_memory(client: Client, session: Session) -> None:
    ten = await client.register(client.buffer(10 * 4096, offset=0))
    await ten.write(b"\x33" * 100 + b"\xee" * (ten.size - 100))
    await session.invoke(1, Memref(ten))
    await session.invoke(
        1,
        Memref(ten, 0x28, 100, INPUT),
        Memref(ten, 0x1028, 100, OUTPUT),
        Memref(ten, 0x2028, 100),
    )
    await ten.release()
    async with await client.allocate(3000) as memory:
        await memory.write(b"\x22" * memory.size)
        await session.invoke(1, Memref(memory), Memref(memory, 0x10, 0x20))
    async with await client.register(client.buffer(3 << 20, offset=0x123)) as large:
        await large.write(bytes(100))
        await session.invoke(1, Memref(large, 0, 100))
    full = await client.register(client.buffer(511 * 4096, offset=0))
    await full.release()


async def user_ta(guest: Guest, uuid: UUID, missing: UUID) -> None:
    client = guest.client()
    session = await client.open_session(uuid)
    await values(session)
    await temporary_buffers(guest, client, session)
    await registered_memory(client, session)
    await refused(
        guest,
        session,
        3,
        Value(tee.TEE_ERROR_BAD_PARAMETERS, 0x2000, INPUT),
        result=tee.TEE_ERROR_BAD_PARAMETERS,
    )
    await refused(guest, session, 99, result=tee.TEE_ERROR_NOT_SUPPORTED)
    await session.invoke(5, Value(direction=OUTPUT))
    before = guest.kernel.cpu.now()
    await session.invoke(4, Value(50, 0x2000, INPUT))
    assert guest.kernel.cpu.now() - before >= 50_000_000
    await session.close()
    with pytest.raises(TeeError) as caught:
        await client.open_session(missing)
    assert caught.value.result == tee.TEE_ERROR_ITEM_NOT_FOUND
    assert caught.value.origin == tee.TEE_ORIGIN_TEE
    session = await client.open_session(uuid)
    dead = tee.TEE_ERROR_TARGET_DEAD
    await refused(guest, session, 7, Value(7, 0x2000, INPUT), result=dead)
    await refused(guest, session, 0, result=dead)
    await session.close()


async def cancellation(guest: Guest, uuid: UUID) -> None:
    client = guest.client()
    session = await client.open_session(uuid)

    async def waiter() -> None:
        await refused(guest, session, 4, Value(3000, 0x2000, INPUT), result=tee.TEE_ERROR_CANCEL)

    thread = guest.kernel.spawn(waiter(), "waiter")
    await guest.kernel.sleep(300_000_000)
    await session.cancel()
    await thread.join()
    await session.close()


def run(
    name: str,
    records: list[Any],
    profile: Profile,
    image: bytes,
    mains: Mains,
    *,
    unload: bool = True,
) -> tuple[Guest, RecordedTee]:
    trace_tee = RecordedTee(calls(records))
    opens = [r for r in records if str(r.get("name")).endswith("OPEN_SESSION") and r.get("msg")]
    uuids = []
    for record in opens:
        if unpack(record["msg"])[7] == 6 and uuid_of(record) not in uuids:
            uuids.append(uuid_of(record))
    settings = GuestSettings(
        name,
        RAM,
        vcpus=1,
        driver=DriverSettings(profile=profile, processors=2),
        images={uuids[1]: image} if len(uuids) > 1 else {},
        supplicant=any(r.get("marker") == "supplicant started" for r in records),
        unload=unload,
    )
    guest = Guest(settings)

    async def main(guest: Guest) -> None:
        for program in mains(uuids):
            await pause(guest)
            await program(guest)
        await pause(guest)

    guest.start(main)
    machine = FakeMachine(RAM, trace_tee, 1)
    assert machine.run(guest.programs), guest.stuck()
    guest.check()
    assert trace_tee.finished
    return guest, trace_tee


def assert_same(guest: Guest, trace_tee: RecordedTee, records: list[Any]) -> None:
    """All recorded calls were made, and nothing is left behind that the driver owns."""
    recorded = calls(records)
    names = [r["name"] for r in recorded]
    assert trace_tee.calls == sum(r["dir"] == "call" for r in recorded)
    counters = guest.driver.counters
    assert counters.foreign_interrupts == names.count("RPC_FOREIGN_INTR")
    assert counters.bottom_halves == sum(name.endswith("DO_BOTTOM_HALF") for name in names)
    assert counters.anomalies == 0
    if guest.settings.unload:
        assert not len(guest.driver.shms)


def all_programs(uuids: list[UUID]) -> list[Main]:
    pta, echo, missing = uuids
    return [
        lambda guest: pseudo_ta(guest, pta),
        lambda guest: user_ta(guest, echo, missing),
        lambda guest: cancellation(guest, echo),
    ]


def test_session_of_linux_6_12() -> None:
    records = between(load_trace(SESSION_TRACE), None, "module unloaded")

    def mains(uuids: list[UUID]) -> list[Main]:
        assert str(uuids[0]) == PTA
        return [lambda guest: pseudo_ta(guest, uuids[0])]

    guest, trace_tee = run(SESSION_TRACE, records, LINUX_6_12, b"", mains)
    assert_same(guest, trace_tee, records)


def test_parameters_of_linux_6_1() -> None:
    records = between(load_trace(TRACE_6_1), None, "module unloaded")
    guest, trace_tee = run(TRACE_6_1, records, LINUX_6_1, ta_image(records), all_programs)
    assert_same(guest, trace_tee, records)
    assert trace_tee.compared_buffers > 50
    assert trace_tee.reused_cookies > 5


def test_parameters_of_linux_6_12() -> None:
    records = between(load_trace(TRACE_6_12), None, CONCURRENT)
    image = ta_image(records)
    guest, trace_tee = run(TRACE_6_12, records, LINUX_6_12, image, all_programs, unload=False)
    assert_same(guest, trace_tee, records)
    assert trace_tee.compared_buffers > 50


@pytest.mark.parametrize(("name", "profile"), [(TRACE_6_1, LINUX_6_1), (TRACE_6_12, LINUX_6_12)])
def test_a_second_probe(name: str, profile: Profile) -> None:
    records = between(load_trace(name), "module unloaded", "module unloaded again")
    guest, trace_tee = run(name, records, profile, b"", lambda uuids: [])
    assert_same(guest, trace_tee, records)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: record["regs"].__setitem__(3, "0x180"), "a3..a6"),
        (
            lambda record: record.__setitem__("msg", record["msg"][:8] + "07" + record["msg"][10:]),
            "header",
        ),
    ],
)
def test_the_comparison_notices_a_changed_recording(
    change: Callable[[Any], object], told: str
) -> None:
    records = between(load_trace(SESSION_TRACE), None, "driver probed")
    invoke = next(r for r in records if r["name"] == "CALL_WITH_REGD_ARG INVOKE_COMMAND")
    change(invoke)
    with pytest.raises(GuestFailed, match=told):
        run(SESSION_TRACE, records, LINUX_6_12, b"", lambda uuids: [])
