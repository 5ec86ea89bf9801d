# SPDX-License-Identifier: BSD-2-Clause
"""Who kills which mutant, and the page of the documentation that says so.

``python -m tests.mutants.zoo > docs/mutants.md``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from specs.mutants import Mutant, load
from specs.mutants.bug_classes import BUG_CLASS_NAMES
from tests.explore import test_planted as explored
from tests.mutants import test_secure_storage as storage
from tests.mutants.killer import Killer, by
from tests.mutants.killers_of_containment import CONTAINMENT
from tests.mutants.killers_of_the_boundary import BOUNDARY
from tests.mutants.killers_of_the_machine import MACHINE
from tests.mutants.killers_of_the_mediator import MEDIATOR
from tests.secure_world_apps import test_object_store

ORDERS: Final[Mapping[str, Killer]] = {
    mutant: by(explored.test_no_schedule_fails, system)
    for mutant, system in explored.PLANTED.items()
    if mutant.startswith(explored.OWN)
}
"""Bugs of order: the explorer kills them."""

KILLERS: Final[Mapping[str, Killer]] = {**MEDIATOR, **MACHINE, **BOUNDARY, **CONTAINMENT, **ORDERS}
"""Mutant → killer; those of the secure storage have a test file of their own."""

NOT_APPLICABLE: Final[Mapping[int, str]] = {}
"""Bug classes that cannot occur here → why not. None: each can."""

HEAD: Final = """\
# The bug zoo

A test that never failed shows little. The *mutants* below are {count} planted bugs, {least} or more for each of the
{classes} ways in which TEE mediation goes wrong; each has a story, the rules and invariants that it breaks, and a *killer*: a
test that passes on the sound code and fails under the mutant, which the test suite asserts for every one of them. Rules are
those of {{doc}}`deviations`, I1 to I10 the invariants of {{doc}}`concepts/invariants`. How to write one: {{doc}}`reference/mutants`.

A mutant is a change of a few words in one or two functions (or, in the storage, of an attribute). It breaks one thing and
leaves the rest alone; one that no call survives would be killed by any test.

This page is made by `python -m tests.mutants.zoo`.
"""


def page() -> Iterator[str]:
    """The lines of ``docs/mutants.md``."""
    mutants = load()
    by_class: dict[int, list[Mutant]] = {number: [] for number in BUG_CLASS_NAMES}
    for mutant in mutants.values():
        by_class[mutant.bug_class].append(mutant)
    yield HEAD.format(
        count=len(mutants),
        classes=len(BUG_CLASS_NAMES),
        least={2: "two", 3: "three"}[min(len(found) for found in by_class.values())],
    )
    for number, name in BUG_CLASS_NAMES.items():
        yield f"## {number}. {name[0].upper()}{name[1:]}"
        yield ""
        for mutant in by_class[number]:
            breaks = ", ".join(f"`{item}`" for item in mutant.breaks)
            yield f"`{mutant.id}`"
            yield f": {mutant.story}"
            yield f"  Breaks {breaks}. Killed by `{_killer(mutant.id)}`."
            yield ""


def _killer(mutant: str) -> str:
    if mutant in KILLERS:
        return KILLERS[mutant].name
    test = storage.KILLERS[mutant]
    if test.__name__ == "<lambda>":
        return "tests/secure_world_apps/test_object_store.py::test_torn_writes_leave_the_old_state"
    assert test.__module__ == test_object_store.__name__
    return Killer(test).name


if __name__ == "__main__":
    print("\n".join(page()).rstrip())
