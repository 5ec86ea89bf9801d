# SPDX-License-Identifier: BSD-2-Clause
"""The random number generator pseudo-TA that the kernel's ``optee-rng`` driver is for.

UUID, commands and parameters are those of ``drivers/char/hw_random/optee-rng.c``. With it, a guest
without any program of ours enumerates a device, opens a session and invokes. Not among the default
applications, because it is a device that a guest finds at its probe: ask for it.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from secure_world.apps import default_registry
from secure_world.ta import (
    DEVICE_AT_PROBE,
    TYPE_MEMREF_INOUT,
    TYPE_VALUE_OUTPUT,
    Params,
    TaEnvironment,
    TaRegistry,
    TrustedApplication,
)
from smccc.constants import tee

GET_ENTROPY: Final = 0
GET_RNG_INFO: Final = 1

DATA_RATE: Final = 1_000_000
"""Octets per second that it claims to make. The driver waits for 1000 * missing / rate ms."""
QUALITY: Final = 1024
"""Entropy per 1024 bits of output."""


class RandomNumbers(TrustedApplication):
    """Numbers of the secure world's seeded generator: repeatable, hence never for real use."""

    uuid = UUID("ab7a617c-b8e7-4d8f-8301-d09b61036b64")
    name = "random numbers"
    pseudo = True
    single_instance = True
    multi_session = True
    keep_alive = True
    concurrent = True
    device = DEVICE_AT_PROBE

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Commands GET_ENTROPY (p0 inout: filled) and GET_RNG_INFO (p0 value out: rate, quality)."""
        if command == GET_ENTROPY and params.types == TYPE_MEMREF_INOUT:
            memref = params.memref(0)
            memref.write(0, env.random(memref.capacity))
            return tee.TEE_SUCCESS
        if command == GET_RNG_INFO and params.types == TYPE_VALUE_OUTPUT:
            value = params.value(0)
            value.a, value.b = DATA_RATE, QUALITY
            return tee.TEE_SUCCESS
        known = command in (GET_ENTROPY, GET_RNG_INFO)
        return tee.TEE_ERROR_BAD_PARAMETERS if known else tee.TEE_ERROR_NOT_IMPLEMENTED


def registry_with_rng() -> TaRegistry:
    """All built-in TAs and this one."""
    registry = default_registry()
    registry.register(RandomNumbers)
    return registry
