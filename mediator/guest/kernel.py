# SPDX-License-Identifier: BSD-2-Clause
"""The scheduler of a simulated guest: threads on vCPUs, waiting, timers, interrupts.

Threads are coroutines. One :meth:`Kernel.run` per vCPU takes a runnable thread and resumes it until
it blocks or ends; a thread that was woken continues on whichever vCPU is free, so what it began on
one vCPU (an SMC that became an RPC) it may finish on another. Inside a thread, awaiting a trap of
:attr:`Kernel.cpu` costs no more than the trap itself: the machine's suspensions pass straight
through to the machine, only blocking returns to the scheduler.

There is one run queue. An idle vCPU waits in WFI and is woken by an SGI. Interrupts are taken where
a real kernel would see them at the latest: after every trap of a thread, between threads and in WFI.

What this module must never do: know OP-TEE, or keep time of its own (time is the machine's).
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from heapq import heappop, heappush
from typing import Final, NoReturn

from mediator.guest.cpu import TIMER_PPI, GuestCpu

RESCHEDULE_SGI: Final = 0
"""SGI that takes a vCPU out of WFI because a thread became runnable (IPI_RESCHEDULE of Linux)."""

InterruptHandler = Callable[[GuestCpu], Awaitable[None]]
"""Runs in interrupt context on the given vCPU: it may trap, wake and spawn, but must not block."""

Body = Coroutine[object, object, object]


class _Block:
    """Awaited by a thread that has put itself on some wait list; never seen outside the kernel."""

    __slots__ = ()

    def __await__(self) -> Generator[object, object, None]:
        yield self


_BLOCK: Final = _Block()


class Thread:
    """One thread of a guest. Threads are made by :meth:`Kernel.spawn`.

    ``waiting_for`` says what it waits for, for people; empty while it runs or could run.
    """

    __slots__ = ("_ended", "body", "daemon", "error", "kernel", "name", "result", "waiting_for")

    def __init__(self, kernel: Kernel, body: Body, name: str, daemon: bool) -> None:
        self.kernel = kernel
        self.body = body
        self.name = name
        self.daemon = daemon
        self.result: object = None
        self.error: Exception | None = None
        self.waiting_for = ""
        self._ended = Completion(kernel, f"the end of {name}")

    @property
    def ended(self) -> bool:
        """True once the thread has returned or raised."""
        return self._ended.done

    async def finish(self) -> None:
        """Wait for the end of the thread, however it ends."""
        await self._ended.wait()
        self._ended.complete()

    async def join(self) -> object:
        """Wait for the end of the thread; return its result or raise what it raised."""
        await self.finish()
        if self.error is not None:
            self.kernel.failures = [(t, e) for t, e in self.kernel.failures if t is not self]
            raise self.error
        return self.result


class Completion:
    """A counting event, ``struct completion`` of Linux: each :meth:`complete` lets one wait through."""

    __slots__ = ("_kernel", "_reason", "_waiters", "count")

    def __init__(self, kernel: Kernel, reason: str) -> None:
        self._kernel = kernel
        self._reason = reason
        self.count = 0
        """Completions that nobody has waited for yet."""
        # A list: few wait, and an empty deque takes ten times its memory.
        self._waiters: list[Thread] = []

    @property
    def done(self) -> bool:
        """True if the next :meth:`wait` would not block (``completion_done``)."""
        return self.count > 0

    def reset(self) -> None:
        """Forget completions nobody waited for (``reinit_completion``)."""
        self.count = 0

    def complete(self) -> None:
        """Let one waiter through, now or whenever it comes."""
        self.count += 1
        if self._waiters:
            self._kernel.wake(self._waiters.pop(0))

    async def wait(self, timeout: int | None = None) -> bool:
        """Wait for a completion and consume it; False once ``timeout`` ns have passed without one."""
        if timeout is None:
            while not self.count:
                self._waiters.append(self._kernel.current)
                await self._kernel.block(self._reason)
            self.count -= 1
            return True
        kernel = self._kernel
        deadline = kernel.cpu.now() + timeout
        while not self.count:
            thread = kernel.current
            timer = kernel.start_timer(deadline, partial(self._expire, thread))
            self._waiters.append(thread)
            await kernel.block(self._reason)
            timer.cancelled = True
            if not self.done and kernel.cpu.now() >= deadline:
                return False
        self.count -= 1
        return True

    def _expire(self, thread: Thread) -> None:
        if thread in self._waiters:
            self._waiters.remove(thread)
            self._kernel.wake(thread)


class Mutex:
    """A sleeping lock, first come first served. Use it with ``async with``."""

    __slots__ = ("_free", "locked")

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.locked = False
        self._free = Completion(kernel, f"the lock {name}")

    async def __aenter__(self) -> None:
        while self.locked:
            await self._free.wait()
        self.locked = True

    async def __aexit__(self, *_: object) -> None:
        self.locked = False
        if not self._free.done:
            self._free.complete()


class Timer:
    """A started timer; set ``cancelled`` to keep it from calling back."""

    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False


class KernelCounters:
    """What a kernel counts about itself."""

    __slots__ = ("interrupts", "ipis", "migrations", "spurious_interrupts", "switches")

    def __init__(self) -> None:
        self.switches = 0
        """Times a thread was resumed by the scheduler."""
        self.migrations = 0
        """Times a thread continued on another vCPU than before."""
        self.interrupts = 0
        self.spurious_interrupts = 0
        """Interrupts without a handler."""
        self.ipis = 0
        """SGIs sent to wake another vCPU."""


class Kernel:
    """The scheduler and interrupt dispatcher of one guest.

    ``cpu`` and ``current`` are the vCPU and the thread that execute right now; after every await
    that may block, read :attr:`cpu` again.
    """

    def __init__(self) -> None:
        self.cpu: GuestCpu = _NO_CPU
        self.current: Thread = Thread(self, _nothing(), "boot", True)
        self.current.body.close()
        self.threads: list[Thread] = []
        """Threads that have not ended, oldest first."""
        self.failures: list[tuple[Thread, Exception]] = []
        """Threads that ended by an exception which nobody has joined."""
        self.abandoned: list[Thread] = []
        """Threads that had not ended when the guest did."""
        self.stopping = False
        self.counters = KernelCounters()
        self._runnable: deque[Thread] = deque()
        self._bound: dict[int, deque[Thread]] = {}
        self._last_cpu: dict[Thread, int] = {}
        self._idle: list[GuestCpu] = []
        self._handlers: dict[int, InterruptHandler] = {
            TIMER_PPI: self._timer_interrupt,
            RESCHEDULE_SGI: _acknowledged,
        }
        self._timers: list[tuple[int, int, Timer]] = []
        self._timer_sequence = 0
        self._foreground = 0
        self._online = 0

    # Threads

    def spawn(self, body: Body, name: str, *, daemon: bool = False) -> Thread:
        """Start a thread. The guest stops when the last thread that is no daemon has ended."""
        thread = Thread(self, body, name, daemon)
        self.threads.append(thread)
        if not daemon:
            self._foreground += 1
        self.wake(thread)
        return thread

    @property
    def runnable(self) -> int:
        """Number of threads that wait for a vCPU, and could have this one."""
        return len(self._runnable) + len(self._bound.get(self.cpu.index, ()))

    def wake(self, thread: Thread) -> None:
        """Make a blocked thread runnable, and get an idle vCPU out of WFI for it."""
        thread.waiting_for = ""
        self._runnable.append(thread)
        if self._idle:
            self._poke(self._idle.pop(0))

    def _poke(self, cpu: GuestCpu) -> None:
        if cpu is not self.cpu:
            self.counters.ipis += 1
            self.cpu.send_sgi(cpu.index, RESCHEDULE_SGI)

    def block(self, reason: str) -> Awaitable[None]:
        """Stop the current thread until somebody wakes it; it must be on a wait list by now."""
        self.current.waiting_for = reason
        return _BLOCK

    async def yield_(self) -> None:
        """Let the other runnable threads go first (``cond_resched``)."""
        if self.runnable:
            self._runnable.append(self.current)
            await _BLOCK

    async def migrate(self, index: int) -> None:
        """Continue the current thread on vCPU ``index``, which must be running this kernel."""
        if index == self.cpu.index:
            return
        queue = self._bound[index]
        queue.append(self.current)
        for cpu in self._idle:
            if cpu.index == index:
                self._idle.remove(cpu)
                self._poke(cpu)
                break
        await _BLOCK

    @property
    def cpus(self) -> tuple[int, ...]:
        """Indices of the vCPUs that run this kernel."""
        return tuple(sorted(self._bound))

    async def sleep(self, duration: int) -> None:
        """Sleep ``duration`` ns of virtual time."""
        await Completion(self, f"{duration} ns to pass").wait(duration)

    def stop(self) -> None:
        """Make every vCPU return from :meth:`run` once its thread blocks or ends."""
        self.stopping = True
        while self._idle:
            self._poke(self._idle.pop(0))

    # Timers

    def start_timer(self, deadline: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` in interrupt context at virtual time ``deadline`` ns or soon after."""
        timer = Timer(callback)
        earliest = not self._timers or deadline < self._timers[0][0]
        self._timer_sequence += 1
        heappush(self._timers, (deadline, self._timer_sequence, timer))
        if earliest:
            self.cpu.set_timer(deadline)
        return timer

    async def _timer_interrupt(self, cpu: GuestCpu) -> None:
        now = cpu.now()
        timers = self._timers
        while timers and (timers[0][2].cancelled or timers[0][0] <= now):
            timer = heappop(timers)[2]
            if not timer.cancelled:
                timer.callback()
        # Some vCPU always has the earliest deadline: this one, as it has just used its own up.
        cpu.set_timer(timers[0][0] if timers else None)

    # Interrupts

    def request_irq(self, intid: int, handler: InterruptHandler) -> None:
        """Install the handler of an interrupt id; raises ValueError if it has one."""
        if intid in self._handlers:
            raise ValueError(f"interrupt {intid} has a handler")
        self._handlers[intid] = handler

    def free_irq(self, intid: int) -> None:
        """Remove the handler of an interrupt id; raises KeyError if it has none."""
        del self._handlers[intid]

    async def interrupt(self, cpu: GuestCpu, intid: int) -> None:
        """Handle ``intid``, which ``cpu`` has acknowledged, and all others that are pending."""
        pending: int | None = intid
        while pending is not None:
            self.counters.interrupts += 1
            handler = self._handlers.get(pending)
            if handler is None:
                self.counters.spurious_interrupts += 1
            else:
                await handler(cpu)
            cpu.end_of_interrupt(pending)
            pending = cpu.acknowledge()

    # vCPUs

    async def run(self, cpu: GuestCpu) -> None:
        """The program of one vCPU; returns when the kernel stops.

        Once no vCPU runs it any more (it stopped, or the guest was destroyed), threads that have
        not ended are closed where they are.
        """
        self._online += 1
        try:
            await self._schedule(cpu)
        finally:
            self._online -= 1
            if not self._online:
                self.close()

    async def _schedule(self, cpu: GuestCpu) -> None:
        bound = self._bound.setdefault(cpu.index, deque())
        idle_thread = Thread(self, _nothing(), f"idle/{cpu.index}", True)
        idle_thread.body.close()
        while True:
            intid = cpu.acknowledge()
            if intid is not None:
                await _drive(self, cpu, idle_thread, self.interrupt(cpu, intid))
            elif self.stopping:
                return
            elif bound or self._runnable:
                thread = bound.popleft() if bound else self._runnable.popleft()
                self.counters.switches += 1
                if self._last_cpu.get(thread, cpu.index) != cpu.index:
                    self.counters.migrations += 1
                self._last_cpu[thread] = cpu.index
                await _drive(self, cpu, thread, thread.body)
            else:
                self._idle.append(cpu)
                await cpu.wfi()
                if cpu in self._idle:
                    self._idle.remove(cpu)

    def ended(self, thread: Thread, result: object, error: Exception | None) -> None:
        """A thread came to its end (called by the kernel only)."""
        if thread not in self.threads:
            if error is not None:
                raise error
            return
        thread.result = result
        thread.error = error
        if error is not None:
            self.failures.append((thread, error))
        self.threads.remove(thread)
        self._last_cpu.pop(thread, None)
        thread._ended.complete()
        if not thread.daemon:
            self._foreground -= 1
            if not self._foreground:
                self.stop()

    def close(self) -> None:
        """The guest is gone: end all threads where they are, which must not await while they unwind.

        For a guest that never ran; otherwise it happens by itself.
        """
        self.stopping = True
        self.abandoned += self.threads
        for thread in self.threads:
            try:
                thread.body.close()
            except RuntimeError as error:
                self.failures.append((thread, error))
        self.threads.clear()
        self._runnable.clear()


@types.coroutine
def _drive(
    kernel: Kernel, cpu: GuestCpu, thread: Thread, body: Body
) -> Generator[object, object, None]:
    """Resume ``body`` on ``cpu`` until it blocks or ends, handing its traps on to the machine."""
    value: object = None
    thrown: BaseException | None = None
    while True:
        kernel.cpu = cpu
        kernel.current = thread
        try:
            request = body.send(value) if thrown is None else body.throw(thrown)
        except StopIteration as stop:
            kernel.ended(thread, stop.value, None)
            return
        except Exception as error:
            kernel.ended(thread, None, error)
            return
        if request is _BLOCK:
            return
        thrown = None
        try:
            value = yield request
        except GeneratorExit:
            body.close()
            raise
        except BaseException as error:
            value = None
            thrown = error


async def _nothing() -> None:
    """The body of the pseudo threads that stand for boot and idle."""


async def _acknowledged(cpu: GuestCpu) -> None:
    """Handler of an interrupt whose arrival is all that matters."""


class _NoCpu:
    """Stands in for :attr:`Kernel.cpu` before the first vCPU runs: nothing can trap yet."""

    index = -1
    guest_id = -1

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"no vCPU runs this kernel yet, so there is no {name}")


_NO_CPU: Final[GuestCpu] = _NoCpu()
