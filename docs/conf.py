# SPDX-License-Identifier: BSD-2-Clause
"""Sphinx configuration. Built with warnings as errors: ``make docs``."""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

os.environ.setdefault("NO_COLOR", "1")  # help texts of the command as plain text

project = "optee-mediator"
author = "the optee-mediator authors"
copyright = f"2026, {author}"
version = release = metadata.version("optee-mediator")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_click",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "conftest.py"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "show-inheritance": True,
}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"

# Two packages may use one name (a GuestSpec of a machine, and of a target): an annotation that is
# only a text then has two targets, and links to one of them.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"optee-mediator {version}"
html_copy_source = False
html_show_sphinx = False


def _examples_are_literal(app: object, ctx: object, lines: list[str]) -> None:
    """Epilogs hold examples for a shell, in which ``*`` and ``|`` are no markup."""
    text = [line.replace("\b", "").rstrip() for line in lines]
    if any(text):
        lines[:] = ["::", "", *("   " + line for line in text), ""]


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-epilog", _examples_are_literal)
