# SPDX-License-Identifier: BSD-2-Clause
"""For all tests: Hypothesis profiles, and examples as tests.

``python`` blocks of README.md and docs/ run, and so does ``>>>`` in docstrings. The profile ``tests``
draws the same examples on every run; ``soak`` (``make soak``) searches at random, for long, and
remembers what it found in ``.hypothesis``.
"""

import os

from hypothesis import HealthCheck, settings
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.myst import DocTestDirectiveParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

# No deadline and no check for slowness: on a busy machine both fail at random.
_SLOW = [HealthCheck.too_slow]
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=_SLOW
)
settings.register_profile(
    "soak",
    deadline=None,
    max_examples=5000,
    stateful_step_count=200,
    print_blob=True,
    suppress_health_check=_SLOW,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))

_pages = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser(), DocTestDirectiveParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    # Its program must be built first: tests/app_c carries out the whole page.
    excludes=["docs/howto/app-in-c.md"],
)
_docstrings = Sybil(
    parsers=[DocTestParser()],
    # A single level each: ``**`` is no more than ``*`` to pathlib before Python 3.13.
    patterns=[
        f"{package}/{inside}*.py"
        for package in ("mediator", "secure_world", "smccc", "fuzz", "specs")
        for inside in ("", "*/", "*/*/")
    ],
    document_types={".py": PythonDocStringDocument},
)

pytest_collect_file = SybilCollection([_pages, _docstrings]).pytest()
