# SPDX-License-Identifier: BSD-2-Clause
"""Both call styles mixed at random, in one guest on several vCPUs, with a simulated OP-TEE behind.

Two carriers that may share pages, calls of all three functions in them and beside them, each suspended
where the TEE leaves; meanwhile carriers come and go, capabilities are asked for again, the cache of
RPC arguments is switched, pages leave stage 2, and RPCs are answered with registers of the wrong kind.
The TEE never touches a page that it was not given, and in the end nothing is held.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mediator import Completed
from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.wire import MESSAGE
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, RAM, Slow, WithOptee

ARG, RPC_ARG = smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG
REGD, RETURN = smc.OPTEE_SMC_CALL_WITH_REGD_ARG, smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
CMD, INTR = smc.OPTEE_SMC_RETURN_RPC_CMD, smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
ALLOC, FREE = smc.OPTEE_SMC_RETURN_RPC_ALLOC, smc.OPTEE_SMC_RETURN_RPC_FREE
EBADADDR = smc.OPTEE_SMC_RETURN_EBADADDR
THREADS = 4
BAD_PARAMETERS = 0xFFFF0006

COOKIES = (0x1_0000_2480, 0x2_0000_2480)
CARRIER_PAGES = tuple(range(RAM + 0x40_000, RAM + 0x46_000, PAGE_SIZE))
CALL_PAGES = tuple(range(RAM + 0x10_000, RAM + 0x20_000, PAGE_SIZE))
POOL = tuple(range(RAM + 0x80_000, RAM + 0xC0_000, PAGE_SIZE))
LIST = RAM + 0x1F_0000
POSITIONS = (0, 0x80, 0x100, PAGE_SIZE - 24, PAGE_SIZE - 48, PAGE_SIZE - 80, PAGE_SIZE + 0x200)
COMMANDS = (Slow.HOLD, Slow.LOCKED, Slow.LOCKED, Slow.ALLOCATE, Slow.WRITE, Slow.PASS)
DRAIN = 400
"""Resumptions after which every call has ended: each has a handful of RPCs."""


Place = tuple[list[int], int]
"""Physical addresses of adjacent pages, and a byte in them."""


class Flight(NamedTuple):
    """A call as the guest knows it: what it was told last, its RPC argument, its session."""

    out: tuple[int, ...]
    where: Place | None
    """Of the argument behind the message; ``None`` in the classic style."""
    session: int


class Mix(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.rig = WithOptee()
        self.flights: dict[int, Flight] = {}
        self.carriers: dict[int, tuple[int, int]] = {}
        """Pages by cookie."""
        self.gone: set[int] = set()
        self.sessions: list[int] = []
        self.pool = list(POOL)
        self.rpc_pages: dict[int, int] = {}
        self.next_page = 0

    @initialize()
    def first(self) -> None:
        # Sessions serve one call at a time; the TEE would make a second call wait for the first.
        self.sessions = [self.rig.session() for _ in range(THREADS)]
        # Two carriers that share a page.
        for number, which in enumerate(COOKIES):
            pages = CARRIER_PAGES[number], CARRIER_PAGES[number + 1]
            listed = self.rig.page_list(LIST, *pages)
            self.rig.call(RAM, msg(4, params=[(0x20A, listed, 2 * PAGE_SIZE, which)]))
            assert self.rig.result(RAM)[0] == 0
            self.carriers[which] = pages

    # --- the guest's side ---------------------------------------------------------------------

    def frames(self, pages: tuple[int, ...]) -> list[int]:
        return [self.rig.pa(page) for page in pages]

    def put_at(self, pages: list[int], position: int, data: bytes) -> None:
        """Into pages by their physical address, which a guest may not reach any more."""
        while data:
            room = min(len(data), PAGE_SIZE - (position & PAGE_MASK))
            at = pages[position >> PAGE_SHIFT] + (position & PAGE_MASK)
            self.rig.memory.write(at, data[:room])
            position, data = position + room, data[room:]

    def get_at(self, pages: list[int], position: int, length: int) -> bytes:
        out = b""
        while length:
            room = min(length, PAGE_SIZE - (position & PAGE_MASK))
            at = pages[position >> PAGE_SHIFT] + (position & PAGE_MASK)
            out += bytes(self.rig.memory.read(at, room))
            position, length = position + room, length - room
        return out

    def noted(self, out: tuple[int, ...], where: Place | None, session: int) -> None:
        """The answer to a call or resumption: over, or in flight as thread x3."""
        if out[0] in (INTR, CMD, ALLOC, FREE):
            self.flights[out[3]] = Flight(out, where, session)
            if out[0] == FREE:
                self.pool.append(self.rpc_pages.pop(out[1] << 32 | out[2]))

    def fresh(self) -> int:
        return self.pool.pop(0)

    # --- rules ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.flights) < THREADS)
    @rule(which=st.sampled_from(COOKIES), first=st.integers(0, 4), one=st.booleans())
    def register(self, which: int, first: int, one: bool) -> None:
        """Two pages of a few, in either order: carriers overlap now and then."""
        pages = (CARRIER_PAGES[first], CARRIER_PAGES[first + 1])
        if one:
            pages = pages[::-1]
        if self.gone.intersection(pages):
            return
        listed = self.rig.page_list(LIST, *pages)
        self.rig.call(RAM, msg(4, params=[(0x20A, listed, 2 * PAGE_SIZE, which)]))
        taken = which in self.carriers
        assert self.rig.result(RAM)[0] == (BAD_PARAMETERS if taken else 0)
        if not taken:
            self.carriers[which] = pages

    @precondition(lambda self: self.carriers and len(self.flights) < THREADS)
    @rule(data=st.data(), inside=st.booleans())
    def unregister(self, data: st.DataObject, inside: bool) -> None:
        """From a page of its own, or from the carrier itself."""
        which = data.draw(st.sampled_from(sorted(self.carriers)))
        pages = self.carriers[which]
        body = msg(5, params=[(5, 0, 0, which)])
        if inside and not self.gone.intersection(pages):
            position = data.draw(st.sampled_from(POSITIONS))
            frames = self.frames(pages)
            self.put_at(frames, position, body)
            assert self.rig.smc(REGD, which >> 32, which & 0xFFFF_FFFF, position)[0] == 0
            assert self.get_at(frames, position + 20, 4) == bytes(4)
        else:
            assert self.rig.call(RAM, body)[0] == 0
            assert self.rig.result(RAM)[0] == 0
        del self.carriers[which]
        assert self.rig.smc(REGD, which >> 32, which & 0xFFFF_FFFF, 0)[0] == EBADADDR

    @precondition(lambda self: len(self.flights) < THREADS)
    @rule(
        data=st.data(),
        style=st.sampled_from((REGD, REGD, RPC_ARG, ARG)),
        command=st.sampled_from(COMMANDS),
        interrupted=st.booleans(),
        page=st.sampled_from(CALL_PAGES),
        vcpu=st.integers(0, 3),
    )
    def call(
        self, data: st.DataObject, style: int, command: int, interrupted: bool, page: int, vcpu: int
    ) -> None:
        """An invoke; by cookie if there is a carrier. Messages may lie on top of each other."""
        busy = {flight.session for flight in self.flights.values()}
        session = next(one for one in self.sessions if one not in busy)
        params = []
        if command in (Slow.WRITE, Slow.LOCKED):
            # Temporary memory of the call, as a list.
            self.rig.page_list(LIST, POOL[-1])
            params = [(0x20A, LIST, PAGE_SIZE, 0x9000 + session)]
        body = msg(1, func=command, session=session, params=params)
        self.rig.monitor.pending = int(interrupted or command == Slow.HOLD)
        if style == REGD and self.carriers:
            which = data.draw(st.sampled_from(sorted(self.carriers)))
            pages = self.carriers[which]
            if self.gone.intersection(pages):
                return
            position = data.draw(st.sampled_from(POSITIONS))
            frames = self.frames(pages)
            self.put_at(frames, position, body)
            regs = (REGD, which >> 32, which & 0xFFFF_FFFF, position)
            where = (frames, position + len(body))
        else:
            style = RPC_ARG if style == REGD else style
            self.rig.put(page, body)
            regs = (style, page >> 32, page & 0xFFFF_FFFF, 0)
            where = ([self.rig.pa(page)], len(body))
        out = self.smc(vcpu, *regs)
        self.rig.monitor.pending = 0
        assert out[0] in (0, INTR, CMD, ALLOC, FREE), hex(out[0])
        self.noted(out, None if style == ARG else where, session)

    def smc(self, vcpu: int, *regs: int) -> tuple[int, ...]:
        out = self.rig.tee.handle(GUEST, vcpu, tuple(regs) + (0,) * (8 - len(regs)))
        assert isinstance(out, Completed)
        return out.regs

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), vcpu=st.integers(0, 3), wrong=st.booleans(), busy=st.booleans())
    def resume(self, data: st.DataObject, vcpu: int, wrong: bool, busy: bool) -> None:
        """Serve the RPC of one call, well or with the registers of another RPC."""
        thread = data.draw(st.sampled_from(sorted(self.flights)))
        self.rig.monitor.pending = int(busy)
        self.serve(thread, vcpu, wrong)
        self.rig.monitor.pending = 0

    def serve(self, thread: int, vcpu: int, wrong: bool) -> None:
        out, where, session = self.flights.pop(thread)
        more = (0, 0, 0, 0)
        page = POOL[-2]
        if wrong:
            # As an ALLOC would be answered, for anything else; as anything else would, for ALLOC.
            if out[0] != ALLOC:
                more = (page >> 32, page & 0xFFFF_FFFF, 0, 0xBAD)
        elif out[0] == ALLOC:
            page = self.fresh()
            self.next_page += 1
            cookie = 0x7_0000_0000 + self.next_page
            self.rpc_pages[cookie] = page
            more = (page >> 32, page & 0xFFFF_FFFF, cookie >> 32, cookie & 0xFFFF_FFFF)
        if out[0] == CMD and not wrong:
            self.command(out, where)
        after = self.smc(vcpu, RETURN, *more[:2], thread, *more[2:])
        assert after[0] in (0, INTR, CMD, ALLOC, FREE), hex(after[0])
        self.noted(after, where, session)

    def command(self, out: tuple[int, ...], where: Place | None) -> None:
        """Do what the RPC argument says, which somebody's message may have been written over."""
        if where is None:
            page = self.rpc_pages.get(out[1] << 32 | out[2])
            if page is None:
                return
            where = ([self.rig.pa(page)], 0)
        frames, at = where
        fields = struct.unpack("<8I", self.get_at(frames, at, 32))
        if fields[0] == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
            memory = self.fresh()
            self.pool.append(memory)
            self.rig.page_list(LIST, memory)
            reference = 0x8_0000_0000 + memory
            answer = msg(fields[0], params=[(0x20A, LIST, PAGE_SIZE, reference)])
            self.put_at(frames, at, answer)
        else:
            count = min(fields[7], 4)
            size = len(MESSAGE[count].pack(*(0,) * (8 + 4 * count)))
            answer = self.get_at(frames, at, size)
            self.put_at(frames, at, answer[:20] + bytes(4) + answer[24:])

    @rule(enable=st.booleans())
    def cache(self, enable: bool) -> None:
        """ENABLE, or DISABLE until there is nothing left; only an idle TEE agrees."""
        if enable:
            self.rig.smc(smc.OPTEE_SMC_ENABLE_SHM_CACHE)
            return
        while (out := self.rig.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE))[0] == 0:
            self.pool.append(self.rpc_pages.pop(out[1] << 32 | out[2]))

    @rule()
    def capabilities(self) -> None:
        assert self.rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == 0

    @precondition(lambda self: self.carriers and self.flights and len(self.gone) < 2)
    @rule(data=st.data())
    def balloon(self, data: st.DataObject) -> None:
        """A page of a carrier leaves the guest, perhaps with a message of a call in flight."""
        which = data.draw(st.sampled_from(sorted(self.carriers)))
        page = data.draw(st.sampled_from(self.carriers[which]))
        if page in self.gone:
            return
        assert self.rig.host.balloon_out(GUEST, page, 1)
        self.gone.add(page)

    @invariant()
    def sound(self) -> None:
        # Not the checks of a system at rest: who was sent for may still have to be resumed.
        assert not self.rig.watch.violations
        assert not self.rig.bus.breaches
        info = self.rig.tee.guest_info(GUEST)
        assert info is not None
        assert info.calls == len(self.flights)

    def teardown(self) -> None:
        """Everything can end: each call, the cache, each carrier, each session."""
        for _ in range(DRAIN):
            if not self.flights:
                break
            for thread in sorted(self.flights):
                if thread in self.flights:
                    self.serve(thread, 0, False)
        assert not self.flights
        if not self.sessions:
            return
        while self.rig.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[0] == 0:
            pass
        for which in sorted(self.carriers):
            assert self.rig.call(RAM, msg(5, params=[(5, 0, 0, which)]))[0] == 0
            assert self.rig.result(RAM)[0] == 0
        assert self.rig.clean()


Mix.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestMix = Mix.TestCase
