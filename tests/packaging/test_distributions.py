# SPDX-License-Identifier: BSD-2-Clause
"""What the wheel and the sdist contain, and that the wheel alone is a whole program."""

from __future__ import annotations

import ast
import email
import json
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.packaging.conftest import PACKAGES, ROOT, Python

MAX_WHEEL = 3_000_000
"""Bytes; big recorded data belongs into the sdist and the tests only."""


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_top_level_names_are_exactly_five(wheel: Path) -> None:
    tops = {PurePosixPath(name).parts[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert len(tops) == 6


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_WHEEL


def test_wheel_is_pure_typed_and_clean(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    found = names(wheel)
    for package in PACKAGES:
        assert f"{package}/py.typed" in found
    unwanted = [n for n in found if re.search(r"__pycache__|\.pyc$|(^|/)tests?/|\.so$|~$", n)]
    assert unwanted == []


def test_wheel_has_every_source_file(wheel: Path) -> None:
    here = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert here == {n for n in names(wheel) if n.endswith(".py")}


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
        assert any(n.endswith(".dist-info/licenses/LICENSE") for n in archive.namelist())
    assert metadata["License-Expression"] == "BSD-2-Clause"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = set(metadata.get_all("Provides-Extra") or ())
    assert {"fuzz", "crypto", "conformance", "plots"} <= extras
    required = metadata.get_all("Requires-Dist") or []
    base = {re.split(r"[<>=!~ ;\[]", r)[0] for r in required if "extra ==" not in r}
    assert base == {"attrs", "construct", "structlog", "numpy", "click", "rich"}


def test_sdist_can_be_tested_and_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {PurePosixPath(*PurePosixPath(n).parts[1:]).as_posix() for n in archive.getnames()}
    for name in ("Makefile", ".ci/run", "pyproject.toml", "README.md", "LICENSE", "REUSE.toml"):
        assert name in found
    here = {
        path.relative_to(ROOT).as_posix()
        for folder in (*PACKAGES, "tests")
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert here <= found
    assert not [n for n in found if re.search(r"__pycache__|\.venv|/_build/", n)]


def test_every_data_file_is_read_through_importlib_resources(
    wheel: Path, unpacked: Path, python: Python
) -> None:
    """Also from inside the zip, where no file path exists."""
    data = [
        n for n in names(wheel) if not n.endswith((".py", "py.typed")) and ".dist-info/" not in n
    ]
    assert data
    code = f"""
import importlib.resources, sys
sys.path.insert(0, {str(wheel)!r})
for name in {data!r}:
    package, _, rest = name.partition("/")
    assert importlib.resources.files(package).joinpath(rest).read_bytes(), name
import specs
assert ".whl" in specs.__spec__.origin, specs.__spec__.origin
print("all read")
"""
    assert python(code) == "all read\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_looks_for_its_own_file(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
        assert "__file__" not in used, path


CORE = [
    "smccc",
    "smccc.message",
    "smccc.page_list",
    "smccc.function_id",
    "smccc.declarations",
    "mediator",
    "mediator.host",
    "mediator.suspend",
    "mediator.optee.syscalls",
    "mediator.optee.mediator",
    "mediator.deployment.in_hypervisor",
    "mediator.hypervisor",
    "mediator.guest",
    "secure_world",
    "secure_world.ta",
    "secure_world.apps.crypto",
    "secure_world.apps.storage",
    "specs.mutants",
]


def test_the_core_loads_neither_test_tools_nor_the_commands_libraries(python: Python) -> None:
    code = f"""
import importlib, json, sys
for name in {CORE!r}:
    importlib.import_module(name)
print(json.dumps(sorted({{n.partition(".")[0] for n in sys.modules}})))
"""
    loaded = set(json.loads(python(code)))
    unwanted = "hypothesis pytest _pytest rich click jsonschema jinja2 tomlkit cryptography"
    assert loaded.isdisjoint(unwanted.split())
    assert {"smccc", "mediator", "secure_world"} <= loaded


def test_a_plain_import_is_light(python: Python) -> None:
    code = "import smccc, mediator, sys; print(*sorted(sys.modules))"
    loaded = {n.partition(".")[0] for n in python(code).split()}
    unwanted = "hypothesis pytest _pytest rich click construct structlog"
    assert loaded.isdisjoint(unwanted.split())


def test_the_core_needs_no_posix(python: Python) -> None:
    """As on a system without fcntl, resource, mmap and memfd_create."""
    code = f"""
import os, sys
for name in ("fcntl", "resource", "mmap"):
    sys.modules[name] = None
if hasattr(os, "memfd_create"):
    del os.memfd_create
import importlib
for name in {CORE!r}:
    importlib.import_module(name)
print("imported")
"""
    assert python(code) == "imported\n"


def test_modules_come_from_the_wheel_in_these_tests(python: Python, unpacked: Path) -> None:
    for package in PACKAGES:
        origin = python(f"import {package}; print({package}.__file__)").strip()
        assert Path(origin).is_relative_to(unpacked)


def test_every_extra_that_an_error_names_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    named: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            named |= set(re.findall(r"optee-mediator\[(\w+)\]", text))
            named |= set(re.findall(r"MissingExtra\(\"(\w+)\"", text))
    assert named
    assert named <= extras


def test_the_command_runs_from_the_wheel(python: Python) -> None:
    code = """
from mediator.command import main
main(["run", "--json"], standalone_mode=False)
"""
    report = json.loads(python(code))
    assert (report["ok"], report["checked"], report["problems"]) == (True, True, [])
