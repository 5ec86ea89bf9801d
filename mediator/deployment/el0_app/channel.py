# SPDX-License-Identifier: BSD-2-Clause
"""Messages to and from an app: one out, and back what it has to say, checked before it is used.

The app is not trusted. A header that does not fit, a payload beyond the limit, silence, a closed
channel: each raises :class:`AppGone`, and whoever catches it ends the process.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import FLAG_POSTED, HEADER, HEADER_SIZE, SYSCALL

CHUNK: Final = 1 << 16
"""Bytes read at once: most turns are far shorter."""

START_PATIENCE: Final = 6
"""Silences that an app may take until HELLO: a program is loaded meanwhile, on a machine that is busy."""

_unpack = HEADER.unpack_from
_message = tuple.__new__


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


class PipeLink:
    """A :class:`Link` over two pipes. ``silence_ms``: real time to wait for the app.

    ``source`` is read, ``sink`` is written; both are closed with the link.
    """

    __slots__ = ("_fd_in", "_fd_out", "_until", "_wait", "silence_ms")

    def __init__(self, source: int, sink: int, silence_ms: int) -> None:
        self._fd_in = source
        self._fd_out = sink
        self.silence_ms = silence_ms
        self._until = 0.0
        # Neither an app that does not read nor one that does not speak may stop its hypervisor.
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        readable = select.poll()
        readable.register(source, select.POLLIN)
        self._wait = readable.poll

    def close(self) -> None:
        """See :class:`Link`."""
        for fd in (self._fd_in, self._fd_out):
            if fd >= 0:
                os.close(fd)
        self._fd_in = self._fd_out = -1

    def pipes(self) -> tuple[str, str]:
        """The app's descriptors 0 and 1, as ``/proc/<pid>/fd`` names them."""
        there, back = [f"pipe:[{os.fstat(fd).st_ino}]" for fd in (self._fd_out, self._fd_in)]
        return there, back

    def hello(self) -> tuple[tuple[int, ...], bytes]:
        """The app's first message, unchecked but for its length: header and payload."""
        self._until = time.monotonic() + START_PATIENCE * self.silence_ms / 1000
        data = self.more(b"", HEADER_SIZE)
        header = _unpack(data)
        return header, self.more(data, HEADER_SIZE + _length(header))[HEADER_SIZE:]

    def send(self, message: bytes) -> None:
        """Say something that has no answer: WELCOME. Raises :class:`AppGone`."""
        until = self._deadline()
        rest = memoryview(message)
        while rest:
            try:
                rest = rest[os.write(self._fd_out, rest) :]
            except BlockingIOError:
                writable = select.poll()
                writable.register(self._fd_out, select.POLLOUT)
                left = until - time.monotonic()
                if left <= 0 or not writable.poll(int(left * 1000) + 1):
                    reason = f"silence: it has not listened for {self.silence_ms} ms"
                    raise AppGone(reason) from None
            except OSError as error:
                raise AppGone(f"closed: {error.strerror}") from None

    def exchange(self, message: bytes) -> list[Message]:
        """See :class:`Link`."""
        try:
            sent = os.write(self._fd_out, message)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise AppGone(f"closed: {error.strerror}") from None
        if sent != len(message):
            self.send(message[sent:])
        try:
            # On one processor the app has nearly always answered when the write returns.
            data = os.read(self._fd_in, CHUNK)
        except BlockingIOError:
            if not self._wait(self.silence_ms):
                raise AppGone(f"silence: nothing for {self.silence_ms} ms") from None
            data = os.read(self._fd_in, CHUNK)
        self._until = 0.0
        return cut(data, self.more)

    def more(self, data: bytes, length: int) -> bytes:
        """``data`` and what follows, up to at least ``length`` bytes.

        An app that says a turn byte by byte has no more time for it than one that is silent.
        """
        if not self._until:
            self._until = self._deadline()
        whole: bytearray | None = None
        at = len(data)
        while at < length:
            left = self._until - time.monotonic()
            if left <= 0 or not self._wait(int(left * 1000) + 1):
                raise AppGone(f"silence: not a whole turn for {self.silence_ms} ms")
            if length < CHUNK:
                more = os.read(self._fd_in, CHUNK)
                data += more
                count = len(more)
            else:
                if whole is None:
                    whole = bytearray(length)
                    whole[:at] = data
                count = os.readv(self._fd_in, [memoryview(whole)[at:]])
            if not count:
                raise AppGone("closed: the app has ended")
            at += count
        return data if whole is None else bytes(whole)

    def _deadline(self) -> float:
        return time.monotonic() + self.silence_ms / 1000


def cut(data: bytes, more: Callable[[bytes, int], bytes]) -> list[Message]:
    """The messages of a turn that begins with ``data``; ``more``: see :meth:`PipeLink.more`."""
    if not data:
        raise AppGone("closed: the app has ended")
    messages: list[Message] = []
    at = 0
    while True:
        body = at + HEADER_SIZE
        if len(data) < body:
            data, at, body = more(data[at:], HEADER_SIZE), 0, HEADER_SIZE
        header = _unpack(data, at)
        flags = header[2]
        end = body + header[4]
        if len(data) < end or header[0] != SYSCALL or flags > FLAG_POSTED or header[14]:
            length = _checked(header)
            data, body = more(data[at:], HEADER_SIZE + length), HEADER_SIZE
            end = HEADER_SIZE + length
        messages.append(
            _message(
                Message,
                (header[1], flags, header[3], header[5], header[6:14], data[body:end]),
            )
        )
        at = end
        if not flags:
            break
        if len(messages) > abi.MAX_POSTED:
            raise AppGone(f"protocol: more than {abi.MAX_POSTED} posted messages")
    if at != len(data):
        raise AppGone("protocol: the app spoke out of turn")
    return messages


def _checked(header: tuple[int, ...]) -> int:
    """The length of the payload. Raises :class:`AppGone` for what no app may send after HELLO."""
    kind, _, flags, *_, reserved = header
    if kind != SYSCALL:
        raise AppGone(f"protocol: a message of kind {kind} instead of a system call")
    if flags & ~FLAG_POSTED:
        raise AppGone(f"protocol: flags {flags:#x}")
    if reserved:
        raise AppGone(f"protocol: the reserved word is {reserved:#x}")
    return _length(header)


def _length(header: tuple[int, ...]) -> int:
    if header[4] > abi.MAX_PAYLOAD:
        raise AppGone(f"protocol: a payload of {header[4]} bytes")
    return header[4]
