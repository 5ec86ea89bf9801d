# SPDX-License-Identifier: BSD-2-Clause
"""The whole platform under the watch of all checkers: guests, mediator, secure world, machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from mediator.checkers.watch import InvariantViolated
from mediator.guest.guest import GuestSettings
from mediator.hypervisor.scheduler import Mode, RunEnd
from mediator.optee.settings import MediatorSettings
from mediator.scenario.platform import Platform, PlatformError, PlatformSettings
from secure_world.settings import SecureWorldSettings
from tests.platform.workload import CLASSIC, MAINS, RAM, platform

STEPS = 2_000_000
"""Far above what a run takes: reaching it means that somebody never stops."""
MODES = [Mode.DIRECT, Mode.INTERLEAVE]
STYLES = [pytest.param(MediatorSettings(), id="rpc-arg"), pytest.param(CLASSIC, id="classic")]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(3))
def test_everything_at_once(seed: int, style: MediatorSettings, mode: Mode) -> None:
    made = platform(seed, mode, style)
    result = made.run(max_steps=STEPS)
    made.check()
    assert result.end is RunEnd.IDLE
    assert not result.deadlocked
    for number, guest in made.guests.items():
        assert made.host.pinned(number) == 0
        assert guest.counters()["pages_in_use"] == 0
        assert guest.counters()["calls"] > 20
    assert made.watch is not None
    assert made.watch.events > 1000


@pytest.mark.parametrize("seed", range(12))
def test_a_guest_destroyed_at_any_moment_disturbs_nobody(seed: int) -> None:
    random = Random(seed)
    mode = Mode.INTERLEAVE if seed % 3 else Mode.DIRECT
    made = platform(seed, mode, CLASSIC if seed % 2 else None)
    first, second = made.guests
    made.run(max_steps=random.randrange(1, 900 if mode is Mode.INTERLEAVE else 40))
    made.machine.destroy_guest(first)
    made.run(max_steps=STEPS)
    assert first not in made.machine.guests
    again = made.add_guest(GuestSettings("again", RAM, vcpus=2, seed=seed), *MAINS)
    assert again == first, "the id is free again"
    result = made.run(max_steps=STEPS)
    assert not result.deadlocked
    assert made.watch is not None
    made.watch.check()
    for number in (second, again):
        made.guests[number].check()
        assert made.host.pinned(number) == 0


def digest(seed: int, hash_seed: str) -> str:
    """The digest of all events of a run in a process of its own."""
    code = f"from tests.platform.test_platform import event_digest; print(event_digest({seed}))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def event_digest(seed: int) -> str:
    """SHA-256 over the whole event stream."""
    hasher = hashlib.sha256()

    def sink(event: tuple[object, ...]) -> None:
        hasher.update(repr((type(event).__name__, *event)).encode())

    from tests.platform import workload

    made = Platform(PlatformSettings(seed=seed), sinks=[sink])
    for index in range(2):
        made.add_guest(GuestSettings(f"guest{index}", workload.RAM, seed=seed), *MAINS)
    made.run(max_steps=STEPS)
    return hasher.hexdigest()


def test_a_seed_reproduces_the_whole_event_stream() -> None:
    first = digest(5, "1")
    assert first == digest(5, "2")
    assert first != digest(6, "1")


def test_a_guest_that_the_tee_has_no_slot_for_is_refused() -> None:
    made = Platform(PlatformSettings(secure_world=SecureWorldSettings(guests=1)))
    made.add_guest(GuestSettings("one", RAM), *MAINS[:1])
    with pytest.raises(PlatformError, match="guest 'two' was refused"):
        made.add_guest(GuestSettings("two", RAM), *MAINS)
    made.run(max_steps=STEPS)
    made.check()


def test_a_secure_world_without_virtualization_is_refused() -> None:
    settings = PlatformSettings(secure_world=SecureWorldSettings(virtualization=False))
    with pytest.raises(PlatformError, match="without virtualization"):
        Platform(settings)


def test_a_failing_client_program_is_reported() -> None:
    made = Platform()

    async def wrong(guest: object) -> None:
        raise AssertionError("the answer is wrong")

    made.add_guest(GuestSettings("wrong", RAM), wrong)
    made.run(max_steps=STEPS)
    with pytest.raises(Exception, match="the answer is wrong"):
        made.check()


def test_a_violation_fails_the_check() -> None:
    made = platform(0, Mode.DIRECT, guests=1)
    made.run(max_steps=STEPS)
    made.check()
    assert made.watch is not None
    made.watch.report("I1", 0, "planted")
    with pytest.raises(InvariantViolated, match="planted"):
        made.check()
