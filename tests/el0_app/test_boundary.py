# SPDX-License-Identifier: BSD-2-Clause
"""Every argument of every system call is hostile: one wrong thing at a time, said by an app directly."""

from __future__ import annotations

import struct

import pytest

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER, SYSCALL
from mediator.deployment.el0_app import events
from mediator.deployment.el0_app.channel import AppGone, Message
from mediator.deployment.el0_app.deployment import ENOTAVAIL
from mediator.deployment.el0_app.grants import NO_GUEST, Open
from mediator.deployment.el0_app.manifest import within
from mediator.deployment.face import Completed, Done, Refused
from mediator.host import PAGE_SIZE
from mediator.optee.events import CallEnded
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_smc as smc
from tests.el0_app import devices
from tests.el0_app.device_rig import DeviceRig
from tests.el0_app.local import LocalApp
from tests.mediator.with_optee import GUEST, OTHER, RAM

UID = smc.OPTEE_SMC_CALLS_UID
M64 = (1 << 64) - 1
CLIENT = GUEST + 1
PAGE = RAM + 0x9000
STRANGER = 77
_ANSWER = struct.Struct("<q8Q")


class Boundary:
    """An app that says what a test wants. ``enter``: begins an entry for a guest."""

    def __init__(self) -> None:
        self.rig = DeviceRig()
        self.app = self.rig.app
        (self.instance,) = self.app._instances()
        self.server = self.instance.server
        self.entry = self.enter()

    def enter(self, guest: int = GUEST, number: int = abi.ENTRY_HANDLE_SMC) -> Open:
        grant = self.app._own if guest == NO_GUEST else self.app._grants[guest]
        self.entry = self.instance.begin(number, guest, grant)
        return self.entry

    def ask(
        self, call: int, *args: int, payload: bytes = b"", entry: Open | None = None
    ) -> tuple[int, tuple[int, ...], bytes]:
        """Status, results and payload of the RESULT."""
        entry = entry or self.entry
        words = tuple([arg & M64 for arg in args]) + (0,) * (8 - len(args))
        answer = self.server.execute(entry, Message(call, 0, entry.name, 0, words, payload))
        status, *results = _ANSWER.unpack_from(answer, 16)
        return status, tuple(results), answer[HEADER.size :]

    def status(self, call: int, *args: int, payload: bytes = b"") -> int:
        return self.ask(call, *args, payload=payload)[0]

    def pin(self, page: int = PAGE, guest: int = GUEST) -> bytes:
        status, _, frames = self.ask(
            Syscall.PIN_PAGES, guest, payload=page.to_bytes(8, "little"), entry=self.entry
        )
        assert status == abi.OK
        return frames


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def segments(*pairs: tuple[int, bytes]) -> bytes:
    return abi.pack_segments(pairs)


ONE = segments((0, b"x"))
BAD, NOT_ALLOWED, NOT_YOURS = abi.BAD_ARGUMENT, abi.NOT_ALLOWED, abi.NOT_YOURS

MEMORY = [
    (Syscall.READ_GUEST, (GUEST, RAM, 8), b"", abi.OK),
    (Syscall.READ_GUEST, (GUEST, RAM + 0xFF8, 8), b"", abi.OK),
    (Syscall.READ_GUEST, (GUEST, RAM + 0xFF9, 8), b"", BAD),
    (Syscall.READ_GUEST, (GUEST, RAM, 0), b"", BAD),
    (Syscall.READ_GUEST, (GUEST, RAM, PAGE_SIZE + 1), b"", BAD),
    (Syscall.READ_GUEST, (GUEST, RAM, M64), b"", BAD),
    (Syscall.READ_GUEST, (GUEST, 0, 8), b"", abi.NO),
    (Syscall.READ_GUEST, (OTHER, RAM, 8), b"", NOT_ALLOWED),
    (Syscall.READ_GUEST, (STRANGER, RAM, 8), b"", NOT_ALLOWED),
    (Syscall.READ_GUEST, (NO_GUEST, RAM, 8), b"", NOT_ALLOWED),
    (Syscall.WRITE_GUEST, (GUEST, RAM, 1), ONE, abi.OK),
    (Syscall.WRITE_GUEST, (GUEST, RAM, 0), b"", abi.OK),
    (Syscall.WRITE_GUEST, (GUEST, RAM + 8, 1), ONE, BAD),
    (Syscall.WRITE_GUEST, (GUEST, RAM, 2), ONE, BAD),
    (Syscall.WRITE_GUEST, (GUEST, RAM, 0), ONE, BAD),
    (Syscall.WRITE_GUEST, (GUEST, RAM, 513), ONE, BAD),
    (Syscall.WRITE_GUEST, (GUEST, RAM, M64), ONE, BAD),
    (Syscall.WRITE_GUEST, (GUEST, RAM, 1), segments((0xFFF, b"xy")), BAD),
    (Syscall.WRITE_GUEST, (GUEST, RAM, 1), segments((0x1001, b"")), BAD),
    (Syscall.WRITE_GUEST, (GUEST, RAM, 1), ONE + b"y", BAD),
    (Syscall.WRITE_GUEST, (GUEST, 0, 1), ONE, abi.NO),
    (Syscall.WRITE_GUEST, (OTHER, RAM, 1), ONE, NOT_ALLOWED),
    (Syscall.WRITE_RESULT, (OTHER, RAM, 1, 5), ONE, NOT_ALLOWED),
    (Syscall.WRITE_RESULT, (GUEST, RAM + 8, 1, 5), ONE, BAD),
    (Syscall.READ_PAGE_LIST, (GUEST, RAM, 1), b"", abi.OK),
    (Syscall.READ_PAGE_LIST, (GUEST, RAM, 0), b"", BAD),
    (Syscall.READ_PAGE_LIST, (GUEST, RAM, abi.MAX_PAGES + 1), b"", BAD),
    (Syscall.READ_PAGE_LIST, (GUEST, 0, 1), b"", abi.NO),
    (Syscall.READ_PAGE_LIST, (OTHER, RAM, 1), b"", NOT_ALLOWED),
]
PINS = [
    (Syscall.PIN_PAGES, (GUEST,), words(RAM, RAM), abi.OK),
    (Syscall.PIN_PAGES, (GUEST,), b"", BAD),
    (Syscall.PIN_PAGES, (GUEST,), bytes(9), BAD),
    (Syscall.PIN_PAGES, (GUEST,), words(RAM, 0), abi.NO),
    (Syscall.PIN_PAGES, (OTHER,), words(RAM), NOT_ALLOWED),
    (Syscall.UNPIN_PAGES, (GUEST,), b"", BAD),
    (Syscall.UNPIN_PAGES, (GUEST,), bytes(12), BAD),
    (Syscall.UNPIN_PAGES, (GUEST,), words(RAM), NOT_YOURS),
    (Syscall.UNPIN_PAGES, (OTHER,), words(RAM), NOT_ALLOWED),
    (Syscall.READ_AND_PIN, (GUEST, RAM, 1, 0), b"", BAD),
    (Syscall.READ_AND_PIN, (GUEST, RAM, 1, 510), b"", BAD),
    (Syscall.READ_AND_PIN, (GUEST, RAM, 0, 511), b"", BAD),
    (Syscall.READ_AND_PIN, (GUEST, RAM, abi.MAX_PAGES + 1, 511), b"", BAD),
    (Syscall.READ_AND_PIN, (GUEST, RAM, 1, 511), b"", abi.NO),
    (Syscall.READ_AND_PIN, (OTHER, RAM, 1, 511), b"", NOT_ALLOWED),
]
SHADOWS = [
    (Syscall.ALLOC_SHADOW, (1,), b"", abi.OK),
    (Syscall.ALLOC_SHADOW, (0,), b"", BAD),
    (Syscall.ALLOC_SHADOW, (8193,), b"", BAD),
    (Syscall.ALLOC_SHADOW, (M64,), b"", BAD),
    (Syscall.FREE_SHADOW, (), b"", NOT_YOURS),
    (Syscall.FREE_SHADOW, (), words(RAM), NOT_YOURS),
    (Syscall.MAP_SHADOW, (), words(RAM), NOT_YOURS),
    (Syscall.MAP_SHADOW, (), bytes(3), NOT_YOURS),
]
TEE = [
    (Syscall.SMC, (UID, 0, 0, 0, 0, 0, 0, CLIENT), b"", abi.OK),
    (Syscall.SMC, (UID, 0, 0, 0, 0, 0, 0, OTHER + 1), b"", NOT_ALLOWED),
    (Syscall.SMC, (UID, 0, 0, 0, 0, 0, 0, 0), b"", NOT_ALLOWED),
    (Syscall.SMC, (UID, 0, 0, 0, 0, 0, 0, CLIENT | 1 << 32), b"", NOT_ALLOWED),
    (Syscall.SMC, (0x8400_0000, 0, 0, 0, 0, 0, 0, CLIENT), b"", NOT_ALLOWED),
    (Syscall.SMC, (0x4000_0000, 0, 0, 0, 0, 0, 0, CLIENT), b"", NOT_ALLOWED),
    (Syscall.SMC, (smc.OPTEE_SMC_VM_DESTROYED, CLIENT, 0, 0, 0, 0, 0, 0), b"", NOT_ALLOWED),
    (Syscall.SMC, (smc.OPTEE_SMC_VM_DESTROYED, OTHER + 1, 0, 0, 0, 0, 0, CLIENT), b"", NOT_ALLOWED),
    (Syscall.SMC, (smc.OPTEE_SMC_VM_CREATED, 9, 0, 0, 0, 0, 0, CLIENT), b"", NOT_ALLOWED),
    (Syscall.SMC, (smc.OPTEE_SMC_GET_THREAD_COUNT, 0, 0, 0, 0, 0, 0, 0), b"", NOT_ALLOWED),
]
MACHINE = [
    (Syscall.LOG, (GUEST,), b"said", abi.OK),
    (Syscall.LOG, (M64,), b"said", abi.OK),
    (Syscall.LOG, (OTHER,), b"said", NOT_ALLOWED),
    (Syscall.INJECT_VIRQ, (GUEST, devices.MAX_VIRQ), b"", abi.OK),
    (Syscall.INJECT_VIRQ, (GUEST, devices.MAX_VIRQ + 1), b"", NOT_ALLOWED),
    (Syscall.INJECT_VIRQ, (GUEST, 1 << 24), b"", BAD),
    (Syscall.INJECT_VIRQ, (OTHER, 1), b"", NOT_ALLOWED),
    (Syscall.PARK_VCPU, (OTHER, 0, 1), b"", NOT_ALLOWED),
    (Syscall.PARK_VCPU, (GUEST, 1 << 16, 1), b"", BAD),
    (Syscall.WAKE_VCPU, (OTHER, 0), b"", NOT_ALLOWED),
    (Syscall.WAKE_VCPU, (GUEST, 1 << 16), b"", BAD),
    (Syscall.QUARANTINE, (GUEST, 1), b"", NOT_ALLOWED),
    (Syscall.QUARANTINE, (OTHER, 1), b"", NOT_ALLOWED),
    (Syscall.SET_TIMER, (5, 2), b"", BAD),
    (Syscall.SHOULD_PREEMPT, (), b"", abi.OK),
    (Syscall.NOW, (), b"", abi.OK),
    (Syscall.TRACE, (), b"", BAD),
    (Syscall.TRACE, (), b"[]", BAD),
    (Syscall.TRACE, (), b'["TrapEnter",1,2,3]', BAD),
    (Syscall.TRACE, (), b'["CallEnded",1,2,3]', BAD),
    (Syscall.TRACE, (), b'["CallEnded",1,2,3,{}]', BAD),
    (Syscall.TRACE, (), b"[" * 100_000, BAD),
    (max(Syscall) + 1, (), b"", abi.NO_SUCH_CALL),
    (0xFFFF, (), b"", abi.NO_SUCH_CALL),
]  # fmt: skip
CASES = [*MEMORY, *PINS, *SHADOWS, *TEE, *MACHINE]


@pytest.mark.parametrize(("call", "args", "payload", "status"), CASES)
def test_one_wrong_thing_at_a_time(
    call: int, args: tuple[int, ...], payload: bytes, status: int
) -> None:
    """The status says so, it is counted if it was a refusal, and nothing happened."""
    side = Boundary()
    before = side.rig.host.pins(GUEST), side.rig.get(RAM, 64), side.rig.get(RAM, 64, OTHER)
    found, _, _ = side.ask(call, *args, payload=payload)
    assert found == status
    refused = status < 0
    assert side.app.usage(GUEST).refused == refused
    assert side.app.usage(OTHER).refused == 0
    told = [event for event in side.rig.events if isinstance(event, events.AppRefused)]
    assert [(event.call, event.status) for event in told] == [(call, status)] * refused
    assert side.entry.failed is None
    if status:
        after = side.rig.host.pins(GUEST), side.rig.get(RAM, 64), side.rig.get(RAM, 64, OTHER)
        assert after == before
        assert (side.rig.virqs, side.rig.parked, side.rig.woken, side.rig.timers) == ([],) * 4


def test_a_traced_event_is_one_of_the_mediator_and_reaches_the_recorder() -> None:
    side = Boundary()
    assert side.status(Syscall.TRACE, payload=b'["CallEnded",1,2,3,4]') == abi.OK
    assert side.rig.events[-1] == CallEnded(1, 2, 3, 4)
    assert isinstance(side.rig.events[-1], CallEnded)


# --- pins -----------------------------------------------------------------------------------------


def test_only_what_was_pinned_for_this_guest_can_be_reached_or_released() -> None:
    side = Boundary()
    frames = side.pin()
    side.enter(OTHER)
    foreign = side.pin(PAGE, OTHER)
    side.enter(GUEST)
    pa, theirs = (int.from_bytes(frame, "little") for frame in (frames, foreign))
    for call in (Syscall.READ_PINNED, Syscall.WRITE_PINNED):
        payload = ONE if call is Syscall.WRITE_PINNED else b""
        assert side.status(call, GUEST, pa, 1, payload=payload) == abi.OK
        assert side.status(call, GUEST, theirs, 1, payload=payload) == NOT_YOURS
        assert side.status(call, GUEST, pa + PAGE_SIZE, 1, payload=payload) == NOT_YOURS
        assert side.status(call, OTHER, theirs, 1, payload=payload) == NOT_ALLOWED
    assert side.status(Syscall.READ_PINNED, GUEST, pa + 0xFFF, 2) == BAD
    assert side.status(Syscall.READ_PINNED, GUEST, pa, 0) == BAD
    assert side.status(Syscall.WRITE_PINNED, GUEST, pa + 8, 1, payload=ONE) == BAD
    assert side.status(Syscall.WRITE_PINNED, GUEST, pa, 2, payload=ONE) == BAD
    assert side.status(Syscall.UNPIN_PAGES, GUEST, payload=foreign) == NOT_YOURS
    assert side.status(Syscall.UNPIN_PAGES, GUEST, payload=frames * 2) == NOT_YOURS
    assert side.rig.host.pinned(GUEST) == side.rig.host.pinned(OTHER) == 1
    assert side.status(Syscall.UNPIN_PAGES, GUEST, payload=frames) == abi.OK
    assert side.status(Syscall.UNPIN_PAGES, GUEST, payload=frames) == NOT_YOURS
    assert side.status(Syscall.READ_PINNED, GUEST, pa, 1) == NOT_YOURS
    assert side.rig.host.pinned(GUEST) == 0


def test_pins_are_limited_for_each_guest() -> None:
    side = Boundary()
    limit = side.server._manifest.pinned_pages
    side.app._grants[GUEST].pins.count = limit - 1
    assert side.status(Syscall.PIN_PAGES, GUEST, payload=words(RAM, RAM)) == abi.TOO_MUCH
    side.rig.put(RAM, words(PAGE, PAGE))
    assert side.status(Syscall.READ_AND_PIN, GUEST, RAM, 2, 511) == abi.TOO_MUCH
    assert side.rig.host.pinned(GUEST) == 0
    assert side.status(Syscall.PIN_PAGES, GUEST, payload=words(RAM)) == abi.OK
    assert side.status(Syscall.READ_AND_PIN, GUEST, RAM, 1, 511) == abi.TOO_MUCH
    assert side.app.usage(GUEST).refused == 0, "that there is no room is no refusal"


def test_a_list_is_read_and_pinned_and_booked() -> None:
    side = Boundary()
    side.rig.put(RAM, words(PAGE | 5, PAGE + 0x1000))
    status, results, entries = side.ask(Syscall.READ_AND_PIN, GUEST, RAM, 2, 511)
    pages = [side.rig.pa(PAGE), side.rig.pa(PAGE + 0x1000)]
    assert (status, results[:2]) == (abi.OK, (0, 2))
    assert struct.unpack("<2Q", entries) == (pages[0] | 5, pages[1])
    assert side.app.usage(GUEST).pinned_pages == side.rig.host.pinned(GUEST) == 2
    assert side.status(Syscall.UNPIN_PAGES, GUEST, payload=words(*pages)) == abi.OK


def test_a_host_that_fails_in_a_list_keeps_no_pin_of_it() -> None:
    """The app was not told of them."""
    side = Boundary()
    side.rig.put(RAM, words(*[PAGE] * 511, RAM + 0x1000))
    side.rig.put(RAM + 0x1000, words(PAGE))
    calls = iter([False, True])

    def stop() -> bool:
        if next(calls, True):
            raise RuntimeError("planned")
        return False

    side.rig.host.preempt_policy = stop
    side.rig.put(RAM + 0x1000, words(*[PAGE] * 511, RAM + 0x2000))
    side.rig.put(RAM + 0x2000, words(PAGE))
    status, _, _ = side.ask(Syscall.READ_AND_PIN, GUEST, RAM, 2 * 511 + 1, 511)
    assert status == abi.HOST_FAILED
    assert isinstance(side.entry.failed, RuntimeError)
    assert side.rig.host.pinned(GUEST) == side.app.usage(GUEST).pinned_pages == 0


# --- shadows --------------------------------------------------------------------------------------


def test_shadows_are_given_back_as_they_were_taken() -> None:
    side = Boundary()
    status, (offset, *_), pages = side.ask(Syscall.ALLOC_SHADOW, 3)
    assert status == abi.OK
    assert offset >= abi.WINDOW_PAGES * PAGE_SIZE
    for wrong in (pages[:8], pages[8:], pages[::-1], pages + pages[:8]):
        assert side.status(Syscall.FREE_SHADOW, payload=wrong) == NOT_YOURS
        assert side.status(Syscall.MAP_SHADOW, payload=wrong) == NOT_YOURS
    assert side.ask(Syscall.MAP_SHADOW, payload=pages)[:2] == (abi.OK, (offset,) + (0,) * 7)
    before = side.rig.host.shadows.in_use
    assert side.status(Syscall.FREE_SHADOW, payload=pages) == abi.OK
    assert side.status(Syscall.FREE_SHADOW, payload=pages) == NOT_YOURS
    assert side.rig.host.shadows.in_use == before - 3


# --- the TEE --------------------------------------------------------------------------------------

CREATED = smc.OPTEE_SMC_VM_CREATED
DESTROYED = smc.OPTEE_SMC_VM_DESTROYED


@pytest.mark.parametrize(
    ("guest", "number", "function", "a1", "client", "status"),
    [
        (GUEST, abi.ENTRY_GUEST_DESTROYED, DESTROYED, CLIENT, 0, abi.OK),
        (GUEST, abi.ENTRY_GUEST_DESTROYED, DESTROYED, OTHER + 1, 0, NOT_ALLOWED),
        (GUEST, abi.ENTRY_GUEST_CREATED, CREATED, OTHER + 1, 0, NOT_ALLOWED),
        (GUEST, abi.ENTRY_GUEST_DESTROYED, DESTROYED, CLIENT, CLIENT, NOT_ALLOWED),
        (GUEST, abi.ENTRY_GUEST_DESTROYED, UID, 0, 0, NOT_ALLOWED),
        (GUEST, abi.ENTRY_HANDLE_MMIO, DESTROYED, CLIENT, 0, NOT_ALLOWED),
        (NO_GUEST, abi.ENTRY_INIT, UID, 0, 0, abi.OK),
        (NO_GUEST, abi.ENTRY_INIT, DESTROYED, 0, 0, abi.OK),
        (NO_GUEST, abi.ENTRY_INIT, DESTROYED, CLIENT, 0, NOT_ALLOWED),
        (NO_GUEST, abi.ENTRY_INIT, CREATED, CLIENT, 0, NOT_ALLOWED),
        (NO_GUEST, abi.ENTRY_HANDLE_INTERRUPT, UID, 0, 0, NOT_ALLOWED),
        (NO_GUEST, abi.ENTRY_HANDLE_INTERRUPT, UID, 0, CLIENT, abi.OK),
        (NO_GUEST, abi.ENTRY_HANDLE_INTERRUPT, UID, 0, STRANGER, NOT_ALLOWED),
        (NO_GUEST, abi.ENTRY_HANDLE_INTERRUPT, DESTROYED, CLIENT, CLIENT, NOT_ALLOWED),
    ],
)
def test_who_may_say_what_to_the_tee(
    guest: int, number: int, function: int, a1: int, client: int, status: int
) -> None:
    side = Boundary()
    side.enter(guest, number)
    assert side.status(Syscall.SMC, function, a1, 0, 0, 0, 0, 0, client) == status


def test_every_guest_is_looked_at_however_often_a_function_was_forwarded() -> None:
    """What the first call of a function was allowed, others are not without a look."""
    side = Boundary()
    assert side.status(Syscall.SMC, UID, 0, 0, 0, 0, 0, 0, CLIENT) == abi.OK
    assert side.status(Syscall.SMC, UID, 0, 0, 0, 0, 0, 0, OTHER + 1) == NOT_ALLOWED
    side.enter(OTHER)
    assert side.status(Syscall.SMC, UID, 0, 0, 0, 0, 0, 0, CLIENT) == NOT_ALLOWED
    assert side.status(Syscall.SMC, UID, 0, 0, 0, 0, 0, 0, OTHER + 1) == abi.OK


def test_a_lost_guest_is_nobodys() -> None:
    side = Boundary()
    side.app._grants[OTHER].lost = True
    side.enter(NO_GUEST, abi.ENTRY_HANDLE_INTERRUPT)
    assert side.status(Syscall.READ_GUEST, GUEST, RAM, 8) == abi.OK
    assert side.status(Syscall.READ_GUEST, OTHER, RAM, 8) == NOT_ALLOWED
    assert side.status(Syscall.SMC, UID, 0, 0, 0, 0, 0, 0, OTHER + 1) == NOT_ALLOWED


def test_every_guest_that_enables_notifications_listens() -> None:
    """The second one, too, for which the function was looked at before."""
    rig = DeviceRig()
    for guest in (GUEST, OTHER):
        rig.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF, guest=guest)
        assert rig.app._grants[guest].listens


# --- the life of a guest --------------------------------------------------------------------------


def test_only_the_end_of_a_guest_may_be_its_quarantine() -> None:
    side = Boundary()
    assert side.status(Syscall.QUARANTINE, GUEST, 1) == NOT_ALLOWED
    side.enter(GUEST, abi.ENTRY_GUEST_DESTROYED)
    assert side.status(Syscall.QUARANTINE, OTHER, 1) == NOT_ALLOWED
    assert side.status(Syscall.QUARANTINE, GUEST, 1) == abi.OK


class Lying(DeviceRig):
    """``lie``: changes the next turn of the app."""

    def say(self, **changes: int) -> None:
        """Let the next RETURN be another one."""
        app = self.app
        assert isinstance(app, LocalApp)

        def tamper(said: bytes) -> bytes:
            fields = list(HEADER.unpack_from(said, len(said) - HEADER.size))
            if fields[:2] != [SYSCALL, 0]:
                return said
            app.tamper = None
            for name, value in changes.items():
                fields[{"entry": 3, "status": 5, "x0": 6}[name]] = value
            return said[: -HEADER.size] + HEADER.pack(*fields)

        app.tamper = tamper

    def reason(self) -> str:
        (death,) = [event for event in self.events if isinstance(event, events.AppDied)]
        return death.reason


def call_uid(rig: DeviceRig) -> tuple[int, ...]:
    out = rig.app.handle(GUEST, 0, (UID, 0, 0, 0, 0, 0, 0, 0))
    assert isinstance(out, Completed)
    return out.regs


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"status": abi.OUTCOME_PREEMPTED}, "entry 4 returned 1"),
        ({"status": abi.OUTCOME_REFUSED}, "entry 4 returned 3"),
        ({"status": abi.OUTCOME_FAILED}, "entry 4 returned 4"),
        ({"status": 77}, "entry 4 returned 77"),
        ({"status": -1}, "entry 4 returned -1"),
        ({"entry": 0x7777}, "it spoke for entry 0x7777"),
    ],
)
def test_a_return_is_one_that_the_entry_can_have(lie: dict[str, int], reason: str) -> None:
    rig = Lying()
    rig.say(**lie)
    assert call_uid(rig)[0] == ENOTAVAIL
    assert reason in rig.reason()


def test_an_end_that_is_put_off_for_no_reason() -> None:
    rig = Lying()
    rig.say(status=abi.OUTCOME_PREEMPTED)
    rig.app.destroy_guest(GUEST)
    assert "stopped without being told to" in rig.reason()
    assert rig.app.destroy_guest(GUEST) == Done()


def test_a_guest_that_the_tee_does_not_know_is_not_taken() -> None:
    rig = Lying()
    rig.app.destroy_guest(OTHER)
    smc_ = rig.host.secure_smc
    assert smc_ is not None
    rig.host.secure_smc = lambda *regs: (
        (0xFFFF_FFFF, 0, 0, 0) if regs[0] == CREATED else smc_(*regs)
    )
    rig.say(status=abi.OUTCOME_DONE)
    assert rig.app.create_guest(OTHER) == Refused()
    assert "created without the TEE" in rig.reason()


def test_what_may_not_be_posted_is_refused_and_does_nothing() -> None:
    side = Boundary()
    for call in Syscall:
        if call in (Syscall.RETURN, Syscall.PANIC):
            continue
        refused = side.app.usage(GUEST).refused
        before = side.rig.host.pinned(GUEST), side.rig.host.shadows.in_use
        payload = words(PAGE) if call is Syscall.PIN_PAGES else b""
        args = (1,) if call is Syscall.ALLOC_SHADOW else (GUEST, RAM, 8)
        words_ = (*args, *[0] * (8 - len(args)))
        side.server.post(side.entry, Message(call, 1, side.entry.name, 0, words_, payload))
        if call.name in NOT_POSTABLE:
            assert side.app.usage(GUEST).refused == refused + 1, call
            assert (side.rig.host.pinned(GUEST), side.rig.host.shadows.in_use) == before


NOT_POSTABLE = {
    "READ_GUEST", "WRITE_GUEST", "READ_PAGE_LIST", "PIN_PAGES", "READ_PINNED", "ALLOC_SHADOW", "SMC",
    "SHOULD_PREEMPT", "NOW", "MAP_SHADOW", "REGISTER_HOOK", "MAP_GUEST_PAGE", "MAP_DEVICE", "IOMMU",
    "READ_AND_PIN", "UNMAP_GUEST_PAGE",
}  # fmt: skip


def test_what_is_posted_for_another_entry_ends_the_app() -> None:
    rig = Lying()
    assert isinstance(rig.app, LocalApp)

    def tamper(said: bytes) -> bytes:
        rig.app.tamper = None  # type: ignore[attr-defined]
        stray = HEADER.pack(SYSCALL, Syscall.LOG, 1, 0x7777, 0, 0, GUEST, 0, 0, 0, 0, 0, 0, 0, 0)
        return stray + said

    rig.app.tamper = tamper
    assert call_uid(rig)[0] == ENOTAVAIL
    assert "it spoke for entry 0x7777" in rig.reason()


def test_results_that_cannot_be_written_are_no_success() -> None:
    """WRITE_RESULT is posted: its refusal shows in x0."""
    side = Boundary()
    message = Message(
        Syscall.WRITE_RESULT, 1, side.entry.name, 0, (GUEST, 0, 1, 0x55, 0, 0, 0, 0), ONE
    )
    side.server.post(side.entry, message)
    assert side.entry.refused_x0 == 0x55
    assert side.app.usage(GUEST).syscalls >= 1


def test_after_a_service_failed_an_app_may_only_give_back() -> None:
    side = Boundary()
    frames = side.pin()
    side.entry.failed = RuntimeError("planned")
    before = side.rig.get(RAM, 64)
    for call, args, payload, _ in CASES:
        if call not in (Syscall.LOG, Syscall.UNPIN_PAGES, Syscall.FREE_SHADOW, Syscall.TRACE):
            known = call in list(Syscall)
            status = abi.HOST_FAILED if known else abi.NO_SUCH_CALL
            assert side.status(call, *args, payload=payload) == status
    assert side.rig.get(RAM, 64) == before
    assert side.status(Syscall.UNPIN_PAGES, GUEST, payload=frames) == abi.OK
    assert side.rig.host.pinned(GUEST) == 0


def test_too_many_refusals_end_an_app() -> None:
    side = Boundary()
    for _ in range(abi.MAX_REFUSALS):
        assert side.status(Syscall.READ_GUEST, OTHER, RAM, 8) == NOT_ALLOWED
    with pytest.raises(AppGone, match="refused: more than 1000"):
        side.status(Syscall.READ_GUEST, OTHER, RAM, 8)


def test_ranges_of_a_manifest_are_inclusive_and_whole() -> None:
    ranges = ((10, 20), (21, 30))
    assert within(ranges, 10, 20)
    assert within(ranges, 30, 30)
    assert not within(ranges, 9, 10)
    assert not within(ranges, 20, 21), "no range has both"
    assert not within(ranges, 25, 31)
    assert not within((), 0, 0)
