# SPDX-License-Identifier: BSD-2-Clause
"""The consumers, each copied away from the checkout and run there with its own tests.

By default with this interpreter and the wheel's contents; with OPTEE_MEDIATOR_CONSUMER_PYTHON set,
with that interpreter, into which the wheel was installed (what the continuous integration does).
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import PACKAGES, ROOT

CONSUMERS = ROOT / "tests" / "consumers"
NAMES = sorted(path.name for path in CONSUMERS.iterdir() if path.is_dir())


def test_the_three_consumers_are_there() -> None:
    assert NAMES == ["c_mediator", "fuzz_user", "hypervisor_model"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_consumer(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    project = tmp_path / name
    ignore = shutil.ignore_patterns("__pycache__", "build", ".hypothesis", ".pytest_cache")
    shutil.copytree(CONSUMERS / name, project, ignore=ignore)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    interpreter = environment.get("OPTEE_MEDIATOR_CONSUMER_PYTHON")
    if interpreter is None:
        interpreter = sys.executable
        environment["PYTHONPATH"] = str(request.getfixturevalue("unpacked"))
    else:
        environment.pop("PYTHONPATH", None)
    if (project / "Makefile").exists():
        command = ["make", "test", f"PYTHON={interpreter}"]
    else:
        command = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_consumer_uses_documented_names_only(name: str) -> None:
    """What it imports stands on a page of the reference, and no name begins with an underscore."""
    pages = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").rglob("*.md")
    )
    documented = set(re.findall(r"automodule:: ([\w.]+)", pages))
    for path in sorted((CONSUMERS / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules = [node.module]
                if node.module in ("smccc.constants",):
                    modules = [f"{node.module}.{alias.name}" for alias in node.names]
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
            elif isinstance(node, ast.Import):
                modules, private = [alias.name for alias in node.names], []
            else:
                continue
            ours = [m for m in modules if m.partition(".")[0] in PACKAGES]
            assert [m for m in ours if m not in documented] == [], path
            assert not (ours and private), path
