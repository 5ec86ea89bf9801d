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
from mediator.deployment.app_abi import HEADER, HEADER_SIZE, SYSCALL

CHUNK: Final = 1 << 16
"""Bytes read at once: most turns are far shorter."""

_unpack = HEADER.unpack_from


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
        # An app that does not read must not stop its hypervisor.
        os.set_blocking(sink, False)
        # A pipe has no timeout of its own; to wait here and then read costs no more than to wait in
        # the read.
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
        self._until = 0.0
        data = self.more(b"", HEADER_SIZE)
        header = _unpack(data)
        return header, self.more(data, HEADER_SIZE + _length(header, 0))[HEADER_SIZE:]

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
        if not self._wait(self.silence_ms):
            raise AppGone(f"silence: nothing for {self.silence_ms} ms")
        data = os.read(self._fd_in, CHUNK)
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
        if len(data) - at < HEADER_SIZE:
            data, at = more(data[at:], HEADER_SIZE), 0
        header = _unpack(data, at)
        end = at + HEADER_SIZE + _length(header, len(messages))
        if len(data) < end:
            data, end = more(data[at:], end - at), end - at
            at = 0
        message = checked(header, data[at + HEADER_SIZE : end])
        messages.append(message)
        at = end
        if not message.flags:
            break
    if at != len(data):
        raise AppGone("protocol: the app spoke out of turn")
    return messages


def _length(header: tuple[int, ...], before: int) -> int:
    if header[4] > abi.MAX_PAYLOAD:
        raise AppGone(f"protocol: a payload of {header[4]} bytes")
    if before >= abi.MAX_POSTED:
        raise AppGone(f"protocol: more than {abi.MAX_POSTED} posted messages")
    return header[4]
