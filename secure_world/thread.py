# SPDX-License-Identifier: BSD-2-Clause
"""A secure thread: leaves for the normal world by RPC, comes back, allocates and frees there.

Model of OP-TEE OS ``core/arch/arm/kernel/thread_optee_smc.c`` (4.10). The thread is a coroutine
that yields ``(a0, a1, a2)`` to leave and is sent ``(a1, a2, a4, a5)`` of RETURN_FROM_RPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secure_world import events
from secure_world.bus import BusError
from secure_world.leaving import Calls, LeaveRegs, calls_in_turn, leave
from secure_world.monitor import (
    SITE_CHECKPOINT,
    SITE_RPC,
    SITE_WAITED,
    STIMULUS_FOREIGN_INTERRUPT,
    STIMULUS_WAIT,
)
from secure_world.settings import NOTIFICATION_BASE
from secure_world.shm import (
    PAGE_MASK,
    PAGE_SIZE,
    BadPageList,
    ContiguousMemory,
    SharedMemory,
    page_array,
)
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.wire import MESSAGE

if TYPE_CHECKING:
    from secure_world.partition import Partition
    from secure_world.waiting import TeeMutex

RpcParam = tuple[int, int, int, int]

RPC_PARAMS: Final = 4
"""Parameters of an RPC argument (THREAD_RPC_MAX_NUM_PARAMS)."""

RPC_ARG_SIZE: Final = 32 + 32 * RPC_PARAMS
"""0xa0 bytes, what RPC ALLOC asks for in the classic style."""

_RPC_ARG: Final = MESSAGE[RPC_PARAMS]
_FREE_PARAMS: Final = ((), (0,) * 4, (0,) * 8, (0,) * 12, (0,) * 16)

ALLOC_TRIES: Final = 2
"""OP-TEE asks once more after an allocation failed; then the operation is out of memory."""

SHM_ALIGNMENT: Final = 8

FOREIGN_INTERRUPT: Final[LeaveRegs] = (smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0)
_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF

FREE: Final = 0
RUNNING: Final = 1
SUSPENDED: Final = 2


class ReeBuffer:
    """Memory got by SHM_ALLOC: what the core needs to use, name and free it."""

    __slots__ = ("kind", "memory", "size")

    def __init__(self, memory: SharedMemory | ContiguousMemory, size: int, kind: int) -> None:
        self.memory = memory
        self.size = size
        self.kind = kind

    @property
    def cookie(self) -> int:
        """64-bit reference under which the normal world knows it."""
        return self.memory.cookie

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; ValueError outside the buffer."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at {offset} are outside the buffer of {self.size}")
        return self.memory.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``; ValueError outside the buffer."""
        if offset < 0 or offset + len(data) > self.size:
            raise ValueError(f"{len(data)} bytes at {offset} are outside the buffer of {self.size}")
        self.memory.write(offset, data)

    def param(self, kind: int, offset: int, size: int) -> RpcParam:
        """An RPC parameter for part of it; ``kind`` 1 in, 2 out, 3 inout.

        A registered object goes as rmem, a contiguous one as tmem with its address.
        """
        memory = self.memory
        if isinstance(memory, SharedMemory):
            attr = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT + kind - 1
            return (attr, offset, size, memory.cookie)
        attr = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT + kind - 1
        return (attr, memory.base + offset, size, memory.cookie)


class Thread:
    """One thread of a partition. ``index`` is what a3 carries.

    The message of the running call is at ``arg_at``, in ``arg_memory`` or (None) in physical
    memory; an RPC argument behind it is at ``behind_at`` in the same memory (-1: there is none).
    ``calls`` runs its calls (made for the first one), ``coroutine`` is the same while one is
    suspended. ``cached`` is an argument that was allocated by RPC. ``dirty``: the call has something to give
    back before it ends.
    """

    __slots__ = (
        "arg_at",
        "arg_memory",
        "behind_at",
        "cached",
        "calls",
        "coroutine",
        "dirty",
        "fs_buffer",
        "held",
        "index",
        "partition",
        "result",
        "rpc_command",
        "spent_ns",
        "state",
        "steps",
    )

    def __init__(self, partition: Partition, index: int) -> None:
        self.partition = partition
        self.index = index
        self.state = FREE
        self.calls: Calls | None = None
        self.coroutine: Calls | None = None
        self.arg_memory: SharedMemory | None = None
        self.arg_at = 0
        self.behind_at = -1
        self.cached: SharedMemory | ContiguousMemory | None = None
        self.dirty = False
        self.result = 0
        self.rpc_command = -1
        self.steps = 0
        self.spent_ns = 0
        self.fs_buffer: ReeBuffer | None = None
        self.held: list[TeeMutex] = []

    def start(self) -> Calls:
        """What runs the calls of this thread, ready for the first."""
        self.calls = calls = calls_in_turn()
        calls.send(None)
        return calls

    # The message of the call: in a page by physical address, or in a registered object.

    def write_arg(self, offset: int, data: bytes) -> None:
        """Write into the message; a refused write is reported and has no effect."""
        partition = self.partition
        try:
            if self.arg_memory is None:
                partition.bus.write(partition.client, self.arg_at + offset, data)
            else:
                self.arg_memory.write(self.arg_at + offset, data)
        except BusError as error:
            partition.breach(error)

    # Leaving and coming back.

    async def interrupt_point(self, site: int) -> None:
        """Let a pending foreign interrupt (or a stimulus) through."""
        world = self.partition.world
        stimulus = world.stimulus
        if stimulus is None:
            if world.interrupt_pending():
                await leave(FOREIGN_INTERRUPT)
            return
        while True:
            what = stimulus(self.partition.client, self.index, site)
            if what is None:
                return
            action, value = what
            if action == STIMULUS_FOREIGN_INTERRUPT:
                await leave(FOREIGN_INTERRUPT)
            else:
                await self._notification(
                    rpc.OPTEE_RPC_NOTIFICATION_WAIT
                    if action == STIMULUS_WAIT
                    else rpc.OPTEE_RPC_NOTIFICATION_SEND,
                    value,
                )

    async def checkpoint(self, ns: int) -> None:
        """A point where a TA may be interrupted; after a bounded time and number it is sent out."""
        world = self.partition.world
        if ns > 0:
            world.monitor.charge(ns)
            self.spent_ns += ns
        self.steps += 1
        settings = world.settings
        overdue = self.spent_ns >= settings.slice_ns and world.stimulus is None
        if overdue or self.steps >= settings.checkpoints_per_entry:
            self.steps = 0
            self.spent_ns = 0
            await leave(FOREIGN_INTERRUPT)
        elif world.asks_for_interrupts:
            await self.interrupt_point(SITE_CHECKPOINT)

    async def rpc_cmd(self, command: int, *params: RpcParam) -> tuple[int, ...]:
        """One RPC command with at most four parameters.

        Returns the answer as one snapshot: the 8 header fields and 4 times 4 parameter fields
        (``smccc.wire``); ``ret`` is preset to GENERIC, and OUT_OF_MEMORY if there is no argument.
        """
        ret = tee.TEE_ERROR_GENERIC
        partition = self.partition
        memory: SharedMemory | ContiguousMemory | None = self.arg_memory
        at = self.behind_at
        cookie = 0
        if at < 0:
            memory = self.cached
            if memory is None:
                memory = await self._allocate_argument()
            if memory is None:
                ret = tee.TEE_ERROR_OUT_OF_MEMORY
                return (command, 0, 0, 0, 0, ret, 0, len(params), *_FREE_PARAMS[4])
            at = 0
            cookie = memory.cookie
        fields = [command, 0, 0, 0, 0, ret, 0, len(params)]
        for param in params:
            fields += param
        fields += _FREE_PARAMS[RPC_PARAMS - len(params)]
        try:
            image = _RPC_ARG.pack(*fields)
            if memory is None:
                partition.bus.write(partition.client, at, image)
            else:
                memory.write(at, image)
            self.rpc_command = command
            await leave((smc.OPTEE_SMC_RETURN_RPC_CMD, cookie >> 32, cookie & _M32))
            self.rpc_command = -1
            if memory is None:
                image = partition.bus.read(partition.client, at, RPC_ARG_SIZE)
            else:
                image = memory.read(at, RPC_ARG_SIZE)
        except BusError as error:
            # The argument's page is gone. Leave once, so that no caller can spin in here.
            self.rpc_command = -1
            partition.breach(error)
            await leave(FOREIGN_INTERRUPT)
            return tuple(fields)
        answer = _RPC_ARG.unpack(image)
        if partition.world.asks_for_interrupts:
            await self.interrupt_point(SITE_RPC)
        return answer

    # The RPC argument: behind the message, or allocated (classic style).

    async def _allocate_argument(self) -> SharedMemory | ContiguousMemory | None:
        """Get an argument by RPC ALLOC. A refused answer is given back and counts as none."""
        partition = self.partition
        a1, a2, a4, a5 = await leave((smc.OPTEE_SMC_RETURN_RPC_ALLOC, RPC_ARG_SIZE, 0))
        address = (a1 & _M32) << 32 | a2 & _M32
        cookie = (a4 & _M32) << 32 | a5 & _M32
        memory: SharedMemory | ContiguousMemory | None = None
        if address % 8 == 0:
            if partition.in_reserved(address, RPC_ARG_SIZE):
                memory = partition.contiguous(address, RPC_ARG_SIZE, cookie)
            elif not address & PAGE_MASK and partition.bus.check(
                partition.client, address, PAGE_SIZE
            ):
                pages = page_array(address.to_bytes(8, "little"))
                memory = partition.add_memory(pages, 0, cookie, guarded=True)
        if memory is None:
            if address:
                partition.breach_at(address, RPC_ARG_SIZE)
            await self._free_cookie(cookie)
            return None
        self.cached = memory
        self.dirty = True
        return memory

    async def _free_cookie(self, cookie: int) -> None:
        """RPC FREE of an argument; a cookie of 0 is nothing to free."""
        if cookie:
            await leave((smc.OPTEE_SMC_RETURN_RPC_FREE, cookie >> 32, cookie & _M32))

    def drop_argument(self) -> int:
        """Forget a cached argument; returns its cookie for the normal world (0: there is none)."""
        memory = self.cached
        if memory is None:
            return 0
        self.cached = None
        self.partition.forget(memory)
        return memory.cookie

    async def release_argument(self) -> None:
        """Forget a cached argument and give it back by RPC FREE."""
        if self.cached is not None:
            await self._free_cookie(self.drop_argument())

    # Memory for payloads.

    async def shm_alloc(self, size: int, kind: int) -> ReeBuffer | None:
        """SHM_ALLOC, asked a second time if the first answer is refused; None: out of memory."""
        for _ in range(ALLOC_TRIES):
            buffer = await self._shm_alloc_once(size, kind)
            if buffer is not None:
                return buffer
        return None

    async def _shm_alloc_once(self, size: int, kind: int) -> ReeBuffer | None:
        request = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, kind, size, SHM_ALIGNMENT)
        answer = await self.rpc_cmd(rpc.OPTEE_RPC_CMD_SHM_ALLOC, request)
        attr, address, given, cookie = answer[8:12]
        if answer[5] or answer[7] != 1 or given < size or not given:
            return None
        partition = self.partition
        memory: SharedMemory | ContiguousMemory | None = None
        try:
            if attr == msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG:
                memory = partition.memory_from_list(address, given, cookie, guarded=True)
            elif attr == msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT:
                if partition.usable(address, given):
                    memory = partition.contiguous(address, given, cookie)
                else:
                    partition.breach_at(address, given)
            else:
                return None
        except BusError as error:
            partition.breach(error)
        except BadPageList as error:
            partition.breach_at(error.address, error.size)
        if memory is None:
            await self._shm_free_cookie(cookie, kind)
            return None
        return ReeBuffer(memory, size, kind)

    async def _shm_free_cookie(self, cookie: int, kind: int) -> None:
        param = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, kind, cookie, 0)
        await self.rpc_cmd(rpc.OPTEE_RPC_CMD_SHM_FREE, param)

    async def shm_free(self, buffer: ReeBuffer) -> None:
        """Forget the buffer, then give it back by SHM_FREE."""
        self.partition.forget(buffer.memory)
        await self._shm_free_cookie(buffer.cookie, buffer.kind)

    async def fs_payload(self, size: int) -> ReeBuffer | None:
        """The buffer for file requests: at least ``size`` bytes, kept until the call ends."""
        buffer = self.fs_buffer
        if buffer is not None:
            if buffer.size >= size:
                return buffer
            self.fs_buffer = None
            await self.shm_free(buffer)
        self.dirty = True
        rounded = (size + PAGE_MASK) & ~PAGE_MASK
        self.fs_buffer = await self.shm_alloc(rounded, rpc.OPTEE_RPC_SHM_TYPE_APPL)
        return self.fs_buffer

    # Waiting in the normal world.

    async def _notification(self, operation: int, value: int, timeout_ms: int = 0) -> int:
        attr = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
        answer = await self.rpc_cmd(
            rpc.OPTEE_RPC_CMD_NOTIFICATION, (attr, operation, value, timeout_ms)
        )
        return answer[5]

    async def wait_value(self, value: int, timeout_ms: int = 0) -> int:
        """RPC NOTIFICATION WAIT for ``value``; returns the result code of the answer."""
        return await self._notification(rpc.OPTEE_RPC_NOTIFICATION_WAIT, value, timeout_ms)

    async def sleep_until_sent(self) -> None:
        """One RPC NOTIFICATION WAIT for this thread's own value; may come back for no reason."""
        await self.wait_value(NOTIFICATION_BASE + self.index)
        world = self.partition.world
        if world.asks_for_interrupts:
            await self.interrupt_point(SITE_WAITED)

    async def send_to(self, sleeper: Thread) -> None:
        """Tell the normal world (of the sleeper's partition) that ``sleeper`` may go on."""
        value = NOTIFICATION_BASE + sleeper.index
        if sleeper.partition is self.partition:
            await self._notification(rpc.OPTEE_RPC_NOTIFICATION_SEND, value)
        else:
            sleeper.partition.notify(value)

    async def give_back(self, result: int) -> None:
        """The end of a yielding call: locks, the file buffer, an argument that is not kept."""
        self.dirty = False
        for mutex in tuple(self.held):
            await mutex.release(self)
        if result != smc.OPTEE_SMC_RETURN_OK:
            return
        buffer = self.fs_buffer
        if buffer is not None:
            self.fs_buffer = None
            await self.shm_free(buffer)
        if not self.partition.keeps_arguments:
            await self.release_argument()

    def report_suspension(self, registers: LeaveRegs) -> None:
        """Emit the event of a suspension."""
        sink = self.partition.world.sink
        if sink is not None:
            sink(
                events.ThreadSuspended(
                    self.partition.client, self.index, registers[0], self.rpc_command
                )
            )
