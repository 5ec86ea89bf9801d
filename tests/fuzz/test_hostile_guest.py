# SPDX-License-Identifier: BSD-2-Clause
"""The state machine of a hostile guest: our mediator stands it, in front of either kind of TEE."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from fuzz.hostile_guest import HostileOptions, attack, hostile_guest
from fuzz.inspector import Inspector
from fuzz.worlds import FuzzWorld, HonestWorld, LyingWorld
from mediator.checkers.watch import InvariantViolated
from smccc.constants import optee_smc as smc
from specs.mutants import load, planted
from specs.vectors.model_target import ModelTarget
from tests.fuzz.support import seed

World = Callable[[Inspector], FuzzWorld]


@pytest.mark.parametrize("number", [1, 2])
def test_our_mediator_stands_a_hostile_guest(number: int) -> None:
    attack(ModelTarget, examples=4, steps=15, seed=number, shrink=False)


@pytest.mark.parametrize("number", [1, 2])
def test_our_mediator_contains_a_lying_tee(number: int) -> None:
    """Threads that are not its own, requests with addresses, results that nobody asked for."""
    options = HostileOptions(world=LyingWorld)
    attack(ModelTarget, options, examples=10, steps=15, seed=number, shrink=False)


@pytest.mark.parametrize("world", [HonestWorld, LyingWorld])
def test_the_recorded_preset_stands_it_too(world: World) -> None:
    options = HostileOptions(world=world, preset="reference", max_buffer_pages=None)
    attack(ModelTarget, options, examples=4, steps=12, seed=3, shrink=False)


def test_the_victim_may_speak_the_style_of_today() -> None:
    options = HostileOptions(victim_function=smc.OPTEE_SMC_CALL_WITH_RPC_ARG)
    attack(ModelTarget, options, examples=4, steps=12, seed=4, shrink=False)


@pytest.mark.parametrize(
    ("mutant", "world", "number"),
    [
        ("size.offset-forgotten", HonestWorld, 3),
        ("rpc.request-address-passes", LyingWorld, 4),
    ],
)
def test_an_attack_finds_a_planted_bug(
    monkeypatch: pytest.MonkeyPatch, mutant: str, world: World, number: int
) -> None:
    """By one of some seeds.

    Hypothesis would draw constants of all modules that are loaded by then, too: what is drawn would
    depend on the tests before this one.
    """
    monkeypatch.setattr(providers, "_get_local_constants", Constants, raising=False)
    options = HostileOptions(world=world)

    def attempts() -> None:
        for attempt in range(10):
            tried = number + attempt
            attack(ModelTarget, options, examples=20, steps=25, seed=tried, shrink=False)

    with planted(load()[mutant]), pytest.raises(InvariantViolated):
        attempts()


def test_a_machine_is_made_for_a_target_and_its_options() -> None:
    options = HostileOptions(preset="reference")
    machine = hostile_guest(ModelTarget, options)
    assert machine.factory is ModelTarget
    assert machine.options is options
    assert seed() is None, "the tests draw the same each time"
