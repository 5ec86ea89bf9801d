# SPDX-License-Identifier: BSD-2-Clause
"""Every scenario in the documentation can be used and ends well; manifests of apps can be read."""

from __future__ import annotations

import re

import pytest

from mediator.deployment.el0_app.manifest import parse
from mediator.scenario.reader import parse_scenario
from mediator.scenario.run import Run
from tests.docs.pages import PAGES, ROOT

BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
MANIFEST = 'format = "optee-mediator-app-manifest"'


BLOCKS = {
    f"{page.relative_to(ROOT).as_posix()}-{number}": text
    for page in PAGES
    for number, text in enumerate(BLOCK.findall(page.read_text("utf-8")))
}
MANIFESTS = [name for name, text in BLOCKS.items() if text.startswith(MANIFEST)]


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in MANIFESTS])
def test_a_scenario_of_the_documentation_runs(name: str) -> None:
    result = Run(parse_scenario(BLOCKS[name].encode(), "documentation")).execute()
    assert result.ok, result.problems


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_of_the_documentation_can_be_read(name: str) -> None:
    assert parse(BLOCKS[name], name).syscalls
