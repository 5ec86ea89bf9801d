# SPDX-License-Identifier: BSD-2-Clause
"""A TA environment without an OP-TEE around it: what the TA asks is answered at once.

`Disk` is the normal world's file service as seen over the FS RPC, with the means to lie: everything
that the secure world stored lies open in `files`, and any request can be made to fail.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Callable, Iterable, MutableMapping
from typing import NoReturn

from secure_world.ta import (
    ClientIdentity,
    Condition,
    Memref,
    Mutex,
    ReeMemory,
    ReeTime,
    RpcAnswer,
    TaPanic,
    TeeError,
    Value,
)
from smccc.constants import tee


class Disk:
    """Files by name; descriptors; a log of requests; `fail(operation)` may raise or lie."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.log: list[str] = []
        self.fail: Callable[[str], None] = lambda operation: None
        self.torn: int | None = None  # the next write keeps only so many octets
        self._open: dict[int, str] = {}
        self._next = 3

    def _enter(self, operation: str) -> None:
        self.log.append(operation)
        self.fail(operation)

    def _name(self, fd: int) -> str:
        if fd not in self._open:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        return self._open[fd]

    @property
    def open_files(self) -> int:
        return len(self._open)

    async def open(self, name: str) -> int:
        self._enter("open")
        if name not in self.files:
            raise TeeError(tee.TEE_ERROR_ITEM_NOT_FOUND)
        self._next += 1
        self._open[self._next] = name
        return self._next

    async def create(self, name: str) -> int:
        self._enter("create")
        self.files[name] = b""
        return await self.open(name)

    async def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        self._enter("close")

    async def read(self, fd: int, offset: int, size: int) -> bytes:
        self._enter("read")
        return self.files[self._name(fd)][offset : offset + size]

    async def write(self, fd: int, offset: int, data: bytes) -> None:
        if self.torn is not None:
            data, self.torn = data[: self.torn], None
            self._store(fd, offset, data)
            raise TeeError(tee.TEE_ERROR_GENERIC)
        self._enter("write")
        self._store(fd, offset, data)

    def _store(self, fd: int, offset: int, data: bytes) -> None:
        old = self.files[self._name(fd)]
        old += bytes(max(offset - len(old), 0))
        self.files[self._name(fd)] = old[:offset] + data + old[offset + len(data) :]

    async def truncate(self, fd: int, length: int) -> None:
        self._enter("truncate")
        self.files[self._name(fd)] = self.files[self._name(fd)][:length].ljust(length, b"\0")

    async def remove(self, name: str) -> None:
        self._enter("remove")
        if self.files.pop(name, None) is None:
            raise TeeError(tee.TEE_ERROR_ITEM_NOT_FOUND)

    async def rename(self, old: str, new: str, *, overwrite: bool = False) -> None:
        self._enter("rename")
        self.files[new] = self.files.pop(old)

    async def opendir(self, name: str) -> int:
        raise TeeError(tee.TEE_ERROR_NOT_SUPPORTED)

    async def closedir(self, fd: int) -> None:
        raise TeeError(tee.TEE_ERROR_NOT_SUPPORTED)

    async def readdir(self, fd: int) -> str:
        raise TeeError(tee.TEE_ERROR_NOT_SUPPORTED)


class Lock:
    """A mutex that nobody else wants; taking it twice would be a deadlock."""

    def __init__(self) -> None:
        self.held = False

    async def lock(self) -> None:
        assert not self.held
        self.held = True

    async def unlock(self) -> None:
        assert self.held
        self.held = False


class Environment:
    """The environment of one TA in one partition; it stays the same over several sessions."""

    def __init__(
        self, ta: str = "ta", client_id: int = 1, seed: int = 0, disk: Disk | None = None
    ) -> None:
        self.client_id = client_id
        self.session_id = 1
        self.identity = ClientIdentity(tee.TEE_LOGIN_PUBLIC, bytes(16))
        self.data: object = None
        self.protected: MutableMapping[bytes, bytes] = {}
        self.disk = disk if disk is not None else Disk()
        self.charged = 0
        self.checkpoints = 0
        self.lock = Lock()
        self._ta = ta
        self._random = random.Random(seed)

    @property
    def fs(self) -> Disk:
        return self.disk

    async def checkpoint(self, ns: int = 0) -> None:
        self.charged += ns
        self.checkpoints += 1

    def random(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def derived_key(self, label: bytes, size: int = 32) -> bytes:
        return hmac.digest(b"device key", self._ta.encode() + label, hashlib.sha256)[:size]

    def mutex(self, name: str, *, shared: bool = False) -> Mutex:
        return self.lock

    async def get_ree_time(self) -> ReeTime:
        return ReeTime(0, 0)

    def system_time_ns(self) -> int:
        return self.charged

    async def sleep(self, milliseconds: int) -> int:
        return tee.TEE_SUCCESS

    def condition(self, name: str, *, shared: bool = False) -> Condition:
        raise NotImplementedError

    async def shm_alloc(self, size: int, kind: int = 0) -> ReeMemory:
        raise NotImplementedError

    async def shm_free(self, memory: ReeMemory) -> None:
        raise NotImplementedError

    async def rpc(self, command: int, params: Iterable[tuple[int, int, int, int]]) -> RpcAnswer:
        raise NotImplementedError

    def devices(self, function: int) -> tuple[bytes, ...]:
        return ()

    def cancelled(self) -> bool:
        return False

    def mask_cancellation(self, masked: bool) -> bool:
        return True

    def panic(self, code: int) -> NoReturn:
        raise TaPanic(code)


class Buffer:
    """A memory reference over a bytearray; `None` is the null reference."""

    def __init__(self, data: bytes | None, size: int | None = None) -> None:
        self.memory = bytearray(data or b"")
        self.size = len(self.memory) if size is None else size
        self.reads = 0
        self._null = data is None

    @property
    def capacity(self) -> int:
        return len(self.memory)

    @property
    def null(self) -> bool:
        return self._null

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.memory):
            raise TaPanic(0)
        self.reads += 1
        return bytes(self.memory[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        if offset + len(data) > len(self.memory):
            raise TaPanic(0)
        self.memory[offset : offset + len(data)] = data

    def set_size(self, size: int) -> None:
        self.size = size


class Parameters:
    """Up to four parameters: a type and a `Value` or `Buffer` each."""

    def __init__(self, *given: tuple[int, Value | Buffer]) -> None:
        self.given = given
        self.types = sum(kind << 4 * i for i, (kind, _) in enumerate(given))

    def type(self, index: int) -> int:
        return self.types >> 4 * index & 0xF

    def value(self, index: int) -> Value:
        found = self.given[index][1]
        if not isinstance(found, Value):
            raise TaPanic(0)
        return found

    def memref(self, index: int) -> Memref:
        found = self.given[index][1]
        if not isinstance(found, Buffer):
            raise TaPanic(0)
        return found
