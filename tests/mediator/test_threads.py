# SPDX-License-Identifier: BSD-2-Clause
"""Suspended calls: whose they are, how they go on, and that none is stuck (classes 7, 23, 28)."""

from __future__ import annotations

import struct

import pytest

from mediator.deployment.face import Done
from mediator.host import PAGE_SIZE
from mediator.optee.core import MAX_LOGGED_FINDINGS
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, answer, msg, request

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
REGD = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
ERESUME = smc.OPTEE_SMC_RETURN_ERESUME
LIMIT = smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
OUT_OF_MEMORY = 0xFFFF000C
BUFFER = RAM + 0x50_000


@pytest.fixture
def rig() -> Rig:
    return Rig()


def suspend(rig: Rig, thread: int = 1, ipa: int = RAM, guest: int = 0) -> None:
    rig.put(ipa, msg(1), guest)
    rig.host.script = [answer(INTR, 0, 0, thread)]
    assert rig.call(RPC_ARG, 0, ipa, guest=guest)[3] == thread


def test_a_thread_that_runs_cannot_be_resumed(rig: Rig) -> None:
    """Another processor resumes the call while the TEE works on it."""
    suspend(rig)
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        entries = len(rig.host.sent)
        seen.append(rig.call(RETURN, 0, 0, 1)[0])
        assert len(rig.host.sent) == entries, "the TEE is not entered"
        return (INTR, 0, 0, 1)

    rig.host.script = [script]
    assert rig.call(RETURN, 0, 0, 1)[0] == INTR
    assert seen == [ERESUME]
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert rig.info() == (0, 0, 0, 0)


@pytest.mark.parametrize("thread", [0, 2, 0x1_0000, 0xFFFF_FFFF])
def test_what_is_not_suspended_here_is_not_the_tees_to_judge(rig: Rig, thread: int) -> None:
    suspend(rig)
    suspend(rig, 2, guest=1)
    entries = len(rig.host.sent)
    assert rig.call(RETURN, 0, 0, thread)[0] == ERESUME
    assert len(rig.host.sent) == entries
    assert rig.info() == (1, 0, 0, 0)
    assert rig.info(1) == (1, 0, 0, 0)


def test_a_call_that_was_stopped_here_is_nobody_elses() -> None:
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    rig.host.preempt = [True]
    rig.register(5, [RAM + 0x100_000 + index * PAGE_SIZE for index in range(600)])
    assert rig.call(RETURN, 0, 0, 0x1_0000, guest=1)[0] == ERESUME
    assert rig.info() == (1, 1, 600, 0)
    assert rig.call(RETURN, 0, 0, 0x1_0000)[0] == 0


def test_a_tee_that_refuses_to_resume_ends_the_call(rig: Rig) -> None:
    """Neither suspended nor ended would be a call in flight for ever."""
    rig.put(RAM, msg(1, params=[(9, BUFFER, 64, 5)]))
    rig.host.script = [answer(INTR, 0, 0, 1)]
    assert rig.call(RPC_ARG, 0, RAM)[3] == 1
    assert rig.pinned() == 1
    rig.host.script = [answer(ERESUME)]
    assert rig.call(RETURN, 0, 0, 1)[0] == ERESUME
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()


def test_a_call_whose_request_could_not_be_written_is_not_left_suspended(rig: Rig) -> None:
    rig.put(RAM, msg(1))

    def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
        rig.host.kinds[0, RAM] = "ro"
        return request(msg(3, params=[(2, 0, 0, 0)]))(rig, regs)

    def end(rig: Rig, regs: tuple[int, ...]) -> Answer:
        rig.host.kinds[0, RAM] = "rw"
        return (0, 0, 0, 0)

    rig.host.script = [ask, end]
    assert rig.call(RPC_ARG, 0, RAM)[0] == 0
    assert rig.host.sent[-1][:4] == (RETURN, 0, 0, 1)
    entries = len(rig.host.sent)
    assert rig.call(RETURN, 0, 0, 1)[0] == ERESUME
    assert len(rig.host.sent) == entries
    assert rig.info() == (0, 0, 0, 0)
    suspend(rig, 1)
    assert rig.call(RETURN, 0, 0, 1)[0] == 0, "the TEE may use the thread again"


def test_an_id_that_the_tee_uses_twice_loses_no_call(rig: Rig) -> None:
    """The second call ends, but one of the TEE's threads may have its buffer until the guest ends."""
    suspend(rig)
    rig.put(RAM + 0x3000, msg(1, params=[(9, BUFFER, 64, 5)]))
    rig.host.script = [answer(INTR, 0, 0, 1)]
    assert rig.call(RPC_ARG, 0, RAM + 0x3000)[0] == 0
    assert rig.message(RAM + 0x3000, 1)[5:7] == (0xFFFF000E, 2)
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert rig.info() == (0, 1, 1, 0)
    assert rig.pinned() == 1
    assert rig.tee.destroy_guest(0) == Done()
    assert not rig.pinned()


@pytest.mark.parametrize("fails", [False, True])
def test_an_id_that_the_tee_uses_while_its_thread_waits_for_the_mediator(fails: bool) -> None:
    """A long SHM_ALLOC answer is being walked when the TEE gives its thread's id to another call.

    The walk stops on the way, or the guest must be asked to free what it allocated: the first call
    goes to the guest once more, and neither of the two is lost.
    """
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    rig.put(RAM, msg(1))
    rig.host.script = [request(msg(6, ret=0xFFFF0000, params=[(1, 0, 4096, 8)]))]
    assert rig.call(RPC_ARG, 0, RAM)[3] == 1
    pages = [BUFFER] * 599 + [0x7000_0000 if fails else BUFFER]
    rig.put_list(RAM + 0x20_000, pages)
    rig.put(RAM + 32, msg(6, params=[(0x20A, RAM + 0x20_000, 600 * PAGE_SIZE, 9)]))
    read = rig.host.read_page_list
    other: list[tuple[int, ...]] = []

    def racing(guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        if not other:
            other.append(())
            rig.put(RAM + 0x3000, msg(1))
            rig.host.script = [answer(INTR, 0, 0, 1)]
            other[0] = rig.call(RPC_ARG, 0, RAM + 0x3000)
        return read(guest, ipa, entries)

    rig.host.read_page_list = racing  # type: ignore[method-assign]
    rig.host.preempt = [not fails]
    assert rig.call(RETURN, 0, 0, 1)[:4] == (CMD if fails else INTR, 0, 0, 1)
    assert other[0][0] == 0, "the TEE's mistake ends the call that it was made with"
    assert rig.message(RAM + 0x3000, 0)[5:7] == (0xFFFF000E, 2)
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert rig.info()[0] == 0, "no call is in flight for ever"
    assert rig.pinned() == (0 if fails else 600)


def test_a_guest_that_takes_its_page_away_does_not_keep_the_processor(rig: Rig) -> None:
    """The TEE asks again and again; each request fails, and now and then the guest may run."""
    rig.put(RAM, msg(1))

    def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
        rig.host.kinds[0, RAM] = "ro"
        return request(msg(3, params=[(2, 0, 0, 0)]))(rig, regs)

    rig.host.script = [ask] * 100
    assert rig.call(RPC_ARG, 0, RAM) == (INTR, 0, 0, 1, *[0x77] * 4)
    assert len(rig.host.sent) < 50
    assert rig.info() == (1, 0, 0, 0)
    while rig.host.script:
        entries = len(rig.host.sent)
        out = rig.call(RETURN, 0x11, 0x22, 1)
        assert rig.host.sent[entries] == (RETURN, 0, 0, 1, 0, 0, 0, 1)
        assert len(rig.host.sent) - entries < 50
        assert out[0] in (INTR, smc.OPTEE_SMC_RETURN_EBADADDR)
    assert rig.info() == (0, 0, 0, 0)


def test_a_request_larger_than_its_room_shows_nothing_to_the_guest(rig: Rig) -> None:
    """The TEE says 100 parameters where four have room: what lies behind is not the guest's."""
    rig.put(RAM, msg(1))
    rig.put(RAM + 32, b"\x11" * (PAGE_SIZE - 32))
    seen = []

    def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
        page = rig.shadow()
        page[32:] = b"\x99" * (PAGE_SIZE - 32)
        page[32:64] = struct.pack("<8I", 3, 0, 0, 0, 0, 0, 0, 100)
        return (CMD, 0, 0, 1)

    def told(rig: Rig, regs: tuple[int, ...]) -> Answer:
        seen.append(struct.unpack_from("<I", rig.shadow(), 32 + 20)[0])
        return (0, 0, 0, 0)

    rig.host.script = [ask, told]
    assert rig.call(RPC_ARG, 0, RAM)[0] == 0
    assert seen == [0xFFFF0000]
    assert rig.get(RAM + 32, 64) == b"\x11" * 64


def test_a_request_in_an_unknown_buffer_is_answered_here() -> None:
    """The TEE names a buffer that was freed; another one of the same guest is not taken for it."""
    rig = Rig()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
    rig.call(ARG, 0, RAM)
    rig.host.script = [answer(CMD, 0, 6, 1), answer(INTR, 0, 0, 1)]
    assert rig.call(RETURN, 0, RAM + 0x8000, 1, 0, 5)[0] == INTR
    assert rig.host.sent[-1] == (RETURN, 0, 0, 1, 0, 0, 0, 1)
    assert not any(rig.get(RAM + 0x8000, 64))


def test_a_request_goes_through_the_stage_2_of_the_moment() -> None:
    """The guest has made its RPC page read-only after ALLOC: nothing is written there."""
    rig = Rig()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
    rig.call(ARG, 0, RAM)
    rig.host.script = [answer(INTR, 0, 0, 1)]
    rig.call(RETURN, 0, RAM + 0x8000, 1, 0, 5)
    rig.host.kinds[0, RAM + 0x8000] = "ro"
    rig.put(RAM + 0x8000, b"\x55" * 64)

    def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
        shadow = next(pa for pa in rig.host.shadows if not any(rig.host.memory(pa)[:4]))
        rig.host.memory(shadow)[:64] = msg(3, params=[(2, 0, 0, 0)])
        return (CMD, 0, 5, 1)

    rig.host.script = [ask, answer()]
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert rig.get(RAM + 0x8000, 64) == b"\x55" * 64


def test_findings_of_one_guest_do_not_flood_the_log(rig: Rig) -> None:
    for _ in range(100):
        rig.host.script = [answer(LIMIT)]
        rig.put(RAM, msg(1))
        assert rig.call(RPC_ARG, 0, RAM)[0] == LIMIT
    assert len(rig.host.logged) == MAX_LOGGED_FINDINGS
    info = rig.tee.guest_info(0)
    assert info is not None
    assert info.findings == 100


class TestLimits:
    def test_calls_of_every_kind_count(self) -> None:
        """The third call is refused, however it comes, and only that guest's."""
        rig = Rig(MediatorSettings(limits=Limits(calls=2)))
        rig.register(0x1_0000_2480, [BUFFER])
        rig.put(BUFFER, msg(1))
        suspend(rig, 1)
        suspend(rig, 2, RAM + 0x3000)
        rig.put(RAM + 0x4000, msg(1))
        entries = len(rig.host.sent)
        for out in (
            rig.call(ARG, 0, RAM + 0x4000),
            rig.call(RPC_ARG, 0, RAM + 0x4000),
            rig.call(REGD, 1, 0x2480, 0),
        ):
            assert out[0] == LIMIT
        assert len(rig.host.sent) == entries
        suspend(rig, 1, guest=1)
        assert rig.call(RETURN, 0, 0, 1)[0] == 0
        assert rig.call(REGD, 1, 0x2480, 0)[0] == 0

    def test_rpc_buffers(self) -> None:
        rig = Rig(MediatorSettings(limits=Limits(rpc_buffers=2)))
        rig.put(RAM, msg(1))
        alloc = answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)
        rig.host.script = [alloc]
        rig.call(ARG, 0, RAM)
        for cookie in range(4):
            rig.host.script = [alloc]
            rig.call(RETURN, 0, RAM + 0x8000 + cookie * PAGE_SIZE, 1, 0, cookie)
            assert bool(rig.host.sent[-1][1]) == (cookie < 2)
        assert rig.info() == (1, 0, 0, 2)
        assert rig.pinned() == 2

    @pytest.mark.parametrize(
        ("limits", "offset", "size", "fits"),
        [
            (Limits(buffer_pages=2), 0, 2 * PAGE_SIZE, True),
            (Limits(buffer_pages=2), 1, 2 * PAGE_SIZE, False),
            (Limits(buffer_pages=2), 1, 2 * PAGE_SIZE - 1, True),
            (Limits(total_pages=2), 0, 2 * PAGE_SIZE, True),
            (Limits(total_pages=2), 0, 2 * PAGE_SIZE + 1, False),
        ],
    )
    def test_pages_are_counted_not_bytes(
        self, limits: Limits, offset: int, size: int, fits: bool
    ) -> None:
        rig = Rig(MediatorSettings(limits=limits))
        rig.register(5, [BUFFER] * 3, offset=offset, size=size)
        assert rig.message(RAM + 0x1000, 1)[5] == (0 if fits else OUT_OF_MEMORY)

    def test_one_guests_pages_are_not_anothers(self) -> None:
        rig = Rig(MediatorSettings(limits=Limits(total_pages=2)))
        for guest in (0, 1):
            rig.register(5, [BUFFER] * 2, guest=guest)
            assert rig.message(RAM + 0x1000, 1, guest)[5] == 0

    @pytest.mark.parametrize("limits", [Limits(buffers=1), Limits(total_pages=1)])
    def test_two_processors_and_one_place(self, limits: Limits) -> None:
        """The second registers while the list of the first is being read: one of them is refused."""
        rig = Rig(MediatorSettings(limits=limits))
        read = rig.host.read_page_list
        other: list[int] = []

        def racing(guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
            if not other:
                other.append(0)
                rig.put_list(RAM + 0xB_000, [BUFFER])
                rig.put(RAM + 0x2000, msg(4, params=[(0x20A, RAM + 0xB_000, PAGE_SIZE, 6)]))
                rig.call(RPC_ARG, 0, RAM + 0x2000, 0)
                other[0] = rig.message(RAM + 0x2000, 1)[5]
            return read(guest, ipa, entries)

        rig.host.read_page_list = racing  # type: ignore[method-assign]
        rig.register(5, [BUFFER])
        assert sorted([rig.message(RAM + 0x1000, 1)[5], other[0]]) == [0, OUT_OF_MEMORY]
        assert rig.info() == (0, 1, 1, 0)

    def test_two_processors_and_one_name(self) -> None:
        rig = Rig()
        read = rig.host.read_page_list
        other: list[int] = []

        def racing(guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
            if not other:
                other.append(0)
                rig.put_list(RAM + 0xB_000, [BUFFER])
                rig.put(RAM + 0x2000, msg(4, params=[(0x20A, RAM + 0xB_000, PAGE_SIZE, 5)]))
                rig.call(RPC_ARG, 0, RAM + 0x2000, 0)
                other[0] = rig.message(RAM + 0x2000, 1)[5]
            return read(guest, ipa, entries)

        rig.host.read_page_list = racing  # type: ignore[method-assign]
        rig.register(5, [BUFFER])
        assert other == [0xFFFF0006]
        assert rig.info() == (0, 1, 1, 0)
        assert rig.pinned() == 1
