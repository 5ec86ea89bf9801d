# SPDX-License-Identifier: BSD-2-Clause
"""Who may enter the secure world, and who waits for a thread there.

Behaves as the call queue of Linux (``drivers/tee/optee/call.c``): every call in flight is on the
list, waiting or not; the end of a call wakes the first one on the list that has not been woken yet.
A call that is answered ETHREAD_LIMIT while no other call of this guest is in flight waits for ever,
as in the real driver: nobody will end.
"""

from __future__ import annotations

from mediator.guest.kernel import Completion, Kernel


class Waiter:
    """The place of one call in the queue; used again for the next call of the same message slot."""

    __slots__ = ("completion", "system")

    def __init__(self, kernel: Kernel) -> None:
        self.completion = Completion(kernel, "a thread of the secure world")
        self.system = False


class CallQueue:
    """The calls of one driver, in order of their arrival.

    ``total_threads``: calls allowed in the secure world at once; 0: the driver does not count.
    One thread stays reserved for system sessions while there are any.
    """

    __slots__ = ("free_threads", "system_sessions", "total_threads", "waiters")

    def __init__(self, total_threads: int) -> None:
        self.total_threads = total_threads
        self.free_threads = total_threads
        self.system_sessions = 0
        self.waiters: list[Waiter] = []

    def join(self, waiter: Waiter, system: bool) -> bool:
        """Put a call on the queue; False: it must wait for :meth:`admission`."""
        self.waiters.append(waiter)
        if not self.total_threads:
            return True
        waiter.system = system
        return self._take(system)

    def _take(self, system: bool) -> bool:
        """Count one thread as taken, if there is one for this call."""
        reserved = 1 if self.system_sessions and not system else 0
        if self.free_threads <= reserved:
            return False
        self.free_threads -= 1
        return True

    async def admission(self, waiter: Waiter) -> None:
        """Wait until the driver's own thread count admits the call."""
        while True:
            await self.another_call(waiter)
            if self._take(waiter.system):
                return

    async def another_call(self, waiter: Waiter) -> None:
        """Wait until another call has ended, then go to the end of the queue."""
        await waiter.completion.wait()
        waiter.completion.reset()
        self.waiters.remove(waiter)
        self.waiters.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """A call has ended."""
        self.waiters.remove(waiter)
        if self.total_threads:
            self.free_threads += 1
        completion = waiter.completion
        if self.waiters:
            self._wake_one()
            # Somebody ended for us and we did not need it: pass it on.
            if completion.count:
                self._wake_one()
        completion.count = 0

    def _wake_one(self) -> None:
        if self.system_sessions:
            for waiter in self.waiters:
                if waiter.system and not waiter.completion.done:
                    waiter.completion.complete()
                    return
        for waiter in self.waiters:
            if not waiter.completion.done:
                waiter.completion.complete()
                return
