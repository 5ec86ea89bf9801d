# SPDX-License-Identifier: BSD-2-Clause
"""Mutants as changes of text: exact, undone completely, and loud if the text is not there."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest

from specs.mutants import Mutant, MutantError, Patch, expect_killed, planted
from specs.mutants.edits import edits, resolve
from tests.mutants import samples

HERE = "tests.mutants.samples"


def mutant(*changes: tuple[str, str, str]) -> Mutant:
    return Mutant(
        id="test.sample",
        story="A bug that only exists to be found.",
        bug_class=1,
        breaks=("I4",),
        plant=edits(*((f"{HERE}:{where}", old, new) for where, old, new in changes)),
    )


def test_a_function_changes_for_everybody_who_has_it_and_comes_back() -> None:
    table = {"half": samples.half}
    code = samples.half.__code__
    with planted(mutant(("half", "n // 2", "n // 2 + LARGE"))):
        assert table["half"](8) == 104
        assert samples.half is table["half"]
    assert table["half"](8) == 4
    assert samples.half.__code__ is code


def test_layout_comments_and_quotes_do_not_matter() -> None:
    with planted(mutant(("spread_out", "return ('a', n)", "return ('b', n)"))):
        assert samples.spread_out(3) == ("b", 3)
    assert samples.spread_out(3) == ("a", 3)


def test_a_change_that_is_no_python_kills_nothing() -> None:
    broken = mutant(("half", "return n // 2", "return n // else 2"))
    with pytest.raises(MutantError, match="half would be no Python"), planted(broken):
        pass
    with pytest.raises(MutantError, match="half would be no Python"):
        expect_killed(broken, lambda: None)


def test_methods_properties_and_static_methods() -> None:
    sample = samples.Sample()
    changes = (
        ("Sample.twice", "2 * n", "3 * n"),
        ("Sample.size.fget", "return 4", "return 5"),
        ("Sample.plus", "n + 1", "n + 2"),
    )
    with planted(mutant(*changes)):
        assert (sample.twice(2), sample.size, sample.plus(1)) == (6, 5, 3)
    assert (sample.twice(2), sample.size, sample.plus(1)) == (4, 4, 2)


def test_a_coroutine_function_stays_one() -> None:
    with planted(mutant(("later", "return n", "return -n"))):
        coroutine = samples.later(4)
        with pytest.raises(StopIteration) as stop:
            coroutine.send(None)
    assert stop.value.value == -4


def test_several_changes_of_one_function_are_made_in_order() -> None:
    with planted(mutant(("half", "n // 2", "n // 3"), ("half", "n // 3", "n // 4"))):
        assert samples.half(8) == 2


def test_a_traceback_shows_the_place_of_the_change() -> None:
    with (
        planted(mutant(("half", "n // 2", "n // 0"))),
        pytest.raises(ZeroDivisionError) as error,
    ):
        samples.half(1)
    frame = error.traceback[-1]
    assert str(frame.path).endswith("samples.py")
    assert frame.lineno + 1 >= samples.half.__code__.co_firstlineno


@pytest.mark.parametrize(
    ("where", "old", "reason"),
    [
        ("half", "n // 3", "half contains 0 times 'n // 3'"),
        ("half", "n", "half contains"),
        ("LARGE", "100", "no Python function"),
        ("Sample.gone", "x", "'gone' is not there"),
    ],
)
def test_text_that_is_not_there_once_is_loud(where: str, old: str, reason: str) -> None:
    with pytest.raises(MutantError, match=reason), planted(mutant((where, old, "pass"))):
        pass


def test_what_has_no_source_or_is_a_closure_cannot_be_changed() -> None:
    made: dict[str, Callable[[], int]] = {}
    exec("def made():\n    return 1", made)
    patch = Patch()
    with pytest.raises(MutantError, match="no source"):
        patch.edit(made["made"], ("1", "2"))
    with pytest.raises(MutantError, match="closure"):
        patch.edit(samples.adder(3), ("n + more", "n - more"))
    with pytest.raises(MutantError, match="no Python function"):
        patch.edit(len, ("0", "1"))


def test_nothing_is_imported_before_planting() -> None:
    plant = edits(("no.such.module:name", "a", "b"))
    with pytest.raises(ModuleNotFoundError):
        plant(Patch())
    assert isinstance(resolve(f"{HERE}:half"), types.FunctionType)
