# SPDX-License-Identifier: BSD-2-Clause
"""Shared memory: every kind of memory reference, from one byte to many megabytes."""

from __future__ import annotations

from typing import Final

from mediator.guest.client import INOUT, INPUT, OUTPUT, Memref, Session, SharedMemory, Value
from mediator.guest.memory import PAGE_SIZE
from mediator.scenario.fields import Field, Kind
from mediator.scenario.workloads.task import Task, WorkloadKind
from secure_world.apps import echo
from secure_world.apps.basic import MemoryReferences
from secure_world.apps.echo import Echo
from smccc.constants import optee_smc as smc
from smccc.constants import tee

INVERT: Final = bytes(255 - byte for byte in range(256))
GROWTH: Final = 16
"""Each buffer of ``large-memory`` is this many times the one before."""

MAX_SIZE: Final = 1 << 30
"""1 GiB, the largest buffer that the mediator's default limits allow."""

WINDOW: Final = 3 * PAGE_SIZE
"""Bytes of a window that is checked: crosses pages whatever its start is."""


async def memrefs(task: Task) -> None:
    """Registered, partly used, temporary and null references in all directions."""
    client, rng = task.client, task.rng
    size = task.integer("size")
    null_allowed = bool(client.driver.capabilities & smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL)
    async with (
        client.open_session(Echo.uuid) as session,
        client.open_session(MemoryReferences.uuid) as other,
    ):

        async def body(_: int) -> None:
            async with await client.allocate(size) as memory:
                await _whole(task, session, memory)
                await _part(task, session, memory)
            buffer = client.buffer(size)
            async with await client.register(buffer) as memory:
                await _whole(task, session, memory)
            client.free(buffer)
            await _temporaries(task, session)
            answer = Value(direction=OUTPUT)
            await other.invoke(MemoryReferences.IS_NULL, Memref(None, direction=INPUT), answer)
            task.expect((answer.a, answer.b), (int(null_allowed), 0), "a null reference")
            data = rng.randbytes(min(size, PAGE_SIZE))
            room = await client.buffer_of(data)
            total = Value(direction=OUTPUT)
            await other.invoke(MemoryReferences.SUM, Memref(room, direction=INPUT), total)
            task.expect((total.a, total.b), (sum(data), len(data)), "the sum of all bytes")
            client.free(room)

        await task.each_round(body)


async def _whole(task: Task, session: Session, memory: SharedMemory) -> None:
    data = task.rng.randbytes(memory.size)
    await memory.write(data)
    await session.invoke(echo.ECHO, Memref(memory))
    task.expect(await memory.read(), data.translate(INVERT), "an inverted buffer")


async def _part(task: Task, session: Session, memory: SharedMemory) -> None:
    """The TA changes the part that it was given and nothing around it."""
    data = task.rng.randbytes(memory.size)
    await memory.write(data)
    start = task.rng.randrange(memory.size)
    length = task.rng.randrange(memory.size - start) + 1
    end = start + length
    await session.invoke(echo.ECHO, Memref(memory, start, length))
    wanted = data[:start] + data[start:end].translate(INVERT) + data[end:]
    task.expect(await memory.read(), wanted, f"bytes {start} to {end} inverted, others not")


async def _temporaries(task: Task, session: Session) -> None:
    """Four temporary references of all directions in one call."""
    client, rng = task.client, task.rng
    sizes = [rng.randrange(1, 2 * PAGE_SIZE) for _ in range(4)]
    datas = [rng.randbytes(size) for size in sizes]
    buffers = [await client.buffer_of(data) for data in datas]
    directions = (INPUT, OUTPUT, INOUT, INOUT)
    params = [
        Memref(buffer, direction=direction)
        for buffer, direction in zip(buffers, directions, strict=True)
    ]
    await session.invoke(echo.ECHO, *params)
    fill = bytes([echo.FILL_BYTE])
    wanted = (datas[0], fill * sizes[1], datas[2].translate(INVERT), datas[3].translate(INVERT))
    for buffer, expected, what in zip(
        buffers, wanted, ("in", "out", "inout", "inout"), strict=True
    ):
        task.expect(await buffer.read(), expected, f"a temporary buffer, {what}")
        client.free(buffer)


async def short_buffers(task: Task) -> None:
    """An output that is too small learns the size it needs; then it fits."""
    client, rng = task.client, task.rng
    async with client.open_session(MemoryReferences.uuid) as session:

        async def body(_: int) -> None:
            data = rng.randbytes(rng.randrange(2, 3 * PAGE_SIZE))
            source = await client.buffer_of(data)
            small = client.buffer(len(data) - 1)
            target = Memref(small, direction=OUTPUT)
            await task.refused(
                session.invoke(MemoryReferences.COPY, Memref(source, direction=INPUT), target),
                tee.TEE_ERROR_SHORT_BUFFER,
                "a buffer of one byte less",
            )
            task.expect(target.size, len(data), "the size that is needed")
            room = client.buffer(target.size)
            target = Memref(room, direction=OUTPUT)
            await session.invoke(MemoryReferences.COPY, Memref(source, direction=INPUT), target)
            task.expect(await room.read(), data, "a copy")
            for buffer in (source, small, room):
                client.free(buffer)

        await task.each_round(body)


async def large_memory(task: Task) -> None:
    """Buffers from a page to many megabytes: registered, checked in windows, released."""
    client, rng = task.client, task.rng
    async with client.open_session(Echo.uuid) as session:

        async def body(_: int) -> None:
            size = task.integer("from")
            while True:
                buffer = client.buffer(size)
                memory = await client.register(buffer)
                for _ in range(task.integer("windows")):
                    length = min(WINDOW, size)
                    start = rng.randrange(size - length + 1)
                    data = rng.randbytes(length)
                    await memory.write(data, start)
                    await session.invoke(echo.ECHO, Memref(memory, start, length))
                    got = await memory.read(start, length)
                    task.expect(got, data.translate(INVERT), f"{length} bytes at {start}")
                await memory.release()
                client.free(buffer)
                if size >= task.integer("size"):
                    return
                size = min(size * GROWTH, task.integer("size"))

        await task.each_round(body)


async def resident(task: Task) -> None:
    """Keeps one large buffer shared and works on its first page: what a host may disturb."""
    client, rng = task.client, task.rng
    memory = await client.allocate(task.integer("size"))
    async with client.open_session(Echo.uuid) as session:

        async def body(_: int) -> None:
            data = rng.randbytes(PAGE_SIZE)
            await memory.write(data)
            await session.invoke(echo.ECHO, Memref(memory))
            got = await memory.read(0, PAGE_SIZE)
            task.expect(got, data.translate(INVERT), "the first page inverted")
            await session.invoke(echo.WAIT, Value(1, 0, INPUT))

        await task.each_round(body)
    await memory.release()


KINDS: Final = (
    WorkloadKind(
        "memrefs",
        "registered, partial, temporary and null references in all directions",
        memrefs,
        (
            Field(
                "size", Kind.SIZE, "bytes of the registered buffers", 20_000, low=1, high=16 << 20
            ),
        ),
    ),
    WorkloadKind("short-buffers", "outputs that are too small, then fit", short_buffers),
    WorkloadKind(
        "large-memory",
        "shared buffers from one page to many megabytes, scattered in memory",
        large_memory,
        (
            Field("from", Kind.SIZE, "bytes of the smallest", PAGE_SIZE, low=1, high=MAX_SIZE),
            Field("size", Kind.SIZE, "bytes of the largest", 1 << 20, low=1, high=MAX_SIZE),
            Field("windows", Kind.INTEGER, "places of each that are checked", 3, high=1000),
        ),
    ),
    WorkloadKind(
        "resident",
        "one large buffer that stays shared while its first page is worked on",
        resident,
        (Field("size", Kind.SIZE, "bytes of the buffer", 1 << 20, low=PAGE_SIZE, high=MAX_SIZE),),
    ),
)
