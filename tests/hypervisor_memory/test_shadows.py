# SPDX-License-Identifier: BSD-2-Clause
"""Pages of the mediator: zeroed, adjacent, limited, and loud after they were given back."""

from __future__ import annotations

import random
from pickle import PickleBuffer

import pytest

from mediator.host import Shadow
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import MEDIATOR, POOL
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.shadows import ARENA_PAGES
from tests.hypervisor_memory.support import FIRST, PAGE, addresses, machine, words


def host_of(frames: int, limit: int | None = None) -> ReferenceHost:
    return ReferenceHost(PhysicalMemory(frames, FIRST), shadow_limit=limit)


def take(host: ReferenceHost, pages: int) -> Shadow:
    shadow = host.alloc_shadow(pages)
    assert shadow is not None
    return shadow


@pytest.mark.parametrize("pages", [1, 2, 17, ARENA_PAGES, ARENA_PAGES + 1, 514])
def test_a_shadow_is_zeroed_adjacent_memory_of_the_mediator(pages: int) -> None:
    host = machine(4096)
    for _ in range(3):
        shadow = take(host, pages)
        assert len(shadow.mem) == pages * PAGE
        assert addresses(shadow.pages) == tuple(range(shadow.pa, shadow.pa + pages * PAGE, PAGE))
        assert bytes(shadow.mem) == bytes(pages * PAGE)
        for index in range(pages):
            assert host.memory.owner((shadow.pa >> 12) + index) == MEDIATOR
        shadow.mem[:] = b"\xa5" * len(shadow.mem)
        assert host.memory.read(shadow.pa + (pages - 1) * PAGE, 4) == b"\xa5" * 4
        host.memory.write(shadow.pa, b"TEE")
        assert bytes(shadow.mem[:3]) == b"TEE"
        host.free_shadow(shadow)
    assert host.shadows.in_use == 0


def test_shadows_in_use_never_overlap() -> None:
    host = host_of(4096)
    draw = random.Random(5)
    live: list[Shadow] = []
    for _ in range(400):
        if live and draw.random() < 0.45:
            host.free_shadow(live.pop(draw.randrange(len(live))))
        else:
            shadow = host.alloc_shadow(draw.choice([1, 1, 1, 2, 5, 40, 300]))
            if shadow is not None:
                assert bytes(shadow.mem[:8]) == bytes(8)
                shadow.mem[:8] = shadow.pa.to_bytes(8, "little")
                live.append(shadow)
        used = sorted(pa for shadow in live for pa in addresses(shadow.pages))
        assert len(set(used)) == len(used) == host.shadows.in_use
        assert host.shadows.pages_in_use() == used
        for shadow in live:
            assert int.from_bytes(shadow.mem[:8], "little") == shadow.pa
    for shadow in live:
        host.free_shadow(shadow)
    assert host.shadows.pages_in_use() == []


def test_the_memory_of_a_freed_shadow_is_closed() -> None:
    host = machine()
    shadow = take(host, 1)
    host.free_shadow(shadow)
    with pytest.raises(ValueError, match="released"):
        shadow.mem[0] = 1
    assert host.memory.owner(shadow.pa >> 12) == POOL


def test_a_view_on_a_freed_shadow_that_cannot_be_closed_is_counted() -> None:
    host = machine()
    shadow = take(host, 2)
    view = PickleBuffer(shadow.mem)
    host.free_shadow(shadow)
    assert host.shadows.left_open == 1
    assert view.raw().nbytes == 2 * PAGE


@pytest.mark.parametrize("pages", [1, 3])
def test_freeing_twice_is_loud(pages: int) -> None:
    host = machine()
    shadow = take(host, pages)
    host.free_shadow(shadow)
    with pytest.raises(InvariantError, match="not in use"):
        host.free_shadow(shadow)
    assert host.shadows.in_use == 0


def test_only_shadows_can_be_freed() -> None:
    host = machine()
    one, two, three = sorted((take(host, 1) for _ in range(3)), key=lambda shadow: shadow.pa)
    guest_page = host.memory.page((FIRST << 12) + PAGE)
    with pytest.raises(InvariantError):
        host.free_shadow(Shadow(words((FIRST << 12) + PAGE), guest_page))
    with pytest.raises(InvariantError):
        host.free_shadow(Shadow(words(1 << 63), guest_page))
    with pytest.raises(InvariantError, match="one shadow"):
        host.free_shadow(Shadow(one.pages + three.pages + two.pages, one.mem))
    assert host.shadows.in_use == 3


def test_the_limit_counts_pages_in_use() -> None:
    host = host_of(4096, limit=5)
    shadows = [take(host, 1), take(host, 4)]
    assert host.alloc_shadow(1) is None
    host.free_shadow(shadows.pop())
    assert host.alloc_shadow(5) is None
    shadows.append(take(host, 4))
    assert host.alloc_shadow(1) is None


def test_exhausted_ram_is_an_answer() -> None:
    host = host_of(64)
    assert host.alloc_shadow(65) is None
    shadows = [host.alloc_shadow(1) for _ in range(70)]
    given = [shadow for shadow in shadows if shadow is not None]
    assert 0 < len(given) <= 64
    assert shadows[-1] is None
    host.free_shadow(given[0])
    assert host.alloc_shadow(1) is not None


def test_single_pages_come_together_again_for_a_large_shadow() -> None:
    host = host_of(ARENA_PAGES + 16)
    singles = [take(host, 1) for _ in range(ARENA_PAGES)]
    assert host.alloc_shadow(ARENA_PAGES) is None
    for shadow in singles:
        host.free_shadow(shadow)
    assert len(take(host, ARENA_PAGES).mem) == ARENA_PAGES * PAGE


def test_a_restored_mediator_finds_its_shadows_again() -> None:
    host = machine()
    shadow = take(host, 3)
    shadow.mem[5000:5004] = b"keep"
    again = host.map_shadow(shadow.pages)
    assert again.pages == shadow.pages
    assert bytes(again.mem[5000:5004]) == b"keep"
    host.free_shadow(again)
    for pages in (shadow.pages, words(FIRST << 12), b""):
        with pytest.raises(InvariantError):
            host.map_shadow(pages)


def test_no_pages_is_no_shadow() -> None:
    with pytest.raises(InvariantError):
        machine().alloc_shadow(0)
