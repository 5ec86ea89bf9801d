# SPDX-License-Identifier: BSD-2-Clause
"""Command ``replay``: exit codes, tables, JSON, hostile text, help."""

from __future__ import annotations

import gzip
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from mediator.command import main, progress
from mediator.command import replay as command
from specs.replay import homes
from specs.replay.rules import NOT_COMPARED, RULES
from specs.replay.selfcheck import SelfCheck, self_check
from tests.replay.golden import ALL, PARAMS, SESSION, VIRTUAL, trace
from tests.replay.test_mediated import WrongClient


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["replay", *map(str, arguments)])


def report(*arguments: object) -> dict[str, Any]:
    result = run("--json", *arguments)
    found = json.loads(result.stdout)
    schema = resources.files("specs.replay").joinpath("report.schema.json").read_text("utf-8")
    jsonschema.validate(found, json.loads(schema))
    assert found["exit"] == result.exit_code
    assert isinstance(found, dict)
    return found


def changed(tmp_path: Path, old: str, new: str, source: Path = SESSION) -> Path:
    """A copy of a plain trace with the first occurrence of a text replaced."""
    text = source.read_text("utf-8")
    assert old in text
    path = tmp_path / "changed.jsonl"
    path.write_text(text.replace(old, new, 1), "utf-8")
    return path


# --- as mediator ------------------------------------------------------------------------------------


def test_a_transparent_trace() -> None:
    result = run(SESSION)
    assert result.exit_code == 0
    assert "72 of 72 events transparent (100 %)" in result.stdout
    assert re.search(r"CALL_WITH_REGD_ARG INVOKE_COMMAND +18 +18 +\. +\.", result.stdout)
    assert "hidden-capabilities (1):" in result.stdout
    assert "the mediator's own calls, apart: CALLS_UID 1" in result.stdout
    assert "pins: 0 when the trace ends, 0 after the guests are gone" in result.stdout
    for what, why in NOT_COMPARED:
        assert f"{what}: {why}" in result.stdout
    assert result.stderr == ""


def test_several_traces_at_once() -> None:
    result = run(*ALL)
    assert result.exit_code == 0
    assert "3 of 3 traces without a difference; 2390 of 2390 transparent" in result.stdout


def test_json() -> None:
    found = report(SESSION, PARAMS)
    assert found["exit"] == 0
    assert [one["events"] for one in found["traces"]] == [72, 638]
    assert [one["transparent"] for one in found["traces"]] == [72, 638]
    assert all(one["ok"] and one["pinned"] == 0 for one in found["traces"])
    assert [one["file"] for one in found["traces"]] == [str(SESSION), str(PARAMS)]
    assert {rule["id"] for rule in found["rules"]} == set(RULES)
    assert len(found["not_compared"]) == len(NOT_COMPARED)


def flip(tmp_path: Path, kind: str, field: str) -> tuple[Path, int]:
    """Change one bit of a field of the first record that has it; the record's sequence number."""
    lines = SESSION.read_text("utf-8").splitlines()
    before: list[object] = []
    for number, line in enumerate(lines):
        record = json.loads(line)
        if record.get("dir") == "call":
            before = record.get("bufs", [])
        if record.get("dir") != kind or field not in record:
            continue
        if field == "bufs" and (record[field] == before or len(record[field][0]["hex"]) == 32):
            continue  # nobody wrote it; or the list of devices, which tells what the build has
        if field == "page_list":
            entry = record[field][0]["entries"][0]
            record[field][0]["entries"][0] = hex(int(entry, 16) ^ 0x1000)
        elif field == "bufs":
            data = record[field][0]["hex"]
            record[field][0]["hex"] = f"{int(data[:2], 16) ^ 1:02x}{data[2:]}"
        elif field == "regs":
            record[field][0] = hex(int(record[field][0], 16) ^ 1)
        else:
            data = bytearray.fromhex(record[field])
            data[20] ^= 1  # the result
            record[field] = data.hex()
        lines[number] = json.dumps(record)
        path = tmp_path / "flipped.jsonl"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path, record["seq"]
    raise AssertionError("no such record")


@pytest.mark.parametrize("field", ["regs", "msg", "bufs"])
def test_one_wrong_bit_of_an_answer_in_the_file_is_found_by_the_secure_world(
    tmp_path: Path, field: str
) -> None:
    path, seq = flip(tmp_path, "return", field)
    found = report("--as", "secure-world", path)
    assert found["exit"] == 1
    assert found["traces"][0]["different"] >= 1
    assert seq in [difference["seq"] for difference in found["traces"][0]["differences"]]


def test_differences_are_shown_with_place_and_values(tmp_path: Path) -> None:
    path, seq = flip(tmp_path, "return", "regs")
    result = run("--as", "secure-world", path)
    assert result.exit_code == 1
    assert "answers differ" in result.stdout
    assert re.search(rf"seq {seq} \(line \d+\), .*a0: recorded 0x[0-9a-f]+, found", result.stdout)
    assert "more (--show" in run("--as", "secure-world", "--show", 0, path).stdout


def test_a_mediator_that_is_not_transparent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "ReplaySyscalls", WrongClient)
    result = run(SESSION, PARAMS)
    assert result.exit_code == 1
    assert "as mediator, NOT transparent" in result.stdout
    assert re.search(
        r"seq \d+ \(line \d+\), .*, forwarded: a7: recorded 0x1, found 0x0", result.stdout
    )
    assert "0 of 2 traces without a difference" in result.stdout
    found = report(SESSION)
    assert found["traces"][0]["ok"] is False
    assert found["traces"][0]["differences"][0].keys() > {"seq", "line", "event", "field"}


# --- as secure world --------------------------------------------------------------------------------


def test_as_secure_world() -> None:
    result = run("--as", "secure-world", PARAMS)
    assert result.exit_code == 0
    assert "176 of 176 compared answers equal (100 %), 143 apart" in result.stdout
    assert "135 OP-TEE's own store: FS" in result.stdout
    found = report("--as", "secure-world", SESSION, VIRTUAL)
    assert [one["equal"] for one in found["traces"]] == [36, 649]
    assert [one["as"] for one in found["traces"]] == ["secure-world"] * 2


# --- self-check -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["mediator", "secure-world"])
def test_self_check(part: str) -> None:
    result = run("--as", part, "--self-check", 20, "--seed", 4, SESSION)
    assert result.exit_code == 0
    assert "self-check, seed 4:" in result.stdout
    assert "20 of 20 reported" in result.stdout or part == "secure-world"
    check = report("--as", part, "--self-check", 20, SESSION)["traces"][0]["self_check"]
    assert check["complete"]
    assert check["seed"] == 1
    assert not check["missed"]
    assert check["kinds"]["single-bit change"]["planted"] > 15


def test_a_missed_error_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    real = self_check

    def lame(*args: Any, **kwargs: Any) -> SelfCheck:
        check = real(*args, **kwargs)
        missed = check.planted[0].__class__("wrong-client-id", 7, "forwarded", "a7 = 2", False)
        return SelfCheck(check.path, check.seed, (*check.planted, missed))

    monkeypatch.setattr(command, "self_check", lame)
    result = run("--self-check", 5, SESSION)
    assert result.exit_code == 1
    assert "MISSED: wrong-client-id, call 7, forwarded: a7 = 2" in result.stdout
    assert report("--self-check", 5, SESSION)["traces"][0]["self_check"]["missed"]


# --- files that cannot be used ------------------------------------------------------------------------


def test_unusable_files(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(SESSION.read_bytes())[:500])
    broken = changed(tmp_path, '"cpu": 0', '"cpu": -1')
    result = run(cut, broken, tmp_path / "missing", tmp_path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 4
    assert re.search(r"changed\.jsonl:\d+: cpu: ", result.stderr)
    assert "missing" in result.stderr
    found = report(cut, SESSION)
    assert found["exit"] == 2
    assert len(found["errors"]) == len(found["traces"]) == 1


def test_a_difference_does_not_hide_an_unusable_file(tmp_path: Path) -> None:
    path, _ = flip(tmp_path, "return", "regs")
    assert run("--as", "secure-world", path, tmp_path / "missing").exit_code == 2


def test_wrong_usage() -> None:
    for arguments in ((), ("--as", "guest", SESSION), ("--self-check", "-1", SESSION)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Usage:" in result.stderr


# --- text from foreign files --------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[31m[red]<script>\u202e\u2028"


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "hostile[bold].jsonl"
    lines = SESSION.read_text("utf-8").splitlines()
    head = json.loads(lines[0])
    (head.get("meta") or head)["scenario"] = HOSTILE
    rows = [json.loads(line) for line in lines[1:]]
    for row in rows:
        if "name" in row:
            row["name"] = HOSTILE
        row["x" + HOSTILE] = HOSTILE
    path.write_text("\n".join(map(json.dumps, [head, *rows])) + "\n", "utf-8")
    for part in ("mediator", "secure-world"):
        result = run("--as", part, path)
        assert result.exit_code == 0
        for character in "\x1b\x07\u202e\u2028":
            assert character not in result.stdout + result.stderr
        assert "\\x1b" in result.stdout
        assert "[red]<script>" in result.stdout
    assert report(path)["traces"][0]["scenario"] == HOSTILE


def test_hostile_text_in_errors(tmp_path: Path) -> None:
    path = changed(tmp_path, '"dir": "call"', f'"dir": {json.dumps(HOSTILE)}')
    result = run(path)
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr
    assert "owned" in result.stderr


# --- help and progress --------------------------------------------------------------------------------


def test_help_has_examples() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert "optee-mediator replay --self-check 100" in result.stdout
    assert "Exit codes:" in result.stdout
    for option in ("--as", "--self-check", "--seed", "--json", "--show"):
        assert option in result.stdout


def test_progress_goes_to_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PROGRESS_AFTER", 0.0)
    result = run("--json", VIRTUAL)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["exit"] == 0
    assert f"{VIRTUAL.name}: " in result.stderr
    assert f" of {len(trace(VIRTUAL).records)} records" in result.stderr
