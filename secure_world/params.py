# SPDX-License-Identifier: BSD-2-Clause
"""Parameters of open and invoke: out of the message into what a TA sees, and the results back.

Model of OP-TEE OS ``core/tee/entry_std.c``: ``copy_in_params``, ``set_tmem_param``,
``set_rmem_param``, ``copy_out_param``. Everything comes from one snapshot of the message; on the
way back only sizes of output memory references and the two words of output values are written.

What the attributes mean is worked out once for each combination of them (:class:`Shape`).
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
    HEADER_SIZE,
    KIND_INVALID,
    KIND_NONE,
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

RET_OFFSET: Final = 20
"""Byte offset of ``ret`` in a message; ``ret_origin`` follows."""
_AFTER_RESULT: Final = RET_OFFSET + _RESULT.size

_OUTPUT: Final = 2
"""Bit of a TEE_PARAM_TYPE_* that says a result goes back (VALUE or MEMREF, OUTPUT or INOUT)."""

MAX_SHAPES: Final = 1024
"""Shapes remembered; a normal world that makes up new ones only makes the table start again."""


class Shape:
    """Parameters with certain attributes, the first of which is at ``place`` of the unpacked message.

    ``steps``: (index, place, KIND_*) of those that are not NONE, up to the first that may not be.
    ``types``: TEE_PARAM_TYPES. ``outputs``: (index, start, end) of those that carry a result, where
    ``start`` and ``end`` are the bytes of the message between its result and the one before.
    ``image``: packs ``ret``, ``ret_origin`` and then, for each output, those bytes and the result.
    """

    __slots__ = ("image", "outputs", "steps", "types")

    def __init__(self, attributes: tuple[int, ...], place: int) -> None:
        steps = []
        outputs = []
        types = 0
        image = "<2I"
        start = _AFTER_RESULT
        for index, attr in enumerate(attributes):
            number = attr & 0xFF
            kind = KIND_INVALID if attr & _META else PARAM_KIND[number]
            if kind != KIND_NONE:
                steps.append((index, place, kind))
                if kind == KIND_TMEM:
                    number -= _TMEM_TO_TEE
                types |= number << 4 * index
                if number & _OUTPUT:
                    # Places count from 8, the first behind the header of 32 bytes: u64 each.
                    words = (place - PARAMS) * 8 + HEADER_SIZE + 8
                    end = words if kind == KIND_VALUE else words + 8
                    outputs.append((index, start, end))
                    image += f"{end - start}s" + ("2Q" if kind == KIND_VALUE else "Q")
                    start = words + 16
            place += 4
            if kind == KIND_INVALID:
                break
        self.steps = tuple(steps)
        self.outputs = tuple(outputs)
        self.types = types
        self.image = struct.Struct(image)


class Shapes:
    """Shapes of up to four parameters from a place of the message on, by their attributes."""

    __slots__ = ("_place", "_shapes")

    def __init__(self, place: int) -> None:
        self._place = place
        self._shapes: dict[tuple[int, ...], Shape] = {}

    def of(self, attributes: tuple[int, ...]) -> Shape:
        """The shape of parameters with these ``attr`` words."""
        shape = self._shapes.get(attributes)
        if shape is None:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            shape = self._shapes[attributes] = Shape(attributes, self._place)
        return shape


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

    ``memories`` are the objects that the call holds.
    """

    __slots__ = ("items", "memories", "types")

    def __init__(self) -> None:
        self.types = 0
        self.items: list[Value | MemoryReference | None] = [None, None, None, None]
        self.memories: list[SharedMemory | ContiguousMemory] | None = None

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


def copy_in(partition: Partition, fields: tuple[int, ...], shape: Shape, params: CallParams) -> int:
    """Turn the parameters in ``fields``, which have this shape, into ``params``: a TEE_Result.

    What was taken before an error stays in ``params.memories`` for :func:`take_back`.
    """
    items = params.items
    for index, place, kind in shape.steps:
        if kind == KIND_VALUE:
            items[index] = Value(fields[place + 1] & _M32, fields[place + 2] & _M32)
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
                items[index] = MemoryReference(memory, offset, size)
            else:
                items[index] = MemoryReference(None, 0, 0)
        elif kind == KIND_TMEM:
            temporary = _temporary(partition, fields, place, params)
            if temporary is None:
                return tee.TEE_ERROR_BAD_PARAMETERS
            items[index] = temporary
        else:
            return tee.TEE_ERROR_BAD_PARAMETERS
    params.types = shape.types
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


def copy_out(
    thread: Thread, data: bytes, shape: Shape, params: CallParams, ret: int, origin: int
) -> None:
    """Write results into the message: ``ret``, ``ret_origin`` and the outputs.

    One write, from ``ret`` to the last output; the bytes between are those of ``data``, the
    snapshot of the message.
    """
    items = params.items
    image: list[int | bytes] = [ret, origin]
    for index, start, end in shape.outputs:
        item = items[index]
        if item.__class__ is Value:
            image += data[start:end], item.a & _M32, item.b & _M32
        elif item.__class__ is MemoryReference:
            image += data[start:end], item.size & _M64
    thread.write_arg(RET_OFFSET, shape.image.pack(*image))


def take_back(partition: Partition, memories: list[SharedMemory | ContiguousMemory]) -> bool:
    """Drop the references of a call. True if a thread waits for an object that is now free."""
    wake = False
    for memory in memories:
        memory.maps -= 1
        memory.refs -= 1
        if not memory.refs:
            wake = partition.gone(memory) or wake
    return wake
