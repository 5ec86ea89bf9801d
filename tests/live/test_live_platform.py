# SPDX-License-Identifier: BSD-2-Clause
"""The live platform without an emulator: its guests are buffers, their calls are made here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from mediator.live.mailbox import KERNEL_RAM, RAM_BASE
from mediator.live.monitor import LiveMonitor
from mediator.live.platform import FIRST_PA, FORWARD, SPAN, UNDEFINED, LivePlatform
from mediator.live.result import Check, parse_check
from mediator.live.trace import LiveTrace
from mediator.scenario.perfetto import FIRST_GUEST
from secure_world.apps.basic import Clock
from secure_world.apps.rng import RandomNumbers
from smccc.constants import arm_smccc, optee_msg, psci, tee
from smccc.constants import optee_smc as smc
from smccc.message import Message, Param, parse_message, uuid_to_value

SIZE = 4 << 20
MESSAGE = KERNEL_RAM + 0x1000


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

    def open(self, uuid: object) -> int:
        meta = optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT | optee_msg.OPTEE_MSG_ATTR_META
        params = (Param(meta, *uuid_to_value(uuid)), Param(meta))  # type: ignore[arg-type]
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


def test_the_clock_is_real_and_charges_are_debts() -> None:
    time = [1000]
    monitor = LiveMonitor(lambda: time[0], tick=100)
    monitor.begin()
    assert (monitor.now(), monitor.debt) == (0, 0)
    monitor.charge(60)
    assert (monitor.now(), monitor.foreign_interrupt_pending()) == (60, False)
    time[0] += 40
    assert (monitor.now(), monitor.foreign_interrupt_pending()) == (100, True)
    monitor.begin()
    assert (monitor.now(), monitor.foreign_interrupt_pending()) == (40, False)


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
