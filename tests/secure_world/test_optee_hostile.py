# SPDX-License-Identifier: BSD-2-Clause
"""Whatever the normal world does: an ABI answer, never an exception, and nothing left behind."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_world import events
from secure_world.fault import Registers4, Registers8
from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import Normal, RamBus

U64 = st.integers(0, (1 << 64) - 1)
EDGES = st.sampled_from(
    [0, 1, 7, 8, 0xFFF, 0x1000, s.M32, 1 << 32, 1 << 44, 1 << 52, 1 << 63, (1 << 64) - 1]
)
ADDRESS = st.sampled_from(
    [s.BASE, s.BASE + 0x1000, s.BASE + 0x2008, s.SECURE, s.PAST_RAM, s.RESERVED + 8]
)
WORD = st.one_of(EDGES, ADDRESS, U64, st.integers(0, 64))
FUNCTIONS = st.one_of(
    st.sampled_from(
        [
            smc.OPTEE_SMC_CALL_WITH_ARG,
            smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
            smc.OPTEE_SMC_CALL_WITH_REGD_ARG,
            smc.OPTEE_SMC_CALL_RETURN_FROM_RPC,
            *range(0xB2000000, 0xB2000016),
            0xBF00FF00,
            0xBF00FF01,
            0xBF00FF03,
        ]
    ),
    U64,
)
RESULTS = {0, 1, 2, 3, 4, 5, 6, 7, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}
RPCS = {
    smc.OPTEE_SMC_RETURN_RPC_ALLOC,
    smc.OPTEE_SMC_RETURN_RPC_FREE,
    smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR,
    smc.OPTEE_SMC_RETURN_RPC_CMD,
}
DATA_CALLS = {
    *(0xB2000000, 0xB2000001, 0xBF00FF00, 0xBF00FF01, 0xBF00FF03),
    *(0xB2010000, 0xB2010001, 0xBF01FF00, 0xBF01FF01, 0xBF01FF03),
}
UUIDS = st.sampled_from(
    [s.ECHO, s.ECHO_SHARED, s.DEVICES, s.INVOKE_TESTS, s.MEMREFS, s.LOCKER, s.CLOCK, s.PANICKER]
)
COOKIES = st.sampled_from([0, 0x77, 0x78, 0xF1000])
ATTRS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 5, 6, 7, 9, 0xA, 0xB, 0x209, 0x20A, 0x20B, 0x101, 0x105, 4, 8]),
    U64,
)
PARAMS = st.lists(st.tuples(ATTRS, WORD, WORD, st.one_of(COOKIES, WORD)), min_size=0, max_size=7)


def plain(answer: tuple[int, ...], a0: int) -> None:
    """An answer of the ABI: registers of 64 bits, a known status."""
    assert len(answer) == 4
    assert all(0 <= value < 1 << 64 for value in answer)
    if a0 & s.M32 not in DATA_CALLS:
        assert answer[0] in RESULTS | RPCS


@given(st.lists(st.tuples(FUNCTIONS, *[WORD] * 7), max_size=12), st.booleans())
def test_any_registers(calls: list[tuple[int, ...]], virtualization: bool) -> None:
    w = SecureWorld(RamBus(16), SecureWorldSettings(virtualization=virtualization, guests=3))
    w.smc(smc.OPTEE_SMC_VM_CREATED, 1)
    for call in calls:
        plain(w.smc(*call), call[0])


@given(st.binary(max_size=4096), st.sampled_from([0x32000004, 0x32000012]))
def test_any_page(data: bytes, function: int) -> None:
    n = Normal(pages=64)
    n.session(s.MEMREFS)
    page = n.pages()
    n.put(page, data)
    plain(n.raw(function, 0, page), function)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message that is nearly right: known commands, params from a small world of names."""
    cmd = draw(st.one_of(st.integers(0, 8), U64.map(lambda x: x & s.M32)))
    params = draw(PARAMS)
    if cmd == 0 and draw(st.booleans()):
        login = draw(st.sampled_from([0, 1, 3, 0x8000_0000]))
        params = [s.uuid_param(draw(UUIDS)), (s.META, 1, 2, login), *params]
    func = draw(st.integers(0, 12))
    return s.message(cmd, params, func=func, session=draw(st.integers(0, 4)))


ACTIONS = st.one_of(
    st.tuples(st.just("call"), messages(), st.sampled_from([0x32000004, 0x32000012])),
    st.tuples(st.just("regd"), messages(), st.sampled_from([0, 8, 0x180, 0xF80, 0xFF8, 4])),
    st.tuples(st.just("serve"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("resume"), st.integers(0, 3), WORD),
    st.tuples(st.just("lie"), st.integers(0, 3), st.binary(min_size=8, max_size=160)),
    st.tuples(st.just("fast"), FUNCTIONS, WORD),
    st.tuples(st.just("deny"), st.integers(0, 40), st.just(0)),
)


class Rough(Normal):
    """Keeps the place of each thread's RPC argument, to serve or to spoil it."""

    def __init__(self) -> None:
        super().__init__(SecureWorldSettings(threads=3), pages=256)
        self.where: dict[int, tuple[int, tuple[int, int, int, int]]] = {}
        self.carrier, _ = self.register([s.BASE + 0x8_0000, s.BASE + 0x8_2000], 8192, cookie=0x77)
        page = self.page_list([s.BASE + 0x8_4000])
        self.call(4, [(s.REG_ATTR, page | 0x10, 5000 - 0x10, 0x78)])
        for uuid in (s.ECHO, s.MEMREFS, s.LOCKER):
            self.session(uuid)

    def note(self, arg: int, registers: tuple[int, int, int, int], a0: int) -> None:
        plain(registers, a0)
        if registers[0] in RPCS:
            self.where[registers[3]] = (arg, registers)

    def act(self, action: tuple[str, object, object]) -> None:
        kind, one, two = action
        if kind == "call":
            assert isinstance(one, bytes)
            assert isinstance(two, int)
            page, registers = self.start(one, function=two)
            self.note(page + len(one), registers, two)
        elif kind == "regd":
            assert isinstance(one, bytes)
            assert isinstance(two, int)
            for at, byte in enumerate(one):
                offset = two + at
                base = s.BASE + (0x8_0000 if offset < 4096 else 0x8_2000 - 4096)
                self.put(base + offset, bytes([byte]))
            end = two + len(one)
            base = s.BASE + (0x8_0000 if end < 4096 else 0x8_2000 - 4096)
            self.note(base + end, self.raw(0x32000013, 0, 0x77, two), 0x32000013)
        elif kind == "fast":
            assert isinstance(one, int)
            assert isinstance(two, int)
            plain(self.world.smc(one, two), one)
        elif kind == "deny":
            assert isinstance(one, int)
            self.bus.denied.add((s.BASE >> 12) + one)
        elif one in self.where:
            assert isinstance(one, int)
            arg, registers = self.where.pop(one)
            if kind == "serve" and registers[0] != smc.OPTEE_SMC_RETURN_RPC_CMD:
                answer = self.resume(one)
            elif kind == "serve":
                try:
                    answer = self.serve_one(arg, registers)
                except (KeyError, struct.error):
                    answer = self.resume(one)  # the argument was spoilt: nothing to serve
            else:
                if isinstance(two, bytes):
                    self.put(arg, two)
                    two = two[0]
                assert isinstance(two, int)
                answer = self.resume(one, two, two, two, two)
            self.note(arg, answer, 0x32000003)


@given(st.lists(ACTIONS, max_size=25))
@settings(max_examples=150)
def test_any_history(actions: list[tuple[str, object, object]]) -> None:
    n = Rough()
    for action in actions:
        n.act(action)
    partition = n.world.partition(1)
    if partition is not None:
        suspended = n.world.suspended(1)
        assert len(suspended) <= 3
        if not suspended:
            memory = list(partition.shm.by_cookie.values())
            assert all(m.maps == 0 for m in memory if not m.guarded)
            assert partition.sessions.single_owner is None
            assert not partition.sessions.queue.waiting
    while n.world.partition(1) is not None:
        assert n.world.smc(smc.OPTEE_SMC_VM_DESTROYED, 1)[0] == 0
    before = bytes(n.bus.ram)
    for thread in range(3):
        assert n.resume(thread)[0] == smc.OPTEE_SMC_RETURN_ENOTAVAIL
    assert bytes(n.bus.ram) == before


def test_every_call_of_a_dead_page_is_reported() -> None:
    n = Normal(SecureWorldSettings())
    session = n.session(s.ECHO)
    cookie, address = n.buffer(8192)
    n.bus.denied.add((address >> 12) + 1)
    reply = n.invoke(session, 1, [(7, 0, 8192, cookie)])
    assert reply.ret == tee.TEE_ERROR_TARGET_DEAD
    assert n.of(events.Breach) == [(1, address + 4096, 4096, False)]


class Liar:
    """A fault policy: lies in a0 and turns over every written byte."""

    def answer(self, call: Registers8, registers: Registers4) -> Registers4:
        return (registers[0] ^ 1, call[1], *registers[2:])

    def written(self, client: int, pa: int, data: bytes) -> bytes:
        return bytes(255 - byte for byte in data)


class Cutter(Liar):
    def written(self, client: int, pa: int, data: bytes) -> bytes:
        return data[:-1]


@pytest.mark.parametrize(
    ("policy", "written"), [(Liar(), (0x0000_FFF7, 0xFFFF_FFFC)), (Cutter(), (0xFFFF_0008, 3))]
)
def test_a_lying_secure_world(policy: Liar, written: tuple[int, int]) -> None:
    """The policy has the last word; a lie of another length is not stored."""
    bus = RamBus(16)
    w = SecureWorld(bus, SecureWorldSettings(virtualization=False), fault=policy)
    bus.ram[0x1000:0x1020] = s.message(2, session=9)
    assert w.smc(smc.OPTEE_SMC_CALL_WITH_ARG, 0, s.BASE + 0x1000, 5) == (1, 0, 0, 0)
    assert struct.unpack_from("<2I", bus.ram, 0x1014) == written
    assert w.smc(smc.OPTEE_SMC_GET_THREAD_COUNT, 0x55) == (1, 0x55, 0, 0)


class TestNestedCalls:
    """Another processor's call in the middle of one: the bus is where the test gets in."""

    def during(self, n: Normal, act: Callable[[], object]) -> Registers4:
        session = n.session(s.ECHO)
        cookie, address = n.buffer(64)
        done: list[int] = []

        def hook(pa: int, size: int) -> None:
            if pa == address and not done:
                done.append(1)
                act()

        n.bus.before_read = hook
        params = [(7, 0, 64, cookie), s.NOTHING, s.NOTHING, s.NOTHING]
        _, registers = n.start(s.message(1, params, func=1, session=session))
        assert done
        return registers

    def test_a_running_thread_cannot_be_resumed(self) -> None:
        n = Normal(SecureWorldSettings())
        seen: list[int] = []
        registers = self.during(n, lambda: seen.append(n.resume(0)[0]))
        assert (seen, registers) == ([3], (0, 0, 0, 0))

    def test_another_call_takes_another_thread(self) -> None:
        n = Normal(SecureWorldSettings())
        seen: list[int] = []

        def other() -> None:
            seen.append(n.session(s.ARITHMETIC))

        assert self.during(n, other) == (0, 0, 0, 0)
        assert seen == [2]

    def test_the_partition_may_go(self) -> None:
        n = Normal(SecureWorldSettings())

        def destroy() -> None:
            assert n.world.smc(smc.OPTEE_SMC_VM_DESTROYED, 1)[0] == 0
            n.bus.writes.clear()

        self.during(n, destroy)
        assert n.bus.writes == []
        assert n.resume(0)[0] == smc.OPTEE_SMC_RETURN_ENOTAVAIL
        assert n.of(events.Breach) == []


class TestBounds:
    """What one guest can ask for has an end, and no entry takes for ever."""

    def test_work_without_end_leaves_again_and_again(self) -> None:
        n = Normal(SecureWorldSettings(checkpoints_per_entry=10))
        session = n.session(s.CLOCK)
        params = [(1, s.M32, 0, 0)]
        _, registers = n.start(s.message(1, params, func=0, session=session))
        for _ in range(50):
            assert registers == (smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, 0)
            registers = n.resume(0)
        assert n.call(3, session=session).ret == 0
        assert n.resume(0) == (0, 0, 0, 0)

    def test_a_slice_of_secure_time(self) -> None:
        n = Normal(SecureWorldSettings(slice_ns=1_000_000))
        session = n.session(s.CLOCK)
        _, registers = n.start(s.message(1, [(1, 100, 100_000, 0)], func=0, session=session))
        slices = 0
        while registers[0]:
            assert registers[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
            slices += 1
            registers = n.resume(0)
        assert slices == 10

    def test_a_huge_buffer_is_worked_through_in_slices(self) -> None:
        n = Normal(SecureWorldSettings(slice_ns=1_000_000))
        session = n.session(s.MEMREFS)
        page, first = n.pages(), n.pages()
        n.put(first, struct.pack("<511Q", *[page] * 511) + struct.pack("<Q", first))
        size = 0x1000_0000
        assert n.call(4, [(s.REG_ATTR, first, size, 5)]).ret == 0
        n.bus.reads = 0
        params = [(7, 0, size, 5)]
        _, registers = n.start(s.message(1, params, func=2, session=session))
        assert registers[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
        assert n.bus.reads < 1000

    @pytest.mark.parametrize("limit", [1, 3])
    def test_sessions(self, limit: int) -> None:
        n = Normal(SecureWorldSettings(max_sessions=limit))
        last = [n.session(s.ARITHMETIC) for _ in range(limit)][-1]
        full = n.open(s.ARITHMETIC)
        assert full.result == (tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ORIGIN_TEE)
        n.close(last)
        assert n.session(s.ARITHMETIC) == last

    def test_buffers_and_pages(self) -> None:
        n = Normal(SecureWorldSettings(max_objects=2, max_pages=5, max_object_pages=4))
        page = n.pages()
        assert n.register([page] * 5, 5 * s.PAGE)[1].ret == tee.TEE_ERROR_BAD_PARAMETERS
        cookie, reply = n.register([page] * 4, 4 * s.PAGE)
        assert reply.ret == 0
        assert n.register([page] * 2, 2 * s.PAGE)[1].ret == tee.TEE_ERROR_BAD_PARAMETERS
        assert n.register([page], s.PAGE)[1].ret == 0
        assert n.unregister(cookie).ret == 0
        assert n.register([page], s.PAGE)[1].ret == 0
        assert n.register([page], s.PAGE)[1].ret == tee.TEE_ERROR_BAD_PARAMETERS


def test_no_such_notification_value() -> None:
    n = Normal()
    for value in (-1, 0x43):
        with pytest.raises(ValueError, match="notification"):
            n.world.notify(0, value)
