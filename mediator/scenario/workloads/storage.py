# SPDX-License-Identifier: BSD-2-Clause
"""Secure storage: objects that the TA keeps on the guest's own disk, through the RPC FS."""

from __future__ import annotations

from typing import Final

from mediator.guest.client import INPUT, OUTPUT, Client, Memref, Session, TeeError, Value
from mediator.guest.memory import PAGE_SIZE, Buffer
from mediator.scenario.fields import Field, Kind
from mediator.scenario.workloads.task import Task, WorkloadKind
from secure_world.apps.storage import Command, StorageApplication
from smccc.constants import tee

ACCESS: Final = (
    tee.TEE_DATA_FLAG_ACCESS_READ
    | tee.TEE_DATA_FLAG_ACCESS_WRITE
    | tee.TEE_DATA_FLAG_ACCESS_WRITE_META
)
NAME_ROOM: Final = 64
"""Bytes for the name of an object; the workload's own names are shorter."""


class _Objects:
    """The storage TA as a client sees it: one session, one buffer for names, one for contents."""

    def __init__(self, client: Client, session: Session, room: int) -> None:
        self._session = session
        self._names = client.buffer(NAME_ROOM)
        self._data = client.buffer(room)

    def buffers(self) -> tuple[Buffer, Buffer]:
        """What is to be freed at the end."""
        return self._names, self._data

    async def _name(self, name: bytes) -> Memref:
        await self._names.write(name)
        return Memref(self._names, 0, len(name), INPUT)

    async def _content(self, data: bytes) -> Memref:
        await self._data.write(data)
        return Memref(self._data, 0, len(data), INPUT)

    async def create(self, name: bytes, data: bytes) -> int:
        """A new object, replacing an old one of that name; its handle."""
        value = Value(ACCESS | tee.TEE_DATA_FLAG_OVERWRITE)
        storage = Value(tee.TEE_STORAGE_PRIVATE, 0, INPUT)
        params = (await self._name(name), value, storage, await self._content(data))
        await self._session.invoke(Command.CREATE, *params)
        return value.b

    async def open(self, name: bytes) -> int:
        """The handle of an object."""
        value = Value(ACCESS)
        storage = Value(tee.TEE_STORAGE_PRIVATE, 0, INPUT)
        await self._session.invoke(Command.OPEN, await self._name(name), value, storage)
        return value.b

    async def read(self, handle: int) -> bytes:
        """All of an object."""
        await self._session.invoke(
            Command.SEEK, Value(handle, 0, INPUT), Value(tee.TEE_DATA_SEEK_SET)
        )
        out = Memref(self._data, direction=OUTPUT)
        await self._session.invoke(Command.READ, out, Value(handle))
        return await self._data.read(0, out.size)

    async def append(self, handle: int, data: bytes) -> None:
        """Write behind the end."""
        await self._session.invoke(
            Command.SEEK, Value(handle, 0, INPUT), Value(tee.TEE_DATA_SEEK_END)
        )
        content = await self._content(data)
        await self._session.invoke(Command.WRITE, content, Value(handle, 0, INPUT))

    async def rename(self, handle: int, name: bytes) -> None:
        """Give an open object another name."""
        await self._session.invoke(Command.RENAME, Value(handle, 0, INPUT), await self._name(name))

    async def close(self, handle: int) -> None:
        """Close a handle."""
        await self._session.invoke(Command.CLOSE, Value(handle, 0, INPUT))

    async def delete(self, handle: int) -> None:
        """Delete an open object."""
        await self._session.invoke(Command.UNLINK, Value(handle, 0, INPUT))

    async def listed(self) -> list[bytes]:
        """Names of all objects of the partition."""
        await self._session.invoke(Command.START_ENUM, Value(tee.TEE_STORAGE_PRIVATE, 0, INPUT))
        found: list[bytes] = []
        while True:
            out = Memref(self._names, direction=OUTPUT)
            try:
                await self._session.invoke(Command.NEXT_ENUM, out, Value(direction=OUTPUT))
            except TeeError as error:
                if error.result != tee.TEE_ERROR_ITEM_NOT_FOUND:
                    raise
                return found
            found.append(await self._names.read(0, out.size))


async def storage(task: Task) -> None:
    """Objects are written, read back, renamed, enumerated and deleted."""
    client, rng = task.client, task.rng
    size, count = task.integer("size"), task.integer("objects")
    mine = f"{task.name}:".encode()
    async with client.open_session(StorageApplication.uuid) as session:
        objects = _Objects(client, session, size + PAGE_SIZE)

        async def body(number: int) -> None:
            contents: dict[bytes, bytes] = {}
            # A round that ended early has left objects behind.
            prefix = b"%s%d." % (mine, number)
            for index in range(count):
                name = b"%s%d" % (prefix, index)
                data, more = rng.randbytes(size), rng.randbytes(rng.randrange(1, PAGE_SIZE))
                handle = await objects.create(name, data)
                await objects.append(handle, more)
                task.expect(await objects.read(handle), data + more, "an object as written")
                if index % 2:
                    name += b"'"
                    await objects.rename(handle, name)
                await objects.close(handle)
                contents[name] = data + more
            listed = [name for name in await objects.listed() if name.startswith(prefix)]
            task.expect(sorted(listed), sorted(contents), "the names of all objects")
            for name, data in contents.items():
                handle = await objects.open(name)
                task.expect(await objects.read(handle), data, "an object that was opened again")
                await objects.delete(handle)
            await task.refused(
                objects.open(next(iter(contents))),
                tee.TEE_ERROR_ITEM_NOT_FOUND,
                "an object that was deleted",
            )

        await task.each_round(body)
        for buffer in objects.buffers():
            client.free(buffer)


KINDS: Final = (
    WorkloadKind(
        "storage",
        "secure storage on the guest's disk (RPC FS): write, read, rename, enumerate, delete",
        storage,
        (
            Field("objects", Kind.INTEGER, "objects in each round", 3, low=1, high=64),
            Field("size", Kind.SIZE, "bytes of an object at first", 6000, low=1, high=256 << 10),
        ),
        crypto=True,
    ),
)
