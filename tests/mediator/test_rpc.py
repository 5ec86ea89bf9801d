# SPDX-License-Identifier: BSD-2-Clause
"""RPC rounds: who decides, what never crosses, and a secure world that lies."""

from __future__ import annotations

import struct

import pytest

from mediator.host import PAGE_SIZE
from mediator.optee import events
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, Script, answer, msg, request

RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
GENERIC = 0xFFFF0000
INVOKE, SHM_ALLOC, SHM_FREE, GET_TIME = 1, 6, 7, 3
LIST = RAM + 0x20_000
AT = 32
"""The RPC argument of a message without parameters."""


def start(rig: Rig, *script: Script, guest: int = 0, ipa: int = RAM) -> tuple[int, ...]:
    rig.put(ipa, msg(INVOKE), guest)
    rig.host.script = list(script)
    return rig.call(RPC_ARG, ipa >> 32, ipa & 0xFFFF_FFFF, 0, guest=guest)


def resume(rig: Rig, thread: int, *script: Script, guest: int = 0) -> tuple[int, ...]:
    rig.host.script = list(script)
    return rig.call(RETURN, 0, 0, thread, guest=guest)


def rpc_message(rig: Rig, count: int) -> tuple[int, ...]:
    fields: tuple[int, ...] = struct.unpack_from(f"<8I{4 * count}Q", rig.shadow(), AT)
    return fields


def see(seen: list[tuple[int, ...]], count: int) -> Script:
    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        seen.append(rpc_message(rig, count))
        return (0, 0, 0, 0)

    return script


def asked_alloc(kind: int = 0, size: int = 0x1000) -> bytes:
    return msg(SHM_ALLOC, ret=GENERIC, params=[(1, kind, size, 8)])


def test_an_allocation_is_translated_and_pinned(rig: Rig) -> None:
    assert start(rig, request(asked_alloc()))[0] == CMD
    rig.put_list(LIST, [RAM + 0x50_000, RAM + 0x33_000])
    rig.put(RAM + AT, msg(SHM_ALLOC, params=[(0x20A, LIST | 0x123, 0x1000, 0x55)]))
    seen: list[tuple[int, ...]] = []
    assert resume(rig, 1, see(seen, 1))[0] == 0
    attr, address, size, reference = seen[0][8:]
    assert (attr, address & 0xFFF, size, reference) == (0x20A, 0x123, 0x1000, 0x55)
    assert rig.info() == (0, 1, 2, 0)
    assert sorted(rig.host.pins) == sorted(
        rig.host.pa(0, ipa) for ipa in (RAM + 0x50_000, RAM + 0x33_000)
    )


def test_a_contiguous_allocation_becomes_a_list_under_the_guests_reference(rig: Rig) -> None:
    start(rig, request(asked_alloc()))
    rig.put(RAM + AT, msg(SHM_ALLOC, params=[(0xA, RAM + 0x50_010, 0x1000, 0x55)]))
    lists = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        fields = rpc_message(rig, 1)
        lists.append((fields[8:], bytes(rig.host.memory(fields[9] & ~0xFFF)[:16])))
        return (0, 0, 0, 0)

    resume(rig, 1, script)
    (attr, address, size, reference), words = lists[0]
    assert (attr, address & 0xFFF, size, reference) == (0x20A, 0x10, 0x1000, 0x55)
    assert struct.unpack("<2Q", words) == (
        rig.host.pa(0, RAM + 0x50_000),
        rig.host.pa(0, RAM + 0x51_000),
    )


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (GET_TIME, msg(SHM_ALLOC, params=[(0x20A, LIST, 0x1000, 0x55)])),
        (GET_TIME, msg(GET_TIME, params=[(0x9, LIST, 0x1000, 0x55)])),
        (SHM_ALLOC, msg(SHM_ALLOC, ret=1, params=[(0x20A, LIST, 0x1000, 0x55)])),
        (SHM_ALLOC, msg(SHM_ALLOC, params=[(0x20B, LIST, 0x1000, 0x55)])),
        (SHM_ALLOC, msg(SHM_ALLOC, params=[(0x20A, LIST, 0x1000, 0x55), (0, 0, 0, 0)])),
        (SHM_FREE, msg(SHM_FREE, params=[(0x20A, LIST, 0x1000, 0x55)])),
    ],
)
def test_an_address_in_any_other_answer_is_zeroed(rig: Rig, command: int, reply: bytes) -> None:
    start(rig, request(msg(command, ret=GENERIC, params=[(1, 0, 0x1000, 8)])))
    rig.put_list(LIST, [RAM + 0x50_000])
    rig.put(RAM + AT, reply)
    seen: list[tuple[int, ...]] = []
    assert resume(rig, 1, see(seen, 1))[0] == 0
    assert seen[0][9] == 0
    assert seen[0][10:12] == (0x1000, 0x55)
    assert not rig.pinned()


def test_a_null_memref_in_an_answer_passes(rig: Rig) -> None:
    start(rig, request(msg(0, ret=GENERIC, params=[(0xA, 0, 0, 0)])))
    rig.put(RAM + AT, msg(0, params=[(0xA, 0, 0x4321, 0)]))
    seen: list[tuple[int, ...]] = []
    resume(rig, 1, see(seen, 1))
    assert seen[0][8:] == (0xA, 0, 0x4321, 0)


def test_what_cannot_be_translated_is_freed_again_and_then_refused(rig: Rig) -> None:
    start(rig, request(asked_alloc(kind=2)))
    rig.put_list(LIST, [RAM + 0x50_000, 0x7000_0000])
    rig.put(RAM + AT, msg(SHM_ALLOC, params=[(0x20A, LIST, 0x2000, 0x55)]))
    out = resume(rig, 1)
    assert out[:4] == (CMD, 0, 0, 1)
    fields = rig.message(RAM + AT, 1)
    assert (fields[0], fields[5], fields[7]) == (SHM_FREE, GENERIC, 1)
    assert fields[8:11] == (1, 2, 0x55)
    assert not rig.pinned()
    seen: list[tuple[int, ...]] = []
    # Whatever the guest answers, the allocation failed.
    rig.put(RAM + AT, msg(SHM_ALLOC, params=[(0x20A, LIST, 0x1000, 0x56)]))
    assert resume(rig, 1, see(seen, 0))[0] == 0
    assert seen[0][5:] == (GENERIC, 0, 0)
    assert not rig.pinned()
    assert rig.info() == (0, 0, 0, 0)


def test_pages_are_free_before_the_guest_sees_the_free_request(rig: Rig) -> None:
    start(rig, request(asked_alloc()))
    rig.put_list(LIST, [RAM + 0x50_000])
    rig.put(RAM + AT, msg(SHM_ALLOC, params=[(0x20A, LIST, 0x1000, 0x55)]))
    free = msg(SHM_FREE, ret=GENERIC, params=[(1, 0, 0x55, 0)])
    assert resume(rig, 1, request(free))[0] == CMD
    assert not rig.pinned()
    assert rig.info() == (1, 0, 0, 0)
    assert rig.register(0x55, [RAM + 0x50_000])[0] == 0


def test_a_free_request_does_not_touch_a_registered_buffer(rig: Rig) -> None:
    rig.register(0x55, [RAM + 0x50_000])
    start(rig, request(msg(SHM_FREE, params=[(1, 0, 0x55, 0)])))
    assert rig.pinned() == 1


def test_an_address_in_a_request_never_reaches_the_guest(rig: Rig) -> None:
    seen: list[tuple[int, ...]] = []
    bad = msg(0, ret=0, params=[(0x20A, 0x8_8000_0000, 0x1000, 1)])
    assert start(rig, request(bad), see(seen, 1))[0] == 0
    assert seen[0][5] == GENERIC
    assert not any(rig.get(RAM + AT, 64))
    assert any(isinstance(event, events.Finding) and event.rule == "I1" for event in rig.events)


def test_an_unreadable_answer_is_a_generic_error(rig: Rig) -> None:
    start(rig, request(msg(GET_TIME, ret=0, params=[(2, 0, 0, 0)])))
    rig.host.kinds[0, RAM] = "none"
    seen: list[tuple[int, ...]] = []
    out = resume(rig, 1, see(seen, 1))
    assert seen[0][5] == GENERIC
    assert out[0] == smc.OPTEE_SMC_RETURN_EBADADDR, "the results cannot be written either"
    assert rig.info() == (0, 0, 0, 0)


@pytest.mark.parametrize("count", [5, 127, 128, 0xFFFF_FFFF])
def test_a_request_beyond_the_announced_room_fails_towards_the_tee(rig: Rig, count: int) -> None:
    seen: list[tuple[int, ...]] = []
    big = struct.pack("<8I", GET_TIME, 0, 0, 0, 0, 0, 0, count)
    assert start(rig, request(big), see(seen, 0))[0] == 0
    assert seen[0][5] == GENERIC


def test_a_tee_that_never_stops_asking_wrongly_lets_the_guest_run(rig: Rig) -> None:
    big = struct.pack("<8I", GET_TIME, 0, 0, 0, 0, 0, 0, 99)
    scripts = [request(big)] * 1000
    assert start(rig, *scripts)[0] == INTR
    assert rig.host.calls["smc"] < 20
    assert not any(rig.message(RAM, 0)[5:7])
    assert rig.info() == (1, 0, 0, 0)
    assert len(rig.host.logged) == rig.host.calls["smc"]
    rig.host.script = []
    assert resume(rig, 1)[0] == 0
    assert rig.info() == (0, 0, 0, 0)


@pytest.mark.parametrize("thread", [1, 0x1_0000, 0xFFFF_FFFF])
def test_a_thread_id_that_is_not_free_is_contained(rig: Rig, thread: int) -> None:
    assert start(rig, answer(INTR, 0, 0, 1))[0] == INTR
    out = start(rig, answer(INTR, 0, 0, thread), ipa=RAM + 0x3000)
    assert out[0] == 0
    assert rig.message(RAM + 0x3000, 0)[5:7] == (0xFFFF000E, 2)
    assert rig.info()[0] == 1
    assert resume(rig, 1)[0] == 0


@pytest.mark.parametrize("thread", [0, 2, 0x1_0000, 0xFFFF_FFFF])
def test_resuming_what_is_not_suspended_is_eresume(rig: Rig, thread: int) -> None:
    start(rig, answer(INTR, 7, 8, 1))
    out = rig.call(RETURN, 0x11, 0x22, thread)
    assert out == (smc.OPTEE_SMC_RETURN_ERESUME, 0x11, 0x22, thread, *[0x77] * 4)
    rig.put(RAM + 0x5000, msg(INVOKE), guest=1)
    assert rig.call(RETURN, 0, 0, 1, guest=1)[0] == smc.OPTEE_SMC_RETURN_ERESUME
    assert resume(rig, 1)[0] == 0
    assert rig.host.sent[-1] == (RETURN, 7, 8, 1, 0, 0, 0, 1)


def test_the_guest_cannot_answer_before_the_request_is_complete(rig: Rig) -> None:
    """Another processor resumes while the request is being written into guest memory."""
    seen: list[int] = []
    write = rig.host.write_guest

    def racing(guest: int, ipa: int, segments: list[tuple[int, bytes]]) -> bool:
        if not seen:
            seen.append(0)
            seen[0] = rig.call(RETURN, 0, 0, 1)[0]
        return write(guest, ipa, segments)

    rig.host.write_guest = racing  # type: ignore[method-assign, assignment]
    assert start(rig, request(msg(GET_TIME, params=[(2, 0, 0, 0)])))[0] == CMD
    assert seen == [smc.OPTEE_SMC_RETURN_ERESUME]
    assert resume(rig, 1)[0] == 0


class TestClassic:
    """RPC ALLOC and FREE: buffers of their own name space."""

    COOKIE = (0x11, 0x2233_4455)

    def allocate(self, rig: Rig, ipa: int, *script: Script) -> tuple[int, ...]:
        rig.host.script = list(script)
        return rig.call(RETURN, ipa >> 32, ipa & 0xFFFF_FFFF, 1, *self.COOKIE)

    def suspended(self) -> Rig:
        rig = Rig()
        rig.put(RAM, msg(INVOKE))
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
        rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0)
        return rig

    def test_the_tee_gets_a_mediator_page(self) -> None:
        rig = self.suspended()
        self.allocate(rig, RAM + 0x8000)
        sent = rig.host.sent[-1]
        assert sent[0] == RETURN
        assert sent[3:] == (1, *self.COOKIE, 0, 1)
        assert sent[1] << 32 | sent[2] in rig.host.shadows
        assert rig.info() == (0, 0, 0, 1)

    @pytest.mark.parametrize("ipa", [0, RAM + 0x8001, RAM + 0x8FF8, 0x7000_0000, 1 << 52])
    def test_a_page_that_cannot_be_is_a_failed_allocation(self, ipa: int) -> None:
        rig = self.suspended()
        self.allocate(rig, ipa)
        assert rig.host.sent[-1][1:4] == (0, 0, 1)
        assert rig.info() == (0, 0, 0, 0)

    def test_the_same_cookie_twice_is_refused(self) -> None:
        rig = self.suspended()
        self.allocate(rig, RAM + 0x8000, answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1))
        self.allocate(rig, RAM + 0x9000)
        assert rig.host.sent[-1][1:3] == (0, 0)
        assert rig.info()[3] == 1

    def test_buffers_are_freed_in_any_order(self) -> None:
        rig = self.suspended()
        alloc = answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)
        for index in range(4):
            rig.host.script = [alloc]
            rig.call(RETURN, 0, RAM + 0x8000 + index * PAGE_SIZE, 1, 0, index)
        for cookie in (2, 0, 3, 1):
            rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_FREE, 0, cookie, 1)]
            rig.call(RETURN, 0, 0, 1)
            assert rig.host.pa(0, RAM + 0x8000 + cookie * PAGE_SIZE) not in rig.host.pins
        assert rig.info() == (1, 0, 0, 0)

    def test_draining_the_cache_unpins_before_the_guest_knows(self) -> None:
        rig = self.suspended()
        self.allocate(rig, RAM + 0x8000)
        # The TEE hands the whole cookie back in a2; only its low half counts.
        whole = self.COOKIE[0] << 32 | self.COOKIE[1]
        rig.host.script = [answer(0, self.COOKIE[0], whole)]
        out = rig.call(smc.OPTEE_SMC_DISABLE_SHM_CACHE)
        assert rig.host.sent[-1][0] == smc.OPTEE_SMC_DISABLE_SHM_CACHE
        assert out[1] == self.COOKIE[0]
        assert out[2] & 0xFFFF_FFFF == self.COOKIE[1]
        assert rig.info() == (0, 0, 0, 0)
        assert not rig.pinned()

    def test_the_recorded_buffer_is_read_whatever_cookie_comes_back(self) -> None:
        rig = self.suspended()

        def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
            page = rig.host.memory(regs[1] << 32 | regs[2])
            page[:64] = msg(GET_TIME, ret=GENERIC, params=[(2, 0, 0, 0)])
            return (CMD, *self.COOKIE, 1)

        assert self.allocate(rig, RAM + 0x8000, ask)[:4] == (CMD, *self.COOKIE, 1)
        shadow = next(s for s in rig.host.shadows.values() if bytes(s.mem[:4]) == b"\3\0\0\0")
        rig.put(RAM + 0x8000, msg(GET_TIME, params=[(2, 5, 6, 0)]))
        rig.call(RETURN, 0xBAD, 0xBAD, 1)
        assert rig.host.sent[-1] == (RETURN, 0, 0, 1, 0, 0, 0, 1)
        assert struct.unpack_from("<8I4Q", shadow.mem)[9:11] == (5, 6)


@pytest.fixture
def rig() -> Rig:
    return Rig()
