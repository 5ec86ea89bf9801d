# SPDX-License-Identifier: BSD-2-Clause
"""Yielding calls: from the registers to the message, and the message commands 0 to 7.

Model of OP-TEE OS ``thread_optee_smc.c`` (``std_smc_entry``) and ``core/tee/entry_std.c``. Each
coroutine returns a0. A message is read once; an error of the call itself (a0 other than OK) leaves
it untouched, and each command writes exactly the result fields that the real one writes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from secure_world import events
from secure_world.bus import BusError
from secure_world.leaving import Running, leave
from secure_world.monitor import SITE_ENTRY, SITE_EXIT, SITE_RUNNING
from secure_world.params import (
    RET_OFFSET,
    CallParams,
    Shape,
    copy_in,
    copy_out,
    take_back,
)
from secure_world.shm import PAGE_MASK, PAGE_SIZE, BadPageList
from secure_world.ta import ClientIdentity, TeeError
from secure_world.thread import FOREIGN_INTERRUPT
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.wire import HEADER_SIZE, MAX_PARAMS, MESSAGE, PARAM_SIZE, PARAMS

if TYPE_CHECKING:
    from secure_world.partition import Partition
    from secure_world.session import Session
    from secure_world.thread import Thread

_FIRST_READ: Final = HEADER_SIZE + 4 * PARAM_SIZE
"""Bytes fetched at once: a message with up to four parameters needs no second read."""

_FOUR_PARAMS: Final = MESSAGE[4]
_COUNT: Final = struct.Struct("<I")
_RESULT: Final = struct.Struct("<2I")
_SESSION_OFFSET: Final = 8
_M32: Final = 0xFFFF_FFFF

_BAD: Final = tee.TEE_ERROR_BAD_PARAMETERS
_DEAD: Final = tee.TEE_ERROR_TARGET_DEAD
_ORIGIN_TEE: Final = tee.TEE_ORIGIN_TEE
_ORIGIN_TA: Final = tee.TEE_ORIGIN_TRUSTED_APP
_INVOKE: Final = msg.OPTEE_MSG_CMD_INVOKE_COMMAND
_OK: Final = smc.OPTEE_SMC_RETURN_OK
_EBADADDR: Final = smc.OPTEE_SMC_RETURN_EBADADDR
_EBADCMD: Final = smc.OPTEE_SMC_RETURN_EBADCMD

_META_VALUE: Final = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
_REGISTER_ATTR: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
_NO_UUID: Final = bytes(16)
_NOTHING: Final = Shape((), PARAMS)
CLIENT_PARAMS: Final = PARAMS + 2 * 4
"""Place of the first parameter of the client in a message that opens a session."""
_ANONYMOUS: Final = (tee.TEE_LOGIN_PUBLIC, tee.TEE_LOGIN_REE_KERNEL)
_NAMED: Final = (
    tee.TEE_LOGIN_USER,
    tee.TEE_LOGIN_GROUP,
    tee.TEE_LOGIN_APPLICATION,
    tee.TEE_LOGIN_APPLICATION_USER,
    tee.TEE_LOGIN_APPLICATION_GROUP,
)


def call_with_arg(thread: Thread, address: int, _offset: int, behind: int) -> Running | None:
    """CALL_WITH_ARG and CALL_WITH_RPC_ARG: the message lies at a physical address.

    ``behind`` bytes must follow it in its page: none, or the RPC argument. Returns the call as a
    coroutine, or None with ``thread.result`` set if it ended at once.

    In ordinary memory the address must be that of a page; in the reserved area 8 bytes suffice.
    """
    thread.result = _EBADADDR
    partition = thread.partition
    world = partition.world
    room = PAGE_SIZE
    if address & PAGE_MASK or world.reserved is not None:
        room = _room(partition, address)
        if not room:
            return None
    try:
        if room >= _FIRST_READ:
            data = partition.bus.read(partition.client, address, _FIRST_READ)
        else:
            data = partition.bus.read(partition.client, address, room)
            data += bytes(_FIRST_READ - room)
        fields = _FOUR_PARAMS.unpack(data)
        count = fields[7]
        needed = HEADER_SIZE + PARAM_SIZE * count
        if count != 4 or room != PAGE_SIZE:
            if count > MAX_PARAMS or needed + behind > room:
                return None
            if count > 4:
                rest = needed - _FIRST_READ
                data += partition.bus.read(partition.client, address + _FIRST_READ, rest)
                fields = MESSAGE[count].unpack(data)
            else:
                fields = fields[: PARAMS + 4 * count]
    except BusError as error:
        partition.breach(error)
        return None
    thread.arg_memory = None
    thread.arg_at = address
    thread.behind_at = address + needed if behind else -1
    if fields[0] == _INVOKE and world.stimulus is None and (not behind or thread.cached is None):
        return _invoke(thread, fields, data)
    return _command(thread, fields, data)


def _room(partition: Partition, address: int) -> int:
    """Bytes from ``address`` on that a message may have, 0 if it may not begin there."""
    area = partition.world.reserved
    if area is not None and partition.in_reserved(address, HEADER_SIZE):
        return 0 if address % 8 else area[0] + area[1] - address
    return 0 if address & PAGE_MASK else PAGE_SIZE


def call_with_regd_arg(thread: Thread, cookie: int, offset: int, behind: int) -> Running | None:
    """CALL_WITH_REGD_ARG: the message lies at ``offset`` of a registered object.

    ``behind`` and the result are those of :func:`call_with_arg`.
    It may cross from one page to the next; the object stays while the call runs.
    """
    thread.result = _EBADADDR
    partition = thread.partition
    memory = partition.shm.by_cookie.get(cookie)
    # Message and RPC argument are at least 32 + 160 bytes, so the first read fits if they do.
    if memory is None or offset % 8 or offset + HEADER_SIZE + behind > memory.size:
        return None
    try:
        data = memory.read(offset, _FIRST_READ)
        fields = _FOUR_PARAMS.unpack(data)
        count = fields[7]
        needed = HEADER_SIZE + PARAM_SIZE * count
        if count > MAX_PARAMS or offset + needed + behind > memory.size:
            return None
        if count > 4:
            data += memory.read(offset + _FIRST_READ, needed - _FIRST_READ)
            fields = MESSAGE[count].unpack(data)
        elif count < 4:
            fields = fields[: PARAMS + 4 * count]
    except BusError as error:
        partition.breach(error)
        return None
    memory.refs += 1
    memory.maps += 1
    thread.arg_memory = memory
    thread.arg_at = offset
    thread.behind_at = offset + needed
    if fields[0] == _INVOKE and partition.world.stimulus is None and thread.cached is None:
        return _invoke(thread, fields, data)
    return _command(thread, fields, data)


async def _finish(thread: Thread, result: int) -> int:
    """The end of a call that borrowed something or whose message lies in an object."""
    if thread.partition.world.stimulus is not None:
        await thread.interrupt_point(SITE_EXIT)
    if thread.dirty:
        await thread.give_back(result)
    memory = thread.arg_memory
    if memory is not None:
        thread.arg_memory = None
        thread.behind_at = -1
        memory.maps -= 1
        memory.refs -= 1
        if not memory.refs and thread.partition.gone(memory):
            # The argument behind the message is gone too: this RPC must allocate one.
            await wake_releasers(thread.partition, thread)
            if thread.dirty:
                await thread.give_back(result)
    return result


async def _command(thread: Thread, fields: tuple[int, ...], data: bytes) -> int:
    """Any message command, with its interrupt points."""
    if thread.behind_at >= 0 and thread.cached is not None:
        behind, thread.behind_at = thread.behind_at, -1
        await thread.release_argument()
        thread.behind_at = behind
    if thread.partition.world.stimulus is not None:
        await thread.interrupt_point(SITE_ENTRY)
        thread.dirty = True  # so that every command ends in _finish, an interrupt point
    return await _dispatch(thread, fields, data)


async def _dispatch(thread: Thread, fields: tuple[int, ...], data: bytes) -> int:
    """Run a message command; returns a0."""
    settings = thread.partition.world.settings
    command = fields[0]
    if command == _INVOKE:
        return await _invoke(thread, fields, data)
    result = _OK
    if command == msg.OPTEE_MSG_CMD_OPEN_SESSION:
        await _open(thread, fields, data)
    elif command == msg.OPTEE_MSG_CMD_CLOSE_SESSION:
        await _close(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_CANCEL:
        _cancel(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_REGISTER_SHM and settings.dynamic_shm:
        _register(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_UNREGISTER_SHM and settings.dynamic_shm:
        await _unregister(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF and settings.async_notifications:
        _bottom_half(thread.partition)
    elif command == msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF and settings.async_notifications:
        thread.partition.notifications.enabled = False
    else:
        result = _EBADCMD
    return await _finish(thread, result)


async def _invoke(thread: Thread, fields: tuple[int, ...], data: bytes) -> int:
    """INVOKE_COMMAND: parameters first, then the session, as the real one judges them.

    The call path: everything that need not wait is done in place.
    """
    partition = thread.partition
    world = partition.world
    table = partition.sessions
    params = CallParams()
    ret = _BAD
    session: Session | None = None
    shape = _NOTHING
    if fields[7] <= tee.TEE_NUM_PARAMS:
        shape = world.invoke_shapes.of(fields[PARAMS::4])
        ret = copy_in(partition, fields, shape, params)
        if not ret:
            session = table.sessions.get(fields[2])
            if session is not None:
                if session.owner is None:
                    session.owner = thread
                else:
                    session = await table.get(fields[2], thread)
            if session is None:
                ret = _BAD
    if session is None:
        thread.write_arg(RET_OFFSET, _RESULT.pack(ret, _ORIGIN_TEE))
    else:
        context = session.context
        env = session.env
        origin = _ORIGIN_TEE
        ret = _DEAD
        if context is not None and env is not None and context.instance is not None:
            exclusive = not context.concurrent
            if exclusive:
                if context.busy or (context.single and table.single_owner is not None):
                    await table.set_busy(context, thread)
                else:
                    context.busy = True
                    if context.single:
                        table.single_owner = thread
            instance = context.instance
            if instance is not None:
                session.cancel = False
                env.thread = thread
                try:
                    if world.stimulus is not None:
                        await thread.interrupt_point(SITE_RUNNING)
                    elif world.asks_for_interrupts and world.interrupt_pending():
                        await leave(FOREIGN_INTERRUPT)
                    ret = await instance.invoke(env, fields[1], params) & _M32
                    origin = _ORIGIN_TA
                except TeeError as error:
                    ret = error.code & _M32
                    origin = _ORIGIN_TA
                except Exception as error:  # whatever a TA raises is its panic, never the core's
                    table.panic(context, error)
                    ret = _DEAD
            if exclusive:
                context.busy = False
                if context.single:
                    table.single_owner = None
                if table.queue.conditional:
                    await table.after(context, thread)
        session.owner = None
        if table.queue.conditional:
            await table.put(session, thread)
        copy_out(thread, data, shape, params, ret, origin)
    if params.memories is not None and take_back(partition, params.memories):
        await wake_releasers(partition, thread)
    memory = thread.arg_memory
    if thread.dirty or (memory is not None and memory.refs == 1):
        return await _finish(thread, _OK)
    if memory is not None:
        memory.maps -= 1
        memory.refs -= 1
        thread.arg_memory = None
        thread.behind_at = -1
    return _OK


def _identity(fields: tuple[int, ...]) -> ClientIdentity | None:
    """Who opens a session, from the second META parameter; None for an unknown login method."""
    login = fields[15] & _M32
    if login in _ANONYMOUS:
        return ClientIdentity(login, _NO_UUID)
    if login in _NAMED:
        return ClientIdentity(login, struct.pack("<2Q", fields[13], fields[14]))
    return None


async def _open(thread: Thread, fields: tuple[int, ...], data: bytes) -> None:
    """OPEN_SESSION: two META parameters (TA, client), then up to four of the client."""
    ret = _BAD
    params = CallParams()
    partition = thread.partition
    count = fields[7] - 2
    if 0 <= count <= tee.TEE_NUM_PARAMS and fields[8] == fields[12] == _META_VALUE:
        identity = _identity(fields)
        if identity is not None:
            shape = partition.world.open_shapes.of(fields[CLIENT_PARAMS::4])
            ret = copy_in(partition, fields, shape, params)
            if not ret:
                uuid = struct.pack("<2Q", fields[9], fields[10])
                ret, origin, number = await partition.sessions.open(thread, uuid, identity, params)
                thread.write_arg(_SESSION_OFFSET, _COUNT.pack(number))
                copy_out(thread, data, shape, params, ret, origin)
                if params.memories is not None and take_back(partition, params.memories):
                    await wake_releasers(partition, thread)
                return
    thread.write_arg(_SESSION_OFFSET, _COUNT.pack(0))
    thread.write_arg(RET_OFFSET, _RESULT.pack(ret, _ORIGIN_TEE))
    if params.memories is not None and take_back(partition, params.memories):
        await wake_releasers(partition, thread)


async def _close(thread: Thread, fields: tuple[int, ...]) -> None:
    """CLOSE_SESSION: no parameters; origin is always TEE."""
    ret = tee.TEE_ERROR_BAD_PARAMETERS
    if not fields[7]:
        ret = await thread.partition.sessions.close(fields[2], thread)
    thread.write_arg(RET_OFFSET, _RESULT.pack(ret, tee.TEE_ORIGIN_TEE))


def _cancel(thread: Thread, fields: tuple[int, ...]) -> None:
    """CANCEL: sets the session's flag and answers at once; by session, cancel_id is not looked at."""
    ret = tee.TEE_ERROR_BAD_PARAMETERS
    session = thread.partition.sessions.sessions.get(fields[2])
    if not fields[7] and session is not None and not session.unlinked:
        session.cancel = True
        ret = tee.TEE_SUCCESS
    thread.write_arg(RET_OFFSET, _RESULT.pack(ret, tee.TEE_ORIGIN_TEE))


def _register(thread: Thread, fields: tuple[int, ...]) -> None:
    """REGISTER_SHM: writes ``ret`` only. The attribute must be exactly TMEM_OUTPUT|NONCONTIG."""
    ret = tee.TEE_ERROR_BAD_PARAMETERS
    if fields[7] == 1 and fields[8] == _REGISTER_ATTR:
        partition = thread.partition
        try:
            if partition.memory_from_list(fields[9], fields[10], fields[11], guarded=False):
                ret = tee.TEE_SUCCESS
        except BadPageList as error:
            partition.breach_at(error.address, error.size)
        except BusError as error:
            partition.breach(error)
    thread.write_arg(RET_OFFSET, _COUNT.pack(ret))


async def _unregister(thread: Thread, fields: tuple[int, ...]) -> None:
    """UNREGISTER_SHM: writes ``ret`` only (and the origin if the count is wrong).

    Answers once the last user of the object has let go. The newest object of the cookie is meant;
    cookie 0 and guarded objects cannot be released this way.
    """
    if fields[7] != 1:
        result = _RESULT.pack(tee.TEE_ERROR_BAD_PARAMETERS, tee.TEE_ORIGIN_TEE)
        thread.write_arg(RET_OFFSET, result)
        return
    ret = tee.TEE_ERROR_BAD_PARAMETERS
    partition = thread.partition
    cookie = fields[11]
    memory = partition.shm.by_cookie.get(cookie)
    if cookie and memory is not None and not memory.guarded and not memory.releasing:
        memory.releasing = True
        memory.refs -= 1
        if not memory.refs:
            if partition.gone(memory):
                await wake_releasers(partition, thread)
        else:
            partition.shm_waiters += 1
            while memory.refs:
                await partition.shm_queue.wait(thread, partition.shm_cv)
            partition.shm_waiters -= 1
            if partition.shm_queue.waiting:
                await partition.shm_queue.wake_next(thread)
        ret = tee.TEE_SUCCESS
    thread.write_arg(RET_OFFSET, _COUNT.pack(ret))


async def wake_releasers(partition: Partition, thread: Thread) -> None:
    """A buffer went: threads that wait in UNREGISTER_SHM look again, one after the other."""
    partition.shm_queue.promote(partition.shm_cv, everyone=True)
    await partition.shm_queue.wake_next(thread)


def _bottom_half(partition: Partition) -> None:
    """DO_BOTTOM_HALF: nothing of the message is written."""
    sink = partition.world.sink
    if sink is not None:
        sink(events.BottomHalf(partition.client))
