# SPDX-License-Identifier: BSD-2-Clause
"""Each sentence that a checker can say, from events made for it; and that its neighbours are fine."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from mediator.checkers.balance import Bounded, FetchedOnce, PinsBalance
from mediator.checkers.progress import STEPS_PER_TRAP, Progress, Strangers, WakeUps
from mediator.checkers.secrets import NoLeak, OwnMemoryOnly
from mediator.checkers.verdict import Checker
from mediator.checkers.watch import Watch
from mediator.host import PAGE_SIZE
from mediator.hypervisor import events as host
from mediator.hypervisor import machine_events as machine
from mediator.optee import events
from mediator.optee.mediator import GuestInfo
from mediator.optee.settings import Limits
from secure_world import events as tee
from secure_world import events as tee_events
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc

Event = tuple[object, ...]
GUEST, OTHER = 3, 4
CLIENT = GUEST + 1
SHADOW, LIST, SECOND_LIST = 0x9_0000_0000, 0x9_0000_1000, 0x9_0000_5000
PINNED, UNPINNED = 0x8_0000_0000, 0x8_0000_1000
ARG, RPC_ARG = smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC


class View:
    """A machine of three mediator pages and one pinned page of the guest."""

    def __init__(self) -> None:
        self.memory = {pa: bytearray(PAGE_SIZE) for pa in (SHADOW, LIST, SECOND_LIST, PINNED)}
        self.counted = 0

    def read(self, pa: int, length: int) -> bytes | None:
        page = self.memory.get(pa & ~0xFFF)
        return None if page is None else bytes(page[pa & 0xFFF :][:length])

    def is_hidden(self, pa: int) -> bool:
        return self.is_mediators(pa)

    def is_mediators(self, pa: int) -> bool:
        return pa & ~0xFFF in (SHADOW, LIST, SECOND_LIST)

    def shared(self, guest: int, frames: bytes) -> bool:
        words = struct.unpack(f"<{len(frames) // 8}Q", frames)
        return guest == GUEST and all(word == PINNED for word in words)

    def pinned(self, guest: int) -> int:
        return self.counted


def said(checker: Checker, log: Iterable[Event], watch: Watch) -> list[str]:
    """What ``checker`` says about these events and at the end."""
    watch.add(checker)
    for event in log:
        watch(event)
    return [str(violation) for violation in watch.finish()]


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def view() -> View:
    return View()


def enter(*regs: int, vcpu: int = 0, guest: int = GUEST) -> Event:
    return machine.TrapEnter(guest, vcpu, False, 0, (*regs, *[0] * (8 - len(regs))))


def leave(*regs: int, vcpu: int = 0, guest: int = GUEST) -> Event:
    return machine.TrapExit(guest, vcpu, True, (*regs, *[0] * (8 - len(regs))))


def forwarded(*regs: int, call: int = 1, client: int = CLIENT, guest: int = GUEST) -> Event:
    return events.Forwarded(guest, call, 0, (*regs, *[0] * (7 - len(regs)), client))


class TestNoLeak:
    @pytest.mark.parametrize(
        ("asked", "answered", "fires"),
        [
            ((ARG, 0, 0x5000), (0, 0, 0x5000), False),
            ((ARG, 0, 0x5000), (0, SHADOW, 0x5000), True),
            ((ARG, 0, 0x5000), (0, 9, 0x1000), True),
            ((ARG, 0, 0x5000), (0, 0, 0, 0, 9, 0x1000), True),
            ((ARG, 9, 0x1000), (0, 9, 0x1000), False),
            ((ARG, 9, 0x1000, 1), (0, 9, 0x1000, 7), False),
        ],
    )
    def test_registers(
        self,
        watch: Watch,
        view: View,
        asked: tuple[int, ...],
        answered: tuple[int, ...],
        fires: bool,
    ) -> None:
        """A guest that passes such numbers itself learns nothing when they come back."""
        checker = NoLeak(view, watch.report)
        found = said(checker, [enter(*asked), leave(*answered)], watch)
        assert bool(found) is fires
        assert all("a register holds the hidden address" in text for text in found)

    @pytest.mark.parametrize("kind", [host.GuestWritten, host.PinnedWritten])
    @pytest.mark.parametrize(("offset", "fires"), [(0, True), (3, False), (16, True)])
    def test_memory(self, watch: Watch, view: View, kind: type, offset: int, fires: bool) -> None:
        data = struct.pack("<3Q", 1, SHADOW | 8, 2)
        found = said(NoLeak(view, watch.report), [kind(GUEST, 0x5000, ((offset, data),))], watch)
        assert bool(found) is fires

    def test_what_no_trap_began_is_not_judged(self, watch: Watch, view: View) -> None:
        assert said(NoLeak(view, watch.report), [leave(0, SHADOW)], watch) == []


def put_message(view: View, at: int, *params: tuple[int, int, int, int]) -> None:
    flat = [word for param in params for word in param]
    data = struct.pack(f"<8I{len(flat)}Q", 1, 0, 0, 0, 0, 0, 0, len(params), *flat)
    page = view.memory[at & ~0xFFF]
    page[at & 0xFFF : (at & 0xFFF) + len(data)] = data


def put_list(view: View, at: int, *words: int, link: int = 0) -> None:
    view.memory[at][: 8 * len(words)] = struct.pack(f"<{len(words)}Q", *words)
    view.memory[at][4088:] = struct.pack("<Q", link)


class TestOwnMemoryOnly:
    def check(self, watch: Watch, view: View, *log: Event) -> list[str]:
        return said(OwnMemoryOnly(view, watch.report), log, watch)

    def test_a_message_on_a_mediator_page_with_pinned_buffers(
        self, watch: Watch, view: View
    ) -> None:
        put_message(view, SHADOW, (0x20A, LIST | 8, 16, 1), (0xA, 0, 99, 0), (6, 0, 0, 5))
        put_list(view, LIST, PINNED)
        assert self.check(watch, view, forwarded(ARG, 9, 0, 1)) == []

    def test_the_guests_own_page(self, watch: Watch, view: View) -> None:
        found = self.check(watch, view, forwarded(ARG, 8, 0, 1))
        assert found == [f"I2 guest 3: the message at {PINNED:#x} is no mediator memory"]

    def test_registered_memory_by_name(self, watch: Watch, view: View) -> None:
        found = self.check(watch, view, forwarded(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, 5, 0))
        assert "names guest memory directly" in found[0]

    def test_an_address_of_the_guest(self, watch: Watch, view: View) -> None:
        put_message(view, SHADOW, (0xA, 0x4000_0000, 16, 1))
        found = self.check(watch, view, forwarded(ARG, 9, 0, 1))
        assert found == ["I2 guest 3: the TEE gets the guest's own address 0x40000000"]

    def test_a_list_of_the_guest(self, watch: Watch, view: View) -> None:
        put_message(view, SHADOW, (0x20A, PINNED, 16, 1))
        found = self.check(watch, view, forwarded(ARG, 9, 0, 1))
        assert found == [f"I2 guest 3: the list page {PINNED:#x} is no mediator memory"]

    @pytest.mark.parametrize(
        ("size", "words", "link", "fires"),
        [
            (4096, (PINNED, UNPINNED), 0, False),
            (4097, (PINNED, UNPINNED), 0, True),
            (512 * 4096, (PINNED,) * 511, SECOND_LIST, False),
            (512 * 4096, (PINNED,) * 511, UNPINNED, True),
            (513 * 4096, (PINNED,) * 511, SECOND_LIST, True),
            (511 * 4096, (PINNED,) * 511, UNPINNED, False),
        ],
    )
    def test_every_page_that_the_size_covers(
        self,
        watch: Watch,
        view: View,
        size: int,
        words: tuple[int, ...],
        link: int,
        fires: bool,
    ) -> None:
        put_message(view, SHADOW, (0x20A, LIST, size, 1))
        put_list(view, LIST, *words, link=link)
        put_list(view, SECOND_LIST, PINNED)
        assert bool(self.check(watch, view, forwarded(ARG, 9, 0, 1))) is fires

    def test_pages_of_another_guest(self, watch: Watch, view: View) -> None:
        put_message(view, SHADOW, (0x20A, LIST, 16, 1))
        put_list(view, LIST, PINNED)
        found = self.check(watch, view, forwarded(ARG, 9, 0, 1, client=OTHER + 1, guest=OTHER))
        assert "names a page that is not pinned" in found[0]

    def test_the_argument_behind_the_message_after_an_rpc(self, watch: Watch, view: View) -> None:
        put_message(view, SHADOW)
        watch.add(OwnMemoryOnly(view, watch.report))
        watch(forwarded(RPC_ARG, 9, 0, 1))
        put_message(view, SHADOW + 32, (0x20A, 0x4000_0000, 16, 1))
        watch(forwarded(RETURN, 0, 0, 1))
        assert [v.invariant for v in watch.violations] == ["I2"]
        watch(events.CallEnded(GUEST, 1, 0, 0))
        watch(forwarded(RETURN, 0, 0, 1))
        assert len(watch.violations) == 1, "of a call that has ended nothing is known"

    def test_an_address_that_the_tee_wrote_itself_nobody_gave_it(
        self, watch: Watch, view: View
    ) -> None:
        put_message(view, SHADOW)
        watch.add(OwnMemoryOnly(view, watch.report))
        watch(forwarded(RPC_ARG, 9, 0, 1))
        put_message(view, SHADOW + 32, (0xA, 0x4000_0000, 16, 1))
        watch(events.Answered(GUEST, 1, 0, (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 0, 1)))
        watch(forwarded(RETURN, 0, 0, 1))
        assert watch.violations == []
        put_message(view, SHADOW + 32, (0xA, 0x4000_1000, 16, 1))
        watch(forwarded(RETURN, 0, 0, 1))
        assert [v.invariant for v in watch.violations] == ["I2"]

    @pytest.mark.parametrize(("pa", "fires"), [(SHADOW, False), (PINNED, True), (0, False)])
    def test_a_page_for_rpc_messages(self, watch: Watch, view: View, pa: int, fires: bool) -> None:
        found = self.check(watch, view, forwarded(RETURN, pa >> 32, pa & 0xFFFF_FFFF, 1, 0, 5))
        assert bool(found) is fires

    def test_a_breach_of_the_bus(self, watch: Watch, view: View) -> None:
        found = self.check(watch, view, host.BusBreach(CLIENT, UNPINNED, 8, True, "not pinned"))
        assert found == [f"I2 guest -1: client 4 wrote 8 bytes at {UNPINNED:#x}"]

    @pytest.mark.parametrize("count", [128, 0xFFFF_FFFF])
    def test_a_count_that_cannot_be_is_not_followed(
        self, watch: Watch, view: View, count: int
    ) -> None:
        view.memory[SHADOW][28:32] = struct.pack("<I", count)
        assert self.check(watch, view, forwarded(ARG, 9, 0, 1)) == []


def info(calls: int = 0, pages: int = 0, rpc: int = 0) -> GuestInfo:
    return GuestInfo(calls=calls, buffers=0, pages=pages, rpc_buffers=rpc, findings=0)


def pinned(count: int) -> Event:
    return host.PagesPinned(GUEST, bytes(8 * count))


def unpinned(count: int) -> Event:
    return host.PagesUnpinned(GUEST, bytes(8 * count))


class TestPinsBalance:
    @pytest.mark.parametrize(
        ("log", "counted", "known", "sentence"),
        [
            ([pinned(3), unpinned(3)], 0, info(), ""),
            ([pinned(3), unpinned(1)], 2, info(pages=1, rpc=1), ""),
            ([pinned(3)], 3, info(pages=4, calls=1), ""),
            ([pinned(1), unpinned(2)], 0, info(), "more pages are released than were pinned"),
            ([pinned(2)], 1, info(pages=2), "the machine counts 1 pins, the events say 2"),
            ([pinned(2)], 2, info(pages=1), "2 pages are pinned, the mediator accounts for 1"),
            ([pinned(2)], 2, None, "2 pages are pinned, the mediator accounts for 0"),
            ([host.GuestAdded(GUEST)], 0, info(pages=4), "accounts for 4"),
            ([pinned(2), unpinned(2), events.GuestTornDown(GUEST, 0)], 0, None, ""),
            ([pinned(2), events.GuestTornDown(GUEST, 0)], 2, None, "2 pins are left after"),
            ([events.GuestTornDown(GUEST, 0)], 1, None, "1 pins are left after destruction"),
        ],
    )
    def test_sentences(
        self,
        watch: Watch,
        view: View,
        log: list[Event],
        counted: int,
        known: GuestInfo | None,
        sentence: str,
    ) -> None:
        view.counted = counted
        found = said(PinsBalance(view, lambda guest: known, watch.report), log, watch)
        assert any(sentence in text for text in found) if sentence else not found


def read(at: int, size: int) -> Event:
    return host.GuestRead(GUEST, at, size)


class TestFetchedOnce:
    @pytest.mark.parametrize(
        ("log", "fires"),
        [
            ([enter(), read(0x1000, 8), read(0x1008, 8), leave()], False),
            ([enter(), read(0x1000, 8), read(0x1007, 1), leave()], True),
            ([enter(), read(0x1000, 8), leave(), enter(), read(0x1000, 8), leave()], False),
            ([enter(), host.PinnedRead(GUEST, 0x1000, 4), read(0x1000, 1), leave()], True),
            ([read(0x1000, 8), read(0x1000, 8)], False),
            ([enter(), enter(vcpu=1), read(0x1000, 8), read(0x1000, 8)], False),
            ([enter(), read(0x1000, 8), enter(guest=OTHER), read(0x1000, 8)], True),
            ([enter(), host.PageListRead(GUEST, 0, 9), host.PageListRead(GUEST, 0, 9)], False),
        ],
    )
    def test_a_byte_in_a_trap(self, watch: Watch, log: list[Event], fires: bool) -> None:
        found = said(FetchedOnce(watch.report), log, watch)
        assert bool(found) is fires


class TestStrangers:
    def check(self, watch: Watch, *log: Event) -> list[str]:
        return said(Strangers(lambda guest: guest + 1, watch.report), log, watch)

    @pytest.mark.parametrize("client", [0, OTHER + 1, CLIENT | 1 << 16])
    def test_another_client_id(self, watch: Watch, client: int) -> None:
        found = self.check(watch, forwarded(ARG, client=client))
        assert "forwarded under client id" in found[0]

    def test_its_own_and_the_hypervisors(self, watch: Watch) -> None:
        log = [
            forwarded(ARG),
            forwarded(smc.OPTEE_SMC_VM_CREATED, CLIENT, client=0, guest=events.NO_GUEST),
        ]
        assert self.check(watch, *log) == []

    @pytest.mark.parametrize("function", [smc.OPTEE_SMC_VM_CREATED, smc.OPTEE_SMC_VM_DESTROYED])
    def test_life_cycle_is_not_a_guests(self, watch: Watch, function: int) -> None:
        assert "life-cycle function" in self.check(watch, forwarded(function))[0]

    @pytest.mark.parametrize(
        ("log", "fires"),
        [
            ([tee.ThreadSuspended(CLIENT, 1, 0, -1)], False),
            ([tee.ThreadSuspended(CLIENT, 2, 0, -1)], True),
            ([tee.ThreadSuspended(OTHER + 1, 1, 0, -1)], True),
            (
                [
                    tee.ThreadSuspended(CLIENT, 1, 0, -1),
                    tee.ThreadSuspended(CLIENT, 2, 0, -1),
                    tee.ThreadResumed(CLIENT, 1),
                ],
                True,
            ),
            ([], False),
        ],
    )
    def test_an_rpc_is_of_a_thread_that_is_suspended_there(
        self, watch: Watch, log: list[Event], fires: bool
    ) -> None:
        found = self.check(watch, *log, events.RpcToGuest(GUEST, 1, 1, 4, -1))
        assert bool(found) is fires


class TestBounded:
    LIMITS = Limits(calls=2, buffers=2, buffer_pages=4, total_pages=6)

    def check(self, watch: Watch, *log: Event) -> list[str]:
        return said(Bounded(self.LIMITS, lambda: 9, watch.report), log, watch)

    def call(self, number: int) -> Event:
        return events.CallStarted(GUEST, number, 0, ARG, 1)

    def taken(self, pages: int, reference: int = 0) -> Event:
        return events.BufferTaken(GUEST, 0, reference, pages)

    def released(self, pages: int) -> Event:
        return events.BufferReleased(GUEST, 0, 0, pages)

    def test_calls(self, watch: Watch) -> None:
        ended = events.CallEnded(GUEST, 1, 0, 0)
        assert self.check(watch, self.call(1), self.call(2), ended, self.call(3)) == []
        watch(self.call(4))
        assert str(watch.violations[0]) == "I6 guest 3: 3 calls at once, the limit is 2"

    @pytest.mark.parametrize(
        ("pages", "sentence"),
        [
            ([4], ""),
            ([5], "a buffer has 5 pages"),
            ([1, 1], ""),
            ([1, 1, 1], "3 buffers at once"),
            ([3, 3], ""),
            ([3, 4], "7 pages in all buffers"),
        ],
    )
    def test_buffers(self, watch: Watch, pages: list[int], sentence: str) -> None:
        found = self.check(watch, *[self.taken(count) for count in pages])
        assert any(sentence in text for text in found) if sentence else not found

    def test_what_was_released_counts_no_more(self, watch: Watch) -> None:
        log = [self.taken(4), self.released(4)] * 5
        assert self.check(watch, *log) == []

    def test_guests_are_counted_apart_and_forgotten(self, watch: Watch) -> None:
        other = [events.CallStarted(OTHER, number, 0, ARG, 1) for number in range(2)]
        log = [self.call(1), self.call(2), *other, events.GuestTornDown(GUEST, 0)]
        assert self.check(watch, *log, self.call(1), self.call(2)) == []


class TestProgress:
    def check(self, watch: Watch, *log: Event) -> list[str]:
        return said(Progress(watch.report), log, watch)

    def test_steps_of_one_trap(self, watch: Watch) -> None:
        steps = [read(0x1000, 8)] * STEPS_PER_TRAP
        assert self.check(watch, enter(), *steps, leave(), enter(), *steps, leave()) == []
        watch(enter())
        for step in [*steps, *steps]:
            watch(step)
        assert len(watch.violations) == 1, "said once"
        assert "more than 2048 system calls in one trap" in str(watch.violations[0])

    def test_a_trap_that_never_returns(self, watch: Watch) -> None:
        found = self.check(watch, enter(), enter(vcpu=1), leave())
        assert found == ["I7 guest 3: a trap of vCPU 1 never returned"]

    @pytest.mark.parametrize(
        "end",
        [
            leave(),
            machine.TrapUndefined(GUEST, 0),
            machine.PsciCall(GUEST, 0, 0x8400_0008, 0),
            machine.GuestDying(GUEST),
        ],
    )
    def test_every_end_of_a_trap(self, watch: Watch, end: Event) -> None:
        assert self.check(watch, enter(), end) == []

    def test_steps_outside_of_traps_are_nobodys(self, watch: Watch) -> None:
        assert self.check(watch, *[read(0, 1)] * (2 * STEPS_PER_TRAP)) == []


def notification(operation: int, key: int) -> list[Event]:
    data = struct.pack(
        "<8I4Q", optee_rpc.OPTEE_RPC_CMD_NOTIFICATION, *[0] * 6, 1, 1, operation, key, 0
    )
    return [host.PinnedWritten(GUEST, PINNED, ((0, data),))]


def wait(key: int, thread: int) -> list[Event]:
    """A TEE thread asks the guest to wait for ``key``."""
    command = optee_rpc.OPTEE_RPC_CMD_NOTIFICATION
    request = notification(optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT, key)
    return [*request, events.RpcToGuest(GUEST, thread, thread, 5, command)]


def send(key: int, thread: int = 9) -> list[Event]:
    command = optee_rpc.OPTEE_RPC_CMD_NOTIFICATION
    request = notification(optee_rpc.OPTEE_RPC_NOTIFICATION_SEND, key)
    return [*request, events.RpcToGuest(GUEST, thread, thread, 5, command)]


def answered(thread: int) -> list[Event]:
    return [events.RpcAnswered(GUEST, thread, thread, 0)]


def held(key: int, thread: int) -> list[Event]:
    return [events.WaitBegan(GUEST, thread, thread, key, 1)]


def ended(key: int, thread: int) -> list[Event]:
    return [events.WaitEnded(GUEST, thread, thread, key)]


def raised(value: int) -> list[Event]:
    return [tee_events.NotificationRaised(GUEST + 1, value)]


class TestWakeUps:
    @pytest.mark.parametrize(
        ("steps", "waits"),
        [
            ([wait(5, 1)], False),
            ([wait(5, 1), send(5)], True),
            ([wait(5, 1), send(5), answered(1)], False),
            ([send(5), wait(5, 1)], True),
            ([send(5), wait(5, 1), answered(1)], False),
            ([wait(5, 1), send(6)], False),
            ([wait(5, 1), wait(6, 2), send(6)], True),
            ([wait(5, 1), wait(6, 2), send(6), answered(2)], False),
            ([send(5), wait(5, 1), answered(1), wait(5, 1)], False),
            ([wait(5, 1), send(5), [events.GuestTornDown(GUEST, 0)]], False),
            ([held(5, 1)], False),
            ([held(5, 1), [events.SendKept(GUEST, 5)]], True),
            ([held(5, 1), [events.SendKept(GUEST, 5)], answered(1)], True),
            ([held(5, 1), [events.SendKept(GUEST, 5)], ended(5, 1)], False),
            ([[events.SendKept(GUEST, 5)], held(5, 1)], True),
            ([[events.SendKept(GUEST, 5)] * 2, held(5, 1), ended(5, 1), held(5, 1)], False),
            ([held(5, 1), raised(5)], True),
            ([held(5, 1), raised(6)], False),
            ([wait(5, 1), raised(5)], True),
            ([wait(5, 1), raised(5), answered(1)], False),
            ([held(5, 1), raised(5), [events.GuestTornDown(GUEST, 0)]], False),
        ],
    )
    def test_waits_and_sends(self, watch: Watch, steps: list[list[Event]], waits: bool) -> None:
        log = [event for step in steps for event in step]
        found = said(WakeUps(lambda: (), watch.report), log, watch)
        assert bool(found) is waits
        assert all("which was sent" in text for text in found)

    def test_a_vcpu_that_sleeps_on_an_interrupt(self, watch: Watch) -> None:
        found = said(WakeUps(lambda: [(GUEST, 2)], watch.report), [], watch)
        assert found == ["I8 guest 3: vCPU 2 sleeps although an interrupt is deliverable"]
