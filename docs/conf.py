# SPDX-License-Identifier: BSD-2-Clause
"""Sphinx configuration. Built with warnings as errors: ``make docs``."""

import os
from importlib import metadata

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

html_theme = "furo"
html_title = f"optee-mediator {version}"
html_copy_source = False
html_show_sphinx = False
