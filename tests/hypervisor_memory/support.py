# SPDX-License-Identifier: BSD-2-Clause
"""Small machines, and the audit that every test of the books ends with."""

from __future__ import annotations

import struct
from collections import Counter

from mediator.hypervisor.frames import (
    BLOCK,
    FIRST_GUEST,
    GUARD,
    HELD,
    MAPPING,
    MAPPING_MASK,
    OWNER_SHIFT,
    PIN_MASK,
    ZOMBIE,
    FrameTable,
)
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory

PAGE = 4096
RAM = 0x4000_0000
"""IPA at which the guests of these tests have their RAM."""
FIRST = 0x8_0000
FRAMES = 4 * BLOCK + 37
"""A machine of a few blocks, the last of them not full."""


def machine(frames: int = FRAMES, guests: int = 2, pages: int = 64) -> ReferenceHost:
    """A host with ``guests`` guests (ids from 1) of ``pages`` pages each at :data:`RAM`."""
    host = ReferenceHost(PhysicalMemory(frames, FIRST))
    for guest in range(1, guests + 1):
        host.add_guest(guest)
        assert host.populate(guest, RAM, pages)
    return host


def words(*addresses: int) -> bytes:
    """Page addresses as they cross the host boundary."""
    return struct.pack(f"<{len(addresses)}Q", *addresses)


def addresses(frames: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(frames) // 8}Q", frames)


def pfn(host: ReferenceHost, guest: int, ipa: int) -> int:
    """Frame behind a page of a guest."""
    return host.stage2(guest).lookup(ipa >> 12)[0]


def pin(host: ReferenceHost, guest: int, *ipas: int) -> bytes:
    """Pin pages that can be pinned."""
    frames = host.pin_pages(guest, words(*ipas))
    assert frames is not None
    return frames


def audit(table: FrameTable) -> None:
    """Every word is well formed, and all counters are what the words add up to."""
    owned: Counter[int] = Counter()
    zombies: Counter[int] = Counter()
    free = 0
    for number in range(table.first, table.end):
        word = table.word(number)
        assert not word & GUARD
        if not word:
            free += 1
            continue
        owned[word >> OWNER_SHIFT] += 1
        if word & ZOMBIE:
            assert word & HELD, f"zombie {number:#x} without references was not freed"
            zombies[word >> OWNER_SHIFT] += 1
    assert free == table.free_frames
    for owner in range(FIRST_GUEST + 8):
        assert table.owned(owner) == owned[owner]
        assert table.zombies(owner) == zombies[owner]


def state(table: FrameTable) -> list[int]:
    """All words, for comparing two moments."""
    table.fill(table.first, table.end - table.first)
    words: list[int] = table.array[table.first : table.end].tolist()
    return words


def references(word: int) -> tuple[int, int]:
    """Pins and mappings in a word."""
    return word & PIN_MASK, (word & MAPPING_MASK) // MAPPING
