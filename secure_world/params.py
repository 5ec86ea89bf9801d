# SPDX-License-Identifier: BSD-2-Clause
"""Parameters of open and invoke: out of the message into what a TA sees, and the results back.

Model of OP-TEE OS ``core/tee/entry_std.c``: ``copy_in_params``, ``set_tmem_param``,
``set_rmem_param``, ``copy_out_param``. Everything comes from one snapshot of the message; on the
way back only sizes of output memory references and the two words of output values are written.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from secure_world.bus import BusError
from secure_world.shm import BadPageList, ContiguousMemory, SharedMemory
from secure_world.ta import TaPanic, Value
from smccc.constants import optee_msg as msg
from smccc.constants import tee
from smccc.wire import (
    KIND_NONE,
    KIND_RMEM,
    KIND_TMEM,
    KIND_VALUE,
    PARAM_KIND,
    PARAM_OUTPUT,
    PARAMS,
)

if TYPE_CHECKING:
    from secure_world.partition import Partition
    from secure_world.thread import Thread

_META: Final = msg.OPTEE_MSG_ATTR_META
_NONCONTIG: Final = msg.OPTEE_MSG_ATTR_NONCONTIG
_TMEM_TO_TEE: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT - tee.TEE_PARAM_TYPE_MEMREF_INPUT
_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_RESULT: Final = struct.Struct("<2I")
_RESULTS: Final = tuple([struct.Struct("<3I" + "4Q" * n + "3Q") for n in range(6)])
"""From ``ret`` to the second word of parameter ``n``; an open has up to six parameters."""
_RET: Final = 5
"""Place of ``ret`` in an unpacked message."""
_WORDS_TO_SIZE: Final = 3
"""Attribute and two words: the third word of a parameter (c, the reference) is never written."""

RET_OFFSET: Final = 20
"""Byte offset of ``ret`` in a message; ``ret_origin`` follows."""


class MemoryReference:
    """One memory reference parameter (the ``Memref`` of the TA interface)."""

    __slots__ = ("_capacity", "memory", "offset", "size")

    def __init__(
        self, memory: SharedMemory | ContiguousMemory | None, offset: int, size: int
    ) -> None:
        self.memory = memory
        self.offset = offset
        self.size = size
        self._capacity = size

    @property
    def capacity(self) -> int:
        """Bytes that may be read or written."""
        return self._capacity

    @property
    def null(self) -> bool:
        """True for a null reference."""
        return self.memory is None

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, fetched anew each time."""
        memory = self.memory
        if offset < 0 or size < 0 or offset + size > self._capacity:
            raise TaPanic(tee.TEE_ERROR_ACCESS_DENIED)
        if memory is None:
            return b""
        return memory.read(self.offset + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``."""
        memory = self.memory
        if offset < 0 or offset + len(data) > self._capacity:
            raise TaPanic(tee.TEE_ERROR_ACCESS_DENIED)
        if memory is not None:
            memory.write(self.offset + offset, data)

    def set_size(self, size: int) -> None:
        """Size in bytes that the client sees on return."""
        self.size = size


class CallParams:
    """The four parameters of one call (the ``Params`` of the TA interface)."""

    __slots__ = ("items", "types")

    def __init__(self) -> None:
        self.types = 0
        self.items: list[Value | MemoryReference | None] = []

    def value(self, index: int) -> Value:
        """Value parameter ``index``."""
        item = self.items[index] if index < len(self.items) else None
        if item.__class__ is not Value:
            raise TaPanic(tee.TEE_ERROR_BAD_PARAMETERS)
        return item

    def memref(self, index: int) -> MemoryReference:
        """Memory reference ``index``."""
        item = self.items[index] if index < len(self.items) else None
        if item.__class__ is not MemoryReference:
            raise TaPanic(tee.TEE_ERROR_BAD_PARAMETERS)
        return item

    def type(self, index: int) -> int:
        """TEE_PARAM_TYPE_* of parameter ``index``."""
        return self.types >> 4 * index & 0xF


def copy_in(partition: Partition, fields: tuple[int, ...], at: int, params: CallParams) -> int:
    """Turn the parameters from place ``at`` of ``fields`` into ``params``; returns a TEE_Result.

    What was taken before an error stays in ``params`` for :func:`take_back`.
    """
    items = params.items
    types = 0
    shift = 0
    for place in range(at, len(fields), 4):
        attr = fields[place]
        if attr & _META:
            return tee.TEE_ERROR_BAD_PARAMETERS
        number = attr & 0xFF
        kind = PARAM_KIND[number]
        if kind == KIND_NONE:
            items.append(None)
        elif kind == KIND_VALUE:
            items.append(Value(fields[place + 1] & _M32, fields[place + 2] & _M32))
            types |= number << shift
        elif kind == KIND_RMEM:
            cookie = fields[place + 3]
            if cookie:
                memory = partition.shm.by_cookie.get(cookie)
                if memory is None:
                    return tee.TEE_ERROR_BAD_PARAMETERS
                offset = fields[place + 1]
                size = fields[place + 2]
                memory.refs += 1
                memory.maps += 1
                items.append(MemoryReference(memory, offset, size))
                if offset + size > memory.size:
                    return tee.TEE_ERROR_SECURITY
            else:
                items.append(MemoryReference(None, 0, 0))
            types |= number << shift
        elif kind == KIND_TMEM:
            code = _temporary(partition, attr, fields, place, items)
            if code:
                return code
            types |= number - _TMEM_TO_TEE << shift
        else:
            return tee.TEE_ERROR_BAD_PARAMETERS
        shift += 4
    params.types = types
    return tee.TEE_SUCCESS


def _temporary(
    partition: Partition,
    attr: int,
    fields: tuple[int, ...],
    place: int,
    items: list[Value | MemoryReference | None],
) -> int:
    """A temporary memory reference: null, a page list, or contiguous in the reserved area."""
    address, size, cookie = fields[place + 1 : place + 4]
    if not address:
        items.append(MemoryReference(None, 0, 0))
        return tee.TEE_SUCCESS
    memory: SharedMemory | ContiguousMemory | None = None
    if attr & _NONCONTIG:
        try:
            memory = partition.memory_from_list(address, size, cookie, guarded=True)
        except BadPageList as error:
            partition.breach_at(error.address, error.size)
        except BusError as error:
            partition.breach(error)
    elif partition.in_reserved(address, size):
        memory = partition.contiguous(address, size, cookie)
    if memory is None:
        return tee.TEE_ERROR_BAD_PARAMETERS
    memory.maps += 1
    items.append(MemoryReference(memory, 0, size))
    # Only a list's size can exceed its pages: never, they are counted from it.
    return tee.TEE_SUCCESS


def copy_out(
    thread: Thread, fields: tuple[int, ...], at: int, params: CallParams, ret: int, origin: int
) -> None:
    """Write results into the message: ``ret``, ``ret_origin`` and the outputs.

    One write, from ``ret`` to the last output; the words between are those of the snapshot.
    """
    last = 0
    words = list(fields[_RET:])
    place = at
    for item in params.items:
        if PARAM_OUTPUT[fields[place] & 0xFF]:
            last = place
            if item.__class__ is Value:
                words[place + 1 - _RET] = item.a & _M32
                words[place + 2 - _RET] = item.b & _M32
            elif item.__class__ is MemoryReference:
                words[place + 2 - _RET] = item.size & _M64
        place += 4
    if not last:
        thread.write_arg(RET_OFFSET, _RESULT.pack(ret, origin))
        return
    words[0] = ret
    words[1] = origin
    thread.write_arg(
        RET_OFFSET, _RESULTS[last - PARAMS >> 2].pack(*words[: last + _WORDS_TO_SIZE - _RET])
    )


def take_back(partition: Partition, params: CallParams) -> bool:
    """Drop the references of a call. True if a thread waits for an object that is now free."""
    wake = False
    for item in params.items:
        if item.__class__ is MemoryReference:
            memory = item.memory
            if memory is not None:
                memory.maps -= 1
                memory.refs -= 1
                if not memory.refs:
                    wake = partition.gone(memory) or wake
    return wake
