# SPDX-License-Identifier: BSD-2-Clause
"""I9: an app that crashes, hangs or lies costs its callers an error, and nobody else anything."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable

import pytest

from mediator.app import trial
from mediator.deployment.el0_app import events
from mediator.deployment.el0_app.channel import AppGone
from mediator.deployment.el0_app.deployment import ENOTAVAIL, El0App
from mediator.deployment.el0_app.manifest import PER_GUEST
from mediator.deployment.el0_app.supervisor import LAST_CLIENT, MAX_RESTARTS
from mediator.deployment.face import Completed, Done, Refused
from mediator.host import PAGE_SIZE
from smccc.constants import optee_msg
from smccc.constants import optee_smc as smc
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig, app_rig, trial_manifest
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow

UID = (smc.OPTEE_SMC_CALLS_UID, 0, 0, 0, 0, 0, 0, 0)
COOKIE = 0x5500
REAL = {
    "crash": (trial.CRASH, "closed"),
    "exit": (trial.EXIT, "closed"),
    "endless loop": (trial.LOOP, "silence"),
    "memory": (trial.MEMORY, ""),
    "exception": (trial.EXCEPTION, "panic: ValueError: as told"),
    "garbage": (trial.GARBAGE, ""),
    "flood": (trial.FLOOD, ""),
}


def suspended(rig: AppRig) -> int:
    """A call of :data:`GUEST` that is suspended in the TEE; its thread."""
    regs = rig.invoke(RAM + 0x2000, Slow.PASS, interrupted=True)
    assert regs[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
    return regs[3]


def works(rig: AppRig, guest: int) -> bool:
    """Whether the guest's calls reach the TEE."""
    out = rig.app.handle(guest, 0, UID)
    return isinstance(out, Completed) and out.regs[0] == optee_msg.OPTEE_MSG_UID_0


def settle(rig: AppRig) -> None:
    """What holds after every death: nothing is held, and guests can begin anew."""
    rig.monitor.pending = 0
    for guest in (GUEST, OTHER):
        if guest in rig.app.lost:
            assert rig.app.handle(guest, 0, UID) == Completed((ENOTAVAIL, *UID[1:]))
        assert rig.app.destroy_guest(guest) == Done()
        assert not rig.host.pinned(guest)
    assert rig.app.create_guest(GUEST) == Done()
    assert works(rig, GUEST)
    rig.session()
    assert not rig.bus.breaches


@pytest.mark.parametrize("name", REAL)
def test_a_real_process_that_fails(name: str) -> None:
    what, reason = REAL[name]
    manifest = trial_manifest(silence_ms=1500, memory_bytes=600 << 20)
    with app_rig(manifest=manifest) as rig:
        rig.register(COOKIE, RAM + 0x3000)
        thread = suspended(rig)
        assert rig.host.pinned(GUEST)
        pid = rig.app.isolation[0].pid
        regs = rig.trial(what)
        if name == "garbage" and not rig.died(regs):
            # Every call was refused, and nothing happened.
            assert rig.app.usage(GUEST).refused > 100
            assert works(rig, GUEST)
            return
        assert rig.died(regs)
        assert regs[1] == what
        (death,) = [event for event in rig.events if isinstance(event, events.AppDied)]
        assert reason in death.reason
        assert rig.app.lost == (GUEST, OTHER)
        assert not rig.host.pinned(GUEST)
        assert rig.host.shadows.in_use == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert rig.app.handle(
            GUEST, 0, (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, thread, 0, 0, 0, 0)
        ) == Completed((ENOTAVAIL, 0, 0, thread, 0, 0, 0, 0))
        settle(rig)


def test_other_guests_go_on_where_each_has_its_own_app() -> None:
    with app_rig(manifest=trial_manifest(instances=PER_GUEST)) as rig:
        rig.register(COOKIE, RAM + 0x3000)
        assert rig.died(rig.trial(trial.CRASH, guest=OTHER))
        assert rig.app.lost == (OTHER,)
        assert rig.app.deaths == 1
        assert works(rig, GUEST)
        rig.session()
        assert rig.host.pinned(GUEST)
        assert rig.app.destroy_guest(OTHER) == Done()
        assert rig.app.create_guest(OTHER) == Done()
        assert works(rig, OTHER)
        for guest in (GUEST, OTHER):
            assert rig.app.destroy_guest(guest) == Done()
        assert rig.host.shadows.in_use == 0
        # The spare one.
        assert len(rig.app.isolation) == 1


def test_the_control_domain_gets_a_new_partition() -> None:
    with app_rig(manifest=trial_manifest(), control=GUEST) as rig:
        rig.register(COOKIE, RAM + 0x3000)
        thread = suspended(rig)
        assert rig.died(rig.trial(trial.EXIT, guest=OTHER))
        assert rig.app.lost == (OTHER,)
        assert rig.app.client_of(GUEST) == LAST_CLIENT
        assert rig.app.guest_of(LAST_CLIENT) == GUEST
        assert events.PartitionRenewed(GUEST, LAST_CLIENT) in rig.events
        # Its old calls end with a defined error, and it begins again.
        regs = rig.smc(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, thread)
        assert regs[0] == smc.OPTEE_SMC_RETURN_ERESUME
        regs = rig.smc(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, COOKIE, 0)
        assert regs[0] == ENOTAVAIL
        # Its numbers are nobody's, also after its driver has probed again.
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == smc.OPTEE_SMC_RETURN_OK
        regs = rig.smc(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, thread)
        assert regs[0] == smc.OPTEE_SMC_RETURN_ERESUME
        regs = rig.smc(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, COOKIE, 0)
        assert regs[0] == smc.OPTEE_SMC_RETURN_EBADADDR
        assert works(rig, GUEST)
        rig.session()
        rig.register(COOKIE, RAM + 0x3000)
        # And once more: never the same client id again.
        assert rig.died(rig.trial(trial.EXIT))
        assert rig.app.client_of(GUEST) == LAST_CLIENT - 1
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == smc.OPTEE_SMC_RETURN_OK
        rig.session()
        assert not rig.bus.breaches


def test_an_app_that_never_serves_is_given_up() -> None:
    class Dying(LocalApp):
        pass

    with app_rig(Dying) as rig:
        rig.app.kill("first")
        assert rig.app.deaths == 1
        rig.app.destroy_guest(GUEST)
        for _ in range(MAX_RESTARTS):
            assert not any(isinstance(event, events.AppGivenUp) for event in rig.events)
            rig.app.kill("again")
        assert any(isinstance(event, events.AppGivenUp) for event in rig.events)
        assert rig.app.create_guest(GUEST) == Refused()
        assert not rig.app.probe().found


# --- lies, and death at every point ---------------------------------------------------------------

Lie = Callable[[bytes], bytes | None]


class Plan:
    """What the app says at turn ``at`` (from 0) goes through ``lie``; ``None``: it dies instead."""

    def __init__(self, at: int, lie: Lie) -> None:
        self.at = at
        self.lie = lie
        self.count = 0

    def __call__(self, said: bytes) -> bytes:
        mine, self.count = self.count, self.count + 1
        if mine != self.at:
            return said
        changed = self.lie(said)
        if changed is None:
            raise AppGone("closed: the app has ended")
        return changed


def planned(plan: Plan) -> type[LocalApp]:
    """A deployment whose app follows ``plan``."""

    class Planned(LocalApp):
        tamper = staticmethod(plan)

    return Planned


def story(rig: AppRig) -> None:
    """Everything that a session has; whatever is refused on the way is no surprise."""
    with contextlib.suppress(AssertionError):
        rig.register(COOKIE, RAM + 0x3000)
        rig.invoke(RAM + 0x2000, Slow.COPY, [(0x5, COOKIE, 0, 16)] * 2)
        rig.invoke(RAM + 0x4000, Slow.ALLOCATE)
        thread = suspended(rig)
        rig.resume(thread)
        pages = rig.page_list(
            RAM + 0x1E_0000, *[RAM + 0x10_0000 + at * PAGE_SIZE for at in range(90)]
        )
        rig.call(RAM + 0x5000, msg(4, params=[(0x20A, pages, 90 * PAGE_SIZE, 0x66)]))
        rig.call(RAM + 0x5000, msg(5, params=[(0x5, 0, 0, COOKIE)]))
        suspended(rig)
    rig.app.destroy_guest(OTHER)


def _dies(said: bytes) -> bytes | None:
    return None


def _wrong_entry(said: bytes) -> bytes:
    return said[:8] + b"\x99\x99\x99\x99" + said[12:]


def _wrong_kind(said: bytes) -> bytes:
    return b"\x09" + said[1:]


def _reserved(said: bytes) -> bytes:
    return said[:88] + b"\1" + said[89:]


def _huge(said: bytes) -> bytes:
    return said[:12] + struct.pack("<I", 1 << 30) + said[16:]


def _early_return(said: bytes) -> bytes:
    """DONE with nonsense in every register, whatever was to be done."""
    entry = said[8:12]
    return struct.pack("<HHI", 4, 0, 0) + entry + struct.pack("<Iq8QQ", 0, 0, *range(8), 0)


LIES: dict[str, Lie] = {
    "death": _dies,
    "wrong entry": _wrong_entry,
    "wrong kind": _wrong_kind,
    "reserved word": _reserved,
    "huge payload": _huge,
    "early return": _early_return,
}
FIRST_TURN = 4
"""Those before start the app; a start that fails is a LaunchError."""


@pytest.mark.parametrize("lie", LIES)
def test_whatever_happens_at_every_turn_of_a_session(lie: str) -> None:
    healthy = Plan(-1, _dies)
    with app_rig(planned(healthy)) as rig:
        story(rig)
        assert not rig.app.deaths
    assert healthy.count > 60
    refused = 0
    for at in range(FIRST_TURN, healthy.count):
        plan = Plan(at, LIES[lie])
        try:
            rig = AppRig(planned(plan))
        except AssertionError:
            refused += 1  # it could not be brought up: the probe or a guest was refused
            continue
        story(rig)
        assert plan.count > at
        if lie != "early return":
            assert rig.app.deaths == 1
        settle(rig)
        rig.app.destroy_guest(GUEST)
        assert not rig.host.pinned(GUEST)
        rig.app.close()
    assert refused < 12


def test_nothing_is_left_of_an_app_that_was_closed() -> None:
    app = El0App(AppRig(LocalApp).host)
    (pid,) = [isolation.pid for isolation in app.isolation]
    app.close()
    app.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
