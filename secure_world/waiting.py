# SPDX-License-Identifier: BSD-2-Clause
"""Sleeping locks and condition variables, with the RPCs that real OP-TEE makes for them.

Model of OP-TEE OS ``kernel/mutex.c`` and ``wait_queue.c``: a thread that must wait enters the lock's
queue and leaves with RPC NOTIFICATION WAIT (value 0x40 + its thread index) until somebody has marked
it done; the normal world may send it back at any time, then it leaves again. Unlocking marks the
first waiter done and makes RPC NOTIFICATION SEND with that waiter's value. A condition variable
only names some waiters of the mutex's queue: signalling makes them ordinary waiters.

Where the waiter belongs to another partition there is no RPC (the normal world that would serve it
knows nothing of that thread): the value becomes pending in the waiter's partition instead.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_world.partition import Partition
    from secure_world.thread import Thread


class Waiter:
    """One thread in a queue; ``condition`` is the condition variable it waits for, if any."""

    __slots__ = ("condition", "done", "thread")

    def __init__(self, thread: Thread, condition: object | None) -> None:
        self.thread = thread
        self.condition = condition
        self.done = False


class WaitQueue:
    """The queue of one mutex; every step costs the same however many threads wait.

    A promoted waiter queues up behind the plain ones, where OP-TEE keeps its place of arrival. To
    find its first entry, a plain ``dict`` would go through all that have been taken from its front.
    """

    __slots__ = ("_ready", "conditional", "orphaned")

    def __init__(self) -> None:
        self._ready: OrderedDict[Waiter, None] = OrderedDict()
        self.conditional: dict[object, OrderedDict[Waiter, None]] = {}
        self.orphaned = False

    @property
    def waiting(self) -> bool:
        """True if a plain waiter has not been told yet: an unlock would make an RPC."""
        return bool(self._ready)

    def threads(self) -> list[Thread]:
        """All that wait, those for a condition last."""
        waiters = list(self._ready)
        for some in self.conditional.values():
            waiters += some
        return [waiter.thread for waiter in waiters]

    async def wait(self, thread: Thread, condition: object | None = None) -> None:
        """Queue up, let the lock's next waiter go on, and sleep until marked done."""
        waiter = Waiter(thread, condition)
        if condition is None:
            self._ready[waiter] = None
        else:
            self.conditional.setdefault(condition, OrderedDict())[waiter] = None
        alive = False
        try:
            if condition is not None and self._ready:
                await self.wake_next(thread)
            while not waiter.done:
                await thread.sleep_until_sent()
            alive = True
        finally:
            self._forget(waiter)
            if waiter.done and not alive:
                self.orphaned = True

    def _forget(self, waiter: Waiter) -> None:
        """A waiter leaves, also when its partition is destroyed under it."""
        self._ready.pop(waiter, None)
        if waiter.condition is not None:
            waiters = self.conditional.get(waiter.condition)
            if waiters is not None:
                waiters.pop(waiter, None)
                if not waiters:
                    del self.conditional[waiter.condition]

    def take_next(self) -> Thread | None:
        """Mark the first plain waiter done and return its thread, or None."""
        if not self._ready:
            return None
        waiter = next(iter(self._ready))
        del self._ready[waiter]
        waiter.done = True
        return waiter.thread

    async def wake_next(self, thread: Thread) -> None:
        """Mark the first plain waiter done and tell its normal world: the tail of every unlock."""
        sleeper = self.take_next()
        if sleeper is not None:
            await thread.send_to(sleeper)

    def promote(self, condition: object, *, everyone: bool) -> None:
        """Turn waiters of ``condition`` into plain waiters: one, or all of them."""
        waiters = self.conditional.get(condition)
        if waiters is None:
            return
        for waiter in list(waiters) if everyone else [next(iter(waiters))]:
            del waiters[waiter]
            waiter.condition = None
            self._ready[waiter] = None
        if not waiters:
            del self.conditional[condition]


class TeeMutex:
    """A lock that a TA may hold across suspensions."""

    __slots__ = ("name", "owner", "queue")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.queue = WaitQueue()
        self.owner: Thread | None = None

    async def acquire(self, thread: Thread) -> None:
        """Take the lock; a thread that holds it already waits for itself, for ever."""
        while self.owner is not None:
            await self.queue.wait(thread)
        self.owner = thread
        thread.held.append(self)
        thread.dirty = True

    async def release(self, thread: Thread) -> None:
        """Release the lock. Not holding it is ignored: a TA's mistake must not break others."""
        if self.owner is not thread:
            return
        self.owner = None
        thread.held.remove(self)
        await self.queue.wake_next(thread)

    def abandon(self, partition: Partition) -> Thread | None:
        """``partition`` is gone. Returns the thread that may go on now, if any.

        Covers a holder that died, and a waiter that died after it had been told to go on.
        """
        owner = self.owner
        died = owner is not None and owner.partition is partition
        if died:
            self.owner = None
        if died or (self.queue.orphaned and self.owner is None):
            self.queue.orphaned = False
            return self.queue.take_next()
        return None


class BoundMutex:
    """A :class:`TeeMutex` as one thread sees it (the ``Mutex`` of the TA interface)."""

    __slots__ = ("mutex", "thread")

    def __init__(self, mutex: TeeMutex, thread: Thread) -> None:
        self.mutex = mutex
        self.thread = thread

    async def lock(self) -> None:
        """Take the lock, waiting in the normal world while another thread holds it."""
        await self.mutex.acquire(self.thread)

    async def unlock(self) -> None:
        """Release it and wake the next waiter."""
        await self.mutex.release(self.thread)


class TeeCondition:
    """A condition variable; remembers the mutex of its waiters, as OP-TEE's ``condvar`` does."""

    __slots__ = ("mutex",)

    def __init__(self) -> None:
        self.mutex: TeeMutex | None = None


class BoundCondition:
    """A :class:`TeeCondition` as one thread sees it (the ``Condition`` of the TA interface)."""

    __slots__ = ("condition", "thread")

    def __init__(self, condition: TeeCondition, thread: Thread) -> None:
        self.condition = condition
        self.thread = thread

    async def wait(self, mutex: object) -> None:
        """Release ``mutex``, wait for a signal, take ``mutex`` again."""
        if not isinstance(mutex, BoundMutex):
            raise TypeError("wait needs a mutex of this secure world")
        lock = mutex.mutex
        thread = self.thread
        if lock.owner is not thread:
            raise RuntimeError("wait needs the mutex to be held")
        self.condition.mutex = lock
        lock.owner = None
        thread.held.remove(lock)
        await lock.queue.wait(thread, self.condition)
        await lock.acquire(thread)

    def signal(self) -> None:
        """Let one waiter go on once the mutex is released."""
        if self.condition.mutex is not None:
            self.condition.mutex.queue.promote(self.condition, everyone=False)

    def broadcast(self) -> None:
        """Let all waiters go on, one after the other, once the mutex is released."""
        if self.condition.mutex is not None:
            self.condition.mutex.queue.promote(self.condition, everyone=True)
