# SPDX-License-Identifier: BSD-2-Clause
"""Stand-ins for trusted applications that we do not have: they answer what the trace says.

Their calls are not a test of anything and are counted apart, by name; a stand-in only keeps the
core in step: sessions are opened and closed, threads are busy, panics are panics.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from secure_world.ta import Params, TaEnvironment, TrustedApplication, Value
from smccc import wire
from smccc.constants import tee
from specs.replay.compare import parameters
from specs.replay.records import MESSAGE_OWNER, Return

Script = Callable[[], Return | None]
"""The recorded final answer of the call that is running now."""

META_PARAMS = 2
"""Parameters of OPEN_SESSION that name TA and client, before the client's own."""


def stand_in(identifier: UUID, script: Script) -> type[TrustedApplication]:
    """A pseudo-TA under ``identifier`` that plays the recorded answers."""

    class StandIn(TrustedApplication):
        # One instance a session, so that a recorded panic ends that session and no other.
        uuid = identifier
        name = "stand-in"
        pseudo = True
        concurrent = True

        async def open_session(self, env: TaEnvironment, params: Params) -> int:
            return _play(env, params, script(), META_PARAMS)

        async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
            return _play(env, params, script(), 0)

    return StandIn


def _play(env: TaEnvironment, params: Params, final: Return | None, skip: int) -> int:
    """Write the recorded outputs and return the recorded result."""
    if final is None or final.msg is None:
        return tee.TEE_ERROR_GENERIC
    data = final.msg.data
    result = int.from_bytes(data[20:24], "little")
    origin = int.from_bytes(data[24:28], "little")
    if result == tee.TEE_ERROR_TARGET_DEAD and origin == tee.TEE_ORIGIN_TEE:
        env.panic(result)
    contents = {b.param: b.data for b in final.buffers if b.owner == MESSAGE_OWNER}
    for param in parameters(data)[skip:]:
        index = param.number - skip
        if not wire.PARAM_OUTPUT[param.attr & 0xFF] or index >= tee.TEE_NUM_PARAMS:
            continue
        if param.kind == wire.KIND_VALUE:
            value: Value = params.value(index)
            value.a, value.b = param.a, param.b
            continue
        memref = params.memref(index)
        memref.set_size(param.b)
        memref.write(0, contents.get(param.number, b"")[: memref.capacity])
    return result
