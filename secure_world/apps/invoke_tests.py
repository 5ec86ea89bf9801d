# SPDX-License-Identifier: BSD-2-Clause
"""OP-TEE's own test pseudo-TA (``core/pta/tests/invoke.c``), as far as recorded traffic uses it."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from secure_world.ta import (
    DEVICE_AT_PROBE,
    TYPE_MEMREF_INOUT,
    TYPE_NONE,
    TYPE_VALUE_INOUT,
    TYPE_VALUE_INPUT,
    TYPE_VALUE_OUTPUT,
    Params,
    TaEnvironment,
    TrustedApplication,
)
from smccc.constants import tee

TRACE: Final = 0
PARAMS: Final = 1
MEMREF_NULL: Final = 10

BLOCK: Final = 1 << 16
"""Bytes summed up between two checkpoints."""
BLOCK_NS: Final = 50_000


def _only(params: Params, kind: int, others: int) -> int:
    """Index of the one parameter of type ``kind`` if all others are of type ``others``, else -1."""
    kinds = [params.type(index) for index in range(tee.TEE_NUM_PARAMS)]
    if kinds.count(kind) == 1 and kinds.count(others) == tee.TEE_NUM_PARAMS - 1:
        return kinds.index(kind)
    return -1


class InvokeTests(TrustedApplication):
    """Trace, parameter passing, null reference; anything else is a bad parameter."""

    uuid = UUID("d96a5b40-c3e5-21e3-8794-1002a5d5c61b")
    name = "invoke tests"
    pseudo = True
    single_instance = True
    multi_session = True
    keep_alive = True
    concurrent = True
    device = DEVICE_AT_PROBE

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Commands TRACE, PARAMS and MEMREF_NULL."""
        if command == TRACE:
            return tee.TEE_SUCCESS
        if command == PARAMS:
            return await self._params(env, params)
        if command == MEMREF_NULL:
            ok = params.types == TYPE_MEMREF_INOUT and params.memref(0).null
            return tee.TEE_SUCCESS if ok else tee.TEE_ERROR_BAD_PARAMETERS
        return tee.TEE_ERROR_BAD_PARAMETERS

    async def _params(self, env: TaEnvironment, params: Params) -> int:
        """One inout value: a += b. One output, three inputs: their sums. One buffer: sum in [0]."""
        index = _only(params, TYPE_VALUE_INOUT, TYPE_NONE)
        if index >= 0:
            value = params.value(index)
            value.a += value.b
            return tee.TEE_SUCCESS
        index = _only(params, TYPE_VALUE_OUTPUT, TYPE_VALUE_INPUT)
        if index >= 0:
            inputs = [params.value(i) for i in range(tee.TEE_NUM_PARAMS) if i != index]
            result = params.value(index)
            result.a = sum(value.a for value in inputs)
            result.b = sum(value.b for value in inputs)
            return tee.TEE_SUCCESS
        index = _only(params, TYPE_MEMREF_INOUT, TYPE_NONE)
        if index >= 0:
            memref = params.memref(index)
            total = 0
            for at in range(0, memref.capacity, BLOCK):
                if at:
                    await env.checkpoint(BLOCK_NS)
                total += sum(memref.read(at, min(BLOCK, memref.capacity - at)))
            if memref.capacity:
                memref.write(0, bytes([total & 0xFF]))
            return tee.TEE_SUCCESS
        return tee.TEE_ERROR_BAD_PARAMETERS
