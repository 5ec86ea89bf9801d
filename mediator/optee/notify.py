# SPDX-License-Identifier: BSD-2-Clause
"""Who waits for what: asynchronous notifications and the waits of suspended threads.

The TEE raises one interrupt for all guests and names none of them; asking for a value consumes it
(``optee_smc.h``, OPTEE_SMC_GET_ASYNC_NOTIF_VALUE). So the mediator asks on behalf of every guest
that listens, keeps what it learns in a bitmap of that guest, and interrupts a guest only if there
is something new for it. The guest's own question is answered from its bitmap.

A thread that waits leaves by RPC NOTIFICATION WAIT, and the guest's driver keeps it until a SEND
comes or, when the release happened in another partition, a notification value. A driver that has
not enabled notifications would never learn of the latter: for such a guest the mediator keeps the
wait itself. The guest sees a foreign interrupt, comes back, and meanwhile its vCPU rests.
"""

from __future__ import annotations

from typing import Final

from mediator.optee import events
from mediator.optee.core import M32, OK, Core, Registers
from mediator.optee.records import Call, Guest
from mediator.optee.syscalls import Syscalls
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc, tee
from smccc.constants import optee_smc as smc

WAIT: Final = optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT
SEND: Final = optee_rpc.OPTEE_RPC_NOTIFICATION_SEND
VALUE_INPUT: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
VALID: Final = smc.OPTEE_SMC_ASYNC_NOTIF_VALID
PENDING: Final = smc.OPTEE_SMC_ASYNC_NOTIF_PENDING
NS_PER_MS: Final = 1_000_000

PASS: Final = -1
HELD: Final = -2
"""Results of :func:`request` beside a TEE result code: hand it to the guest; the mediator waits."""

FIRST_REST: Final = 20_000
"""ns that a vCPU rests before it asks again: a few round trips through the TEE."""
LONGEST_REST: Final = 1_000_000
"""ns: the bound of the back-off. Should a wake-up get lost, this is what it costs (I7)."""
_DOUBLINGS: Final = (LONGEST_REST // FIRST_REST).bit_length()

TIMED_OUT: Final = tee.TEE_ERROR_BAD_PARAMETERS
"""What a driver answers to a wait whose time is over (Linux ``drivers/tee/optee/rpc.c``)."""


# --- fast calls of the guest ----------------------------------------------------------------


async def enable(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """ENABLE_ASYNC_NOTIF: from now on the guest listens. What was sent before is not lost."""
    answer = await core.fast(sys, guest, smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)
    if answer[0] & M32 == OK:
        guest.enables += 1
        guest.notified = True
        guest.holds = False
        core.listening[guest.id] = None
        await _drain(core, sys, guest)
        await _interrupt_guest(core, sys, guest, guest.pending)
    return (answer[0], *regs[1:])


async def value(core: Core, sys: Syscalls, guest: Guest, regs: Registers) -> Registers:
    """GET_ASYNC_NOTIF_VALUE: the lowest value of the guest's bitmap, consumed.

    Nobody asks the TEE on behalf of a guest that does not listen: it asks for itself.
    """
    pending = guest.pending
    if not pending:
        if guest.notified:
            return (OK, 0, 0, *regs[3:])
        answer = await core.fast(sys, guest, smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)
        if answer[0] & M32 != OK:
            return (answer[0], *regs[1:])
        return (*answer[:3], *regs[3:])
    lowest = pending & -pending
    guest.pending = left = pending ^ lowest
    return (OK, lowest.bit_length() - 1, VALID | PENDING if left else VALID, *regs[3:])


def stopped(core: Core, guest: Guest, call: Call) -> None:
    """The TEE accepted STOP_ASYNC_NOTIF.

    An ENABLE that was answered meanwhile may have come after it in the TEE: then the guest goes on
    listening, which costs a question now and then; the other way round it would miss everything.
    """
    if guest.enables == call.enables:
        guest.notified = False
        core.listens(guest)


# --- the TEE's interrupt --------------------------------------------------------------------


async def interrupt(core: Core, sys: Syscalls) -> bool:
    """The TEE raised its interrupt: ask for every guest that listens. ``False``: enter again."""
    if core.stopped_rounds:
        # One that was stopped goes on, or takes the place of one that will.
        core.stopped_rounds -= 1
    else:
        core.unasked.update(core.listening)
    while core.unasked:
        guest_id = next(iter(core.unasked))
        # Removed before the TEE is asked: a value that comes after the question raises the
        # interrupt again, which puts the guest back.
        del core.unasked[guest_id]
        guest = core.guests.get(guest_id)
        if guest is None or guest.dying:
            continue
        gained = await _drain(core, sys, guest)
        await _interrupt_guest(core, sys, guest, gained)
        if core.unasked and await sys.should_preempt():
            core.stopped_rounds += 1
            return False
    return True


async def _drain(core: Core, sys: Syscalls, guest: Guest) -> int:
    """Take what the TEE has for ``guest``; returns the bits that are new in its bitmap.

    Ends with the first value that comes twice: the TEE consumes what it tells.
    """
    gained = told = 0
    guest.entries += 1
    try:
        while True:
            answer = await core.fast(sys, guest, smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)
            if answer[0] & M32 != OK or not answer[2] & VALID:
                break
            number = answer[1] & M32
            if number > guest.highest:
                detail = f"notification value {number:#x} is above the highest"
                await core.finding(sys, guest, "secure-world", detail)
                break
            bit = 1 << number
            if told & bit:
                await core.finding(sys, guest, "secure-world", "a notification value twice")
                break
            told |= bit
            if await _wake(core, sys, guest, number):
                gained &= ~bit
            elif not guest.pending & bit:
                guest.pending |= bit
                gained |= bit
            if not answer[2] & PENDING:
                break
    finally:
        guest.entries -= 1
    if core.sink is not None and told:
        core.sink(events.NotificationsTaken(guest.id, told))
    return gained


async def _interrupt_guest(core: Core, sys: Syscalls, guest: Guest, gained: int) -> None:
    """Interrupt the guest if it listens and has not found out by itself meanwhile."""
    if guest.pending & gained and guest.notified and not guest.dying:
        if core.sink is not None:
            core.sink(events.GuestInterrupted(guest.id, core.settings.notification_virq))
        await sys.inject_virq(guest.id, core.settings.notification_virq)


# --- waits of suspended threads -------------------------------------------------------------


async def request(
    core: Core, sys: Syscalls, guest: Guest, call: Call, fields: tuple[int, ...]
) -> int:
    """The TEE asks the guest for NOTIFICATION WAIT or SEND: PASS, HELD, or the result code."""
    if fields[7] != 1 or fields[8] != VALUE_INPUT:
        return PASS
    operation, key = fields[9], fields[10] & M32
    if operation == WAIT:
        return await _wait(core, sys, guest, call, key, fields[11] & M32)
    if operation == SEND and key <= guest.highest:
        waiters = guest.waiters.get(key)
        if waiters is None:
            if not guest.holds:
                return PASS
            # The wait that comes later is the mediator's, and so is the memory of the send.
            guest.pending |= 1 << key
            _send_kept(core, guest, key)
            return tee.TEE_SUCCESS
        for waiter in waiters.values():
            if waiter.held:
                await _wake(core, sys, guest, key)
                _send_kept(core, guest, key)
                return tee.TEE_SUCCESS
    return PASS


def _send_kept(core: Core, guest: Guest, key: int) -> None:
    if core.sink is not None:
        core.sink(events.SendKept(guest.id, key))


async def _wait(
    core: Core, sys: Syscalls, guest: Guest, call: Call, key: int, timeout_ms: int
) -> int:
    # Asked first: who sends between the look and the note of the wait wakes nobody.
    now = await sys.now()
    held = guest.holds and key <= guest.highest
    if held and guest.pending >> key & 1:
        guest.pending ^= 1 << key
        if core.sink is not None:
            core.sink(events.WaitBegan(guest.id, call.serial, call.thread, key, int(held)))
            core.sink(events.WaitEnded(guest.id, call.serial, call.thread, key))
        return tee.TEE_SUCCESS
    guest.begin_wait(call, key, now, now + timeout_ms * NS_PER_MS if timeout_ms else 0, held=held)
    if core.sink is not None:
        core.sink(events.WaitBegan(guest.id, call.serial, call.thread, key, int(held)))
    if not held:
        return PASS
    core.listening[guest.id] = None
    # It may have been sent before anybody listened.
    await _drain(core, sys, guest)
    if call.woken:
        return _ended(core, guest, call, tee.TEE_SUCCESS)
    await _rest(sys, guest, call, now)
    return HELD


async def still_waiting(core: Core, sys: Syscalls, guest: Guest, call: Call) -> int:
    """The guest came back to a wait that the mediator keeps: HELD, or the result code for the TEE.

    The TEE is asked each time, so that an interrupt that got lost delays the thread at most by
    :data:`LONGEST_REST`.
    """
    if not call.woken:
        await _drain(core, sys, guest)
    if call.woken:
        return _ended(core, guest, call, tee.TEE_SUCCESS)
    now = await sys.now()
    if call.wait_deadline and now >= call.wait_deadline:
        return _ended(core, guest, call, TIMED_OUT)
    await _rest(sys, guest, call, now)
    return HELD


def _ended(core: Core, guest: Guest, call: Call, result: int) -> int:
    core.end_wait(guest, call)
    return result


async def _rest(sys: Syscalls, guest: Guest, call: Call, now: int) -> None:
    """Let the vCPU rest, twice as long each time."""
    until = now + min(FIRST_REST << call.wait_tries, LONGEST_REST)
    call.wait_tries = min(call.wait_tries + 1, _DOUBLINGS)
    if call.wait_deadline:
        until = min(until, call.wait_deadline)
    await sys.park_vcpu(guest.id, call.vcpu, until)
    if call.woken:
        # Between the look and the rest: whoever woke it found nobody resting.
        await sys.wake_vcpu(guest.id, call.vcpu)


async def _wake(core: Core, sys: Syscalls, guest: Guest, key: int) -> bool:
    """Let one wait for ``key`` that the mediator keeps go on; False if there is none."""
    for call in guest.waiters.get(key, {}).values():
        if call.held and not call.woken:
            call.woken = True
            await sys.wake_vcpu(guest.id, call.vcpu)
            return True
    return False
