# SPDX-License-Identifier: BSD-2-Clause
"""Probing the TEE, and the beginning and end of a guest.

Teardown releases in a fixed order (calls, RPC buffers, shared buffers one by one) and may be
stopped before each step; entered again it goes on from the records. The TEE is told last. The
host keeps the guest's pages until teardown is done, so nothing is reused while the TEE may hold it.
"""

from __future__ import annotations

import attrs

from mediator.optee import events
from mediator.optee.core import DEFAULT_RPC_PARAMS, M32, OK, UNKNOWN_FUNCTION, Core
from mediator.optee.records import Guest
from mediator.optee.syscalls import Syscalls
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc

UID = (msg.OPTEE_MSG_UID_0, msg.OPTEE_MSG_UID_1, msg.OPTEE_MSG_UID_2, msg.OPTEE_MSG_UID_3)
LAST_CLIENT = 0xFFFF
"""OP-TEE looks at 16 bits of a client id: a larger one would be that of another guest."""
DEFAULT_THREADS = 2
"""Calls per guest when nobody probed and no limit is set: what a small OP-TEE build has."""


@attrs.frozen
class Probe:
    """Whether an OP-TEE with virtualization was found, its threads per guest, or why not."""

    found: bool
    threads: int
    reason: str


async def probe(core: Core, sys: Syscalls) -> Probe:
    """Look for an OP-TEE that keeps guests apart. Client id 0 is the hypervisor's own."""
    uid = await core.fast(sys, None, smc.OPTEE_SMC_CALLS_UID)
    if tuple(word & M32 for word in uid) != UID:
        return Probe(False, 0, "CALLS_UID is not OP-TEE's")
    count = await core.fast(sys, None, smc.OPTEE_SMC_GET_THREAD_COUNT)
    if count[0] != OK:
        return Probe(False, 0, f"GET_THREAD_COUNT answered {count[0]:#x}")
    # Destroying the hypervisor's own id does no harm; only a build without virtualization does not
    # know the call. The comparison has 64 bits: the ABI's unknown-function value is a 32-bit one.
    gone = await core.fast(sys, None, smc.OPTEE_SMC_VM_DESTROYED)
    if gone[0] == UNKNOWN_FUNCTION:
        return Probe(False, 0, "this OP-TEE is built without virtualization")
    core.threads = count[1] & M32
    return Probe(True, core.threads, "")


async def guest_created(core: Core, sys: Syscalls, guest: int, client: int | None = None) -> bool:
    """Tell the TEE of a new guest. ``False``: it refused, and there is no context for the guest.

    So it is for a guest whose client id the TEE cannot tell from others. ``client``: instead of the
    one that the settings say.
    """
    if guest in core.guests:
        raise ValueError(f"guest {guest} exists already")
    settings = core.settings
    threads = core.threads if core.threads is not None else DEFAULT_THREADS
    limit = settings.limits.call_limit(threads)
    if client is None:
        client = settings.client_id_base + guest
    record = Guest(guest, client, limit, DEFAULT_RPC_PARAMS)
    record.highest = settings.limits.notifications
    if not 0 < record.client <= LAST_CLIENT:
        return False
    core.guests[guest] = record
    record.dying = True  # not served before the TEE knows it
    record.entries += 1  # and not destroyed either
    try:
        answer = await core.fast(sys, None, smc.OPTEE_SMC_VM_CREATED, record.client)
    except Exception:
        del core.guests[guest]
        raise
    record.entries -= 1
    if answer[0] & M32 != OK:
        del core.guests[guest]
        return False
    record.dying = False
    return True


async def guest_destroyed(core: Core, sys: Syscalls, guest: int) -> bool:
    """Release everything of a guest and tell the TEE. ``False``: stopped on the way, enter again."""
    record = core.guests.get(guest)
    if record is None:
        return True
    record.dying = True
    if record.entries:
        # An entry of this guest is still on its way out; what it holds is its own until then.
        return False
    record.entries += 1
    try:
        return await _release_all(core, sys, record)
    finally:
        record.entries -= 1


async def _release_all(core: Core, sys: Syscalls, record: Guest) -> bool:
    record.notified = False
    core.listens(record)
    while record.live_calls:
        call = next(iter(record.live_calls.values()))
        # Its buffers go below, one by one, like all others, and so do those that it names.
        call.buffers, call.walk, call.named = [], None, []
        await core.drop_call(sys, record, call)
    if await sys.should_preempt():
        return False
    while record.rpc_buffers:
        await core.release_rpc_buffer(sys, record, next(iter(record.rpc_buffers.values())))
    while record.buffers:
        if await sys.should_preempt():
            return False
        await core.release_buffer(sys, record, next(iter(record.buffers.values())))
    while record.lingering:
        if await sys.should_preempt():
            return False
        await core.release_lingering(sys, record, next(iter(record.lingering)))
    if await sys.should_preempt():
        return False
    answer = await core.fast(sys, None, smc.OPTEE_SMC_VM_DESTROYED, record.client)
    core.guests.pop(record.id, None)
    if answer[0] & M32 != OK:
        await sys.quarantine(record.id, answer[0])
    if core.sink is not None:
        core.sink(events.GuestTornDown(record.id, answer[0]))
    return True
