# SPDX-License-Identifier: BSD-2-Clause
"""Rules for all files of the repository that no linter knows."""

from __future__ import annotations

import ast
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.packaging.conftest import PACKAGES, ROOT

SPDX = ": ".join(("SPDX-License-Identifier", "BSD-2-Clause"))  # in two parts for the reuse tool
SOURCES = (*PACKAGES, "tests", "benchmarks", "examples", "docs")
TEXT = {".py", ".md", ".toml", ".c", ".h", ".s", ".json", ".jsonl", ".txt"}


def files(*suffixes: str) -> Iterator[Path]:
    for folder in SOURCES:
        for parent, folders, entries in os.walk(ROOT / folder):
            folders[:] = sorted(f for f in folders if f not in ("__pycache__", "_build", "build"))
            for entry in sorted(entries):
                if Path(entry).suffix in suffixes:
                    yield Path(parent, entry)


def test_every_source_file_names_its_licence_at_the_top() -> None:
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in files(".py", ".c", ".h", ".s")
        if SPDX not in path.read_text(encoding="utf-8")[:200]
    ]
    assert missing == []


def test_text_is_utf8_with_line_feeds() -> None:
    bad = []
    for path in files(*TEXT):
        data = path.read_bytes()
        data.decode("utf-8")
        if b"\r" in data or (data and path.suffix != ".jsonl" and not data.endswith(b"\n")):
            bad.append(path.relative_to(ROOT).as_posix())
    assert bad == []


def test_tests_are_neither_skipped_nor_expected_to_fail() -> None:
    """A test that does not run shows nothing. Only `skipif` for a platform may stand, with a reason."""
    marks = []
    for path in files(".py"):
        if "tests" not in path.relative_to(ROOT).parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        explained = [
            node.func
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and any(k.arg == "reason" for k in node.keywords)
        ]
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute)):
                continue
            if node.value.attr != "mark" or node.attr not in ("skip", "skipif", "xfail"):
                continue
            if node.attr != "skipif" or node not in explained:
                marks.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert marks == []


def test_the_ci_script_is_executable() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def test_the_changelog_knows_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
