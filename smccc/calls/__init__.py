# SPDX-License-Identifier: BSD-2-Clause
"""Every call as a typed value, both ways: registers to value, value to registers; messages likewise.

* :mod:`~smccc.calls.fast`, :mod:`~smccc.calls.yielding`: the functions of OP-TEE, their results and
  the RPCs that suspend them (``optee_smc.h``);
* :mod:`~smccc.calls.messages`, :mod:`~smccc.calls.rpc`: what messages and RPC arguments say
  (``optee_msg.h``, ``optee_rpc_cmd.h``);
* :mod:`~smccc.calls.arch`, :mod:`~smccc.calls.psci`: SMCCC and PSCI.

Values are for the edges: tests, decoding, examples. The call path works on plain ints.

>>> from smccc import RegisterFrame
>>> call = parse_call(RegisterFrame.of(0x32000004, 0x1, 0x42000000, 1))
>>> call
CallWithArg(client=0, address=5402263552, cache=1)
>>> call.parse_return(RegisterFrame.of(0xFFFF0004, 0, 0, 3))
RpcForeignInterrupt(thread=3, resume1=0, resume2=0)
"""

from __future__ import annotations

from smccc.calls.arch import ARCH_CALLS, SERVICE_QUERIES
from smccc.calls.fast import FAST_CALLS
from smccc.calls.messages import (
    MESSAGE_COMMANDS,
    MessageCommand,
    UnknownCommand,
    parse_command,
)
from smccc.calls.params import Answer, Command
from smccc.calls.psci import PSCI_CALLS
from smccc.calls.rpc import RPC_COMMANDS, RpcArgument, UnknownRpcArgument, parse_rpc_argument
from smccc.calls.slots import Call, Done, Failed, Return, UnknownCall, UnknownReturn
from smccc.calls.yielding import (
    RPC_REQUESTS,
    YIELDING_CALLS,
    Completed,
    RpcAnswer,
    RpcRequest,
    is_rpc,
    parse_answer,
    parse_yielding_return,
    rpc_function,
    rpc_status,
)
from smccc.function_id import FunctionId
from smccc.registers import RegisterFrame

__all__ = [
    "CALLS",
    "MESSAGE_COMMANDS",
    "RPC_COMMANDS",
    "RPC_REQUESTS",
    "Answer",
    "Call",
    "Command",
    "Completed",
    "Done",
    "Failed",
    "MessageCommand",
    "Return",
    "RpcAnswer",
    "RpcArgument",
    "RpcRequest",
    "UnknownCall",
    "UnknownCommand",
    "UnknownReturn",
    "UnknownRpcArgument",
    "is_rpc",
    "parse_answer",
    "parse_call",
    "parse_command",
    "parse_rpc_argument",
    "parse_yielding_return",
    "rpc_function",
    "rpc_status",
]


def _by_function(calls: tuple[type[Call], ...]) -> dict[int, type[Call]]:
    table = {call.FUNCTION: call for call in calls}
    table |= {call.FUNCTION64: call for call in calls if call.FUNCTION64 is not None}
    return table


CALLS: dict[int, type[Call]] = _by_function(FAST_CALLS + YIELDING_CALLS + ARCH_CALLS + PSCI_CALLS)
"""Function id to the type of its call. General service queries of other owners come on top."""


def parse_call(frame: RegisterFrame) -> Call:
    """What the registers of a call ask for. Never fails: an unknown id gives ``UnknownCall``.

    Only the low word of a0 says which function it is.
    """
    known = CALLS.get(frame.a0)
    if known is not None:
        return known.parse(frame)
    fid = FunctionId.decode(frame.a0)
    query = SERVICE_QUERIES.get(fid.number)
    if query is not None and fid == FunctionId(True, False, fid.owner, fid.number):
        return query.parse(frame)
    return UnknownCall(frame)
