# SPDX-License-Identifier: BSD-2-Clause
"""Writing a trace: the format of :mod:`specs.replay.reader`, with its name and version."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TextIO

from specs.replay.records import (
    FORMAT,
    VERSION,
    Call,
    Content,
    Marker,
    Record,
    Return,
    SecureInterrupt,
)


def _number(value: int) -> str:
    return f"{value:#x}"


def _content(fields: dict[str, object], name: str, content: Content | None) -> None:
    if content is not None:
        fields[f"{name}_pa"] = _number(content.pa)
        fields[name] = content.data.hex()


def _event(event: Call | Return | SecureInterrupt) -> dict[str, object]:
    fields: dict[str, object] = {"seq": event.seq, "cpu": event.cpu, "t_us": event.t_us}
    if isinstance(event, SecureInterrupt):
        fields["dir"] = "sec_irq_enter" if event.entered else "sec_irq_exit"
        return fields
    fields["dir"] = "call" if isinstance(event, Call) else "return"
    if isinstance(event, Return):
        fields["of"] = event.of
    fields["name"] = event.name
    fields["regs"] = [_number(register) for register in event.regs]
    _content(fields, "msg", event.msg)
    _content(fields, "rpc_arg", event.rpc_arg)
    if event.page_list is not None:
        fields["page_list"] = [
            {
                "pa": _number(page.pa),
                "entries": [_number(entry) for entry in page.entries],
                "next": _number(page.next),
            }
            for page in event.page_list
        ]
    if event.buffers:
        fields["bufs"] = [
            {"in": b.owner, "param": b.param, "pa": _number(b.pa), "hex": b.data.hex()}
            for b in event.buffers
        ]
    return fields


def trace_line(record: Record) -> str:
    """One record as its line of JSON, without the end of the line."""
    if isinstance(record, (Call, Return, SecureInterrupt)):
        return json.dumps(_event(record))
    if isinstance(record, Marker):
        return json.dumps({"marker": record.text})
    return json.dumps({"format": FORMAT, "version": VERSION, "meta": dict(record.values)})


class TraceWriter:
    """Writes records to a text stream; the header first. A context manager.

    ``meta``: who recorded what. Three entries tell the replay about the machine: ``ram``, a list
    of ``[base, size]`` in hexadecimal strings, ``threads``, and ``optee_config``, a string of
    CFG_NAME=value pairs.
    """

    def __init__(self, stream: TextIO, meta: Mapping[str, object]) -> None:
        self._stream = stream
        header = {"format": FORMAT, "version": VERSION, "meta": dict(meta)}
        stream.write(json.dumps(header) + "\n")

    def write(self, record: Marker | Call | Return | SecureInterrupt) -> None:
        """Append a record."""
        self._stream.write(trace_line(record) + "\n")

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


def create_trace(path: str | Path, meta: Mapping[str, object]) -> TraceWriter:
    """Create a trace file; gzip if its name ends in ``.gz`` (the same bytes on every run)."""
    file = Path(path).open("wb")  # noqa: SIM115 - the writer closes it
    if str(path).endswith(".gz"):
        # No name and no time in the header: the bytes depend on the records alone.
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
        return TraceWriter(_TextOver(packed, file), meta)
    return TraceWriter(io.TextIOWrapper(file, encoding="utf-8", newline="\n"), meta)


class _TextOver(io.TextIOWrapper):
    """Text over gzip that closes the file below, too: ``GzipFile`` leaves a given one open."""

    def __init__(self, packed: gzip.GzipFile, file: BinaryIO) -> None:
        super().__init__(packed, encoding="utf-8", newline="\n")
        self._file = file

    def close(self) -> None:
        super().close()
        self._file.close()
