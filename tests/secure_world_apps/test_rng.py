# SPDX-License-Identifier: BSD-2-Clause
"""The random number generator of the kernel's ``optee-rng`` driver."""

from __future__ import annotations

import pytest

from mediator.suspend import run
from secure_world.apps import default_registry
from secure_world.apps.rng import (
    DATA_RATE,
    GET_ENTROPY,
    GET_RNG_INFO,
    QUALITY,
    RandomNumbers,
    registry_with_rng,
)
from secure_world.ta import (
    DEVICE_AT_PROBE,
    TYPE_MEMREF_INOUT,
    TYPE_MEMREF_OUTPUT,
    TYPE_VALUE_INPUT,
    TYPE_VALUE_OUTPUT,
    Value,
)
from smccc.constants import tee
from tests.secure_world_apps.environment import Buffer, Environment, Parameters


def invoke(command: int, *params: tuple[int, Buffer | Value], seed: int = 0) -> int:
    environment = Environment(seed=seed)
    return run(RandomNumbers().invoke(environment, command, Parameters(*params)))


@pytest.mark.parametrize("size", [1, 32, 4096])
def test_the_whole_buffer_is_filled(size: int) -> None:
    first, same, other = Buffer(bytes(size)), Buffer(bytes(size)), Buffer(bytes(size))
    assert invoke(GET_ENTROPY, (TYPE_MEMREF_INOUT, first)) == tee.TEE_SUCCESS
    assert invoke(GET_ENTROPY, (TYPE_MEMREF_INOUT, same)) == tee.TEE_SUCCESS
    assert invoke(GET_ENTROPY, (TYPE_MEMREF_INOUT, other), seed=1) == tee.TEE_SUCCESS
    assert first.size == size
    assert first.memory == same.memory != other.memory


def test_rate_and_quality() -> None:
    value = Value()
    assert invoke(GET_RNG_INFO, (TYPE_VALUE_OUTPUT, value)) == tee.TEE_SUCCESS
    assert (value.a, value.b) == (DATA_RATE, QUALITY)


def test_anything_else_is_refused() -> None:
    wrong = tee.TEE_ERROR_BAD_PARAMETERS
    assert invoke(GET_ENTROPY) == wrong
    assert invoke(GET_ENTROPY, (TYPE_MEMREF_OUTPUT, Buffer(bytes(8)))) == wrong
    assert invoke(GET_RNG_INFO, (TYPE_VALUE_INPUT, Value())) == wrong
    assert invoke(2) == tee.TEE_ERROR_NOT_IMPLEMENTED


def test_guests_find_it_only_where_it_was_asked_for() -> None:
    """A default platform has no device that a driver would bind to at its probe."""
    assert RandomNumbers.uuid not in {ta.uuid for ta in default_registry().applications()}
    assert RandomNumbers.uuid in {ta.uuid for ta in registry_with_rng().applications()}
    assert RandomNumbers.device == DEVICE_AT_PROBE
