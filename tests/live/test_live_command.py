# SPDX-License-Identifier: BSD-2-Clause
"""The command where nothing is installed: it says so, with the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mediator.command import main
from mediator.live import qemu


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
