# SPDX-License-Identifier: BSD-2-Clause
"""The secure storage TA: persistent objects of the GlobalPlatform Internal Core API for clients.

All clients of one partition share its objects; other TAs and other partitions never see them. How
objects are protected, and which errors tampering gives, is in :mod:`.object_store`. This module
adds what GlobalPlatform calls object handles: access rights, sharing rules and data positions.

A handle belongs to the session that made it. Every command fails with BAD_PARAMETERS for parameters
of other types or an unknown handle (GlobalPlatform would panic; a shared TA must not let one client
kill the others), and with ACCESS_CONFLICT or ACCESS_DENIED as the standard says::

    command       0                              1                                     2                   3
    -----------   ----------------------------   -----------------------------------   -----------------   --------
    OPEN          in: object id                  inout value: a flags, b handle out    value: a storage
    CLOSE         value: a handle
    READ          out: data                      inout value: a handle, b octets out
    WRITE         in: data                       value: a handle
    CREATE        in: object id                  inout value: a flags, b handle out    value: a storage    in: data
    SEEK          value: a handle, b offset      inout value: a whence, b position
    UNLINK        value: a handle
    RENAME        value: a handle                in: new object id
    TRUNCATE      value: a handle, b size
    START_ENUM    value: a storage
    NEXT_ENUM     out: object id                 out value: a size
    GET_INFO      value: a handle                out value: a size, b position
    RESET         value: a storage

The offset of SEEK is signed. The storage is TEE_STORAGE_PRIVATE or TEE_STORAGE_PRIVATE_REE.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final
from uuid import UUID

from secure_world.apps import cipher
from secure_world.apps.object_store import MAX_NAME, MAX_OBJECT_SIZE, ObjectStore
from secure_world.ta import (
    TYPE_MEMREF_INPUT,
    TYPE_MEMREF_OUTPUT,
    TYPE_VALUE_INOUT,
    TYPE_VALUE_INPUT,
    TYPE_VALUE_OUTPUT,
    Memref,
    Params,
    TaEnvironment,
    TeeError,
    TrustedApplication,
    param_types,
)
from smccc.constants import tee


class Command(IntEnum):
    """Commands of the TA, numbered as in OP-TEE's own storage test TA where it has them."""

    OPEN = 0
    CLOSE = 1
    READ = 2
    WRITE = 3
    CREATE = 4
    SEEK = 5
    UNLINK = 6
    RENAME = 7
    TRUNCATE = 8
    START_ENUM = 12
    NEXT_ENUM = 13
    GET_INFO = 21
    RESET = 0x100


MAX_HANDLES: Final = 64
"""Open handles of all sessions of a partition: secure memory that clients must not exhaust."""

_ACCESS: Final = (
    tee.TEE_DATA_FLAG_ACCESS_READ
    | tee.TEE_DATA_FLAG_ACCESS_WRITE
    | tee.TEE_DATA_FLAG_ACCESS_WRITE_META
)
_FLAGS: Final = _ACCESS | tee.TEE_DATA_FLAG_SHARE_READ | tee.TEE_DATA_FLAG_SHARE_WRITE
_SHARING: Final = (
    (tee.TEE_DATA_FLAG_ACCESS_READ, tee.TEE_DATA_FLAG_SHARE_READ),
    (tee.TEE_DATA_FLAG_ACCESS_WRITE, tee.TEE_DATA_FLAG_SHARE_WRITE),
)
_STORAGES: Final = (tee.TEE_STORAGE_PRIVATE, tee.TEE_STORAGE_PRIVATE_REE)

_VALUE, _INOUT, _ANSWER = TYPE_VALUE_INPUT, TYPE_VALUE_INOUT, TYPE_VALUE_OUTPUT
_IN, _OUT = TYPE_MEMREF_INPUT, TYPE_MEMREF_OUTPUT
_TYPES: Final[dict[int, int]] = {
    Command.OPEN: param_types(_IN, _INOUT, _VALUE),
    Command.CLOSE: param_types(_VALUE),
    Command.READ: param_types(_OUT, _INOUT),
    Command.WRITE: param_types(_IN, _VALUE),
    Command.CREATE: param_types(_IN, _INOUT, _VALUE, _IN),
    Command.SEEK: param_types(_VALUE, _INOUT),
    Command.UNLINK: param_types(_VALUE),
    Command.RENAME: param_types(_VALUE, _IN),
    Command.TRUNCATE: param_types(_VALUE),
    Command.START_ENUM: param_types(_VALUE),
    Command.NEXT_ENUM: param_types(_OUT, _ANSWER),
    Command.GET_INFO: param_types(_VALUE, _ANSWER),
    Command.RESET: param_types(_VALUE),
}


class Handle:
    """One open object: whose it is, what it may do, and its data position in octets."""

    __slots__ = ("flags", "number", "position", "session")

    def __init__(self, session: int, number: int, flags: int) -> None:
        self.session = session
        self.number = number
        self.flags = flags
        self.position = 0


class HandleTable:
    """All open handles of the TA instance, so that sharing rules hold between sessions."""

    __slots__ = ("_handles", "_next")

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._next = 1

    def check_room(self) -> None:
        """:class:`TeeError` OUT_OF_MEMORY if no handle can be added."""
        if len(self._handles) >= MAX_HANDLES:
            raise TeeError(tee.TEE_ERROR_OUT_OF_MEMORY)

    def check_sharing(self, number: int, flags: int) -> None:
        """:class:`TeeError` ACCESS_CONFLICT unless ``flags`` go with every handle of the object.

        Meta access is exclusive; what either side accesses, both sides must share.
        """
        for other in self._handles.values():
            if other.number != number:
                continue
            either = flags | other.flags
            if either & tee.TEE_DATA_FLAG_ACCESS_WRITE_META:
                raise TeeError(tee.TEE_ERROR_ACCESS_CONFLICT)
            for access, share in _SHARING:
                if either & access and not flags & other.flags & share:
                    raise TeeError(tee.TEE_ERROR_ACCESS_CONFLICT)

    def add(self, session: int, number: int, flags: int) -> int:
        """The number of a new handle, never used before."""
        self.check_room()
        handle = self._next
        self._next += 1
        self._handles[handle] = Handle(session, number, flags)
        return handle

    def get(self, session: int, handle: int, access: int = 0) -> Handle:
        """The session's own handle; BAD_PARAMETERS if there is none, ACCESS_DENIED without right."""
        found = self._handles.get(handle)
        if found is None or found.session != session:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        if access & ~found.flags:
            raise TeeError(tee.TEE_ERROR_ACCESS_DENIED)
        return found

    def remove(self, handle: int) -> None:
        """Forget a handle."""
        del self._handles[handle]

    def remove_session(self, session: int) -> None:
        """Forget all handles of a session."""
        for handle in [h for h, v in self._handles.items() if v.session == session]:
            del self._handles[handle]

    def __len__(self) -> int:
        return len(self._handles)


class _Cursor:
    """Where the enumeration of a session stands: it goes by object number, so changes do no harm."""

    __slots__ = ("after",)

    def __init__(self) -> None:
        self.after: int | None = None


def _object_id(memref: Memref) -> bytes:
    if memref.capacity > MAX_NAME:
        raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
    return memref.read(0, memref.capacity) if memref.capacity else b""


def _contents(memref: Memref) -> bytes:
    if memref.capacity > MAX_OBJECT_SIZE:
        raise TeeError(tee.TEE_ERROR_STORAGE_NO_SPACE)
    return memref.read(0, memref.capacity) if memref.capacity else b""


def _check_storage(storage: int) -> None:
    if storage not in _STORAGES:
        raise TeeError(tee.TEE_ERROR_ITEM_NOT_FOUND)


def _check_flags(flags: int, allowed: int) -> None:
    if flags & ~allowed:
        raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)


class StorageApplication(TrustedApplication):
    """User TA, one instance for all sessions of a partition; see the module for its commands."""

    uuid = UUID("c0a6b1f2-93d7-4e0c-8d55-7f1b0a64e2c9")
    name = "storage"
    single_instance = True
    multi_session = True

    def __init__(self) -> None:
        self.handles = HandleTable()

    async def create(self, env: TaEnvironment) -> int:
        """Refuse to live without the extra ``crypto``: TEE_ERROR_NOT_SUPPORTED."""
        try:
            cipher.require_crypto()
        except cipher.MissingExtra:
            return tee.TEE_ERROR_NOT_SUPPORTED
        return tee.TEE_SUCCESS

    async def open_session(self, env: TaEnvironment, params: Params) -> int:
        """A session without handles; parameters are ignored."""
        env.data = _Cursor()
        return tee.TEE_SUCCESS

    async def close_session(self, env: TaEnvironment) -> None:
        """Close what the session left open."""
        self.handles.remove_session(env.session_id)

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """One of the module's commands; BAD_PARAMETERS for other types, NOT_SUPPORTED otherwise."""
        types = _TYPES.get(command)
        if types is None:
            return tee.TEE_ERROR_NOT_SUPPORTED
        if params.types != types:
            return tee.TEE_ERROR_BAD_PARAMETERS
        store = ObjectStore(env)
        match command:
            case Command.OPEN:
                await self._open(env, store, params)
            case Command.CREATE:
                await self._create(env, store, params)
            case Command.CLOSE:
                self.handles.get(env.session_id, params.value(0).a)
                self.handles.remove(params.value(0).a)
            case Command.READ:
                await self._read(env, store, params)
            case Command.WRITE:
                await self._write(env, store, params)
            case Command.SEEK:
                await self._seek(env, store, params)
            case Command.UNLINK:
                handle = self._meta(env, params)
                await store.delete(handle.number)
                self.handles.remove(params.value(0).a)
            case Command.RENAME:
                name = _object_id(params.memref(1))
                await store.rename(self._meta(env, params).number, name)
            case Command.TRUNCATE:
                value = params.value(0)
                handle = self.handles.get(env.session_id, value.a, tee.TEE_DATA_FLAG_ACCESS_WRITE)
                await store.truncate(handle.number, value.b)
            case Command.START_ENUM:
                _check_storage(params.value(0).a)
                self._cursor(env).after = 0
            case Command.NEXT_ENUM:
                await self._next(env, store, params)
            case Command.GET_INFO:
                handle = self.handles.get(env.session_id, params.value(0).a)
                params.value(1).a = (await store.info(handle.number)).size
                params.value(1).b = handle.position
            case _:
                _check_storage(params.value(0).a)
                if len(self.handles):
                    return tee.TEE_ERROR_ACCESS_CONFLICT
                await store.reset()
        return tee.TEE_SUCCESS

    def _meta(self, env: TaEnvironment, params: Params) -> Handle:
        access = tee.TEE_DATA_FLAG_ACCESS_WRITE_META
        return self.handles.get(env.session_id, params.value(0).a, access)

    def _cursor(self, env: TaEnvironment) -> _Cursor:
        if not isinstance(env.data, _Cursor):
            raise TeeError(tee.TEE_ERROR_BAD_STATE)
        return env.data

    async def _open(self, env: TaEnvironment, store: ObjectStore, params: Params) -> None:
        name = _object_id(params.memref(0))
        value = params.value(1)
        _check_storage(params.value(2).a)
        _check_flags(value.a, _FLAGS)
        self.handles.check_room()
        number = (await store.find(name)).number
        self.handles.check_sharing(number, value.a)
        value.b = self.handles.add(env.session_id, number, value.a)

    async def _create(self, env: TaEnvironment, store: ObjectStore, params: Params) -> None:
        name = _object_id(params.memref(0))
        value = params.value(1)
        _check_storage(params.value(2).a)
        _check_flags(value.a, _FLAGS | tee.TEE_DATA_FLAG_OVERWRITE)
        data = _contents(params.memref(3))
        self.handles.check_room()
        flags = value.a & _FLAGS
        overwrite = bool(value.a & tee.TEE_DATA_FLAG_OVERWRITE)
        if overwrite:
            # An object that somebody holds open is not replaced under him.
            try:
                old = await store.find(name)
            except TeeError as error:
                if error.code != tee.TEE_ERROR_ITEM_NOT_FOUND:
                    raise
            else:
                self.handles.check_sharing(old.number, tee.TEE_DATA_FLAG_ACCESS_WRITE_META)
        info = await store.create(name, data, overwrite=overwrite)
        value.b = self.handles.add(env.session_id, info.number, flags)

    async def _read(self, env: TaEnvironment, store: ObjectStore, params: Params) -> None:
        value, out = params.value(1), params.memref(0)
        handle = self.handles.get(env.session_id, value.a, tee.TEE_DATA_FLAG_ACCESS_READ)
        data = await store.read(handle.number, handle.position, out.capacity)
        if data:
            out.write(0, data)
        out.set_size(len(data))
        handle.position += len(data)
        value.b = len(data)

    async def _write(self, env: TaEnvironment, store: ObjectStore, params: Params) -> None:
        access = tee.TEE_DATA_FLAG_ACCESS_WRITE
        handle = self.handles.get(env.session_id, params.value(1).a, access)
        data = _contents(params.memref(0))
        if handle.position + len(data) > tee.TEE_DATA_MAX_POSITION:
            raise TeeError(tee.TEE_ERROR_OVERFLOW)
        await store.write(handle.number, handle.position, data)
        handle.position += len(data)

    async def _seek(self, env: TaEnvironment, store: ObjectStore, params: Params) -> None:
        value, whence = params.value(0), params.value(1)
        handle = self.handles.get(env.session_id, value.a)
        offset = value.b - (1 << 32) if value.b & 1 << 31 else value.b
        match whence.a:
            case tee.TEE_DATA_SEEK_SET:
                base = 0
            case tee.TEE_DATA_SEEK_CUR:
                base = handle.position
            case tee.TEE_DATA_SEEK_END:
                base = (await store.info(handle.number)).size
            case _:
                raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        # A position before the start is the start (TEE_SeekObjectData).
        position = max(base + offset, 0)
        if position > tee.TEE_DATA_MAX_POSITION:
            raise TeeError(tee.TEE_ERROR_OVERFLOW)
        handle.position = whence.b = position

    async def _next(self, env: TaEnvironment, store: ObjectStore, params: Params) -> None:
        cursor = self._cursor(env)
        after = cursor.after
        if after is None:
            raise TeeError(tee.TEE_ERROR_BAD_STATE)
        info = next((i for i in await store.objects() if i.number > after), None)
        if info is None:
            raise TeeError(tee.TEE_ERROR_ITEM_NOT_FOUND)
        out = params.memref(0)
        out.set_size(len(info.name))
        if out.capacity < len(info.name):
            raise TeeError(tee.TEE_ERROR_SHORT_BUFFER)
        if info.name:
            out.write(0, info.name)
        params.value(1).a = info.size
        cursor.after = info.number
