# SPDX-License-Identifier: BSD-2-Clause
"""The life of a yielding call, top to bottom.

trap → limit → snapshot of the message → checks → shadow → translate → forward → (RPC rounds, see
:mod:`mediator.optee.rpc`) → copy back of results → release.

The message is read from the guest exactly once. What the TEE gets is the mediator's copy; what the
guest gets back are the result fields of what *it* asked, taken from that copy (I1, I4).
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable
from typing import Final

from mediator.host import PAGE_MASK, PAGE_SIZE, HostError
from mediator.optee import events, memory, notify, place, rpc
from mediator.optee.core import (
    M32,
    MAX_REFUSED_REQUESTS,
    OK,
    OWN_THREAD_BASE,
    RPC_PREFIX,
    UNKNOWN_FUNCTION,
    Core,
    Registers,
)
from mediator.optee.plan import RET_FIELDS, references, segments
from mediator.optee.records import (
    BY_ADDRESS,
    BY_COOKIE,
    REGISTERED,
    TEMPORARY,
    Call,
    Guest,
)
from mediator.optee.syscalls import Syscalls
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.wire import HEADER_SIZE, MAX_PARAMS, MESSAGE, NUM_PARAMS_OFFSET, PARAM_SIZE

CALL_WITH_ARG: Final = smc.OPTEE_SMC_CALL_WITH_ARG
CALL_WITH_RPC_ARG: Final = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN_FROM_RPC: Final = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
REGISTER_SHM: Final = msg.OPTEE_MSG_CMD_REGISTER_SHM
UNREGISTER_SHM: Final = msg.OPTEE_MSG_CMD_UNREGISTER_SHM
STOP_ASYNC_NOTIF: Final = msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF
INVOKE_COMMAND: Final = msg.OPTEE_MSG_CMD_INVOKE_COMMAND
EBADADDR: Final = smc.OPTEE_SMC_RETURN_EBADADDR
ETHREAD_LIMIT: Final = smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
NONCONTIG: Final = msg.OPTEE_MSG_ATTR_NONCONTIG

FIRST_READ: Final = HEADER_SIZE + 6 * PARAM_SIZE
"""Bytes of a slot that are read at first: what Linux needs for any message of its own, so that one
read is enough, and no more of what lies behind a shorter one."""
LAST_WHOLE_READ: Final = PAGE_SIZE - FIRST_READ

_RET: Final = struct.Struct("<2I")
_RET_AT: Final = RET_FIELDS[0]
_RET_END: Final = _RET_AT + 4
_NO_ERROR: Final = bytes(4)
_WORD: Final = struct.Struct("<I")
_ROUNDS: Final = range(MAX_REFUSED_REQUESTS)


def call_with_arg(
    core: Core, sys: Syscalls, guest: Guest, vcpu: int, regs: Registers
) -> Awaitable[Registers]:
    """CALL_WITH_ARG: one page-aligned message, RPC messages in buffers of their own."""
    return _by_address(core, sys, guest, vcpu, regs, CALL_WITH_ARG)


def call_with_rpc_arg(
    core: Core, sys: Syscalls, guest: Guest, vcpu: int, regs: Registers
) -> Awaitable[Registers]:
    """CALL_WITH_RPC_ARG: the RPC argument lies behind the message, in the same page."""
    return _by_address(core, sys, guest, vcpu, regs, CALL_WITH_RPC_ARG)


async def _by_address(
    core: Core, sys: Syscalls, guest: Guest, vcpu: int, regs: Registers, function: int
) -> Registers:
    if len(guest.live_calls) >= guest.call_limit:
        return (ETHREAD_LIMIT, *regs[1:])
    call = _begin(guest, function, BY_ADDRESS)
    try:
        ipa = (regs[1] & M32) << 32 | regs[2] & M32
        if ipa & PAGE_MASK:
            return await _refuse(core, sys, guest, call, regs, EBADADDR)
        call.page = ipa
        call.shadow = core.free_pages.pop() if core.free_pages else await sys.alloc_shadow(1)
        if call.shadow is None:
            return await _refuse(core, sys, guest, call, regs, smc.OPTEE_SMC_RETURN_ENOMEM)
        page = await sys.read_guest(guest.id, ipa, PAGE_SIZE)
        if page is None:
            return await _refuse(core, sys, guest, call, regs, EBADADDR)
        if len(page) != PAGE_SIZE:
            raise HostError("read_guest", f"{len(page)} bytes instead of {PAGE_SIZE}")
        return await _start(core, sys, guest, vcpu, regs, call, page, PAGE_SIZE)
    except Exception:
        await core.drop_call(sys, guest, call)
        raise


async def call_with_regd_arg(
    core: Core, sys: Syscalls, guest: Guest, vcpu: int, regs: Registers
) -> Registers:
    """CALL_WITH_REGD_ARG: the message lies in a registered buffer, whose pages are pinned.

    Forwarded as CALL_WITH_RPC_ARG on the shadow page: forwarded as itself, the TEE would read
    memory that the guest can change meanwhile.
    """
    if len(guest.live_calls) >= guest.call_limit:
        return (ETHREAD_LIMIT, *regs[1:])
    carrier = guest.buffers.get((regs[1] & M32) << 32 | regs[2] & M32)
    position = regs[3] & M32
    if (
        carrier is None
        or not carrier.live
        or carrier.kind != REGISTERED
        or position & 7
        or position + HEADER_SIZE > carrier.length
    ):
        return (EBADADDR, *regs[1:])
    call = _begin(guest, CALL_WITH_RPC_ARG, BY_COOKIE)
    call.carrier = carrier
    carrier.users += 1
    pa = carrier.pa(position)
    call.position = position
    call.inside = inside = pa & PAGE_MASK
    call.page = pa - inside
    try:
        call.shadow = core.free_pages.pop() if core.free_pages else await sys.alloc_shadow(1)
        if call.shadow is None:
            return await _refuse(core, sys, guest, call, regs, smc.OPTEE_SMC_RETURN_ENOMEM)
        first = FIRST_READ if inside <= LAST_WHOLE_READ else PAGE_SIZE - inside
        data = await sys.read_pinned(guest.id, pa, first)
        if len(data) < HEADER_SIZE:
            data = await place.read_rest(sys, guest, carrier, position, data, HEADER_SIZE)
        room = carrier.length - position
        return await _start(core, sys, guest, vcpu, regs, call, data, room)
    except Exception:
        await core.drop_call(sys, guest, call)
        raise


def _begin(guest: Guest, function: int, way: int) -> Call:
    """Take one of the guest's calls, before anything is awaited."""
    guest.serial += 1
    call = Call(guest.serial, function, way)
    guest.live_calls[call.serial] = call
    return call


async def _refuse(
    core: Core, sys: Syscalls, guest: Guest, call: Call, regs: Registers, status: int
) -> Registers:
    await core.drop_call(sys, guest, call)
    if core.sink is not None and call.command >= 0:
        core.sink(events.CallEnded(guest.id, call.serial, -1, status))
    return (status, *regs[1:])


async def _start(
    core: Core,
    sys: Syscalls,
    guest: Guest,
    vcpu: int,
    regs: Registers,
    call: Call,
    data: bytes,
    room: int,
) -> Registers:
    """From the snapshot of the message to the TEE.

    ``data`` starts with the message; ``room``: bytes from there to the end of what it lies in.
    """
    count: int = _WORD.unpack(data[NUM_PARAMS_OFFSET:HEADER_SIZE])[0]
    if count > MAX_PARAMS:
        return await _fail(core, sys, guest, call, regs, tee.TEE_ERROR_BAD_PARAMETERS)
    size = HEADER_SIZE + count * PARAM_SIZE
    if call.function == CALL_WITH_RPC_ARG:
        call.rpc_at = size
        call.rpc_room = guest.rpc_params
        end = size + HEADER_SIZE + guest.rpc_params * PARAM_SIZE
        if end > room or end > PAGE_SIZE:
            return await _refuse(core, sys, guest, call, regs, EBADADDR)
    carrier = call.carrier
    if carrier is not None and size > len(data):
        data = await place.read_rest(sys, guest, carrier, call.position, data, size)
    message = data[:size]
    fields = MESSAGE[count].unpack(message)
    command = fields[0]
    if command > core.last_command:
        return await _refuse(core, sys, guest, call, regs, smc.OPTEE_SMC_RETURN_EBADCMD)
    call.command = command
    call.size = size
    plan = core.plans.of(fields[8::4])
    call.outputs = plan.outputs
    shadow = call.shadow
    assert shadow is not None
    shadow.mem[:size] = message
    if core.sink is not None:
        core.sink(events.CallStarted(guest.id, call.serial, vcpu, call.function, command))
    if command == UNREGISTER_SHM and count:
        call.target = fields[11]
    elif command == STOP_ASYNC_NOTIF:
        call.enables = guest.enables
    if plan.rmem and command <= INVOKE_COMMAND:
        call.named = named = references(plan.rmem, fields)
        if guest.rpc_buffers and not guest.rpc_buffers.keys().isdisjoint(named):
            # The TEE knows the mediator's own page under this name.
            bad = tee.TEE_ERROR_BAD_PARAMETERS
            return await _not_translated(core, sys, guest, call, regs, bad)
    if plan.tmem:
        call.pending = _given(plan.tmem, fields)
        result = await _translate(core, sys, guest, call)
        if result:
            return await _not_translated(core, sys, guest, call, regs, result)
    pa = shadow.pa
    return await _enter(core, sys, guest, vcpu, regs, call, call.function, pa >> 32, pa & M32, 1)


def _given(tmem: tuple[int, ...], fields: tuple[int, ...]) -> list[int]:
    """The temporary references that are not null."""
    return [index for index in tmem if fields[9 + 4 * index]]


async def _translate(core: Core, sys: Syscalls, guest: Guest, call: Call) -> int:
    """Take and pin the temporary buffers that are still pending: DONE, PREEMPTED or a TEE error.

    The parameters are read from the shadow page, which the guest cannot reach.
    """
    shadow = call.shadow
    assert shadow is not None
    kind = REGISTERED if call.command == REGISTER_SHM else TEMPORARY
    walked = 0
    while call.pending:
        if walked >= core.settings.limits.walk_entries:
            # Buffers too short to be stopped inside are as long as a long one together.
            if await sys.should_preempt():
                return memory.PREEMPTED
            walked = 0
        at = HEADER_SIZE + call.pending[0] * PARAM_SIZE
        attr, address, size, reference = struct.unpack_from("<4Q", shadow.mem, at)
        buffer = call.walk
        if buffer is None:
            contiguous = not attr & NONCONTIG
            if contiguous and (kind == REGISTERED or not core.settings.contiguous):
                return tee.TEE_ERROR_BAD_PARAMETERS
            taken = memory.reserve(
                core,
                guest,
                kind,
                address,
                size,
                None if contiguous else reference,
                contiguous=contiguous,
            )
            if isinstance(taken, int):
                return taken
            buffer = call.walk = taken
        result = await memory.walk(core, sys, guest, buffer)
        if result:
            return result
        walked += buffer.pages
        call.walk = None
        call.buffers.append(buffer)
        call.pending.pop(0)
        assert buffer.list is not None
        struct.pack_into(
            "<4Q",
            shadow.mem,
            at,
            attr | NONCONTIG,
            buffer.list.pa | buffer.offset,
            size,
            buffer.reference,
        )
    for buffer in call.buffers:
        buffer.given = True
    return memory.DONE


async def _not_translated(
    core: Core, sys: Syscalls, guest: Guest, call: Call, regs: Registers, result: int
) -> Registers:
    """A buffer could not be taken, or the walk was asked to stop."""
    if result != memory.PREEMPTED:
        return await _fail(core, sys, guest, call, regs, result)
    thread = OWN_THREAD_BASE
    while thread in guest.suspended:
        thread += 1
    call.thread = thread
    call.own_thread = True
    guest.suspended[thread] = call
    return rpc.foreign_interrupt(thread, regs)


async def _resume_own(
    core: Core, sys: Syscalls, guest: Guest, vcpu: int, regs: Registers, call: Call
) -> Registers:
    """Go on with a call that the mediator suspended before the TEE was entered."""
    # It stays suspended, and its thread id taken, until the walk is over.
    call.leaving = True
    result = memory.DONE
    if call.walk is not None:
        # Straight to where it stopped; once that buffer is done the others follow as usual.
        result = await memory.walk(core, sys, guest, call.walk)
    if result == memory.DONE:
        result = await _translate(core, sys, guest, call)
    call.leaving = False
    if result == memory.PREEMPTED:
        return rpc.foreign_interrupt(call.thread, regs)
    del guest.suspended[call.thread]
    call.own_thread = False
    if result:
        return await _fail(core, sys, guest, call, regs, result)
    shadow = call.shadow
    assert shadow is not None
    return await _enter(
        core, sys, guest, vcpu, regs, call, call.function, shadow.pa >> 32, shadow.pa & M32, 1
    )


async def _fail(
    core: Core, sys: Syscalls, guest: Guest, call: Call, regs: Registers, result: int
) -> Registers:
    """End a call before the TEE: ``result`` with origin COMMS in the message, x0 = OK."""
    segments = [(RET_FIELDS[0], _RET.pack(result, tee.TEE_ORIGIN_COMMS))]
    await _release_buffers(core, sys, guest, call)
    written = await place.write_back(sys, guest, call, segments)
    return await _refuse(core, sys, guest, call, regs, OK if written else EBADADDR)


async def _enter(
    core: Core,
    sys: Syscalls,
    guest: Guest,
    vcpu: int,
    regs: Registers,
    call: Call,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    a4: int = 0,
    a5: int = 0,
) -> Registers:
    """Enter the TEE with a call, until it ends or the guest is needed."""
    sink = core.sink
    for _ in _ROUNDS:
        if sink is not None:
            sent = (a0, a1, a2, a3, a4, a5, 0, guest.client)
            sink(events.Forwarded(guest.id, call.serial, vcpu, sent))
        answer = await sys.smc(a0, a1, a2, a3, a4, a5, 0, guest.client)
        if sink is not None:
            sink(events.Answered(guest.id, call.serial, vcpu, answer))
        status = answer[0] & M32
        if status < RPC_PREFIX or status == UNKNOWN_FUNCTION:
            return await _end(core, sys, guest, vcpu, regs, call, answer[0])
        call.vcpu = vcpu
        leaving = await rpc.leave(core, sys, guest, regs, call, answer)
        if leaving == rpc.BROKEN:
            break
        if leaving is not None:
            return leaving
        # The request cannot be handed to the guest: its failure is in the RPC message already.
        a0, a1, a2, a3, a4, a5 = RETURN_FROM_RPC, 0, 0, call.thread, 0, 0
    else:
        # Its thread is suspended and holds all that it was given: the call goes on another time.
        call.rpc_function, call.rpc_a1, call.rpc_a2 = rpc.FUNC_FOREIGN_INTR, 0, 0
        call.leaving = False
        guest.suspended[call.thread] = call
        return rpc.foreign_interrupt(call.thread, regs)
    await core.finding(sys, guest, "secure-world", "a call was given up: its thread is not its own")
    # Some thread of the TEE may have the buffers still: they stay with the guest until its end.
    call.buffers, call.walk = [], None
    return await _fail(core, sys, guest, call, regs, tee.TEE_ERROR_COMMUNICATION)


async def _end(
    core: Core,
    sys: Syscalls,
    guest: Guest,
    vcpu: int,
    regs: Registers,
    call: Call,
    status: int,
) -> Registers:
    """The TEE is done: names and pins first, then the results, then the call itself.

    Releasing first matters: once the guest can see the results it may use the names again.
    """
    shadow = call.shadow
    assert shadow is not None
    data = shadow.mem[: call.size].tobytes()
    accepted = status & M32 == OK and data[_RET_AT:_RET_END] == _NO_ERROR
    if call.command == STOP_ASYNC_NOTIF and accepted:
        notify.stopped(core, guest, call)
    if call.target >= 0 and accepted:
        await _unregistered(core, sys, guest, call.target)
    if call.command == REGISTER_SHM and accepted:
        buffers, call.buffers = call.buffers, []
        for buffer in buffers:
            if buffer.doomed:
                # Another processor unregistered it before this one could say that it is there.
                await core.release_buffer(sys, guest, buffer)
                continue
            buffer.live = True
            lists, buffer.list = buffer.list, None
            if lists is not None:
                await core.give_list(sys, lists)
    elif call.buffers:
        await _release_buffers(core, sys, guest, call)
    carrier = call.carrier
    if carrier is None:
        results = segments(call.outputs, data, 0)
        if core.finish is None:
            written = await sys.write_guest(guest.id, call.page, results)
        else:
            await core.finish(sys, guest.id, call.page, results, EBADADDR)
            written = True
    elif call.inside + call.size <= PAGE_SIZE:
        results = segments(call.outputs, data, call.inside)
        await sys.write_pinned(guest.id, call.page, results)
        written = True
    else:
        written = await place.write_back(sys, guest, call, segments(call.outputs, data, 0))
    await core.release_call(sys, guest, call)
    if status & M32 == ETHREAD_LIMIT and not guest.live_calls:
        # Passed on, but a driver that waits for another of its calls to end waits for ever.
        await core.finding(sys, guest, "secure-world", "no thread for a guest's only call")
    if not written:
        status = EBADADDR
    if core.sink is not None:
        core.sink(events.CallEnded(guest.id, call.serial, vcpu, status))
    return (status, *regs[1:])


async def _unregistered(core: Core, sys: Syscalls, guest: Guest, reference: int) -> None:
    """The TEE let go of what is registered as ``reference``: called before anything is awaited.

    That is what has the name now, not what had it when the call began: another UNREGISTER may have
    ended meanwhile, and a REGISTER taken the name again. A name is free again only after the TEE has
    accepted an UNREGISTER, so the first one accepted since then is about this buffer; but not if
    the TEE has not been told of it yet.
    """
    buffer = guest.buffers.get(reference)
    if buffer is None:
        return
    if buffer.live:
        await core.release_buffer(sys, guest, buffer)
    elif buffer.kind == REGISTERED and buffer.given:
        # Its own REGISTER has not come back yet, and will find it gone.
        buffer.doomed = True


async def _release_buffers(core: Core, sys: Syscalls, guest: Guest, call: Call) -> None:
    """Release exactly the buffers that this call took."""
    if call.walk is not None:
        walk, call.walk = call.walk, None
        await core.release_buffer(sys, guest, walk, call)
    buffers, call.buffers = call.buffers, []
    for buffer in buffers:
        await core.release_buffer(sys, guest, buffer, call)


async def return_from_rpc(
    core: Core, sys: Syscalls, guest: Guest, vcpu: int, regs: Registers
) -> Registers:
    """RETURN_FROM_RPC: find the suspended call of x3 and go on as *its record* says."""
    thread = regs[3] & M32
    call = guest.suspended.get(thread)
    if call is None or call.leaving:
        return (smc.OPTEE_SMC_RETURN_ERESUME, *regs[1:])
    if core.sink is not None:
        core.sink(events.RpcAnswered(guest.id, call.serial, thread, vcpu))
    try:
        if call.own_thread:
            return await _resume_own(core, sys, guest, vcpu, regs, call)
        if call.rpc_function == rpc.FUNC_CMD:
            if call.wait_key >= 0:
                call.vcpu = vcpu
                if not call.held:
                    core.end_wait(guest, call)
            # The thread stays suspended, and its id taken, until the TEE is entered: the guest may
            # be needed once more before that.
            call.leaving = True
            try:
                out = await rpc.answer_in(core, sys, guest, call, regs)
            except BaseException:  # not finally: mypyc miscompiles an await in there
                await rpc.put_down(core, sys, call)
                raise
            await rpc.put_down(core, sys, call)
            call.leaving = False
            if out is not None:
                return out
            del guest.suspended[thread]
            return await _enter(core, sys, guest, vcpu, regs, call, RETURN_FROM_RPC, 0, 0, thread)
        del guest.suspended[thread]
        if call.rpc_function == rpc.FUNC_ALLOC:
            pa = await rpc.allocated(core, sys, guest, call, regs)
            return await _enter(
                core,
                sys,
                guest,
                vcpu,
                regs,
                call,
                RETURN_FROM_RPC,
                pa >> 32,
                pa & M32,
                thread,
                regs[4],
                regs[5],
            )
        return await _enter(
            core, sys, guest, vcpu, regs, call, RETURN_FROM_RPC, call.rpc_a1, call.rpc_a2, thread
        )
    except Exception:
        await core.drop_call(sys, guest, call)
        raise
