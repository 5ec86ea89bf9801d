# SPDX-License-Identifier: BSD-2-Clause
"""Capabilities are asked for any number of times, and the answers may change: calls do not notice.

A guest may load and unload its driver while calls are suspended, and a TEE may answer as it likes. A
call keeps what held when it began; what came before stays usable; no guest sees another's answers.
"""

from __future__ import annotations

import struct
from itertools import pairwise, product

import pytest

from mediator.host import PAGE_SIZE
from mediator.optee.settings import MediatorSettings
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Rig, answer, msg, request

OK, ENOTAVAIL = smc.OPTEE_SMC_RETURN_OK, smc.OPTEE_SMC_RETURN_ENOTAVAIL
BUSY = smc.OPTEE_SMC_RETURN_EBUSY
EBADADDR = smc.OPTEE_SMC_RETURN_EBADADDR
INTR, CMD = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, smc.OPTEE_SMC_RETURN_RPC_CMD
CAPS, ARG = smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, smc.OPTEE_SMC_CALL_WITH_ARG
RPC_ARG, RETURN = smc.OPTEE_SMC_CALL_WITH_RPC_ARG, smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
REGD = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
DYNAMIC, WITH_RPC_ARG = smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM, smc.OPTEE_SMC_SEC_CAP_RPC_ARG
GET_TIME = optee_rpc.OPTEE_RPC_CMD_GET_TIME
COOKIE = 0x5000
GENERIC = 0xFFFF0000


@pytest.fixture
def rig() -> Rig:
    return Rig()


def probe(rig: Rig, caps: int, a3: int = 4, guest: int = 0) -> tuple[int, ...]:
    rig.host.script = [answer(OK, caps, 0, a3)]
    return rig.call(CAPS, 0, 0, 0, guest=guest)


def suspended(rig: Rig, thread: int = 1, ipa: int = RAM) -> None:
    """A call with room for as many RPC parameters as were announced last, interrupted."""
    rig.put(ipa, msg(1))
    rig.host.script = [answer(INTR, 0, 0, thread)]
    assert rig.call(RPC_ARG, 0, ipa)[0] == INTR


def asked(rig: Rig, count: int, thread: int = 1) -> tuple[tuple[int, ...], int]:
    """The TEE asks with ``count`` parameters in the call of ``thread``: answer, and its ``ret``."""
    body = msg(GET_TIME, ret=GENERIC, params=[(2, 0, 0, 0)] * count)
    seen: list[int] = []

    def end(rig: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        seen.append(struct.unpack_from("<I", rig.shadow(), 32 + 20)[0])
        return (0, 0, 0, 0)

    rig.host.script = [request(body, thread), end]
    out = rig.call(RETURN, 0, 0, thread)
    if out[0] == CMD:
        rig.put(RAM + 32, msg(GET_TIME, params=[(2, 1, 2, 0)] * count))
        assert rig.call(RETURN, 0, 0, thread)[0] == OK
    return out, seen[0]


@pytest.mark.parametrize(("first", "second"), [(4, 8), (4, 1), (8, 4), (4, 0), (0, 4)])
def test_a_call_keeps_the_room_that_was_announced_when_it_began(
    rig: Rig, first: int, second: int
) -> None:
    for count in (first, first + 1):
        probe(rig, DYNAMIC | WITH_RPC_ARG, first)
        suspended(rig)
        probe(rig, DYNAMIC | WITH_RPC_ARG, second)
        out, ret = asked(rig, count)
        if count == first:
            assert out[0] == CMD
            assert ret == 0
        else:
            assert out[0] == OK, "the request is refused here, and the TEE goes on"
            assert ret == GENERIC
    # The next one has the new room, its message may be as long as the page allows with it.
    longest = (PAGE_SIZE - 64) // 32 - second
    for count, status in ((longest, OK), (longest + 1, EBADADDR)):
        rig.put(RAM, msg(1, params=[(3, 0, 0, 0)] * count))
        assert rig.call(RPC_ARG, 0, RAM)[0] == status
    assert rig.info() == (0, 0, 0, 0)


def test_a_room_that_no_page_has_refuses_calls_and_breaks_nothing(rig: Rig) -> None:
    """a3 is the TEE's word; its low byte counts."""
    probe(rig, DYNAMIC | WITH_RPC_ARG, 0xFF)
    rig.put(RAM, msg(1))
    entries = len(rig.host.sent)
    assert rig.call(RPC_ARG, 0, RAM)[0] == EBADADDR
    assert len(rig.host.sent) == entries
    assert rig.call(ARG, 0, RAM)[0] == OK
    probe(rig, DYNAMIC | WITH_RPC_ARG, 0xABCD_0000_0000_0004)
    suspended(rig)
    assert asked(rig, 4)[1] == 0
    assert rig.info() == (0, 0, 0, 0)


@pytest.mark.parametrize("status", [BUSY, ENOTAVAIL, 0xFFFF_FFFF, (1 << 64) - 1])
def test_a_failed_exchange_changes_nothing(rig: Rig, status: int) -> None:
    probe(rig, DYNAMIC | WITH_RPC_ARG, 2)
    rig.host.script = [answer(status, DYNAMIC | WITH_RPC_ARG, 0, 9)]
    assert rig.call(CAPS, 0, 8, 9)[:4] == (status, 0, 8, 9)
    suspended(rig)
    assert asked(rig, 2)[1] == 0
    suspended(rig)
    assert asked(rig, 3)[1] == GENERIC


def test_what_is_not_offered_any_more_still_belongs_to_the_guest(rig: Rig) -> None:
    """Dynamic memory goes away between two probes: buffers stay, calls in them too, all can end."""
    probe(rig, DYNAMIC | WITH_RPC_ARG)
    pages = [RAM + 0x40_000, RAM + 0x41_000]
    assert rig.register(COOKIE, pages)[0] == OK
    rig.put(pages[0], msg(1))
    rig.host.script = [answer(INTR, 0, 0, 1)]
    assert rig.call(REGD, 0, COOKIE, 0)[0] == INTR
    assert probe(rig, WITH_RPC_ARG, 8)[0] == ENOTAVAIL
    assert rig.info() == (1, 1, 2, 0)
    assert rig.pinned() == 2
    assert rig.call(RETURN, 0, 0, 1)[0] == OK
    assert rig.unregister(COOKIE)[0] == OK
    assert rig.info() == (0, 0, 0, 0)
    assert rig.pinned() == 0


def test_the_call_styles_do_not_depend_on_what_was_asked(rig: Rig) -> None:
    """The mediator serves what its settings offer; whether the TEE knows a style is its answer."""
    for caps in (DYNAMIC, DYNAMIC | WITH_RPC_ARG, None):
        if caps is not None:
            probe(rig, caps)
        for function in (ARG, RPC_ARG):
            rig.put(RAM, msg(1))
            rig.host.script = [answer(smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION)]
            assert rig.call(function, 0, RAM)[0] == smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
            assert rig.host.sent[-1][0] == function
    assert rig.info() == (0, 0, 0, 0)


def test_classic_driver_after_one_with_rpc_arguments_and_back(rig: Rig) -> None:
    """kexec into an older kernel while a thread of the newer one is still suspended."""
    probe(rig, DYNAMIC | WITH_RPC_ARG)
    suspended(rig, 1)
    older = rig.shadow()
    probe(rig, DYNAMIC)
    other = RAM + 0x3000
    rig.put(other, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 2)]
    assert rig.call(ARG, 0, other)[0] == smc.OPTEE_SMC_RETURN_RPC_ALLOC
    rig.host.script = [answer(INTR, 0, 0, 2)]
    assert rig.call(RETURN, 0, RAM + 0x8000, 2, 0, 0x77)[0] == INTR
    probe(rig, DYNAMIC | WITH_RPC_ARG, 1)

    def asks(rig: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        body = msg(GET_TIME, ret=GENERIC, params=[(2, 0, 0, 0)] * 4)
        older[32 : 32 + len(body)] = body
        return (CMD, 0, 0, 1)

    rig.host.script = [asks]
    assert rig.call(RETURN, 0, 0, 1)[0] == CMD, "with the room that the first kernel knew"
    rig.put(RAM + 32, msg(GET_TIME, params=[(2, 1, 2, 0)] * 4))
    assert rig.call(RETURN, 0, 0, 1)[0] == OK
    assert struct.unpack_from("<I", older, 32 + 20)[0] == 0
    assert rig.call(RETURN, 0, 0, 2)[0] == OK
    rig.host.script = [answer(OK, 0, 0x77)]
    assert rig.call(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[:3] == (OK, 0, 0x77)
    assert rig.info() == (0, 0, 0, 0)
    assert rig.pinned() == 0


def test_another_guest_asks_for_itself(rig: Rig) -> None:
    probe(rig, DYNAMIC | WITH_RPC_ARG, 2)
    probe(rig, DYNAMIC | WITH_RPC_ARG, 9, guest=1)
    suspended(rig)
    assert asked(rig, 3)[1] == GENERIC
    assert rig.host.sent[-1][7] == 1


@pytest.mark.parametrize("offered", [MediatorSettings(), MediatorSettings.reference()])
def test_every_change_of_every_bit_is_answered_by_the_last_answer_alone(
    offered: MediatorSettings,
) -> None:
    """Nothing of an earlier answer shows in a later one, in any order."""
    rig = Rig(offered)
    masks = [DYNAMIC, *[DYNAMIC | 1 << bit for bit in range(10)], 1 << 33 | 0x3FF]
    alone = {}
    for caps in masks:
        alone[caps] = probe(Rig(offered), caps, 5)
    for pair in pairwise([mask for both in product(masks, masks) for mask in both]):
        assert probe(rig, pair[1], 5) == alone[pair[1]]
    assert alone[masks[-1]][1] == 0x3FF & offered.capabilities
