# SPDX-License-Identifier: BSD-2-Clause
"""The page of figures: what the benchmarks report comes out as tables, and nothing else does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import _page
from tests.docs.pages import DOCS, ROOT

DOCUMENT: dict[str, object] = {
    "benchmark": "x",
    "rounds": 9,
    "gather_milliseconds": 1.25,
    "microseconds": {"S": 2.5, "slow": 1952.787},
    "gates": [
        {"name": "a", "ratio": 15.5, "target": 16.0, "target_met": True, "passed": True},
        {"name": "b", "ratio": 9.0, "target": 20.0, "at_least": True, "target_met": False, "passed": False},
        {"name": "c", "ratio": 1.0, "target": None, "target_met": True, "passed": True},
    ],
    "passed": False,
}  # fmt: skip


def page() -> str:
    return _page.page(
        {"commit": "abc"}, {"x": ("Title.\n\nMore.\n\n    python x\n\nEnd.", DOCUMENT)}
    )


def test_all_figures_are_there() -> None:
    text = page()
    for line in (
        "| commit | abc |",
        "## x\n\nTitle.\n\nMore.\n\n```console\n$ python benchmarks/x.py\n```",
        "rounds: 9, gather milliseconds: 1.25.",
        "| S | 2.5 |\n| slow | 1,952.79 |",
        "| name | ratio | target | target met |\n| --- | ---: | ---: | ---: |",
        "| a | 15.5 | at most 16 | yes |",
        "| b | 9 | at least 20 | **no** |",
        "| c | 1 |  |  |",
    ):
        assert line in text
    assert "End." not in text
    assert "passed" not in text


def test_the_machine_is_described_but_not_named() -> None:
    facts = _page.machine()
    assert facts["commit"]
    assert "processors" in facts["system"]
    text = json.dumps(facts)
    for secret in (str(Path.home()), str(ROOT), _node()):
        assert not secret or secret not in text


def _node() -> str:
    import platform

    return platform.node()


def test_the_page_is_of_our_benchmarks() -> None:
    lines = (DOCS / "evidence" / "speed.md").read_text().splitlines()
    sections = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert sections
    assert set(sections) <= set(runner.benchmarks())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "no benchmark nonsense"),
        (["--markdown"], "needs a file"),
        (["--markdown", "/dev/null/page.md", "idle_guest"], "cannot be written"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main(arguments) == 2
    assert says in capsys.readouterr().err


def test_it_writes_a_page(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.md"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks",
            "idle_guest",
            "--markdown",
            str(target),
            "--guests",
            "2",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "| extents | memory |" in target.read_text()
