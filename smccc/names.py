# SPDX-License-Identifier: BSD-2-Clause
"""From a number back to its name in the headers, for people who read decoded traffic."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Final

from smccc.constants import arm_smccc, optee_msg, optee_rpc, optee_smc, psci, tee


def _table(module: ModuleType, prefix: str, *, without: tuple[str, ...] = ()) -> dict[int, str]:
    """Value to name of the module's constants with this prefix; the first name of a value wins."""
    found: dict[int, str] = {}
    for name, value in vars(module).items():
        if name.startswith(prefix) and not name.startswith(without) and isinstance(value, int):
            found.setdefault(value, name)
    return found


class Names:
    """One family of constants, like ``TEE_ERROR_*``."""

    __slots__ = ("_prefix", "_table")

    def __init__(self, table: Mapping[int, str], prefix: str) -> None:
        self._table = table
        self._prefix = prefix

    def full(self, value: int) -> str | None:
        """The header's name, or ``None``."""
        return self._table.get(value)

    def short(self, value: int) -> str:
        """The name without the family's prefix, or the number in hexadecimal."""
        name = self._table.get(value)
        return f"{value:#x}" if name is None else name.removeprefix(self._prefix)

    def bits(self, value: int) -> list[str]:
        """The short names of the bits set in ``value``, lowest first; unknown bits as numbers."""
        return [self.short(1 << bit) for bit in range(value.bit_length()) if value >> bit & 1]


def _names(module: ModuleType, prefix: str, *, without: tuple[str, ...] = ()) -> Names:
    return Names(_table(module, prefix, without=without), prefix)


STATUS: Final = _names(optee_smc, "OPTEE_SMC_RETURN_", without=("OPTEE_SMC_RETURN_RPC_",))
"""a0 of a return, without the RPCs."""

RPC_STATUS: Final = Names(
    {
        optee_smc.OPTEE_SMC_RETURN_RPC_ALLOC: "OPTEE_SMC_RETURN_RPC_ALLOC",
        optee_smc.OPTEE_SMC_RETURN_RPC_FREE: "OPTEE_SMC_RETURN_RPC_FREE",
        optee_smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR: "OPTEE_SMC_RETURN_RPC_FOREIGN_INTR",
        optee_smc.OPTEE_SMC_RETURN_RPC_CMD: "OPTEE_SMC_RETURN_RPC_CMD",
    },
    "OPTEE_SMC_RETURN_RPC_",
)
"""a0 of a return that asks for an RPC."""

SEC_CAP: Final = _names(optee_smc, "OPTEE_SMC_SEC_CAP_")
NSEC_CAP: Final = _names(optee_smc, "OPTEE_SMC_NSEC_CAP_")
L2CC: Final = _names(optee_smc, "OPTEE_SMC_L2CC_MUTEX_")
COMMAND: Final = _names(optee_msg, "OPTEE_MSG_CMD_")
PARAM_TYPE: Final = _names(optee_msg, "OPTEE_MSG_ATTR_TYPE_", without=("OPTEE_MSG_ATTR_TYPE_MASK",))
PROTMEM: Final = _names(optee_msg, "OPTEE_MSG_PROTMEM_")
LOGIN: Final = _names(tee, "TEE_LOGIN_")
RESULT: Final = Names(_table(tee, "TEE_ERROR_") | {tee.TEE_SUCCESS: "TEE_SUCCESS"}, "TEE_")
ORIGIN: Final = _names(tee, "TEE_ORIGIN_")
RPC_COMMAND: Final = _names(optee_rpc, "OPTEE_RPC_CMD_")
FS: Final = _names(optee_rpc, "OPTEE_RPC_FS_")
SOCKET: Final = _names(optee_rpc, "OPTEE_RPC_SOCKET_", without=("OPTEE_RPC_SOCKET_TIMEOUT_",))
SHM_TYPE: Final = _names(optee_rpc, "OPTEE_RPC_SHM_TYPE_")
I2C: Final = _names(optee_rpc, "OPTEE_RPC_I2C_TRANSFER_")
SMCCC_RESULT: Final = _names(arm_smccc, "SMCCC_RET_")
PSCI_RESULT: Final = _names(psci, "PSCI_E_")


_FUNCTION_FAMILIES: Final = (
    (optee_smc, ("OPTEE_SMC_", "TEESMC_OPTEED_RETURN_", "NSSMC_OPTEED_CALL_")),
    (arm_smccc, ("ARM_SMCCC_", "SMCCC_", "ARM_STD_SVC_", "ARM_TRNG_")),
    (psci, ("PSCI_",)),
)
_NO_FUNCTIONS: Final = (
    "OPTEE_SMC_RETURN_",
    "OPTEE_SMC_FAST_CALL",
    "OPTEE_SMC_64",
    "ARM_SMCCC_RET_",
    "SMCCC_VERSION_M",
    "PSCI_VERSION_M",
    "PSCI_0_2_FN_BASE",
    "PSCI_0_2_FN64_BASE",
    "PSCI_0_2_64BIT",
    "PSCI_INVALID_MPIDR",
    "PSCI_RESET2_",
    "PSCI_1_0_EXT_POWER_STATE_",
    "PSCI_1_1_RESET_",
)
"""Numbers as large as function ids that are none."""

_SMALLEST_FUNCTION: Final = optee_smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
"""Every function id with a name has an owner of the trusted OS range or the fast bit."""


def _function_table() -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for module, prefixes in _FUNCTION_FAMILIES:
        for name, value in vars(module).items():
            ours = name.startswith(prefixes) and not name.startswith(_NO_FUNCTIONS)
            if ours and value >= _SMALLEST_FUNCTION:
                found[value] = (*found.get(value, ()), name)
    return found


FUNCTIONS: Final[Mapping[int, tuple[str, ...]]] = _function_table()
"""Function id to the names that the headers give it."""


def function_name(value: int) -> str | None:
    """The first name of a function id, in the order OP-TEE, SMCCC, PSCI."""
    names = FUNCTIONS.get(value)
    return names[0] if names else None
