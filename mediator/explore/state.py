# SPDX-License-Identifier: BSD-2-Clause
"""The whole state of a system as a digest: two systems with the same one go on in the same way.

Everything that can be reached from some objects is walked, suspended coroutines with what lies on
their evaluation stacks included. Objects are named by the order in which they are met, never by
their addresses, so that systems of different runs can be compared. An object of a kind that is
not known is an error (:class:`UnknownState`): nothing is left out by mistake.

Left out on purpose are what a system never reads (:data:`NOT_STATE`): caches, counters for people.
Equality is that of 128-bit BLAKE2b digests.
"""

from __future__ import annotations

import gc
import hashlib
import marshal
import random
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache, partial
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Final, TypeAlias
from uuid import UUID

import numpy as np

from mediator.host import PAGE_SIZE

DIGEST_SIZE: Final = 16

NOT_STATE: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("Watch", "events"): "counted for people",
        ("Watch", "_table"): "who gets which event: made once",
        ("Violation", "number"): "for people",
        ("PhysicalMemory", "views"): "a cache of slices of the banks",
        ("_Arena", "contents"): "the same memory as the banks",
        ("Plans", "_plans"): "a cache of a pure function",
    }
)
"""Attributes that are not compared, by class and name, with the reason."""

_MARSHAL_WITHOUT_REFERENCES: Final = 2
"""From version 3 on the bytes depend on reference counts."""

_HEAP_TYPE: Final = 1 << 9
"""Flag of a class that was made by a ``class`` statement (CPython's Py_TPFLAGS_HEAPTYPE)."""

_ATOMS: Final = frozenset((int, str, bytes, bool, float, complex, type(None), type(Ellipsis)))
_BUFFERS: Final = frozenset((memoryview, bytearray))
_ITERATORS: Final = frozenset(
    map(
        type,
        (
            iter(()),
            iter([]),
            iter({}),
            iter({}.values()),
            iter({}.items()),
            iter(b""),
            iter(""),
            iter(range(0)),
            reversed([]),
        ),
    )
) | {zip, map, enumerate, reversed}
_DESCRIPTORS: Final = frozenset(
    (MethodDescriptorType, WrapperDescriptorType, GetSetDescriptorType, MemberDescriptorType)
)
_SEQUENCES: Final = frozenset((tuple, list))
_SUSPENDED: Final = frozenset((CoroutineType, GeneratorType))

Emit: TypeAlias = Callable[[object], None]


class UnknownState(TypeError):
    """An object whose state cannot be seen."""


def fingerprint(roots: Sequence[object]) -> bytes:
    """A digest of all that can be reached from ``roots``."""
    out: list[object] = []
    _Walk(out.append).walk(tuple(roots))
    words = marshal.dumps(out, _MARSHAL_WITHOUT_REFERENCES)
    return hashlib.blake2b(words, digest_size=DIGEST_SIZE).digest()


@cache
def _slots(kind: type) -> tuple[str, ...]:
    """The slots that are state; :class:`UnknownState` for a kind that shows nothing of its own."""
    names: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__")
        if slots is None:
            if base is not object and not base.__flags__ & _HEAP_TYPE:
                raise UnknownState(f"{kind.__module__}.{kind.__qualname__}")
            continue
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            if name not in ("__weakref__", "__dict__") and (kind.__name__, name) not in NOT_STATE:
                names.append(name)
    return tuple(names)


class _Walk:
    __slots__ = ("_emit", "_seen")

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._seen: dict[int, tuple[int, object]] = {}  # keeps what it names alive

    def walk(self, thing: object) -> None:
        kind = type(thing)
        emit = self._emit
        if kind in _ATOMS:
            emit(thing)
            return
        seen = self._seen
        name = seen.get(id(thing))
        if name is not None:
            emit("&")
            emit(name[0])
            return
        seen[id(thing)] = (len(seen), thing)
        if kind in _SEQUENCES:
            emit(kind.__name__)
            emit(len(thing))  # type: ignore[arg-type]
            for item in thing:  # type: ignore[attr-defined]
                self.walk(item)
        elif kind is dict:
            self._mapping("dict", thing)  # type: ignore[arg-type]
        elif kind in _BUFFERS:
            self._contents(memoryview(thing))  # type: ignore[arg-type]
        elif kind in _SUSPENDED:
            self._suspended(thing)  # type: ignore[arg-type]
        elif not self._special(thing, kind):
            self._object(thing, kind)

    def _mapping(self, name: str, thing: Mapping[object, object]) -> None:
        emit = self._emit
        emit(name)
        emit(len(thing))
        for key, value in thing.items():
            self.walk(key)
            self.walk(value)

    def _contents(self, view: memoryview) -> None:
        """Page by page: nearly all of memory is zero, which is quick to see."""
        emit = self._emit
        data = view.tobytes()
        emit("bytes")
        emit(len(data))
        if len(data) <= DIGEST_SIZE:
            emit(data)
        elif data != bytes(len(data)):
            for start in range(0, len(data), PAGE_SIZE):
                page = data[start : start + PAGE_SIZE]
                if page != bytes(len(page)):
                    emit(start)
                    emit(hashlib.blake2b(page, digest_size=DIGEST_SIZE).digest())

    def _suspended(self, thing: CoroutineType[object, object, object]) -> None:
        """Where it is, and everything that its frame holds: arguments, locals, temporaries.

        What it awaits is one of the temporaries.
        """
        emit = self._emit
        frame = getattr(thing, "cr_frame", None) or getattr(thing, "gi_frame", None)
        emit("suspended")
        emit(thing.__qualname__)
        if frame is None:
            emit("over")
            return
        emit(frame.f_lasti)
        for item in gc.get_referents(thing):
            kind = type(item)
            if (
                kind is FrameType
                or kind is CodeType
                or kind is FunctionType
                or item is thing.__name__
                or item is thing.__qualname__
            ):
                # The code is named above; a closure's cells are among the locals.
                continue
            if kind is dict and "__builtins__" in item:
                continue  # the module
            self.walk(item)

    def _special(self, thing: object, kind: type) -> bool:
        """The kinds of Python itself. False: it is an ordinary object."""
        emit = self._emit
        if isinstance(thing, type | ModuleType):
            emit(
                f"{thing.__module__}.{thing.__qualname__}"
                if isinstance(thing, type)
                else thing.__name__
            )
        elif kind is FunctionType:
            self._function(thing)  # type: ignore[arg-type]
        elif kind is MethodType:
            emit(f"method {thing.__func__.__qualname__}")  # type: ignore[attr-defined]
            self.walk(thing.__self__)  # type: ignore[attr-defined]
        elif kind is BuiltinFunctionType or kind is MethodWrapperType:
            emit(f"builtin {thing.__qualname__}")  # type: ignore[attr-defined]
            owner = thing.__self__  # type: ignore[attr-defined]
            if not isinstance(owner, ModuleType):
                self.walk(owner)
        elif isinstance(thing, Enum):
            emit(f"{kind.__qualname__}.{thing.name}")
        elif kind in _DESCRIPTORS:
            emit(thing.__qualname__)  # type: ignore[attr-defined]
        elif kind is CellType:
            try:
                self.walk(thing.cell_contents)  # type: ignore[attr-defined]
            except ValueError:
                emit("empty cell")
        elif isinstance(thing, dict):
            self._mapping(kind.__qualname__, thing)
            if hasattr(thing, "__dict__"):
                self.walk(vars(thing))
        elif isinstance(thing, tuple | list):
            emit(kind.__qualname__)
            emit(len(thing))
            for item in thing:
                self.walk(item)
        elif isinstance(thing, int):
            emit(kind.__qualname__)
            emit(int(thing))
        elif isinstance(thing, set | frozenset):
            emit("set")
            for digest in sorted([fingerprint((item,)) for item in thing]):
                emit(digest)
        elif isinstance(thing, np.ndarray):
            self._contents(memoryview(thing.tobytes()))
        elif isinstance(thing, np.generic):
            emit(thing.item())
        elif isinstance(thing, array):
            self._contents(memoryview(thing).cast("B"))
        elif kind is MappingProxyType:
            self._mapping("proxy", thing)  # type: ignore[arg-type]
        elif isinstance(thing, random.Random):
            self.walk(thing.getstate())
        elif isinstance(thing, UUID):
            emit(thing.bytes)
        elif isinstance(thing, struct.Struct):
            emit(thing.format)
        elif kind is partial:
            self.walk((thing.func, thing.args, thing.keywords))  # type: ignore[attr-defined]
        elif kind is range:
            self.walk((thing.start, thing.stop, thing.step))  # type: ignore[attr-defined]
        elif kind is object:
            emit("object")
        elif isinstance(thing, BaseException):
            emit(kind.__qualname__)
            self.walk(thing.args)
        elif kind in _ITERATORS:
            emit(kind.__qualname__)
            try:
                self.walk(thing.__reduce__()[1:])
            except RuntimeError:
                emit("its dictionary has changed")  # all that it can do is to fail
        else:
            return False
        return True

    def _function(self, thing: FunctionType) -> None:
        self._emit(f"{thing.__module__}.{thing.__qualname__}")
        for cell in thing.__closure__ or ():
            self.walk(cell)
        self.walk(thing.__defaults__)

    def _object(self, thing: object, kind: type) -> None:
        emit = self._emit
        emit(kind.__qualname__)
        names = _slots(kind)
        for name in names:
            try:
                value = getattr(thing, name)
            except AttributeError:
                emit("unset")
            else:
                self.walk(value)
        attributes = getattr(thing, "__dict__", None)
        if attributes is not None:
            for name in sorted(attributes):
                if (kind.__name__, name) not in NOT_STATE:
                    emit(name)
                    self.walk(attributes[name])
