# SPDX-License-Identifier: BSD-2-Clause
"""RPCs: both call styles, the argument cache, allocations and their false answers, images."""

from __future__ import annotations

import struct

import pytest

from secure_world import events
from secure_world.ta import TaRegistry
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import NOTHING, Normal
from tests.secure_world.suspended import (
    ALLOC,
    ARG,
    CMD,
    FREE,
    GENERIC,
    REE_TIME,
    REGD_ARG,
    SLEEP,
    TA,
    TEE,
    rpc_arg,
    sleeping,
)


@pytest.fixture
def n() -> Normal:
    return Normal()


class TestArgumentBehindTheMessage:
    def test_registers_and_presets(self, n: Normal) -> None:
        page, registers = sleeping(n)
        assert registers == (CMD, 0, 0, 0)
        fields = rpc_arg(n, page + 32 + 4 * 32)
        assert fields[:8] == (rpc.OPTEE_RPC_CMD_SUSPEND, 0, 0, 0, 0, GENERIC, 0, 1)
        assert fields[8:] == (1, 50, 0, 0) + (0,) * 12

    def test_position_depends_on_the_number_of_parameters(self, n: Normal) -> None:
        session = n.session(s.CLOCK)
        for count in (1, 2, 3, 4):
            params = [(1, 9, 0, 0), NOTHING, NOTHING, NOTHING][:count]
            page, registers = n.start(s.message(1, params, func=SLEEP, session=session))
            assert rpc_arg(n, page + 32 + 32 * count)[0] == rpc.OPTEE_RPC_CMD_SUSPEND
            assert n.resume(registers[3]) == (0, 0, 0, 0)

    def test_in_a_registered_carrier(self, n: Normal) -> None:
        session = n.session(s.CLOCK)
        cookie, address = n.buffer(s.PAGE)
        n.put(address + 0x180, s.message(1, [(1, 9, 0, 0)], func=SLEEP, session=session))
        registers = n.raw(REGD_ARG, cookie >> 32, cookie & s.M32, 0x180)
        assert registers == (CMD, 0, 0, 0)
        assert rpc_arg(n, address + 0x180 + 64)[0] == rpc.OPTEE_RPC_CMD_SUSPEND
        assert n.resume(0) == (0, 0, 0, 0)
        assert struct.unpack("<2I", n.get(address + 0x194, 8)) == (0, TA)

    def test_in_a_carrier_across_two_pages(self, n: Normal) -> None:
        session = n.session(s.CLOCK)
        pages = [n.pages(), n.pages(2) + s.PAGE]
        cookie, _ = n.register(pages, 2 * s.PAGE)
        n.put(pages[0] + 0xFC0, s.message(1, [(1, 9, 0, 0)], func=SLEEP, session=session))
        registers = n.raw(REGD_ARG, cookie >> 32, cookie & s.M32, 0xFC0)
        assert registers == (CMD, 0, 0, 0)
        assert rpc_arg(n, pages[1])[:8] == (5, 0, 0, 0, 0, GENERIC, 0, 1)
        assert n.resume(0)[0] == 0


class TestClassicStyle:
    def test_allocation_asks_for_0xa0_bytes_and_the_cookie_comes_in_a4_a5(self, n: Normal) -> None:
        _, registers = sleeping(n, function=ARG)
        assert registers == (ALLOC, 0xA0, 0, 0)
        page, cookie = n.pages(), 0x1234_5678_9ABC_DEF0
        registers = n.resume(0, page >> 32, page & s.M32, cookie >> 32, cookie & s.M32)
        assert registers == (CMD, 0x1234_5678, 0x9ABC_DEF0, 0)
        assert rpc_arg(n, page)[:8] == (5, 0, 0, 0, 0, GENERIC, 0, 1)
        assert n.resume(0, 0x1234_5678, 0x9ABC_DEF0) == (FREE, 0x1234_5678, 0x9ABC_DEF0, 0)
        assert n.resume(0) == (0, 0, 0, 0)

    def test_upper_halves_of_the_answer_are_ignored(self, n: Normal) -> None:
        _, registers = sleeping(n, function=ARG)
        page, junk = n.pages(), 0xDEAD << 32
        registers = n.resume(0, junk, page & s.M32 | junk, 0x77 | junk, 0x88 | junk)
        assert registers == (CMD, 0x77, 0x88, 0)

    def test_one_argument_serves_the_whole_call(self, n: Normal) -> None:
        reply = n.call(
            msg.OPTEE_MSG_CMD_OPEN_SESSION,
            [s.uuid_param(s.ECHO), (s.META, 0, 0, 0)],
            function=ARG,
        )
        assert reply.result == (0, TA)
        assert [command for command, _ in n.rpcs] == [0, 6, 0, 7]
        assert n.rpc_alloc == []
        starts = [e for e in n.of(events.ThreadSuspended) if e[2] in (ALLOC, FREE)]
        assert len(starts) == 2

    def test_the_cache_keeps_arguments_and_is_drained_one_by_one(self, n: Normal) -> None:
        assert n.world.smc(smc.OPTEE_SMC_ENABLE_SHM_CACHE)[0] == 0
        assert n.world.smc(smc.OPTEE_SMC_ENABLE_SHM_CACHE)[0] == 0
        session = n.session(s.CLOCK)
        data = s.message(1, [(1, 9, 0, 0)], func=SLEEP, session=session)
        _, first = n.start(data, function=ARG)
        other = n.session(s.CLOCK)
        _, second = n.start(s.message(1, [(1, 9, 0, 0)], func=SLEEP, session=other), function=ARG)
        assert (first[0], second[0], second[3]) == (ALLOC, ALLOC, 1)
        for registers in (first, second):
            assert n.serve(0, registers) == (0, 0, 0, 0)
        kept = dict(n.rpc_alloc)
        assert len(kept) == 2
        _, again = n.start(data, function=ARG)
        assert again[0] == CMD
        assert n.serve(0, again)[0] == 0
        drained = []
        while True:
            a0, a1, a2, a3 = n.world.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE, 1, 2, 3)
            if a0 == smc.OPTEE_SMC_RETURN_ENOTAVAIL:
                break
            assert (a0, a3) == (0, 3)
            assert a1 == a2 >> 32
            drained.append(a2)
        assert sorted(drained) == sorted(kept)
        assert len(n.of(events.ShmReleased)) == 2
        _, after = n.start(data, function=ARG)
        assert after[0] == ALLOC

    def test_a_cached_argument_is_freed_when_the_style_changes(self, n: Normal) -> None:
        n.world.smc(smc.OPTEE_SMC_ENABLE_SHM_CACHE)
        session = n.session(s.CLOCK)
        data = s.message(1, [(1, 9, 0, 0)], func=SLEEP, session=session)
        _, registers = n.start(data, function=ARG)
        n.serve(0, registers)
        cookie = n.rpc_alloc[0][0]
        page, registers = n.start(data)
        assert registers == (FREE, cookie >> 32, cookie & s.M32, 0)
        registers = n.resume(0)
        assert registers == (CMD, 0, 0, 0)
        assert n.serve(page + 64, registers) == (0, 0, 0, 0)

    @pytest.mark.parametrize("address", [0, s.SECURE, s.PAST_RAM, s.BASE + 0x9008, s.BASE + 0x9004])
    @pytest.mark.parametrize("cookie", [0, 0x5555])
    def test_a_bad_answer_is_freed_and_the_operation_fails(
        self, n: Normal, address: int, cookie: int
    ) -> None:
        session = n.session(s.CLOCK)
        data = s.message(1, [(2, 0, 0, 0)], func=REE_TIME, session=session)
        page, registers = n.start(data, function=ARG)
        registers = n.resume(0, address >> 32, address & s.M32, 0, cookie)
        if cookie:
            assert registers == (FREE, 0, cookie, 0)
            registers = n.resume(0)
        assert registers == (0, 0, 0, 0)
        assert struct.unpack("<2I", n.get(page + 20, 8)) == (tee.TEE_ERROR_OUT_OF_MEMORY, TA)

    def test_eight_byte_alignment_is_enough_in_the_reserved_area(self, n: Normal) -> None:
        _, registers = sleeping(n, function=ARG)
        address = s.RESERVED + 0x48
        registers = n.resume(0, 0, address, 0, 0x99)
        assert registers == (CMD, 0, 0x99, 0)
        assert rpc_arg(n, address)[0] == rpc.OPTEE_RPC_CMD_SUSPEND
        assert n.resume(0, 0, 0x99) == (FREE, 0, 0x99, 0)
        assert n.resume(0)[0] == 0


class TestSharedMemoryAllocation:
    """The answer to SHM_ALLOC is judged from one read; what is not right is asked for once more."""

    def open(self, n: Normal) -> s.Reply:
        return n.open(s.ECHO)

    def test_load_is_asked_twice_with_an_allocation_between(self, n: Normal) -> None:
        assert self.open(n).result == (0, TA)
        a, b = struct.unpack("<2Q", s.ECHO.bytes)
        size = len(n.world.registry.image(s.ECHO))
        (_, first), (_, alloc), (_, second), (_, free) = n.rpcs
        assert first == ((1, a, b, 0), (0xA, 0, 0, 0))
        assert alloc == ((1, 0, size, 8),)
        cookie = second[1][3]
        assert second == ((1, a, b, 0), (6, 0, size, cookie))
        assert free == ((1, 0, cookie, 0),)

    @pytest.mark.parametrize(
        ("lie", "freed"),
        [
            ("attr", False),
            ("value", False),
            ("zero", False),
            ("small", False),
            ("count", False),
            ("error", False),
            ("list", True),
            ("entry", True),
            ("huge", True),
        ],
    )
    def test_false_answers(self, n: Normal, lie: str, freed: bool) -> None:
        given: list[int] = []

        def liar(command: int, fields: list[int]) -> bool:
            if command == rpc.OPTEE_RPC_CMD_SHM_FREE:
                n.shm.setdefault(fields[10], (0, 0))
            if command != rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                return False
            size, cookie = fields[10], n.cookie()
            given.append(cookie)
            where = n.page_list([n.pages()])
            fields[5:7] = [0, 2]
            fields[8:12] = [s.REG_ATTR, where, size, cookie]
            if lie == "attr":
                fields[8] = 0x209
            elif lie == "value":
                fields[8:12] = [1, 0, size, 8]
            elif lie == "zero":
                fields[10] = 0
            elif lie == "small":
                fields[10] = size - 1
            elif lie == "count":
                fields[7] = 2
            elif lie == "error":
                fields[5] = tee.TEE_ERROR_OUT_OF_MEMORY
            elif lie == "list":
                fields[9] = s.SECURE
            elif lie == "entry":
                n.put(where, struct.pack("<Q", s.SECURE))
            else:
                fields[10] = 1 << 40
            return True

        n.on_rpc = liar
        reply = self.open(n)
        assert (*reply.result, reply.session) == (tee.TEE_ERROR_OUT_OF_MEMORY, TEE, 0)
        assert len(given) == 2
        frees = [p[0][2] for c, p in n.rpcs if c == rpc.OPTEE_RPC_CMD_SHM_FREE]
        assert frees == (given if freed else [])
        partition = n.world.partition(0)
        assert partition is not None
        assert partition.shm.live == 0

    @pytest.mark.parametrize("reserved", [True, False])
    def test_a_contiguous_answer_is_accepted(self, n: Normal, reserved: bool) -> None:
        def contiguous(command: int, fields: list[int]) -> bool:
            if command == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                address = s.RESERVED + 0x40 if reserved else n.pages(4)
                n.shm[0x99] = (address, fields[10])
                fields[5:7] = [0, 2]
                fields[8:12] = [0xA, address, fields[10], 0x99]
                return True
            if command == rpc.OPTEE_RPC_CMD_LOAD_TA and fields[12] == 0xA and fields[13]:
                image = n.images[struct.pack("<2Q", *fields[9:11])]
                assert fields[13:16] == [n.shm[0x99][0], len(image), 0x99]
                n.put(fields[13], image)
                fields[5:7] = [0, 2]
                return True
            return False

        n.on_rpc = contiguous
        assert self.open(n).result == (0, TA)
        assert n.shm == {}

    def test_a_cookie_that_is_registered_already_is_accepted(self, n: Normal) -> None:
        cookie, _ = n.buffer(64)

        def same(command: int, fields: list[int]) -> bool:
            if command != rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                return False
            n._service(fields)
            n.shm[cookie] = n.shm.pop(fields[11])
            fields[5:7] = [0, 2]
            fields[11] = cookie
            return True

        n.on_rpc = same
        assert self.open(n).result == (0, TA)
        assert n.unregister(cookie).ret == 0

    def test_allocated_memory_cannot_be_unregistered(self, n: Normal) -> None:
        page, registers = n.start(s.message(0, [s.uuid_param(s.ECHO), (s.META, 0, 0, 0)]))
        while not n.shm:
            registers = n.serve_one(page + 96, registers)
        cookie = next(iter(n.shm))
        assert n.unregister(cookie).ret == tee.TEE_ERROR_BAD_PARAMETERS
        assert n.finish(page, registers, 96).result == (0, TA)


class TestImages:
    @pytest.mark.parametrize("at", [0, 5, 20, 24, -1])
    def test_a_changed_image_is_refused(self, n: Normal, at: int) -> None:
        image = bytearray(n.images[s.ECHO.bytes])
        image[at] ^= 1
        n.images[s.ECHO.bytes] = bytes(image)
        assert n.open(s.ECHO).result == (tee.TEE_ERROR_SECURITY, TEE)
        assert n.of(events.ImageRefused) == [(0, s.ECHO.bytes)]
        assert n.shm == {}

    def test_an_image_of_another_ta_is_refused(self, n: Normal) -> None:
        n.images[s.ECHO.bytes] = n.images[s.ECHO_SHARED.bytes]
        assert n.open(s.ECHO).result == (tee.TEE_ERROR_SECURITY, TEE)

    def test_a_genuine_image_of_a_ta_that_this_world_does_not_know(self, n: Normal) -> None:
        m = Normal(registry=TaRegistry())
        m.images = n.images
        assert m.open(s.ECHO).result == (tee.TEE_ERROR_ITEM_NOT_FOUND, TEE)

    @pytest.mark.parametrize("size", [0, 1 << 30, 1 << 63])
    def test_a_size_that_cannot_be(self, n: Normal, size: int) -> None:
        def liar(command: int, fields: list[int]) -> bool:
            if command == rpc.OPTEE_RPC_CMD_LOAD_TA:
                fields[5:7] = [0, 2]
                fields[14] = size
            return command == rpc.OPTEE_RPC_CMD_LOAD_TA

        n.on_rpc = liar
        assert n.open(s.ECHO).result == (tee.TEE_ERROR_OUT_OF_MEMORY, TEE)
        assert len(n.rpcs) == 1

    def test_a_handler_that_forgets_the_result_reports_generic(self, n: Normal) -> None:
        n.on_rpc = lambda command, fields: True
        assert n.open(s.ECHO).result == (GENERIC, TEE)

    def test_images_have_the_size_that_is_asked_for(self, n: Normal) -> None:
        image = n.world.registry.image(s.ECHO, size=0x1BD90)
        assert len(image) == 0x1BD90
        n.images[s.ECHO.bytes] = image
        assert n.open(s.ECHO).result == (0, TA)
