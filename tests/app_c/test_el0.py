# SPDX-License-Identifier: BSD-2-Clause
"""Apps in C in the real deployment: isolated, served, and contained when they fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from mediator.deployment.el0_app import events
from mediator.deployment.el0_app.deployment import ENOTAVAIL, El0App
from mediator.deployment.el0_app.launch import LAYERS, LaunchError
from mediator.deployment.el0_app.manifest import Manifest
from mediator.deployment.face import Completed, Done, NotMine
from mediator.hypervisor.stage2 import OWN_RO
from mediator.optee.settings import MediatorSettings
from smccc.constants import optee_msg
from smccc.constants import optee_smc as smc
from tests.app_c.twins import TWIN, manifest_of
from tests.el0_app.orphans import killed
from tests.el0_app.rig import AppRig
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow

UID = (smc.OPTEE_SMC_CALLS_UID, 0, 0, 0, 0, 0, 0, 0)
TRIAL = 0x3200_0001
FORBIDDEN = (
    "open", "socket", "fork", "exec", "ptrace", "the parent's memory", "kill", "the arena's descriptor",
    "reading what it writes", "executable memory", "mapping the channel", "dup", "prctl", "memfd",
    "prlimit", "io_uring", "getpid",
)  # fmt: skip
LOOP = 102
MISBEHAVIOUR = {
    100: "closed",  # a wild pointer
    101: "closed",  # exit
    LOOP: "silence",  # an endless loop
    103: "protocol",  # garbage without end
    104: "panic: on purpose",
    107: "closed",  # dies within a message
    108: "protocol",  # names an entry that there is not
}


def trial_manifest(program: Path, **changes: Any) -> Manifest:
    manifest = attrs.evolve(manifest_of(program), name="trial")
    return attrs.evolve(manifest, **changes)


class CRig(AppRig):
    """For the app that only tries things: the checkers follow events of a mediator, which it does not send."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.events.listener = None
        self.bus.guard_shadows(lambda client, frame: True)


@contextmanager
def c_rig(manifest: Manifest, **options: object) -> Iterator[CRig]:
    """A rig with an app in C, ended afterwards."""
    rig = CRig(El0App, TWIN, manifest=manifest, require_isolation=True, **options)
    try:
        yield rig
    finally:
        rig.app.close()


def children() -> set[str]:
    """Processes that this one started and that are there still."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_every_layer_of_isolation_is_there(plain_app: Path) -> None:
    with c_rig(manifest_of(plain_app)) as rig:
        (isolation,) = rig.app.isolation
        assert isolation.missing == ()
        assert list(isolation.layers) == list(LAYERS)


def test_another_image_is_not_started(plain_app: Path) -> None:
    manifest = attrs.evolve(manifest_of(plain_app), sha256="0" * 64)
    with pytest.raises(LaunchError, match="SHA-256"):
        c_rig(manifest).__enter__()


def test_what_is_forbidden_is_refused(trial_app: Path) -> None:
    """Asked from inside of the app, one after the other."""
    with c_rig(trial_manifest(trial_app)) as rig:
        for what, name in enumerate(FORBIDDEN):
            out = rig.app.handle(GUEST, 0, (TRIAL, what, os.getpid(), 0, 0, 0, 0, 0))
            assert isinstance(out, Completed)
            assert out.regs[0] == errno.EPERM, name
        beyond = rig.app.handle(GUEST, 0, (TRIAL, len(FORBIDDEN), os.getpid(), 0, 0, 0, 0, 0))
        assert isinstance(beyond, Completed)
        assert beyond.regs[0] == 0, "everything in the list was tried"


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_an_app_that_fails_costs_its_callers_an_error(what: int, trial_app: Path) -> None:
    before = children()
    with c_rig(trial_manifest(trial_app, silence_ms=700)) as rig:
        out = rig.app.handle(GUEST, 0, (TRIAL, what, 0, 0, 0, 0, 0, 0))
        assert out == Completed((ENOTAVAIL, what, 0, 0, 0, 0, 0, 0))
        (death,) = [event for event in rig.events if isinstance(event, events.AppDied)]
        assert MISBEHAVIOUR[what] in death.reason
        assert set(rig.app.lost) == {GUEST, OTHER}
        for guest in (GUEST, OTHER):
            assert rig.app.handle(guest, 0, UID) == Completed((ENOTAVAIL, *UID[1:]))
            assert rig.app.destroy_guest(guest) == Done()
            assert rig.app.create_guest(guest) == Done()
            answer = rig.app.handle(guest, 0, (TRIAL, 99, 0, 0, 0, 0, 0, 0))
            assert answer == Completed((0, 99, 0, 0, 0, 0, 0, 0))
        assert rig.app.deaths == 1
    assert children() == before


def test_frames_that_are_not_its_own_are_refused_and_counted(trial_app: Path) -> None:
    with c_rig(trial_manifest(trial_app)) as rig:
        out = rig.app.handle(GUEST, 0, (TRIAL, 105, 0, 0, 0, 0, 0, 0))
        assert out == Completed((TRIAL, 105, 0, 0, 0, 0, 0, 0))
        assert rig.app.usage(GUEST).refused == 1
        assert rig.app.deaths == 0


def test_what_an_app_writes_into_the_arena_reaches_nobody(trial_app: Path) -> None:
    with c_rig(trial_manifest(trial_app)) as rig:
        ram = rig.get(RAM, 4096)
        rig.app.handle(GUEST, 0, (TRIAL, 106, 0, 0, 0, 0, 0, 0))
        assert rig.get(RAM, 4096) == ram
        assert rig.app.handle(GUEST, 0, (0x3F00_FFFF, 99, 0, 0, 0, 0, 0, 0)) != NotMine()


def session_under(rig: AppRig) -> None:
    """What a driver does: memory, a session, calls of every style, with interrupts."""
    rig.register(0x5500, RAM + 0x3000)
    regs = rig.invoke(RAM + 0x2000, Slow.PASS, interrupted=True)
    assert regs[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
    assert rig.resume(regs[3])[0] == 0
    data = rig.page_list(RAM + 0x1F_1000, RAM + 0x4000)
    regs = rig.invoke(RAM + 0x2000, Slow.WRITE, [(0x20A, data, 64, 0x77)])
    assert regs[0] == 0
    assert rig.result(RAM + 0x2000)[0] == 0
    assert rig.get(RAM + 0x4000, len(Slow.SECRET)) == Slow.SECRET
    regs = rig.invoke(RAM + 0x2000, Slow.ALLOCATE)
    for _ in range(4):
        if regs[0] != 0:
            assert regs[0] & smc.OPTEE_SMC_RETURN_RPC_PREFIX_MASK == smc.OPTEE_SMC_RETURN_RPC_PREFIX
            regs = rig.resume(regs[3])
    assert regs[0] == 0


def test_a_session(plain_app: Path) -> None:
    """All checkers look on: it says what it does, and does what it says."""
    rig = AppRig(El0App, TWIN, manifest=manifest_of(plain_app), require_isolation=True)
    with rig.app:
        session_under(rig)
        assert {"CallStarted", "Forwarded", "Answered", "RpcToGuest", "RpcAnswered", "CallEnded",
                "BufferTaken", "BufferReleased"} <= set(rig.names())  # fmt: skip
        rig.watch.check()
        assert rig.host.pinned(GUEST) == 1
        for guest in (GUEST, OTHER):
            assert rig.app.destroy_guest(guest) == Done()
            assert not rig.host.pinned(guest)
        assert not rig.bus.breaches
        assert rig.app.total_usage().refused == 0


def test_round_trips_of_an_invoke(plain_app: Path) -> None:
    """A count that stands for speed: what is posted costs no turn."""
    with c_rig(manifest_of(plain_app)) as rig:
        rig.register(0x5500, RAM + 0x2000)
        session = rig.session()
        body = msg(1, func=99, session=session, params=[(1, 1, 2, 3), (2, 0, 0, 0)])
        turns = []
        for function, *where in (
            (smc.OPTEE_SMC_CALL_WITH_RPC_ARG, 0, RAM + 0x2000),
            (smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, 0x5500, 0),
        ):
            rig.put(RAM + 0x2000, body)
            before = rig.app.usage(GUEST).turns
            assert rig.smc(function, *where)[0] == 0
            turns.append(rig.app.usage(GUEST).turns - before)
        assert turns == [4, 3]


class Unrecorded(CRig):
    """Nobody listens: results go out with the return."""

    def deploy(self, settings: MediatorSettings | None) -> El0App:
        self.app = El0App(self.host, settings, **self._options)
        self.bus._guest_of = self.app.guest_of
        return self.app


def test_results_go_out_with_the_return_where_nobody_records(plain_app: Path) -> None:
    rig = Unrecorded(El0App, TWIN, manifest=manifest_of(plain_app), require_isolation=True)
    with rig.app:
        session = rig.session()
        rig.put(RAM + 0x2000, msg(1, func=99, session=session, params=[(1, 1, 2, 3), (2, 0, 0, 0)]))
        before = rig.app.usage(GUEST)
        assert rig.smc(smc.OPTEE_SMC_CALL_WITH_RPC_ARG, 0, RAM + 0x2000)[0] == 0
        after = rig.app.usage(GUEST)
        assert after.turns - before.turns == 3
        assert rig.result(RAM + 0x2000)[0] == 0
        # A page that became read-only meanwhile: the guest learns that there is no result.
        call = rig.host.secure_smc
        assert call is not None

        def freeze(*regs: int) -> tuple[int, int, int, int]:
            answer = call(*regs)
            rig.host.set_kind(GUEST, RAM + 0x2000, 1, OWN_RO)
            return answer

        rig.host.secure_smc = freeze
        answer = rig.smc(smc.OPTEE_SMC_CALL_WITH_RPC_ARG, 0, RAM + 0x2000)
        assert answer[0] == smc.OPTEE_SMC_RETURN_EBADADDR
        assert rig.app.deaths == rig.app.total_usage().refused == 0


class Killing:
    """A host that ends the app when it asks for its ``at``-th service."""

    def __init__(self, host: object, kill: Callable[[], None], at: int) -> None:
        self._host = host
        self._kill = kill
        self.left = at

    def __getattr__(self, name: str) -> Any:
        self.left -= 1
        if not self.left:
            self._kill()
        return getattr(self._host, name)


def test_death_at_every_service_of_a_session(plain_app: Path) -> None:
    """Nothing stays pinned, the guest gets an error, and begins anew."""
    before = children()
    died = 0
    for at in range(1, 1000):
        with c_rig(manifest_of(plain_app)) as rig:
            app = rig.app
            host = app.host

            def kill(app: El0App = app) -> None:
                os.kill(app.isolation[0].pid, 9)

            assert app._spare is not None
            server = app._spare.server
            killing = Killing(host, kill, at)
            server._host = killing
            try:
                session_under(rig)
            except AssertionError:
                assert app.deaths == 1, at
            if killing.left > 0:
                break
            died += app.deaths
            for guest in (GUEST, OTHER):
                if guest in app.lost:
                    assert app.handle(guest, 0, UID) == Completed((ENOTAVAIL, *UID[1:]))
                assert app.destroy_guest(guest) == Done(), at
                assert not rig.host.pinned(guest), at
            assert app.create_guest(GUEST) == Done()
            out = app.handle(GUEST, 0, UID)
            assert isinstance(out, Completed)
            assert out.regs[0] == optee_msg.OPTEE_MSG_UID_0
            assert not rig.bus.breaches
    assert died > 20
    assert children() == before


HYPERVISOR = f"""
import sys
from pathlib import Path
from tests.app_c.test_el0 import c_rig, trial_manifest
from tests.mediator.with_optee import GUEST

with c_rig(trial_manifest(Path(sys.argv[1]), silence_ms=60_000)) as rig:
    print(rig.app.isolation[0].pid, flush=True)
    rig.app.handle(GUEST, 0, ({TRIAL}, {LOOP}, 0, 0, 0, 0, 0, 0))
"""


def test_a_loop_ends_with_the_hypervisor(trial_app: Path) -> None:
    killed(HYPERVISOR, str(trial_app), busy=True)
