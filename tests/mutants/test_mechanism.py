# SPDX-License-Identifier: BSD-2-Clause
"""The mutant mechanism itself: it plants, undoes everything, and refuses what shows nothing."""

from __future__ import annotations

import types
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest

from specs.mutants import Mutant, MutantError, Patch, expect_killed, load, planted, survives, zoo


class Base:
    @staticmethod
    def half(n: int) -> int:
        return n // 2

    @property
    def size(self) -> int:
        return 4


class Derived(Base):
    def twice(self, n: int) -> int:
        return 2 * n


TABLE = {1: "one"}


def mutant(plant: Callable[[Patch], None], name: str = "test.sample") -> Mutant:
    return Mutant(
        id=name,
        story="A bug that only exists to be found.",
        bug_class=1,
        breaks=("I4",),
        plant=plant,
    )


def test_everything_comes_back_as_it_was_also_after_an_exception() -> None:
    before = dict(vars(Base)), dict(vars(Derived)), dict(TABLE)

    def plant(patch: Patch) -> None:
        patch.attribute(Base, "half", staticmethod(lambda n: n))
        patch.attribute(Base, "size", property(lambda self: 5))
        patch.attribute(Derived, "size", 6)  # inherited
        patch.attribute(Derived, "twice", lambda self, n: n)
        patch.wrap(Derived, "twice", lambda old: lambda self, n: old(self, n) + 1)
        patch.item(TABLE, 1, "uno")

    def look() -> None:
        with planted(mutant(plant)):
            assert (Base.half(8), Base().size, Derived().size) == (8, 5, 6)
            assert Derived().twice(3) == 4
            assert TABLE[1] == "uno"
            raise KeyError

    with pytest.raises(KeyError):
        look()
    assert (dict(vars(Base)), dict(vars(Derived)), dict(TABLE)) == before


def test_a_plant_that_fails_half_way_is_undone() -> None:
    def plant(patch: Patch) -> None:
        patch.item(TABLE, 1, "uno")
        patch.attribute(Base, "no_such_thing", 1)

    with pytest.raises(MutantError, match="no_such_thing"), planted(mutant(plant)):
        pass
    assert TABLE == {1: "one"}
    with pytest.raises(MutantError):
        survives(mutant(plant), lambda: None)
    with pytest.raises(MutantError, match="no item"):
        survives(mutant(lambda patch: patch.item(TABLE, 2, "two")), lambda: None)


def test_killed_means_passes_without_and_fails_with() -> None:
    wrong = mutant(lambda patch: patch.attribute(Derived, "twice", lambda self, n: n * n))

    def weak() -> None:
        assert Derived().twice(2) == 4

    def strong() -> None:
        assert Derived().twice(3) == 6

    def broken() -> None:
        assert Derived().twice(3) == 7

    expect_killed(wrong, strong)
    with pytest.raises(AssertionError, match=r"test\.sample.*I4.*survived"):
        expect_killed(wrong, weak)
    with pytest.raises(AssertionError, match="7"):
        expect_killed(wrong, broken)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "no-dot"},
        {"id": "Upper.case"},
        {"story": "short"},
        {"bug_class": 0},
        {"bug_class": 31},
        {"breaks": ()},
    ],
)
def test_a_mutant_needs_a_proper_record(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "id": "test.sample",
        "story": "A bug that only exists to be found.",
        "bug_class": 1,
        "breaks": ("I1",),
        "plant": lambda patch: None,
    }
    Mutant(**fields)
    with pytest.raises(ValueError, match=r".+"):
        Mutant(**fields | change)


def test_the_zoo_loads_in_order_and_every_mutant_can_be_planted() -> None:
    mutants = load()
    assert list(mutants) == sorted(mutants)
    assert len(mutants) >= 6
    for name, found in mutants.items():
        assert found.id == name
        with planted(found):
            pass


def test_the_registry_refuses_what_is_no_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = types.ModuleType("foreign_mutants")
    point = metadata.EntryPoint("foreign", "foreign_mutants", "optee_mediator.mutants")
    monkeypatch.setitem(__import__("sys").modules, "foreign_mutants", plugin)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    with pytest.raises(MutantError, match="foreign_mutants"):
        load()
    own = mutant(lambda patch: None, "foreign.one")
    plugin.MUTANTS = (own,)  # type: ignore[attr-defined]
    assert load()["foreign.one"] is own
    plugin.MUTANTS = (own, own)  # type: ignore[attr-defined]
    with pytest.raises(MutantError, match=r"foreign\.one again"):
        load()
    assert zoo.__path__
