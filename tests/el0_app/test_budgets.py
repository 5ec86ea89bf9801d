# SPDX-License-Identifier: BSD-2-Clause
"""Time, system calls, memory and copies of an app are on the account of the guest that it serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest

from mediator.app.optee import OpteeApp
from mediator.deployment import app_abi as abi
from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.grants import NO_GUEST, Usage
from mediator.deployment.el0_app.manifest import optee_manifest
from mediator.deployment.face import Done
from mediator.guest.cpu import GuestCpu
from mediator.hypervisor.accounting import APP_TURN, KINDS, WORLD_SWITCH
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.scheduler import Mode
from mediator.optee.syscalls import Syscall
from mediator.scenario.platform import Platform, PlatformSettings
from mediator.scenario.reader import builtin_names, builtin_scenario
from mediator.scenario.result import Result
from mediator.scenario.run import APP_SUMS, Run
from smccc.constants import optee_smc as smc_
from tests.el0_app import devices
from tests.el0_app.device_rig import DeviceRig
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.el0_app.test_instances import Shape
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow

UID = 0xBF00_FF01
CALL = smc_.OPTEE_SMC_CALL_WITH_RPC_ARG
REGISTERS = 64


def execute(name: str, deployment: Deployment, mode: Mode | None) -> tuple[Result, int]:
    """The result, and the crossings on the machine's own account."""
    plan = builtin_scenario(name)
    if mode is not None:
        plan = attrs.evolve(plan, machine=attrs.evolve(plan.machine, mode=mode))
    from mediator.command.run import _Sessions

    run = Run(plan, seed=4, deployment=deployment, load_session=_Sessions(""))
    before = run.machine.account(NO_GUEST).counts[APP_TURN]
    app = run.platform.tee
    assert isinstance(app, El0App)
    starting = app.usage(NO_GUEST).turns - before
    result = run.execute()
    own = run.machine.account(NO_GUEST).counts[APP_TURN]
    run.close()
    return result, own + starting


def check_sums(result: Result, own: int) -> None:
    totals = result.totals
    for name in APP_SUMS:
        of_guests = sum(guest.app.get(name, 0) for guest in result.guests)
        assert of_guests + totals.app_own[name] == totals.app[name] > 0 or name == "refused"
    turn, copy = KINDS[APP_TURN], "app_copy"
    for guest in result.guests:
        assert guest.operations.get(turn, 0) == guest.app.get("turns", 0), guest.name
        assert guest.spent.get(copy, 0) <= 250 * guest.app.get("copied", 0)
        if guest.calls:
            assert min(guest.app["entries"], guest.app["syscalls"], guest.app["copied"]) > 0
    assert own == totals.app_own["turns"]


@pytest.mark.parametrize(
    ("name", "mode"), [*[(name, None) for name in builtin_names()], ("pressure", Mode.INTERLEAVE)]
)
def test_the_sums_of_a_whole_platform_add_up(name: str, mode: Mode | None) -> None:
    """Also where entries are open at the same time, guests are destroyed, refused and created again."""
    result, own = execute(name, Shape(EL0_APP, kind=LocalApp), mode)
    assert result.ok, result.problems
    check_sums(result, own)


def test_the_sums_of_a_platform_with_a_process_add_up() -> None:
    result, own = execute("default", Deployment(EL0_APP, require_isolation=True), None)
    check_sums(result, own)


def test_in_the_hypervisor_there_is_nothing_to_add() -> None:
    run = Run(builtin_scenario("pressure"))
    result = run.execute()
    assert (result.totals.app, result.totals.app_own) == ({}, {})
    assert all(guest.app == {} for guest in result.guests)


# --- entries within entries, posted calls ---------------------------------------------------------


def usages(rig: AppRig) -> dict[int, Usage]:
    return {guest: rig.app.usage(guest) for guest in (GUEST, OTHER, NO_GUEST)}


def less(after: Usage, before: Usage) -> tuple[int, ...]:
    return tuple(
        new - old
        for new, old in zip(attrs.astuple(after), attrs.astuple(before), strict=True)
    )  # fmt: skip


def spent(rig: AppRig, before: dict[int, Usage]) -> dict[int, tuple[int, ...]]:
    """What was added to each account: entries, turns, calls, refused, copied, pins, shadows."""
    return {guest: less(usage, before[guest]) for guest, usage in usages(rig).items()}


def test_entries_within_an_entry_are_on_the_account_of_their_own_guest() -> None:
    rig = DeviceRig()
    smc = rig.host.secure_smc
    assert smc is not None

    def inner(*regs: int) -> tuple[int, int, int, int]:
        if regs[0] == UID:
            rig.ask(Syscall.PARK_VCPU, GUEST, 0, 5, guest=OTHER)
            rig.store(devices.LATCH, 1, OTHER)
            rig.app.notification_interrupt(devices.INTERRUPTS[0])
        return smc(*regs)

    rig.store(devices.LISTEN, 0)
    before = usages(rig)
    rig.errand(devices.KEEP, RAM)
    outer = spent(rig, before)
    rig.host.secure_smc = inner
    before = usages(rig)
    rig.errand(devices.KEEP, RAM)
    found = spent(rig, before)
    assert found[GUEST] == outer[GUEST]
    # Two entries; the call for the other guest was refused, and its registers were copied.
    assert found[OTHER] == (2, 3, 1, 1, REGISTERS, 0, 0)
    assert found[NO_GUEST][:4] == (1, 1, 1, 0)
    assert outer[OTHER] == outer[NO_GUEST] == (0,) * 7


def test_what_is_posted_is_a_call_like_any_other() -> None:
    """The same calls and bytes whether each waits for its answer or all go in one turn."""

    found = []
    for suspending in (False, True):
        rig = DeviceRig(suspending=suspending)
        before = usages(rig)
        rig.store(devices.PARK, 5)
        rig.store(devices.INJECT, 7)
        found.append(spent(rig, before))
        assert rig.parked == [(GUEST, 0, 5)]
        assert rig.virqs == [(GUEST, 7)]
    # Entries, turns, calls: what waits takes a turn more.
    assert [accounts[GUEST] for accounts in found] == [
        (2, 2, 2, 0, 0, 0, 0),
        (2, 4, 2, 0, 0, 0, 0),
    ]
    for accounts in found:
        assert accounts[OTHER] == accounts[NO_GUEST] == (0,) * 7


def test_posted_bytes_are_bytes_like_any_other() -> None:
    """What an app logs with its return is copied at the cost of the guest that it serves."""
    rig = DeviceRig()
    before = usages(rig)
    rig.store(devices.NOTE, 100)
    assert spent(rig, before)[GUEST] == (1, 1, 1, 0, 100, 0, 0)


def share(rig: AppRig, page: int, cookie: int, guest: int = GUEST) -> int:
    """Register one page; the status."""
    listed = RAM + 0x1F_0000
    rig.put(listed, page.to_bytes(8, "little"), guest)
    rig.put(RAM, msg(4, params=[(0x20A, listed, 0x1000, cookie)]), guest)
    rig.smc(CALL, 0, RAM, guest=guest)
    return int.from_bytes(rig.get(RAM + 20, 4, guest), "little")


# --- memory ---------------------------------------------------------------------------------------


def shadows(rig: AppRig) -> list[int]:
    found = [usage.shadow_pages for usage in usages(rig).values()]
    assert sum(found) == rig.app.total_usage().shadow_pages == rig.host.shadows.in_use
    return found


def test_pages_stay_on_the_account_that_they_were_taken_for() -> None:
    """Also if another guest's call uses them, and gives them back."""
    rig = AppRig(LocalApp)
    body = msg(3, params=[])
    rig.put(RAM, body, OTHER)
    rig.put(RAM, body)
    call = (CALL, 0, RAM, 0, 0, 0, 0, 0)
    rig.app.handle(GUEST, 0, call)
    mine, _, own = shadows(rig)
    assert mine > 0
    for _ in range(3):
        rig.app.handle(OTHER, 0, call)
        assert shadows(rig) == [mine, 0, own]
    assert min(usage.shadow_pages for usage in usages(rig).values()) >= 0
    rig.app.destroy_guest(GUEST)
    assert rig.app.usage(NO_GUEST).shadow_pages == own + mine
    assert rig.app.total_usage().shadow_pages == rig.host.shadows.in_use == mine
    rig.app.kill()
    assert rig.app.total_usage().shadow_pages == rig.host.shadows.in_use == 0


def test_one_guest_cannot_take_the_pages_of_all() -> None:
    manifest = optee_manifest(arena_pages=512)
    rig = DeviceRig(
        manifest=devices.devices_manifest(
            arena_pages=manifest.arena_pages, shadow_pages=manifest.shadow_pages
        )
    )
    statuses = [rig.ask(Syscall.ALLOC_SHADOW, 64)[0] for _ in range(12)]
    assert statuses == [abi.OK] * 6 + [abi.NO] * 6
    assert rig.ask(Syscall.ALLOC_SHADOW, 64, guest=OTHER)[0] == abi.OK
    assert rig.app.usage(GUEST).shadow_pages == 6 * 64
    assert rig.app.usage(GUEST).refused == 0


def test_pins_of_one_guest_do_not_count_for_another() -> None:
    manifest = attrs.evolve(optee_manifest(), pinned_pages=2)
    rig = AppRig(LocalApp, manifest=manifest)
    assert [share(rig, RAM + 0x2000 * cookie, cookie) != 0 for cookie in (1, 2, 3)] == [0, 0, 1]
    assert rig.app.usage(GUEST).pinned_pages == rig.host.pinned(GUEST) == 2
    assert share(rig, RAM + 0x9000, 3, OTHER) == 0
    assert rig.app.usage(OTHER).pinned_pages == rig.host.pinned(OTHER) == 1
    assert not rig.app.deaths


# --- when an app dies -----------------------------------------------------------------------------


class Payments:
    """Who pays, at every call of the host that costs something."""

    def __init__(self) -> None:
        self.stack = [99]
        self.calls: list[tuple[int, str, int]] = []

    @contextmanager
    def payer(self, guest: int) -> Iterator[None]:
        self.stack.append(guest)
        try:
            yield
        finally:
            self.stack.pop()

    def watch(self, rig: AppRig) -> None:
        host = rig.host
        smc, unpin = host.secure_smc, host.unpin_pages
        assert smc is not None

        def counted(*regs: int) -> tuple[int, int, int, int]:
            self.calls.append((self.stack[-1], "smc", regs[1]))
            return smc(*regs)

        def unpinned(guest: int, frames: bytes) -> None:
            self.calls.append((self.stack[-1], "unpin", guest))
            unpin(guest, frames)

        host.secure_smc = counted
        host.unpin_pages = unpinned  # type: ignore[method-assign]


@pytest.mark.parametrize("control", [None, GUEST])
def test_each_guest_pays_for_its_own_end_and_the_machine_for_the_new_app(
    control: int | None,
) -> None:
    payments = Payments()
    rig = AppRig(LocalApp, payer=payments.payer, control=control)
    for guest in (GUEST, OTHER):
        assert share(rig, RAM + 0x9000, 3, guest) == 0
    payments.watch(rig)
    rig.app.kill()
    expected = []
    for guest in (GUEST, OTHER):
        expected += [(guest, "smc", guest + 1), (guest, "unpin", guest)]
    if control is not None:
        expected.append((GUEST, "smc", rig.app.client_of(GUEST)))
    assert payments.calls == expected
    assert payments.stack == [99]


def test_the_machine_knows_whose_account_it_is() -> None:
    """A trap of one guest in which the app dies: the other's partition is ended at its own cost."""
    platform = Platform(
        PlatformSettings(
            machine=MachineSettings(mode=Mode.DIRECT),
            deployment=Shape(EL0_APP, kind=LocalApp),
        )
    )
    app = platform.tee
    assert isinstance(app, El0App)

    async def program(cpu: GuestCpu) -> None:
        if cpu.guest_id == 2:
            app.kill()
        await cpu.smc(UID)

    for _ in range(2):
        platform.create(GuestSpec("guest", (program,), ram=(RamExtent(RAM, 16),)))
    machine = platform.machine
    before = [machine.account(guest).counts[WORLD_SWITCH] for guest in (1, 2)]
    platform.run(max_steps=10_000)
    after = [machine.account(guest).counts[WORLD_SWITCH] for guest in (1, 2)]
    # The first guest's own call and its end; the second one's end.
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 1]
    for guest in (1, 2):
        assert app.destroy_guest(guest) == Done()
    platform.close()


def test_the_start_of_an_app_is_on_nobodys_account() -> None:
    """Whoever executes: what the new app does to begin with is the machine's own business."""
    payments = Payments()
    rig = AppRig(LocalApp, payer=payments.payer)
    began: list[int] = []
    start = rig.app.start

    def started() -> object:
        began.append(payments.stack[-1])
        return start()

    rig.app.start = started  # type: ignore[method-assign, assignment]
    rig.app.kill()
    assert began == [NO_GUEST]


def test_what_the_control_domain_used_stays_on_its_account() -> None:
    rig = AppRig(LocalApp, control=GUEST)
    rig.invoke(RAM + 0x2000, Slow.PASS)
    before = rig.app.usage(GUEST)
    total = rig.app.total_usage()
    rig.app.kill()
    after = rig.app.usage(GUEST)
    for name in APP_SUMS:
        assert getattr(after, name) >= getattr(before, name)
        assert getattr(rig.app.total_usage(), name) >= getattr(total, name)


def test_the_app_of_the_rig_is_the_mediator() -> None:
    """What the tests above say of an app in this process, they say of the one that processes run."""
    assert LocalApp.app is OpteeApp
