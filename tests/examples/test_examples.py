# SPDX-License-Identifier: BSD-2-Clause
"""Every example runs as a user would run it, and prints what its documentation promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPECTED = {
    "embed_minimal": ("OP-TEE found: True\nguest: Done()\n40 + 2 = 42\npages still pinned: 0\n"),
    "unicorn_smc": (
        "UID: 384fb3e0 e7f811e3 af630002 a5d5c51b\nsession 1 result 0x0\n40 + 2 = 42\ntraps: 4\n"
    ),
}


def test_every_example_is_here() -> None:
    # Those with live guests need more than a Python: tests/live runs them.
    names = [path.stem for path in EXAMPLES.glob("*.py") if not path.name.startswith("live_")]
    assert sorted(names) == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}"],
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout == EXPECTED[name]
