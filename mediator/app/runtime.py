# SPDX-License-Identifier: BSD-2-Clause
"""The message loop of an app: one message in, one turn, messages out.

An app is silent until it is spoken to. Each entry is a coroutine that runs until its next system
call; while that is open the hypervisor may enter again (:class:`App` says whether it may). Nothing
here waits for anything but the channel.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import struct
import traceback
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

from mediator.app import isolation
from mediator.app.calls import AppSyscalls, HostFailure
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER, HEADER_SIZE, SYSCALL
from mediator.optee.syscalls import Syscall

SOURCE: Final = 0
"""File descriptor that the hypervisor is heard on (``specs/app_abi``, transport)."""
SINK: Final = 1
"""File descriptor to speak on."""
ARENA: Final = 2
"""File descriptor of the arena, until it is mapped."""

CHUNK: Final = 1 << 16
"""Bytes read at once: most messages are far shorter."""

_HEAD: Final = struct.Struct("<HHIII")
_TRACE: Final = int(Syscall.TRACE)
_pack = HEADER.pack


class App(Protocol):
    """What the runtime runs. ``name`` and ``capabilities`` go into HELLO."""

    name: str
    capabilities: int

    def welcome(self, talk: Conversation, offers: int, settings: dict[str, object]) -> None:
        """The hypervisor has accepted the app; before the first entry."""

    def enter(self, sys: AppSyscalls, number: int, message: bytes) -> Entry:
        """Serve one ENTRY: a coroutine that returns what :func:`returned` makes."""


Entry = Coroutine[bytes, bytes, bytes]


def returned(outcome: int, args: tuple[int, ...] = (), payload: bytes = b"") -> bytes:
    """The RETURN of an entry; the runtime writes the name of the entry into it."""
    words = args + (0,) * (8 - len(args))
    return _pack(SYSCALL, 0, 0, 0, len(payload), outcome, *words, 0) + payload


def arguments(message: bytes) -> tuple[int, ...]:
    """The eight arguments of an ENTRY."""
    return HEADER.unpack_from(message)[6:14]


class Conversation:
    """One app and its open entries. ``posted``: messages that go out with the next one."""

    __slots__ = ("_app", "_current", "_entries", "arena", "offsets", "posted", "posting")

    def __init__(self, app: App, arena: memoryview) -> None:
        self._app = app
        self._entries: dict[int, Entry] = {}
        self._current = 0
        self.arena = arena
        self.offsets: dict[int, int] = {}
        """Where shadows lie in the arena, by address of the first page."""
        self.posted: list[bytes] = []
        self.posting = False

    def hello(self) -> bytes:
        """The first message."""
        name = self._app.name.encode()
        words = (abi.MAJOR, abi.MINOR, self._app.capabilities, 0, 0, 0, 0, 0)
        return _pack(abi.HELLO, 0, 0, 0, len(name), 0, *words, 0) + name

    def welcome(self, message: bytes) -> bool:
        """The answer to it; False: the app is refused."""
        if HEADER.unpack_from(message)[5]:
            return False
        offers = arguments(message)[2]
        self.posting = bool(offers & abi.OFFER_POSTING)
        self._app.welcome(self, offers, json.loads(message[HEADER_SIZE:]))
        return True

    def turn(self, message: bytes) -> bytes:
        """Everything that the app says to an ENTRY or a RESULT."""
        kind, number, _, entry, _ = _HEAD.unpack_from(message)
        self._current = entry
        try:
            if kind == abi.RESULT:
                out = self._entries[entry].send(message)
            else:
                steps = self._app.enter(AppSyscalls(entry, self), number, message)
                self._entries[entry] = steps
                out = steps.send(None)  # type: ignore[arg-type]  # a fresh coroutine takes nothing
        except StopIteration as stop:
            del self._entries[entry]
            out = stop.value
            if out[_ENTRY_AT:_ENTRY_END] != message[_ENTRY_AT:_ENTRY_END]:
                out = _named(out, entry)
        except HostFailure:
            del self._entries[entry]
            out = _named(returned(abi.OUTCOME_FAILED), entry)
        if self.posted:
            self.posted.append(out)
            out = b"".join(self.posted)
            self.posted.clear()
        return out

    def trace(self, event: tuple[object, ...]) -> None:
        """An event for the hypervisor's recorder. Always posted."""
        payload = json.dumps([type(event).__name__, *event], separators=(",", ":")).encode()
        head = (SYSCALL, _TRACE, abi.FLAG_POSTED, self._current, len(payload), 0)
        self.posted.append(_pack(*head, 0, 0, 0, 0, 0, 0, 0, 0, 0) + payload)

    def panic(self, message: bytes, error: BaseException) -> bytes:
        """What the app says when it cannot go on."""
        _, _, _, entry, _ = _HEAD.unpack_from(message)
        lines = traceback.format_exception_only(error) + traceback.format_tb(error.__traceback__)
        text = "".join(lines).encode()[: abi.MAX_LOG]
        number = int(Syscall.PANIC)
        return _pack(SYSCALL, number, 0, entry, len(text), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) + text


_ENTRY_AT: Final = 8
_ENTRY_END: Final = 12
_ENTRY: Final = struct.Struct("<I")


def _named(message: bytes, entry: int) -> bytes:
    return message[:_ENTRY_AT] + _ENTRY.pack(entry) + message[_ENTRY_END:]


def _receive(chunk: int = CHUNK) -> bytes:
    """The next message, empty at the end. Exactly one: the hypervisor waits for its answer.

    ``chunk``: bytes read at first. WELCOME has no answer: what follows it must not be read with it.
    """
    data = os.read(SOURCE, chunk)
    while 0 < len(data) < HEADER_SIZE:
        more = os.read(SOURCE, HEADER_SIZE - len(data))
        if not more:
            return b""
        data += more
    if not data:
        return data
    total = HEADER_SIZE + _HEAD.unpack_from(data)[4]
    if len(data) == total:
        return data
    whole = bytearray(total)
    whole[: len(data)] = data
    at, view = len(data), memoryview(whole)
    while at < total:
        count = os.readv(SOURCE, [view[at:]])
        if not count:
            return b""
        at += count
    return bytes(whole)


def _send(data: bytes) -> None:
    sent = os.write(SINK, data)
    while sent < len(data):
        sent += os.write(SINK, memoryview(data)[sent:])


def serve(make: Callable[[], App]) -> None:
    """Run an app on descriptors 0 to 2 until the hypervisor ends it. Never returns an error:
    what goes wrong is said over the channel."""
    app = make()
    arena = memoryview(mmap.mmap(ARENA, 0))
    isolation.keep_memory()
    isolation.isolate()
    # What is there now stays: no collection need look at it again.
    gc.freeze()
    gc.enable()
    talk = Conversation(app, arena)
    _send(talk.hello())
    message = _receive(HEADER_SIZE)
    try:
        if message and talk.welcome(message):
            while message := _receive():
                _send(talk.turn(message))
    except Exception as error:
        _send(talk.panic(message, error))
