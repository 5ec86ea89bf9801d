# SPDX-License-Identifier: BSD-2-Clause
"""Secure storage of one TA in one partition, kept in files of the normal world that lies.

The normal world stores files and is trusted with nothing: it may read, change, swap, forget or
replay them, fail any request, or answer nonsense. What protects the objects is a tree::

    anchor          generation and digest, in replay-protected secure memory
      directory     names, sizes and index references     two files, written in turn
        index       references of 128 blocks each         in the object's file, two slots each
          block     4 KiB of the object                   in the object's file, two slots each

Every node holds generation and GCM tag of its children, so one changed, moved or old record is
noticed on the way down. A transaction writes new records only into slots that the current tree does
not use, then the other directory file, and last replaces the anchor in one step. If it fails before
that (an FS error, an interrupted call), the old state is still there, whole.

Errors: TEE_ERROR_CORRUPT_OBJECT for a file that is broken or missing; TEE_ERROR_SECURITY for a
genuine but outdated one (roll back; a missing directory is a roll back to the empty state);
OUT_OF_MEMORY and STORAGE_NO_SPACE as the normal world answers them; every other answer of it becomes
TEE_ERROR_STORAGE_NOT_AVAILABLE. A damaged object can still be deleted, a damaged directory is only
overcome by :meth:`ObjectStore.reset`. Files of a partition that was destroyed are not accepted by a
new one with the same id, because the anchor goes with the partition.

All keys come from the device key, the TA's UUID, the partition and the store's random id.
"""

from __future__ import annotations

import hashlib
import struct
from types import TracebackType
from typing import Final, NamedTuple

from secure_world.apps import cipher
from secure_world.apps.sealed import (
    BLOCK_SIZE,
    DATA,
    DIRECTORY,
    HOLE,
    INDEX,
    RECORD_SIZE,
    REFERENCE_SIZE,
    Reference,
    Sealer,
)
from secure_world.ta import Mutex, TaEnvironment, TeeError
from smccc.constants import tee

BLOCKS_PER_INDEX: Final = 128
"""References in one index record: 3200 of its 4096 octets."""
MAX_INDEXES: Final = 8
"""Index records of an object, all named in its directory entry (at most 200 octets)."""
MAX_OBJECT_SIZE: Final = MAX_INDEXES * BLOCKS_PER_INDEX * BLOCK_SIZE
"""Octets of one object, 4 MiB; beyond it TEE_ERROR_STORAGE_NO_SPACE."""
MAX_OBJECTS: Final = 256
"""Objects of one store: every change rewrites the directory, at most 18 records with this many."""
MAX_NAME: Final = tee.TEE_OBJECT_ID_MAX_LEN
_BATCH: Final = 16
"""Directory records moved by one FS request (about 65 KiB of shared memory)."""

_ANCHOR_KEY: Final = b"object store anchor"
_ANCHOR: Final = struct.Struct("<QI32s16s")
_DIRECTORY: Final = struct.Struct("<QI")
_ENTRY: Final = struct.Struct("<BQIB")
_PASSED_ON: Final = (tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ERROR_STORAGE_NO_SPACE)


class ObjectInfo(NamedTuple):
    """One stored object: its number (never reused in a store), name and size in octets."""

    number: int
    name: bytes
    size: int


class _Entry:
    """Directory entry, mutable while a transaction builds the next directory."""

    __slots__ = ("indexes", "name", "number", "size")

    def __init__(self, number: int, name: bytes, size: int, indexes: list[Reference]) -> None:
        self.number = number
        self.name = name
        self.size = size
        self.indexes = indexes

    def info(self) -> ObjectInfo:
        return ObjectInfo(self.number, self.name, self.size)


class _Anchor(NamedTuple):
    generation: int
    records: int
    digest: bytes
    store: bytes


class _Directory:
    """The decrypted directory of one generation."""

    __slots__ = ("anchor", "entries", "next_number")

    def __init__(self, anchor: _Anchor, next_number: int, entries: dict[int, _Entry]) -> None:
        self.anchor = anchor
        self.next_number = next_number
        self.entries = entries

    def entry(self, number: int) -> _Entry:
        found = self.entries.get(number)
        if found is None:
            raise TeeError(tee.TEE_ERROR_ITEM_NOT_FOUND)
        return found

    def named(self, name: bytes) -> _Entry | None:
        return next((e for e in self.entries.values() if e.name == name), None)

    def pack(self) -> bytes:
        parts = [_DIRECTORY.pack(self.next_number, len(self.entries))]
        for entry in self.entries.values():
            parts.append(_ENTRY.pack(len(entry.name), entry.number, entry.size, len(entry.indexes)))
            parts.append(entry.name)
            parts.extend(reference.pack() for reference in entry.indexes)
        return b"".join(parts)

    @staticmethod
    def unpack(anchor: _Anchor, data: bytes) -> _Directory:
        next_number, count = _DIRECTORY.unpack_from(data)
        at = _DIRECTORY.size
        entries: dict[int, _Entry] = {}
        for _ in range(count):
            length, number, size, indexes = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size
            name = data[at : at + length]
            at += length
            references = [Reference.unpack(data, at + i * REFERENCE_SIZE) for i in range(indexes)]
            at += indexes * REFERENCE_SIZE
            entries[number] = _Entry(number, name, size, references)
        return _Directory(anchor, next_number, entries)


class _Locked:
    """Holds a mutex, but leaves a coroutine that is thrown away alone: its partition is gone."""

    __slots__ = ("_mutex",)

    def __init__(self, mutex: Mutex) -> None:
        self._mutex = mutex

    async def __aenter__(self) -> None:
        await self._mutex.lock()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, Exception):
            await self._mutex.unlock()


class _File:
    """One open file of the normal world; its errors come out as the module describes."""

    __slots__ = ("_env", "_fd", "_missing", "_name")

    def __init__(self, env: TaEnvironment, name: str, missing: int) -> None:
        self._env = env
        self._name = name
        self._fd = -1
        self._missing = missing

    def _code(self, answer: int) -> int:
        if answer == tee.TEE_ERROR_ITEM_NOT_FOUND:
            return self._missing
        return answer if answer in _PASSED_ON else tee.TEE_ERROR_STORAGE_NOT_AVAILABLE

    async def open(self, *, create: bool) -> _File:
        fs = self._env.fs
        try:
            self._fd = await (fs.create(self._name) if create else fs.open(self._name))
        except TeeError as error:
            raise TeeError(self._code(error.code)) from error
        return self

    async def read(self, offset: int, size: int) -> bytes:
        try:
            return await self._env.fs.read(self._fd, offset, size)
        except TeeError as error:
            raise TeeError(self._code(error.code)) from error

    async def write(self, offset: int, data: bytes) -> None:
        try:
            await self._env.fs.write(self._fd, offset, data)
        except TeeError as error:
            raise TeeError(self._code(error.code)) from error

    async def __aenter__(self) -> _File:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            return
        try:
            await self._env.fs.close(self._fd)
        except TeeError:
            return  # nothing is lost by it: what counts is what the tree finds later


class _ObjectFile:
    """Blocks and indexes of one object, read through the tree, written beside it."""

    __slots__ = ("_changed", "_entry", "_env", "_file", "_generation", "_indexes", "_sealer")

    def __init__(
        self, env: TaEnvironment, file: _File, sealer: Sealer, entry: _Entry, generation: int
    ) -> None:
        self._env = env
        self._file = file
        self._sealer = sealer
        self._entry = entry
        self._generation = generation
        self._indexes: dict[int, list[Reference]] = {}
        self._changed: dict[int, None] = {}

    async def _load(self, position: int, kind: int, reference: Reference) -> bytes:
        offset = (2 * position + reference.slot) * RECORD_SIZE
        record = await self._file.read(offset, RECORD_SIZE)
        return self._sealer.open_current(record, kind, position, reference)

    async def _store(self, position: int, kind: int, old: Reference, data: bytes) -> Reference:
        slot = 0 if old is HOLE or old.slot != 0 else 1
        nonce = self._env.random(cipher.NONCE_SIZE)
        record, tag = self._sealer.seal(kind, position, self._generation, nonce, data)
        await self._file.write((2 * position + slot) * RECORD_SIZE, record)
        return Reference(slot, self._generation, tag)

    async def _index(self, group: int) -> list[Reference]:
        known = self._indexes.get(group)
        if known is None:
            if group < len(self._entry.indexes) and self._entry.indexes[group].slot != HOLE.slot:
                data = await self._load(_index_position(group), INDEX, self._entry.indexes[group])
                known = [
                    Reference.unpack(data, i * REFERENCE_SIZE) for i in range(BLOCKS_PER_INDEX)
                ]
            else:
                known = [HOLE] * BLOCKS_PER_INDEX
            self._indexes[group] = known
        return known

    async def block(self, number: int) -> bytes:
        """Block ``number`` of the object."""
        group, slot = divmod(number, BLOCKS_PER_INDEX)
        reference = (await self._index(group))[slot]
        if reference.slot == HOLE.slot:
            return bytes(BLOCK_SIZE)
        return await self._load(_block_position(number), DATA, reference)

    async def put_block(self, number: int, data: bytes) -> None:
        """Write a new version of block ``number`` beside the current one."""
        group, slot = divmod(number, BLOCKS_PER_INDEX)
        index = await self._index(group)
        old = HOLE if index[slot].slot == HOLE.slot else index[slot]
        index[slot] = await self._store(_block_position(number), DATA, old, data)
        self._changed[group] = None

    async def drop_blocks(self, first: int) -> None:
        """Make block ``first`` and all later ones holes."""
        groups = len(self._entry.indexes)
        keep = -(-first // BLOCKS_PER_INDEX)
        del self._entry.indexes[keep:]
        if first % BLOCKS_PER_INDEX and keep <= groups:
            index = await self._index(keep - 1)
            for slot in range(first % BLOCKS_PER_INDEX, BLOCKS_PER_INDEX):
                index[slot] = HOLE
            self._changed[keep - 1] = None

    async def put_indexes(self) -> None:
        """Write the changed indexes and note them in the directory entry."""
        references = self._entry.indexes
        for group in self._changed:
            while len(references) <= group:
                references.append(HOLE)
            old = HOLE if references[group].slot == HOLE.slot else references[group]
            data = b"".join(reference.pack() for reference in self._indexes[group])
            references[group] = await self._store(_index_position(group), INDEX, old, data)


def _index_position(group: int) -> int:
    return group * (BLOCKS_PER_INDEX + 1)


def _block_position(number: int) -> int:
    group, slot = divmod(number, BLOCKS_PER_INDEX)
    return _index_position(group) + 1 + slot


class ObjectStore:
    """The objects of the TA and partition that ``env`` belongs to. Valid only inside one call.

    Needs the extra ``crypto`` (:class:`~secure_world.apps.cipher.MissingExtra` otherwise). Every
    method is one transaction: it verifies what it uses, and changes all or nothing.
    """

    __slots__ = ("_env", "_lock", "_partition_key", "_tag")

    def __init__(self, env: TaEnvironment) -> None:
        cipher.require_crypto()
        partition = env.client_id.to_bytes(2, "little")
        self._env = env
        self._partition_key = env.derived_key(b"object store" + partition)
        # Unguessable and the same for nobody else, yet it tells nothing about the TA.
        self._tag = env.derived_key(b"object names" + partition)[:8].hex()
        self._lock = _Locked(env.mutex(f"object store {self._tag}"))

    async def objects(self) -> tuple[ObjectInfo, ...]:
        """All objects in the order of their numbers."""
        async with self._lock:
            directory = await self._load()
            return tuple(directory.entries[n].info() for n in sorted(directory.entries))

    async def find(self, name: bytes) -> ObjectInfo:
        """The object called ``name``; :class:`TeeError` ITEM_NOT_FOUND if there is none."""
        async with self._lock:
            entry = (await self._load()).named(name)
            if entry is None:
                raise TeeError(tee.TEE_ERROR_ITEM_NOT_FOUND)
            return entry.info()

    async def info(self, number: int) -> ObjectInfo:
        """The object with this number; :class:`TeeError` ITEM_NOT_FOUND if it is gone."""
        async with self._lock:
            return (await self._load()).entry(number).info()

    async def create(
        self, name: bytes, data: bytes = b"", *, overwrite: bool = False
    ) -> ObjectInfo:
        """A new object with first contents; an existing name is ACCESS_CONFLICT or replaced.

        :class:`TeeError` BAD_PARAMETERS for a name above 64 octets, STORAGE_NO_SPACE at a limit.
        """
        if len(name) > MAX_NAME:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        async with self._lock:
            directory = await self._load()
            old = directory.named(name)
            if old is not None:
                if not overwrite:
                    raise TeeError(tee.TEE_ERROR_ACCESS_CONFLICT)
                del directory.entries[old.number]
            if len(directory.entries) >= MAX_OBJECTS:
                raise TeeError(tee.TEE_ERROR_STORAGE_NO_SPACE)
            entry = _Entry(directory.next_number, name, 0, [])
            directory.next_number += 1
            directory.entries[entry.number] = entry
            async with await self._file(entry.number).open(create=True) as file:
                await self._put(directory, entry, file, 0, data)
            await self._commit(directory)
            if old is not None:
                await self._remove(self._object_name(old.number))
            return entry.info()

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """Up to ``size`` octets from ``offset``, fewer at the end of the object."""
        async with self._lock:
            directory = await self._load()
            entry = directory.entry(number)
            end = min(offset + size, entry.size)
            if offset >= end:
                return b""
            async with await self._file(number).open(create=False) as file:
                blocks = self._blocks(directory, entry, file)
                first = offset // BLOCK_SIZE
                parts = [await blocks.block(n) for n in range(first, (end - 1) // BLOCK_SIZE + 1)]
            at = offset - first * BLOCK_SIZE
            return b"".join(parts)[at : at + end - offset]

    async def write(self, number: int, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``; a gap behind the old end reads as zeros."""
        async with self._lock:
            directory = await self._load()
            entry = directory.entry(number)
            async with await self._file(number).open(create=False) as file:
                await self._put(directory, entry, file, offset, data)
            await self._commit(directory)

    async def truncate(self, number: int, size: int) -> None:
        """Set the size in octets; what is added reads as zeros."""
        if size > MAX_OBJECT_SIZE:
            raise TeeError(tee.TEE_ERROR_STORAGE_NO_SPACE)
        async with self._lock:
            directory = await self._load()
            entry = directory.entry(number)
            if size < entry.size:
                async with await self._file(number).open(create=False) as file:
                    blocks = self._blocks(directory, entry, file)
                    last, rest = divmod(size, BLOCK_SIZE)
                    if rest:
                        await blocks.put_block(last, (await blocks.block(last))[:rest])
                    await blocks.drop_blocks(last + bool(rest))
                    await blocks.put_indexes()
            entry.size = size
            await self._commit(directory)

    async def rename(self, number: int, name: bytes) -> None:
        """Give an object another name; a name in use is ACCESS_CONFLICT."""
        if len(name) > MAX_NAME:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        async with self._lock:
            directory = await self._load()
            entry = directory.entry(number)
            if directory.named(name) is not None:
                raise TeeError(tee.TEE_ERROR_ACCESS_CONFLICT)
            entry.name = name
            await self._commit(directory)

    async def delete(self, number: int) -> None:
        """Forget an object, also a damaged one. Its file is removed if the normal world does it."""
        async with self._lock:
            directory = await self._load()
            directory.entry(number)
            del directory.entries[number]
            await self._commit(directory)
            await self._remove(self._object_name(number))

    async def reset(self) -> None:
        """Forget everything, whatever state the files are in, and start an empty store."""
        async with self._lock:
            self._env.protected.pop(_ANCHOR_KEY, None)

    # Directory and anchor.

    async def _load(self) -> _Directory:
        packed = self._env.protected.get(_ANCHOR_KEY)
        if packed is None:
            store = self._env.random(16)
            return _Directory(_Anchor(0, 0, b"", store), 1, {})
        anchor = _Anchor(*_ANCHOR.unpack(packed))
        sealer = Sealer(self._key(anchor, b"directory"))
        name = self._directory_name(anchor.generation)
        blocks: list[bytes] = []
        digest = hashlib.sha256()
        async with await _File(self._env, name, tee.TEE_ERROR_SECURITY).open(create=False) as file:
            while len(blocks) < anchor.records:
                batch = min(anchor.records - len(blocks), _BATCH)
                data = await file.read(len(blocks) * RECORD_SIZE, batch * RECORD_SIZE)
                for at in range(0, batch * RECORD_SIZE, RECORD_SIZE):
                    record = data[at : at + RECORD_SIZE]
                    generation, tag, block = sealer.open(record, DIRECTORY, len(blocks))
                    if generation != anchor.generation:
                        raise TeeError(tee.TEE_ERROR_SECURITY)
                    digest.update(tag)
                    blocks.append(block)
        if digest.digest() != anchor.digest:
            # Genuine records of this generation that were never committed.
            raise TeeError(tee.TEE_ERROR_SECURITY)
        return _Directory.unpack(anchor, b"".join(blocks))

    async def _commit(self, directory: _Directory) -> None:
        old = directory.anchor
        generation = old.generation + 1
        sealer = Sealer(self._key(old, b"directory"))
        packed = directory.pack()
        digest = hashlib.sha256()
        records: list[bytes] = []
        for at in range(0, len(packed), BLOCK_SIZE):
            nonce = self._env.random(cipher.NONCE_SIZE)
            block = packed[at : at + BLOCK_SIZE]
            record, tag = sealer.seal(DIRECTORY, len(records), generation, nonce, block)
            digest.update(tag)
            records.append(record)
        name = self._directory_name(generation)
        async with await _File(self._env, name, tee.TEE_ERROR_STORAGE_NOT_AVAILABLE).open(
            create=True
        ) as file:
            for first in range(0, len(records), _BATCH):
                await file.write(first * RECORD_SIZE, b"".join(records[first : first + _BATCH]))
        self._env.protected[_ANCHOR_KEY] = _ANCHOR.pack(
            generation, len(records), digest.digest(), old.store
        )

    # Files and keys.

    def _key(self, anchor: _Anchor, label: bytes) -> bytes:
        return cipher.hmac_sha256(self._partition_key, anchor.store + label)

    def _directory_name(self, generation: int) -> str:
        return f"/{self._tag}.d{generation & 1}"

    def _object_name(self, number: int) -> str:
        return f"/{self._tag}.{number:x}"

    def _file(self, number: int) -> _File:
        return _File(self._env, self._object_name(number), tee.TEE_ERROR_CORRUPT_OBJECT)

    def _blocks(self, directory: _Directory, entry: _Entry, file: _File) -> _ObjectFile:
        key = self._key(directory.anchor, b"object" + entry.number.to_bytes(8, "little"))
        return _ObjectFile(self._env, file, Sealer(key), entry, directory.anchor.generation + 1)

    async def _put(
        self, directory: _Directory, entry: _Entry, file: _File, offset: int, data: bytes
    ) -> None:
        end = offset + len(data)
        if end > MAX_OBJECT_SIZE:
            raise TeeError(tee.TEE_ERROR_STORAGE_NO_SPACE)
        if not data:
            return
        blocks = self._blocks(directory, entry, file)
        for number in range(offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE + 1):
            start = number * BLOCK_SIZE
            low, high = max(offset, start), min(end, start + BLOCK_SIZE)
            piece = data[low - offset : high - offset]
            if len(piece) < BLOCK_SIZE:
                old = await blocks.block(number)
                piece = old[: low - start] + piece + old[high - start :]
            await blocks.put_block(number, piece)
        await blocks.put_indexes()
        entry.size = max(entry.size, end)

    async def _remove(self, name: str) -> None:
        try:
            await self._env.fs.remove(name)
        except TeeError:
            return  # an orphan, which no tree refers to any more
