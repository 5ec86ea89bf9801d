# SPDX-License-Identifier: BSD-2-Clause
"""Every scenario in the documentation can be used and ends well."""

from __future__ import annotations

import re

import pytest

from mediator.scenario.reader import parse_scenario
from mediator.scenario.run import Run
from tests.docs.pages import PAGES, ROOT

BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCENARIOS = [
    pytest.param(text, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
    for page in PAGES
    for number, text in enumerate(BLOCK.findall(page.read_text("utf-8")))
]


@pytest.mark.parametrize("text", SCENARIOS)
def test_a_scenario_of_the_documentation_runs(text: str) -> None:
    result = Run(parse_scenario(text.encode(), "documentation")).execute()
    assert result.ok, result.problems
