# SPDX-License-Identifier: BSD-2-Clause
"""Examples in the documentation are tests: every ``python`` block of README.md and docs/ runs."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.myst import DocTestDirectiveParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser(), DocTestDirectiveParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
).pytest()
