# SPDX-License-Identifier: BSD-2-Clause
"""What an event is, decided from its registers and memory; the trace's own ``name`` is not trusted."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay.records import Call, Content, Return

RPC_PREFIX: Final = smc.OPTEE_SMC_RETURN_RPC_PREFIX
UNKNOWN_FUNCTION: Final = smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION

RETURN_FROM_RPC: Final = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
CALL_WITH_ARG: Final = smc.OPTEE_SMC_CALL_WITH_ARG
CALL_WITH_RPC_ARG: Final = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
CALL_WITH_REGD_ARG: Final = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
CALLS_WITH_MESSAGE: Final = (CALL_WITH_ARG, CALL_WITH_RPC_ARG, CALL_WITH_REGD_ARG)


def _table(module: ModuleType, prefix: str, *, cut: str = "") -> dict[int, str]:
    """Numbers to names of a constants module; of two names for a number the first one wins."""
    table: dict[int, str] = {}
    for name, value in vars(module).items():
        if name.startswith(prefix) and type(value) is int:
            table.setdefault(value, name.removeprefix(cut or prefix))
    return table


def _functions() -> dict[int, str]:
    table: dict[int, str] = {}
    for name, value in vars(smc).items():
        if type(value) is int and value >> 24 in (0x32, 0xB2, 0xBF):
            short = name.removeprefix("OPTEE_SMC_")
            table.setdefault(value, short.replace("CALL_GET_", "GET_").replace("CALL_RET", "RET"))
    return table


FUNCTIONS: Final = _functions()
MESSAGE_COMMANDS: Final = _table(msg, "OPTEE_MSG_CMD_")
RPC_COMMANDS: Final = {
    value: name
    for value, name in _table(optee_rpc, "OPTEE_RPC_CMD_").items()
    if not name.startswith("WAIT")
}
RPC_FUNCTIONS: Final = _table(smc, "OPTEE_SMC_RPC_FUNC_")
STATUSES: Final = {
    value: name
    for value, name in _table(smc, "OPTEE_SMC_RETURN_").items()
    if value < 16 or value == UNKNOWN_FUNCTION
}


def is_rpc(status: int) -> bool:
    """Whether the low word of a0 asks the normal world for something."""
    status = low32(status)
    return status >= RPC_PREFIX and status != UNKNOWN_FUNCTION


def command(content: Content | None) -> int | None:
    """``cmd`` of a message, None without one."""
    return None if content is None else int.from_bytes(content.data[:4], "little")


def message_command_name(content: Content | None) -> str:
    """Name of a message's command."""
    number = command(content)
    return "" if number is None else MESSAGE_COMMANDS.get(number, f"command {number}")


def rpc_name(status: int, content: Content | None) -> str:
    """Name of an RPC: its function, and for CMD the command."""
    function = low32(status) & 0xFFFF
    if function != smc.OPTEE_SMC_RPC_FUNC_CMD:
        return RPC_FUNCTIONS.get(function, f"RPC {function}")
    number = command(content)
    if number is None:
        return "CMD"
    return RPC_COMMANDS.get(number, f"RPC command {number}")


def function_name(function: int) -> str:
    """Name of an SMC function id."""
    return FUNCTIONS.get(low32(function), f"function {low32(function):#010x}")


def call_name(call: Call, answers: Return | None = None) -> str:
    """The class of a call. ``answers``: the RPC request that a RETURN_FROM_RPC comes back from."""
    function = low32(call.regs[0])
    name = function_name(function)
    if function in CALLS_WITH_MESSAGE:
        return f"{name} {message_command_name(call.msg)}".strip()
    if function == RETURN_FROM_RPC and answers is not None:
        return f"{name} {rpc_name(answers.regs[0], answers.rpc_arg)}"
    return name
