# SPDX-License-Identifier: BSD-2-Clause
"""Recorded sessions of real Linux guests: our mediator is transparent to them, our secure world repeats them.

Needs no emulator: the recordings are files (``tests/data/live``, where their making is told).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.replay.mediated import replay_as_mediator
from specs.replay.reader import load_trace
from specs.replay.simulated import replay_as_secure_world

FOLDER = Path(__file__).parents[1] / "data" / "live"
LARGEST = 100 << 10
"""Octets: what a repository can carry of each."""

KERNELS = ("linux61", "linux612")
STYLES = ("rpcarg", "classic")
KINDS = ("1cpu", "2cpu", "values", "edges")
ALL = [f"{kernel}-{style}-{kind}" for kernel in KERNELS for style in STYLES for kind in KINDS]

RNG = "TA ab7a617c-b8e7-4d8f-8301-d09b61036b64"
"""Random numbers of the live platform: not among the TAs that a replay knows, so counted apart."""


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.jsonl.gz"


def test_every_kernel_style_and_number_of_processors_is_recorded() -> None:
    found = sorted(path.name for path in FOLDER.glob("*.jsonl.gz"))
    assert found == sorted(path_of(name).name for name in ALL)
    assert all(path_of(name).stat().st_size < LARGEST for name in ALL)


@pytest.mark.parametrize("name", ALL)
def test_the_mediator_is_transparent(name: str) -> None:
    trace = load_trace(path_of(name))
    result = replay_as_mediator(trace)
    assert result.differences == ()
    assert result.transparent == result.events == len(trace.events) > 400
    assert not result.findings
    assert not result.answered_by_mediator
    assert not result.blind
    assert result.pinned == 0
    assert result.ok


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith("values")])
def test_the_secure_world_answers_the_same_again(name: str) -> None:
    trace = load_trace(path_of(name))
    result = replay_as_secure_world(trace)
    assert result.differences == ()
    assert result.different == 0
    assert result.answers == len(trace.events) // 2
    assert set(result.apart) == {RNG}
    assert result.equal + result.apart[RNG] == result.answers


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith("cpu")])
def test_the_secure_world_answers_the_same_until_a_buffer_is_cut(name: str) -> None:
    """Recordings have 256 octets of a buffer; the sum of a longer one cannot be repeated."""
    result = replay_as_secure_world(load_trace(path_of(name)))
    first = result.differences[0]
    assert first.event.endswith("INVOKE_COMMAND")
    assert first.field in ("msg.params[1].a", "bufs[0]")
    assert first.seq > 450, "everything before the first long buffer is equal"
