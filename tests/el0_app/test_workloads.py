# SPDX-License-Identifier: BSD-2-Clause
"""I10 with drawn workloads: sane and senseless calls of two guests, answered alike in both homes."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from mediator.deployment.el0_app.deployment import El0App
from mediator.host import PAGE_SIZE
from smccc.constants import optee_smc as smc
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow, WithOptee

FUNCTIONS = (
    smc.OPTEE_SMC_CALLS_UID,
    smc.OPTEE_SMC_CALLS_REVISION,
    smc.OPTEE_SMC_CALL_GET_OS_REVISION,
    smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
    smc.OPTEE_SMC_GET_SHM_CONFIG,
    smc.OPTEE_SMC_DISABLE_SHM_CACHE,
    smc.OPTEE_SMC_ENABLE_SHM_CACHE,
    smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF,
    smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE,
    smc.OPTEE_SMC_GET_THREAD_COUNT,
    smc.OPTEE_SMC_VM_CREATED,
    smc.OPTEE_SMC_CALL_RETURN_FROM_RPC,
    smc.OPTEE_SMC_CALL_WITH_ARG,
    smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
    smc.OPTEE_SMC_CALL_WITH_REGD_ARG,
    0x3200_0077,
    0x8400_0000,
)
ROOM = 24
"""Pages in which messages, lists and buffers lie, and overlap."""
UUID = struct.unpack("<2Q", Slow.uuid.bytes)

Step = Callable[[WithOptee], object]


class Drawn:
    """Draws steps; the same seed draws the same ones."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self.threads = [0]

    def _page(self) -> int:
        return RAM + self._draw.randrange(ROOM) * PAGE_SIZE

    def _where(self) -> int:
        return self._page() + self._draw.choice((0, 0, 0, 0, 8, 0x180, 0xF00, 0xFF8))

    def _body(self) -> bytes:
        draw = self._draw
        kind = draw.randrange(7)
        cookie = draw.randrange(6)
        if kind == 0:
            return bytes(msg(0, params=[(0x101, *UUID, 0), (0x101, 0, 0, 0)]))
        if kind == 1:
            return bytes(msg(4, params=[(0x20A, self._page(), draw.randrange(1, 5000), cookie)]))
        if kind == 2:
            return bytes(msg(5, params=[(0x5, 0, 0, cookie)]))
        if kind == 3:
            command = draw.choice((Slow.PASS, Slow.COPY, Slow.ALLOCATE, Slow.WRITE))
            session = draw.randrange(1, 8)
            params = [(0x6, 0, 64, cookie), (0x7, 0, 64, draw.randrange(6))]
            return bytes(msg(1, func=command, session=session, params=params))
        if kind == 4:
            temporary = (draw.choice((0x208, 0x209, 0xA, 0xB)), self._where(), 5000, cookie)
            return bytes(msg(1, func=Slow.COPY, session=1, params=[temporary]))
        if kind == 5:
            return bytes(msg(draw.randrange(12), session=draw.randrange(9), params=[]))
        return draw.randbytes(draw.randrange(32, 400))

    def step(self) -> Step:
        draw = self._draw
        guest = draw.choice((GUEST, GUEST, OTHER))
        kind = draw.randrange(10)
        if kind < 2:
            pages = struct.pack("<8Q", *[self._page() for _ in range(8)])
            at = self._page()
            return lambda rig: rig.put(at, pages, guest)
        interrupted = draw.randrange(4) == 0
        if kind < 7:
            where, body = self._where(), self._body()
            body = body[: PAGE_SIZE - (where & 0xFFF)]
            function = draw.choice(FUNCTIONS[12:14])

            def call(rig: WithOptee) -> object:
                rig.put(where, body, guest)
                rig.monitor.pending = int(interrupted)
                return rig.tee.handle(guest, 0, (function, where >> 32, where, 0, 0, 0, 0, 0))

            return call
        if kind < 9:
            thread = draw.choice(self.threads)
            words = (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, self._page(), thread, 0, 7, 0, 0)
            return lambda rig: rig.tee.handle(guest, 1, words)
        frame = (
            draw.choice(FUNCTIONS),
            *[draw.choice((0, 1, self._page(), 1 << 63)) for _ in range(7)],
        )
        return lambda rig: rig.tee.handle(guest, 0, frame)


def state(rig: WithOptee) -> list[object]:
    found: list[object] = []
    for guest in (GUEST, OTHER):
        found.append(rig.host.pins(guest))
        found.append(rig.tee.guest_info(guest))
        found.append([rig.get(RAM + page * PAGE_SIZE, PAGE_SIZE, guest) for page in range(ROOM)])
    return found


def compare(kind: type[El0App], seed: int, steps: int, look: int) -> int:
    """Run the same steps in both homes; how many of them reached the TEE."""
    drawn, here, there = Drawn(seed), WithOptee(), AppRig(kind)
    try:
        for number in range(steps):
            step = drawn.step()
            answer = step(here)
            assert step(there) == answer, (seed, number)
            regs: tuple[int, ...] = getattr(answer, "regs", (0,))
            if regs[0] >> 16 == 0xFFFF and regs[0] != 0xFFFF_FFFF:
                drawn.threads = [*drawn.threads[-3:], regs[3]]
            if not number % look:
                assert state(there) == state(here), (seed, number)
        assert not there.app.deaths
        assert not there.app.total_usage().refused
        for guest in (GUEST, OTHER):
            assert there.tee.destroy_guest(guest) == here.tee.destroy_guest(guest)
        assert state(there) == state(here)
        mine = [event for event in there.events if type(event).__module__.endswith("optee.events")]
        assert mine == [
            event for event in here.events if type(event).__module__.endswith("optee.events")
        ]
        return sum(type(event).__name__ == "Forwarded" for event in mine)
    finally:
        there.app.close()


@pytest.mark.parametrize("seed", range(12))
def test_drawn_calls_are_answered_alike(seed: int) -> None:
    assert compare(LocalApp, seed, 250, 25) > 50


def test_drawn_calls_are_answered_alike_by_a_process() -> None:
    assert compare(El0App, 99, 800, 50) > 120
