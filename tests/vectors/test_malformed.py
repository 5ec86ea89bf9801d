# SPDX-License-Identifier: BSD-2-Clause
"""Unusable files: file, line, field and reason, whatever stands in them."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.vectors import source
from specs.vectors.errors import InputError
from specs.vectors.files import Options, run_file
from specs.vectors.model_target import ModelTarget
from specs.vectors.reader import read_scenario
from specs.vectors.source import Value, line_of
from tests.vectors.golden import ABI_FILES, BEHAVIOUR, Row, leaves, one, text

OPTIONS = Options(ModelTarget, "reference")


def error_of(tmp_path: Path, data: bytes) -> InputError:
    file = tmp_path / "vectors"
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        run_file(file, OPTIONS)
    assert str(caught.value).startswith(str(file))
    return caught.value


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"", 0, "empty"),
        (b"\n  \n", 0, "empty"),
        (b"hello", 1, "not JSON"),
        (b"\xff\xfe", 1, "not UTF-8"),
        (b"[1, 2]", 1, "none of the known kinds"),
        (b'{"a": 1}', 1, "none of the known kinds"),
        (b'{"steps": NaN}', 1, "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', 1, "the same field twice"),
        (b"[" * 100_000, 1, "nested too deeply"),
        (b"1" * 10_000, 1, "not usable: a number has too many digits"),
        (gzip.compress(b"{}" * 100, mtime=0)[:-9], 0, "broken gzip file"),
        (b"\x1f\x8bnot really", 0, "broken gzip file"),
    ],
)
def test_files_that_are_nothing(tmp_path: Path, data: bytes, line: int, reason: str) -> None:
    error = error_of(tmp_path, data)
    assert reason in str(error)
    assert error.line == line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "missing", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=reason):
            run_file(path, OPTIONS)


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILE_BYTES", 1 << 20)
    packed = gzip.compress(bytes(1 << 20), 9) + gzip.compress(b"1")
    assert "larger than" in error_of(tmp_path, packed).reason


def test_the_line_of_a_broken_line(tmp_path: Path) -> None:
    row = one()
    assert error_of(tmp_path, lines(row, row) + b"{broken\n").line == 3
    assert error_of(tmp_path, b"{broken\n" + lines(row)).line == 1
    other = {key: row[key] for key in row if key != "steps"}
    error = error_of(tmp_path, b"\n" + lines(row, other))
    assert (error.line, error.field, error.reason) == (3, "steps", "is missing")


def _set(row: Row, path: str, value: Any) -> Row:
    changed = copy.deepcopy(row)
    holder: Any = changed
    keys: list[str | int] = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in keys[:-1]:
        holder = holder[key]
    if value is DELETED:
        del holder[keys[-1]]
    elif isinstance(keys[-1], int) and keys[-1] == len(holder):
        holder.append(value)
    else:
        holder[keys[-1]] = value
    return changed


DELETED = object()
MAP = {"ipa": "0x40000000", "pages": 1, "kind": "ram", "pa": "0x880000000", "pa_step": 4096}


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("id", 7, "id"),
        ("kind", "abj", "kind"),
        ("kind", "quirk", "quirk"),
        ("quirk", "limit", "quirk"),
        ("threads", -1, "threads"),
        ("threads", True, "threads"),
        ("limits", {"max_buf_pages": 0}, "limits.max_buf_pages"),
        ("limits", {"max_bufs": 3}, "limits.max_bufs"),
        ("surprise\x1b[31m", 1, "surprise\\x1b[31m"),
        ("domains", {}, "domains"),
        ("domains/1", {"id": 1, "bits": 64, "map": []}, "domains"),
        ("domains/0/bits", 48, "domains[0].bits"),
        ("domains/0/id", 70000, "domains[0].id"),
        ("domains/0/map/0/ipa", "0x123", "domains[0].map[0].ipa"),
        ("domains/0/map/0/ipa", 5, "domains[0].map[0].ipa"),
        ("domains/0/map/0/kind", "rom", "domains[0].map[0].kind"),
        ("domains/0/map/0/kind", "mmio", "domains[0].map[0].pa"),
        ("domains/0/map/0/pa_step", 100, "domains[0].map[0].pa_step"),
        ("domains/0/map/0/pages", 1 << 40, "domains[0].map[0].pages"),
        ("domains/0/map/1", MAP, "domains[0].map[1]"),
        ("steps/0/op", "jump", "steps[0].op"),
        ("steps/0/op", DELETED, "steps[0].op"),
        ("steps/0/dom", 9, "steps[0].dom"),
        ("steps/0/tee", 1, "steps[0].tee"),
        ("steps/0/pins", DELETED, "steps[0].pins"),
        ("steps/0/pins", {"x": []}, "steps[0].pins.x"),
        ("steps/0/pins", {"1": [["0x40000000", 1]]}, "steps[0].pins.1[0]"),
        ("steps/0/pins", {"1": [["0x90000000", 1, 1]]}, "steps[0].pins.1[0]"),
        ("steps/0/pins", {"1": [["0x40000000", 2, 1], ["0x40001000", 1, 1]]}, "steps[0].pins.1[1]"),
        ("steps/0/acct", {"1": {"calls": "many"}}, "steps[0].acct.1.calls"),
        ("steps/0/sw/0/regs", ["0x0"] * 7, "steps[0].sw[0].regs"),
        ("steps/0/sw/0/regs/1", "0x01", "steps[0].sw[0].regs[1]"),
        ("steps/0/sw/0/regs/1", "0xA", "steps[0].sw[0].regs[1]"),
        ("steps/0/sw/0/regs/1", "0x1" + "0" * 16, "steps[0].sw[0].regs[1]"),
        ("steps/0/sw/0/regs/1", "m0", "steps[0].sw[0].regs[1]"),
        ("steps/0/sw/0/regs/1", "hi:m0", "steps[0].sw[0].regs[1]"),
        ("steps/0/sw/0/regs/7", "hi:m0", "steps[0].sw[0].regs[7]"),
        ("steps/0/sw/0/reply", ["0x0"] * 5, "steps[0].sw[0].reply"),
        ("steps/0/sw/0/writes", [["m0", 4090, "00" * 8]], "steps[0].sw[0].writes[0][2]"),
        ("steps/0/sw/0/writes", [["m0+0x10", 0, "00"]], "steps[0].sw[0].writes[0][0]"),
        ("steps/0/sw/0/writes", [["g:0x90000000", 0, "00"]], "steps[0].sw[0].writes[0][0]"),
        ("steps/0/sw/0/writes", [["m0", 0, "0g"]], "steps[0].sw[0].writes[0][2]"),
        ("steps/0/sw/0/guest_writes", [["0x90000000", "00"]], "steps[0].sw[0].guest_writes[0]"),
        ("steps/0/sw/0/meanwhile", [{}], "steps[0].sw[0].meanwhile[0]"),
        ("steps/0/sw/0/meanwhile", [{"nap": 1}], "steps[0].sw[0].meanwhile[0].nap"),
        ("steps/0/sw/0/msg", {"at": "m0"}, "steps[0].sw[0].msg.cmd"),
        ("steps/1/via", "smc128", "steps[1].via"),
        ("steps/1/imm", 1 << 16, "steps[1].imm"),
        ("steps/1/out", DELETED, "steps[1].out"),
        ("steps/1/handled_by", "psci", "steps[1].out"),
        ("steps/1/handled_by", "me", "steps[1].handled_by"),
        ("steps/1/regs/0", "0x100000000000000000", "steps[1].regs[0]"),
        ("steps/1/race", {"after_fetch": 0, "writes": []}, "steps[1].race.after_fetch"),
        ("steps/1/mem", [["0x40000001", "00000000"]], "steps[1].mem[0]"),
        ("steps/1/mem", [["0x40000000", "0000"]], "steps[1].mem[0]"),
        ("steps/1/mem", [["0x90000000", "00000000"]], "steps[1].mem[0]"),
        ("steps/1/mem", [["0x40000000", "00000000", 3]], "steps[1].mem[0][2]"),
        ("steps/2/preempt", [1], "steps[2].preempt[0]"),
        ("steps/2/preempt_checks", "2", "steps[2].preempt_checks"),
    ],
)
def test_fields_of_scenarios(tmp_path: Path, path: str, value: Any, field: str) -> None:
    good = one()
    assert [step["op"] for step in good["steps"]] == ["create", "smc", "destroy"]
    good.pop("note", None)
    good["kind"] = "abi"
    good.pop("quirk", None)
    error = error_of(tmp_path, lines(good, _set(good, path, value)))
    assert error.field == field
    assert error.line == 2


@pytest.mark.parametrize(
    ("kind", "path", "value", "field"),
    [
        ("function ids", "fid", "0x1", "fid"),
        ("function ids", "fast", 1, "fast"),
        ("messages", "hex", "0", "hex"),
        ("messages", "fields/cmd", 1 << 32, "fields.cmd"),
        ("messages", "fields/params/0/value/a", DELETED, "fields.params[0].value.a"),
        ("page lists", "variant", "round_list", "variant"),
        ("page lists", "list_pages/0/hex", "00", "list_pages[0].hex"),
        ("page lists", "offset", 4096, "offset"),
    ],
)
def test_fields_of_wire_vectors(
    tmp_path: Path, kind: str, path: str, value: Any, field: str
) -> None:
    good = json.loads(text(ABI_FILES[kind]).splitlines()[0])
    error = error_of(tmp_path, lines(good, _set(good, path, value)))
    assert (error.field, error.line) == (field, 2)


@pytest.mark.parametrize(
    ("kind", "path", "value", "field"),
    [
        ("constants", "smccc/ARM_SMCCC_CONV_64/hex", "1", "smccc.ARM_SMCCC_CONV_64.hex"),
        ("constants", "smccc/ARM_SMCCC_CONV_64/dec", DELETED, "smccc.ARM_SMCCC_CONV_64.dec"),
        ("structure layouts", "optee_msg/optee_msg_arg/fields/1/offset", "4",
         "optee_msg.optee_msg_arg.fields[1].offset"),
        ("register tables", "optee_calls/2/fid", 7, "optee_calls[2].fid"),
        ("register tables", "optee_calls/2/in", {"q9": "what"}, "optee_calls[2].in.q9"),
    ],
)  # fmt: skip
def test_fields_of_header_tables(
    tmp_path: Path, kind: str, path: str, value: Any, field: str
) -> None:
    """The line is found although the document has many."""
    good = json.loads(text(ABI_FILES[kind]))
    written = json.dumps(_set(good, path, value), indent=1).encode()
    error = error_of(tmp_path, written)
    assert error.field == field
    last = field.rsplit(".")[-1]
    if value is not DELETED:
        assert f'"{last}"'.encode() in written.splitlines()[error.line - 1]
    assert error.line > 1


def test_line_of_a_field() -> None:
    document = b'{\n "a": [\n  {"b": 1},\n  {"b":\n   2}\n ],\n "c": {"\\u0064": 3}\n}'
    assert line_of(document, "a[0].b") == 3
    assert line_of(document, "a[1].b") == 4
    assert line_of(document, "c.d") == 7
    assert line_of(document, "c.nothing") == 7
    assert line_of(b"{", "a.b") == 1


SMALL = [line for line in text(BEHAVIOUR).splitlines() if len(line) < 4000]

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.sampled_from(
        ["", "m0", "hi:m0", "lo:m1", "stale", "g:0x0", "0x0", "0x40000000", "ram", "\x1b"]
    )
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["op", "sw", "smc", "dom", "regs"]), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 30), JUNK)
def test_any_json_in_any_place_is_an_input_error_or_a_scenario(seed: int, junk: Any) -> None:
    random = Random(seed)
    row = json.loads(random.choice(SMALL))
    paths = list(leaves(row))
    path = random.choice(paths)
    holder: Any = row
    for key in path[: random.randrange(len(path))]:
        inner = holder[key]
        if not isinstance(inner, dict | list):
            break
        holder = inner
    key = random.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key] = junk
    # Any other exception fails the test.
    with contextlib.suppress(InputError):
        read_scenario(Value(row, "test", 1))
