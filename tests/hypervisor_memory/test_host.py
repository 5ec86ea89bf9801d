# SPDX-License-Identifier: BSD-2-Clause
"""The host boundary: what a mediator may see and change, and the hooks of a test bench."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mediator.hypervisor import events, stage2
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.host import FaultPlan, ReferenceHost
from tests.hypervisor_memory.support import PAGE, RAM, addresses, machine, pfn, pin, state, words

KINDS = range(8)
OTHER = RAM + (1 << 32)


def host_with_every_kind() -> tuple[ReferenceHost, dict[int, int]]:
    """A host, and for each kind the IPA of a page of guest 1 of that kind, filled with ``kind``."""
    host = machine()
    places = {kind: OTHER + 16 * kind * PAGE for kind in KINDS}
    for kind in (stage2.OWN_RW, stage2.OWN_RO):
        host.populate(1, places[kind], 1, kind=kind)
    for kind, writable, grant in (
        (stage2.FOREIGN_RW, True, False),
        (stage2.FOREIGN_RO, False, False),
        (stage2.GRANT_RW, True, True),
        (stage2.GRANT_RO, False, True),
    ):
        host.share(1, places[kind], 1, 2, RAM + kind * PAGE, writable=writable, grant=grant)
    host.map_other(1, places[stage2.MMIO], 1, stage2.MMIO, 0x900_0000)
    for kind, ipa in places.items():
        if kind >= stage2.GRANT_RO:
            host.memory.write(pfn(host, 1, ipa) << 12, bytes([kind]) * 64)
    return host, places


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mediator_may_do_by_kind(kind: int) -> None:
    host, places = host_with_every_kind()
    ipa = places[kind]
    before = state(host.memory)
    own, writable = kind >= stage2.OWN_RO, kind == stage2.OWN_RW
    assert host.read_guest(1, ipa + 8, 16) == (bytes([kind]) * 16 if own else None)
    assert host.write_guest(1, ipa, [(4, b"new")]) is writable
    assert (host.read_page_list(1, ipa, 3) is not None) is writable
    frames = host.pin_pages(1, words(ipa))
    assert (frames is not None) is writable
    if frames is not None:
        host.unpin_pages(1, frames)
    assert state(host.memory) == before
    if kind >= stage2.GRANT_RO:
        page = host.memory.read(pfn(host, 1, ipa) << 12, 64)
        assert (
            page == bytes([kind]) * 4 + b"new" + bytes([kind]) * 57 if writable else page[:1] * 64
        )


@pytest.mark.parametrize(
    "ipa",
    [0, 1, PAGE - 1, PAGE, (1 << 32) - 1, 1 << 32, 1 << 44, 1 << 52, 1 << 63, (1 << 64) - PAGE],
)
def test_addresses_at_the_edges_are_answers_not_errors(ipa: int) -> None:
    host = machine()
    assert host.read_guest(1, ipa, 1) is None
    assert host.write_guest(1, ipa & ~(PAGE - 1), [(0, b"x")]) is False
    assert host.read_page_list(1, ipa, 600) is None
    assert host.pin_pages(1, words(ipa)) is None
    assert host.pin_pages(1, words(*[RAM] * 50, ipa)) is None
    assert host.pins(1) == {}


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (0, PAGE + 1), (1, PAGE), (4095, 2), (5, -1)]
)
def test_a_read_that_is_not_inside_one_page_is_a_defect_of_the_mediator(
    offset: int, length: int
) -> None:
    with pytest.raises(InvariantError):
        machine().read_guest(1, RAM + offset, length)


@pytest.mark.parametrize(
    "segment", [(-1, b"x"), (PAGE, b"x"), (PAGE - 1, b"xy"), (0, bytes(PAGE + 1))]
)
def test_a_segment_that_leaves_its_page_writes_nothing(segment: tuple[int, bytes]) -> None:
    host = machine()
    frames = pin(host, 1, RAM)
    with pytest.raises(InvariantError):
        host.write_guest(1, RAM, [(0, b"good"), segment])
    with pytest.raises(InvariantError):
        host.write_pinned(1, addresses(frames)[0], [(0, b"good"), segment])
    assert host.guest_read(1, RAM, PAGE) == bytes(PAGE)
    assert host.guest_read(1, RAM + PAGE, PAGE) == bytes(PAGE)


def test_calls_for_a_guest_that_does_not_exist_are_loud() -> None:
    host = machine(guests=1)
    for call in (
        lambda: host.read_guest(7, RAM, 1),
        lambda: host.write_guest(7, RAM, []),
        lambda: host.read_page_list(7, RAM, 1),
        lambda: host.pin_pages(7, words(RAM)),
        lambda: host.unpin_pages(7, words(RAM)),
        lambda: host.read_pinned(7, RAM, 1),
        lambda: host.guest_read(7, RAM, 1),
        lambda: host.guest_write(7, RAM, b"x"),
    ):
        with pytest.raises(InvariantError, match="no guest 7"):
            call()


# -- page lists ------------------------------------------------------------------------------------


def write_list(
    host: ReferenceHost, entries: list[int], pages: list[int], last_link: int = 0
) -> None:
    """Lay ``entries`` out over the list pages at ``pages``."""
    for number, page in enumerate(pages):
        part = entries[511 * number : 511 * (number + 1)]
        link = pages[number + 1] if number + 1 < len(pages) else last_link
        host.guest_write(1, page, words(*part, *[0xDEAD] * (511 - len(part)), link))


@pytest.mark.parametrize("count", [1, 2, 510, 511, 512, 1021, 1022, 1023, 2000])
def test_lists_of_every_length_around_the_roll_over(count: int) -> None:
    host = machine(guests=1)
    draw = random.Random(count)
    entries = [draw.getrandbits(64) for _ in range(count)]
    pages = [RAM + page * PAGE for page in draw.sample(range(64), -(-count // 511))]
    # The link of the last page leads nowhere: it is only followed if entries are missing.
    write_list(host, entries, pages, last_link=(1 << 63) + 5)
    link = 0 if count % 511 else (1 << 63) + 5
    assert host.read_page_list(1, pages[0] + 0xABC, count) == (words(*entries), link)


def test_a_list_read_in_parts_goes_on_at_the_link() -> None:
    host = machine(guests=1)
    entries = list(range(1, 1500))
    pages = [RAM + PAGE, RAM + 9 * PAGE, RAM + 4 * PAGE]
    write_list(host, entries, pages)
    first = host.read_page_list(1, pages[0], 1022)
    assert first == (words(*entries[:1022]), pages[2])
    assert host.read_page_list(1, first[1], len(entries) - 1022) == (words(*entries[1022:]), 0)


@pytest.mark.parametrize("link", [RAM, RAM + 123, 0, OTHER, (1 << 64) - 1])
def test_links_to_itself_are_walked_and_links_to_nowhere_refused(link: int) -> None:
    host = machine(guests=1)
    write_list(host, list(range(511)), [RAM], last_link=link)
    answer = host.read_page_list(1, RAM, 1000)
    if link >> 12 == RAM >> 12:
        assert answer == (words(*range(511), *range(489)), 0)
    else:
        assert answer is None


def test_a_list_page_of_another_kind_is_refused() -> None:
    host, places = host_with_every_kind()
    for kind in KINDS:
        write_list(host, [1] * 511, [RAM], last_link=places[kind])
        assert (host.read_page_list(1, RAM, 512) is not None) == (kind == stage2.OWN_RW)


def test_a_list_of_no_entries_is_a_defect_of_the_mediator() -> None:
    with pytest.raises(InvariantError):
        machine().read_page_list(1, RAM, 0)


# -- pinned pages ----------------------------------------------------------------------------------


def test_pinned_pages_are_reached_by_physical_address_whatever_stage_2_says() -> None:
    host = machine()
    host.guest_write(1, RAM + 100, b"message")
    frames = pin(host, 1, RAM)
    (pa,) = addresses(frames)
    host.balloon_out(1, RAM, 1)
    assert host.read_pinned(1, pa + 100, 7) == b"message"
    host.write_pinned(1, pa, [(100, b"answer"), (200, b"!")])
    assert host.read_pinned(1, pa + 100, 101) == b"answere" + bytes(93) + b"!"
    host.unpin_pages(1, frames)
    for call in (
        lambda: host.read_pinned(1, pa, 1),
        lambda: host.write_pinned(1, pa, [(0, b"x")]),
    ):
        with pytest.raises(InvariantError, match="not pinned"):
            call()


def test_a_page_pinned_for_another_guest_is_not_reached() -> None:
    host = machine()
    (pa,) = addresses(pin(host, 1, RAM))
    unpinned = pfn(host, 2, RAM) << 12
    for guest, address in ((2, pa), (2, unpinned), (1, unpinned), (1, 0), (1, (1 << 64) - 8)):
        with pytest.raises(InvariantError):
            host.read_pinned(guest, address, 1)
        with pytest.raises(InvariantError):
            host.write_pinned(guest, address & ~(PAGE - 1), [(0, b"x")])
    with pytest.raises(InvariantError):
        host.read_pinned(1, pa + PAGE - 1, 2)
    with pytest.raises(InvariantError):
        host.write_pinned(1, pa + 8, [(0, b"x")])


# -- hooks -----------------------------------------------------------------------------------------


def test_the_rest_of_the_machine_is_whatever_was_plugged_in() -> None:
    seen: list[object] = []
    host = machine()
    assert host.smc(0xB2000001, 2, 3, 4, 5, 6, 7, 8) == (0xFFFF_FFFF, 2, 3, 4)
    assert host.should_preempt() is False
    assert host.now() == 0
    host.inject_virq(1, 40)
    host.set_timer(5)
    host.log(1, "nobody listens")

    def secure_smc(*regs: int) -> tuple[int, int, int, int]:
        seen.append(regs)
        return 9, 8, 7, 6

    host.secure_smc = secure_smc
    host.preempt_policy = lambda: True
    host.clock = lambda: 12345
    host.virq_sink = lambda guest, intid: seen.append((guest, intid))
    host.timer = seen.append
    host.log_sink = lambda guest, text: seen.append((guest, text))
    host.quarantine_sink = lambda guest, answer: seen.append((guest, answer))
    assert host.smc(1, 2, 3, 4, 5, 6, 7, 8) == (9, 8, 7, 6)
    assert host.should_preempt() is True
    assert host.now() == 12345
    host.inject_virq(1, 40)
    host.set_timer(None)
    host.log(1, "text")
    host.quarantine(1, 0xFFFF_FFFF)
    assert seen == [(1, 2, 3, 4, 5, 6, 7, 8), (1, 40), None, (1, "text"), (1, 0xFFFF_FFFF)]


def test_the_read_hook_strikes_after_each_read_but_not_after_list_reads() -> None:
    """The memory changes right after the look: the copy is what was there before."""
    host = machine()
    seen: list[tuple[int, int, int]] = []

    def strike(guest: int, address: int, length: int) -> None:
        seen.append((guest, address, length))
        host.guest_write(1, RAM, b"changed!")

    host.guest_write(1, RAM, b"original")
    (pa,) = addresses(pin(host, 1, RAM))
    host.read_hook = strike
    assert host.read_guest(1, RAM, 8) == b"original"
    assert host.read_guest(1, RAM, 8) == b"changed!"
    host.read_page_list(1, RAM, 1)
    assert host.read_pinned(1, pa, 8) == b"changed!"
    assert host.read_guest(1, 0, 8) is None
    assert seen == [(1, RAM, 8), (1, RAM, 8), (1, pa, 8)]


@pytest.mark.parametrize(
    "call", ["read_guest", "write_guest", "read_page_list", "pin_pages", "alloc_shadow"]
)
@pytest.mark.parametrize("nth", [0, 2])
def test_a_planted_fault_comes_true_once(call: str, nth: int) -> None:
    host = machine()
    calls: dict[str, Callable[[], object]] = {
        "read_guest": lambda: host.read_guest(1, RAM, 4),
        "write_guest": lambda: host.write_guest(1, RAM, [(0, b"x")]),
        "read_page_list": lambda: host.read_page_list(1, RAM, 4),
        "pin_pages": lambda: host.pin_pages(1, words(RAM)),
        "alloc_shadow": lambda: host.alloc_shadow(1),
    }
    host.faults = FaultPlan()
    host.faults.fail(call, nth)
    outcomes = [bool(calls[call]()) for _ in range(4)]
    assert outcomes == [index != nth for index in range(4)]
    assert host.faults.hits == 1
    assert host.pinned(1) == (3 if call == "pin_pages" else 0)
    host.faults.fail(call, error=OSError("the host broke"))
    before = state(host.memory)
    with pytest.raises(OSError, match="the host broke"):
        calls[call]()
    assert state(host.memory) == before


@pytest.mark.parametrize("call", ["unpin_pages", "read_pinned", "smc", "free_shadow", "nonsense"])
def test_only_what_may_refuse_can_be_made_to(call: str) -> None:
    with pytest.raises(ValueError, match="cannot refuse"):
        FaultPlan().fail(call)


def test_everything_is_an_event() -> None:
    seen: list[tuple[object, ...]] = []
    host = machine()
    host._sink = seen.append
    frames = pin(host, 1, RAM)
    (pa,) = addresses(frames)
    shadow = host.alloc_shadow(2)
    assert shadow is not None
    host.read_guest(1, RAM, 8)
    host.write_guest(1, RAM, [(8, b"abc")])
    host.read_page_list(1, RAM, 5)
    host.read_pinned(1, pa, 8)
    host.write_pinned(1, pa, [(8, b"abc")])
    host.pin_pages(1, words(0, 0))
    host.balloon_out(1, RAM, 1)
    host.unpin_pages(1, frames)
    host.free_shadow(shadow)
    assert seen == [
        events.PagesPinned(1, frames),
        events.ShadowAllocated(shadow.pa, 2),
        events.GuestRead(1, RAM, 8),
        events.GuestWritten(1, RAM, ((8, b"abc"),)),
        events.PageListRead(1, RAM, 5),
        events.PinnedRead(1, pa, 8),
        events.PinnedWritten(1, pa, ((8, b"abc"),)),
        events.PinRefused(1, 2),
        events.Stage2Changed(1, RAM, 1, stage2.ABSENT),
        events.PagesUnpinned(1, frames),
        events.FramesReleased(host.record(1).owner, 1),
        events.ShadowFreed(shadow.pa, 2),
    ]
