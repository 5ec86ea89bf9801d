# SPDX-License-Identifier: BSD-2-Clause
"""What the tests of strategies and machines share."""

from __future__ import annotations

from random import Random
from typing import TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.view import GuestView, Writes

T = TypeVar("T")

VIEW = GuestView.simple()


def drawn(strategy: st.SearchStrategy[T], count: int = 200) -> list[T]:
    """``count`` values, the same on every run: to see what a strategy draws and how often."""
    values: list[T] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: T) -> None:
        values.append(value)

    collect()
    return values


def seed() -> int | None:
    """None (the same draws each time) under the profile ``tests``, otherwise a fresh seed."""
    assert settings.default is not None
    return None if settings.default.derandomize else Random().randrange(1 << 32)


class Memory:
    """Pages of a guest as its stores leave them."""

    def __init__(self, writes: Writes = ()) -> None:
        self.pages: dict[int, bytearray] = {}
        for ipa, data in writes:
            self.store(ipa, data)

    def store(self, ipa: int, data: bytes) -> None:
        while data:
            room = 4096 - ipa % 4096
            page = self.pages.setdefault(ipa & ~0xFFF, bytearray(4096))
            page[ipa % 4096 : ipa % 4096 + len(data[:room])] = data[:room]
            ipa, data = ipa + room, data[room:]

    def read_page(self, ipa: int) -> bytes | None:
        page = self.pages.get(ipa)
        return None if page is None else bytes(page)
