# SPDX-License-Identifier: BSD-2-Clause
"""Calls that wait in an RPC: what the tests of RPCs and of suspension share."""

from __future__ import annotations

import struct

from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import NOTHING, Normal

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
REGD_ARG = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
ALLOC = smc.OPTEE_SMC_RETURN_RPC_ALLOC
FREE = smc.OPTEE_SMC_RETURN_RPC_FREE
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
TA, TEE = tee.TEE_ORIGIN_TRUSTED_APP, tee.TEE_ORIGIN_TEE
WORK, SLEEP, REE_TIME, SYSTEM_TIME = range(4)
GENERIC = tee.TEE_ERROR_GENERIC


def sleeping(
    n: Normal, milliseconds: int = 50, function: int = RPC_ARG
) -> tuple[int, tuple[int, int, int, int]]:
    session = n.session(s.CLOCK)
    params = [(1, milliseconds, 0, 0), NOTHING, NOTHING, NOTHING]
    return n.start(s.message(1, params, func=SLEEP, session=session), function=function)


def rpc_arg(n: Normal, at: int) -> tuple[int, ...]:
    return struct.unpack("<8I16Q", n.get(at, 160))
