# SPDX-License-Identifier: BSD-2-Clause
"""Messages to and from an app: one out, and back what it has to say, checked before it is used.

The app is not trusted. A header that does not fit, a payload beyond the limit, silence, a closed
channel: each raises :class:`AppGone`, and whoever catches it ends the process.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, NamedTuple, Protocol

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER, HEADER_SIZE, SYSCALL

CHUNK: Final = 1 << 16
"""Bytes read at once: most turns are far shorter."""

_unpack = HEADER.unpack_from
_TIMEVAL: Final = struct.Struct("@ll")


class AppGone(Exception):
    """The app cannot be talked to any more; the message says why."""


class Message(NamedTuple):
    """A SYSCALL of an app, its header checked."""

    number: int
    flags: int
    entry: int
    status: int
    args: tuple[int, ...]
    payload: bytes


class Link(Protocol):
    """A way to an app. Whoever speaks waits for the answer: there is nothing to be polled."""

    def exchange(self, message: bytes) -> list[Message]:
        """Send an ENTRY or RESULT; the app's turn, in order: posted calls, then one that is not.

        Raises :class:`AppGone`.
        """

    def close(self) -> None:
        """No more words; may be called twice."""


def checked(header: tuple[int, ...], payload: bytes) -> Message:
    """A message of the app after HELLO. Raises :class:`AppGone` for what no app may send."""
    kind, number, flags, entry, _, status, *words = header
    if kind != SYSCALL:
        raise AppGone(f"protocol: a message of kind {kind} instead of a system call")
    if flags & ~abi.FLAG_POSTED:
        raise AppGone(f"protocol: flags {flags:#x}")
    if words[8]:
        raise AppGone(f"protocol: the reserved word is {words[8]:#x}")
    return Message(number, flags, entry, status, tuple(words[:8]), payload)


class SocketLink:
    """A :class:`Link` over one end of a socket pair. ``silence_ms``: real time to wait for a turn."""

    __slots__ = ("_fd", "_socket", "silence_ms")

    def __init__(self, end: socket.socket, silence_ms: int) -> None:
        self._socket = end
        self._fd = end.fileno()
        self.silence_ms = silence_ms
        # By the kernel: Python's own timeout would poll before every read.
        limit = _TIMEVAL.pack(silence_ms // 1000, silence_ms % 1000 * 1000)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def close(self) -> None:
        """See :class:`Link`."""
        self._socket.close()
        self._fd = -1

    def hello(self) -> tuple[tuple[int, ...], bytes]:
        """The app's first message, unchecked but for its length: header and payload."""
        data = self._receive(b"", HEADER_SIZE)
        header = _unpack(data)
        return header, self._receive(data, HEADER_SIZE + self._length(header, 0))[HEADER_SIZE:]

    def send(self, message: bytes) -> None:
        """Say something that has no answer: WELCOME. Raises :class:`AppGone`."""
        try:
            sent = os.write(self._fd, message)
            while sent < len(message):
                sent += os.write(self._fd, memoryview(message)[sent:])
        except BlockingIOError:
            raise AppGone(f"silence: it has not listened for {self.silence_ms} ms") from None
        except OSError as error:
            raise AppGone(f"closed: {error.strerror}") from None

    def exchange(self, message: bytes) -> list[Message]:
        """See :class:`Link`."""
        try:
            sent = os.write(self._fd, message)
            if sent != len(message):
                self.send(message[sent:])
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            raise AppGone(f"silence: nothing for {self.silence_ms} ms") from None
        except OSError as error:
            raise AppGone(f"closed: {error.strerror}") from None
        if len(data) >= HEADER_SIZE:
            header = _unpack(data)
            if (
                header[0] == SYSCALL
                and not header[2]
                and not header[14]
                and header[4] == len(data) - HEADER_SIZE
            ):
                # A turn of one message that came as a whole: nearly all of them.
                only = Message(header[1], 0, header[3], header[5], header[6:14], data[HEADER_SIZE:])
                return [only]
        return self._turn(data)

    def _turn(self, data: bytes) -> list[Message]:
        """Cut a turn into messages, reading what is missing."""
        if not data:
            raise AppGone("closed: the app has ended")
        messages: list[Message] = []
        at = 0
        while True:
            if len(data) - at < HEADER_SIZE:
                data, at = self._receive(data[at:], HEADER_SIZE), 0
            header = _unpack(data, at)
            end = at + HEADER_SIZE + self._length(header, len(messages))
            if len(data) < end:
                data, end = self._receive(data[at:], end - at), end - at
                at = 0
            message = checked(header, data[at + HEADER_SIZE : end])
            messages.append(message)
            at = end
            if not message.flags:
                break
        if at != len(data):
            raise AppGone("protocol: the app spoke out of turn")
        return messages

    def _length(self, header: tuple[int, ...], before: int) -> int:
        if header[4] > abi.MAX_PAYLOAD:
            raise AppGone(f"protocol: a payload of {header[4]} bytes")
        if before >= abi.MAX_POSTED:
            raise AppGone(f"protocol: more than {abi.MAX_POSTED} posted messages")
        return header[4]

    def _receive(self, data: bytes, length: int) -> bytes:
        """``data`` and more up to at least ``length`` bytes."""
        if len(data) >= length:
            return data
        try:
            if length < CHUNK:
                while len(data) < length:
                    more = os.read(self._fd, CHUNK)
                    if not more:
                        raise AppGone("closed: the app has ended")
                    data += more
                return data
            whole = bytearray(length)
            whole[: len(data)] = data
            view, at = memoryview(whole), len(data)
            while at < length:
                count = os.readv(self._fd, [view[at:]])
                if not count:
                    raise AppGone("closed: the app has ended")
                at += count
            return bytes(whole)
        except BlockingIOError:
            raise AppGone(f"silence: nothing for {self.silence_ms} ms") from None
        except OSError as error:
            raise AppGone(f"closed: {error.strerror}") from None
