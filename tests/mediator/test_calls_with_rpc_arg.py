# SPDX-License-Identifier: BSD-2-Clause
"""CALL_WITH_RPC_ARG and CALL_WITH_REGD_ARG: what no recorded vector covers."""

from __future__ import annotations

import struct

import pytest

from mediator.host import PAGE_SIZE
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Rig, answer, msg, request

CARRIER = 0xFFFF_0000_104E_2480
BUFFER_PAGES = [RAM + 0x100_000, RAM + 0x7C_000]
REGD = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
EBADADDR = smc.OPTEE_SMC_RETURN_EBADADDR
INVOKE = 1


def put_slot(rig: Rig, position: int, data: bytes, guest: int = 0) -> None:
    """Write into the carrier buffer at byte ``position``, across its two scattered pages."""
    for index, byte in enumerate(data):
        at = position + index
        rig.put(BUFFER_PAGES[at // PAGE_SIZE] + at % PAGE_SIZE, bytes([byte]), guest)


def get_slot(rig: Rig, position: int, length: int) -> bytes:
    places = range(position, position + length)
    return b"".join(rig.get(BUFFER_PAGES[at // PAGE_SIZE] + at % PAGE_SIZE, 1) for at in places)


def regd(rig: Rig, position: int, cookie: int = CARRIER, guest: int = 0) -> tuple[int, ...]:
    return rig.call(REGD, cookie >> 32, cookie & 0xFFFF_FFFF, position, guest=guest)


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    assert rig.register(CARRIER, BUFFER_PAGES)[0] == 0
    rig.host.sent.clear()
    rig.host.calls.clear()
    return rig


@pytest.mark.parametrize("position", [0, 0x180, 0xF80, PAGE_SIZE - 8, PAGE_SIZE - 32, 0x1008])
def test_a_slot_is_forwarded_as_rpc_arg_on_a_shadow_page(rig: Rig, position: int) -> None:
    body = msg(INVOKE, func=7, session=3, params=[(3, 1, 2, 3), (0, 0, 0, 0)])
    put_slot(rig, position, body)
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        page = rig.shadow()
        seen.append((regs, bytes(page[: len(body)]), bytes(page[len(body) :])))
        struct.pack_into("<2I", page, 20, 0xFFFF0008, 4)
        struct.pack_into("<3Q", page, 40, 11, 12, 13)
        return (0, 0, 0, 0)

    rig.host.script = [script]
    assert regd(rig, position) == (0, CARRIER >> 32, CARRIER & 0xFFFF_FFFF, position, *[0x77] * 4)
    regs, sent, rest = seen[0]
    assert regs[0] == RPC_ARG
    assert regs[3:] == (1, 0, 0, 0, 1)
    assert sent == body
    assert not any(rest), "nothing of the neighbouring slots may be copied"
    out = struct.unpack("<8I4Q", get_slot(rig, position, 64))
    assert out[5:8] == (0xFFFF0008, 4, 2)
    assert out[8:] == (3, 11, 12, 13)
    assert rig.info() == (0, 1, 2, 0)


@pytest.mark.parametrize("count", [0, 6, 7, 40, 100])
@pytest.mark.parametrize("position", [0, 0x180, PAGE_SIZE - 8, PAGE_SIZE - 232])
def test_no_byte_of_a_slot_is_read_twice_and_few_beyond_it(
    rig: Rig, position: int, count: int
) -> None:
    body = msg(INVOKE, params=[(1, index, index, index) for index in range(count)])
    put_slot(rig, position, body)
    reads: list[tuple[int, int]] = []
    read_pinned = rig.host.read_pinned

    def noting(guest: int, pa: int, length: int) -> bytes:
        reads.append((pa, pa + length))
        return read_pinned(guest, pa, length)

    rig.host.read_pinned = noting  # type: ignore[method-assign]
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        seen.append(bytes(rig.shadow()[: len(body)]))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    assert regd(rig, position)[0] == 0
    assert seen == [body]
    for index, (start, end) in enumerate(reads):
        assert all(end <= low or high <= start for low, high in reads[:index])
    assert sum(end - start for start, end in reads) <= max(len(body), 224)


def test_a_plain_invoke_takes_three_system_calls(rig: Rig) -> None:
    put_slot(rig, 0, msg(INVOKE, params=[(3, 1, 2, 3)] * 4))
    regd(rig, 0)
    rig.host.calls.clear()
    regd(rig, 0)
    assert dict(rig.host.calls) == {"read_pinned": 1, "smc": 1, "write_pinned": 1}
    rig.put(RAM, msg(INVOKE, params=[(3, 1, 2, 3)] * 4))
    rig.host.calls.clear()
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0)
    assert dict(rig.host.calls) == {"read_guest": 1, "smc": 1, "write_guest": 1}


@pytest.mark.parametrize(
    ("position", "cookie"),
    [
        (4, CARRIER),
        (1, CARRIER),
        (2 * PAGE_SIZE, CARRIER),
        (2 * PAGE_SIZE - 24, CARRIER),
        (2 * PAGE_SIZE - 32, CARRIER),
        (2 * PAGE_SIZE - 32 - 64 - 152, CARRIER),
        (0xFFFF_FFF8, CARRIER),
        (0, CARRIER + 1),
        (0, CARRIER ^ 1 << 32),
    ],
)
def test_a_slot_that_cannot_be_is_ebadaddr(rig: Rig, position: int, cookie: int) -> None:
    if position <= 2 * PAGE_SIZE - 96:
        put_slot(rig, position & ~7, msg(INVOKE, params=[(0, 0, 0, 0)] * 2))
    assert regd(rig, position, cookie)[0] == EBADADDR
    assert not rig.host.sent
    assert rig.info() == (0, 1, 2, 0)


def test_the_last_slot_that_fits_is_served(rig: Rig) -> None:
    position = 2 * PAGE_SIZE - 32 - 64 - 160
    put_slot(rig, position, msg(INVOKE, params=[(0, 0, 0, 0)] * 2))
    assert regd(rig, position)[0] == 0
    assert len(rig.host.sent) == 1


def test_cookies_of_another_guest_or_kind_are_no_carriers(rig: Rig) -> None:
    put_slot(rig, 0, msg(INVOKE), guest=1)
    assert regd(rig, 0, guest=1)[0] == EBADADDR
    assert not rig.host.sent


@pytest.mark.parametrize(("count", "status"), [(122, 0), (123, EBADADDR), (127, EBADADDR)])
def test_message_and_rpc_argument_must_fit_one_page(rig: Rig, count: int, status: int) -> None:
    rig.put(RAM, msg(INVOKE, params=[(0, 0, 0, 0)] * count))
    assert rig.call(RPC_ARG, 0, RAM, 0)[0] == status
    assert len(rig.host.sent) == (status == 0)


@pytest.mark.parametrize("count", [128, 0xFFFF_FFFF])
def test_too_many_parameters_are_bad_parameters_from_comms(rig: Rig, count: int) -> None:
    body = struct.pack("<8I", INVOKE, 0, 0, 0, 0, 0, 0, count)
    rig.put(RAM, body)
    assert rig.call(RPC_ARG, 0, RAM, 0)[0] == 0
    assert rig.message(RAM, 0)[5:7] == (0xFFFF0006, 2)
    put_slot(rig, PAGE_SIZE - 24, body)
    assert regd(rig, PAGE_SIZE - 24)[0] == 0
    assert struct.unpack("<2I", get_slot(rig, PAGE_SIZE - 4, 8)) == (0xFFFF0006, 2)
    assert not rig.host.sent


@pytest.mark.parametrize("way", ["address", "cookie", "crossing"])
def test_an_rpc_round_goes_through_the_argument_behind_the_message(rig: Rig, way: str) -> None:
    body = msg(INVOKE, params=[(3, 1, 2, 3)])
    asked = msg(3, ret=0xFFFF0000, params=[(2, 0, 0, 0)])
    position = PAGE_SIZE - 80 if way == "crossing" else 0x180
    if way == "address":
        rig.put(RAM, body)
    else:
        put_slot(rig, position, body)
    rig.host.script = [request(asked, thread=5)]
    out = rig.call(RPC_ARG, 0, RAM, 0) if way == "address" else regd(rig, position)
    assert out[:4] == (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 0, 5)
    replied = msg(3, params=[(2, 17, 18, 0)])
    if way == "address":
        assert rig.get(RAM + 64, 64) == asked
        rig.put(RAM + 64, replied)
    else:
        assert get_slot(rig, position + 64, 64) == asked
        put_slot(rig, position + 64, replied)
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        seen.append((regs, bytes(rig.shadow()[64:128])))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    assert rig.call(RETURN, 0, 0, 5)[0] == 0
    assert seen == [((RETURN, 0, 0, 5, 0, 0, 0, 1), replied)]
    assert rig.info() == (0, 1, 2, 0)


def test_unregistering_the_carrier_of_a_call_in_flight_keeps_its_pages_until_the_end(
    rig: Rig,
) -> None:
    put_slot(rig, 0, msg(INVOKE))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, 1)]
    assert regd(rig, 0)[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
    page = rig.shadow()
    assert rig.unregister(CARRIER)[0] == 0
    assert rig.pinned() == 2
    assert regd(rig, 0)[0] == EBADADDR, "the name is gone at once"
    assert rig.info() == (1, 1, 2, 0), "the guest has it until the end, and it counts"
    struct.pack_into("<2I", page, 20, 0xFFFF0001, 4)
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert struct.unpack("<2I", get_slot(rig, 20, 8)) == (0xFFFF0001, 4)
    assert rig.pinned() == 0
    assert rig.info() == (0, 0, 0, 0)


def test_a_cookie_in_registration_is_not_yet_a_carrier() -> None:
    rig = Rig()
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        seen.append(regd(rig, 0)[0])
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.register(CARRIER, BUFFER_PAGES)
    assert seen == [EBADADDR]
    assert regd(rig, 0)[0] == 0


def test_the_shadow_page_is_clean_for_the_next_guest(rig: Rig) -> None:
    rig.put(RAM, msg(INVOKE, params=[(1, 0xA5A5, 0xA5A5, 0xA5A5)] * 100))
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0)
    rig.put(RAM, msg(INVOKE), guest=1)
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        seen.append(bytes(rig.shadow()[32:]))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0, guest=1)
    assert not any(seen[0])
