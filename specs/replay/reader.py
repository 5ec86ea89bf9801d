# SPDX-License-Identifier: BSD-2-Clause
"""Reading a trace: one JSON object per line, plain or gzip, streamed and checked line by line.

Everything that the format promises is checked here, so that the replay can rely on it: field types
and sizes, event numbers without a gap, and that every return answers the open call of its CPU.
A field that the format does not know is counted in :attr:`TraceReader.unknown`, never an error.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, cast

import attrs

from smccc import wire
from specs.replay.records import (
    FORMAT,
    MAX_BUFFER_BYTES,
    MAX_DUMPED_PARAMS,
    MESSAGE_OWNER,
    RPC_OWNER,
    VERSION,
    BufferContent,
    Call,
    Content,
    ListPage,
    Marker,
    Meta,
    Record,
    Return,
    SecureInterrupt,
    TraceError,
)

GZIP_MAGIC: Final = b"\x1f\x8b"
LIST_ENTRIES: Final = 511
MAX_LINE: Final = 64 << 20
"""Bytes of one line; a list of 1 GiB takes about 6 MB, so a longer line is not a trace."""

_EVENT_FIELDS: Final = frozenset(
    [
        "seq",
        "cpu",
        "t_us",
        "dir",
        "of",
        "name",
        "regs",
        "msg_pa",
        "msg",
        "rpc_arg_pa",
        "rpc_arg",
        "page_list",
        "bufs",
    ]
)
_DIRECTIONS: Final = ("call", "return", "sec_irq_enter", "sec_irq_exit")
_U32: Final = 0xFFFF_FFFF
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF


class _FieldError(Exception):
    """A field is wrong; becomes a :class:`TraceError` with file and line."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def _kind(value: object) -> str:
    """How JSON calls the type of ``value``, for messages to people."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _integer(record: dict[str, object], field: str, limit: int) -> int:
    value = record.get(field)
    if field not in record:
        raise _FieldError(field, "is missing")
    if type(value) is not int:
        raise _FieldError(field, f"must be a whole number, not {_kind(value)}")
    if not 0 <= value <= limit:
        raise _FieldError(field, f"{value} is not in 0..{limit}")
    return value


def _hex_number(value: object, field: str) -> int:
    if type(value) is not str:
        raise _FieldError(field, f"must be a hexadecimal string, not {_kind(value)}")
    digits = value[2:]
    # int() alone would also take signs, blanks and underscores.
    if value[:2] != "0x" or not digits.isalnum() or not digits.isascii():
        raise _FieldError(field, f"{value[:40]!r} is not a hexadecimal number like 0x1f")
    try:
        number = int(digits, 16)
    except ValueError:
        raise _FieldError(field, f"{value[:40]!r} is not a hexadecimal number like 0x1f") from None
    if number > _U64:
        raise _FieldError(field, f"{value[:40]} does not fit 64 bits")
    return number


def _hex_bytes(value: object, field: str) -> bytes:
    if type(value) is not str:
        raise _FieldError(field, f"must be a string of hexadecimal bytes, not {_kind(value)}")
    try:
        data = bytes.fromhex(value)
    except ValueError:
        raise _FieldError(field, "is not a string of hexadecimal bytes") from None
    if len(data) * 2 != len(value):
        raise _FieldError(field, "contains blanks between its bytes")
    return data


def _text(record: dict[str, object], field: str) -> str:
    if field not in record:
        raise _FieldError(field, "is missing")
    value = record[field]
    if type(value) is not str:
        raise _FieldError(field, f"must be a string, not {_kind(value)}")
    return value


def _list(value: object, field: str) -> list[object]:
    if type(value) is not list:
        raise _FieldError(field, f"must be a list, not {_kind(value)}")
    return cast("list[object]", value)


def _object(value: object, field: str) -> dict[str, object]:
    if type(value) is not dict:
        raise _FieldError(field, f"must be an object, not {_kind(value)}")
    return cast("dict[str, object]", value)


def _regs(record: dict[str, object]) -> tuple[int, ...]:
    if "regs" not in record:
        raise _FieldError("regs", "is missing")
    values = _list(record["regs"], "regs")
    if len(values) != 8:
        raise _FieldError("regs", f"has {len(values)} registers instead of 8")
    return tuple([_hex_number(value, f"regs[{i}]") for i, value in enumerate(values)])


def _content(record: dict[str, object], field: str) -> Content | None:
    address = f"{field}_pa"
    if field not in record:
        if address in record:
            raise _FieldError(field, f"is missing although there is a {address}")
        return None
    if address not in record:
        raise _FieldError(address, f"is missing although there is a {field}")
    data = _hex_bytes(record[field], field)
    if len(data) < wire.HEADER_SIZE:
        raise _FieldError(field, f"has {len(data)} bytes, less than the header of 32")
    count = int.from_bytes(data[28:32], "little")
    size = wire.HEADER_SIZE if count > MAX_DUMPED_PARAMS else wire.message_size(count)
    if len(data) != size:
        raise _FieldError(
            field, f"has {len(data)} bytes, but with num_params {count} it must have {size}"
        )
    return Content(_hex_number(record[address], address), data)


def _page_list(record: dict[str, object]) -> tuple[ListPage, ...] | None:
    if "page_list" not in record:
        return None
    pages: list[ListPage] = []
    for i, value in enumerate(_list(record["page_list"], "page_list")):
        at = f"page_list[{i}]"
        page = _object(value, at)
        for key in ("pa", "entries", "next"):
            if key not in page:
                raise _FieldError(f"{at}.{key}", "is missing")
        entries = _list(page["entries"], f"{at}.entries")
        if len(entries) > LIST_ENTRIES:
            raise _FieldError(f"{at}.entries", f"has {len(entries)}, a list page holds 511")
        pages.append(
            ListPage(
                _hex_number(page["pa"], f"{at}.pa"),
                tuple([_hex_number(e, f"{at}.entries[{k}]") for k, e in enumerate(entries)]),
                _hex_number(page["next"], f"{at}.next"),
            )
        )
    return tuple(pages)


def _buffers(record: dict[str, object]) -> tuple[BufferContent, ...]:
    if "bufs" not in record:
        return ()
    found: list[BufferContent] = []
    for i, value in enumerate(_list(record["bufs"], "bufs")):
        at = f"bufs[{i}]"
        buffer = _object(value, at)
        for key in ("in", "param", "pa", "hex"):
            if key not in buffer:
                raise _FieldError(f"{at}.{key}", "is missing")
        owner = buffer["in"]
        if owner not in (MESSAGE_OWNER, RPC_OWNER):
            raise _FieldError(f"{at}.in", "must be msg or rpc_arg")
        if owner not in record:
            raise _FieldError(f"{at}.in", f"names {owner}, which this event does not have")
        param = buffer["param"]
        if type(param) is not int or not 0 <= param < MAX_DUMPED_PARAMS:
            raise _FieldError(f"{at}.param", "is not the number of a parameter")
        data = _hex_bytes(buffer["hex"], f"{at}.hex")
        pa = _hex_number(buffer["pa"], f"{at}.pa")
        if len(data) > MAX_BUFFER_BYTES:
            raise _FieldError(f"{at}.hex", f"has {len(data)} bytes, more than 256")
        if (pa & 0xFFF) + len(data) > 0x1000:
            raise _FieldError(f"{at}.hex", "goes beyond its page")
        found.append(BufferContent(str(owner), param, pa, data))
    return tuple(found)


def _time(record: dict[str, object]) -> float:
    value = record.get("t_us")
    if "t_us" not in record:
        raise _FieldError("t_us", "is missing")
    if type(value) not in (int, float):
        raise _FieldError("t_us", f"must be a number, not {_kind(value)}")
    number = float(cast("float", value))
    if not 0 <= number < 1e18:  # also refuses NaN; a run of 30,000 years is not a trace
        raise _FieldError("t_us", "must be microseconds since the first event")
    return number


@attrs.define
class _Order:
    """What must hold from one event to the next: numbers without gap, calls and returns paired."""

    last: int | None = None
    open: dict[int, int] = attrs.Factory(dict)
    """CPU to the ``seq`` of its call without return."""

    def check(self, event: Call | Return | SecureInterrupt) -> None:
        if self.last is not None and event.seq != self.last + 1:
            raise _FieldError(
                "seq", f"{event.seq} follows {self.last}: events are missing or out of order"
            )
        self.last = event.seq
        cpu = event.cpu
        if isinstance(event, Call):
            if cpu in self.open:
                raise _FieldError(
                    "cpu", f"CPU {cpu} is still in the call with seq {self.open[cpu]}"
                )
            self.open[cpu] = event.seq
        elif isinstance(event, Return):
            expected = self.open.pop(cpu, None)
            if expected is None:
                raise _FieldError("of", f"CPU {cpu} has no call that a return could answer")
            if expected != event.of:
                raise _FieldError(
                    "of", f"answers seq {event.of}, but CPU {cpu} is in the call {expected}"
                )


class TraceReader:
    """Iterates over the records of a trace, the :class:`Meta` first.

    ``stream`` is binary; gzip is recognised by its first bytes. Raises :class:`TraceError` at the
    first thing that is wrong. A context manager; :func:`open_trace` opens a file.
    """

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self.path = path
        self.unknown: dict[str, int] = {}
        """Fields that the format does not know, with the number of their occurrences."""
        self._raw = stream
        head = stream.read(2)
        rest = cast("BinaryIO", _Prefixed(head, stream))
        self._stream: BinaryIO = (
            cast("BinaryIO", gzip.GzipFile(fileobj=rest)) if head == GZIP_MAGIC else rest
        )

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        buffered = io.BufferedReader(cast("io.RawIOBase", self._stream), 1 << 16)
        number = 0
        while True:
            try:
                line = buffered.readline(MAX_LINE + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
                raise TraceError(self.path, number + 1, "", f"cannot be read: {error}") from None
            if not line:
                return
            number += 1
            if len(line) > MAX_LINE:
                raise TraceError(self.path, number, "", f"line is longer than {MAX_LINE} bytes")
            if not line.endswith(b"\n"):
                # A file cut off in the middle of a line; a whole last line without its end is fine.
                try:
                    json.loads(line)
                except RecursionError:
                    pass  # said where the line is read
                except ValueError:
                    raise TraceError(
                        self.path, number, "", "the file ends in the middle of this line"
                    ) from None
            yield number, line

    def __iter__(self) -> Iterator[Record]:
        order = _Order()
        number = 0
        for number, line in self._lines():
            try:
                if line.isspace():
                    raise _FieldError("", "is empty")
                record = self._object(line)
                if number == 1:
                    yield self._meta(record)
                    continue
                if "meta" in record:
                    raise _FieldError("meta", "only the first line has it")
                if "marker" in record:
                    self._note_unknown(record, frozenset(["marker"]))
                    yield Marker(_text(record, "marker"), number)
                    continue
                event = self._event(record, number)
                order.check(event)
                yield event
            except _FieldError as error:
                raise TraceError(self.path, number, error.field, error.reason) from None
        if number == 0:
            raise TraceError(self.path, 0, "", "is empty")

    def _object(self, line: bytes) -> dict[str, object]:
        try:
            value = json.loads(line)
        except UnicodeDecodeError:
            raise _FieldError("", "is not UTF-8 text") from None
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise _FieldError("", f"is not JSON: {reason}") from None
        except ValueError:
            raise _FieldError("", "is not JSON: a number has too many digits") from None
        if type(value) is not dict:
            raise _FieldError("", f"must be an object, not {_kind(value)}")
        return cast("dict[str, object]", value)

    def _note_unknown(self, record: dict[str, object], known: frozenset[str]) -> None:
        for field in record:
            if field not in known:
                self.unknown[field] = self.unknown.get(field, 0) + 1

    def _meta(self, record: dict[str, object]) -> Meta:
        if "meta" not in record:
            raise _FieldError("meta", "the first line of a trace must have it")
        if record.get("format", FORMAT) != FORMAT:
            raise _FieldError("format", f"{str(record['format'])[:40]!r} is not {FORMAT}")
        version = _integer(record, "version", _U32) if "version" in record else VERSION
        if not 1 <= version <= VERSION:
            raise _FieldError(
                "version", f"{FORMAT} version {version} is not known here (up to {VERSION})"
            )
        self._note_unknown(record, frozenset(["meta", "format", "version"]))
        return Meta(_object(record["meta"], "meta"), version)

    def _event(self, record: dict[str, object], line: int) -> Call | Return | SecureInterrupt:
        direction = _text(record, "dir")
        if direction not in _DIRECTIONS:
            raise _FieldError("dir", f"{direction[:40]!r} is not one of {', '.join(_DIRECTIONS)}")
        seq = _integer(record, "seq", _U64)
        cpu = _integer(record, "cpu", _U32)
        t_us = _time(record)
        self._note_unknown(record, _EVENT_FIELDS)
        if direction not in ("call", "return"):
            return SecureInterrupt(seq, cpu, t_us, direction == "sec_irq_enter", line)
        name = _text(record, "name")
        regs = _regs(record)
        msg = _content(record, MESSAGE_OWNER)
        rpc_arg = _content(record, RPC_OWNER)
        pages = _page_list(record)
        buffers = _buffers(record)
        if direction == "call":
            return Call(seq, cpu, t_us, name, regs, msg, rpc_arg, pages, buffers, line)
        of = _integer(record, "of", _U64)
        return Return(seq, cpu, t_us, of, name, regs, msg, rpc_arg, pages, buffers, line)


class _Prefixed(io.RawIOBase):
    """A stream whose first bytes were already read."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        super().__init__()
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            head, self._head = self._head, b""
            return head + self._rest.read()
        if self._head:
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._rest.read(size)

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_trace(path: str | Path) -> TraceReader:
    """Open a trace file, plain or gzip. Raises :class:`TraceError` if it cannot be opened."""
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 - the reader closes it
    except OSError as error:
        raise TraceError(str(path), 0, "", error.strerror or "cannot be opened") from None
    try:
        return TraceReader(cast("BinaryIO", stream), str(path))
    except OSError as error:
        stream.close()
        raise TraceError(str(path), 0, "", error.strerror or "cannot be read") from None


@attrs.frozen
class Trace:
    """A whole trace in memory. ``events``: calls and returns in EL3's order."""

    path: str
    meta: Meta
    records: tuple[Marker | Call | Return | SecureInterrupt, ...]
    unknown: dict[str, int]
    answers: dict[int, Return]
    """``seq`` of a call to its return; a call that the trace ends in has none."""

    @property
    def events(self) -> tuple[Call | Return, ...]:
        """Calls and returns, in order."""
        return tuple([r for r in self.records if isinstance(r, (Call, Return))])


def build_trace(
    path: str,
    records: Iterator[Record],
    unknown: dict[str, int],
    progress: Callable[[int], None] | None = None,
) -> Trace:
    """Collect a trace from its records. The first one must be the :class:`Meta`.

    ``progress`` is told the number of records every now and then.
    """
    first = next(records)
    assert isinstance(first, Meta)
    body: list[Marker | Call | Return | SecureInterrupt] = []
    answers: dict[int, Return] = {}
    for record in records:
        assert not isinstance(record, Meta)
        body.append(record)
        if progress is not None and not len(body) & 0xFF:
            progress(len(body))
        if isinstance(record, Return):
            answers[record.of] = record
    return Trace(path, first, tuple(body), unknown, answers)


def load_trace(path: str | Path, progress: Callable[[int], None] | None = None) -> Trace:
    """Read and check a whole trace file. Raises :class:`TraceError`."""
    with open_trace(path) as reader:
        return build_trace(reader.path, iter(reader), reader.unknown, progress)
