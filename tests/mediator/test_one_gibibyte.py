# SPDX-License-Identifier: BSD-2-Clause
"""Buffers of 1 GiB through the reference host, with the default limits."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mediator.deployment.face import Completed, Done
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import PAGE_LIST_ENTRIES, PAGE_SIZE
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import msg

GUEST = 1
RAM = 0x4000_0000
GIB = 1 << 30
PAGES = GIB // PAGE_SIZE
MESSAGE = RAM + GIB + (4 << 20)
LISTS = MESSAGE + PAGE_SIZE
MOST = Limits().buffer_pages
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
OUT_OF_MEMORY = 0xFFFF000C


class Large:
    """A guest of 1 GiB and a little, whose frames lie three apart, and a TEE that reads its lists."""

    def __init__(self, **limits: int) -> None:
        self.host = ReferenceHost(PhysicalMemory())
        self.host.add_guest(GUEST)
        assert self.host.populate(GUEST, RAM, PAGES + 1024, seed=5)
        assert self.host.populate(GUEST, MESSAGE, 1024)
        self.host.secure_smc = self.smc
        self.tee = InHypervisor(self.host, MediatorSettings(limits=Limits(**limits)))
        assert self.tee.create_guest(GUEST) == Done()
        self.frames: np.ndarray[tuple[int], np.dtype[np.uint64]] = np.zeros(0, np.uint64)
        self.pinned = 0
        self.stops = 0

    def smc(self, *regs: int) -> tuple[int, int, int, int]:
        if regs[0] == smc.OPTEE_SMC_CALL_WITH_ARG:
            memory = self.host.memory
            message = memory.page(regs[1] << 32 | regs[2])
            (command,) = struct.unpack_from("<I", message)
            address, size = struct.unpack_from("<2Q", message, 40)
            if command != 5:
                left = (address % PAGE_SIZE + size + PAGE_SIZE - 1) // PAGE_SIZE
                found = []
                while left > 0:
                    words = np.frombuffer(memory.page(address & -PAGE_SIZE), "<u8")
                    found.append(words[: min(left, PAGE_LIST_ENTRIES)])
                    left -= PAGE_LIST_ENTRIES
                    address = int(words[PAGE_LIST_ENTRIES])
                self.frames = np.concatenate(found)
                self.pinned = self.host.pinned(GUEST)
        return 0, 0, 0, 0

    def call(self, body: bytes) -> int:
        """The result in the message, however often the walk stopped."""
        self.host.guest_write(GUEST, MESSAGE, body)
        regs: tuple[int, ...]
        regs = (smc.OPTEE_SMC_CALL_WITH_ARG, MESSAGE >> 32, MESSAGE & 0xFFFF_FFFF, 0, 0, 0, 0, 0)
        while True:
            outcome = self.tee.handle(GUEST, 0, regs)
            assert isinstance(outcome, Completed)
            if outcome.regs[0] != INTR:
                break
            self.stops += 1
            regs = (RETURN, *outcome.regs[1:])
        assert outcome.regs[0] == 0
        (result,) = struct.unpack("<I", self.host.guest_read(GUEST, MESSAGE + 20, 4))
        return int(result)

    def list_of(self, gfns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        count = -(-len(gfns) // PAGE_LIST_ENTRIES)
        words = np.zeros((count, 512), "<u8")
        flat = np.zeros(count * PAGE_LIST_ENTRIES, "<u8")
        flat[: len(gfns)] = gfns * PAGE_SIZE
        words[:, :PAGE_LIST_ENTRIES] = flat.reshape(count, PAGE_LIST_ENTRIES)
        words[:-1, PAGE_LIST_ENTRIES] = LISTS + PAGE_SIZE * np.arange(1, count)
        self.host.guest_write(GUEST, LISTS, words.tobytes())

    def expected(self, gfns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
        pfns, _ = self.host.stage2(GUEST).gather(gfns)
        return bool(np.array_equal(self.frames, pfns.astype(np.uint64) * np.uint64(PAGE_SIZE)))


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize(("offset", "pages"), [(0, PAGES), (0xFFF, PAGES + 1)])
def test_registered_walked_and_let_go(offset: int, pages: int, stops: bool) -> None:
    """1 GiB at any offset into its first page, in one go or stopped after every list page."""
    large = Large(walk_entries=PAGE_LIST_ENTRIES) if stops else Large()
    large.host.preempt_policy = lambda: stops
    gfns = np.random.default_rng(1).permutation(pages).astype(np.int64) + (RAM >> 12)
    large.list_of(gfns)
    assert large.call(msg(4, params=[(0x20A, LISTS | offset, GIB, 7)])) == 0
    assert large.expected(gfns)
    assert large.pinned == pages
    assert large.stops == (-(-pages // PAGE_LIST_ENTRIES) - 1 if stops else 0)
    info = large.tee.guest_info(GUEST)
    assert info is not None
    assert (info.calls, info.buffers, info.pages) == (0, 1, pages)
    large.host.preempt_policy = None
    assert large.call(msg(5, params=[(5, 0, 0, 7)])) == 0
    assert large.host.pinned(GUEST) == 0


@pytest.mark.parametrize("attr", [0x9, 0x209])
def test_temporary(attr: int) -> None:
    large = Large()
    gfns = np.arange(PAGES, dtype=np.int64) + (RAM >> 12)
    large.list_of(gfns)
    address = RAM if attr == 0x9 else LISTS
    assert large.call(msg(1, params=[(attr, address, GIB, 7)])) == 0
    assert large.expected(gfns)
    assert large.pinned == PAGES
    assert large.host.pinned(GUEST) == 0


@pytest.mark.parametrize("attr", [0x9, 0x209])
@pytest.mark.parametrize("size", [GIB + PAGE_SIZE, GIB + PAGE_SIZE + 1])
def test_the_default_limit_is_one_page_above(attr: int, size: int) -> None:
    large = Large()
    pages = -(-size // PAGE_SIZE)
    large.list_of(np.arange(pages, dtype=np.int64) + (RAM >> 12))
    address = RAM if attr == 0x9 else LISTS
    result = large.call(msg(1, params=[(attr, address, size, 7)]))
    assert result == (0 if pages <= MOST else OUT_OF_MEMORY)
    assert large.pinned == (pages if pages <= MOST else 0)
    assert large.host.pinned(GUEST) == 0


def test_four_of_them_and_no_more() -> None:
    """A guest has 4 GiB of pins in all by default, which may be the same pages again."""
    large = Large()
    gfns = np.arange(PAGES, dtype=np.int64) + (RAM >> 12)
    large.list_of(gfns)
    results = [large.call(msg(4, params=[(0x20A, LISTS, GIB, 7 + i)])) for i in range(5)]
    assert results == [0, 0, 0, 0, OUT_OF_MEMORY]
    assert large.host.pinned(GUEST) == 4 * PAGES == Limits().total_pages
    assert large.tee.destroy_guest(GUEST) == Done()
    assert large.host.pinned(GUEST) == 0


def test_a_bad_page_at_the_very_end() -> None:
    large = Large(walk_entries=PAGE_LIST_ENTRIES)
    large.host.preempt_policy = lambda: True
    gfns = np.arange(PAGES, dtype=np.int64) + (RAM >> 12)
    gfns[-1] = 3
    large.list_of(gfns)
    assert large.call(msg(4, params=[(0x20A, LISTS, GIB, 7)])) == 0xFFFF0006
    assert large.stops == 513
    assert large.host.pinned(GUEST) == 0
    assert large.host.shadows.in_use <= 1
