# SPDX-License-Identifier: BSD-2-Clause
"""What a guest is offered: which functions, forwarded as what, with which results."""

from __future__ import annotations

import struct

import pytest

from mediator.deployment.face import NOT_MINE
from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, answer, msg

OK, ENOTAVAIL = smc.OPTEE_SMC_RETURN_OK, smc.OPTEE_SMC_RETURN_ENOTAVAIL
BUSY = smc.OPTEE_SMC_RETURN_EBUSY
KEPT = (0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47)
"""x1..x7 of the guest."""
CAPS = smc.OPTEE_SMC_EXCHANGE_CAPABILITIES
M32 = 0xFFFF_FFFF

FORWARDED = {
    smc.OPTEE_SMC_CALLS_UID: 4,
    smc.OPTEE_SMC_CALLS_REVISION: 2,
    smc.OPTEE_SMC_CALL_GET_OS_UUID: 4,
    smc.OPTEE_SMC_CALL_GET_OS_REVISION: 3,
    smc.OPTEE_SMC_DISABLE_SHM_CACHE: 3,
    smc.OPTEE_SMC_ENABLE_SHM_CACHE: 1,
    smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF: 1,
    smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE: 3,
}
"""Function → how many of x0..x3 are results."""
WITH_STATUS = [
    smc.OPTEE_SMC_DISABLE_SHM_CACHE,
    smc.OPTEE_SMC_ENABLE_SHM_CACHE,
    smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF,
    smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE,
    smc.OPTEE_SMC_GET_THREAD_COUNT,
    smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
]
HIDDEN = [
    smc.OPTEE_SMC_VM_CREATED,
    smc.OPTEE_SMC_VM_DESTROYED,
    smc.OPTEE_SMC_L2CC_MUTEX,
    smc.OPTEE_SMC_BOOT_SECONDARY,
    smc.OPTEE_SMC_GET_PROTMEM_CONFIG,
    smc.OPTEE_SMC_FUNCID_CALL_WITH_ARG | 0xF200_0000,  # SMC64
    smc.OPTEE_SMC_CALL_WITH_ARG | 1 << 30,
    smc.OPTEE_SMC_CALL_WITH_ARG | 1 << 31,  # fast
    smc.OPTEE_SMC_CALLS_UID & ~(1 << 31),  # yielding
    0xB2001234,
    0x32000099,
]


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("function", FORWARDED)
def test_a_fast_call_is_asked_as_it_is_and_sets_its_results_only(rig: Rig, function: int) -> None:
    for guest in (0, 1):
        rig.host.script = [answer(OK, 0x51, 0x52, 0x53)]
        out = rig.call(function, *KEPT, guest=guest)
        sent = next(regs for regs in reversed(rig.host.sent) if regs[0] == function)
        assert sent == (function, 0, 0, 0, 0, 0, 0, guest + 1)
        count = FORWARDED[function]
        assert out == (OK, 0x51, 0x52, 0x53)[:count] + KEPT[count - 1 :]


@pytest.mark.parametrize("function", WITH_STATUS)
def test_an_error_is_in_x0_alone(rig: Rig, function: int) -> None:
    rig.host.script = [answer(BUSY, 0x51, 0x52, 0x53)]
    assert rig.call(function, *KEPT) == (BUSY, *KEPT)


@pytest.mark.parametrize("function", HIDDEN)
def test_what_is_not_offered_never_reaches_the_tee(rig: Rig, function: int) -> None:
    assert rig.tee.handle(0, 0, (function, 1, *KEPT[1:])) == NOT_MINE
    assert not rig.host.sent


@pytest.mark.parametrize("function", [smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG])
def test_a_message_is_forwarded_with_the_function_of_the_guest(rig: Rig, function: int) -> None:
    rig.put(RAM, msg(1))
    out = rig.call(function, 0, RAM, *KEPT[2:])
    sent = rig.host.sent[-1]
    assert (sent[0], *sent[3:]) == (function, 1, 0, 0, 0, 1)
    assert out == (OK, 0, RAM, *KEPT[2:])


def test_the_end_of_a_call_shows_no_register_of_the_tee(rig: Rig) -> None:
    rig.put(RAM, msg(1))
    rig.host.script = [answer(OK, 0x51, 0x52, 0x53)]
    assert rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, *KEPT[2:]) == (OK, 0, RAM, *KEPT[2:])


@pytest.mark.parametrize(
    ("threads", "calls", "told"),
    [
        (2, None, 2),
        (2, 5, 2),
        (5, 2, 2),
        (0xDEAD_BEEF_0000_0002, None, 2),
        (M32, None, 66),
        (0, 1, 0),
    ],
)
def test_a_guest_is_told_of_as_many_threads_as_it_can_use(
    threads: int, calls: int | None, told: int
) -> None:
    """The smaller of what the TEE has and what the mediator allows; 2 threads and 64 on the way."""
    rig = Rig(MediatorSettings(limits=Limits(calls=calls)))
    rig.host.script = [answer(OK, threads, 0x52, 0x53)]
    out = rig.call(smc.OPTEE_SMC_GET_THREAD_COUNT, *KEPT)
    assert out == (OK, told, *KEPT[1:])
    assert rig.host.sent == [(smc.OPTEE_SMC_GET_THREAD_COUNT, 0, 0, 0, 0, 0, 0, 1)]


def test_reserved_memory_is_not_offered(rig: Rig) -> None:
    assert rig.call(smc.OPTEE_SMC_GET_SHM_CONFIG, *KEPT) == (ENOTAVAIL, *KEPT)
    assert not rig.host.sent


def test_capabilities_are_what_the_tee_has_and_the_mediator_can_mediate(rig: Rig) -> None:
    rig.host.script = [answer(OK, (1 << 64) - 1, 0x40, 6)]
    assert rig.call(CAPS, 0xFFFF_FFFF) == (OK, 0b1111_0110, 0x40, 6, *[0x77] * 4)
    assert rig.host.sent[-1][1] == smc.OPTEE_SMC_NSEC_CAP_UNIPROCESSOR
    rig.host.script = [answer(OK, 0b0001_0110, 0x40, 6)]
    assert rig.call(CAPS, 0, 8, 9)[:4] == (OK, 0b0001_0110, 8, 9), "no value without its bit"


def test_without_dynamic_memory_there_is_nothing_to_offer(rig: Rig) -> None:
    rig.host.script = [answer(OK, ~smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM & 0xFF, 1, 2)]
    assert rig.call(CAPS, *KEPT) == (ENOTAVAIL, *KEPT)


@pytest.mark.parametrize("command", [8, 9, 0x100, 0x3FFF_FFFF, 0xFFFF_FFFF])
def test_an_unknown_message_command_stays_here(rig: Rig, command: int) -> None:
    rig.put(RAM, msg(command, params=[(3, 1, 2, 3)]))
    before = rig.get(RAM, 64)
    assert rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)[0] == smc.OPTEE_SMC_RETURN_EBADCMD
    assert not rig.host.sent
    assert rig.get(RAM, 64) == before


@pytest.mark.parametrize("offset", [1, 8, 0x10, 0xFF8, 0xFFF])
def test_a_message_that_is_not_at_a_page_is_refused(rig: Rig, offset: int) -> None:
    rig.put(RAM + offset, msg(1))
    out = rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM + offset)
    assert out[0] == smc.OPTEE_SMC_RETURN_EBADADDR
    assert not rig.host.sent


class TestNull:
    """A null reference is address 0 and nothing else."""

    @pytest.mark.parametrize("attr", [0x9, 0xA, 0xB, 0x209, 0x20A, 0x20B, 0x10A, 0x70A])
    @pytest.mark.parametrize("size", [0, 1, 0x5000, (1 << 64) - 1])
    def test_the_question_for_a_size_passes(self, rig: Rig, attr: int, size: int) -> None:
        rig.put(RAM, msg(1, params=[(attr, 0, size, 7)]))
        seen = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            seen.append(struct.unpack_from("<4Q", rig.shadow(), 32))
            struct.pack_into("<Q", rig.shadow(), 48, 0x1234)
            return (0, 0, 0, 0)

        rig.host.script = [script]
        assert rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)[0] == OK
        assert seen == [(attr, 0, size, 7)]
        length = size if attr & 3 == 1 else 0x1234
        assert rig.message(RAM, 1)[8:] == (attr, 0, length, 7)
        assert not rig.pinned()

    def test_a_null_answer_to_an_allocation_passes(self, rig: Rig) -> None:
        """The TEE judges it; the guest is not asked to free what it never had."""
        rig.put(RAM, msg(1))
        asked = msg(6, ret=0xFFFF0000, params=[(1, 0, 4096, 8)])

        def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
            rig.shadow()[32 : 32 + len(asked)] = asked
            return (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 0, 1)

        seen = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            seen.append(struct.unpack_from("<4Q", rig.shadow(), 64))
            return (0, 0, 0, 0)

        rig.host.script = [ask]
        rig.call(smc.OPTEE_SMC_CALL_WITH_RPC_ARG, 0, RAM)
        rig.put(RAM + 32, msg(6, params=[(0x20A, 0, 4096, 7)]))
        rig.host.script = [script]
        assert rig.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, 1)[0] == OK
        assert seen == [(0x20A, 0, 4096, 7)]

    @pytest.mark.parametrize("address", [1, 0x10, 0xFFF])
    def test_page_zero_is_a_page(self, rig: Rig, address: int) -> None:
        """The guest has RAM at 0: a buffer there is translated like any other."""
        rig.host.kinds[0, 0] = "rw"
        rig.host.kinds[0, PAGE_SIZE] = "rw"
        rig.host.pa = lambda guest, ipa: 0x8_8000_0000 + ipa  # type: ignore[method-assign]
        rig.put(RAM, msg(1, params=[(0xA, address, 16, 7)]))
        seen = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            _, where, size, _ = struct.unpack_from("<4Q", rig.shadow(), 32)
            (page,) = struct.unpack_from("<Q", rig.host.memory(where & ~0xFFF))
            seen.append((page, where & 0xFFF, size))
            return (0, 0, 0, 0)

        rig.host.script = [script]
        assert rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)[0] == OK
        assert seen == [(0x8_8000_0000, address, 16)]

    def test_page_zero_is_no_rpc_buffer(self, rig: Rig) -> None:
        """The guest has RAM at 0, and answers ALLOC with 0 because it has no memory."""
        rig.host.kinds[0, 0] = "rw"
        rig.host.pa = lambda guest, ipa: 0x8_8000_0000 + ipa  # type: ignore[method-assign]
        rig.put(RAM, msg(1))
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
        rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)
        rig.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, 1, 0, 5)
        assert rig.host.sent[-1][1:3] == (0, 0)
        assert not rig.pinned()


@pytest.mark.parametrize("extra", [0, 0x100, 0x400, 0x8000_0000_0000_0000, 0x7F00])
@pytest.mark.parametrize("kind", [9, 0xA, 0xB])
def test_no_bit_beside_the_type_makes_a_buffer_something_else(
    rig: Rig, kind: int, extra: int
) -> None:
    rig.put(RAM, msg(1, params=[(kind | extra & ~0x200, RAM + 0x50_008, 16, 7)]))
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        seen.append(struct.unpack_from("<Q", rig.shadow(), 40)[0])
        return (0, 0, 0, 0)

    rig.host.script = [script]
    assert rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)[0] == OK
    assert seen[0] & ~0xFFF in rig.host.shadows, "the TEE gets a list, never the guest's address"
    assert seen[0] & 0xFFF == 8


@pytest.mark.parametrize("attr", [0x10A, 0x30A, 0x109, 0x70B, 0x40A])
def test_no_bit_hides_an_address_in_an_rpc_answer(rig: Rig, attr: int) -> None:
    rig.put(RAM, msg(1))
    asked = msg(3, ret=0xFFFF0000, params=[(2, 0, 0, 0)])

    def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
        rig.shadow()[32 : 32 + len(asked)] = asked
        return (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 0, 1)

    rig.host.script = [ask]
    rig.call(smc.OPTEE_SMC_CALL_WITH_RPC_ARG, 0, RAM)
    rig.put(RAM + 32, msg(3, params=[(attr, RAM + 0x50_000, 16, 7)]))
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        seen.append(struct.unpack_from("<4Q", rig.shadow(), 64))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, 1)
    assert seen == [(attr, 0, 16, 7)]


def test_draining_the_cache_ends() -> None:
    """As a driver does it: until the TEE has nothing left."""
    rig = Rig()
    cookies = [(0, 5), (0, 6), (0, 7)]
    for index, cookie in enumerate(cookies):
        rig.put(RAM, msg(1))
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
        rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)
        rig.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, RAM + (8 + index) * PAGE_SIZE, 1, *cookie)
    assert rig.pinned() == 3
    left = list(cookies)

    def cache(rig: Rig, regs: tuple[int, ...]) -> Answer:
        if regs[0] != smc.OPTEE_SMC_DISABLE_SHM_CACHE:
            return (OK, 0, 0, 0)
        return (OK, *left.pop(), 0) if left else (ENOTAVAIL, 0, 0, 0)

    rounds = 0
    while True:
        rounds += 1
        assert rounds <= len(cookies) + 1, "draining does not end"
        rig.host.script = [cache]
        status, high, low = rig.call(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[:3]
        if status == ENOTAVAIL:
            break
        assert status == OK
        assert (high, low) in cookies
        assert rig.pinned() == 3 - rounds, "unpinned before the guest knows"
    assert rig.info() == (0, 0, 0, 0)


def test_a_tee_without_virtualization_is_left_alone(rig: Rig) -> None:
    """It would give every guest the sessions of all others."""
    uid = answer(0x384FB3E0, 0xE7F811E3, 0xAF630002, 0xA5D5C51B)
    rig.host.script = [uid, answer(0, 5), answer(smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION)]
    assert not rig.tee.probe().found
    rig.host.script = [uid, answer(0, 5), answer(ENOTAVAIL)]
    assert rig.tee.probe().found


def test_a7_is_the_client_id_whatever_the_guest_writes(rig: Rig) -> None:
    rig.put(RAM, msg(1), guest=1)
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0, 0, 0, 0, 1, guest=1)
    rig.call(smc.OPTEE_SMC_ENABLE_SHM_CACHE, 0, 0, 0, 0, 0, 0, 1, guest=1)
    assert [sent[7] for sent in rig.host.sent] == [2, 2]
