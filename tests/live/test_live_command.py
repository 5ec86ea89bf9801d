# SPDX-License-Identifier: BSD-2-Clause
"""The command where nothing is installed: it says so, with the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from mediator.command import main
from mediator.deployment.el0_app import launch
from mediator.deployment.el0_app.launch import Isolation
from mediator.live import qemu
from mediator.live.bundle import Bundle
from mediator.live.result import SERVED_AGAIN


def test_without_files_the_way_to_get_them_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["live", "--cache", str(tmp_path)])
    assert done.exit_code == 2
    assert "optee-mediator live fetch" in done.stderr
    assert done.stdout == ""


def test_the_doctor_names_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "PROGRAM", "no-such-emulator")
    done = CliRunner().invoke(main, ["live", "doctor", "--json", "--cache", str(tmp_path)])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["ready"] is False
    missing = {f["what"]: f["cure"] for f in report["findings"] if not f["found"] and f["needed"]}
    assert qemu.PACKAGE in missing["emulator"]
    assert "live fetch" in missing["guest files"]
    text = CliRunner().invoke(main, ["live", "doctor", "--cache", str(tmp_path)])
    assert "missing   emulator" in text.stdout


def test_a_folder_without_packages_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["live", "fetch", "--cache", str(tmp_path), "--packages", str(tmp_path)]
    )
    assert done.exit_code == 2
    assert "linux-image-arm64" in done.stderr


def test_help_has_examples() -> None:
    text = CliRunner().invoke(main, ["live", "--help"]).stdout
    for word in ("live fetch", "live doctor", "--guests", "Exit codes"):
        assert word in text


def test_a_missing_layer_of_isolation_ends_it(
    files: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = launch.observe

    def worse(*arguments: object) -> Isolation:
        seen = observe(*arguments)  # type: ignore[arg-type]
        return attrs.evolve(seen, layers={**seen.layers, "seccomp": False})

    monkeypatch.setattr(launch, "observe", worse)
    options = ["live", "--deployment", "el0-app", "--require-isolation"]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 2
    assert "missing: seccomp" in done.stderr


def test_a_guest_whose_app_is_killed(files: Bundle, tmp_path: Path) -> None:
    """Everything about it is in the JSON, in the trace and on the screen."""
    trace = tmp_path / "trace.json"
    options = ["--deployment", "el0-app", "--fault", "kill-app@20", "--run", "true"]
    done = CliRunner().invoke(main, ["live", *options, "--trace", str(trace), "--json"])
    report = json.loads(done.stdout)
    assert report["verdict"] == SERVED_AGAIN
    assert done.exit_code == 0
    assert report["deployment"] == "el0-app"
    assert report["deaths"] == 1
    assert [app["complete"] for app in report["apps"]] == [True, True]
    assert any("has died" in line for line in report["log"])
    drawn = {event["name"] for event in json.loads(trace.read_text("utf-8"))["traceEvents"]}
    assert {"AppStarted", "AppDied", "GuestLost", "PartitionCleaned", "PartitionRenewed"} <= drawn
