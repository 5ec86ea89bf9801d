# SPDX-License-Identifier: BSD-2-Clause
"""A user TA for every parameter kind and every way to end, as the recorded sessions use it."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from secure_world.ta import (
    TYPE_MEMREF_INOUT,
    TYPE_MEMREF_INPUT,
    TYPE_MEMREF_OUTPUT,
    TYPE_VALUE_INOUT,
    TYPE_VALUE_INPUT,
    TYPE_VALUE_OUTPUT,
    Params,
    TaEnvironment,
    TrustedApplication,
)
from smccc.constants import tee

NOTHING: Final = 0
ECHO: Final = 1
LOOP: Final = 2
RETURN: Final = 3
WAIT: Final = 4
REE_TIME: Final = 5
SIZED_OUTPUT: Final = 6
PANIC: Final = 7

OUTPUT_SIZE: Final = 100
"""Bytes that SIZED_OUTPUT wants to write."""
OUTPUT_BYTE: Final = 0x33
FILL_BYTE: Final = 0x5A
VALUE_A: Final = 0xA0
VALUE_B: Final = 0xB0

LOOP_STEP: Final = 10_000
"""Iterations between two checkpoints of LOOP."""
LOOP_STEP_NS: Final = 100_000
BLOCK: Final = 1 << 16
"""Bytes handled at a time, so that a buffer of any size costs little memory."""
BLOCK_NS: Final = 50_000
_INVERT: Final = bytes(255 - byte for byte in range(256))


class Echo(TrustedApplication):
    """Commands 0 to 7; everything else is not supported."""

    uuid = UUID("7a3b9a4e-5c1d-4f0e-9a55-0f1e2d3c4b5a")
    name = "echo"

    async def open_session(self, env: TaEnvironment, params: Params) -> int:
        """Cancellation is wanted: WAIT can be cancelled."""
        env.mask_cancellation(False)
        return tee.TEE_SUCCESS

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Dispatch; see the command constants of this module."""
        if command == NOTHING:
            return tee.TEE_SUCCESS
        if command == ECHO:
            return await self._echo(env, params)
        if command == LOOP:
            return await self._loop(env, params)
        if command == RETURN:
            return params.value(0).a
        if command == WAIT:
            return await env.sleep(params.value(0).a)
        if command == REE_TIME:
            time = await env.get_ree_time()
            value = params.value(0)
            value.a, value.b = time.seconds, time.nanoseconds // 1_000_000
            return tee.TEE_SUCCESS
        if command == SIZED_OUTPUT:
            return self._sized_output(params)
        if command == PANIC:
            env.panic(params.value(0).a)
        return tee.TEE_ERROR_NOT_SUPPORTED

    async def _echo(self, env: TaEnvironment, params: Params) -> int:
        """Touch every parameter in its order: fill outputs, count up or invert what is inout."""
        for index in range(tee.TEE_NUM_PARAMS):
            kind = params.type(index)
            if kind == TYPE_VALUE_OUTPUT:
                value = params.value(index)
                value.a, value.b = VALUE_A + index, VALUE_B + index
            elif kind == TYPE_VALUE_INOUT:
                value = params.value(index)
                value.a, value.b = value.a + 1, value.b + 2
            elif kind in (TYPE_MEMREF_INPUT, TYPE_MEMREF_OUTPUT, TYPE_MEMREF_INOUT):
                memref = params.memref(index)
                for at in range(0, memref.capacity, BLOCK):
                    if at:
                        await env.checkpoint(BLOCK_NS)
                    size = min(BLOCK, memref.capacity - at)
                    if kind == TYPE_MEMREF_OUTPUT:
                        memref.write(at, bytes([FILL_BYTE]) * size)
                        continue
                    data = memref.read(at, size)
                    if kind == TYPE_MEMREF_INOUT:
                        memref.write(at, data.translate(_INVERT))
        return tee.TEE_SUCCESS

    async def _loop(self, env: TaEnvironment, params: Params) -> int:
        """Count up to the first value, with checkpoints; the other parameters are not touched."""
        if params.type(0) != TYPE_VALUE_INPUT:
            return tee.TEE_ERROR_BAD_PARAMETERS
        for _ in range(0, params.value(0).a, LOOP_STEP):
            await env.checkpoint(LOOP_STEP_NS)
        return tee.TEE_SUCCESS

    def _sized_output(self, params: Params) -> int:
        """Write 100 bytes, or say that 100 are needed."""
        memref = params.memref(0)
        memref.set_size(OUTPUT_SIZE)
        if memref.capacity < OUTPUT_SIZE:
            return tee.TEE_ERROR_SHORT_BUFFER
        memref.write(0, bytes([OUTPUT_BYTE]) * OUTPUT_SIZE)
        return tee.TEE_SUCCESS


class EchoShared(Echo):
    """The same as one instance for all sessions: calls from several clients wait for each other."""

    uuid = UUID("7a3b9a4e-5c1d-4f0e-9a55-0f1e2d3c4b5b")
    name = "echo, shared"
    single_instance = True
    multi_session = True
