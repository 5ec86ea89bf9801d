# SPDX-License-Identifier: BSD-2-Clause
"""The command ``vectors``: recognition, exit codes, reports."""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from mediator.command import main, progress
from tests.vectors.golden import ABI_FILES, BEHAVIOUR, Row, behaviour, one, text


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["vectors", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def report(*arguments: str | Path) -> dict[str, Any]:
    result = call("--json", *arguments)
    document: dict[str, Any] = json.loads(result.stdout)
    schema = json.loads(
        resources.files("specs.vectors").joinpath("report.schema.json").read_text("utf-8")
    )
    jsonschema.validate(document, schema)
    return document


def saved(tmp_path: Path, *rows: Row) -> Path:
    file = tmp_path / "anything.bin"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def row_named(kind: str, quirk: str = "") -> Row:
    return one(kind=kind, quirk=quirk)


def spoilt(row: Row) -> Row:
    row["steps"][1]["out"][1] = "0x99"
    return row


def test_all_golden_files_pass() -> None:
    result = call(BEHAVIOUR, *ABI_FILES.values())
    assert result.exit_code == 0
    assert "behaviour scenarios: 297 passed, 0 failed, 5 deviations" in result.output
    for kind in ABI_FILES:
        assert f"{kind}: " in result.output


@pytest.mark.parametrize("kind", [*ABI_FILES, "behaviour scenarios"])
@pytest.mark.parametrize("packed", [True, False])
def test_files_are_recognised_by_their_content(kind: str, packed: bool, tmp_path: Path) -> None:
    source = BEHAVIOUR if kind == "behaviour scenarios" else ABI_FILES[kind]
    data = text(source)
    if kind in ("behaviour scenarios", "page lists"):
        data = b"\n".join(data.splitlines()[:3])
    file = tmp_path / "no-name"
    file.write_bytes(gzip.compress(data) if packed else data)
    document = report(file)
    assert document["files"][0]["kind"] == kind
    assert document["failed"] == 0
    assert document["passed"] == document["files"][0]["vectors"] > 0


def test_a_failure_is_exit_code_1_and_readable(tmp_path: Path) -> None:
    good, bad = row_named("abi"), spoilt(row_named("abi"))
    result = call(saved(tmp_path, good, bad))
    assert result.exit_code == 1
    assert "1 passed, 1 failed" in result.output
    assert "steps[1].out[1]: expected 0x99, got 0x2" in result.output
    assert f"{bad['id']}: {bad['title']} (line 2, {bad['cat']})" in result.output
    assert "expected" not in call("--show", "0", saved(tmp_path, good, bad)).output


def test_only_abi_decides(tmp_path: Path) -> None:
    file = saved(tmp_path, spoilt(row_named("quirk", "constant")))
    result = call(file)
    assert result.exit_code == 0
    assert "offer.calls-count (may): CALLS_COUNT is answered by the mediator" in result.output
    assert call("--strict-quirks", file).exit_code == 1


def test_a_deviation_without_a_rule_says_so(tmp_path: Path) -> None:
    row = spoilt(row_named("abi"))
    row.update(kind="quirk", quirk="taste")
    result = call(saved(tmp_path, row))
    assert result.exit_code == 0
    assert "no rule explains it" in result.output


def test_the_explanation_never_looks_at_names(tmp_path: Path) -> None:
    rows = behaviour(kind="quirk")
    before = report("--preset", "default", saved(tmp_path, *rows))["files"][0]["differing"]
    for row in rows:
        row["id"] = row["title"] = row["cat"] = row["quirk"] = row["note"] = "x"
    after = report("--preset", "default", saved(tmp_path, *rows))["files"][0]["differing"]
    assert [case["explained_by"] for case in before] == [case["explained_by"] for case in after]
    assert all(case["explained_by"] for case in after)


def test_the_report_for_programs(tmp_path: Path) -> None:
    deviating = one(id="std-058")
    document = report(saved(tmp_path, row_named("abi"), spoilt(row_named("abi")), deviating))
    assert (document["passed"], document["failed"], document["deviations"]) == (1, 1, 1)
    failed, deviation = document["files"][0]["differing"]
    assert failed["verdict"] == "failed"
    assert failed["differences"] == [
        {"place": "steps[1].out[1]", "expected": "0x99", "actual": "0x2"}
    ]
    assert "call.defined-result" in deviation["explained_by"]
    assert document["rules"]["call.defined-result"]["level"] == "must"


def test_unusable_input_is_exit_code_2_and_the_rest_still_runs(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text('{"fid": 3}\n', encoding="utf-8")
    result = call(broken, ABI_FILES["messages"], tmp_path / "missing")
    assert result.exit_code == 2
    assert "messages: 200 passed" in result.stdout
    assert f"error: {broken}:1:" in result.stderr
    assert "No such file" in result.stderr
    assert "Traceback" not in result.output
    document = report(broken)
    assert document["errors"][0]["file"] == str(broken)
    assert document["errors"][0]["line"] == 1


def test_usage_errors_are_exit_code_2() -> None:
    assert call().exit_code == 2
    assert call("--preset", "odd", BEHAVIOUR).exit_code == 2


def test_hostile_text_is_shown_escaped(tmp_path: Path) -> None:
    row = spoilt(row_named("abi"))
    row["title"] = "\x1b]0;owned\x07 [red]<script>alert(1)</script> \u202e\n\r"
    result = call(saved(tmp_path, row))
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    assert "\\x1b]0;owned\\x07 [red]<script>" in result.output
    row["\x1b[2J"] = 1
    assert "\x1b" not in call(saved(tmp_path, row)).output


def test_progress_after_two_seconds_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(progress, "PROGRESS_AFTER", -1.0)
    result = call("--json", saved(tmp_path, row_named("abi")))
    json.loads(result.stdout)
    assert "anything.bin" in result.stderr


def test_help_has_examples() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert "Exit codes:" in result.output
