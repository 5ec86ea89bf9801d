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
from secure_world.shm import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    BadPageList,
    ContiguousMemory,
    SharedMemory,
)
from secure_world.ta import TaPanic, Value
from smccc.constants import optee_msg as msg
from smccc.constants import tee
from smccc.wire import (
    KIND_INVALID,
    KIND_RMEM,
    KIND_TMEM,
    KIND_VALUE,
    PARAM_KIND,
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
_WORDS: Final = struct.Struct("<2Q")
_SIZE: Final = struct.Struct("<Q")

RET_OFFSET: Final = 20
"""Byte offset of ``ret`` in a message; ``ret_origin`` follows."""

# Place p of the unpacked message (8, 12, ...) is byte 8 * p - 32; the first word follows.
_FIRST_WORD: Final = 32 - 8 + RET_OFFSET
_AFTER_WORDS: Final = RET_OFFSET + _WORDS.size

_OUTPUT: Final = 2
"""Bit of a TEE_PARAM_TYPE_* that says a result goes back (VALUE or MEMREF, OUTPUT or INOUT)."""

LAYOUTS: Final = tuple(
    [tuple([(PARAMS + 4 * i, i) for i in range(n)]) for n in range(tee.TEE_NUM_PARAMS + 1)]
)
"""For n parameters of an invoke: place of the attribute in the unpacked message, index."""
OPEN_LAYOUTS: Final = tuple(
    [tuple([(PARAMS + 8 + 4 * i, i) for i in range(n)]) for n in range(tee.TEE_NUM_PARAMS + 1)]
)
"""The same for n client parameters of an open, behind the two META ones."""


class MemoryReference:
    """One memory reference parameter (the ``Memref`` of the TA interface)."""

    __slots__ = ("capacity", "memory", "offset", "size")

    def __init__(
        self, memory: SharedMemory | ContiguousMemory | None, offset: int, size: int
    ) -> None:
        self.memory = memory
        self.offset = offset
        self.size = self.capacity = size

    @property
    def null(self) -> bool:
        """True for a null reference."""
        return self.memory is None

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, fetched anew each time."""
        if offset < 0 or size < 0 or offset + size > self.capacity:
            raise TaPanic(tee.TEE_ERROR_ACCESS_DENIED)
        memory = self.memory
        offset += self.offset
        if memory.__class__ is SharedMemory and size:
            # The usual case, without one more call: all in one page.
            start = memory.page_offset + offset
            at = start & PAGE_MASK
            if at + size <= PAGE_SIZE:
                return memory.bus.read(memory.client, memory.pages[start >> PAGE_SHIFT] + at, size)
        return memory.read(offset, size) if memory is not None else b""

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``."""
        size = len(data)
        if offset < 0 or offset + size > self.capacity:
            raise TaPanic(tee.TEE_ERROR_ACCESS_DENIED)
        memory = self.memory
        offset += self.offset
        if memory.__class__ is SharedMemory and size:
            start = memory.page_offset + offset
            at = start & PAGE_MASK
            if at + size <= PAGE_SIZE:
                memory.bus.write(memory.client, memory.pages[start >> PAGE_SHIFT] + at, data)
                return
        if memory is not None:
            memory.write(offset, data)

    def set_size(self, size: int) -> None:
        """Size in bytes that the client sees on return."""
        self.size = size


class CallParams:
    """The four parameters of one call (the ``Params`` of the TA interface).

    ``memories`` are the objects that the call holds; ``outputs`` the parameters that carry a result,
    each with the byte offset of its first word from ``ret``.
    """

    __slots__ = ("items", "memories", "outputs", "types")

    def __init__(self) -> None:
        self.types = 0
        self.items: list[Value | MemoryReference | None] = [None, None, None, None]
        self.memories: list[SharedMemory | ContiguousMemory] | None = None
        self.outputs: list[tuple[int, Value | MemoryReference]] | None = None

    def value(self, index: int) -> Value:
        """Value parameter ``index``."""
        item = self.items[index]
        if item.__class__ is not Value:
            raise TaPanic(tee.TEE_ERROR_BAD_PARAMETERS)
        return item

    def memref(self, index: int) -> MemoryReference:
        """Memory reference ``index``."""
        item = self.items[index]
        if item.__class__ is not MemoryReference:
            raise TaPanic(tee.TEE_ERROR_BAD_PARAMETERS)
        return item

    def type(self, index: int) -> int:
        """TEE_PARAM_TYPE_* of parameter ``index``."""
        return self.types >> 4 * index & 0xF


def copy_in(
    partition: Partition,
    fields: tuple[int, ...],
    layout: tuple[tuple[int, int], ...],
    params: CallParams,
) -> int:
    """Turn the parameters at ``layout`` of ``fields`` into ``params``; returns a TEE_Result.

    What was taken before an error stays in ``params.memories`` for :func:`take_back`.
    """
    items = params.items
    types = 0
    for place, index in layout:
        number = fields[place]
        if not number:
            continue
        if number > 0xFF:
            if number & _META:
                return tee.TEE_ERROR_BAD_PARAMETERS
            number &= 0xFF
        kind = PARAM_KIND[number]
        item: Value | MemoryReference
        if kind == KIND_VALUE:
            item = Value(fields[place + 1] & _M32, fields[place + 2] & _M32)
        elif kind == KIND_RMEM:
            cookie = fields[place + 3]
            if cookie:
                memory = partition.shm.by_cookie.get(cookie)
                if memory is None:
                    return tee.TEE_ERROR_BAD_PARAMETERS
                offset = fields[place + 1]
                size = fields[place + 2]
                if offset + size > memory.size:
                    return tee.TEE_ERROR_SECURITY
                memory.refs += 1
                memory.maps += 1
                if params.memories is None:
                    params.memories = [memory]
                else:
                    params.memories.append(memory)
                item = MemoryReference(memory, offset, size)
            else:
                item = MemoryReference(None, 0, 0)
        elif kind == KIND_TMEM:
            temporary = _temporary(partition, fields, place, params)
            if temporary is None:
                return tee.TEE_ERROR_BAD_PARAMETERS
            item = temporary
            number -= _TMEM_TO_TEE
        elif kind == KIND_INVALID:
            return tee.TEE_ERROR_BAD_PARAMETERS
        else:
            continue
        items[index] = item
        types |= number << 4 * index
        if number & _OUTPUT:
            if params.outputs is None:
                params.outputs = [(8 * place - _FIRST_WORD, item)]
            else:
                params.outputs.append((8 * place - _FIRST_WORD, item))
    params.types = types
    return tee.TEE_SUCCESS


def _temporary(
    partition: Partition, fields: tuple[int, ...], place: int, params: CallParams
) -> MemoryReference | None:
    """A temporary memory reference: null, a page list, or contiguous in the reserved area."""
    attr, address, size, cookie = fields[place : place + 4]
    if not address:
        return MemoryReference(None, 0, 0)
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
        return None
    memory.maps += 1
    if params.memories is None:
        params.memories = []
    params.memories.append(memory)
    return MemoryReference(memory, 0, size)


def copy_out(thread: Thread, data: bytes, params: CallParams, ret: int, origin: int) -> None:
    """Write results into the message: ``ret``, ``ret_origin`` and the outputs.

    One write, from ``ret`` to the last output; the bytes between are those of ``data``, the
    snapshot of the message.
    """
    outputs = params.outputs
    if outputs is None:
        thread.write_arg(RET_OFFSET, _RESULT.pack(ret, origin))
        return
    image = bytearray(data[RET_OFFSET : outputs[-1][0] + _AFTER_WORDS])
    _RESULT.pack_into(image, 0, ret, origin)
    for at, item in outputs:
        if item.__class__ is Value:
            _WORDS.pack_into(image, at, item.a & _M32, item.b & _M32)
        elif item.__class__ is MemoryReference:
            _SIZE.pack_into(image, at + 8, item.size & _M64)
    thread.write_arg(RET_OFFSET, bytes(image))


def take_back(partition: Partition, memories: list[SharedMemory | ContiguousMemory]) -> bool:
    """Drop the references of a call. True if a thread waits for an object that is now free."""
    wake = False
    for memory in memories:
        memory.maps -= 1
        memory.refs -= 1
        if not memory.refs:
            wake = partition.gone(memory) or wake
    return wake
