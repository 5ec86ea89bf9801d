# SPDX-License-Identifier: BSD-2-Clause
"""Simulated Linux with overlapping calls, recorded without a mediator, replayed both ways."""

from __future__ import annotations

import pytest

from mediator.guest.profile import LINUX_6_12
from mediator.optee.settings import Limits, MediatorSettings
from secure_world.settings import SecureWorldSettings
from specs.replay.mediated import replay_as_mediator
from specs.replay.reader import Trace
from specs.replay.records import Call, Return
from specs.replay.simulated import replay_as_secure_world
from tests.replay.simulated_linux import contention, everything, record

KINDS = ("Linux 6.1", "classic", "virtualization", "four threads")


def recording(kind: str, seed: int) -> Trace:
    settings = SecureWorldSettings(
        virtualization=kind == "virtualization",
        rpc_arg=kind != "classic",
        threads=4 if kind == "four threads" else 2,
    )
    more = {"profile": LINUX_6_12} if kind == "virtualization" else {}
    return record(
        everything,
        contention,
        contention,
        contention,
        settings=settings,
        vcpus=4 if kind == "four threads" else 2,
        seed=seed,
        interrupt_every=3 + seed % 5,
        migrate_every=seed % 3,
        **more,
    )


def overlaps(trace: Trace) -> int:
    """Events during which another processor was in OP-TEE, too."""
    inside: set[int] = set()
    count = 0
    for event in trace.events:
        if isinstance(event, Call):
            inside.add(event.cpu)
        elif isinstance(event, Return):
            inside.discard(event.cpu)
        count += len(inside) > 1
    return count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_overlapping_calls(kind: str, seed: int) -> None:
    trace = recording(kind, seed)
    assert len(trace.events) > 80
    assert overlaps(trace) > 20
    through = replay_as_mediator(trace)
    assert through.differences == ()
    assert through.ok
    assert through.rules.keys() <= {"hidden-capabilities"}
    answered = replay_as_secure_world(trace)
    assert answered.differences == ()
    assert answered.equal == answered.answers


@pytest.mark.parametrize(
    ("kind", "seed"),
    [("Linux 6.1", 75), *[("four threads", seed) for seed in (31, 46, 56, 121, 127)]],
)
def test_order_inside_the_secure_world(kind: str, seed: int) -> None:
    """Sessions that open while others close, locks and threads that pass from hand to hand."""
    answered = replay_as_secure_world(recording(kind, seed))
    assert answered.differences == ()


def test_recordings_have_what_they_are_to_test() -> None:
    """All kinds of call that overlap on a real machine."""
    classes = set[str]()
    for kind in KINDS:
        for seed in range(3):
            classes |= {c.name for c in replay_as_secure_world(recording(kind, seed)).classes}
    assert classes >= {
        "RETURN_FROM_RPC FOREIGN_INTR",
        "RETURN_FROM_RPC NOTIFICATION",
        "RETURN_FROM_RPC SUSPEND",
        "RETURN_FROM_RPC GET_TIME",
        "RETURN_FROM_RPC LOAD_TA",
        "RETURN_FROM_RPC SHM_ALLOC",
        "RETURN_FROM_RPC ALLOC",
        "CALL_WITH_ARG INVOKE_COMMAND",
        "CALL_WITH_REGD_ARG INVOKE_COMMAND",
        "CALL_WITH_RPC_ARG REGISTER_SHM",
    }


def test_a_limit_of_as_many_calls_as_threads_is_noticed() -> None:
    """OP-TEE gives a thread away before the call that had it is back at the mediator."""
    tight = MediatorSettings(limits=Limits(returning=0))
    found = [replay_as_mediator(recording("Linux 6.1", seed), tight).ok for seed in range(6)]
    assert not all(found)
