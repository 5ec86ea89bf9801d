# SPDX-License-Identifier: BSD-2-Clause
"""Flattened device trees, read and written: the subset that the boot of a virtual board needs.

Format: Devicetree Specification 0.4, chapter 5 (version 17, compatible with 16). Properties keep their
order and bytes; node names are unique in their parent. Memory reservations are kept.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

MAGIC: Final = 0xD00DFEED
VERSION: Final = 17
COMPATIBLE: Final = 16
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_HEADER: Final = struct.Struct(">10I")
_WORD: Final = struct.Struct(">I")
_PAIR: Final = struct.Struct(">II")
_RESERVATION: Final = struct.Struct(">QQ")
MAX_DEPTH: Final = 64
"""Nesting that is read; a real board has fewer than ten levels."""


class FdtError(ValueError):
    """Not a device tree that this reader understands; the message says where and why."""


@attrs.define
class Node:
    """A node: properties (raw octets) and children, both in order."""

    properties: dict[str, bytes] = attrs.Factory(dict)
    children: dict[str, Node] = attrs.Factory(dict)

    def at(self, path: str, *, make: bool = False) -> Node:
        """The node at ``path`` ("a/b", "" is this one). ``KeyError`` unless it exists or ``make``."""
        node = self
        for name in filter(None, path.split("/")):
            child = node.children.get(name)
            if child is None:
                if not make:
                    raise KeyError(path)
                child = node.children[name] = Node()
            node = child
        return node

    def set_text(self, name: str, *texts: str) -> None:
        """A property of NUL-terminated strings."""
        self.properties[name] = b"".join([text.encode() + b"\0" for text in texts])

    def set_cells(self, name: str, *cells: int) -> None:
        """A property of 32-bit cells."""
        self.properties[name] = struct.pack(f">{len(cells)}I", *cells)

    def set_words(self, name: str, *words: int) -> None:
        """A property of 64-bit words (two cells each)."""
        self.properties[name] = struct.pack(f">{len(words)}Q", *words)

    def text(self, name: str) -> str:
        """The first string of a property; ``KeyError`` if there is none."""
        return self.properties[name].split(b"\0", 1)[0].decode("utf-8", "replace")


@attrs.define
class Tree:
    """A device tree: its root, its reserved memory (address, size), the CPU that boots."""

    root: Node = attrs.Factory(Node)
    reservations: list[tuple[int, int]] = attrs.Factory(list)
    boot_cpu: int = 0


def parse(data: bytes) -> Tree:
    """Read a flattened device tree; :class:`FdtError` for anything else."""
    try:
        return _parse(data)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, FdtError):
            raise
        raise FdtError(f"damaged device tree: {error}") from None


def _parse(data: bytes) -> Tree:
    if len(data) < _HEADER.size or _WORD.unpack_from(data)[0] != MAGIC:
        raise FdtError("no device tree: the magic number is missing")
    _, total, structure, strings, reserved, version, compatible, cpu, _, _ = _HEADER.unpack_from(
        data
    )
    if compatible > VERSION or version < COMPATIBLE:
        raise FdtError(f"device tree version {version}, compatible with {compatible}")
    if total > len(data):
        raise FdtError(f"device tree of {total} bytes is cut off at {len(data)}")
    tree = Tree(boot_cpu=cpu)
    while True:
        address, size = _RESERVATION.unpack_from(data, reserved)
        reserved += _RESERVATION.size
        if not address and not size:
            break
        tree.reservations.append((address, size))
    stack: list[Node] = []
    at = structure
    while True:
        (token,) = _WORD.unpack_from(data, at)
        at += 4
        if token == _BEGIN_NODE:
            end = data.index(b"\0", at)
            name = data[at:end].decode()
            at = end + 4 & ~3
            if len(stack) >= MAX_DEPTH:
                raise FdtError(f"more than {MAX_DEPTH} levels of nodes")
            if stack:
                stack.append(stack[-1].children.setdefault(name, Node()))
            else:
                stack.append(tree.root)
        elif token == _END_NODE:
            if not stack:
                raise FdtError(f"a node ends at {at - 4:#x} that never began")
            stack.pop()
        elif token == _PROP:
            length, offset = _PAIR.unpack_from(data, at)
            at += 8
            start = strings + offset
            name = data[start : data.index(b"\0", start)].decode()
            if not stack or at + length > len(data):
                raise FdtError(f"property {name!r} at {at:#x} has no node or no end")
            stack[-1].properties[name] = data[at : at + length]
            at = at + length + 3 & ~3
        elif token == _END:
            if stack:
                raise FdtError(f"the tree ends inside {len(stack)} nodes")
            return tree
        elif token != _NOP:
            raise FdtError(f"unknown token {token:#x} at {at - 4:#x}")


def build(tree: Tree) -> bytes:
    """The flattened form."""
    strings = bytearray()
    known: dict[str, int] = {}
    body = bytearray()

    def offset_of(name: str) -> int:
        offset = known.get(name)
        if offset is None:
            offset = known[name] = len(strings)
            strings.extend(name.encode() + b"\0")
        return offset

    def pad() -> None:
        body.extend(bytes(-len(body) % 4))

    def write(name: str, node: Node) -> None:
        body.extend(_WORD.pack(_BEGIN_NODE) + name.encode() + b"\0")
        pad()
        for key, value in node.properties.items():
            body.extend(_WORD.pack(_PROP) + _PAIR.pack(len(value), offset_of(key)) + value)
            pad()
        for key, child in node.children.items():
            write(key, child)
        body.extend(_WORD.pack(_END_NODE))

    write("", tree.root)
    body.extend(_WORD.pack(_END))
    reserved = b"".join([_RESERVATION.pack(*pair) for pair in (*tree.reservations, (0, 0))])
    first = _HEADER.size
    structure = first + len(reserved)
    text = structure + len(body)
    header = _HEADER.pack(
        MAGIC,
        text + len(strings),
        structure,
        text,
        first,
        VERSION,
        COMPATIBLE,
        tree.boot_cpu,
        len(strings),
        len(body),
    )
    return bytes(header + reserved + body + strings)
