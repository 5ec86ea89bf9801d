# SPDX-License-Identifier: BSD-2-Clause
"""Writing a file in Chrome's trace event format (JSON object form), which Perfetto reads, too.

A *track* is a (process, thread) pair of numbers; its slices nest strictly, and here is where that is
ensured. Everything is written as it happens, so a file of any length needs little memory. It appears
under its name only when it is complete.

Format: "Trace Event Format" (catapult project). Used are M (metadata), X (complete slice), i
(instant), C (counter), s, t and f (flow). Times go in as ns and are written as microseconds with
three decimals, so nothing is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Final

EDGE: Final = 1
"""ns that an arrow stays away from the ends of its slice: the viewer binds an arrow to the slice
that is open at its time, and at the ends there may be two or none."""

SHORTEST: Final = 2 * EDGE
"""ns of the shortest slice, so that an arrow fits in."""

WRITE_AT: Final = 1 << 16
"""Characters that are collected before they are written."""


class Track:
    """One line of the picture. ``open``: slices that have begun: (key, name, start, args)."""

    __slots__ = ("last", "open", "pid", "tid")

    def __init__(self, pid: int, tid: int) -> None:
        self.pid = pid
        self.tid = tid
        self.open: list[tuple[str, str, int, str]] = []
        self.last = 0

    def touch(self, time: int) -> int:
        """A time near ``time`` inside the innermost open slice, which will not end before it."""
        start = self.open[-1][2] if self.open else 0
        at = max(time - EDGE, start + EDGE)
        self.last = max(self.last, at + EDGE)
        return at


def args(**values: int | str) -> str:
    """The arguments of a slice, as JSON without the braces."""
    return json.dumps(values)[1:-1]


class TraceFile:
    """A trace file being written; a context manager.

    A run that fails by an exception leaves its trace, which tells why, once it has begun
    (``begun``); one that is broken off (KeyboardInterrupt) leaves none. ``OSError`` if the file
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        """Events written."""
        self.begun = False
        self._pending: list[str] = []
        self._size = 0
        self._tracks: dict[tuple[int, int], Track] = {}
        self._file: IO[str] | None = None
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._latest = 0

    def __enter__(self) -> TraceFile:
        self._file = self._part.open("w", encoding="utf-8", newline="\n")
        self._file.write('{"displayTimeUnit":"ns","traceEvents":[')
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            if kind is None or (self.begun and issubclass(kind, Exception)):
                self._finish()
                self._file.close()
                os.replace(self._part, self.path)
        finally:
            self._file.close()
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        """End what is still open, and the file."""
        for track in self._tracks.values():
            while track.open:
                self._pop(track, self._latest, "")
        self._pending.append("\n]}\n")
        self._flush()

    def _write(self, text: str) -> None:
        self._pending.append(",\n" if self.written else "\n")
        self._pending.append(text)
        self.written += 1
        self._size += len(text)
        if self._size >= WRITE_AT:
            self._flush()

    def _flush(self) -> None:
        if self._file is not None:
            self._file.write("".join(self._pending))
        self._pending.clear()
        self._size = 0

    # Names

    def process(self, pid: int, name: str) -> None:
        """Name a process; processes are shown in the order of their numbers."""
        self._name(pid, 0, "process", name, pid)

    def track(self, pid: int, tid: int, name: str) -> Track:
        """The track (pid, tid), named at its first use; shown in the order of the numbers."""
        track = self._tracks.get((pid, tid))
        if track is None:
            track = self._tracks[pid, tid] = Track(pid, tid)
            self._name(pid, tid, "thread", name, tid)
        return track

    def _name(self, pid: int, tid: int, what: str, name: str, order: int) -> None:
        start = f'{{"ph":"M","pid":{pid},"tid":{tid},"name":"{what}_'
        self._write(f'{start}name","args":{{{args(name=name)}}}}}')
        self._write(f'{start}sort_index","args":{{{args(sort_index=order)}}}}}')

    # Slices

    def begin(self, track: Track, key: str, name: str, time: int, args: str = "") -> None:
        """A slice begins; ``key`` is for :meth:`end`."""
        around = track.open[-1][2] if track.open else 0
        track.open.append((key, name, max(time, track.last, around), args))

    def end(self, track: Track, key: str, time: int, args: str = "") -> None:
        """The innermost slice with this key ends, and what is open inside it. No such slice: no effect."""
        if any(slice_[0] == key for slice_ in track.open):
            while self._pop(track, time, args if track.open[-1][0] == key else "") != key:
                pass

    def end_all(self, track: Track, time: int) -> None:
        """All slices of a track end."""
        while track.open:
            self._pop(track, time, "")

    def _pop(self, track: Track, time: int, more: str) -> str:
        key, name, start, before = track.open.pop()
        end = max(time, start + SHORTEST, track.last)
        self._slice(track, name, start, end, ",".join([part for part in (before, more) if part]))
        return key

    def moment(self, track: Track, name: str, time: int, length: int) -> int:
        """A slice of ``length`` ns for something that takes no time; a time inside it.

        Ends at ``time``, or a little later where the track is in use.
        """
        start = max(time - length, track.last, track.open[-1][2] if track.open else 0)
        self._slice(track, name, start, start + length, "")
        return start + EDGE

    def cell(self, track: Track, name: str, time: int, length: int) -> int:
        """The same on a track that has nothing else, where times may go back: moments that would
        overlap lie in the same cell of ``length`` ns, one inside the other."""
        start = time - time % length
        last = track.last
        self._slice(track, name, start, start + length, "")
        track.last = last
        return start + EDGE

    def _slice(self, track: Track, name: str, start: int, end: int, args: str) -> None:
        track.last = end
        self._latest = max(self._latest, end)
        self._write(
            f'{{"ph":"X","pid":{track.pid},"tid":{track.tid},"ts":{_us(start)},'
            f'"dur":{_us(end - start)},"name":{json.dumps(name)},"args":{{{args}}}}}'
        )

    # Everything else

    def instant(self, track: Track, name: str, time: int, args: str = "") -> None:
        """Something happened on a track."""
        self._write(
            f'{{"ph":"i","s":"t","pid":{track.pid},"tid":{track.tid},"ts":{_us(time)},'
            f'"name":{json.dumps(name)},"args":{{{args}}}}}'
        )

    def counter(self, pid: int, name: str, time: int, value: int) -> None:
        """A number of a process has this value from now on."""
        self._write(
            f'{{"ph":"C","pid":{pid},"tid":0,"ts":{_us(time)},"name":{json.dumps(name)},'
            f'"args":{{"value":{value}}}}}'
        )

    def arrow(self, phase: str, flow: int, track: Track, time: int, kind: str) -> None:
        """A point of arrow ``flow``: "s" starts it, "t" leads it on, "f" ends it, each at the slice
        that encloses ``time`` on the track."""
        bind = "" if phase == "s" else ',"bp":"e"'
        self._write(
            f'{{"ph":"{phase}","id":{flow},"cat":"{kind}","name":"{kind}","pid":{track.pid},'
            f'"tid":{track.tid},"ts":{_us(time)}{bind}}}'
        )


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"
