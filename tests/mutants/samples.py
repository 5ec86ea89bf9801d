# SPDX-License-Identifier: BSD-2-Clause
"""Functions that the tests of the mutant mechanism change."""

from __future__ import annotations

from collections.abc import Callable

LARGE = 100


def half(n: int) -> int:
    """Half of ``n``."""
    return n // 2


def spread_out(
    n: int,
) -> tuple[str, int]:
    # The text of a mutant has neither comments nor this layout.
    return (
        "a",  # first
        n,
    )


async def later(n: int) -> int:
    return n


def adder(more: int) -> Callable[[int], int]:
    def add(n: int) -> int:
        return n + more

    return add


class Sample:
    def twice(self, n: int) -> int:
        return 2 * n

    @property
    def size(self) -> int:
        return 4

    @staticmethod
    def plus(n: int) -> int:
        return n + 1
