# SPDX-License-Identifier: BSD-2-Clause
"""A public name comes, goes or changes only when somebody means it."""

from __future__ import annotations

from tests.docs.public_names import LISTED, listing, names

UPDATE = "if that is meant: python -m tests.docs.public_names > tests/docs/public_names.txt, and a line in CHANGELOG.md"


def test_public_names_are_the_listed_ones() -> None:
    listed, found = set(LISTED.read_text("utf-8").splitlines()), set(listing())
    assert listed - found == set(), f"public names are gone; {UPDATE}"
    assert found - listed == set(), f"there are new public names; {UPDATE}"


def test_what_is_a_public_name() -> None:
    source = """
from a import b as b, c
LIMIT: int = 1
Alias = int
def f(): ...
class Host(Protocol):
    size: int
    def read(self): ...
class Plain:
    def hidden_in_the_class(self): ...
"""
    assert sorted(names(source)) == [
        "Alias",
        "Host",
        "Host.read",
        "Host.size",
        "LIMIT",
        "Plain",
        "b",
        "f",
    ]
