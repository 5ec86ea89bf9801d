# SPDX-License-Identifier: BSD-2-Clause
"""The public interface as a list: names of the modules that docs/reference documents.

A protocol is listed with its members, because who implements it notices every new one. The constants
of the ABI are left out: they are checked against the headers. To accept a change:

    python -m tests.docs.public_names > tests/docs/public_names.txt
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import DOCS, ROOT

LISTED = Path(__file__).with_name("public_names.txt")
AUTOMODULE = re.compile(r"^\.\. automodule:: ([\w.]+)$", re.MULTILINE)


def modules() -> list[str]:
    """What docs/reference documents, and the package that embedders import from."""
    found = {"mediator"}
    for page in sorted((DOCS / "reference").glob("*.md")):
        found.update(AUTOMODULE.findall(page.read_text("utf-8")))
    return sorted(name for name in found if not name.startswith("smccc.constants"))


def source_of(module: str) -> Path:
    """The file of a module or package."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names(source: str) -> Iterator[str]:
    """Public names that a module defines or passes on by ``import X as X`` or ``__all__``."""
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(name=name):
                yield name
                if any("Protocol" in ast.unparse(base) for base in node.bases):
                    yield from (f"{name}.{member}" for member in members(node))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                yield from ast.literal_eval(value)
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.ImportFrom(names=aliases):
                yield from (alias.name for alias in aliases if alias.asname == alias.name)


def members(node: ast.ClassDef) -> Iterator[str]:
    """Methods and attributes in the body of a class."""
    for part in node.body:
        match part:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def listing() -> list[str]:
    """``module: name``, sorted."""
    return sorted(
        {
            f"{module}: {name}"
            for module in modules()
            for name in names(source_of(module).read_text("utf-8"))
            if not any(part.startswith("_") and part != "__call__" for part in name.split("."))
        }
    )


if __name__ == "__main__":
    print("\n".join(listing()))
