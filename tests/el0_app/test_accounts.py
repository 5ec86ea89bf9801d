# SPDX-License-Identifier: BSD-2-Clause
"""Round trips, which decide what the boundary costs, and who pays for them."""

from __future__ import annotations

import pytest

from benchmarks.invoke import Bench
from benchmarks.page_lists import GUEST as SHARER
from benchmarks.page_lists import Rig, mediated
from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.grants import Usage
from mediator.hypervisor.accounting import APP_COPY, APP_TURN, KINDS
from mediator.scenario.reader import builtin_scenario
from mediator.scenario.run import Run
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow

HOME = Deployment(EL0_APP, require_isolation=True)


@pytest.mark.parametrize("by_cookie", [False, True])
def test_an_invoke_takes_two_round_trips(by_cookie: bool) -> None:
    bench = Bench(deployment=HOME)
    app = bench.platform.tee
    assert isinstance(app, El0App)
    bench.run(by_cookie, 1)
    before = app.usage(bench.guest)
    bench.run(by_cookie, 10)
    after = app.usage(bench.guest)
    bench.platform.close()
    assert after.turns - before.turns == 10 * 2
    assert after.entries - before.entries == 10


def test_a_gibibyte_is_registered_in_ten_round_trips() -> None:
    rig = Rig("random")
    shared = mediated(rig, deployment=HOME)
    app = rig.tee
    assert isinstance(app, El0App)
    before = app.usage(SHARER)
    shared.register()
    after = app.usage(SHARER)
    assert after.turns - before.turns == 6
    assert after.pinned_pages - before.pinned_pages == 262_144
    shared.unregister()
    assert app.usage(SHARER).pinned_pages == 0
    app.close()


def busy(rig: AppRig) -> None:
    rig.register(0x5500, RAM + 0x3000)
    rig.invoke(RAM + 0x2000, Slow.COPY, [(0x5, 0x5500, 0, 16)] * 2)
    rig.invoke(RAM + 0x4000, Slow.PASS, interrupted=True)


def test_what_a_guest_uses_is_on_its_account_and_on_no_other() -> None:
    rig = AppRig(LocalApp)
    other, hypervisor = rig.app.usage(OTHER), rig.app.usage(-1)
    busy(rig)
    assert rig.app.usage(OTHER) == other
    assert rig.app.usage(-1) == hypervisor
    mine = rig.app.usage(GUEST)
    assert min(mine.entries, mine.turns, mine.syscalls, mine.copied) > 0
    assert mine.pinned_pages == rig.host.pinned(GUEST) == 1
    total = rig.app.total_usage()
    assert total == mine + other + hypervisor
    assert total.shadow_pages == rig.host.shadows.in_use


def test_the_sums_survive_guests_and_apps() -> None:
    rig = AppRig(LocalApp)
    busy(rig)
    before = rig.app.total_usage()
    rig.app.destroy_guest(OTHER)
    rig.app.kill()
    rig.app.destroy_guest(GUEST)
    after = rig.app.total_usage()
    for name in ("entries", "turns", "syscalls", "refused", "copied"):
        assert getattr(after, name) >= getattr(before, name)
    assert (after.pinned_pages, after.shadow_pages) == (0, 0)
    assert isinstance(after, Usage)


def test_virtual_time_of_the_boundary_is_charged_to_the_guest_that_is_served() -> None:
    run = Run(builtin_scenario("pressure"), deployment=HOME)
    result = run.execute()
    assert result.ok
    app, machine = run.platform.tee, run.machine
    assert isinstance(app, El0App)
    turn, copy = KINDS[APP_TURN], KINDS[APP_COPY]
    charged = sum(guest.operations.get(turn, 0) for guest in result.guests)
    control = machine.strand().account.counts[APP_TURN]
    starting = 4  # INIT, before there was a machine to charge
    run.close()
    assert charged + control + starting == app.total_usage().turns
    for guest in result.guests:
        assert guest.spent.get(turn, 0) == guest.operations.get(turn, 0) * machine.costs[APP_TURN]
        assert guest.spent.get(copy, 0) == guest.operations.get(copy, 0) * machine.costs[APP_COPY]
