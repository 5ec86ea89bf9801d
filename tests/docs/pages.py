# SPDX-License-Identifier: BSD-2-Clause
"""docs/generate.py as a module, and the pages of the documentation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _load() -> ModuleType:
    name = "docs_generate"
    spec = importlib.util.spec_from_file_location(name, DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


generate = _load()

PAGES = tuple(
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")))
    if "_build" not in page.parts
)  # fmt: skip
"""Everything that people read."""
