# SPDX-License-Identifier: BSD-2-Clause
"""The self-check: every planted error is reported, and a comparison that is blind is found out."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from specs.replay.faults import FAULTS
from specs.replay.judge import Judge, Sight
from specs.replay.mediated import replay_as_mediator
from specs.replay.selfcheck import BIT, self_check
from tests.replay.golden import ALL, PARAMS, SESSION, VIRTUAL, trace
from tests.replay.test_interleaving import recording

KINDS = {BIT} | {fault.id for fault in FAULTS}


@pytest.mark.parametrize(
    ("path", "seed"), [(SESSION, 1), (SESSION, 2), (SESSION, 3), (PARAMS, 4), (VIRTUAL, 5)]
)
def test_every_planted_error_is_reported(path: Path, seed: int) -> None:
    check = self_check(trace(path), 400, seed)
    assert check.ok
    assert check.missed == ()
    assert check.kinds == dict.fromkeys(KINDS - {BIT}, (100, 100)) | {BIT: (400, 400)}


def test_every_planted_error_is_reported_in_classic_calls() -> None:
    check = self_check(recording("classic", 0), 300, 1)
    assert check.missed == ()
    assert {kind for kind, (planted, _) in check.kinds.items() if planted} == KINDS


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_planted_error_is_reported_as_secure_world(path: Path) -> None:
    check = self_check(trace(path), 400, 3, as_mediator=False)
    assert check.ok
    planted, reported = check.kinds[BIT]
    assert planted == reported
    assert planted > 350


def test_bits_are_planted_on_both_sides_of_both_directions() -> None:
    planted = [p for p in self_check(trace(PARAMS), 400, 5).planted if p.kind == BIT]
    ways = {(p.side, p.where.split()[0]) for p in planted}
    assert ways == {(s, w) for s in ("forwarded", "answered") for w in ("recorded", "found")}
    fields = {p.where.split()[1].partition(".")[0].partition("[")[0] for p in planted}
    assert fields >= {"a0", "msg", "rpc_arg", "page_list", "bufs"}


def test_the_seed_decides() -> None:
    first = self_check(trace(SESSION), 50, 1)
    assert self_check(trace(SESSION), 50, 1) == first
    assert self_check(trace(SESSION), 50, 2).planted != first.planted


def test_nothing_to_plant() -> None:
    empty = attrs.evolve(trace(SESSION), records=(), answers={})
    assert self_check(empty, 5, 1).planted == ()
    assert self_check(empty, 5, 1, as_mediator=False).planted == ()
    assert self_check(trace(SESSION), 0, 1).planted == ()


# --- blind comparisons ------------------------------------------------------------------------------


def overlook(monkeypatch: pytest.MonkeyPatch, name: str, hidden: str) -> None:
    """Make one side of the comparison take every item as equal whose name begins like this."""
    real = getattr(Judge, name)

    def blind(self: object, *args: object) -> Sight:
        sight = real(self, *args)
        assert isinstance(sight, Sight)
        sight.items[:] = [
            item._replace(observed=item.expected) if item.name.startswith(hidden) else item
            for item in sight.items
        ]
        return sight

    monkeypatch.setattr(Judge, name, blind)


@pytest.mark.parametrize(
    ("method", "hidden", "kind"),
    [
        ("forwarded", "a7", "wrong-client-id"),
        ("forwarded", "page_list", "stale-page"),
        ("forwarded", "msg", BIT),
        ("answered", "msg", "stale-page"),
        ("answered", "a", "swapped-words"),
        ("answered", "bufs", BIT),
    ],
)
def test_a_blind_comparison_is_found_out(
    monkeypatch: pytest.MonkeyPatch, method: str, hidden: str, kind: str
) -> None:
    overlook(monkeypatch, method, hidden)
    assert replay_as_mediator(trace(SESSION)).ok, "nothing shows without the self-check"
    # Buffers are few among what is compared: a seed that draws some of each.
    check = self_check(trace(SESSION), 400, 3)
    assert not check.ok
    assert kind in {plant.kind for plant in check.missed}
    assert all(not plant.noticed for plant in check.missed)


def test_errors_are_undone() -> None:
    """After planting, the replay goes on as if nothing had happened."""
    before = replay_as_mediator(trace(PARAMS))
    self_check(trace(PARAMS), 200, 9)
    assert replay_as_mediator(trace(PARAMS)) == before
