# SPDX-License-Identifier: BSD-2-Clause
"""Initial RAM file systems: cpio archives in the "newc" format (Linux, ``initramfs.c``).

Everything belongs to root and carries no time: the same files make the same octets.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final

_MAGIC: Final = b"070701"
TRAILER: Final = "TRAILER!!!"
_HEADER_SIZE: Final = 110


class Archive:
    """An archive under construction. Directories above an entry are made when it is added."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        return name.strip("/") in self._names

    def names(self) -> tuple[str, ...]:
        """Paths of all entries without the leading slash, in order."""
        return tuple(self._names)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory; nothing happens if it is there already."""
        if name.strip("/") and name not in self:
            self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file. ``ValueError`` if the name is taken."""
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """A symbolic link to ``target``."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._entry(name, stat.S_IFCHR | mode, b"", (major, minor))

    def _entry(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = name.strip("/")
        if not name or name in self._names or name == TRAILER:
            raise ValueError(f"initramfs: {name!r} is there already or is no name")
        parent = name.rpartition("/")[0]
        if parent:
            self.directory(parent)
        self._names[name] = None
        self._append(name, len(self._names), mode, data, device)

    def _append(
        self, name: str, number: int, mode: int, data: bytes, device: tuple[int, int]
    ) -> None:
        octets = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (
            number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(octets), 0
        )  # fmt: skip
        header = _MAGIC + b"".join([b"%08X" % field for field in fields])
        self._parts.append(header + octets + bytes(-(_HEADER_SIZE + len(octets)) % 4))
        self._parts.append(data + bytes(-len(data) % 4))

    def build(self) -> bytes:
        """The archive; more entries may follow in a later build."""
        size = len(self._parts)
        self._append(TRAILER, 0, 0, b"", (0, 0))
        data = b"".join(self._parts)
        del self._parts[size:]
        return data + bytes(-len(data) % 512)


def entries(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and contents of each entry of an archive; ``ValueError`` if it is none."""
    at = 0
    while True:
        header = data[at : at + _HEADER_SIZE]
        if len(header) < _HEADER_SIZE or header[:6] != _MAGIC:
            raise ValueError(f"no newc entry at offset {at}")
        fields = [int(header[start : start + 8], 16) for start in range(6, _HEADER_SIZE, 8)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[at + _HEADER_SIZE : at + _HEADER_SIZE + length - 1].decode()
        at = at + _HEADER_SIZE + length + 3 & ~3
        if name == TRAILER:
            return
        if at + size > len(data):
            raise ValueError(f"{name!r} is cut off")
        yield name, mode, data[at : at + size]
        at = at + size + 3 & ~3
