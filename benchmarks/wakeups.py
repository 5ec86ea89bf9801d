# SPDX-License-Identifier: BSD-2-Clause
"""What one wake-up costs with 10 and with 10,000 threads of the TEE waiting for the same lock.

Four guests, whose calls take turns in the queue of a lock that all partitions share, so that every
release happens in another partition than the one that waits. One wake-up is: the guest of the holder
answers the RPC in which it sleeps, the holder unlocks and ends, the TEE raises its interrupt, the
mediator finds out for whom, and the next waiter has the lock. *notified*: its guest gets a virtual
interrupt, asks for the value, and answers the thread's WAIT. *kept*: its guest has not enabled
notifications; the mediator wakes the vCPU, which comes back to the wait that the mediator kept.

The one that had the lock queues up again, which is not counted, so the number of waiters stays. Both
sizes are there all the time and take turns, wake-up by wake-up. A figure is the median of all.

    python benchmarks/wakeups.py [--json] [--rounds N]

Exit code 1 if a ratio is above its target times 1.15.
"""

from __future__ import annotations

import gc
import statistics
import struct
import sys
import time

from benchmarks._report import Report, gate, gate_lines, passed, run, time_lines
from mediator.deployment.face import Completed, Done
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import PAGE_SIZE
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from secure_world.apps.basic import Locker
from secure_world.monitor import NullMonitor
from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.wire import MESSAGE

ROUNDS = 400
"""Wake-ups of each size and kind."""
WARM_UP = 24
"""First wake-ups, not counted: those of the small queue have all been holders then."""
SIZES = (10, 10_000)
TARGET = 1.2
GUESTS = 4
RAM = 0x4000_0000
KEY_BASE = 0x40
"""OP-TEE's notification value of its thread 0."""
CALL, RETURN = smc.OPTEE_SMC_CALL_WITH_RPC_ARG, smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
CMD, INTR = smc.OPTEE_SMC_RETURN_RPC_CMD, smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
VALUE = smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE
META = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
RPC_AT = 64
"""The RPC argument lies behind a message of one parameter."""
RET_AT = RPC_AT + 20
SUCCESS = bytes(4)

Place = tuple[int, int]
"""Guest, and number of the call in it: its page, and its vCPU."""


class Interrupts(NullMonitor):
    """Notes that the TEE raised its interrupt."""

    def __init__(self) -> None:
        super().__init__()
        self.raised = False

    def raise_notification(self) -> None:
        """The notification interrupt."""
        self.raised = True


class Queue:
    """``waiters`` calls that wait for the lock, and one that has it."""

    def __init__(self, waiters: int, *, kept: bool) -> None:
        self.kept = kept
        each = -(-(waiters + 1) // GUESTS) + 1
        self.memory = PhysicalMemory((each + 512) * GUESTS * 3)
        self.monitor = Interrupts()
        settings = SecureWorldSettings(threads=each, guests=GUESTS)
        self.world = SecureWorld(SecureBus(self.memory), settings, self.monitor)
        self.woken: list[Place] = []
        self.interrupted: list[int] = []
        self.host = ReferenceHost(
            self.memory,
            secure_smc=self.world.smc,
            now=self.monitor.now,
            inject_virq=lambda guest, intid: self.interrupted.append(guest),
            wake_vcpu=lambda guest, vcpu: self.woken.append((guest, vcpu)),
        )
        self.tee = InHypervisor(self.host)
        assert self.tee.probe().found
        self.threads: dict[Place, int] = {}
        self.places: dict[tuple[int, int], Place] = {}
        self.sessions: dict[Place, int] = {}
        for guest in range(GUESTS):
            self._guest(guest, each + 1)
        turns = [(number % GUESTS, number // GUESTS) for number in range(waiters + 1)]
        if not waiters % GUESTS:
            # The last and the first are neighbours in the long run: not both of one guest.
            turns[-1] = (1, waiters // GUESTS)
        self.holder = turns[0]
        for place in turns:
            # A session serves one call at a time.
            self.sessions[place] = self._session(place)
        for place in turns:
            self.begin(place)
        assert self.holder == turns[0]
        assert len(self.tee.waits()) == waiters
        assert len(self.world.lock_waits()) == waiters

    def _smc(self, guest: int, vcpu: int, *regs: int) -> tuple[int, ...]:
        out = self.tee.handle(guest, vcpu, regs + (0,) * (8 - len(regs)))
        assert isinstance(out, Completed)
        return out.regs

    def _guest(self, guest: int, pages: int) -> None:
        """A guest that knows of notifications, and has enabled them or not."""
        self.host.add_guest(guest)
        assert self.host.populate(guest, RAM, pages)
        assert self.tee.create_guest(guest) == Done()
        assert self._smc(guest, 0, smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == 0
        if not self.kept:
            assert self._smc(guest, 0, smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)[0] == 0

    def _session(self, place: Place) -> int:
        guest, number = place
        a, b = struct.unpack("<2Q", Locker.uuid.bytes)
        page = RAM + number * PAGE_SIZE
        body = MESSAGE[2].pack(0, 0, 0, 0, 0, 0, 0, 2, META, a, b, 0, META, 0, 0, 0)
        self.host.guest_write(guest, page, body)
        assert self._smc(guest, 0, CALL, page >> 32, page & 0xFFFF_FFFF)[0] == 0
        fields = struct.unpack("<8I", self.host.guest_read(guest, page, 32))
        assert fields[5] == 0
        session: int = fields[2]
        return session

    def begin(self, place: Place) -> None:
        """A call that wants the lock."""
        guest, number = place
        page = RAM + number * PAGE_SIZE
        body = MESSAGE[1].pack(
            msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
            Locker.HOLD_SHARED_ASLEEP,
            self.sessions[place],
            0,
            0,
            0,
            0,
            1,
            msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,
            1,
            0,
            0,
        )
        self.host.guest_write(guest, page, body)
        out = self._smc(guest, number, CALL, page >> 32, page & 0xFFFF_FFFF)
        assert out[0] == (INTR if self.kept and place != self.holder else CMD), hex(out[0])
        self.threads[place] = out[3]
        self.places[guest, out[3]] = place

    def _answer(self, place: Place) -> tuple[int, ...]:
        """The guest has done what the thread's RPC asked."""
        guest, number = place
        self.host.guest_write(guest, RAM + number * PAGE_SIZE + RET_AT, SUCCESS)
        return self._smc(guest, number, RETURN, 0, 0, self.threads[place])

    def wake(self) -> int:
        """One wake-up; its nanoseconds."""
        before = self.holder
        began = time.thread_time_ns()
        assert self._answer(before)[0] == 0
        assert self.monitor.raised
        self.monitor.raised = False
        assert self.tee.notification_interrupt() == Done()
        if self.kept:
            place = self.woken.pop()
            guest, number = place
            out = self._smc(guest, number, RETURN, 0, 0, self.threads[place])
        else:
            guest = self.interrupted.pop()
            value = self._smc(guest, 0, VALUE)
            place = self.places[guest, value[1] - KEY_BASE]
            out = self._answer(place)
        assert out[0] == CMD
        taken = time.thread_time_ns() - began
        self.holder = place
        assert place[0] != before[0]
        self.begin(before)
        assert not self.woken
        assert not self.interrupted
        assert not self.monitor.raised
        return taken

    def asked(self) -> int:
        """The RPC command that the guest of the holder has in its page now."""
        guest, number = self.holder
        page = RAM + number * PAGE_SIZE + RPC_AT
        command: int = struct.unpack("<I", self.host.guest_read(guest, page, 4))[0]
        return command


def measure(rounds: int) -> Report:
    """Medians over interleaved wake-ups."""
    gates = []
    rows: dict[str, float] = {}
    for name, kept in (("notified", False), ("kept", True)):
        queues = [Queue(size, kept=kept) for size in SIZES]
        times: list[list[int]] = [[] for _ in SIZES]
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            for number in range(WARM_UP + rounds):
                for queue, found in zip(queues, times, strict=True):
                    taken = queue.wake()
                    if number >= WARM_UP:
                        found.append(taken)
        finally:
            gc.enable()
            gc.unfreeze()
        assert all(queue.asked() == rpc.OPTEE_RPC_CMD_SUSPEND for queue in queues)
        medians = [statistics.median(found) for found in times]
        for size, median in zip(SIZES, medians, strict=True):
            rows[f"{name}, {size:,} waiters"] = round(median / 1e3, 2)
        ratio = medians[1] / medians[0]
        gates.append(gate(f"{name}: {SIZES[1]:,} waiters to {SIZES[0]}", ratio, TARGET))
    return {
        "benchmark": "wakeups",
        "rounds": rounds,
        "guests": GUESTS,
        "microseconds": rows,
        "gates": gates,
        "passed": passed(gates),
    }


def table(found: Report) -> str:
    """The report for people."""
    lines = [f"one wake-up, {GUESTS} guests, median of {found['rounds']}", ""]
    lines += time_lines(found["microseconds"])
    return "\n".join([*lines, "", *gate_lines(found["gates"], "gate")])


def main() -> int:
    """Measure, print, and say whether the targets hold."""
    return run(__doc__, lambda options: measure(options.rounds), table, rounds=ROUNDS)


if __name__ == "__main__":
    sys.exit(main())
