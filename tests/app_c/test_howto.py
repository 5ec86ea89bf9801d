# SPDX-License-Identifier: BSD-2-Clause
"""The how-to, done from an empty folder as it says; the example's Makefile; the size that is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.app_c.build import EXAMPLE, ROOT, STRICT, compile_app
from tests.app_c.twins import SOURCES
from tests.replay.golden import SESSION

PAGE = (ROOT / "docs" / "howto" / "app-in-c.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def environment(folder: Path) -> dict[str, str]:
    """With the command of this interpreter's environment first."""
    command = folder / "bin" / "optee-mediator"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from mediator.command import main; main()" "$@"\n'
    )
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def test_from_an_empty_folder_to_a_running_app(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    where = environment(tmp_path)
    for name in ("hello.c", "hello.toml"):
        shutil.copy(EXAMPLE / name, folder)
    commands = blocks("sh")
    assert len(commands) == 3
    for command in commands[:2]:
        subprocess.run(["sh", "-ec", command], cwd=folder, env=where, check=True)
    (program,) = blocks("python")
    (expected,) = blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=where,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (expected, "")


def test_the_smallest_app_stands_a_strict_compiler(tmp_path: Path) -> None:
    assert "-Wconversion" in STRICT
    compile_app([EXAMPLE / "hello.c"], tmp_path / "hello")
    compile_app([EXAMPLE / "hello.c"], tmp_path / "sanitized", sanitized=True)


def test_the_example_is_made_and_run_as_the_page_says(tmp_path: Path) -> None:
    where = environment(tmp_path)
    build = tmp_path / "build"
    subprocess.run(
        ["make", "-s", f"BUILD={build}"], cwd=EXAMPLE, env=where, check=True, capture_output=True
    )
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py"), str(build / "mini_mediator.toml")],
        env=where,
        capture_output=True,
        text=True,
        check=False,
    )
    (shown,) = blocks("console")
    _, expected = shown.split("mini_mediator.toml\n")
    number = re.compile(r"\d+ (entries|turns|system calls)")
    assert number.sub(r"# \1", done.stdout) == number.sub(r"# \1", expected), done.stderr


def test_the_commands_that_the_page_tells(tmp_path: Path) -> None:
    """As they stand there, with the app built elsewhere and a recording of the tests."""
    where = environment(tmp_path)
    build = tmp_path / "build"
    subprocess.run(
        ["make", "-s", f"BUILD={build}"], cwd=EXAMPLE, env=where, check=True, capture_output=True
    )
    lines = blocks("sh")[2].splitlines()
    assert len(lines) == 3
    for line in lines:
        words = line.partition(" | ")[0].replace("examples/app_c/build", str(build))
        words = words.replace("session.jsonl", str(SESSION))
        done = subprocess.run(
            words.split(), cwd=tmp_path, env=where, capture_output=True, text=True, check=False
        )
        # Its limits and offers are its own, which some of these guests and recordings do not expect.
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr
        if "--json" in line:
            report = json.loads(done.stdout)
            assert report["apps"][0]["complete"] is True
            assert report["checked"] is True
            assert not any(invariant["violations"] for invariant in report["invariants"])


def test_the_size_that_the_page_tells() -> None:
    lines = sum(len((EXAMPLE / name).read_text().splitlines()) for name in (*SOURCES, "mini.h"))
    assert "in about 1,750 lines" in PAGE
    assert 1650 < lines < 1850
