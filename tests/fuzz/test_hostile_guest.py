# SPDX-License-Identifier: BSD-2-Clause
"""The state machine of a hostile guest: our mediator stands it."""

from __future__ import annotations

import pytest

from fuzz.hostile_guest import attack
from specs.vectors.model_target import ModelTarget


@pytest.mark.parametrize("seed", [1, 2])
def test_our_mediator_stands_a_hostile_guest(seed: int) -> None:
    attack(ModelTarget, examples=4, steps=15, seed=seed, shrink=False)
