# SPDX-License-Identifier: BSD-2-Clause
"""What calls of a guest get after the death of its app, so that its driver comes to an end with them.

A driver that gets a wrong answer waits for ever, in its kernel. How Linux takes them
(``drivers/tee/optee/smc_abi.c``, ``notif.c``): every status but an RPC and ETHREAD_LIMIT ends a call with a
thread; DISABLE_SHM_CACHE is repeated until it says ENOTAVAIL, ENABLE_SHM_CACHE until it says OK; and
who waits for a notification value sleeps until it comes.
"""

from __future__ import annotations

from typing import Final

from mediator.deployment.el0_app.grants import Grant
from smccc.constants import optee_smc as smc

M32: Final = 0xFFFF_FFFF

FIRST_WAIT: Final = 0x40
"""The value that the TEE's thread 0 waits for, thread 1 the next, and so on (OP-TEE OS ``kernel/notif.h``,
NOTIF_SYNC_VALUE_BASE)."""

PROBED: Final = frozenset(
    (
        smc.OPTEE_SMC_CALL_WITH_ARG,
        smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
        smc.OPTEE_SMC_CALL_WITH_REGD_ARG,
        smc.OPTEE_SMC_CALL_RETURN_FROM_RPC,
        smc.OPTEE_SMC_ENABLE_SHM_CACHE,
        smc.OPTEE_SMC_DISABLE_SHM_CACHE,
        smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF,
        smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE,
    )
)
"""What no driver calls before it has agreed on capabilities."""


def ended(function: int) -> int:
    """x0 of a call whose app died, and of every call of a guest whose state was lost.

    No cache is no harm: a driver that is told so of ENABLE_SHM_CACHE goes on.
    """
    if function == smc.OPTEE_SMC_ENABLE_SHM_CACHE:
        return smc.OPTEE_SMC_RETURN_OK
    return smc.OPTEE_SMC_RETURN_ENOTAVAIL


def owed(threads: int) -> int:
    """A bitmap of the values that threads of the guest may wait for: nobody else will send them."""
    return ((1 << threads) - 1) << FIRST_WAIT


def answer(grant: Grant, regs: tuple[int, ...]) -> tuple[int, ...] | None:
    """The answer to a call of a guest that is lost or has a new partition; ``None``: enter the app.

    A driver that has not probed again since its partition was renewed has sessions, cookies and
    threads whose numbers may soon be those of new ones, so it gets nowhere with them.
    """
    function = regs[0] & M32
    if function == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE and grant.owed:
        lowest = grant.owed & -grant.owed
        grant.owed ^= lowest
        flags = smc.OPTEE_SMC_ASYNC_NOTIF_VALID
        if grant.owed:
            flags |= smc.OPTEE_SMC_ASYNC_NOTIF_PENDING
        return (smc.OPTEE_SMC_RETURN_OK, lowest.bit_length() - 1, flags, *regs[3:])
    if grant.lost:
        return (ended(function), *regs[1:])
    if function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES:
        # Whoever asks this has nobody who waits.
        grant.renewed, grant.owed = False, 0
    if function not in PROBED:
        return None
    if function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
        return (smc.OPTEE_SMC_RETURN_ERESUME, *regs[1:])
    return (ended(function), *regs[1:])
