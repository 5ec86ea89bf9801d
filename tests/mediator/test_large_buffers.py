# SPDX-License-Identifier: BSD-2-Clause
"""Long walks: stopped at any entry, resumed on any processor, between any other calls (I4, I7)."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mediator.deployment.face import Completed, Done, Preempted
from mediator.host import PAGE_LIST_ENTRIES, PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, Script, answer, msg, request, results
from tests.mediator.test_buffers import listed
from tests.mediator.test_snapshot import swap

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
ERESUME = smc.OPTEE_SMC_RETURN_ERESUME
LIMIT = smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
BAD_PARAMETERS, OUT_OF_MEMORY, ITEM_NOT_FOUND = 0xFFFF0006, 0xFFFF000C, 0xFFFF0008

BUFFER = RAM + 0x100_000
LIST = RAM + 0xA_000
SMALL = RAM + 0x4000
"""Message of the other calls that a guest makes meanwhile."""
ROOM = 1792
"""Pages of the guest from BUFFER on."""
COOKIE, OTHER = 0x55, 0x99
OWN_THREAD = 0x1_0000
WAYS = ("register", "temporary", "contiguous", "rpc")
SHM_ALLOC = msg(6, ret=0xFFFF0000, params=[(1, 0, 4096, 8)])


def rig_of(walk: int = 511, pins: int = 511, **more: int) -> Rig:
    return Rig(MediatorSettings(limits=Limits(walk_entries=walk, pin_entries=pins, **more)))


class Walk:
    """One walk of a guest in one of the WAYS, from its first trap to its result."""

    def __init__(self, rig: Rig, way: str, pages: Sequence[int]) -> None:
        self.rig, self.way, self.pages = rig, way, pages
        self.seen: list[list[int]] = []
        self.stops = 0
        self.out: tuple[int, ...] = ()

    def begin(self) -> None:
        rig, pages = self.rig, self.pages
        size = len(pages) * PAGE_SIZE
        if self.way == "rpc":
            rig.put(RAM, msg(1))
            rig.host.script = [request(SHM_ALLOC)]
            assert rig.call(RPC_ARG, 0, RAM)[:4] == (CMD, 0, 0, 1)
            rig.put_list(LIST, pages)
            rig.put(RAM + 32, msg(6, params=[(0x20A, LIST, size, COOKIE)]))
            rig.host.script = [self._look(72)]
            self.note(rig.call(RETURN, 0, 0, 1))
            return
        rig.host.script = [self._look(40)]
        if self.way == "register":
            rig.put_list(LIST, pages)
            rig.put(RAM, msg(4, params=[(0x20A, LIST, size, COOKIE)]))
        elif self.way == "temporary":
            rig.put_list(LIST, pages)
            rig.put(RAM, msg(1, params=[(0x20B, LIST, size, COOKIE)]))
        else:
            assert list(pages) == list(range(pages[0], pages[0] + size, PAGE_SIZE))
            rig.put(RAM, msg(1, params=[(0xB, pages[0], size, COOKIE)]))
        self.note(rig.call(RPC_ARG, 0, RAM))

    def _look(self, at: int) -> Script:
        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            address = struct.unpack_from("<Q", rig.shadow(), at)[0]
            self.seen.append(listed(rig, address, len(self.pages)) if address else [])
            return (0, 0, 0, 0)

        return script

    def note(self, regs: tuple[int, ...]) -> None:
        self.out = regs
        self.stops += self.stopped

    @property
    def thread(self) -> int:
        return 1 if self.way == "rpc" else OWN_THREAD

    @property
    def stopped(self) -> bool:
        return self.out[:4] == (INTR, 0, 0, self.thread)

    def go_on(self, vcpu: int = 0) -> None:
        result = self.rig.tee.handle(0, vcpu, (RETURN, 0, 0, self.thread, 0, 0, 0, 0))
        assert isinstance(result, Completed)
        self.note(result.regs)

    def finish(self) -> None:
        while self.stopped:
            self.go_on()

    @property
    def result(self) -> int:
        """The code that the guest finds in its message."""
        return self.rig.message(RAM, 0)[5]

    def outcome(self) -> tuple[object, ...]:
        rig = self.rig
        return self.out[0], self.result, self.seen, rig.host.pins, rig.info()


def undisturbed(way: str, pages: Sequence[int]) -> tuple[object, ...]:
    """The same in one go, with default settings."""
    walk = Walk(Rig(), way, pages)
    walk.begin()
    assert not walk.stops
    return walk.outcome()


class Meter:
    """What is read and pinned between two questions whether to stop, at most."""

    def __init__(self, rig: Rig) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        host = rig.host
        read, pin, ask = host.read_page_list, host.pin_pages, host.should_preempt

        def read_page_list(guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
            self.count("read", entries)
            return read(guest, ipa, entries)

        def pin_pages(guest: int, ipas: bytes) -> bytes | None:
            self.count("pin", len(ipas) // 8)
            return pin(guest, ipas)

        def should_preempt() -> bool:
            self.now.clear()
            return ask()

        host.read_page_list = read_page_list  # type: ignore[method-assign]
        host.pin_pages = pin_pages  # type: ignore[method-assign]
        host.should_preempt = should_preempt  # type: ignore[method-assign]

    def count(self, what: str, entries: int) -> None:
        self.now[what] += entries
        self.most[what] = max(self.most[what], self.now[what])


# --- other calls of the guest, between two steps ------------------------------------------------


def invoke(rig: Rig) -> None:
    rig.put(SMALL, msg(1, params=[(3, 1, 2, 3)]))
    assert rig.call(RPC_ARG, 0, SMALL)[0] == 0


def register(rig: Rig) -> None:
    rig.put_list(SMALL + PAGE_SIZE, [BUFFER, BUFFER + PAGE_SIZE])
    for body in (
        msg(4, params=[(0x20A, SMALL + PAGE_SIZE, 2 * PAGE_SIZE, OTHER)]),
        msg(5, params=[(5, 0, 0, OTHER)]),
    ):
        rig.put(SMALL, body)
        assert rig.call(ARG, 0, SMALL)[0] == 0
        assert rig.message(SMALL, 1)[5] == 0


def ask(rig: Rig) -> None:
    rig.call(smc.OPTEE_SMC_CALLS_UID)


def wrong_thread(rig: Rig) -> None:
    for thread in (0, 2, OWN_THREAD + 1):
        assert rig.call(RETURN, 0, 0, thread)[0] == ERESUME
    assert rig.call(RETURN, 0, 0, OWN_THREAD, guest=1)[0] == ERESUME


def same_name(rig: Rig) -> None:
    """The reference is taken, also while the walk of its buffer is on the way."""
    rig.put_list(SMALL + PAGE_SIZE, [BUFFER])
    rig.put(SMALL, msg(4, params=[(0x20A, SMALL + PAGE_SIZE, PAGE_SIZE, COOKIE)]))
    entries = len(rig.host.sent)
    assert rig.call(ARG, 0, SMALL)[0] == 0
    assert rig.message(SMALL, 1)[5:7] == (BAD_PARAMETERS, 2)
    assert len(rig.host.sent) == entries


def unregister_it(rig: Rig) -> None:
    """The TEE does not know it yet, and says so."""
    rig.put(SMALL, msg(5, params=[(5, 0, 0, COOKIE)]))
    rig.host.script = [results(ITEM_NOT_FOUND)]
    assert rig.call(RPC_ARG, 0, SMALL)[0] == 0
    assert rig.message(SMALL, 1)[5] == ITEM_NOT_FOUND


def other_guest(rig: Rig) -> None:
    """It has the same names and pages of its own."""
    assert rig.register(COOKIE, [BUFFER], guest=1)[0] == 0
    assert rig.unregister(COOKIE, guest=1)[0] == 0


OTHERS = (invoke, register, ask, wrong_thread, unregister_it, other_guest, swap)


class Interlude(NamedTuple):
    stop: bool
    vcpu: int
    other: int


INTERLUDES = st.lists(
    st.builds(
        Interlude, st.booleans(), st.integers(0, 7), st.integers(-len(OTHERS), len(OTHERS) - 1)
    ),
    max_size=8,
)


@pytest.mark.parametrize("way", WAYS)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    length=st.sampled_from([1, 510, 511, 512, 1022, 1023, 1533, 1534]) | st.integers(1, ROOM),
    start=st.integers(0, ROOM - 1),
    stride=st.sampled_from([1, 5, 29, 0]),
    walk=st.sampled_from([511, 1022]),
    pins=st.sampled_from([511, 1022, 1533, 8176]),
    interludes=INTERLUDES,
)
def test_any_pattern_of_stops_gives_what_one_go_gives(
    way: str,
    length: int,
    start: int,
    stride: int,
    walk: int,
    pins: int,
    interludes: list[Interlude],
) -> None:
    if way == "contiguous":
        start, stride = start % (ROOM - length + 1), 1
    pages = [BUFFER + (start + index * stride) % ROOM * PAGE_SIZE for index in range(length)]
    rig = rig_of(walk, pins)
    meter = Meter(rig)
    rig.host.preempt = [interlude.stop for interlude in interludes]
    walked = Walk(rig, way, pages)
    walked.begin()
    left = list(interludes)
    while walked.stopped:
        assert not walked.seen
        while left and not left.pop(0).stop:
            pass
        vcpu, other = (interludes[-1].vcpu, -1) if not left else (left[0].vcpu, left[0].other)
        if other >= 0:
            script, rig.host.script = rig.host.script, []
            sent = len(rig.host.sent)
            asked, rig.host.preempt = rig.host.preempt, []
            OTHERS[other](rig)
            del rig.host.sent[sent:]
            rig.host.script, rig.host.preempt = script, asked
        walked.go_on(vcpu)
    assert walked.stops <= -(-length // walk) - 1
    assert walked.outcome() == undisturbed(way, pages)
    assert meter.most["read"] <= walk
    assert meter.most["pin"] <= max(walk, pins)


@pytest.mark.parametrize("way", WAYS)
def test_a_host_that_always_asks_gets_a_stop_after_every_step(way: str) -> None:
    rig = rig_of()
    rig.host.always_preempt = True
    walk = Walk(rig, way, [BUFFER + index * PAGE_SIZE for index in range(1534)])
    walk.begin()
    pinned = []
    while walk.stopped:
        pinned.append(rig.pinned())
        assert rig.info() == (1, 1, 1534, 0)
        walk.go_on()
    assert walk.stops == 3
    assert pinned == [511, 1022, 1533]
    assert walk.outcome() == undisturbed(way, walk.pages)


@pytest.mark.parametrize("way", WAYS)
def test_the_mediator_may_be_another_one_at_every_step(way: str) -> None:
    """Entries that are read and not pinned yet are part of a snapshot."""
    for pins in (511, 8176):
        rig = rig_of(511, pins)
        rig.host.always_preempt = True
        walk = Walk(rig, way, [BUFFER + index * PAGE_SIZE for index in range(1534)])
        walk.begin()
        while walk.stopped:
            swap(rig)
            walk.go_on()
        assert walk.stops == 3
        assert walk.outcome() == undisturbed(way, walk.pages)


def test_pins_follow_in_batches() -> None:
    """No page waits longer than for the end of its batch, and none for ever."""
    rig = rig_of(511, 1022)
    rig.host.always_preempt = True
    walk = Walk(rig, "register", [BUFFER] * 2000)
    walk.begin()
    pinned = []
    while walk.stopped:
        pinned.append(rig.pinned())
        walk.go_on()
    assert pinned == [0, 1022, 1022]
    assert rig.pinned() == 2000


# --- refused, at whatever step ------------------------------------------------------------------

BAD = {"absent": 0x7000_0000, "read-only": BUFFER + 3 * PAGE_SIZE, "beyond": 1 << 60}
"""Where a list or an entry may point that is not the guest's own read-write RAM."""


def refuse(rig: Rig, walk: Walk) -> None:
    """Nothing of ``walk`` is left, and the TEE never heard of its buffer."""
    if walk.way == "rpc":
        # The guest is asked to free what it allocated; then the TEE learns that it got nothing.
        assert walk.out[:4] == (CMD, 0, 0, 1)
        assert rig.message(RAM + 32, 1)[0] == 7
        walk.go_on()
        assert walk.seen == [[]]
    else:
        assert walk.result == BAD_PARAMETERS
        assert not rig.host.sent
    assert walk.out[0] == 0
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()
    rig.host.always_preempt = False
    rig.host.kinds[0, BUFFER + 3 * PAGE_SIZE] = "rw"
    again = Walk(rig, walk.way, [BUFFER] * 3)
    again.begin()
    assert again.seen == [[rig.host.pa(0, BUFFER)] * 3]


@pytest.mark.parametrize("pins", [511, 1022, 8176])
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("where", BAD)
@pytest.mark.parametrize("at", [0, 510, 511, 1021, 1022, 1532, 1533])
@pytest.mark.parametrize("way", ["register", "temporary", "rpc"])
def test_a_bad_entry_at_any_step_leaves_nothing(
    way: str, at: int, where: str, stops: bool, pins: int
) -> None:
    rig = rig_of(511, pins)
    rig.host.kinds[0, BUFFER + 3 * PAGE_SIZE] = "ro"
    rig.host.always_preempt = stops
    pages = [BUFFER] * 1534
    pages[at] = BAD[where]
    walk = Walk(rig, way, pages)
    walk.begin()
    walk.finish()
    refuse(rig, walk)


@pytest.mark.parametrize("pins", [511, 8176])
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("where", BAD)
@pytest.mark.parametrize("page", [0, 1, 2])
@pytest.mark.parametrize("way", ["register", "temporary", "rpc"])
def test_a_bad_link_at_any_step_leaves_nothing(
    way: str, page: int, where: str, stops: bool, pins: int
) -> None:
    rig = rig_of(511, pins)
    rig.host.kinds[0, BUFFER + 3 * PAGE_SIZE] = "ro"
    rig.host.always_preempt = stops
    walk = Walk(rig, way, [BUFFER] * 1534)
    put_list = rig.put_list

    def broken(ipa: int, pages: Sequence[int], guest: int = 0) -> None:
        put_list(ipa, pages, guest)
        rig.put(ipa + page * PAGE_SIZE + 4088, struct.pack("<Q", BAD[where]))

    rig.put_list = broken  # type: ignore[method-assign]
    walk.begin()
    rig.put_list = put_list  # type: ignore[method-assign]
    walk.finish()
    refuse(rig, walk)


@pytest.mark.parametrize("pins", [511, 8176])
@pytest.mark.parametrize("links", [[0], [1, 0], [1, 2, 1], [1, 2, 0]])
def test_loops_are_bounded_by_the_size(links: list[int], pins: int) -> None:
    """Page ``i`` of the list links to page ``links[i]``: itself, back, or around."""
    rig = rig_of(511, pins)
    rig.host.always_preempt = True
    for index, link in enumerate(links):
        entries = [BUFFER + (index * 511 + entry) * PAGE_SIZE for entry in range(511)]
        page = LIST + index * PAGE_SIZE
        rig.put(page, struct.pack("<512Q", *entries, LIST + link * PAGE_SIZE))
    rig.put(RAM, msg(4, params=[(0x20A, LIST, 5000 * PAGE_SIZE, COOKIE)]))
    walk = Walk(rig, "register", [])
    rig.host.script = [lambda rig, regs: (0, 0, 0, 0)]
    walk.note(rig.call(RPC_ARG, 0, RAM))
    walk.finish()
    assert (walk.out[0], walk.result, walk.stops) == (0, 0, 9)
    assert rig.pinned() == 5000
    assert rig.unregister(COOKIE)[0] == 0
    assert not rig.pinned()


# --- the guest changes its mind on the way ------------------------------------------------------


@pytest.mark.parametrize("pins", [511, 8176])
def test_what_was_read_is_not_read_again(pins: int) -> None:
    """List pages that were walked, their entries and the message may change; nothing follows them."""
    rig = rig_of(511, pins)
    rig.host.always_preempt = True
    pages = [BUFFER + index % ROOM * PAGE_SIZE for index in range(1534)]
    walk = Walk(rig, "register", pages)
    walk.begin()
    step = 0
    while walk.stopped:
        rig.put(LIST + step * PAGE_SIZE, struct.pack("<512Q", *[0x7000_0000] * 512))
        rig.put(RAM, msg(1, params=[(3, 1, 2, 3)] * 3))
        step += 1
        walk.go_on()
    assert walk.seen == [[rig.host.pa(0, ipa) for ipa in pages]]
    assert rig.info() == (0, 1, 1534, 0)


def test_what_was_not_read_yet_counts_as_it_is_then() -> None:
    rig = rig_of()
    rig.host.always_preempt = True
    walk = Walk(rig, "register", [BUFFER] * 1534)
    walk.begin()
    rig.put_list(LIST + 2 * PAGE_SIZE, [BUFFER + PAGE_SIZE] * 512)
    walk.finish()
    first, second = rig.host.pa(0, BUFFER), rig.host.pa(0, BUFFER + PAGE_SIZE)
    assert walk.seen == [[first] * 1022 + [second] * 512]


@pytest.mark.parametrize(("pins", "accepted"), [(511, True), (8176, False)])
@pytest.mark.parametrize("kind", ["ro", "none"])
def test_stage_2_counts_when_a_page_is_pinned(kind: str, pins: int, accepted: bool) -> None:
    """A page that is pinned already may change; one that only waits to be is refused with the rest."""
    rig = rig_of(511, pins)
    rig.host.preempt = [True]
    walk = Walk(rig, "register", [BUFFER] * 511 + [BUFFER + PAGE_SIZE] * 511)
    walk.begin()
    rig.host.kinds[0, BUFFER] = kind
    walk.finish()
    assert (walk.result == 0) is accepted
    assert rig.pinned() == (1022 if accepted else 0)
    assert rig.info() == ((0, 1, 1022, 0) if accepted else (0, 0, 0, 0))


@pytest.mark.parametrize("pins", [511, 8176])
@pytest.mark.parametrize("way", WAYS)
def test_a_guest_dies_while_its_walk_is_stopped(way: str, pins: int) -> None:
    for stops in (1, 2):
        rig = rig_of(511, pins)
        rig.host.preempt = [True] * stops
        walk = Walk(rig, way, [BUFFER + index * PAGE_SIZE for index in range(1534)])
        walk.begin()
        for _ in range(stops - 1):
            walk.go_on()
        assert walk.stopped
        rig.host.script = []
        rig.host.preempt = [True, True, False, True]
        rounds = 1
        while isinstance(rig.tee.destroy_guest(0), Preempted):
            rounds += 1
        assert rounds == 4
        assert not rig.pinned()
        assert not walk.seen
        assert rig.host.sent[-1][0] == smc.OPTEE_SMC_VM_DESTROYED
        rig.host.preempt = []
        assert rig.tee.create_guest(0) == Done()
        result = rig.tee.handle(0, 0, (RETURN, 0, 0, walk.thread, 0, 0, 0, 0))
        assert isinstance(result, Completed)
        assert result.regs[0] == ERESUME
        assert rig.info() == (0, 0, 0, 0)


# --- what a stopped walk is for the rest of the guest --------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_name_is_taken_while_the_walk_is_stopped(way: str) -> None:
    rig = rig_of()
    rig.host.preempt = [True]
    walk = Walk(rig, way, [BUFFER + index * PAGE_SIZE for index in range(600)])
    walk.begin()
    script, rig.host.script = rig.host.script, []
    if way != "contiguous":  # which has no name of the guest
        same_name(rig)
    assert rig.info() == (1, 1, 600, 0)
    rig.host.script = script
    walk.finish()
    assert walk.outcome() == undisturbed(way, walk.pages)


def test_unregister_of_a_buffer_on_its_way_is_for_the_tee_to_answer() -> None:
    """It has not heard of this buffer: even a yes cannot be about it."""
    for script in (results(ITEM_NOT_FOUND), answer()):
        rig = rig_of()
        rig.host.preempt = [True]
        walk = Walk(rig, "register", [BUFFER] * 600)
        walk.begin()
        rest, rig.host.script = rig.host.script, [script]
        rig.put(SMALL, msg(5, params=[(5, 0, 0, COOKIE)]))
        assert rig.call(RPC_ARG, 0, SMALL)[0] == 0
        assert rig.pinned() == 511
        rig.host.script = rest
        walk.finish()
        assert walk.out[0] == 0
        assert rig.pinned() == 600


def test_a_stopped_walk_is_a_call_in_flight() -> None:
    """With a limit of one call nothing else fits; its own way on is open at any time."""
    rig = rig_of(calls=1)
    rig.host.preempt = [True, True]
    walk = Walk(rig, "register", [BUFFER] * 1534)
    walk.begin()
    for _ in range(2):
        assert walk.stopped
        rig.put(SMALL, msg(1))
        assert rig.call(ARG, 0, SMALL)[0] == LIMIT
        assert rig.call(ARG, 0, SMALL, guest=1)[0] == 0
        walk.go_on()
    assert walk.outcome()[:2] == (0, 0)
    assert rig.call(ARG, 0, SMALL)[0] == 0


def test_several_walks_stop_side_by_side() -> None:
    """Each has a thread id of its own, given again once it is free."""
    rig = rig_of()
    rig.host.always_preempt = True
    threads = []
    for index in range(3):
        page = RAM + 0x20_000 + index * 4 * PAGE_SIZE
        rig.put_list(page + PAGE_SIZE, [BUFFER + index * PAGE_SIZE] * 1100)
        body = msg(4, params=[(0x20A, page + PAGE_SIZE, 1100 * PAGE_SIZE, COOKIE + index)])
        rig.put(page, body)
        threads.append(rig.call(RPC_ARG, 0, page)[3])
    assert threads == [OWN_THREAD, OWN_THREAD + 1, OWN_THREAD + 2]
    for thread in (threads[1], threads[0], threads[2], threads[0], threads[2], threads[1]):
        out = rig.call(RETURN, 0, 0, thread)
        assert out[0] in (0, INTR)
    assert rig.info() == (0, 3, 3300, 0)
    assert rig.pinned() == 3300
    assert Walk(rig, "register", []).thread == OWN_THREAD


def test_a_stopped_walk_cannot_be_entered_twice() -> None:
    """Two processors answer one interrupt: the second finds nothing to resume."""
    rig = rig_of()
    rig.host.preempt = [True]
    walk = Walk(rig, "register", [BUFFER] * 600)
    walk.begin()
    read = rig.host.read_page_list
    second: list[int] = []

    def racing(guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        rig.host.read_page_list = read  # type: ignore[method-assign]
        second.append(rig.call(RETURN, 0, 0, OWN_THREAD)[0])
        return read(guest, ipa, entries)

    rig.host.read_page_list = racing  # type: ignore[method-assign]
    walk.finish()
    assert second == [ERESUME]
    assert walk.outcome() == undisturbed("register", walk.pages)


@pytest.mark.parametrize("thread", [OWN_THREAD, OWN_THREAD + 1, 0xFFFF_FFFF])
def test_a_tee_that_uses_the_mediators_ids_is_contained(thread: int) -> None:
    """The stopped walk is not confused with the TEE's call, which ends with an error."""
    rig = rig_of()
    rig.host.preempt = [True]
    walk = Walk(rig, "register", [BUFFER] * 600)
    walk.begin()
    script, rig.host.script = rig.host.script, [answer(INTR, 0, 0, thread)]
    rig.put(SMALL, msg(1))
    assert rig.call(RPC_ARG, 0, SMALL)[0] == 0
    assert rig.message(SMALL, 0)[5:7] == (0xFFFF000E, 2)
    rig.host.script = script
    walk.finish()
    assert walk.outcome() == undisturbed("register", walk.pages)
    info = rig.tee.guest_info(0)
    assert info is not None
    assert info.findings


@pytest.mark.parametrize("entries", [PAGE_LIST_ENTRIES, 8176])
def test_an_allocation_that_fails_between_two_steps_leaves_nothing(entries: int) -> None:
    """The host has no page for the list, or breaks its protocol when it pins."""
    rig = rig_of(511, entries)
    rig.host.fail_alloc_at = rig.host.calls["alloc_shadow"] + 2
    walk = Walk(rig, "register", [BUFFER] * 1534)
    walk.begin()
    assert (walk.out[0], walk.result) == (0, OUT_OF_MEMORY)
    assert rig.info() == (0, 0, 0, 0)
    rig.host.always_preempt = True
    rig.host.fail_pin_at = rig.host.calls["pin_pages"] + (2 if entries == 511 else 1)
    walk = Walk(rig, "register", [BUFFER] * 1534)
    walk.begin()
    walk.finish()
    assert (walk.out[0], walk.result) == (0, BAD_PARAMETERS)
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()
