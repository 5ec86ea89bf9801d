# SPDX-License-Identifier: BSD-2-Clause
"""Small TAs for scenarios and tests: arithmetic, memory references, locks, time, panic.

All but :class:`Panicker` are pseudo-TAs, so that a session needs no image from the normal world.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from secure_world.ta import (
    TYPE_MEMREF_INOUT,
    TYPE_MEMREF_INPUT,
    TYPE_MEMREF_OUTPUT,
    TYPE_VALUE_INOUT,
    TYPE_VALUE_INPUT,
    TYPE_VALUE_OUTPUT,
    Params,
    TaEnvironment,
    TrustedApplication,
    param_types,
)
from smccc.constants import tee

BLOCK: Final = 1 << 16
"""Bytes of a buffer handled between two checkpoints."""
BLOCK_NS: Final = 50_000


class _PseudoTa(TrustedApplication):
    pseudo = True
    single_instance = True
    multi_session = True
    keep_alive = True
    concurrent = True


class Arithmetic(_PseudoTa):
    """p0 in: a, b. p1 out: the result (DIVIDE: quotient and remainder), 32 bits each."""

    uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be001")
    name = "arithmetic"

    ADD: Final = 0
    SUBTRACT: Final = 1
    MULTIPLY: Final = 2
    DIVIDE: Final = 3

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Products give the low word in a and the high word in b."""
        if params.types != param_types(TYPE_VALUE_INPUT, TYPE_VALUE_OUTPUT):
            return tee.TEE_ERROR_BAD_PARAMETERS
        operand, result = params.value(0), params.value(1)
        a, b = operand.a, operand.b
        if command == self.ADD:
            result.a, result.b = a + b, (a + b) >> 32
        elif command == self.SUBTRACT:
            result.a, result.b = a - b, int(a < b)
        elif command == self.MULTIPLY:
            result.a, result.b = a * b, (a * b) >> 32
        elif command == self.DIVIDE:
            if not b:
                return tee.TEE_ERROR_BAD_PARAMETERS
            result.a, result.b = divmod(a, b)
        else:
            return tee.TEE_ERROR_NOT_SUPPORTED
        return tee.TEE_SUCCESS


class MemoryReferences(_PseudoTa):
    """Every kind of memory reference: in, out, inout, null, short buffer."""

    uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be002")
    name = "memory references"

    SUM: Final = 0
    """p0 in, p1 value out: a = sum of all bytes, b = size."""
    FILL: Final = 1
    """p0 out, p1 value in: fill with byte a, report size b (short buffer if it does not fit)."""
    REVERSE: Final = 2
    """p0 inout: bytes reversed in place."""
    COPY: Final = 3
    """p0 in, p1 out: as much as p0 holds (short buffer if p1 is smaller)."""
    IS_NULL: Final = 4
    """Any memory reference p0, p1 value out: a = 1 if it is null, b = its size."""

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Dispatch; see the constants."""
        if command == self.SUM:
            return await self._sum(env, params)
        if command == self.FILL:
            return await self._fill(env, params)
        if command == self.REVERSE:
            return await self._reverse(env, params)
        if command == self.COPY:
            return await self._copy(env, params)
        if command == self.IS_NULL:
            if params.type(1) != TYPE_VALUE_OUTPUT or params.type(0) < TYPE_MEMREF_INPUT:
                return tee.TEE_ERROR_BAD_PARAMETERS
            memref, value = params.memref(0), params.value(1)
            value.a, value.b = int(memref.null), memref.size
            return tee.TEE_SUCCESS
        return tee.TEE_ERROR_NOT_SUPPORTED

    async def _sum(self, env: TaEnvironment, params: Params) -> int:
        if params.types != param_types(TYPE_MEMREF_INPUT, TYPE_VALUE_OUTPUT):
            return tee.TEE_ERROR_BAD_PARAMETERS
        memref, value = params.memref(0), params.value(1)
        total = 0
        for at in range(0, memref.capacity, BLOCK):
            total += sum(memref.read(at, min(BLOCK, memref.capacity - at)))
            if at:
                await env.checkpoint(BLOCK_NS)
        value.a, value.b = total, memref.capacity
        return tee.TEE_SUCCESS

    async def _reverse(self, env: TaEnvironment, params: Params) -> int:
        """Swap blocks from both ends, so that a buffer of any size costs little memory."""
        if params.types != TYPE_MEMREF_INOUT:
            return tee.TEE_ERROR_BAD_PARAMETERS
        memref = params.memref(0)
        low, high = 0, memref.capacity
        while low < high:
            size = min(BLOCK, (high - low + 1) // 2)
            head, tail = memref.read(low, size), memref.read(high - size, size)
            memref.write(low, tail[::-1])
            memref.write(high - size, head[::-1])
            low += size
            high -= size
            if low < high:
                await env.checkpoint(BLOCK_NS)
        return tee.TEE_SUCCESS

    async def _fill(self, env: TaEnvironment, params: Params) -> int:
        if params.types != param_types(TYPE_MEMREF_OUTPUT, TYPE_VALUE_INPUT):
            return tee.TEE_ERROR_BAD_PARAMETERS
        memref, value = params.memref(0), params.value(1)
        memref.set_size(value.b)
        if value.b > memref.capacity:
            return tee.TEE_ERROR_SHORT_BUFFER
        for at in range(0, value.b, BLOCK):
            if at:
                await env.checkpoint(BLOCK_NS)
            memref.write(at, bytes([value.a & 0xFF]) * min(BLOCK, value.b - at))
        return tee.TEE_SUCCESS

    async def _copy(self, env: TaEnvironment, params: Params) -> int:
        if params.types != param_types(TYPE_MEMREF_INPUT, TYPE_MEMREF_OUTPUT):
            return tee.TEE_ERROR_BAD_PARAMETERS
        source, target = params.memref(0), params.memref(1)
        target.set_size(source.capacity)
        if source.capacity > target.capacity:
            return tee.TEE_ERROR_SHORT_BUFFER
        for at in range(0, source.capacity, BLOCK):
            target.write(at, source.read(at, min(BLOCK, source.capacity - at)))
            if at:
                await env.checkpoint(BLOCK_NS)
        return tee.TEE_SUCCESS


class Locker(_PseudoTa):
    """Waits on a mutex. p0 in: a = how many checkpoints to hold it, b = which lock (0..15).

    The commands with SHARED use a lock of the whole secure world: partitions wait for each other.
    """

    uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be003")
    name = "locker"

    HOLD: Final = 0
    HOLD_SHARED: Final = 1
    HOLD_ASLEEP: Final = 2
    """Holds the lock through an RPC SUSPEND of a milliseconds."""
    HOLD_SHARED_ASLEEP: Final = 3
    WAIT_SIGNAL: Final = 4
    """Waits on the condition variable of lock b until its count is not zero, and takes one."""
    SIGNAL: Final = 5
    """Adds a to the count of lock b and signals: one waiter, or all if a is above 1."""

    STEP_NS: Final = 20_000
    LOCKS: Final = 16

    def __init__(self) -> None:
        self._counts = [0] * self.LOCKS

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Dispatch; see the constants. Anything but one value input is a bad parameter."""
        if params.types != TYPE_VALUE_INPUT or params.value(0).b >= self.LOCKS:
            return tee.TEE_ERROR_BAD_PARAMETERS
        amount, which = params.value(0).a, params.value(0).b
        shared = command in (self.HOLD_SHARED, self.HOLD_SHARED_ASLEEP)
        mutex = env.mutex(f"lock {which}", shared=shared)
        if command in (self.HOLD, self.HOLD_SHARED):
            await mutex.lock()
            for _ in range(amount):
                await env.checkpoint(self.STEP_NS)
            await mutex.unlock()
            return tee.TEE_SUCCESS
        if command in (self.HOLD_ASLEEP, self.HOLD_SHARED_ASLEEP):
            await mutex.lock()
            await env.sleep(amount)
            await mutex.unlock()
            return tee.TEE_SUCCESS
        if command not in (self.WAIT_SIGNAL, self.SIGNAL):
            return tee.TEE_ERROR_NOT_SUPPORTED
        condition = env.condition(f"condition {which}")
        await mutex.lock()
        if command == self.WAIT_SIGNAL:
            while not self._counts[which]:
                await condition.wait(mutex)
            self._counts[which] -= 1
        else:
            self._counts[which] += amount
            if amount > 1:
                condition.broadcast()
            else:
                condition.signal()
        await mutex.unlock()
        return tee.TEE_SUCCESS


class Clock(_PseudoTa):
    """Time: works for long, sleeps, asks the normal world for its time."""

    uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be004")
    name = "clock"

    WORK: Final = 0
    """p0 value in: a steps of b ns, a checkpoint after each; cancellable."""
    SLEEP: Final = 1
    """p0 value in: a milliseconds in the normal world; cancellable."""
    REE_TIME: Final = 2
    """p0 value out: seconds and milliseconds of the normal world."""
    SYSTEM_TIME: Final = 3
    """p0 value out: seconds and milliseconds of the secure world."""

    async def open_session(self, env: TaEnvironment, params: Params) -> int:
        """Cancellation is wanted."""
        env.mask_cancellation(False)
        return tee.TEE_SUCCESS

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Dispatch; see the constants."""
        if command in (self.WORK, self.SLEEP):
            if params.types != TYPE_VALUE_INPUT:
                return tee.TEE_ERROR_BAD_PARAMETERS
            value = params.value(0)
            if command == self.SLEEP:
                return await env.sleep(value.a)
            for _ in range(value.a):
                await env.checkpoint(value.b)
                if env.cancelled():
                    return tee.TEE_ERROR_CANCEL
            return tee.TEE_SUCCESS
        if command not in (self.REE_TIME, self.SYSTEM_TIME):
            return tee.TEE_ERROR_NOT_SUPPORTED
        if params.types not in (TYPE_VALUE_OUTPUT, TYPE_VALUE_INOUT):
            return tee.TEE_ERROR_BAD_PARAMETERS
        value = params.value(0)
        if command == self.REE_TIME:
            time = await env.get_ree_time()
            value.a, value.b = time.seconds, time.nanoseconds // 1_000_000
        else:
            milliseconds = env.system_time_ns() // 1_000_000
            value.a, value.b = divmod(milliseconds, 1000)
        return tee.TEE_SUCCESS


class Panicker(TrustedApplication):
    """A user TA that panics with the code in value p0.a, in the entry point that is asked for."""

    uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be005")
    name = "panicker"
    single_instance = True
    multi_session = True

    PANIC: Final = 0
    TOUCH_OUTSIDE: Final = 1
    """Reads one byte behind the end of memory reference p0."""
    PANIC_ON_CLOSE: Final = 2
    SURVIVE: Final = 3

    async def open_session(self, env: TaEnvironment, params: Params) -> int:
        """With a value input: panics with a if b is 0, fails with result a otherwise."""
        if params.types == TYPE_VALUE_INPUT:
            value = params.value(0)
            if not value.b:
                env.panic(value.a)
            return value.a
        return tee.TEE_SUCCESS

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Dispatch; see the constants."""
        if command == self.PANIC:
            env.panic(params.value(0).a)
        if command == self.TOUCH_OUTSIDE:
            memref = params.memref(0)
            memref.read(memref.capacity, 1)
        if command == self.PANIC_ON_CLOSE:
            env.data = "panic"
        return tee.TEE_SUCCESS if command <= self.SURVIVE else tee.TEE_ERROR_NOT_SUPPORTED

    async def close_session(self, env: TaEnvironment) -> None:
        """Panics if it was told to."""
        if env.data is not None:
            env.panic(tee.TEE_ERROR_BAD_STATE)
