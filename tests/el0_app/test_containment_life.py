# SPDX-License-Identifier: BSD-2-Clause
"""The death of an app at moments of its own life, and of the lives of its guests."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

import attrs
import pytest

from fuzz.containment.faults import changed, messages
from fuzz.containment.local import ENDED, LocalLink
from mediator.app.optee import OpteeApp
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER
from mediator.deployment.el0_app import entrance, events
from mediator.deployment.el0_app.channel import AppGone
from mediator.deployment.el0_app.deployment import ENOTAVAIL
from mediator.deployment.el0_app.manifest import PER_GUEST, optee_manifest
from mediator.deployment.el0_app.supervisor import LAST_CLIENT, MAX_RESTARTS
from mediator.deployment.face import Completed, Done, Refused
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_smc as smc
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig, app_rig
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow

UID = (smc.OPTEE_SMC_CALLS_UID, 0, 0, 0, 0, 0, 0, 0)
OWN = attrs.evolve(optee_manifest(), instances=PER_GUEST)
THIRD = 3


class Mortal(LocalApp):
    """``fatal``: whether the app dies of this ENTRY (app, number, guest)."""

    fatal: Callable[[int, int, int], bool] | None = None
    panics = False
    link: LocalLink

    def turn(self, link: LocalLink, message: bytes) -> bytes:
        self.link = link
        kind, number, _, _, _, _, guest, *_ = HEADER.unpack_from(message)
        if kind == abi.ENTRY and self.fatal is not None and self.fatal(link.number, number, guest):
            if self.panics:
                return link._talk.panic(message, ValueError("told to"))
            raise AppGone(ENDED)
        return super().turn(link, message)


def mortal(rig: AppRig) -> Mortal:
    assert isinstance(rig.app, Mortal)
    return rig.app


def test_a_turn_that_ends_in_panic_is_on_the_account_of_its_guest() -> None:
    with app_rig(Mortal, control=None) as rig:
        app = mortal(rig)
        app.panics = True
        app.fatal = lambda _app, number, _guest: number == abi.ENTRY_HANDLE_SMC
        before = rig.app.usage(GUEST).turns
        assert rig.smc(*UID)[0] == ENOTAVAIL
        assert rig.app.usage(GUEST).turns == before + 1
        assert rig.app.total_usage().turns == app.local.turns


def test_an_app_that_dies_while_it_is_started_again_is_started_once_more() -> None:
    with app_rig(Mortal, control=None) as rig:
        app = mortal(rig)
        app.fatal = lambda number, entry, _guest: number in (1, 2) and entry == abi.ENTRY_INIT
        app.kill("first")
        assert app.deaths == 3
        deaths = [event for event in rig.events if isinstance(event, events.AppDied)]
        assert [death.app for death in deaths] == [0, 1, 2]
        assert not any(isinstance(event, events.AppGivenUp) for event in rig.events)
        assert app.local.running == 1
        rig.app.destroy_guest(GUEST)
        assert rig.app.create_guest(GUEST) == Done()
        rig.session()


def test_starts_that_fail_for_ever_are_given_up() -> None:
    with app_rig(Mortal, control=None) as rig:
        app = mortal(rig)
        app.fatal = lambda number, _entry, _guest: number > 0
        app.kill("first")
        assert app.deaths == 1 + MAX_RESTARTS
        (given_up,) = [event for event in rig.events if isinstance(event, events.AppGivenUp)]
        assert "closed" in given_up.reason
        assert app.local.running == 0
        assert rig.smc(*UID)[0] == ENOTAVAIL
        rig.app.destroy_guest(GUEST)
        assert rig.app.create_guest(GUEST) == Refused()


def test_a_renewed_control_domain_has_its_app_for_itself() -> None:
    with app_rig(Mortal, control=GUEST, manifest=OWN) as rig:
        app = mortal(rig)
        assert app.local.running == 3
        app.fatal = lambda number, entry, _guest: (number, entry) == (0, abi.ENTRY_HANDLE_SMC)
        assert rig.smc(*UID)[0] == ENOTAVAIL
        assert app.client_of(GUEST) == LAST_CLIENT
        assert app.local.running == 3
        rig.host.add_guest(THIRD)
        assert rig.host.populate(THIRD, RAM, 16)
        assert rig.app.create_guest(THIRD) == Done()
        assert app.local.running == 4
        app.fatal = lambda _app, _entry, guest: guest == THIRD
        assert rig.app.handle(THIRD, 0, UID) == Completed((ENOTAVAIL, *UID[1:]))
        assert app.lost == (THIRD,)
        assert rig.smc(*UID)[0] != ENOTAVAIL
        for guest in (GUEST, OTHER, THIRD):
            assert rig.app.destroy_guest(guest) == Done()
        assert app.local.running == 1


def test_a_control_domain_whose_app_dies_at_its_creation_exists_all_the_same() -> None:
    with app_rig(Mortal, control=GUEST) as rig:
        app = mortal(rig)
        assert rig.app.destroy_guest(GUEST) == Done()
        app.fatal = lambda number, entry, _guest: (number, entry) == (0, abi.ENTRY_GUEST_CREATED)
        assert rig.app.create_guest(GUEST) == Done()
        assert app.deaths == 1
        assert app.client_of(GUEST) == LAST_CLIENT
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == smc.OPTEE_SMC_RETURN_OK
        rig.session()
        assert rig.app.destroy_guest(GUEST) == Done()
        assert rig.app.create_guest(GUEST) == Done()


def test_any_other_guest_whose_app_dies_at_its_creation_is_refused() -> None:
    with app_rig(Mortal, control=GUEST) as rig:
        app = mortal(rig)
        assert rig.app.destroy_guest(OTHER) == Done()
        app.fatal = lambda number, entry, _guest: (number, entry) == (0, abi.ENTRY_GUEST_CREATED)
        assert rig.app.create_guest(OTHER) == Refused()
        assert rig.app.create_guest(OTHER) == Done()


@pytest.mark.parametrize("end", ["refused", "destroyed"])
def test_an_app_that_keeps_what_a_guest_had_is_ended(end: str) -> None:
    """The hypervisor ends what it has left; a trap of that guest meanwhile finds no app."""
    with app_rig(Mortal, control=None) as rig:
        app = mortal(rig)
        assert rig.app.destroy_guest(OTHER) == Done()
        if end == "destroyed":
            assert rig.app.create_guest(OTHER) == Done()
        inner = rig.host.secure_smc
        assert inner is not None
        found: list[object] = []

        def nesting(*regs: int) -> tuple[int, int, int, int]:
            if regs[0] == smc.OPTEE_SMC_VM_DESTROYED:
                found.append(rig.app.handle(OTHER, 0, UID))
            return inner(*regs)

        rig.host.secure_smc = nesting
        number = abi.ENTRY_GUEST_CREATED if end == "refused" else abi.ENTRY_GUEST_DESTROYED
        outcome = abi.OUTCOME_REFUSED if end == "refused" else abi.OUTCOME_DONE

        def lies(said: bytes) -> bytes:
            *posted, final = messages(said)
            if list(app.link.entries.values()) != [number]:
                return said
            if end == "refused" and HEADER.unpack_from(final)[1]:
                return said
            returned = changed(final, {"number": 0, "flags": 0, "status": outcome}, b"")
            return b"".join([*posted, returned])

        app.tamper = lies
        if end == "refused":
            assert rig.app.create_guest(OTHER) == Refused()
        else:
            assert rig.app.destroy_guest(OTHER) == Done()
        app.tamper = None
        rig.host.secure_smc = inner
        assert app.deaths == 1
        assert found == [Completed((ENOTAVAIL, *UID[1:]))] * 2
        assert rig.world.partition(OTHER + 1) is None
        assert rig.app.create_guest(OTHER) == Done()


def test_the_control_domain_is_renewed_when_its_own_app_is_buried_and_not_before() -> None:
    """Two apps die while a call of the control domain is inside the TEE."""
    with app_rig(Mortal, control=GUEST, manifest=OWN) as rig:
        app = mortal(rig)
        inner = rig.host.secure_smc
        assert inner is not None
        seen: list[int] = []

        def nesting(*regs: int) -> tuple[int, int, int, int]:
            if regs[7] == GUEST + 1:
                rig.host.secure_smc = inner
                app.kill("both")
                seen.append(app.client_of(GUEST))
                # The TEE still executes for the old partition.
                assert rig.world.partition(GUEST + 1) is not None
            return inner(*regs)

        thread = rig.invoke(RAM + 0x2000, Slow.PASS, interrupted=True)[3]
        assert rig.host.pinned(GUEST) == 0
        rig.host.secure_smc = nesting
        rig.monitor.pending = 0
        assert rig.resume(thread)[0] == ENOTAVAIL
        assert seen == [GUEST + 1]
        assert app.client_of(GUEST) == LAST_CLIENT
        assert rig.world.partition(GUEST + 1) is None
        assert rig.world.partition(LAST_CLIENT) is not None
        assert rig.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[0] == smc.OPTEE_SMC_RETURN_OK
        rig.session()
        assert app.local.running == 2


def test_every_guest_that_listens_is_told_of_the_death() -> None:
    with app_rig(Mortal, control=None) as rig:
        raised: list[int] = []
        rig.host.virq_sink = lambda guest, _intid: raised.append(guest)
        for guest in (GUEST, OTHER, OTHER):
            assert rig.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF, guest=guest)[0] == 0
            # One of its threads waits in the driver; of no value is anybody told who waits for none.
            rig.app._grants[guest].lent.waits[1] = 65
        rig.app.kill()
        assert raised == [GUEST, OTHER]


@pytest.mark.parametrize(
    ("outcome", "reason"), [(abi.OUTCOME_REFUSED, "refused"), (abi.OUTCOME_DONE, "for nothing")]
)
def test_an_app_that_does_not_begin_is_not_used(outcome: int, reason: str) -> None:
    with app_rig(Mortal, control=None) as rig:
        app = mortal(rig)

        def lies(said: bytes) -> bytes:
            if app.link.number == 1 and list(app.link.entries.values()) == [abi.ENTRY_INIT]:
                final = messages(said)[-1]
                return changed(final, {"number": 0, "flags": 0, "status": outcome}, b"")
            return said

        app.tamper = lies
        app.kill("first")
        deaths = [event for event in rig.events if isinstance(event, events.AppDied)]
        assert [death.app for death in deaths] == [0, 1]
        assert reason in deaths[1].reason
        assert rig.app.destroy_guest(GUEST) == Done()
        assert rig.app.create_guest(GUEST) == Done()
        rig.session()


@pytest.mark.parametrize("end", ["death", "destruction"])
def test_an_app_never_sees_what_another_had_in_its_arena(end: str) -> None:
    """With an app for each guest, an arena goes from one guest's to another's."""
    with app_rig(Mortal, control=None, manifest=OWN) as rig:
        app = mortal(rig)
        rig.session()
        assert app.link.number == 0
        old = app.link.arena
        old[-1] = 0x77  # what the app keeps there for itself
        if end == "death":
            app.fatal = lambda number, _entry, _guest: number == 0
            assert rig.smc(*UID)[0] == ENOTAVAIL
        else:
            assert rig.app.destroy_guest(GUEST) == Done()
        assert old[-1] == 0


class Serial(OpteeApp):
    """One entry at a time."""

    capabilities = OpteeApp.capabilities & ~(abi.CAP_NESTING | abi.CAP_INTERLEAVING)


class SerialDeployment(LocalApp):
    app = Serial


def ended(body: Coroutine[object, None, object]) -> object:
    """Resume ``body``, and nobody else, to its end."""
    while True:
        try:
            body.send(None)
        except StopIteration as end:
            result: object = end.value
            return result


def test_nobody_waits_for_ever_for_an_app_whose_entry_does_not_go_on() -> None:
    """A guest is created on the spot while another one's call waits for its turn."""
    with app_rig(SerialDeployment, control=None, suspending=True) as rig:
        assert rig.app.destroy_guest(OTHER) == Done()
        call = rig.app.handle_regs(GUEST, 0, UID)
        call.send(None)
        creation = rig.app.guest_created(OTHER)
        assert ended(creation) is False
        regs = ended(call)
        assert isinstance(regs, tuple)
        assert regs[0] != ENOTAVAIL
        assert rig.app.create_guest(OTHER) == Done()


class Chatty(LocalApp):
    """Asks for the time, again and again, instead of serving an SMC."""

    chats = False

    def turn(self, link: LocalLink, message: bytes) -> bytes:
        said = super().turn(link, message)
        if self.chats and list(link.entries.values()) == [abi.ENTRY_HANDLE_SMC]:
            number = int(Syscall.NOW)
            return changed(messages(said)[-1], {"number": number, "flags": 0}, b"")
        return said


@pytest.mark.parametrize("suspending", [False, True])
def test_an_app_that_asks_for_ever_is_ended(
    suspending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "MOST_CALLS", 1 << 10)  # as with more, and soon over
    with app_rig(Chatty, control=None, suspending=suspending) as rig:
        assert isinstance(rig.app, Chatty)
        rig.app.chats = True
        assert rig.smc(*UID)[0] == ENOTAVAIL
        (death,) = [event for event in rig.events if isinstance(event, events.AppDied)]
        assert "system calls in one entry" in death.reason
        rig.app.chats = False
        assert rig.app.destroy_guest(GUEST) == Done()
        assert rig.app.create_guest(GUEST) == Done()
        rig.session()
