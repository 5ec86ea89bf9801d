# SPDX-License-Identifier: BSD-2-Clause
"""RPC rounds: a suspended call goes to the guest and comes back.

What the TEE asked is recorded when the call leaves; the guest's answer is read once and judged
against that record. Nothing that the guest writes changes what the mediator believes was asked,
and no address that it writes reaches the TEE untranslated (I2, I4).
"""

from __future__ import annotations

import struct
from typing import Final

from mediator.host import PAGE_MASK, HostError
from mediator.optee import events, memory, notify, place
from mediator.optee.core import M32, OWN_THREAD_BASE, Core, Registers
from mediator.optee.records import RPC_ALLOCATED, Buffer, Call, Guest, RpcBuffer
from mediator.optee.syscalls import Syscalls
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc, tee
from smccc.constants import optee_smc as smc
from smccc.registers import pair
from smccc.wire import (
    HEADER_SIZE,
    KIND_TMEM,
    MAX_PARAMS,
    MESSAGE,
    NUM_PARAMS_OFFSET,
    PARAM_KIND,
    PARAM_SIZE,
)

FUNC_ALLOC: Final = smc.OPTEE_SMC_RPC_FUNC_ALLOC
FUNC_FREE: Final = smc.OPTEE_SMC_RPC_FUNC_FREE
FUNC_CMD: Final = smc.OPTEE_SMC_RPC_FUNC_CMD
FUNC_FOREIGN_INTR: Final = smc.OPTEE_SMC_RPC_FUNC_FOREIGN_INTR
SHM_ALLOC: Final = optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC
NOTIFICATION: Final = optee_rpc.OPTEE_RPC_CMD_NOTIFICATION
SHM_FREE: Final = optee_rpc.OPTEE_RPC_CMD_SHM_FREE
NONCONTIG: Final = msg.OPTEE_MSG_ATTR_NONCONTIG
TMEM_OUTPUT: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT
VALUE_INPUT: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
GENERIC: Final = tee.TEE_ERROR_GENERIC

CMD_AT: Final = 0
RET_AT: Final = 20

BROKEN: Final[Registers] = ()
"""What :func:`leave` returns when the TEE's answer names a thread that cannot be its own."""

ENTER_AGAIN: Final = 0
DELIVERED: Final = 1
HELD: Final = 2
"""What became of a request: answered here (the TEE's message says how), with the guest, or kept."""

_WORD: Final = struct.Struct("<I")


def _put(mem: memoryview, at: int, value: int) -> None:
    _WORD.pack_into(mem, at, value)


# --- leaving the TEE ------------------------------------------------------------------------


async def leave(
    core: Core,
    sys: Syscalls,
    guest: Guest,
    regs: Registers,
    call: Call,
    answer: tuple[int, int, int, int],
) -> Registers | None:
    """Suspend ``call`` for an RPC and return the guest's registers.

    ``None``: the request cannot be handed to the guest, enter the TEE again at once;
    ``BROKEN``: the thread id belongs to another call, this one cannot be suspended.
    """
    call.rpc_function = answer[0] & 0xFFFF
    call.rpc_a1 = answer[1]
    call.rpc_a2 = answer[2]
    thread = answer[3] & M32
    if thread >= OWN_THREAD_BASE or thread in guest.suspended:
        await core.finding(sys, guest, "secure-world", f"thread id {thread:#x} is not free")
        return BROKEN
    call.thread = thread
    call.request = -1
    guest.suspended[thread] = call
    call.leaving = True
    if call.rpc_function == FUNC_CMD:
        try:
            delivered = await _request_out(core, sys, guest, call)
        finally:
            await put_down(core, sys, call)
        if delivered == ENTER_AGAIN:
            del guest.suspended[thread]
            return None
        if delivered == HELD:
            call.leaving = False
            return _as_interrupt(core, guest, call, regs)
    elif call.rpc_function == FUNC_FREE:
        # Before the guest can see the request: it may use the cookie again at that instant.
        cookie = pair(answer[1], answer[2])
        buffer = guest.rpc_buffers.get(cookie)
        refused, call.refused = call.refused, None
        if buffer is not None and buffer.live and _means(buffer, thread, refused):
            await core.release_rpc_buffer(sys, guest, buffer)
    call.leaving = False
    if core.sink is not None:
        core.sink(events.RpcToGuest(guest.id, call.serial, thread, call.rpc_function, call.request))
    return (*answer, *regs[4:])


def foreign_interrupt(thread: int, regs: Registers) -> Registers:
    """RPC_FOREIGN_INTR: the vCPU takes its interrupts, then comes back to ``thread``."""
    return (smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, thread, *regs[4:])


def _as_interrupt(core: Core, guest: Guest, call: Call, regs: Registers) -> Registers:
    """The guest's registers while the mediator waits for it: a foreign interrupt of its thread."""
    if core.sink is not None:
        left = events.RpcToGuest(guest.id, call.serial, call.thread, FUNC_FOREIGN_INTR, -1)
        core.sink(left)
    return foreign_interrupt(call.thread, regs)


def _means(buffer: RpcBuffer, thread: int, refused: int | None) -> bool:
    """Whether FREE from ``thread`` is about ``buffer``.

    OP-TEE gives an answer to ALLOC that was ``refused`` back by the cookie that came with it (its
    ``thread_rpc_alloc_arg``), and a guest can put the cookie there of a page that another thread
    is using.
    """
    return buffer.thread == thread or buffer.cookie != refused


async def _request_out(core: Core, sys: Syscalls, guest: Guest, call: Call) -> int:
    """Copy the TEE's request to the guest: ENTER_AGAIN, DELIVERED or HELD."""
    where = _place(guest, call)
    if where is None:
        await core.finding(sys, guest, "secure-world", "an RPC names an unknown message buffer")
        return ENTER_AGAIN
    mem, base, room = where
    count: int = _WORD.unpack_from(mem, base + NUM_PARAMS_OFFSET)[0]
    if count > room:
        await core.finding(sys, guest, "secure-world", f"an RPC request has {count} parameters")
        _put(mem, base + RET_AT, GENERIC)
        return ENTER_AGAIN
    request = mem[base : base + HEADER_SIZE + count * PARAM_SIZE].tobytes()
    fields = MESSAGE[count].unpack(request)
    call.request = fields[0]
    if fields[0] == SHM_ALLOC:
        call.shm_type = fields[9] if count else 0
        call.empty = None
    elif fields[0] == NOTIFICATION and count:
        result = await notify.request(core, sys, guest, call, fields)
        if result == notify.HELD:
            return HELD
        if result != notify.PASS:
            _put(mem, base + RET_AT, result)
            return ENTER_AGAIN
    elif fields[0] == SHM_FREE and count:
        # As for FREE: released even if the request cannot be delivered; the TEE has let go.
        buffer = guest.buffers.get(fields[10])
        empty, call.empty = call.empty, None
        if fields[10] == empty:
            # OP-TEE gives back what came with an answer that had no memory, whosever name it is.
            buffer = None
        if buffer is not None and buffer.kind == RPC_ALLOCATED and buffer.live:
            await core.release_buffer(sys, guest, buffer)
    for index in range(count):
        if PARAM_KIND[fields[8 + 4 * index] & 0xFF] == KIND_TMEM and fields[9 + 4 * index]:
            await core.finding(sys, guest, "I1", "an RPC request holds a physical address")
            _put(mem, base + RET_AT, GENERIC)
            return ENTER_AGAIN
    if not await _write_request(sys, guest, call, [(0, request)]):
        _put(mem, base + RET_AT, GENERIC)
        return ENTER_AGAIN
    return DELIVERED


def _place(guest: Guest, call: Call) -> tuple[memoryview, int, int] | None:
    """Mediator memory, offset and parameter room of the RPC message that the TEE names."""
    if call.rpc_at:
        assert call.shadow is not None
        return call.shadow.mem, call.rpc_at, call.rpc_room
    buffer = guest.rpc_buffers.get(pair(call.rpc_a1, call.rpc_a2))
    if buffer is None or not buffer.live or buffer.shadow is None:
        call.rpc_buffer = None
        return None
    call.rpc_buffer = call.in_hand = buffer
    buffer.users += 1
    return buffer.shadow.mem, 0, MAX_PARAMS


async def _write_request(
    sys: Syscalls, guest: Guest, call: Call, segments: list[tuple[int, bytes]]
) -> bool:
    """Write to the guest's RPC message: behind its message, or in its RPC buffer."""
    if call.rpc_at:
        return await place.write_back(sys, guest, call, segments, call.rpc_at)
    buffer = call.rpc_buffer
    assert buffer is not None
    return await sys.write_guest(guest.id, buffer.ipa, segments)


# --- coming back ----------------------------------------------------------------------------


async def allocated(core: Core, sys: Syscalls, guest: Guest, call: Call, regs: Registers) -> int:
    """The guest's page for RPC messages: pin it, and give the TEE a mediator page (0: failed)."""
    ipa = pair(regs[1], regs[2])
    cookie = pair(regs[4], regs[5])
    call.refused = cookie
    limit = core.settings.limits.rpc_buffers
    if (
        ipa & PAGE_MASK
        or not ipa
        or cookie in guest.rpc_buffers
        or guest.names(cookie)  # the TEE must not find the mediator's page under this name
        or (limit is not None and len(guest.rpc_buffers) >= limit)
    ):
        return 0
    buffer = RpcBuffer(cookie, ipa, call.thread)
    guest.rpc_buffers[cookie] = buffer
    try:
        buffer.shadow = await core.take_page(sys)
        if buffer.shadow is not None:
            buffer.frames = await sys.pin_pages(guest.id, ipa.to_bytes(8, "little")) or b""
            if len(buffer.frames) not in (0, 8):
                raise HostError("pin_pages", f"{len(buffer.frames)} bytes of frames for one page")
    except Exception:
        await core.release_rpc_buffer(sys, guest, buffer)
        raise
    if buffer.shadow is None or not buffer.frames:
        await core.release_rpc_buffer(sys, guest, buffer)
        return 0
    buffer.live = True
    call.refused = None
    return buffer.shadow.pa


async def put_down(core: Core, sys: Syscalls, call: Call) -> None:
    """The entry has no use for the page of its RPC buffer any more."""
    buffer, call.in_hand = call.in_hand, None
    if buffer is not None:
        buffer.users -= 1
        await core.give_rpc_page(sys, buffer)


async def _forget_answer(core: Core, sys: Syscalls, guest: Guest, call: Call) -> None:
    """There is nothing to answer in: what the answer had begun is over."""
    call.own_free = False
    if call.wait_key >= 0:
        core.end_wait(guest, call)
    walk, call.walk = call.walk, None
    if walk is not None:
        await core.release_buffer(sys, guest, walk, call)


async def answer_in(
    core: Core, sys: Syscalls, guest: Guest, call: Call, regs: Registers
) -> Registers | None:
    """Take the guest's answer to an RPC command. ``None``: the TEE's message is ready."""
    if call.rpc_at:
        assert call.shadow is not None
        mem, base, room = call.shadow.mem, call.rpc_at, call.rpc_room
    else:
        buffer = call.rpc_buffer
        if buffer is None or buffer.released or buffer.shadow is None:
            # Freed by another thread of the TEE while the guest held the request.
            await _forget_answer(core, sys, guest, call)
            return None
        call.in_hand = buffer
        buffer.users += 1
        mem, base, room = buffer.shadow.mem, 0, MAX_PARAMS
    if call.held:
        result = await notify.still_waiting(core, sys, guest, call)
        if result == notify.HELD:
            return _as_interrupt(core, guest, call, regs)
        _put(mem, base + RET_AT, result)
        return None
    if call.own_free:
        call.own_free = False
        _failed_allocation(mem, base)
        return None
    if call.walk is not None:
        return await _walk_allocation(core, sys, guest, call, regs, mem, base)
    data = await place.read_answer(sys, guest, call, HEADER_SIZE + room * PARAM_SIZE)
    if data is None:
        _put(mem, base + RET_AT, GENERIC)
        return None
    count: int = _WORD.unpack_from(data, NUM_PARAMS_OFFSET)[0]
    if count > room:
        if not call.rpc_at:
            mem[base : base + HEADER_SIZE] = data[:HEADER_SIZE]
        _put(mem, base + RET_AT, GENERIC)
        return None
    size = HEADER_SIZE + count * PARAM_SIZE
    fields = MESSAGE[count].unpack_from(data)
    mem[base : base + size] = data[:size]
    for index in range(count):
        attr = fields[8 + 4 * index]
        if PARAM_KIND[attr & 0xFF] != KIND_TMEM:
            continue
        if not fields[9 + 4 * index]:
            if call.request == SHM_ALLOC and count == 1 and not fields[5]:
                call.empty = fields[11]
            continue
        # Zeroed first: the guest's address must not be there whatever happens next.
        at = base + HEADER_SIZE + index * PARAM_SIZE + 8
        mem[at : at + 8] = bytes(8)
        if (
            call.request == SHM_ALLOC
            and count == 1
            and not fields[5]
            and attr & 0xFF == TMEM_OUTPUT
        ):
            taken: Buffer | int = tee.TEE_ERROR_BAD_PARAMETERS
            if attr & NONCONTIG or core.settings.contiguous:
                taken = memory.reserve(
                    core,
                    guest,
                    RPC_ALLOCATED,
                    fields[9],
                    fields[10],
                    fields[11],
                    contiguous=not attr & NONCONTIG,
                )
            if isinstance(taken, int):
                return await _free_again(core, sys, guest, call, regs, mem, base, fields[11])
            call.walk = taken
            return await _walk_allocation(core, sys, guest, call, regs, mem, base)
    return None


async def _walk_allocation(
    core: Core,
    sys: Syscalls,
    guest: Guest,
    call: Call,
    regs: Registers,
    mem: memoryview,
    base: int,
) -> Registers | None:
    """Pin the memory that the guest allocated for the TEE, in as many steps as it takes."""
    buffer = call.walk
    assert buffer is not None
    result = await memory.walk(core, sys, guest, buffer)
    if result == memory.PREEMPTED:
        return foreign_interrupt(call.thread, regs)
    call.walk = None
    if result:
        reference = buffer.reference
        await core.release_buffer(sys, guest, buffer)
        return await _free_again(core, sys, guest, call, regs, mem, base, reference)
    buffer.live = True
    # The list of the allocation before is no longer needed: the TEE has mapped it by now.
    old, call.alloc_list = call.alloc_list, buffer.list
    buffer.list = None
    if old is not None:
        await core.give_list(sys, old)
    assert call.alloc_list is not None
    attr, _ = struct.unpack_from("<2Q", mem, base + HEADER_SIZE)
    struct.pack_into(
        "<2Q", mem, base + HEADER_SIZE, attr | NONCONTIG, call.alloc_list.pa | buffer.offset
    )
    return None


async def _free_again(
    core: Core,
    sys: Syscalls,
    guest: Guest,
    call: Call,
    regs: Registers,
    mem: memoryview,
    base: int,
    reference: int,
) -> Registers | None:
    """Ask the guest to free what could not be translated; the TEE learns of the failure after it."""
    segments = [
        (CMD_AT, _WORD.pack(SHM_FREE)),
        (RET_AT, _WORD.pack(GENERIC)),
        (NUM_PARAMS_OFFSET, _WORD.pack(1)),
        (HEADER_SIZE, struct.pack("<3Q", VALUE_INPUT, call.shm_type, reference)),
    ]
    if not await _write_request(sys, guest, call, segments):
        _failed_allocation(mem, base)
        return None
    call.own_free = True
    if core.sink is not None:
        core.sink(events.RpcToGuest(guest.id, call.serial, call.thread, FUNC_CMD, SHM_FREE))
    return (
        smc.OPTEE_SMC_RETURN_RPC_CMD,
        call.rpc_a1,
        call.rpc_a2,
        call.thread,
        *regs[4:],
    )


def _failed_allocation(mem: memoryview, base: int) -> None:
    """Tell the TEE that its SHM_ALLOC failed: no parameter, a generic error."""
    _put(mem, base + CMD_AT, SHM_FREE)
    _put(mem, base + RET_AT, GENERIC)
    _put(mem, base + NUM_PARAMS_OFFSET, 0)
