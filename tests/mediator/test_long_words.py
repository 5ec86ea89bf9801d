# SPDX-License-Identifier: BSD-2-Clause
"""Arrays of page addresses: the same with NumPy and without."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import pytest

from mediator.optee import words
from mediator.optee.words import any_offset, in_a_row, with_offsets, without_offsets

COUNTS = (1, 2, words.SMALL_LIST, words.SMALL_LIST + 1, 511, 5000)


@pytest.fixture(params=["numpy", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With NumPy, or as if it was not loaded."""
    import numpy

    assert words._numpy() is numpy
    if request.param == "plain":
        monkeypatch.setattr(words, "_numpy", lambda: None)
    return str(request.param)


def packed(numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def pages(count: int, seed: int = 1) -> list[int]:
    draw = random.Random(seed)
    return [draw.getrandbits(52) << 12 for _ in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_pages_alone(count: int, way: str) -> None:
    frames, listed = packed(pages(count, 1)), packed(pages(count, 2))
    assert not any_offset(listed)
    assert with_offsets(frames, listed) is frames
    assert without_offsets(listed) is listed


@pytest.mark.parametrize("bit", range(12))
@pytest.mark.parametrize("count", COUNTS)
def test_one_bit_of_an_offset(count: int, bit: int, way: str) -> None:
    at = random.Random(bit).randrange(count)
    frames, listed = pages(count, 1), pages(count, 2)
    listed[at] |= 1 << bit
    assert any_offset(packed(listed))
    expected = [pa | word & 0xFFF for pa, word in zip(frames, listed, strict=True)]
    assert with_offsets(packed(frames), packed(listed)) == packed(expected)
    assert without_offsets(packed(listed)) == packed(pages(count, 2))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("first", [0, 0x4000_0000, (1 << 64) - (5000 << 12)])
def test_pages_in_a_row(count: int, first: int, way: str) -> None:
    assert in_a_row(first, count) == packed([first + 4096 * index for index in range(count)])


def _fresh(code: str) -> str:
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_an_app_starts_without_numpy() -> None:
    """It takes longer to load than all the rest of an app."""
    code = "import sys, mediator.app.optee, mediator.app.runtime; print('numpy' in sys.modules)"
    assert _fresh(code) == "False"


def test_a_hypervisor_has_it() -> None:
    assert _fresh("import mediator.hypervisor.host, sys; print('numpy' in sys.modules)") == "True"
