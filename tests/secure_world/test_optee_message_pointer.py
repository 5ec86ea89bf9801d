# SPDX-License-Identifier: BSD-2-Clause
"""Where a message may lie, and how long it may be."""

from __future__ import annotations

import struct

import pytest

from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from tests.secure_world import support as s
from tests.secure_world.support import Normal

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
REGD_ARG = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
OK, BADADDR, BADCMD = 0, 4, 5
CLOSE = msg.OPTEE_MSG_CMD_CLOSE_SESSION
UNTOUCHED = 0x5555_5555


def plain(cmd: int = CLOSE, count: int = 0) -> bytes:
    head = struct.pack("<8I", cmd, 0, 9, 0, 0, UNTOUCHED, UNTOUCHED, count)
    return head + bytes(32 * min(count, 127))


def at(n: Normal, address: int, function: int) -> int:
    return n.raw(function, address >> 32, address & s.M32)[0]


@pytest.mark.parametrize("function", [ARG, RPC_ARG])
@pytest.mark.parametrize(
    "address",
    [
        0,
        s.BASE + 0x5001,
        s.BASE + 0x5004,
        s.BASE + 0x5008,
        s.BASE + 0x5FE0,
        s.SECURE,
        s.MMIO,
        s.PAST_RAM,
        0xFFFF_FFFF_FFFF_FFFF,
        0xFFFF_FFFF_FFFF_F000,
    ],
)
def test_bad_addresses(address: int, function: int) -> None:
    n = Normal()
    before = bytes(n.bus.ram)
    assert at(n, address, function) == BADADDR
    assert bytes(n.bus.ram) == before
    assert n.world.suspended(0) == ()


@pytest.mark.parametrize("function", [ARG, RPC_ARG])
def test_page_aligned_is_accepted(function: int) -> None:
    n = Normal()
    n.put(s.BASE + 0x5000, plain())
    assert at(n, s.BASE + 0x5000, function) == OK
    assert struct.unpack("<2I", n.get(s.BASE + 0x5014, 8)) == (0xFFFF0008, 3)


def test_reserved_area_takes_eight_byte_alignment() -> None:
    n = Normal()
    n.put(s.RESERVED + 0x108, plain())
    assert at(n, s.RESERVED + 0x108, ARG) == OK
    assert at(n, s.RESERVED + 0x108, RPC_ARG) == OK
    assert at(n, s.RESERVED + 0x10C, ARG) == BADADDR


def test_reserved_area_ends() -> None:
    n = Normal()
    end = s.RESERVED + s.RESERVED_SIZE
    n.put(end - 32, plain())
    assert at(n, end - 32, ARG) == OK
    assert at(n, end - 32, RPC_ARG) == BADADDR
    n.put(end - 32, plain(count=1)[:32])
    assert at(n, end - 32, ARG) == BADADDR
    assert at(n, end - 24, ARG) == BADADDR
    n.put(end - 192, plain())
    assert at(n, end - 192, RPC_ARG) == OK


@pytest.mark.parametrize(
    ("function", "count", "expected"),
    [
        (ARG, 127, OK),
        (RPC_ARG, 127, BADADDR),
        (RPC_ARG, 123, BADADDR),
        (RPC_ARG, 122, OK),
        (ARG, 128, BADADDR),
        (ARG, 0xFFFF_FFFF, BADADDR),
        (RPC_ARG, 0xFFFF_FFFF, BADADDR),
    ],
)
def test_number_of_params(function: int, count: int, expected: int) -> None:
    n = Normal()
    page = s.BASE + 0x5000
    n.put(page, plain(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, count))
    assert at(n, page, function) == expected
    result = struct.unpack("<2I", n.get(page + 20, 8))
    assert result == ((0xFFFF0006, 3) if expected == OK else (UNTOUCHED, UNTOUCHED))


@pytest.mark.parametrize("cmd", [8, 9, 10, 11, 12, 0xFFFF_FFFF])
def test_unknown_message_command(cmd: int) -> None:
    n = Normal()
    page = s.BASE + 0x5000
    n.put(page, plain(cmd))
    for function in (ARG, RPC_ARG):
        assert at(n, page, function) == BADCMD
    assert struct.unpack("<2I", n.get(page + 20, 8)) == (UNTOUCHED, UNTOUCHED)


@pytest.mark.parametrize("function", [0x32000000, 0x32000005, 0x32000014, 0x3F000004, 0x72000004])
def test_unknown_yielding_function(function: int) -> None:
    n = Normal()
    assert n.raw(function, 1, 2, 3) == (BADCMD, 0, 0, 0)


def test_unknown_yielding_function_takes_a_thread_first() -> None:
    n = Normal()
    session = n.session(s.CLOCK)
    data = s.message(1, [(1, 5, 0, 0)], func=1, session=session)
    for _ in range(2):
        assert n.start(data)[1][0] == smc.OPTEE_SMC_RETURN_RPC_CMD
    assert n.raw(0x32000005) == (1, 0, 0, 0)
    assert n.start(data)[1] == (1, 0, 0, 0)


class TestRegisteredCarrier:
    def setup_method(self) -> None:
        self.n = Normal()
        self.cookie, self.address = self.n.buffer(2 * s.PAGE)

    def call(self, offset: int, cookie: int | None = None) -> int:
        name = self.cookie if cookie is None else cookie
        return self.n.raw(REGD_ARG, name >> 32, name & s.M32, offset)[0]

    def test_unknown_cookie(self) -> None:
        assert self.call(0, self.cookie + 1) == BADADDR
        assert self.call(0, 0) == BADADDR

    @pytest.mark.parametrize("offset", [1, 2, 4, 0x184, 0x1000_0000 - 4])
    def test_unaligned_offset(self, offset: int) -> None:
        assert self.call(offset) == BADADDR

    @pytest.mark.parametrize("offset", [0x2000, 0x2008, 0x1FE8, 0x1F48, 0xFFFF_FFF8])
    def test_past_the_end(self, offset: int) -> None:
        assert self.call(offset) == BADADDR

    def test_last_place_that_fits(self) -> None:
        self.n.put(self.address + 0x1F40, plain())
        assert self.call(0x1F40) == OK
        self.n.put(self.address + 0x1F40, plain(count=1)[:32])
        assert self.call(0x1F40) == BADADDR

    def test_message_may_cross_a_page(self) -> None:
        data = s.message(
            msg.OPTEE_MSG_CMD_OPEN_SESSION, [s.uuid_param(s.ARITHMETIC), (s.META, 0, 0, 0)]
        )
        pages = [self.n.pages(), self.n.pages(2) + s.PAGE]
        cookie, reply = self.n.register(pages, 2 * s.PAGE)
        assert reply.ret == 0
        self.n.put(pages[0] + 0xFF0, data[:16])
        self.n.put(pages[1], data[16:])
        assert self.call(0xFF0, cookie) == OK
        back = self.n.get(pages[0] + 0xFF0, 16) + self.n.get(pages[1], 80)
        assert struct.unpack_from("<8I", back) == (0, 0, 1, 0, 0, 0, 4, 2)

    def test_offset_counts_from_the_first_byte(self) -> None:
        page = self.n.pages()
        cookie, _ = self.n.register([page], 0x800, 0x208)
        self.n.put(page + 0x208 + 0x10, plain())
        assert self.call(0x10, cookie) == OK
        assert struct.unpack("<2I", self.n.get(page + 0x208 + 0x24, 8)) == (0xFFFF0008, 3)


def test_without_the_capability_the_functions_are_unknown() -> None:
    n = Normal(SecureWorldSettings(virtualization=False, rpc_arg=False))
    n.put(s.BASE + 0x5000, plain())
    assert at(n, s.BASE + 0x5000, RPC_ARG) == BADCMD
    assert n.raw(REGD_ARG) == (BADCMD, 0, 0, 0)
    assert at(n, s.BASE + 0x5000, ARG) == OK


def test_message_is_read_once() -> None:
    """What the normal world changes during the call has no effect (no double fetch)."""
    n = Normal()
    session = n.session(s.ARITHMETIC)
    page = n.pages()
    n.put(page, s.message(1, [(1, 20, 22, 0), (2, 0, 0, 0), s.NOTHING, s.NOTHING], session=session))
    n.bus.reads = 0
    assert at(n, page, RPC_ARG) == OK
    assert n.bus.reads == 1
    assert struct.unpack("<4Q", n.get(page + 64, 32)) == (2, 42, 0, 0)


@pytest.mark.parametrize(("count", "reads"), [(0, 1), (4, 1), (5, 2), (127, 2)])
def test_no_byte_is_read_twice(count: int, reads: int) -> None:
    n = Normal()
    page = n.pages()
    n.put(page, plain(msg.OPTEE_MSG_CMD_CLOSE_SESSION, count))
    seen: list[tuple[int, int]] = []
    n.bus.before_read = lambda pa, size: seen.append((pa, size))
    assert at(n, page, ARG) == OK
    assert len(seen) == reads
    covered = [pa + i for pa, size in seen for i in range(size)]
    assert len(covered) == len(set(covered))
