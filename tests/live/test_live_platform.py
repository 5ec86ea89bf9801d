# SPDX-License-Identifier: BSD-2-Clause
"""The live platform without an emulator: its guests are buffers, their calls are made here."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from uuid import UUID

import pytest

from mediator.live.image import NOTIFICATION_INTID
from mediator.live.mailbox import KERNEL_RAM, RAM_BASE
from mediator.live.monitor import LiveMonitor
from mediator.live.platform import FIRST_PA, FORWARD, SPAN, UNDEFINED, LivePlatform
from mediator.live.result import Check, parse_check
from mediator.live.trace import LiveTrace
from mediator.optee.notify import LONGEST_REST
from mediator.scenario.perfetto import FIRST_GUEST
from secure_world.apps.basic import Clock, Locker
from secure_world.apps.rng import RandomNumbers
from secure_world.ta import Params, TaEnvironment, TrustedApplication
from smccc.constants import arm_smccc, optee_msg, psci, tee
from smccc.constants import optee_smc as smc
from smccc.message import Message, Param, parse_message, uuid_to_value

SIZE = 4 << 20
MESSAGE = KERNEL_RAM + 0x1000


def unhurried(platform: LivePlatform) -> LivePlatform:
    """No call is so long that it leaves for a tick, however busy this machine is."""
    platform.monitor.tick = sys.maxsize
    return platform


class Buffer:
    """A guest that is nothing but RAM."""

    def __init__(self, platform: LivePlatform, name: str = "guest") -> None:
        self.platform = platform
        self.ram = memoryview(bytearray(SIZE))
        self.ident = platform.add_guest(name, self.ram)

    def call(self, *regs: int, hvc: bool = False) -> tuple[int, ...]:
        frame = (*regs, *[0] * (8 - len(regs)))
        answer = self.platform.serve(self.ident, 0, frame, hvc, 0)
        assert isinstance(answer, tuple)
        return answer

    def send(self, message: Message) -> Message:
        at = MESSAGE - RAM_BASE
        data = message.build()
        self.ram[at : at + len(data)] = data
        answer = self.call(smc.OPTEE_SMC_CALL_WITH_ARG, MESSAGE >> 32, MESSAGE & 0xFFFFFFFF)
        self.interrupted = 0
        while answer[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
            self.interrupted += 1
            answer = self.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, answer[3])
        assert answer[0] == smc.OPTEE_SMC_RETURN_OK
        return parse_message(self.ram[at : at + 4096].tobytes())

    def leave_in(self, message: Message) -> int:
        """Send a message; the status with which its thread leaves."""
        at = MESSAGE - RAM_BASE
        data = message.build()
        self.ram[at : at + len(data)] = data
        self.left = self.call(smc.OPTEE_SMC_CALL_WITH_ARG, MESSAGE >> 32, MESSAGE & 0xFFFFFFFF)
        return self.left[0]

    def go_on(self, *values: int) -> int:
        """Come back to the thread that left; the status with which it leaves or ends."""
        _, a1, a2, thread = self.left[:4]
        a1, a2, a4, a5 = values or (a1, a2, 0, 0)
        self.left = self.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, a1, a2, thread, a4, a5)
        return self.left[0]

    def allocated(self) -> int:
        """Give it the page behind the message for its requests."""
        return self.go_on(0, MESSAGE + 0x1000, 0, 0x77)

    def open(self, uuid: UUID) -> int:
        meta = optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT | optee_msg.OPTEE_MSG_ATTR_META
        params = (Param(meta, *uuid_to_value(uuid)), Param(meta))
        answer = self.send(Message(optee_msg.OPTEE_MSG_CMD_OPEN_SESSION, params=params))
        assert answer.ret == 0
        return answer.session


def test_a_guest_is_served_from_its_own_ram() -> None:
    platform = LivePlatform()
    first, second = Buffer(platform), Buffer(platform)
    sessions = [guest.open(RandomNumbers.uuid) for guest in (first, second)]
    value = Param(optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT)
    for guest, session in zip((first, second), sessions, strict=True):
        answer = guest.send(
            Message(optee_msg.OPTEE_MSG_CMD_INVOKE_COMMAND, 1, session, params=(value,))
        )
        assert (answer.ret, answer.params[0].b) == (tee.TEE_SUCCESS, 1024)
    platform.remove_guest(first.ident)
    platform.remove_guest(second.ident)
    assert platform.watch is not None
    platform.watch.check()
    assert platform.watch.events > 10


def test_equal_addresses_of_two_guests_are_different_memory() -> None:
    platform = LivePlatform()
    guests = [Buffer(platform), Buffer(platform)]
    for guest in guests:
        guest.ram[MESSAGE - RAM_BASE] = 0x10 + guest.ident
        read = platform.host.read_guest(guest.ident, MESSAGE, 1)
        assert read == bytes([0x10 + guest.ident])
        pa = FIRST_PA + (guest.ident + 1) * SPAN + MESSAGE - RAM_BASE
        assert platform.memory.read(pa, 1) == read
    assert not platform.memory.is_ram(MESSAGE)


def test_mailboxes_are_no_memory_of_the_guest() -> None:
    platform = LivePlatform()
    guest = Buffer(platform)
    assert platform.host.read_guest(guest.ident, KERNEL_RAM - 8, 8) is None
    assert platform.host.read_guest(guest.ident, RAM_BASE + SIZE - 8, 8) == bytes(8)
    assert platform.host.read_guest(guest.ident, RAM_BASE + SIZE, 8) is None


def test_ram_of_an_ended_guest_is_let_go() -> None:
    platform = LivePlatform()
    guest = Buffer(platform)
    guest.ram[MESSAGE - RAM_BASE] = 1
    platform.remove_guest(guest.ident)
    assert guest.ram[MESSAGE - RAM_BASE] == 1
    assert platform.memory.read(FIRST_PA + SPAN + MESSAGE - RAM_BASE, 1) == b"\0"
    assert Buffer(platform, "next").ident == guest.ident + 1


def test_who_answers() -> None:
    platform = LivePlatform()
    guest = Buffer(platform)
    forwarded = (psci.PSCI_VERSION, 0, 0, 0, 0, 0, 0, 0)
    assert platform.serve(guest.ident, 0, forwarded, False, 0) is FORWARD
    assert guest.call(smc.OPTEE_SMC_CALLS_UID)[0] == optee_msg.OPTEE_MSG_UID_0
    assert guest.call(smc.OPTEE_SMC_CALLS_UID, hvc=True)[0] == optee_msg.OPTEE_MSG_UID_0
    assert guest.call(arm_smccc.ARM_SMCCC_VERSION_FUNC_ID)[0] >= 0x10001
    nobody = (1 << 64) - 1
    assert guest.call(0xC200_0000)[0] == nobody
    uid = (smc.OPTEE_SMC_CALLS_UID, *[0] * 7)
    for hvc in (False, True):
        assert platform.serve(guest.ident, 0, uid, hvc, 1) is UNDEFINED


def test_long_work_lets_the_guest_tick() -> None:
    """50 ms of charged work: one foreign interrupt for each tick, each answer as late as it is long."""
    platform = LivePlatform()
    guest = Buffer(platform)
    session = guest.open(Clock.uuid)
    work = Param(optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 50, 1_000_000)
    answer = guest.send(
        Message(optee_msg.OPTEE_MSG_CMD_INVOKE_COMMAND, Clock.WORK, session, params=(work,))
    )
    assert answer.ret == 0
    assert 10 <= guest.interrupted <= 20


def test_a_value_interrupts_only_the_guest_that_listens_and_never_inside_a_call() -> None:
    """The secure world may raise its interrupt in a call: the mediator is entered after it."""
    injected: list[tuple[int, int]] = []

    def inject(guest: int, intid: int) -> None:
        assert not inside
        injected.append((guest, intid))

    inside = False
    platform = LivePlatform(inject=inject)
    first, second = Buffer(platform), Buffer(platform)
    world = platform.secure_world
    assert not world.notify(first.ident + 1, 3)
    assert first.call(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)[0] == 0
    assert world.notify(first.ident + 1, 3)
    assert injected == [(first.ident, NOTIFICATION_INTID)]

    class Ringer(TrustedApplication):
        uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be077")
        name = "ringer"
        pseudo = True

        async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
            nonlocal inside
            inside = True
            for value in (5, 0):
                world.notify(env.client_id, value)
            inside = False
            return tee.TEE_SUCCESS

    platform.registry.register(Ringer)
    for guest in (first, second):
        guest.send(Message(optee_msg.OPTEE_MSG_CMD_INVOKE_COMMAND, 0, guest.open(Ringer.uuid)))
    assert injected == [(first.ident, NOTIFICATION_INTID)] * 2
    got = [first.call(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)[1:3] for _ in range(4)]
    valid, pending = smc.OPTEE_SMC_ASYNC_NOTIF_VALID, smc.OPTEE_SMC_ASYNC_NOTIF_PENDING
    assert got == [(0, valid | pending), (3, valid | pending), (5, valid), (0, 0)]
    platform.lost = lambda: True
    assert world.notify(first.ident + 1, 7)
    assert len(injected) == 2


def test_an_interrupt_of_the_tee_at_the_end_of_a_guest() -> None:
    """A guest dies that holds a lock of the whole TEE: the next one is told at once."""
    injected: list[int] = []
    platform = unhurried(LivePlatform(inject=lambda guest, _intid: injected.append(guest)))
    first, second = Buffer(platform), Buffer(platform)
    for guest in (first, second):
        guest.call(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)
    hold = Param(optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 100)
    for guest in (first, second):
        session = guest.open(Locker.uuid)
        command = Message(
            optee_msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
            Locker.HOLD_SHARED_ASLEEP,
            session,
            params=(hold,),
        )
        assert guest.leave_in(command) == smc.OPTEE_SMC_RETURN_RPC_ALLOC
        assert guest.allocated() == smc.OPTEE_SMC_RETURN_RPC_CMD
    assert injected == []
    platform.remove_guest(first.ident)
    assert injected == [second.ident]


def test_a_wait_that_the_mediator_keeps_lets_its_vcpu_rest() -> None:
    """It rests for ever longer, until the other guest's release wakes it."""
    platform = unhurried(LivePlatform())
    woken: list[tuple[int, int]] = []
    platform.wake = lambda guest, vcpu: woken.append((guest, vcpu))
    first, second = Buffer(platform), Buffer(platform)
    hold = Param(optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 100)
    statuses = []
    for guest in (first, second):
        guest.call(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)
        session = guest.open(Locker.uuid)
        command = Message(
            optee_msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
            Locker.HOLD_SHARED_ASLEEP,
            session,
            params=(hold,),
        )
        guest.leave_in(command)
        statuses.append(guest.allocated())
    assert statuses == [smc.OPTEE_SMC_RETURN_RPC_CMD, smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR]
    place = second.ident, 0
    rests: list[int] = []
    for _ in range(4):
        rests.append(platform.rests.pop(place) - platform.monitor.now())
        assert second.go_on() == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
    assert max(rests) <= LONGEST_REST
    assert platform.rests.pop(place) - platform.monitor.now() > rests[0]
    assert woken == []
    assert first.go_on() == smc.OPTEE_SMC_RETURN_RPC_FREE  # the lock is free, and then the page
    assert woken == [place]
    assert second.go_on() == smc.OPTEE_SMC_RETURN_RPC_CMD  # it has the lock, and sleeps
    assert platform.rests == {}


def test_time_never_goes_back() -> None:
    time = [1000]
    monitor = LiveMonitor(lambda: time[0])
    monitor.begin()
    monitor.charge(60)
    assert monitor.now() == 60
    monitor.begin()
    assert monitor.now() == 60
    time[0] += 61
    assert monitor.now() == 61


def test_the_clock_is_real_and_charges_are_debts() -> None:
    time = [1000]
    monitor = LiveMonitor(lambda: time[0], tick=100)
    monitor.begin()
    assert (monitor.now(), monitor.debt) == (0, 0)
    monitor.charge(60)
    assert (monitor.now(), monitor.foreign_interrupt_pending()) == (60, False)
    time[0] += 40
    assert (monitor.now(), monitor.foreign_interrupt_pending()) == (100, True)
    time[0] += 70
    monitor.begin()
    assert (monitor.now(), monitor.foreign_interrupt_pending()) == (110, False)


@pytest.mark.parametrize(
    ("line", "check"),
    [
        ("@@ probe ok 12 ", Check(name="probe", state="ok", microseconds=12, detail="")),
        ("@@ x fail 1 a b", Check(name="x", state="fail", microseconds=1, detail="a b")),
        ("@@ x maybe 1 a", None),
        ("@@ x ok soon a", None),
        ("[ 0.1] optee: hello", None),
    ],
)
def test_report_lines(line: str, check: Check | None) -> None:
    assert parse_check(line) == check


def test_a_trace_has_every_call_with_its_real_time(tmp_path: Path) -> None:
    """PSCI is the emulator's: its slice ends all the same, and later calls are not inside of it."""
    path = tmp_path / "trace.json"
    with LiveTrace(path, 1) as trace:
        platform = LivePlatform(sinks=[trace.sink])
        trace.begin(platform.monitor)
        guest = Buffer(platform)
        frame = (psci.PSCI_0_2_FN_PSCI_VERSION, *[0] * 7)
        assert platform.serve(guest.ident, 0, frame, False, 0) is FORWARD
        guest.call(smc.OPTEE_SMC_CALLS_UID)
        guest.call(smc.OPTEE_SMC_CALLS_UID)
        end = platform.monitor.now()
    events = json.loads(path.read_text("utf-8"))["traceEvents"]
    own = [e for e in events if e["ph"] == "X" and e["pid"] == FIRST_GUEST]
    assert [e["name"] for e in own][1:] == ["CALLS_UID", "CALLS_UID"]
    for before, after in itertools.pairwise(own):
        assert before["ts"] + before["dur"] <= after["ts"]
    assert 0 < own[0]["ts"] < own[-1]["ts"] + own[-1]["dur"] < end / 1000
