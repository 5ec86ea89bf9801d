# SPDX-License-Identifier: BSD-2-Clause
"""I5 guests are strangers, I7 progress, I8 no lost wake-up: who is entered, and who comes back."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

from mediator.checkers.verdict import Event, Handler, Report
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from secure_world import events as tee_events
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc

STEPS_PER_TRAP: Final = 2048
"""System calls that one trap may take. The longest legal trap is a 1 GiB registration without
preemption, walked in 9 steps; a request refused 16 times takes 3 each. Far above both."""

LIFE_CYCLE: Final = frozenset((smc.OPTEE_SMC_VM_CREATED, smc.OPTEE_SMC_VM_DESTROYED))

MAX_LINE: Final = 1 << 20
"""Waits and sends remembered per guest at most; a guest cannot make the checker grow for ever."""


class Strangers:
    """I5: the TEE is entered under the guest's own client id, and a thread stays in its guest."""

    def __init__(self, client_of: Callable[[int], int], report: Report) -> None:
        self._client_of = client_of
        self._report = report
        self._suspended: set[tuple[int, int]] = set()

    def handlers(self) -> Mapping[type, Handler]:
        """Entries into the TEE, RPCs on their way to a guest, and the TEE's own view of threads."""
        return {
            events.Forwarded: self._forwarded,
            events.RpcToGuest: self._rpc,
            tee_events.ThreadSuspended: self._suspend,
            tee_events.ThreadResumed: self._resume,
        }

    def _forwarded(self, event: Event) -> None:
        guest, _, _, regs = cast("events.Forwarded", event)
        expected = 0 if guest == events.NO_GUEST else self._client_of(guest)
        if regs[7] != expected:
            self._report("I5", guest, f"forwarded under client id {regs[7]}, not {expected}")
        if guest != events.NO_GUEST and regs[0] in LIFE_CYCLE:
            self._report("I5", guest, f"a guest reached life-cycle function {regs[0]:#x}")

    def _suspend(self, event: Event) -> None:
        client, thread, _, _ = cast("tee_events.ThreadSuspended", event)
        self._suspended.add((client, thread))

    def _resume(self, event: Event) -> None:
        client, thread = cast("tee_events.ThreadResumed", event)
        self._suspended.discard((client, thread))

    def _rpc(self, event: Event) -> None:
        guest, _, thread, _, _ = cast("events.RpcToGuest", event)
        if self._suspended and (self._client_of(guest), thread) not in self._suspended:
            self._report("I5", guest, f"gets an RPC of thread {thread}, which is not its own")

    def finish(self, report: Report) -> None:
        """Nothing is left to see."""


class Progress:
    """I7: every trap returns, after a bounded number of steps."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._steps: dict[tuple[int, int], int] = {}
        self._guests: dict[int, int] = {}

    def handlers(self) -> Mapping[type, Handler]:
        """Traps, and everything that the mediator does inside one."""
        step = self._step
        return {
            machine_events.TrapEnter: self._enter,
            machine_events.TrapExit: self._exit,
            machine_events.TrapUndefined: self._exit,
            machine_events.PsciCall: self._exit,
            machine_events.GuestDying: self._dying,
            host_events.GuestRead: step,
            host_events.GuestWritten: step,
            host_events.PageListRead: step,
            host_events.PinnedRead: step,
            host_events.PinnedWritten: step,
            host_events.PagesPinned: step,
            host_events.PagesUnpinned: step,
            events.Forwarded: step,
        }

    def _enter(self, event: Event) -> None:
        key = cast("tuple[int, int]", event[:2])
        self._steps[key] = 0
        self._guests[key[0]] = self._guests.get(key[0], 0)

    def _exit(self, event: Event) -> None:
        self._steps.pop(cast("tuple[int, int]", event[:2]), None)
        guest = cast("int", event[0])
        if not any(key[0] == guest for key in self._steps):
            self._guests[guest] = 0

    def _step(self, event: Event) -> None:
        guest = cast("int", event[0])
        steps = self._guests.get(guest)
        if steps is None:
            return
        self._guests[guest] = steps + 1
        if steps == STEPS_PER_TRAP:
            self._report("I7", guest, f"more than {STEPS_PER_TRAP} system calls in one trap")

    def _dying(self, event: Event) -> None:
        guest = cast("int", event[0])
        self._guests.pop(guest, None)
        for key in [key for key in self._steps if key[0] == guest]:
            del self._steps[key]

    def finish(self, report: Report) -> None:
        """At rest no trap is open."""
        for guest, vcpu in self._steps:
            report("I7", guest, f"a trap of vCPU {vcpu} never returned")


class WakeUps:
    """I8: whoever waits for something that has happened runs again.

    Two kinds of waiting: a vCPU in WFI with an interrupt that it would take, and a TEE thread in
    an RPC NOTIFICATION wait whose key was sent, by RPC or as a notification value. A send before
    its wait counts for it. The mediator may keep the wait (and the send) for the guest. Nobody waits
    in a guest that is not ``alive``: all of its vCPUs are off, and its calls are left behind.
    """

    def __init__(
        self,
        asleep: Callable[[], Iterable[tuple[int, int]]],
        report: Report,
        alive: Callable[[int], bool] = lambda _: True,
        guest_of: Callable[[int], int] = lambda client: client - 1,
    ) -> None:
        self._asleep = asleep
        self._guest_of = guest_of
        self._alive = alive
        self._report = report
        self._written: dict[int, tuple[int, int]] = {}
        self._sent: Counter[tuple[int, int]] = Counter()
        self._waiting: dict[tuple[int, int], tuple[int, bool]] = {}
        self._held: set[tuple[int, int]] = set()

    def handlers(self) -> Mapping[type, Handler]:
        """Requests as the guest sees them, and its answers."""
        return {
            host_events.GuestWritten: self._wrote,
            host_events.PinnedWritten: self._wrote,
            events.RpcToGuest: self._rpc,
            events.RpcAnswered: self._answered,
            events.WaitBegan: self._began,
            events.WaitEnded: self._ended,
            events.SendKept: self._kept,
            tee_events.NotificationRaised: self._raised,
            events.GuestTornDown: self._gone,
        }

    def _wrote(self, event: Event) -> None:
        for _, data in cast("tuple[tuple[int, bytes], ...]", event[2]):
            if len(data) >= 64:
                command, count = struct.unpack_from("<I", data)[0], data[28]
                attr, what, key = struct.unpack_from("<3Q", data, 32)
                if (
                    command == optee_rpc.OPTEE_RPC_CMD_NOTIFICATION
                    and count
                    and attr == msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
                ):
                    self._written[cast("int", event[0])] = (what, key)

    def _rpc(self, event: Event) -> None:
        guest, _, thread, _, command = cast("events.RpcToGuest", event)
        if command != optee_rpc.OPTEE_RPC_CMD_NOTIFICATION or guest not in self._written:
            return
        what, key = self._written.pop(guest)
        if what == optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT:
            self._waits(guest, thread, key)
        elif not self._wakes(guest, key) and len(self._sent) < MAX_LINE:
            self._sent[guest, key] += 1

    def _waits(self, guest: int, thread: int, key: int) -> None:
        due = self._sent[guest, key] > 0
        if due:
            self._sent[guest, key] -= 1
        self._waiting[guest, thread] = (key, due)

    def _wakes(self, guest: int, key: int) -> bool:
        for place, (wanted, due) in self._waiting.items():
            if place[0] == guest and wanted == key and not due:
                self._waiting[place] = (key, True)
                return True
        return False

    def _answered(self, event: Event) -> None:
        guest, _, thread, _ = cast("events.RpcAnswered", event)
        if (guest, thread) not in self._held:
            self._waiting.pop((guest, thread), None)

    def _began(self, event: Event) -> None:
        guest, _, thread, key, held = cast("events.WaitBegan", event)
        if held:
            self._held.add((guest, thread))
            self._waits(guest, thread, key)

    def _ended(self, event: Event) -> None:
        guest, _, thread, _ = cast("events.WaitEnded", event)
        if (guest, thread) in self._held:
            self._held.remove((guest, thread))
            del self._waiting[guest, thread]

    def _kept(self, event: Event) -> None:
        guest, key = cast("events.SendKept", event)
        self._once(guest, key)

    def _raised(self, event: Event) -> None:
        client, key = cast("tee_events.NotificationRaised", event)
        self._once(self._guest_of(client), key)

    def _once(self, guest: int, key: int) -> None:
        """A send into a bitmap: the second before its wait is none."""
        if not self._wakes(guest, key) and len(self._sent) < MAX_LINE:
            self._sent[guest, key] = 1

    def _gone(self, event: Event) -> None:
        guest = cast("events.GuestTornDown", event).guest
        self._written.pop(guest, None)
        for place in [place for place in self._waiting if place[0] == guest]:
            del self._waiting[place]
            self._held.discard(place)
        for sent in [sent for sent in self._sent if sent[0] == guest]:
            del self._sent[sent]

    def finish(self, report: Report) -> None:
        """At rest nobody may wait for what is there."""
        for (guest, thread), (key, due) in self._waiting.items():
            if due and self._alive(guest):
                report("I8", guest, f"TEE thread {thread} waits for key {key:#x}, which was sent")
        for guest, vcpu in self._asleep():
            report("I8", guest, f"vCPU {vcpu} sleeps although an interrupt is deliverable")
