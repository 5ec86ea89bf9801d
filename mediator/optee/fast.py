# SPDX-License-Identifier: BSD-2-Clause
"""Fast calls: answered at once, here or by the TEE, and never suspended.

Each sets exactly the result registers of its row in the ABI table; all others keep what the guest
put there. The TEE gets the client id in a7 and zero in every argument that has no meaning.
"""

from __future__ import annotations

from mediator.optee.core import OK, Core, Registers
from mediator.optee.records import Guest
from mediator.optee.syscalls import Syscalls
from smccc.constants import optee_smc as smc
from smccc.registers import pair

M32 = 0xFFFF_FFFF
RPC_PARAMS_MASK = 0xFF
"""Bits 7:0 of a3 (``optee_smc.h``, OPTEE_SMC_EXCHANGE_CAPABILITIES)."""


async def calls_count(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """CALLS_COUNT: how many functions *this* mediator answers."""
    return (core.calls_count, *regs[1:])


async def calls_uid(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """CALLS_UID: four words, no status."""
    answer = await core.fast(sys, guest, smc.OPTEE_SMC_CALLS_UID)
    return (*answer, *regs[4:])


async def calls_revision(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """CALLS_REVISION: major and minor, no status."""
    answer = await core.fast(sys, guest, smc.OPTEE_SMC_CALLS_REVISION)
    return (*answer[:2], *regs[2:])


async def os_uuid(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """GET_OS_UUID: four words, no status."""
    answer = await core.fast(sys, guest, smc.OPTEE_SMC_CALL_GET_OS_UUID)
    return (*answer, *regs[4:])


async def os_revision(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """GET_OS_REVISION: major, minor and, if offered, the build id."""
    answer = await core.fast(sys, guest, smc.OPTEE_SMC_CALL_GET_OS_REVISION)
    count = 3 if core.settings.build_id else 2
    return (*answer[:count], *regs[count:])


async def shm_config(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """GET_SHM_CONFIG: there is no reserved memory that guests could share."""
    return (smc.OPTEE_SMC_RETURN_ENOTAVAIL, *regs[1:])


async def thread_count(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """GET_THREAD_COUNT: what the guest can use is the smaller of the TEE's and its own limit."""
    answer = await core.fast(sys, guest, smc.OPTEE_SMC_GET_THREAD_COUNT)
    if answer[0] & M32 != OK:
        return (answer[0], *regs[1:])
    return (answer[0], min(answer[1] & M32, guest.call_limit), *regs[2:])


async def exchange_capabilities(
    core: Core, sys: Syscalls, guest: Guest, regs: Registers
) -> Registers:
    """EXCHANGE_CAPABILITIES: the guest sees what the TEE has *and* the mediator offers."""
    answer = await core.fast(
        sys,
        guest,
        smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
        regs[1] & smc.OPTEE_SMC_NSEC_CAP_UNIPROCESSOR,
    )
    if answer[0] & M32 != OK:
        return (answer[0], *regs[1:])
    offered = answer[1] & core.settings.capabilities
    if not offered & smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM:
        # Without it the guest would want the reserved memory, which it cannot have.
        return (smc.OPTEE_SMC_RETURN_ENOTAVAIL, *regs[1:])
    a2 = regs[2]
    if answer[1] & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF:
        guest.highest = min(answer[2] & M32, core.settings.limits.notifications)
        guest.holds = core.settings.hold_waits and not guest.notified
        if offered & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF:
            a2 = guest.highest
    a3 = regs[3]
    if offered & smc.OPTEE_SMC_SEC_CAP_RPC_ARG:
        a3 = answer[3]
        guest.rpc_params = a3 & RPC_PARAMS_MASK
    return (answer[0], offered, a2, a3, *regs[4:])


async def disable_shm_cache(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """DISABLE_SHM_CACHE: one cached RPC buffer comes back; it is unpinned before the guest knows."""
    answer = await core.fast(sys, guest, smc.OPTEE_SMC_DISABLE_SHM_CACHE)
    if answer[0] & M32 != OK:
        return (answer[0], *regs[1:])
    buffer = guest.rpc_buffers.get(pair(answer[1], answer[2]))
    if buffer is not None and buffer.live:
        await core.release_rpc_buffer(sys, guest, buffer)
    return (*answer[:3], *regs[3:])


async def enable_shm_cache(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """ENABLE_SHM_CACHE: status only."""
    answer = await core.fast(sys, guest, smc.OPTEE_SMC_ENABLE_SHM_CACHE)
    return (answer[0], *regs[1:])
