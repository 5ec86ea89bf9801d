# SPDX-License-Identifier: BSD-2-Clause
"""One partition: everything OP-TEE keeps for one client id (``core/kernel/virtualization.c``)."""

from __future__ import annotations

import random
from array import array
from typing import TYPE_CHECKING, Final

from secure_world import events
from secure_world.bus import Bus, BusError
from secure_world.leaving import Calls
from secure_world.notification import Notifications
from secure_world.session import SessionTable
from secure_world.settings import NOTIFICATION_BASE
from secure_world.shm import ContiguousMemory, SharedMemory, ShmTable
from secure_world.thread import FREE, Thread
from secure_world.waiting import TeeCondition, TeeMutex, WaitQueue

if TYPE_CHECKING:
    from secure_world.world import SecureWorld


class Partition:
    """Threads, sessions, buffers, locks and notification values of one client.

    ``older`` is the next instance of the same client id: VM_CREATED of an id that exists is
    accepted, and the newest instance is the one that answers.
    """

    __slots__ = (
        "_birth",
        "_conditions",
        "_mutexes",
        "_protected",
        "_random",
        "alive",
        "bus",
        "client",
        "keeps_arguments",
        "notifications",
        "older",
        "sessions",
        "shm",
        "shm_cv",
        "shm_queue",
        "shm_waiters",
        "threads",
        "world",
    )

    def __init__(self, world: SecureWorld, client: int, birth: int = 0) -> None:
        settings = world.settings
        self.world = world
        self.client = client
        self.alive = True
        self.bus: Bus = world.bus
        self.older: Partition | None = None
        self.threads = [Thread(self, index) for index in range(settings.threads)]
        self.shm = ShmTable(world.bus, client, settings)
        self.sessions = SessionTable(self)
        self.notifications = Notifications(settings.max_notification)
        self.keeps_arguments = settings.rpc_cache_at_boot and settings.rpc_cache
        self.shm_queue = WaitQueue()
        self.shm_cv = object()
        self.shm_waiters = 0
        self._mutexes: dict[str, TeeMutex] = {}
        self._conditions: dict[str, TeeCondition] = {}
        self._protected: dict[bytes, dict[bytes, bytes]] = {}
        self._random: random.Random | None = None
        self._birth = birth

    # Named things.

    def mutex(self, name: str) -> TeeMutex:
        """The lock of that name."""
        lock = self._mutexes.get(name)
        if lock is None:
            lock = self._mutexes[name] = TeeMutex(name)
        return lock

    def mutexes(self) -> tuple[TeeMutex, ...]:
        """The locks of this partition alone."""
        return tuple(self._mutexes.values())

    def condition(self, name: str) -> TeeCondition:
        """The condition variable of that name."""
        condition = self._conditions.get(name)
        if condition is None:
            condition = self._conditions[name] = TeeCondition()
        return condition

    def protected_state(self, uuid: bytes) -> dict[bytes, bytes]:
        """Replay-protected state of one TA."""
        state = self._protected.get(uuid)
        if state is None:
            state = self._protected[uuid] = {}
        return state

    @property
    def random(self) -> random.Random:
        """The partition's generator, seeded from the settings, the client id and the birth.

        A partition that follows another under the same id must not draw its numbers again: the
        keys of a TA are the same, and a nonce may be used once only.
        """
        if self._random is None:
            seed = f"optee {self.world.settings.seed} {self.client} {self._birth}"
            self._random = random.Random(seed)
        return self._random

    # Memory.

    def in_reserved(self, address: int, size: int) -> bool:
        """True if these bytes lie in the reserved shared memory area."""
        area = self.world.reserved
        return area is not None and area[0] <= address and address + size <= area[0] + area[1]

    def usable(self, address: int, size: int) -> bool:
        """True if the bus lets this partition use these bytes."""
        return 0 < size <= self.world.max_bytes and self.bus.check(self.client, address, size)

    def contiguous(self, address: int, size: int, cookie: int) -> ContiguousMemory:
        """Bytes at a physical address; such objects are not found by cookie."""
        return ContiguousMemory(self, address, size, cookie)

    def memory_from_list(
        self, address: int, size: int, cookie: int, *, guarded: bool
    ) -> SharedMemory | None:
        """A new object from a page list; None or an exception of :mod:`secure_world.shm`."""
        memory = self.shm.from_list(address, size, cookie, guarded)
        if memory is not None:
            self._registered(memory)
        return memory

    def add_memory(
        self, pages: array[int], offset: int, cookie: int, *, guarded: bool
    ) -> SharedMemory:
        """A new object from pages that were checked."""
        memory = self.shm.add(pages, offset, cookie, guarded)
        self._registered(memory)
        return memory

    def _registered(self, memory: SharedMemory) -> None:
        sink = self.world.sink
        if sink is not None:
            sink(
                events.ShmRegistered(self.client, memory.cookie, len(memory.pages), memory.guarded)
            )

    def gone(self, memory: SharedMemory | ContiguousMemory) -> bool:
        """The last reference went. True if a thread waits for buffers to go."""
        if memory.__class__ is not SharedMemory:
            return False
        self.shm.remove(memory)
        sink = self.world.sink
        if sink is not None and self.alive:
            sink(events.ShmReleased(self.client, memory.cookie, len(memory.pages)))
        return self.shm_waiters > 0

    def forget(self, memory: SharedMemory | ContiguousMemory) -> None:
        """Drop a reference to memory that OP-TEE allocated; nobody can wait for such an object."""
        memory.refs -= 1
        if not memory.refs:
            self.gone(memory)

    def breach(self, error: BusError) -> None:
        """Report an access that the bus refused."""
        sink = self.world.sink
        if sink is not None and self.alive:
            sink(events.Breach(self.client, error.address, error.size, error.write))

    def breach_at(self, address: int, size: int) -> None:
        """Report memory that was named to the secure world but that it may not use."""
        sink = self.world.sink
        if sink is not None and self.alive:
            sink(events.Breach(self.client, address, size, False))

    # Notifications.

    def notify(self, value: int) -> None:
        """Make a notification value pending here and raise the interrupt."""
        if self.notifications.set(value):
            sink = self.world.sink
            if sink is not None:
                sink(events.NotificationRaised(self.client, value))
            self.world.monitor.raise_notification()

    # Threads.

    def idle(self) -> bool:
        """True if no thread runs or is suspended."""
        return all(thread.state == FREE for thread in self.threads)

    def take_cached_argument(self) -> int:
        """Forget one cached RPC argument; returns its cookie, 0 if there is none."""
        for thread in self.threads:
            cookie = thread.drop_argument()
            if cookie:
                return cookie
        return 0

    def destroy(self) -> None:
        """The partition goes, whatever its threads were doing."""
        suspended = 0
        self.alive = False
        self.bus = _DEAD_BUS
        buffers = self.shm.clear(_DEAD_BUS)
        for thread in self.threads:
            coroutine = thread.coroutine
            if coroutine is not None:
                suspended += 1
                thread.coroutine = None
                _end(coroutine)
            thread.state = FREE
        for mutex in self.world.shared_mutexes():
            sleeper = mutex.abandon(self)
            if sleeper is not None:
                sleeper.partition.notify(NOTIFICATION_BASE + sleeper.index)
        sink = self.world.sink
        if sink is not None:
            sink(events.PartitionDestroyed(self.client, suspended, buffers))


class _DeadBus:
    """What is left of the bus for a partition that is gone: nothing."""

    def read(self, client: int, pa: int, n: int) -> bytes:
        raise BusError(pa, n)

    def write(self, client: int, pa: int, data: bytes) -> None:
        raise BusError(pa, len(data), write=True)

    def check(self, client: int, pa: int, n: int) -> bool:
        return False

    def check_pages(self, client: int, pages: bytes) -> bool:
        return False


_DEAD_BUS: Final = _DeadBus()

END_TRIES: Final = 64
"""Clean-up blocks of a TA that may try to leave once more while its thread is ended."""


class PartitionGone(BaseException):
    """Ends a thread whose partition is destroyed. Not an Exception: no TA may take it for its own."""


def _end(coroutine: Calls) -> None:
    """End a suspended call. What a TA's clean-up code does then has no effect and no say."""
    for _ in range(END_TRIES):
        try:
            coroutine.throw(PartitionGone())
        except (PartitionGone, StopIteration, Exception):
            return
