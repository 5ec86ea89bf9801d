# SPDX-License-Identifier: BSD-2-Clause
"""Making a strategy once: Hypothesis spends more time on a new strategy than on drawing from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Final, ParamSpec, TypeVar, cast

from hypothesis import strategies as st

P = ParamSpec("P")
T = TypeVar("T")

REMEMBERED: Final = 256
"""Strategies kept for each function. A state machine uses a few memory maps at a time; strategies
have no state of their own, so forgetting one costs time and nothing else."""


def remembered(
    make: Callable[P, st.SearchStrategy[T]],
) -> Callable[P, st.SearchStrategy[T]]:
    """``make`` with the strategies of its last calls kept. All arguments must be hashable."""
    kept = cast("Callable[P, st.SearchStrategy[T]]", lru_cache(maxsize=REMEMBERED)(make))

    @wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> st.SearchStrategy[T]:
        return kept(*args, **kwargs)

    return call
