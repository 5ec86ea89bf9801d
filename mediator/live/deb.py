# SPDX-License-Identifier: BSD-2-Clause
"""Binary Debian packages, read without any tool: ``ar`` outside, a compressed ``tar`` inside (deb(5)).

Only wanted files are kept, and nothing is written anywhere: names inside a package are data, so a
package cannot place a file outside of where its reader wants it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

_MAGIC: Final = b"!<arch>\n"
_MEMBER: Final = 60
MAX_LINKS: Final = 8
"""Symbolic links that are followed from one name to a file."""


class DebError(ValueError):
    """Not a package that can be read; the message says which and why."""


def members(stream: BinaryIO, name: str) -> Iterator[tuple[str, int]]:
    """Name and size of each ``ar`` member; the stream stands at its contents meanwhile."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise DebError(f"{name}: not an ar archive")
    while True:
        header = stream.read(_MEMBER)
        if not header:
            return
        if len(header) < _MEMBER or header[58:] != b"`\n":
            raise DebError(f"{name}: damaged member header")
        try:
            size = int(header[48:58])
        except ValueError:
            raise DebError(f"{name}: damaged member size") from None
        start = stream.tell()
        yield header[:16].decode("latin-1").rstrip(" /"), size
        stream.seek(start + size + size % 2)


class _Part(io.RawIOBase):
    """A member as a file of its own, forwards only."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # any writable buffer
        data = self._stream.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def extract(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Regular files of the package whose path ("usr/lib/x") is ``wanted``, with their contents.

    A wanted symbolic link gives the file that it leads to, if that is in the package.
    """
    found: dict[str, bytes] = {}
    links: dict[str, str] = {}
    try:
        with path.open("rb") as stream:
            for name, size in members(stream, path.name):
                if not name.startswith("data.tar"):
                    continue
                part = io.BufferedReader(_Part(stream, size), 1 << 16)
                with tarfile.open(fileobj=part, mode="r|*") as archive:
                    _collect(archive, wanted, found, links)
                break
            else:
                raise DebError(f"{path.name}: no data.tar inside")
        _resolve(path, found, links)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DebError(f"{path.name}: {error}") from None
    return found


def _collect(
    archive: tarfile.TarFile,
    wanted: Callable[[str], bool],
    found: dict[str, bytes],
    links: dict[str, str],
) -> None:
    for entry in archive:
        name = entry.name.removeprefix("./")
        if not wanted(name):
            continue
        if entry.isreg():
            file = archive.extractfile(entry)
            found[name] = b"" if file is None else file.read()
        elif entry.issym():
            links[name] = entry.linkname


def _resolve(path: Path, found: dict[str, bytes], links: dict[str, str]) -> None:
    for name, target in links.items():
        at = _join(name, target)
        for _ in range(MAX_LINKS):
            if at not in links:
                break
            at = _join(at, links[at])
        if at not in found:
            (found_late,) = extract(path, at.__eq__).values() or (b"",)
            found[at] = found_late
        found[name] = found[at]


def _join(name: str, target: str) -> str:
    if target.startswith("/"):
        return target.lstrip("/")
    parts = name.split("/")[:-1]
    for step in target.split("/"):
        if step == "..":
            del parts[-1:]
        elif step not in ("", "."):
            parts.append(step)
    return "/".join(parts)
