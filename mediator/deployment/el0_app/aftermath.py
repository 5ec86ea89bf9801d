# SPDX-License-Identifier: BSD-2-Clause
"""What calls of a guest get after the death of its app, so that its driver comes to an end with them.

A driver that gets a wrong answer waits for ever, in its kernel. How Linux takes them
(``drivers/tee/optee/smc_abi.c``, ``notif.c``): every status but an RPC and ETHREAD_LIMIT ends a call with a
thread; DISABLE_SHM_CACHE is repeated until it says ENOTAVAIL, ENABLE_SHM_CACHE until it says OK;
who waits for a notification value sleeps until it comes; and who removes the driver waits until all memory
is back that it lent by RPC. That goes back by DISABLE_SHM_CACHE, which a driver without RPC arguments asks
when it is removed, or by an RPC of a call with RPC argument, which the others make for each buffer then.
"""

from __future__ import annotations

from typing import Final

from mediator.deployment.el0_app.grants import Grant
from mediator.deployment.el0_app.lent import COUNT_AT, FIRST_OWN, SIZE, free_request
from mediator.host import PAGE_MASK, PAGE_SIZE, Host
from smccc.constants import optee_smc as smc
from smccc.registers import pair, split
from smccc.wire import HEADER_SIZE, MAX_PARAMS, message_size

M32: Final = 0xFFFF_FFFF

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


def answer(host: Host, grant: Grant, regs: tuple[int, ...]) -> tuple[int, ...] | None:
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
    lent = grant.lent
    if lent.cookies or lent.giving or lent.asked or lent.waits:
        given = _give_back(host, grant, function, regs)
        if given is not None:
            return given
    if grant.lost:
        return (ended(function), *regs[1:])
    if function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES:
        # Whoever asks this has nobody who waits, and has lent nothing.
        grant.renewed, grant.owed = False, 0
        lent.forget()
    if function not in PROBED:
        return None
    if function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
        return (smc.OPTEE_SMC_RETURN_ERESUME, *regs[1:])
    return (ended(function), *regs[1:])


def _give_back(
    host: Host, grant: Grant, function: int, regs: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Let the driver have one buffer back that it lent to the TEE; ``None``: not by this call."""
    lent = grant.lent
    ipa = 0
    if function == smc.OPTEE_SMC_DISABLE_SHM_CACHE:
        if not lent.cookies:
            return None
        cookie = next(iter(lent.cookies))
        lent.back(cookie)
        return (smc.OPTEE_SMC_RETURN_OK, *split(cookie), *regs[3:])
    if function == smc.OPTEE_SMC_CALL_WITH_RPC_ARG:
        ipa = pair(regs[1], regs[2])
    elif function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
        ipa = lent.giving.pop(regs[3] & M32, 0)
        if not ipa:
            lent.returns(regs)  # perhaps with a buffer for messages, lent just now
            return None
    if ipa and lent.cookies:
        cookie = next(iter(lent.cookies))
        if _ask(host, grant.guest, ipa, free_request(cookie)):
            lent.back(cookie)
            lent.number += 1
            thread = FIRST_OWN + (lent.number & 0xFFFF)
            lent.giving[thread] = ipa
            return (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 0, thread, *regs[4:])
    if function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
        return (ended(function), *regs[1:])
    return None


def _ask(host: Host, guest: int, ipa: int, request: bytes) -> bool:
    """Write an RPC's message behind the message at ``ipa``, where its driver looks for it."""
    if ipa & PAGE_MASK > PAGE_SIZE - HEADER_SIZE:
        return False
    head = host.read_guest(guest, ipa, HEADER_SIZE)
    if head is None:
        return False
    count = int.from_bytes(head[COUNT_AT : COUNT_AT + 4], "little")
    if count > MAX_PARAMS:
        return False
    at = (ipa & PAGE_MASK) + message_size(count)
    if at + SIZE > PAGE_SIZE:
        return False
    return host.write_guest(guest, ipa & ~PAGE_MASK, [(at, request)])
