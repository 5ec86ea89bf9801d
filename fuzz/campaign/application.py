# SPDX-License-Identifier: BSD-2-Clause
"""A trusted application that asks the normal world for anything that OP-TEE ever asks it.

RPMB, sockets, plug-ins, I2C and profiling belong to parts of OP-TEE that the simulated secure world
does not have; their requests look the same to a mediator.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from secure_world.ta import (
    TYPE_VALUE_INPUT,
    Params,
    ReeMemory,
    TaEnvironment,
    TeeError,
    TrustedApplication,
)
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee

REQUESTS: Final = (
    rpc.OPTEE_RPC_CMD_LOAD_TA,
    rpc.OPTEE_RPC_CMD_RPMB,
    rpc.OPTEE_RPC_CMD_FS,
    rpc.OPTEE_RPC_CMD_GET_TIME,
    rpc.OPTEE_RPC_CMD_SUSPEND,
    rpc.OPTEE_RPC_CMD_SQL_FS_RESERVED,
    rpc.OPTEE_RPC_CMD_GPROF,
    rpc.OPTEE_RPC_CMD_SOCKET,
    rpc.OPTEE_RPC_CMD_FTRACE,
    rpc.OPTEE_RPC_CMD_SUPP_PLUGIN,
    rpc.OPTEE_RPC_CMD_BENCH_REG,
    rpc.OPTEE_RPC_CMD_I2C_TRANSFER,
    rpc.OPTEE_RPC_CMD_RPMB_PROBE_RESET,
    rpc.OPTEE_RPC_CMD_RPMB_PROBE_NEXT,
    rpc.OPTEE_RPC_CMD_RPMB_FRAMES,
)
"""Commands of REQUEST. Waits, sends and allocations come from locks and from ALLOCATE."""

MAX_HELD: Final = 4
"""Buffers that one instance keeps; the next one takes the place of the oldest."""


class Requester(TrustedApplication):
    """Makes RPCs that its client chooses. Every command takes one value, p0.a and p0.b."""

    uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be0ca")
    name = "requester"
    pseudo = True
    single_instance = True
    multi_session = True
    keep_alive = True
    concurrent = True

    REQUEST: Final = 0
    """RPC command a with b as its first value; odd b: with memory as well."""
    ALLOCATE: Final = 1
    """SHM_ALLOC of a bytes of kind b % 3, written to, and kept."""
    RELEASE: Final = 2
    """SHM_FREE of the buffer that is kept longest."""
    CHURN: Final = 3
    """a times SHM_ALLOC and SHM_FREE of b bytes."""

    def __init__(self) -> None:
        self._held: list[ReeMemory] = []

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Dispatch; see the constants. What the normal world refuses is passed on."""
        if params.types != TYPE_VALUE_INPUT:
            return tee.TEE_ERROR_BAD_PARAMETERS
        a, b = params.value(0).a, params.value(0).b
        try:
            if command == self.REQUEST:
                return await self._request(env, a, b)
            if command == self.ALLOCATE:
                return await self._allocate(env, a, b)
            if command == self.RELEASE:
                if self._held:
                    await env.shm_free(self._held.pop(0))
                return tee.TEE_SUCCESS
            if command == self.CHURN:
                for _ in range(min(a, MAX_HELD)):
                    await env.shm_free(await env.shm_alloc(max(b, 1)))
                return tee.TEE_SUCCESS
        except TeeError as error:
            return error.code
        return tee.TEE_ERROR_NOT_SUPPORTED

    async def _request(self, env: TaEnvironment, command: int, value: int) -> int:
        params = [(msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT, value >> 1, 1, 2)]
        memory = await env.shm_alloc(512) if value & 1 else None
        if memory is not None:
            params.append((msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT, 0, 512, memory.cookie))
        answer = await env.rpc(command, params)
        if memory is not None:
            await env.shm_free(memory)
        return answer.ret

    async def _allocate(self, env: TaEnvironment, size: int, kind: int) -> int:
        memory = await env.shm_alloc(max(size, 1), kind % 3)
        memory.write(0, b"held")
        self._held.append(memory)
        if len(self._held) > MAX_HELD:
            await env.shm_free(self._held.pop(0))
        return tee.TEE_SUCCESS
