# SPDX-License-Identifier: BSD-2-Clause
"""What importing the wire costs its users."""

from __future__ import annotations

import subprocess
import sys

import pytest

import smccc

PROGRAM = """
import sys
{code}
print(" ".join(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def loaded(code: str) -> set[str]:
    """Top-level modules that are loaded after ``code`` in a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code=code)],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(run.stdout.split())


HEAVY = {"hypothesis", "pytest", "rich", "click", "construct", "numpy", "structlog", "asyncio"}
OURS = {"mediator", "secure_world", "specs", "fuzz"}


@pytest.mark.parametrize("module", ["smccc", "smccc.wire", "smccc.calls", "smccc.describe"])
def test_importing_the_wire_loads_nothing_heavy_and_nothing_of_ours(module: str) -> None:
    assert loaded(f"import {module}") & (HEAVY | OURS) == set()


def test_short_page_lists_do_without_numpy() -> None:
    code = """
from smccc import build_page_list, read_page_list
pages = dict(build_page_list([0x1000] * {count}, 0x2000))
read_page_list(pages.get, 0x2000, {count} * 4096, {count})
"""
    assert "numpy" not in loaded(code.format(count=37))
    assert "numpy" in loaded(code.format(count=38))


def test_construct_is_loaded_by_the_declarations_only() -> None:
    assert "construct" in loaded("import smccc.declarations")
    everything = "import smccc.calls, smccc.describe, smccc.conduit, smccc.names, smccc.sentences"
    assert "construct" not in loaded(everything)


def test_public_names_exist_and_are_sorted() -> None:
    assert list(smccc.__all__) == sorted(smccc.__all__)
    assert all(hasattr(smccc, name) for name in smccc.__all__)
