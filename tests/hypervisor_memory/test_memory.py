# SPDX-License-Identifier: BSD-2-Clause
"""Contents of physical memory: sparse, private, scrubbed, never outside of RAM."""

from __future__ import annotations

import os
import tracemalloc
import warnings

import pytest

from mediator.hypervisor import lazy
from mediator.hypervisor.errors import InvariantError
from mediator.hypervisor.frames import FIRST_GUEST
from mediator.hypervisor.memory import BANK_SIZE, PhysicalMemory
from tests.hypervisor_memory.support import FIRST, PAGE

BASE = FIRST * PAGE
GUEST = FIRST_GUEST
OTHER = FIRST_GUEST + 1


def test_what_was_written_is_read_and_the_rest_is_zero() -> None:
    memory = PhysicalMemory(64, FIRST)
    memory.write(BASE + 5 * PAGE + 4090, b"abcdef")
    assert memory.read(BASE + 5 * PAGE + 4088, 8) == b"\0\0abcdef"
    assert memory.read(BASE, PAGE) == bytes(PAGE)
    assert memory.read(BASE + 40 * PAGE, PAGE) == bytes(PAGE)
    memory.page(BASE + 5 * PAGE)[0:2] = b"xy"
    memory.copy_page(BASE + 5 * PAGE, BASE + 63 * PAGE)
    assert memory.read(BASE + 63 * PAGE, 2) == b"xy"
    assert memory.read(BASE + 63 * PAGE + 4090, 6) == b"abcdef"


@pytest.mark.parametrize(
    ("pa", "length"),
    [
        (0, 1),
        (BASE - 1, 1),
        (BASE + 64 * PAGE, 1),
        (BASE + 64 * PAGE - 1, 2),
        (BASE + PAGE - 1, 2),
        (BASE, PAGE + 1),
        (1 << 52, 8),
        ((1 << 64) - 8, 8),
        (-8, 8),
    ],
)
def test_accesses_outside_of_ram_or_across_pages_are_loud(pa: int, length: int) -> None:
    memory = PhysicalMemory(64, FIRST)
    memory.write(BASE, bytes(PAGE))
    with pytest.raises(InvariantError):
        memory.read(pa, length)
    with pytest.raises(InvariantError):
        memory.write(pa, bytes(length))


def test_a_big_machine_costs_nothing_until_it_is_used() -> None:
    tracemalloc.start()
    try:
        memory = PhysicalMemory()
        memory.allocate(GUEST, 1 << 20)
        memory.write(memory.first * PAGE, b"x")
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # The table itself is a mapping of the operating system, which commits what is touched.
    assert used < 2 * BANK_SIZE


@pytest.mark.parametrize("pages", [1, 16, 17, 40])
def test_a_freed_frame_is_zero_for_the_next_owner(pages: int) -> None:
    memory = PhysicalMemory(64, FIRST)
    memory.claim(GUEST, FIRST + 3, pages)
    memory.claim(OTHER, FIRST)
    for index in range(-3, pages):
        memory.write(BASE + (3 + index) * PAGE, b"secret")
    memory.release(GUEST, FIRST + 3, pages)
    for index in range(pages):
        assert memory.read(BASE + (3 + index) * PAGE, PAGE) == bytes(PAGE)
    assert memory.read(BASE, 6) == b"secret"


@pytest.mark.parametrize("limit", [1, 5, 8192])
def test_views_show_the_page_whatever_was_forgotten_or_scrubbed(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mediator.hypervisor.memory.MAX_VIEWS", limit)
    memory = PhysicalMemory(64, FIRST)
    memory.claim(GUEST, FIRST, 64)
    for index in range(64):
        memory.write(BASE + index * PAGE, bytes([index]) * 8)
        assert len(memory.views) <= limit
    for index in range(64):
        assert memory.view(BASE + index * PAGE)[:8] == bytes([index]) * 8
        assert memory.read(BASE + index * PAGE, 9) == bytes([index]) * 8 + b"\0"
    # All of the first two banks, part of the third: what is viewed afterwards is what is there.
    memory.release(GUEST, FIRST, 40)
    memory.claim(OTHER, FIRST, 40)
    memory.write(BASE + 3 * PAGE, b"new")
    assert {memory.views[pfn][:3].tobytes() for pfn in memory.views if pfn < FIRST + 40} <= {
        b"new",
        bytes(3),
    }
    assert memory.view(BASE + 3 * PAGE)[:8] == b"new" + bytes(5)
    assert memory.read(BASE + 41 * PAGE, 2) == b"))"


def test_a_scattered_layout_is_a_permutation_that_the_seed_fixes() -> None:
    layouts = [
        PhysicalMemory(600, FIRST).allocate_scattered(GUEST, 500, seed) for seed in (1, 1, 2)
    ]
    first, again, other = (layout.tolist() for layout in layouts if layout is not None)
    assert first == again != other
    assert sorted(first) == sorted(other) == list(range(FIRST, FIRST + 500))
    assert first != sorted(first)
    assert PhysicalMemory(600, FIRST).allocate_scattered(GUEST, 601, 1) is None


def test_attached_memory_is_the_content_and_stays_it_when_frames_are_freed() -> None:
    memory = PhysicalMemory(256, FIRST)
    buffer = bytearray(2 * BANK_SIZE)
    memory.attach(BASE + BANK_SIZE, memoryview(buffer))
    memory.claim(GUEST, FIRST, 64)
    memory.write(BASE + BANK_SIZE + 100, b"live")
    assert buffer[100:104] == b"live"
    buffer[BANK_SIZE : BANK_SIZE + 3] = b"abc"
    assert memory.read(BASE + 2 * BANK_SIZE, 3) == b"abc"
    memory.release(GUEST, FIRST, 64)
    assert buffer == bytes(2 * BANK_SIZE)
    memory.write(BASE + BANK_SIZE, b"again")
    assert buffer[:5] == b"again"


@pytest.mark.parametrize(
    ("offset", "size"), [(PAGE, BANK_SIZE), (0, BANK_SIZE - PAGE), (15 * BANK_SIZE, 2 * BANK_SIZE)]
)
def test_only_whole_empty_banks_can_be_attached(offset: int, size: int) -> None:
    memory = PhysicalMemory(256, FIRST)
    with pytest.raises(InvariantError):
        memory.attach(BASE + offset, memoryview(bytearray(size)))
    memory.write(BASE, b"x")
    with pytest.raises(InvariantError, match="already"):
        memory.attach(BASE, memoryview(bytearray(BANK_SIZE)))


def test_detached_memory_reads_as_zeroes_and_leaves_the_buffer_as_it_is() -> None:
    memory = PhysicalMemory(256, FIRST)
    buffer = bytearray(2 * BANK_SIZE)
    memory.attach(BASE + BANK_SIZE, memoryview(buffer))
    memory.write(BASE + BANK_SIZE, b"live")
    memory.write(BASE, b"kept")
    memory.detach(BASE + BANK_SIZE, 2 * BANK_SIZE)
    assert memory.read(BASE + BANK_SIZE, 4) == bytes(4)
    memory.write(BASE + BANK_SIZE, b"new")
    assert buffer[:4] == b"live"
    assert memory.read(BASE, 4) == b"kept"
    memory.scrub(FIRST, FIRST + 64)
    assert memory.read(BASE + BANK_SIZE, 3) == bytes(3)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(PAGE, BANK_SIZE), (0, BANK_SIZE), (BANK_SIZE, 0), (BANK_SIZE, 3 * BANK_SIZE)],
)
def test_only_what_is_attached_can_be_detached(offset: int, size: int) -> None:
    memory = PhysicalMemory(256, FIRST)
    buffer = bytearray(2 * BANK_SIZE)
    memory.attach(BASE + BANK_SIZE, memoryview(buffer))
    with pytest.raises(InvariantError, match="detach"):
        memory.detach(BASE + offset, size)
    memory.write(BASE + BANK_SIZE, b"still")
    assert buffer[:5] == b"still"


def test_large_memory_without_the_mmap_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "mmap", None)
    memory = PhysicalMemory(1 << 20, FIRST)
    memory.claim(GUEST, FIRST + 5)
    assert memory.owner(FIRST + 5) == GUEST
    assert lazy.zeroed(3 << 20).nbytes == 3 << 20


def fork() -> int:
    with warnings.catch_warnings():
        # The test runner may have threads; the child only writes memory and leaves.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


if hasattr(os, "fork"):

    def test_forked_workers_do_not_share_memory() -> None:
        memory = PhysicalMemory(1 << 20, FIRST)
        memory.write(BASE, b"parent")
        memory.claim(GUEST, FIRST)
        child = fork()
        if child == 0:
            memory.write(BASE, b"child!")
            memory.claim(GUEST, FIRST + 1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert memory.read(BASE, 6) == b"parent"
        assert memory.owner(FIRST + 1) == 0
