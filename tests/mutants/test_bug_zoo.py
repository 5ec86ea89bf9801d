# SPDX-License-Identifier: BSD-2-Clause
"""Every mutant of the zoo has a killer and is killed by it; every bug class has mutants."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from specs.mutants import expect_killed, load
from specs.mutants.bug_classes import BUG_CLASS_NAMES
from specs.rules import INVARIANTS, rules
from tests.mutants.zoo import KILLERS, NOT_APPLICABLE, page

STORAGE = "secure-storage."
"""Mutants with a test file of their own, and rules of their own."""


@pytest.mark.parametrize("name", sorted(KILLERS))
def test_killed(name: str) -> None:
    expect_killed(load()[name], KILLERS[name])


def test_no_mutant_is_without_a_killer() -> None:
    assert sorted(KILLERS) == [name for name in load() if not name.startswith(STORAGE)]


def test_every_killer_is_a_test_that_also_runs_on_its_own() -> None:
    for killer in KILLERS.values():
        assert killer.name.split("::")[-1].startswith("test_"), killer.name
        assert Path(__file__).parents[2].joinpath(killer.name.split("::")[0]).is_file()


def test_every_bug_class_has_mutants_or_a_reason() -> None:
    found = Counter(mutant.bug_class for mutant in load().values())
    for number in BUG_CLASS_NAMES:
        if number in NOT_APPLICABLE:
            assert not found[number]
            assert len(NOT_APPLICABLE[number]) > 20
        else:
            assert found[number] >= 2, f"bug class {number}"
    assert sorted(BUG_CLASS_NAMES) == list(range(1, 31))


def test_mutants_break_rules_that_exist_and_some_of_their_class() -> None:
    book = rules()
    covered = Counter[int]()
    for mutant in load().values():
        if mutant.id.startswith(STORAGE):
            continue
        cited = [name for name in mutant.breaks if name not in INVARIANTS]
        for name in cited:
            assert name in book.by_id, f"{mutant.id} breaks an unknown rule {name}"
        own = [name for name in cited if mutant.bug_class in book[name].bug_classes]
        covered[mutant.bug_class] += bool(own)
        assert own or len(cited) < len(mutant.breaks), f"{mutant.id}: no rule of its class"
    assert [number for number in BUG_CLASS_NAMES if not covered[number]] == []


def test_every_invariant_of_the_mediator_is_broken_by_a_mutant() -> None:
    broken = Counter(name for mutant in load().values() for name in mutant.breaks)
    for number in range(1, 9):
        assert broken[f"I{number}"] >= 3


def test_every_part_has_mutants() -> None:
    """Planted in the mediator most of all, and where a class lives in its surroundings there too."""
    parts = Counter(name.split(".")[0] for name in load())
    assert sum(parts.values()) > 200
    for part in ("call", "regd", "rpc", "life", "host", "secure", "guest"):
        assert parts[part] >= 3


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    document = Path(__file__).parents[2] / "docs" / "mutants.md"
    assert document.read_text("utf-8").rstrip() == "\n".join(page()).rstrip()
