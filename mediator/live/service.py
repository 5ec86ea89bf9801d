# SPDX-License-Identifier: BSD-2-Clause
"""The loop that serves live guests: one thread, one ``select`` over the sockets of all of them.

An answer may be due later (a secure world that "worked", a vCPU that rests): it waits in a heap, and
everybody else is served meanwhile. With more than one vCPU a bell may wake the wrong one, so it is repeated each
millisecond until the answer has been taken.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from mediator.hypervisor.psci import PsciAction
from mediator.live.guest import LineSink, LiveGuest
from mediator.live.image import Software
from mediator.live.mailbox import (
    ANSWER,
    CLASS_HVC64,
    CLASS_SMC64,
    FAULT,
    FORWARD,
    REQUEST,
    UNDEFINED,
    Mailbox,
)
from mediator.live.platform import Forward, LivePlatform, UndefinedCall
from mediator.live.polling import Polling
from mediator.live.power import Power
from mediator.live.qemu import POLLING, SEMIHOSTING, BoardSettings, Emulator, Memory
from smccc.constants import psci

SOON: Final = 100_000
"""ns of charged work that are not worth a timer: the way to the guest takes as long."""
RING_AGAIN: Final = 1_000_000
"""ns until a bell that nobody answered is rung again."""
IDLE: Final = 0.5
"""Seconds between two looks at the clock when nothing happens."""
SWITCHED_OFF: Final = "switched off"
MAX_READ: Final = 1 << 16

_CPU_ON: Final = (psci.PSCI_CPU_ON_AARCH64, psci.PSCI_CPU_ON_AARCH32)


class Service:
    """Runs guests on a platform until they end."""

    def __init__(
        self,
        platform: LivePlatform,
        *,
        lines: LineSink | None = None,
        polling: Polling | None = None,
    ) -> None:
        self.polling = polling or Polling()
        self.platform = platform
        self.guests: list[LiveGuest] = []
        self.lines = lines
        self.raw: Callable[[LiveGuest, bytes], None] | None = None
        """Gets what guests write as it comes."""
        self.before: Callable[[LiveGuest], bool] | None = None
        """Asked before a call of a guest is served; ``True`` kills the guest instead."""
        self.times: list[int] | None = None
        """ns of our part of each call, if somebody wants them."""
        self._pauses: dict[tuple[int, int], _Pause] = {}
        platform.wake = self._end_rest
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._polled: list[LiveGuest] = []

    # --- life of guests ----------------------------------------------------------------------------

    def start(self, name: str, board: BoardSettings, software: Software) -> LiveGuest:
        """Start a guest; it runs while :meth:`step` is called."""
        memory = Memory(board.ram)
        try:
            ident = self.platform.add_guest(name, memory.view)
            try:
                guest = LiveGuest(name, board, software, ident=ident, memory=memory)
            except BaseException:
                self.platform.remove_guest(ident)
                raise
        finally:
            memory.close()
        self.guests.append(guest)
        self._count()
        emulator = guest.emulator
        register = self._selector.register
        register(emulator.console, selectors.EVENT_READ, partial(self._console, guest))
        register(emulator.interrupts, selectors.EVENT_READ, partial(self._drain, guest))
        if board.bell == POLLING:
            self._polled.append(guest)
        else:
            register(emulator.bell, selectors.EVENT_READ, partial(self._bell, guest))
        return guest

    def stop(self, guest: LiveGuest, why: str = "stopped") -> None:
        """End a guest, whatever it is doing, and release what is held for it."""
        if guest.ended is not None:
            return
        guest.ended = why
        self._count()
        emulator = guest.emulator
        self._last_words(guest, emulator)
        for ours in (emulator.console, emulator.interrupts, emulator.bell):
            with contextlib.suppress(KeyError):
                self._selector.unregister(ours)
        if guest in self._polled:
            self._polled.remove(guest)
        emulator.end()
        self.platform.remove_guest(guest.ident)

    def _count(self) -> None:
        self.polling.machines(
            sum([guest.board.vcpus for guest in self.guests if guest.ended is None])
        )

    def _last_words(self, guest: LiveGuest, emulator: Emulator) -> None:
        """The emulator may be gone before all of its console was read."""
        with contextlib.suppress(OSError):
            while data := emulator.console.recv(MAX_READ):
                self._say(guest, data)
        complaint = emulator.complaint()
        if complaint:
            self._say(guest, f"emulator: {complaint}\n".encode())

    def close(self) -> None:
        """End all guests."""
        for guest in self.guests:
            self.stop(guest)
        self._selector.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the loop -----------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Serve until ``until()`` holds, at most for ``seconds``; whether it did."""
        end = time.monotonic() + seconds
        while not until():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self.step(min(left, IDLE))
        return True

    def running(self) -> bool:
        """Whether any guest runs."""
        return any(guest.ended is None for guest in self.guests)

    def after(self, ns: int, action: Callable[[], None]) -> None:
        """Do something ``ns`` from now, between two calls."""
        self._sequence += 1
        heapq.heappush(self._due, (time.monotonic_ns() + ns, self._sequence, action))

    def step(self, timeout: float) -> None:
        """Wait for something to do, at most ``timeout`` seconds, and do it."""
        due = self._due
        if due:
            timeout = min(timeout, max(0.0, (due[0][0] - time.monotonic_ns()) / 1e9))
        if self._polled or self.polling.look():
            timeout = 0.0
        for key, _ in self._selector.select(timeout):
            key.data()
        for guest in self._polled:
            self._look(guest)
        while due and due[0][0] <= time.monotonic_ns():
            heapq.heappop(due)[2]()

    # --- sockets --------------------------------------------------------------------------------------

    def _receive(self, guest: LiveGuest, ours: socket.socket) -> bytes | None:
        """What there is to read; ``None`` after the end of the emulator."""
        try:
            data = ours.recv(MAX_READ)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._gone(guest)
            return None
        return data

    def _gone(self, guest: LiveGuest) -> None:
        code = guest.emulator.process.wait()
        why = SWITCHED_OFF if code == 0 else f"emulator ended with {code}"
        self.stop(guest, why)

    def _console(self, guest: LiveGuest) -> None:
        if guest.ended is None:
            data = self._receive(guest, guest.emulator.console)
            if data:
                self._say(guest, data)

    def watch(self, file: int, action: Callable[[], None]) -> None:
        """Call ``action`` whenever there is something to read from ``file``."""
        # An ordinary file is always readable, and epoll refuses it: it is read in a row.
        try:
            self._selector.register(file, selectors.EVENT_READ, action)
        except PermissionError:
            action()

    def unwatch(self, file: int) -> None:
        """No longer."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(file)

    def _say(self, guest: LiveGuest, data: bytes) -> None:
        if self.raw is not None:
            self.raw(guest, data)
        for line in guest.console.take(data):
            if self.lines is not None:
                self.lines(guest, line)

    def _drain(self, guest: LiveGuest) -> None:
        """Replies of the interrupt line: each command is answered with OK."""
        if guest.ended is None:
            self._receive(guest, guest.emulator.interrupts)

    def _bell(self, guest: LiveGuest) -> None:
        if guest.ended is None and self._receive(guest, guest.emulator.bell):
            self._look(guest)

    # --- calls ------------------------------------------------------------------------------------------

    def _look(self, guest: LiveGuest) -> None:
        for index, box in enumerate(guest.mailboxes):
            state = box.state
            if state == REQUEST:
                self._serve(guest, index, box)
                if guest.ended is not None:
                    return
            elif state == FAULT:
                self.stop(guest, "the stub took an unexpected exception")
                return

    def _serve(self, guest: LiveGuest, index: int, box: Mailbox) -> None:
        began = time.perf_counter_ns()
        syndrome, regs = box.call()
        kind = syndrome >> 26 & 0x3F
        if kind not in (CLASS_SMC64, CLASS_HVC64):
            self.stop(guest, f"vCPU {index} trapped with syndrome {syndrome:#x}")
            return
        if self.before is not None and self.before(guest):
            self.stop(guest, "killed")
            return
        platform = self.platform
        answer = platform.serve(guest.ident, index, regs, kind == CLASS_HVC64, syndrome & 0xFFFF)
        if isinstance(answer, Forward):
            guest.forwarded += 1
            if guest.power is None:
                self._forward(guest, regs, box)
            else:
                self._power(guest, guest.power, index, regs, box)
            return
        guest.served += 1
        if self.times is not None:
            self.times.append(time.perf_counter_ns() - began)
        if isinstance(answer, UndefinedCall):
            box.undefined()
            self._wake(guest, box)
            return
        monitor = platform.monitor
        debt = rest = monitor.debt
        if platform.rests:
            until = platform.rests.pop((guest.ident, index), 0)
            rest += max(0, until - monitor.now())
        if rest < SOON:
            box.answer(answer)
            self._wake(guest, box)
            self.polling.served()
        else:
            self._pause(guest, index, answer, debt, rest)

    def _pause(
        self, guest: LiveGuest, index: int, answer: tuple[int, ...], debt: int, rest: int
    ) -> None:
        """The secure world works for ``debt`` ns: nobody sees the answer before that is over.

        The vCPU rests for ``rest`` ns in all, unless it is woken.
        """
        # The state stays REQUEST for the vCPU; for us the call is taken.
        box = guest.mailboxes[index]
        guest.mailboxes[index] = _Taken(box)
        pause = _Pause(guest, index, box, answer, time.monotonic_ns() + debt)
        self._pauses[guest.ident, index] = pause
        self.after(rest, partial(self._resume, pause))

    def _resume(self, pause: _Pause) -> None:
        """A pause is over, or would have been if the vCPU had not been woken."""
        guest = pause.guest
        place = guest.ident, pause.index
        if self._pauses.get(place) is pause:
            del self._pauses[place]
            if guest.ended is None:
                guest.mailboxes[pause.index] = pause.box
                pause.box.answer(pause.answer)
                self._wake(guest, pause.box)

    def _end_rest(self, ident: int, index: int) -> None:
        """End the rest of a vCPU, but not the work of its call."""
        pause = self._pauses.get((ident, index))
        if pause is not None:
            self.after(max(0, pause.busy_until - time.monotonic_ns()), partial(self._resume, pause))

    def interrupt(self, guest: LiveGuest, intid: int) -> None:
        """Raise an interrupt in a guest that runs; its resting vCPUs get up for it."""
        if guest.ended is None:
            guest.raise_interrupt(intid)
            for ident, index in list(self._pauses):
                if ident == guest.ident:
                    self._end_rest(ident, index)

    def _forward(self, guest: LiveGuest, regs: tuple[int, ...], box: Mailbox) -> None:
        function = regs[0] & 0xFFFF_FFFF
        if function in _CPU_ON:
            target = regs[1] & 0xFF
            if target < len(guest.mailboxes) and target == regs[1]:
                guest.mailboxes[target].start_at(regs[2], regs[3])
            box.forward((2, 0), (3, 0))
        else:
            box.forward()
        self._wake(guest, box)

    def _power(
        self, guest: LiveGuest, power: Power, index: int, regs: tuple[int, ...], box: Mailbox
    ) -> None:
        """PSCI that the emulator does not have."""
        answer = power.call(index, regs)
        if answer is PsciAction.SYSTEM_OFF:
            self.stop(guest, SWITCHED_OFF)
        elif answer is PsciAction.SYSTEM_RESET:
            self.stop(guest, "reset")
        elif not isinstance(answer, PsciAction):
            box.answer(answer)

    def _wake(self, guest: LiveGuest, box: Mailbox) -> None:
        if guest.board.bell != SEMIHOSTING:
            return  # it looks all the time
        guest.ring()
        if len(guest.mailboxes) > 1:
            self.after(RING_AGAIN, partial(self._ring_again, guest, box))

    def _ring_again(self, guest: LiveGuest, box: Mailbox) -> None:
        if guest.ended is None and box.state in (ANSWER, FORWARD, UNDEFINED):
            guest.rung_again += 1
            guest.ring()
            self.after(RING_AGAIN, partial(self._ring_again, guest, box))


class _Pause:
    """An answer that is due later."""

    __slots__ = ("answer", "box", "busy_until", "guest", "index")

    def __init__(
        self,
        guest: LiveGuest,
        index: int,
        box: Mailbox,
        answer: tuple[int, ...],
        busy_until: int,
    ) -> None:
        self.guest = guest
        self.index = index
        self.box = box
        self.answer = answer
        self.busy_until = busy_until
        """By the system's monotonic clock: the secure world works for so long."""


class _Taken(Mailbox):
    """Stands for the mailbox of a vCPU whose answer is not due yet: there is nothing to look at."""

    __slots__ = ()

    def __init__(self, box: Mailbox) -> None:
        self._page = box._page
        self.words = box.words

    @property
    def state(self) -> int:
        return ANSWER


def our_processes() -> list[int]:
    """Emulators that this process started and that still exist."""
    children = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    try:
        with open(children, encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []
