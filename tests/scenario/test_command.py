# SPDX-License-Identifier: BSD-2-Clause
"""The command ``run``: exit codes, reports, and text from files that would drive a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import structlog
from click.testing import CliRunner, Result

from mediator.command import main, progress, versions
from mediator.scenario import report as reports
from mediator.scenario.run import Run
from tests.scenario.support import ALPHA, HEADER, TRACES, schema
from tests.scenario.trace_check import load

VALUES = '[[guest.workload]]\nrun = "values"\n'


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["run", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def saved(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "scenario.toml"
    file.write_text(HEADER + text, encoding="utf-8")
    return file


def report(*arguments: str | Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(call("--json", *arguments).stdout)
    jsonschema.validate(document, schema("report"))
    return document


def test_all_well(tmp_path: Path) -> None:
    result = call(saved(tmp_path, ALPHA + VALUES))
    assert (result.exit_code, result.stderr) == (0, "")
    for part in (
        "scenario test (",
        "1 guest on 2 pCPUs",
        "linux-6.12  rpc-arg, smc",
        "1 round, 5 checks passed",
        "What it cost the host",
        "I8  no lost wake-up",
        "0 pages pinned",
        "Digest      sha256 ",
        "OK: no invariant was violated, every guest ended as expected, nothing is left pinned",
    ):
        assert part in result.stdout
    assert "RPCs: what the TEE asked" not in result.stdout
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 118
    assert [line for line in lines if line != line.rstrip()] == []
    assert lines[-1].startswith("OK: ")


def test_every_kind_of_guest_is_shown() -> None:
    result = call("builtin:interleave")
    assert result.exit_code == 0
    for part in (
        "RPCs: what the TEE asked of its guests",
        "33 of 33 answers as recorded",
        " attacks ",
        "answers: EBADADDR ",
        "heir is created under the id of victim, 5",
        "rounds, 6 checks passed",
        "then destroyed",
        "interleave mode",
    ):
        assert part in result.stdout


def test_a_problem(tmp_path: Path) -> None:
    result = call(saved(tmp_path, ALPHA + VALUES + '[expect]\nrpcs = ["FS"]\n'))
    assert result.exit_code == 1
    assert "FAILED: 1 problem\n  expectation: no RPC FS occurred" in result.stdout


def test_quiet(tmp_path: Path) -> None:
    file = saved(tmp_path, ALPHA + VALUES)
    assert call(file, "--quiet", "--seed", "5").stdout == "test, seed 5: OK\n"
    file = saved(tmp_path, ALPHA + VALUES + '[expect]\nrpcs = ["FS"]\n')
    result = call(file, "-q")
    assert result.stdout == "expectation: no RPC FS occurred\ntest, seed 1: FAILED: 1 problems\n"
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ALPHA + "vcpus = 99\n", "scenario.toml:7: guest[0].vcpus: 99 is not in 1..16"),
        (ALPHA + "vcpus =\n", "scenario.toml:7: is not TOML: Invalid value"),
        ('[[guest]]\nname = "r"\nkernel = "replay"\ntrace = "no.jsonl"\n', "no.jsonl: "),
        (
            '[[guest]]\nname = "r"\nkernel = "replay"\ntrace = "builtin:no"\n',
            "trace: there is no builtin:no",
        ),
        (
            '[[guest]]\nname = "r"\nkernel = "replay"\nfrom = "nowhere"\n',
            "has no marker 'nowhere'",
        ),
    ],
)
def test_unusable_input(tmp_path: Path, text: str, complaint: str) -> None:
    for options in ([], ["--json"], ["--quiet"], ["--trace", tmp_path / "t.json"]):
        result = call(saved(tmp_path, text), *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert complaint in result.stderr
        assert result.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["scenario.toml"]


def test_unusable_arguments(tmp_path: Path) -> None:
    for name, complaint in (
        ("builtin:no", "builtin:no: is not one of default, "),
        (str(tmp_path / "no.toml"), "No such file or directory"),
    ):
        result = call(name)
        assert result.exit_code == 2
        assert complaint in result.stderr
    result = call(saved(tmp_path, ALPHA), "--trace", tmp_path / "no" / "t.json")
    assert result.exit_code == 2
    assert "t.json: cannot be written: No such file or directory" in result.stderr
    assert call("--seed", "x").exit_code == 2


def test_a_replayed_trace_beside_the_scenario(tmp_path: Path) -> None:
    name = "linux-optee-session.jsonl"
    (tmp_path / name).write_bytes((TRACES / name).read_bytes())
    text = f'[[guest]]\nname = "r"\nkernel = "replay"\nscatter = false\ntrace = "{name}"\n'
    (found,) = report(saved(tmp_path, text))["guests"]
    assert (found["replay"]["answers"], found["replay"]["alike"]) == (33, 33)


def test_json_is_the_report_and_nothing_else(tmp_path: Path) -> None:
    file = saved(tmp_path, ALPHA + VALUES)
    trace = tmp_path / "t.json"
    document = report(file, "--trace", trace, "--seed", "9")
    assert document["format"] == reports.FORMAT
    assert document["version"] == reports.VERSION == versions.FORMATS[reports.FORMAT]
    assert (document["ok"], document["seed"]) == (True, 9)
    assert document["trace"] == str(trace)
    assert load(trace).processes[10] == "guest 1: alpha"
    assert call(file, "--json").stdout == call(file, "--json").stdout


def test_a_failed_run_as_json(tmp_path: Path) -> None:
    file = saved(tmp_path, ALPHA + VALUES + '[limits]\ntime = "20us"\n')
    document = report(file)
    assert (document["ok"], document["end"]) == (False, "time")
    assert document["problems"][0]["where"] == "run"


def test_the_golden_report_of_version_1() -> None:
    golden = json.loads((Path(__file__).parent / "data" / "report-v1.json").read_text("utf-8"))
    jsonschema.validate(golden, schema("report"))
    failure = reports.failure_as_json("name", "path", 1, "error")
    jsonschema.validate(failure, schema("report"))


@pytest.mark.parametrize(
    "change",
    [
        {"ok": 1},
        {"surprise": 1},
        {"digest": "0"},
        {"version": 2},
        {"guests": [{}]},
        {"end": "tired"},
        {"story": [["x", 1]]},
    ],
    ids=str,
)
def test_the_schema_refuses_other_documents(change: dict[str, object]) -> None:
    golden = json.loads((Path(__file__).parent / "data" / "report-v1.json").read_text("utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(golden | change, schema("report"))


def test_a_simulation_that_breaks_is_told_as_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path, ALPHA + VALUES)

    def broken(self: Run, progress: object) -> None:
        raise RuntimeError("out of \x1b[31morder")

    monkeypatch.setattr(Run, "_run", broken)
    result = call(file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: the simulation failed (seed 1): RuntimeError: out of \\x1b[31morder\n"
    )
    assert "Traceback" in call(file, "--verbose").stderr
    trace = tmp_path / "t.json"
    result = call(file, "--json", "--trace", trace)
    jsonschema.validate(json.loads(result.stdout), schema("report"))
    assert json.loads(result.stdout)["error"] == "RuntimeError: out of \x1b[31morder"
    assert load(trace).processes


# Hostile text

EVIL = "<script>alert(1)</script>\\u001b[2J[red]b[/red]\\u0007\\u202e"


def test_names_from_files_never_drive_a_terminal(tmp_path: Path) -> None:
    text = (
        f'[[guest]]\nname = "{EVIL}"\nram = "16MiB"\n{VALUES}'
        f'[[event]]\ndo = "destroy"\nguest = "{EVIL}"\ncall = 3\n'
    )
    header = HEADER.replace('name = "test"', f'name = "{EVIL}"\ndescription = "{EVIL}"')
    file = tmp_path / "[red]\x1b.toml"
    file.write_text(header + text, encoding="utf-8")
    outputs = [
        call(file, *options)
        for options in ([], ["--quiet"], ["--json"], ["-vv"], ["--trace", tmp_path / "t.json"])
    ]
    for result in outputs:
        assert result.exit_code == 1
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.output)
        assert "<script>alert(1)</script>" in result.output
        assert "[red]b[/red]" in result.output
    assert "\x1b" not in (tmp_path / "t.json").read_text("utf-8")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(b'a = 1\nname = "\xff\xfe\x1b[31m"\n')
    result = call(file)
    assert result.exit_code == 2
    assert result.stderr.endswith("bad.toml:2: is not UTF-8 text\n")


def test_complaints_show_control_characters_escaped(tmp_path: Path) -> None:
    result = call(saved(tmp_path, ALPHA + '"\\u001b[31m" = 1\n'))
    assert result.exit_code == 2
    assert "guest[0].\\x1b[31m: is not known here" in result.stderr


# Everything else


def test_verbose_logs_to_standard_error_only(tmp_path: Path) -> None:
    file = saved(tmp_path, ALPHA + VALUES)
    result = call(file, "-v", "--json")
    jsonschema.validate(json.loads(result.stdout), schema("report"))
    assert "GuestBooted" in result.stderr
    assert not structlog.is_configured()
    assert "ClientCall" not in result.stderr
    assert "ClientCall" in call(file, "-vv").stderr


def test_the_list_of_scenarios_and_workloads() -> None:
    result = call("--list")
    assert result.exit_code == 0
    assert "default, the default: " in result.stdout
    assert "size = 20000: bytes of the registered buffers" in result.stdout
    document = json.loads(call("--list", "--json").stdout)
    assert {"default", "interleave", "hostile", "pressure"} <= set(document["scenarios"])
    assert "storage" in document["workloads"]


def test_help_has_examples() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert "optee-mediator run --trace run.json" in result.stdout
    assert "Exit codes: 0 all well" in result.stdout


def test_progress_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PROGRESS_AFTER", -1.0)
    file = saved(tmp_path, ALPHA + VALUES)
    result = call(file)
    assert re.search(r"^simulating test: .* ms of virtual time, \d+ calls, ", result.stderr)
    assert call(file, "--quiet").stderr == ""
