# SPDX-License-Identifier: BSD-2-Clause
"""Examples are tests: ``python`` blocks of README.md and docs/, and ``>>>`` in docstrings."""

from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.myst import DocTestDirectiveParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

_pages = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser(), DocTestDirectiveParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
)
_docstrings = Sybil(
    parsers=[DocTestParser()],
    patterns=[f"{p}/**/*.py" for p in ("mediator", "secure_world", "smccc", "fuzz", "specs")],
    document_types={".py": PythonDocStringDocument},
)

pytest_collect_file = SybilCollection([_pages, _docstrings]).pytest()
