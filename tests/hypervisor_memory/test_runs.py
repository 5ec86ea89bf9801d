# SPDX-License-Identifier: BSD-2-Clause
"""RunSet against a plain set of numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.hypervisor.runs import RunSet

SPACE = 40
RANGES = st.tuples(st.integers(0, SPACE - 1), st.integers(1, 8))
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "take", "first", "last"]), RANGES), max_size=60
)


@given(operations=OPERATIONS)
def test_agrees_with_a_set(operations: list[tuple[str, tuple[int, int]]]) -> None:
    runs, model = RunSet(), set[int]()
    for name, (start, length) in operations:
        span = set(range(start, start + length))
        if name == "add":
            if model & span:
                with pytest.raises(ValueError, match="already"):
                    runs.add(start, start + length)
            else:
                runs.add(start, start + length)
                model |= span
        elif name == "remove":
            if span <= model:
                runs.remove(start, start + length)
                model -= span
            else:
                with pytest.raises(ValueError, match="not in"):
                    runs.remove(start, start + length)
        elif name == "take":
            taken = runs.take(length)
            if taken is None:
                assert len(model) < length
            else:
                numbers = [n for first, count in taken for n in range(first, first + count)]
                assert len(numbers) == length
                assert set(numbers) <= model
                model -= set(numbers)
        else:
            align = 1 + start % 4
            starts = [
                n
                for n in range(SPACE + 8)
                if (name == "first" or n % align == 0) and set(range(n, n + length)) <= model
            ]
            found = runs.first_fit(length) if name == "first" else runs.last_fit(length, align)
            assert found == ((starts[0] if name == "first" else starts[-1]) if starts else None)
        assert {n for first, end in runs.runs() for n in range(first, end)} == model
        assert len(runs) == len(model)
        assert bool(runs) == bool(model)
        assert all(before < after for (_, before), (after, _) in pairwise(runs.runs()))
        assert runs.covers(start, start + length) == (span <= model)
        assert runs.overlaps(start, start + length) == bool(span & model)
        assert (start in runs) == (start in model)


def test_take_prefers_one_run_and_otherwise_the_lowest() -> None:
    runs = RunSet(0, 4)
    runs.add(10, 20)
    assert runs.take(6) == [(10, 6)]
    assert runs.take(7) == [(0, 4), (16, 3)]
    assert runs.take(2) is None
    assert list(runs.runs()) == [(19, 20)]
