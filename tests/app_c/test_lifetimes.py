# SPDX-License-Identifier: BSD-2-Clause
"""Buffers that outlive what took them: rare between adversaries, so told step by step."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from mediator.deployment.face import Completed, Done
from mediator.deployment.in_hypervisor import InHypervisor
from smccc.constants import optee_smc as smc
from tests.app_c.peer import Peer
from tests.app_c.twins import TWIN
from tests.mediator.rig import RAM, RigHost, answer, msg

LIST = RAM + 0x5000
AWAY = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
COOKIE = 0x77


class Scene:
    """One guest, a TEE that answers as told, and either mediator."""

    def __init__(self, tee: InHypervisor | Peer, host: RigHost) -> None:
        self.tee, self.host = tee, host
        host.rig = host  # type: ignore[assignment]
        host.add_guest(0)
        assert tee.create_guest(0) == Done()
        host.page(host.pa(0, LIST))[:16] = struct.pack("<2Q", RAM + 0x6000, RAM + 0x7000)

    def call(self, body: bytes, page: int, tee: tuple[int, ...]) -> int:
        self.host.page(self.host.pa(0, page))[: len(body)] = body
        return self.smc(smc.OPTEE_SMC_CALL_WITH_ARG, 0, page, 0, tee=tee)

    def resume(self, thread: int, tee: tuple[int, ...]) -> int:
        return self.smc(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, thread, tee=tee)

    def smc(self, *regs: int, tee: tuple[int, ...] | None = None) -> int:
        self.host.script = [] if tee is None else [answer(*tee)]
        out = self.tee.handle(0, 0, (*regs, *(0,) * (8 - len(regs))))
        assert isinstance(out, Completed)
        assert not self.host.script
        return out.regs[0]

    def pinned(self) -> int:
        return self.host.pins.total()


@pytest.fixture(params=["app", "twin"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    host = RigHost()
    if request.param == "twin":
        yield Scene(InHypervisor(host, TWIN), host)
        return
    program: Path = request.getfixturevalue("sanitized_app")
    peer = Peer(host, program)
    yield Scene(peer, host)
    assert peer.end() == 0


def test_temporary_memory_lingers_while_another_call_names_it(scene: Scene) -> None:
    taken = msg(1, params=[(0x20A, LIST, 0x1000, COOKIE)])
    named = msg(1, params=[(5, 0, 8, COOKIE)])
    assert scene.call(taken, RAM, (AWAY, 0, 0, 1)) == AWAY
    assert scene.call(named, RAM + 0x1000, (AWAY, 0, 0, 2)) == AWAY
    assert scene.resume(1, (0,)) == 0
    assert scene.pinned() == 1
    assert scene.resume(2, (0,)) == 0
    assert scene.pinned() == 0


def test_memory_that_was_unregistered_before_its_register_came_back(scene: Scene) -> None:
    register = msg(4, params=[(0x20A, LIST, 0x2000, COOKIE)])
    assert scene.call(register, RAM, (AWAY, 0, 0, 1)) == AWAY
    unregister = msg(5, params=[(5, 0, 0, COOKIE)])
    assert scene.call(unregister, RAM + 0x1000, (0,)) == 0
    assert scene.pinned() == 2
    assert scene.resume(1, (0,)) == 0
    assert scene.pinned() == 0
    function = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
    assert scene.smc(function, 0, COOKIE, 0) == smc.OPTEE_SMC_RETURN_EBADADDR


def test_a_carrier_stays_until_the_call_in_it_ends(scene: Scene) -> None:
    register = msg(4, params=[(0x20A, LIST, 0x2000, COOKIE)])
    assert scene.call(register, RAM, (0,)) == 0
    frame = scene.host.page(scene.host.pa(0, RAM + 0x6000))
    frame[:64] = msg(1, params=[(1, 0, 0, 0)])
    away = scene.smc(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, COOKIE, 0, tee=(AWAY, 0, 0, 1))
    assert away == AWAY
    unregister = msg(5, params=[(5, 0, 0, COOKIE)])
    assert scene.call(unregister, RAM + 0x1000, (0,)) == 0
    assert scene.pinned() == 2
    assert scene.resume(1, (0,)) == 0
    assert scene.pinned() == 0
