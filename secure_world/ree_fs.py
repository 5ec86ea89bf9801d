# SPDX-License-Identifier: BSD-2-Clause
"""The file service of the normal world, as OP-TEE's ``core/tee/tee_fs_rpc.c`` asks for it.

Every request goes through one buffer per call (SHM_ALLOC at the first need, SHM_FREE when the call
ends). Names take 350 bytes whatever their length. Answers are not trusted: a size is cut to what
was asked, a descriptor is just a number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secure_world.bus import BusError
from secure_world.ta import TeeError
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee

if TYPE_CHECKING:
    from secure_world.thread import ReeBuffer, RpcParam, Thread

NAME_SIZE: Final = 350
"""Bytes of a file name in a request (TEE_FS_NAME_MAX), the terminating zero included."""

MAX_TRANSFER: Final = 1 << 20
"""Bytes of one read or write; storage code works in blocks far below."""

_IN: Final = 1
_OUT: Final = 2
_VALUE_IN: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
_VALUE_OUT: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT
_M32: Final = 0xFFFF_FFFF


class ReeFileSystem:
    """The ``FileSystem`` of the TA interface, on one thread."""

    __slots__ = ("_thread",)

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    async def _payload(self, size: int) -> ReeBuffer:
        if size > MAX_TRANSFER:
            raise TeeError(tee.TEE_ERROR_EXCESS_DATA)
        buffer = await self._thread.fs_payload(size)
        if buffer is None:
            raise TeeError(tee.TEE_ERROR_OUT_OF_MEMORY)
        return buffer

    async def _request(self, *params: RpcParam) -> tuple[int, ...]:
        answer = await self._thread.rpc_cmd(rpc.OPTEE_RPC_CMD_FS, *params)
        if answer[5]:
            raise TeeError(answer[5])
        return answer

    def _store(self, buffer: ReeBuffer, offset: int, data: bytes) -> None:
        """Fill the payload; a page that the bus refuses is an error of communication."""
        try:
            buffer.write(offset, data)
        except BusError as error:
            self._thread.partition.breach(error)
            raise TeeError(tee.TEE_ERROR_COMMUNICATION) from None

    def _load(self, buffer: ReeBuffer, size: int) -> bytes:
        try:
            return buffer.read(0, size)
        except BusError as error:
            self._thread.partition.breach(error)
            raise TeeError(tee.TEE_ERROR_COMMUNICATION) from None

    async def _name(self, name: str, offset: int, room: int) -> tuple[ReeBuffer, RpcParam]:
        octets = name.encode()
        if len(octets) >= NAME_SIZE:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        buffer = await self._payload(room)
        self._store(buffer, offset, octets + b"\0")
        return buffer, buffer.param(_IN, offset, NAME_SIZE)

    async def _opened(self, operation: int, name: str) -> int:
        _, param = await self._name(name, 0, NAME_SIZE)
        answer = await self._request((_VALUE_IN, operation, 0, 0), param, (_VALUE_OUT, 0, 0, 0))
        return answer[17] & _M32

    async def open(self, name: str) -> int:
        """Open an existing file and return its descriptor."""
        return await self._opened(rpc.OPTEE_RPC_FS_OPEN, name)

    async def create(self, name: str) -> int:
        """Create (or empty) a file and return its descriptor."""
        return await self._opened(rpc.OPTEE_RPC_FS_CREATE, name)

    async def close(self, fd: int) -> None:
        """Close a descriptor."""
        await self._request((_VALUE_IN, rpc.OPTEE_RPC_FS_CLOSE, fd, 0))

    async def read(self, fd: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer at the end of the file."""
        buffer = await self._payload(size)
        answer = await self._request(
            (_VALUE_IN, rpc.OPTEE_RPC_FS_READ, fd, offset), buffer.param(_OUT, 0, size)
        )
        return self._load(buffer, min(answer[14], size))

    async def write(self, fd: int, offset: int, data: bytes) -> None:
        """Write ``data`` at ``offset``."""
        buffer = await self._payload(len(data))
        self._store(buffer, 0, data)
        await self._request(
            (_VALUE_IN, rpc.OPTEE_RPC_FS_WRITE, fd, offset), buffer.param(_IN, 0, len(data))
        )

    async def truncate(self, fd: int, length: int) -> None:
        """Set the length of the file in bytes."""
        await self._request((_VALUE_IN, rpc.OPTEE_RPC_FS_TRUNCATE, fd, length))

    async def remove(self, name: str) -> None:
        """Delete a file."""
        _, param = await self._name(name, 0, NAME_SIZE)
        await self._request((_VALUE_IN, rpc.OPTEE_RPC_FS_REMOVE, 0, 0), param)

    async def rename(self, old: str, new: str, *, overwrite: bool = False) -> None:
        """Rename a file; an existing target is an error unless ``overwrite``."""
        _, source = await self._name(old, 0, 2 * NAME_SIZE)
        _, target = await self._name(new, NAME_SIZE, 2 * NAME_SIZE)
        operation = (_VALUE_IN, rpc.OPTEE_RPC_FS_RENAME, int(overwrite), 0)
        await self._request(operation, source, target)

    async def opendir(self, name: str) -> int:
        """Open a directory and return its descriptor."""
        return await self._opened(rpc.OPTEE_RPC_FS_OPENDIR, name)

    async def closedir(self, fd: int) -> None:
        """Close a directory descriptor."""
        await self._request((_VALUE_IN, rpc.OPTEE_RPC_FS_CLOSEDIR, fd, 0))

    async def readdir(self, fd: int) -> str:
        """The next entry's name; :class:`TeeError` ITEM_NOT_FOUND at the end."""
        buffer = await self._payload(NAME_SIZE)
        answer = await self._request(
            (_VALUE_IN, rpc.OPTEE_RPC_FS_READDIR, fd, 0), buffer.param(_OUT, 0, NAME_SIZE)
        )
        raw = self._load(buffer, min(answer[14], NAME_SIZE))
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
