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
from secure_world.monitor import SITE_ENTRY, SITE_EXIT
from secure_world.params import RET_OFFSET, CallParams, copy_in, copy_out, take_back
from secure_world.shm import PAGE_MASK, PAGE_SIZE, BadPageList
from secure_world.ta import ClientIdentity
from secure_world.thread import RPC_ARG_SIZE
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.wire import HEADER_SIZE, MAX_PARAMS, MESSAGE, PARAM_SIZE, PARAMS

if TYPE_CHECKING:
    from secure_world.partition import Partition
    from secure_world.thread import Thread

_FIRST_READ: Final = HEADER_SIZE + 4 * PARAM_SIZE
"""Bytes fetched at once: a message with up to four parameters needs no second read."""

_COUNT: Final = struct.Struct("<I")
_COUNT_OFFSET: Final = 28
_RESULT: Final = struct.Struct("<2I")
_SESSION_OFFSET: Final = 8
_M32: Final = 0xFFFF_FFFF

_OK: Final = smc.OPTEE_SMC_RETURN_OK
_EBADADDR: Final = smc.OPTEE_SMC_RETURN_EBADADDR
_EBADCMD: Final = smc.OPTEE_SMC_RETURN_EBADCMD

_META_VALUE: Final = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
_REGISTER_ATTR: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
_NO_UUID: Final = bytes(16)
_ANONYMOUS: Final = (tee.TEE_LOGIN_PUBLIC, tee.TEE_LOGIN_REE_KERNEL)
_NAMED: Final = (
    tee.TEE_LOGIN_USER,
    tee.TEE_LOGIN_GROUP,
    tee.TEE_LOGIN_APPLICATION,
    tee.TEE_LOGIN_APPLICATION_USER,
    tee.TEE_LOGIN_APPLICATION_GROUP,
)


async def call_with_arg(thread: Thread, address: int, with_rpc_arg: bool) -> int:
    """CALL_WITH_ARG and CALL_WITH_RPC_ARG: the message lies at a physical address.

    In ordinary memory the address must be that of a page; in the reserved area 8 bytes suffice.
    """
    partition = thread.partition
    if partition.in_reserved(address, HEADER_SIZE):
        if address % 8:
            return _EBADADDR
        start, size = partition.world.reserved or (0, 0)
        room = start + size - address
    else:
        if address & PAGE_MASK:
            return _EBADADDR
        room = PAGE_SIZE
    try:
        data = partition.bus.read(partition.client, address, min(room, _FIRST_READ))
        count: int = _COUNT.unpack_from(data, _COUNT_OFFSET)[0]
        if count > MAX_PARAMS:
            return _EBADADDR
        needed = HEADER_SIZE + PARAM_SIZE * count
        if needed + (RPC_ARG_SIZE if with_rpc_arg else 0) > room:
            return _EBADADDR
        if needed > _FIRST_READ:
            data += partition.bus.read(
                partition.client, address + _FIRST_READ, needed - _FIRST_READ
            )
    except BusError as error:
        partition.breach(error)
        return _EBADADDR
    thread.arg_memory = None
    thread.arg_at = address
    if with_rpc_arg:
        if thread.rpc_memory is not None:
            await thread.release_argument()
        thread.rpc_memory = None
        thread.rpc_at = address + needed
        thread.rpc_behind = True
    return await _dispatch(thread, MESSAGE[count].unpack_from(data))


async def call_with_regd_arg(thread: Thread, cookie: int, offset: int) -> int:
    """CALL_WITH_REGD_ARG: the message lies at ``offset`` of a registered object.

    It may cross from one page to the next; the object stays while the call runs.
    """
    partition = thread.partition
    if offset % 8:
        return _EBADADDR
    memory = partition.shm.by_cookie.get(cookie)
    # Message and RPC argument are at least 32 + 160 bytes, so the first read fits if they do.
    if memory is None or offset + HEADER_SIZE + RPC_ARG_SIZE > memory.size:
        return _EBADADDR
    try:
        data = memory.read(offset, _FIRST_READ)
        count: int = _COUNT.unpack_from(data, _COUNT_OFFSET)[0]
        needed = HEADER_SIZE + PARAM_SIZE * count
        if count > MAX_PARAMS or offset + needed + RPC_ARG_SIZE > memory.size:
            return _EBADADDR
        if needed > _FIRST_READ:
            data += memory.read(offset + _FIRST_READ, needed - _FIRST_READ)
    except BusError as error:
        partition.breach(error)
        return _EBADADDR
    memory.refs += 1
    memory.maps += 1
    if thread.rpc_memory is not None:
        await thread.release_argument()
    thread.arg_memory = thread.rpc_memory = memory
    thread.arg_at = offset
    thread.rpc_at = offset + needed
    thread.rpc_behind = True
    result = await _dispatch(thread, MESSAGE[count].unpack_from(data))
    thread.arg_memory = None
    memory.maps -= 1
    memory.refs -= 1
    if not memory.refs and partition.gone(memory):
        await wake_releasers(partition, thread)
    return result


async def _dispatch(thread: Thread, fields: tuple[int, ...]) -> int:
    """Run the message command, then give back what the call borrowed."""
    world = thread.partition.world
    stimulated = world.stimulus is not None
    if stimulated:
        await thread.interrupt_point(SITE_ENTRY)
    command = fields[0]
    result = _OK
    if command == msg.OPTEE_MSG_CMD_INVOKE_COMMAND:
        await _invoke(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_OPEN_SESSION:
        await _open(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_CLOSE_SESSION:
        await _close(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_CANCEL:
        await _cancel(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_REGISTER_SHM and world.settings.dynamic_shm:
        _register(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_UNREGISTER_SHM and world.settings.dynamic_shm:
        await _unregister(thread, fields)
    elif command == msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF and world.settings.async_notifications:
        _bottom_half(thread.partition)
    elif command == msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF and world.settings.async_notifications:
        thread.partition.notifications.enabled = False
    else:
        result = _EBADCMD
    if stimulated:
        await thread.interrupt_point(SITE_EXIT)
    return await thread.finish(result)


async def _invoke(thread: Thread, fields: tuple[int, ...]) -> None:
    """INVOKE_COMMAND: parameters first, then the session, as the real one judges them."""
    ret = tee.TEE_ERROR_BAD_PARAMETERS
    if len(fields) > PARAMS + 4 * tee.TEE_NUM_PARAMS:
        thread.write_arg(RET_OFFSET, _RESULT.pack(ret, tee.TEE_ORIGIN_TEE))
        return
    partition = thread.partition
    params = CallParams()
    ret = copy_in(partition, fields, PARAMS, params)
    if not ret:
        table = partition.sessions
        session = table.sessions.get(fields[2])
        if session is not None:
            if session.owner is None:
                session.owner = thread
                session.refs += 1
            else:
                session = await table.get(fields[2], thread)
        if session is None:
            ret = tee.TEE_ERROR_BAD_PARAMETERS
        else:
            ret, origin = await table.invoke(session, thread, fields[1], params)
            await table.put(session, thread)
            copy_out(thread, fields, PARAMS, params, ret, origin)
            if take_back(partition, params):
                await wake_releasers(partition, thread)
            return
    thread.write_arg(RET_OFFSET, _RESULT.pack(ret, tee.TEE_ORIGIN_TEE))
    if take_back(partition, params):
        await wake_releasers(partition, thread)


def _identity(fields: tuple[int, ...]) -> ClientIdentity | None:
    """Who opens a session, from the second META parameter; None for an unknown login method."""
    login = fields[15] & _M32
    if login in _ANONYMOUS:
        return ClientIdentity(login, _NO_UUID)
    if login in _NAMED:
        return ClientIdentity(login, struct.pack("<2Q", fields[13], fields[14]))
    return None


async def _open(thread: Thread, fields: tuple[int, ...]) -> None:
    """OPEN_SESSION: two META parameters (TA, client), then up to four of the client."""
    ret = tee.TEE_ERROR_BAD_PARAMETERS
    origin = tee.TEE_ORIGIN_TEE
    number = 0
    at = PARAMS + 8
    params = CallParams()
    partition = thread.partition
    if fields[7] >= 2 and fields[8] == _META_VALUE and fields[12] == _META_VALUE:
        identity = _identity(fields)
        if identity is not None and fields[7] <= 2 + tee.TEE_NUM_PARAMS:
            ret = copy_in(partition, fields, at, params)
            if not ret:
                uuid = struct.pack("<2Q", fields[9], fields[10])
                ret, origin, number = await partition.sessions.open(thread, uuid, identity, params)
                thread.write_arg(_SESSION_OFFSET, _COUNT.pack(number))
                copy_out(thread, fields, at, params, ret, origin)
                if take_back(partition, params):
                    await wake_releasers(partition, thread)
                return
    thread.write_arg(_SESSION_OFFSET, _COUNT.pack(0))
    thread.write_arg(RET_OFFSET, _RESULT.pack(ret, origin))
    if take_back(partition, params):
        await wake_releasers(partition, thread)


async def _close(thread: Thread, fields: tuple[int, ...]) -> None:
    """CLOSE_SESSION: no parameters; origin is always TEE."""
    ret = tee.TEE_ERROR_BAD_PARAMETERS
    if not fields[7]:
        ret = await thread.partition.sessions.close(fields[2], thread)
    thread.write_arg(RET_OFFSET, _RESULT.pack(ret, tee.TEE_ORIGIN_TEE))


async def _cancel(thread: Thread, fields: tuple[int, ...]) -> None:
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


async def unknown_function(thread: Thread) -> int:
    """A yielding function id that is not known: a thread is taken all the same."""
    return await thread.finish(_EBADCMD)
