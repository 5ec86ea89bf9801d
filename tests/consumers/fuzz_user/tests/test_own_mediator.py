# SPDX-License-Identifier: BSD-2-Clause
"""A user attacks the mediator of his own product, and draws what his own driver may be told."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings

from fuzz.hostile_guest import HostileOptions, attack
from fuzz.strategies import ListedBuffer, any_listed_buffers, memory_maps, register_frames
from fuzz.strategies.maps import FIRST_PA
from fuzz.view import GuestView
from fuzz.worlds import HonestWorld, LyingWorld
from mediator.checkers.watch import InvariantViolated
from specs.target import GuestSpec, Outcome, Registers, Trap
from specs.vectors.model_target import ModelTarget


class Product(ModelTarget):
    """The user's mediator. In truth it would be another program behind the same protocol."""


class Careless(Product):
    """The same after a careless change: a register is not cleared."""

    def trap(self, trap: Trap) -> Outcome:
        outcome = super().trap(trap)
        return attrs.evolve(outcome, regs=(*outcome.regs[:7], FIRST_PA))


@pytest.mark.parametrize("world", [HonestWorld, LyingWorld])
def test_the_product_stands_an_attack(world: type) -> None:
    attack(Product, HostileOptions(world=world), examples=2, steps=8, seed=1, shrink=False)


def test_the_attack_sees_what_the_careless_change_does() -> None:
    with pytest.raises(InvariantViolated) as caught:
        attack(Careless, examples=2, steps=8, seed=1, shrink=False)
    assert caught.value.violations[0].invariant == "I1"


@settings(max_examples=20, derandomize=True, database=None, deadline=None)
@given(register_frames())
def test_a_frame_is_eight_registers(frame: Registers) -> None:
    assert len(frame) == 8
    assert all(0 <= value < 1 << 64 for value in frame)


@settings(max_examples=20, derandomize=True, database=None, deadline=None)
@given(memory_maps())
def test_no_address_of_a_map_is_another_ones_by_accident(maps: tuple[GuestSpec, ...]) -> None:
    ipas = {region.ipa for guest in maps for region in guest.regions}
    assert ipas.isdisjoint({region.pa for guest in maps for region in guest.regions})


@settings(max_examples=20, derandomize=True, database=None, deadline=None)
@given(any_listed_buffers(GuestView.simple()))
def test_a_list_says_where_it_lies(buffer: ListedBuffer) -> None:
    assert 0 <= buffer.buf_ptr < 1 << 64
