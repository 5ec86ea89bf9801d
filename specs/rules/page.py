# SPDX-License-Identifier: BSD-2-Clause
"""The rules as a page for people: ``python -m specs.rules.page > docs/deviations.md``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from specs.rules import Rule, RuleBook, rules

HEAD: Final = """\
# Deviations from the recorded mediator

Where the recorded mediator, the recorded OP-TEE and the headers do not agree, a rule says what this mediator does. Rules
have an id that is never reused; their text stands once, in `specs/rules/rules.toml`, and this page is made from it.

The level says how binding a rule is: *must* for any mediator of this ABI, *should* where a mediator without it works but
worse, *may* for a free choice, where the sentence is ours.

## Rules that explain a difference

A behaviour scenario of kind `quirk` may end differently here than in the recording. `optee-mediator vectors` then names
the rules below. They are found by what happens in the scenario (the *facts*), never by its name or category.
"""

ALL: Final = """\
## All rules

With the invariants of the design (I1 to I10) and the bug classes that a breach belongs to, and the categories of behaviour
vectors that test the rule.
"""


def page(book: RuleBook) -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    yield "| facts | rule | level | what this mediator does |"
    yield "| --- | --- | --- | --- |"
    for rule in book:
        if rule.facts:
            yield f"| {', '.join(sorted(rule.facts))} | `{rule.id}` | {rule.level} | {rule.sentence} |"
    yield ""
    yield ALL
    yield "| rule | level | sentence | source | cites |"
    yield "| --- | --- | --- | --- | --- |"
    for rule in book:
        yield f"| `{rule.id}` | {rule.level} | {rule.sentence} | {rule.source} | {_cites(rule)} |"


def _cites(rule: Rule) -> str:
    parts = [*rule.invariants]
    if rule.bug_classes:
        parts.append("bugs " + " ".join(str(number) for number in rule.bug_classes))
    if rule.categories:
        parts.append("vectors " + " ".join(rule.categories))
    return "; ".join(parts)


if __name__ == "__main__":
    print("\n".join(page(rules())))
