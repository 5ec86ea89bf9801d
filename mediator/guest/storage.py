# SPDX-License-Identifier: BSD-2-Clause
"""The file system of a supplicant, in memory: what OP-TEE's secure storage lies on.

Files are plain bytes under absolute names. Tests play the attacker who owns the normal world's
disk: :meth:`FileStore.snapshot` and :meth:`FileStore.restore` roll the disk back,
:meth:`FileStore.tamper` changes a byte.

:class:`OpenFiles` is the process's side: descriptors as the C library hands them out (the lowest
free one), directory handles, and results as tee-supplicant reports them
(OP-TEE client ``tee-supplicant/src/tee_supp_fs.c``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from smccc.constants import tee

FIRST_DESCRIPTOR: Final = 5
"""First free descriptor: 0 to 4 are the standard streams and tee-supplicant's own files. One of them is
there only if the process became a daemon; the one that a shell started in the background has 4 free."""

MAX_FILE_SIZE: Final = 1 << 30
"""Bytes of one file; a request beyond it fails as a full disk does, so no request costs more."""

OK: Final = tee.TEE_SUCCESS
NOT_FOUND: Final = tee.TEE_ERROR_ITEM_NOT_FOUND
GENERIC: Final = tee.TEE_ERROR_GENERIC


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


class FileStore:
    """A disk. Names are absolute ("/dirf.db"); directories appear and vanish as OP-TEE needs them."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self._files: dict[str, bytearray] = {}
        self._directories: dict[str, None] = {"": None}
        if files is not None:
            self.restore(files)

    # For tests and scenarios

    def paths(self) -> list[str]:
        """Names of all files, in order of their creation."""
        return list(self._files)

    def snapshot(self) -> dict[str, bytes]:
        """A copy of all files: what an attacker who images the disk has."""
        return {path: bytes(data) for path, data in self._files.items()}

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Replace everything by ``files``: roll the disk back."""
        self._files = {path: bytearray(data) for path, data in files.items()}
        self._directories = {"": None}
        for path in self._files:
            self._make_directories(path)

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises KeyError."""
        return bytes(self._files[path])

    def replace(self, path: str, data: bytes) -> None:
        """Make the file ``path`` hold ``data``, behind the secure world's back."""
        self._make_directories(path)
        self._files[path] = bytearray(data)

    def tamper(self, path: str, offset: int, mask: int = 0x01) -> None:
        """Flip the bits of ``mask`` in one byte of a file. Raises KeyError or IndexError."""
        self._files[path][offset] ^= mask

    def delete(self, path: str) -> None:
        """Remove a file behind the secure world's back. Raises KeyError."""
        del self._files[path]

    # For the supplicant

    def _make_directories(self, path: str) -> None:
        parent = _parent(path)
        while parent not in self._directories:
            self._directories[parent] = None
            parent = _parent(parent)

    def create(self, path: str) -> bytearray:
        """An empty file under ``path``; an old one of that name is emptied."""
        self._make_directories(path)
        data = self._files.get(path)
        if data is None:
            data = self._files[path] = bytearray()
        else:
            del data[:]
        return data

    def find(self, path: str) -> bytearray | None:
        """The content of ``path``, to be changed in place; None if there is no such file."""
        return self._files.get(path)

    def remove(self, path: str) -> bool:
        """Unlink a file, and up to two parent directories that are empty now."""
        if self._files.pop(path, None) is None:
            return False
        parent = _parent(path)
        for _ in range(2):
            if not parent or self.entries(parent):
                break
            self._directories.pop(parent, None)
            parent = _parent(parent)
        return True

    def rename(self, old: str, new: str) -> bool:
        """Give a file another name, replacing what had that name; False if there is no ``old``."""
        data = self._files.pop(old, None)
        if data is None:
            return False
        self._make_directories(new)
        self._files[new] = data
        return True

    def entries(self, path: str) -> list[str] | None:
        """Names in a directory without those that begin with a dot; None: no such directory."""
        path = path.rstrip("/")
        if path not in self._directories:
            return None
        names: dict[str, None] = {}
        for candidate in (*self._directories, *self._files):
            if candidate and _parent(candidate) == path:
                names[candidate.rpartition("/")[2]] = None
        return [name for name in names if not name.startswith(".")]


class OpenFiles:
    """Descriptors and directory handles of one supplicant process. Results are TEE_Result codes."""

    def __init__(self, store: FileStore, first: int = FIRST_DESCRIPTOR) -> None:
        """``first``: the lowest descriptor that the process has free."""
        self.store = store
        self._first = first
        self._open: dict[int, bytearray] = {}
        self._other: set[int] = set()
        self._directories: dict[int, list[str]] = {}

    @property
    def open_descriptors(self) -> tuple[int, ...]:
        """Descriptors of open files, oldest first."""
        return tuple(self._open)

    def _lowest(self) -> int:
        number = self._first
        while number in self._open or number in self._other:
            number += 1
        return number

    def _descriptor(self, data: bytearray) -> int:
        number = self._lowest()
        self._open[number] = data
        return number

    def reserve(self) -> int:
        """A descriptor that is no file: each shared memory of the process has one."""
        number = self._lowest()
        self._other.add(number)
        return number

    def unreserve(self, number: int) -> None:
        """Close a descriptor that :meth:`reserve` gave."""
        self._other.discard(number)

    def open(self, path: str) -> tuple[int, int]:
        """(result, descriptor) of an existing file."""
        data = self.store.find(path)
        return (NOT_FOUND, 0) if data is None else (OK, self._descriptor(data))

    def create(self, path: str) -> tuple[int, int]:
        """(result, descriptor) of a new or emptied file."""
        return OK, self._descriptor(self.store.create(path))

    def close(self, descriptor: int) -> int:
        """Close a descriptor."""
        return GENERIC if self._open.pop(descriptor, None) is None else OK

    def read(self, descriptor: int, offset: int, size: int) -> bytes | None:
        """Up to ``size`` bytes from ``offset``; None for a bad descriptor."""
        data = self._open.get(descriptor)
        return None if data is None else bytes(data[offset : offset + size])

    def write(self, descriptor: int, offset: int, content: bytes) -> int:
        """Write ``content`` at ``offset``; a hole before it reads as zeros."""
        data = self._open.get(descriptor)
        if data is None or offset + len(content) > MAX_FILE_SIZE:
            return GENERIC
        if offset > len(data):
            data.extend(bytes(offset - len(data)))
        data[offset : offset + len(content)] = content
        return OK

    def truncate(self, descriptor: int, length: int) -> int:
        """Set the length of a file."""
        data = self._open.get(descriptor)
        if data is None or length > MAX_FILE_SIZE:
            return GENERIC
        if length < len(data):
            del data[length:]
        else:
            data.extend(bytes(length - len(data)))
        return OK

    def remove(self, path: str) -> int:
        """Unlink a file."""
        return OK if self.store.remove(path) else NOT_FOUND

    def rename(self, old: str, new: str, overwrite: bool) -> int:
        """Rename a file; an existing target is an error unless ``overwrite``."""
        if not overwrite and self.store.find(new) is not None:
            return tee.TEE_ERROR_ACCESS_CONFLICT
        return OK if self.store.rename(old, new) else NOT_FOUND

    def open_directory(self, path: str) -> tuple[int, int]:
        """(result, handle) of a directory; an empty one counts as missing."""
        names = self.store.entries(path)
        if not names:
            return NOT_FOUND, 0
        handle = 0
        while handle in self._directories:
            handle += 1
        self._directories[handle] = names
        return OK, handle

    def close_directory(self, handle: int) -> int:
        """Close a directory."""
        wrong = self._directories.pop(handle, None) is None
        return tee.TEE_ERROR_BAD_PARAMETERS if wrong else OK

    def next_entry(self, handle: int, room: int) -> tuple[int, bytes, int]:
        """(result, name with its NUL, size needed) of the next entry that fits ``room`` bytes."""
        names = self._directories.get(handle)
        if names is None:
            return tee.TEE_ERROR_BAD_PARAMETERS, b"", 0
        if not names:
            return NOT_FOUND, b"", 0
        name = names[0].encode("latin-1") + b"\0"
        if len(name) > room:
            return tee.TEE_ERROR_SHORT_BUFFER, b"", len(name)
        del names[0]
        return OK, name, len(name)
