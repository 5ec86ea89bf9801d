# SPDX-License-Identifier: BSD-2-Clause
"""Reading traces: what is accepted, and that everything else is one error with line and field."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specs.replay.reader import TraceReader, load_trace, open_trace
from specs.replay.records import Call, Marker, Meta, Return, SecureInterrupt, TraceError
from tests.replay.golden import ALL, PARAMS, SESSION, trace

HEADER = {"meta": {"scenario": "test"}}
REGS = ["0xbf00ff01"] + ["0x0"] * 7


def call(**changes: object) -> dict[str, object]:
    return {"seq": 0, "cpu": 0, "t_us": 0, "dir": "call", "name": "n", "regs": REGS} | changes


def answer(**changes: object) -> dict[str, object]:
    return call(seq=1, dir="return", of=0) | changes


def text(*rows: object) -> bytes:
    return "".join([json.dumps(row) + "\n" for row in rows]).encode()


def read(data: bytes) -> list[object]:
    with TraceReader(io.BytesIO(data), "t") as reader:
        return list(reader)


def refused(data: bytes) -> tuple[int, str, str]:
    with pytest.raises(TraceError) as caught:
        read(data)
    assert caught.value.path == "t"
    assert str(caught.value).startswith("t")
    return caught.value.line, caught.value.field, caught.value.reason


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_recorded_traces_are_read_completely(path: Path) -> None:
    whole = trace(path)
    assert not whole.unknown
    kinds = [type(record) for record in whole.records]
    assert kinds.count(Call) == kinds.count(Return) == len(whole.answers)
    assert {Call, Return, Marker, SecureInterrupt} == set(kinds)
    assert all(whole.answers[e.seq].of == e.seq for e in whole.events if isinstance(e, Call))


def test_counts_of_the_recorded_traces() -> None:
    assert [len(trace(path).events) for path in ALL] == [72, 638, 1680]
    assert trace(PARAMS).meta.text("counter_hz") == "62500000"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_recorded_line_fits_the_schema(path: Path) -> None:
    schema = json.loads(
        resources.files("specs.replay").joinpath("trace.schema.json").read_text("utf-8")
    )
    validator = jsonschema.Draft202012Validator(schema)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file):
            if number < 60 or not number % 29:
                validator.validate(json.loads(line))


def test_values_of_a_record() -> None:
    first = next(r for r in trace(SESSION).records if isinstance(r, Call) and r.msg is not None)
    assert (first.seq, first.cpu, first.regs[0], first.line) == (18, 1, 0x32000012, 21)
    assert first.msg is not None
    assert (first.msg.pa, len(first.msg.data), first.msg.num_params) == (0x503E6000, 64, 1)
    assert first.page_list is not None
    assert first.page_list[0].entries == (0x503E1000,)


def test_gzip_is_recognised_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "odd-name"
    file.write_bytes(gzip.compress(SESSION.read_bytes()))
    assert load_trace(file).records == trace(SESSION).records


def test_a_first_line_without_version_is_version_1() -> None:
    (meta,) = read(text(HEADER))
    assert isinstance(meta, Meta)
    assert meta.version == 1
    assert read(text({"format": "optee-smc-trace", "version": 1, "meta": {}}))


def test_a_last_line_without_its_end_is_fine_if_it_is_whole() -> None:
    assert len(read(text(HEADER, call(), answer())[:-1])) == 3


def test_unknown_fields_are_counted_not_refused() -> None:
    reader = TraceReader(io.BytesIO(text(HEADER, call(extra=1), answer(extra=2, more=3))), "t")
    assert len(list(reader)) == 3
    assert reader.unknown == {"extra": 2, "more": 1}


MSG = "00" * 28 + "01000000" + "00" * 32
BAD_LINES: list[tuple[object, str]] = [
    ({"seq": 0}, "dir"),
    (call(seq=-1), "seq"),
    (call(seq=True), "seq"),
    (call(seq="0"), "seq"),
    (call(seq=1 << 64), "seq"),
    (call(cpu=1.5), "cpu"),
    (call(cpu=1 << 32), "cpu"),
    (call(t_us="0"), "t_us"),
    (call(t_us=-1), "t_us"),
    (call(t_us=1e300), "t_us"),
    (call(dir="up"), "dir"),
    (call(dir=None), "dir"),
    (call(name=1), "name"),
    (call(regs=REGS[:7]), "regs"),
    (call(regs="0x0"), "regs"),
    (call(regs=[*REGS[:7], "0"]), "regs[7]"),
    (call(regs=[*REGS[:7], "0x1_0"]), "regs[7]"),
    (call(regs=[*REGS[:7], "0x 1"]), "regs[7]"),
    (call(regs=[*REGS[:7], "0x"]), "regs[7]"),
    (call(regs=[*REGS[:7], "0xg"]), "regs[7]"),
    (call(regs=[*REGS[:7], 3]), "regs[7]"),
    (call(regs=[*REGS[:7], "0x1" + "0" * 16]), "regs[7]"),
    (call(msg=MSG), "msg_pa"),
    (call(msg_pa="0x1000"), "msg"),
    (call(msg_pa="0x1000", msg=MSG[:-2]), "msg"),
    (call(msg_pa="0x1000", msg=MSG[:62]), "msg"),
    (call(msg_pa="0x1000", msg="zz"), "msg"),
    (call(msg_pa="0x1000", msg=MSG[:2] + " " + MSG[2:]), "msg"),
    (call(msg_pa="0x1000", msg=7), "msg"),
    (call(msg_pa="0x1000", msg="00" * 28 + "41000000" + "00" * 32), "msg"),
    (call(rpc_arg_pa="0x1000", rpc_arg="00" * 32 + "00"), "rpc_arg"),
    (call(page_list={}), "page_list"),
    (call(page_list=[1]), "page_list[0]"),
    (call(page_list=[{"pa": "0x0", "entries": []}]), "page_list[0].next"),
    (call(page_list=[{"pa": "0x0", "entries": ["x"], "next": "0x0"}]), "page_list[0].entries[0]"),
    (
        call(page_list=[{"pa": "0x0", "entries": ["0x0"] * 512, "next": "0x0"}]),
        "page_list[0].entries",
    ),
    (call(bufs=[{"in": "msg", "param": 0, "pa": "0x0", "hex": ""}]), "bufs[0].in"),
    (call(bufs=[{"in": "rpc", "param": 0, "pa": "0x0", "hex": ""}]), "bufs[0].in"),
    (
        call(msg_pa="0x0", msg=MSG, bufs=[{"in": "msg", "param": 64, "pa": "0x0", "hex": ""}]),
        "bufs[0].param",
    ),
    (
        call(msg_pa="0x0", msg=MSG, bufs=[{"in": "msg", "param": 0, "pa": "0xfff", "hex": "0000"}]),
        "bufs[0].hex",
    ),
    (
        call(
            msg_pa="0x0", msg=MSG, bufs=[{"in": "msg", "param": 0, "pa": "0x0", "hex": "00" * 257}]
        ),
        "bufs[0].hex",
    ),
    (answer(seq=0), "of"),
    ({"marker": 7}, "marker"),
    ({"meta": {}}, "meta"),
    ([], ""),
    ("text", ""),
]


@pytest.mark.parametrize(("row", "field"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named_with_its_field(row: object, field: str) -> None:
    line, found, reason = refused(text(HEADER, {"marker": "m"}, row))
    assert (line, found) == (3, field)
    assert reason


@pytest.mark.parametrize(
    ("rows", "line", "field"),
    [
        ((call(seq=5), answer(seq=7)), 3, "seq"),
        ((call(), answer(seq=0)), 3, "seq"),
        ((call(), call(seq=1)), 3, "cpu"),
        ((call(), answer(of=9)), 3, "of"),
        ((call(), answer(cpu=1)), 3, "of"),
        ((call(), answer(), answer(seq=2)), 4, "of"),
    ],
)
def test_events_must_follow_each_other(rows: tuple[object, ...], line: int, field: str) -> None:
    assert refused(text(HEADER, *rows))[:2] == (line, field)


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    assert refused(b"") == (0, "", "is empty")
    assert refused(b"\n")[0] == 1
    assert refused(b"\xff\xfe\n")[2] == "is not UTF-8 text"
    assert refused(b"{]\n")[2].startswith("is not JSON")
    assert refused(b"[" * 200_000 + b"\n")[2] == "is not JSON: nested too deeply"
    assert refused(b"[" * 200_000) == (1, "", "is not JSON: nested too deeply")
    assert refused(b'{"meta": ' + b"9" * 5000 + b"}\n")[0] == 1
    assert refused(text(call()))[:2] == (1, "meta")
    assert refused(text({"meta": []}))[:2] == (1, "meta")
    assert (
        refused(text(HEADER) + b'{"seq": 1, "cp')[2] == "the file ends in the middle of this line"
    )
    with pytest.raises(TraceError, match="No such file"):
        open_trace(tmp_path / "nothing")
    with pytest.raises(TraceError, match="directory"):
        load_trace(tmp_path)


def test_other_formats_and_newer_versions_are_refused_by_name() -> None:
    line, field, reason = refused(text({"format": "optee-smc-trace", "version": 2, "meta": {}}))
    assert (line, field) == (1, "version")
    assert "version 2" in reason
    assert refused(text({"format": "pcap", "meta": {}}))[1] == "format"
    assert refused(text({"format": "optee-smc-trace", "version": "1", "meta": {}}))[1] == "version"


@pytest.mark.parametrize("cut", [1, 10, 11, 200, -1])
def test_cut_gzip(cut: int) -> None:
    packed = gzip.compress(SESSION.read_bytes(), mtime=0)
    assert refused(packed[:cut])[2]


def test_broken_gzip() -> None:
    packed = bytearray(gzip.compress(SESSION.read_bytes(), mtime=0))
    packed[len(packed) // 2] ^= 0xFF
    assert "cannot be read" in refused(bytes(packed))[2] or refused(bytes(packed))[0]
    packed = bytearray(gzip.compress(SESSION.read_bytes(), mtime=0))
    packed[-5] ^= 1  # the checksum
    assert "cannot be read" in refused(bytes(packed))[2]


@given(st.binary(max_size=400))
def test_any_bytes_are_a_trace_or_the_one_error(data: bytes) -> None:
    for prefix in (b"", text(HEADER), b"\x1f\x8b"):
        with contextlib.suppress(TraceError):
            read(prefix + data)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.data())
def test_any_value_in_any_field_is_read_or_refused(data: st.DataObject) -> None:
    row = call(
        msg_pa="0x1000",
        msg=MSG,
        rpc_arg_pa="0x1000",
        rpc_arg=MSG,
        page_list=[{"pa": "0x0", "entries": ["0x0"], "next": "0x0"}],
        bufs=[{"in": "msg", "param": 0, "pa": "0x0", "hex": "00"}],
    )
    field = data.draw(st.sampled_from(sorted(row)))
    row[field] = data.draw(JSON)
    with contextlib.suppress(TraceError):
        assert len(read(text(HEADER, row))) == 2
