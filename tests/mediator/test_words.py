# SPDX-License-Identifier: BSD-2-Clause
"""Registers have 32 bits of meaning, and pairs travel high word first (bug classes 8 and 9)."""

from __future__ import annotations

import pytest

from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, answer, msg, results
from tests.mediator.test_one_snapshot import EVERY
from tests.mediator.watching import Journey, tee_sees

M32 = 0xFFFF_FFFF
JUNK = 0xDEAD_BEEF << 32
SIGN = 0xFFFF_FFFF << 32
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
HIGH = 0x1_2345_6000
"""A guest page above 4 GiB whose address is no palindrome of words."""
HIGHER = 0x2_3456_7000
COOKIE = (0x11, 0x2233_4455)


def low(frames: list[tuple[object, ...]]) -> list[object]:
    """What the TEE saw, registers cut to their low words."""
    return [(tuple(word & M32 for word in regs), *rest) for regs, *rest in frames]  # type: ignore[attr-defined]


@pytest.mark.parametrize("journey", EVERY)
def test_left_overs_of_the_guest_do_not_matter(journey: Journey) -> None:
    clean, dirty = Rig(), Rig()
    expected, seen = tee_sees(clean), tee_sees(dirty)
    answers: list[tuple[int, ...]] = []
    call = clean.call

    def noted(*regs: int, guest: int = 0) -> tuple[int, ...]:
        answers.append(call(*regs, guest=guest))
        return answers[-1]

    clean.call = noted  # type: ignore[method-assign]
    journey(clean)
    dirty_call = dirty.call
    dirty_answers: list[tuple[int, ...]] = []

    def with_junk(*regs: int, guest: int = 0) -> tuple[int, ...]:
        dirty_answers.append(dirty_call(*[word | JUNK for word in regs], guest=guest))
        return tuple(word & M32 for word in dirty_answers[-1])

    dirty.call = with_junk  # type: ignore[method-assign]
    journey(dirty)
    assert low(seen) == low(expected)
    assert [[word & M32 for word in regs] for regs in dirty_answers] == [
        [word & M32 for word in regs] for regs in answers
    ]
    assert dirty.info() == clean.info()


@pytest.mark.parametrize("junk", [JUNK, SIGN])
@pytest.mark.parametrize("journey", EVERY)
def test_left_overs_of_the_tee_do_not_matter(journey: Journey, junk: int) -> None:
    clean, dirty = Rig(), Rig()
    journey(clean)
    smc_of = dirty.host.smc

    def with_junk(*regs: int) -> Answer:
        a0, a1, a2, a3 = smc_of(*regs)
        return a0 | junk, a1 | junk, a2 | junk, a3 | junk

    dirty.host.smc = with_junk  # type: ignore[method-assign, assignment]
    journey(dirty)
    assert [[word & M32 for word in sent] for sent in dirty.host.sent] == [
        [word & M32 for word in sent] for sent in clean.host.sent
    ]
    assert dirty.info() == clean.info()
    assert dirty.host.pins == clean.host.pins


@pytest.mark.parametrize("minus_one", [M32, M32 | SIGN])
def test_minus_one_ends_a_call_however_wide_it_is(minus_one: int) -> None:
    rig = Rig()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(minus_one, 1, 2, 3)]
    assert rig.call(RPC_ARG, 0, RAM, 0) == (minus_one, 0, RAM, 0, *[0x77] * 4)
    assert rig.info() == (0, 0, 0, 0)


def test_the_probe_compares_words_of_32_bits() -> None:
    rig = Rig()
    uid = (0x384FB3E0, 0xE7F811E3, 0xAF630002, 0xA5D5C51B)
    rig.host.script = [
        answer(*[word | JUNK for word in uid]),
        answer(0, 5),
        answer(smc.OPTEE_SMC_RETURN_OK),
    ]
    assert rig.tee.probe().found
    rig.host.script = [answer(uid[1], uid[0], uid[2], uid[3])]
    assert not rig.tee.probe().found


def test_the_exchange_looks_at_the_low_word_of_the_status() -> None:
    rig = Rig()
    rig.host.script = [answer(JUNK, smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM)]
    out = rig.call(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, 0)
    assert out[1] == smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM


def with_high_memory() -> Rig:
    rig = Rig()
    for page in (HIGH, HIGHER):
        rig.host.kinds[0, page] = "rw"
    return rig


def test_a_message_above_4_gib() -> None:
    rig = with_high_memory()
    rig.put(HIGH, msg(1, params=[(3, 1, 2, 3)]))
    rig.host.script = [results(7)]
    assert rig.call(RPC_ARG, 1, 0x2345_6000)[0] == 0
    assert rig.message(HIGH, 1)[5] == 7
    a0, a1, a2 = rig.host.sent[-1][:3]
    assert a0 == RPC_ARG
    assert (a1, a2 & ~0xFFFF) == (9, 0x1234_0000), "the shadow page's address, high word first"


def test_a_preempted_registration_is_forwarded_the_same_way() -> None:
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    rig.host.preempt = [True]
    rig.register(0x55, [RAM + 0x100_000 + index * PAGE_SIZE for index in range(600)])
    assert rig.call(RETURN, 0, 0, 0x1_0000)[0] == 0
    a0, a1, a2 = rig.host.sent[-1][:3]
    assert (a0, a1, a2 & ~0xFFFF) == (RPC_ARG, 9, 0x1234_0000)


def test_the_whole_cookie_names_a_carrier() -> None:
    rig = Rig()
    rig.register(0x11_2233_4455, [RAM + 0x50_000])
    rig.put(RAM + 0x50_000, msg(1))
    regd = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
    assert rig.call(regd, 0x11, 0x2233_4455, 0)[0] == 0
    for wrong in ((0x2233_4455, 0x11), (0, 0x2233_4455), (0x12, 0x2233_4455)):
        assert rig.call(regd, *wrong, 0)[0] == smc.OPTEE_SMC_RETURN_EBADADDR


def test_an_rpc_buffer_above_4_gib_from_its_allocation_to_its_end() -> None:
    rig = with_high_memory()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
    out = rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)
    assert out[:4] == (smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)

    def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
        assert (regs[1], regs[2] & ~0xFFFF) == (9, 0x1234_0000)
        assert regs[3:6] == (1, *COOKIE)
        page = rig.host.memory(regs[1] << 32 | regs[2])
        page[:64] = msg(3, params=[(2, 0, 0, 0)])
        return (smc.OPTEE_SMC_RETURN_RPC_CMD, *COOKIE, 1)

    rig.host.script = [ask]
    out = rig.call(RETURN, 2, 0x3456_7000, 1, *COOKIE)
    assert out[:4] == (smc.OPTEE_SMC_RETURN_RPC_CMD, *COOKIE, 1)
    assert rig.message(HIGHER, 1)[0] == 3
    assert list(rig.host.pins) == [rig.host.pa(0, HIGHER)]
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_FREE, *COOKIE, 1)]
    out = rig.call(RETURN, *COOKIE, 1)
    assert out[:4] == (smc.OPTEE_SMC_RETURN_RPC_FREE, *COOKIE, 1)
    assert not rig.pinned()
    assert rig.call(RETURN, 0, 0, 1)[0] == 0


def test_the_cache_is_drained_by_the_whole_cookie() -> None:
    rig = with_high_memory()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)
    rig.call(RETURN, 0, RAM + 0x8000, 1, *COOKIE)
    rig.host.script = [answer(0, *COOKIE)]
    assert rig.call(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[:3] == (0, *COOKIE)
    assert not rig.pinned()
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_ENOTAVAIL, 1, 2, 3)]
    assert rig.call(smc.OPTEE_SMC_DISABLE_SHM_CACHE, 4, 5, 6)[:4] == (
        smc.OPTEE_SMC_RETURN_ENOTAVAIL,
        *(4, 5, 6),
    )


def test_registers_of_an_interrupted_call_come_back_as_they_went() -> None:
    rig = Rig()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(INTR, 0x1111, 0x2222, 1)]
    assert rig.call(RPC_ARG, 0, RAM)[:4] == (INTR, 0x1111, 0x2222, 1)
    rig.call(RETURN, 0x3333, 0x4444, 1, 5, 6)
    assert rig.host.sent[-1] == (RETURN, 0x1111, 0x2222, 1, 0, 0, 0, 1)
