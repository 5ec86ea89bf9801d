# SPDX-License-Identifier: BSD-2-Clause
"""The pages of the documentation: generated ones are current, links lead somewhere, tables are true."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from mediator.host import Host
from mediator.optee.settings import Limits, MediatorSettings
from tests.docs.pages import DOCS, PAGES, ROOT, generate

LINK = re.compile(r"\]\(([^)\s]+)\)")
DIRECTIVE_FILE = re.compile(r"^```\{(?:literalinclude|include)\} (\S+)", re.MULTILINE)


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    written = (DOCS / name).read_text("utf-8")
    assert written == generate.text_of(name), "python docs/generate.py writes it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_are_relative_and_valid(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in [*LINK.findall(text), *DIRECTIVE_FILE.findall(text)]:
        assert "://" not in target, target
        assert not target.startswith("/"), target
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text("utf-8")), target


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_every_page_is_in_a_table_of_contents() -> None:
    listed: set[Path] = {DOCS / "index.md"}
    for page in PAGES:
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S
        ):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    listed.add((page.parent / f"{line}.md").resolve())
    assert {page for page in PAGES if DOCS in page.parents} == listed


def table_of(page: str, *head: str) -> list[list[str]]:
    """The rows of the table whose first columns have these headings."""
    text = (DOCS / page).read_text("utf-8")
    first = r" \| ".join(head)
    (block,) = re.findall(rf"^\| {first} \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]


def test_the_table_of_limits_is_that_of_the_settings() -> None:
    presets = (Limits(), MediatorSettings.reference().limits)

    def shown(preset: Limits, name: str) -> str:
        value = getattr(preset, name)
        if value is not None:
            return str(value)
        more = " and `returning`" if preset.returning else ""
        return {"calls": f"the TEE's thread count{more}", "rpc_buffers": "none"}[name]

    expected = [
        [f"`{field.name}`", *[shown(preset, field.name) for preset in presets]]
        for field in attrs.fields(Limits)
    ]
    rows = table_of("concepts/limits.md", "limit", "default")
    assert [row[:3] for row in rows] == expected


def test_the_guide_to_embedding_explains_every_method_of_a_host() -> None:
    listed = [
        name.strip("` ")
        for row in table_of("howto/embed.md", "method")
        for name in row[0].split(",")
    ]
    methods = [name for name in vars(Host) if not name.startswith("_")]
    assert sorted(listed) == sorted(methods)


def test_every_page_speaks_of_released_things_only() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        assert not re.search(r"\b(TODO|FIXME|TBD)\b", text), page
