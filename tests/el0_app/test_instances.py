# SPDX-License-Identifier: BSD-2-Clause
"""Apps of other shapes on whole platforms: one entry at a time, and one app for each guest."""

from __future__ import annotations

from typing import Any, Final

import attrs
import pytest

from mediator.app.calls import AppSyscalls
from mediator.app.optee import OpteeApp
from mediator.app.runtime import Entry
from mediator.command.run import _Sessions
from mediator.deployment import app_abi as abi
from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.manifest import PER_GUEST, Manifest, optee_manifest
from mediator.deployment.face import Completed, Done
from mediator.host import Host
from mediator.hypervisor.scheduler import Mode
from mediator.optee.events import Sink
from mediator.optee.settings import MediatorSettings
from mediator.scenario.reader import builtin_scenario
from mediator.scenario.result import Result
from mediator.scenario.run import Run
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.mediator.with_optee import GUEST, OTHER, RAM, Slow

SCENARIOS: Final = ("default", "interleave", "pressure")
"""The hostile guests of the fourth one are as many as the others' calls together."""
UID = (0xBF00_FF01, 0, 0, 0, 0, 0, 0, 0)


class SerialApp(OpteeApp):
    """The mediator, one entry after the other."""

    capabilities = abi.CAP_TRACE | abi.CAP_STATE

    def __init__(self) -> None:
        super().__init__()
        self._busy = False

    def enter(self, sys: AppSyscalls, number: int, message: bytes) -> Entry:
        return self._one(super().enter(sys, number, message))

    async def _one(self, entry: Entry) -> bytes:
        assert not self._busy, "entered while an entry is open"
        self._busy = True
        try:
            return await entry
        finally:
            self._busy = False


class Serial(LocalApp):
    """In this process."""

    app = SerialApp


@attrs.frozen
class Shape(Deployment):
    """An app of another shape."""

    kind: type[El0App] = attrs.field(kw_only=True)
    app_manifest: Manifest = attrs.field(kw_only=True, factory=optee_manifest)
    made: list[El0App] = attrs.field(factory=list)
    left: list[int] = attrs.field(factory=list)
    """Processes when the run was over."""

    def make(
        self,
        host: Host,
        settings: MediatorSettings | None = None,
        sink: Sink | None = None,
        **given: Any,
    ) -> El0App:
        self.made.append(self.kind(host, settings, sink, manifest=self.app_manifest, **given))
        return self.made[0]


def execute(name: str, deployment: Deployment, mode: Mode | None = None) -> Result:
    plan = builtin_scenario(name)
    if mode is not None:
        plan = attrs.evolve(plan, machine=attrs.evolve(plan.machine, mode=mode))
    run = Run(plan, seed=3, deployment=deployment, load_session=_Sessions(""))
    try:
        result = run.execute()
        if isinstance(deployment, Shape):
            deployment.left.append(len(deployment.made[0].isolation))
        return result
    finally:
        run.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_app_that_serves_one_entry_at_a_time(name: str) -> None:
    """Others wait for it; with every await a switch point, too."""
    shape = Shape(EL0_APP, kind=Serial)
    result = execute(name, shape)
    assert result.ok, result.problems
    assert shape.made[0].deaths == 0
    assert shape.made[0].total_usage().refused == 0


def test_an_app_that_serves_one_entry_at_a_time_where_everything_interleaves() -> None:
    shape = Shape(EL0_APP, kind=Serial)
    result = execute("default", shape, Mode.INTERLEAVE)
    assert result.ok, result.problems
    assert shape.made[0].deaths == 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_app_for_each_guest(name: str) -> None:
    """The same outcomes as one for all; and none is left when the guests are gone."""
    shape = Shape(EL0_APP, kind=LocalApp, app_manifest=optee_manifest(instances=PER_GUEST))
    one = Shape(EL0_APP, kind=LocalApp)
    result, expected = execute(name, shape), execute(name, one)
    assert result.ok, result.problems
    assert shape.made[0].deaths == 0
    assert shape.made[0].total_usage().refused == 0
    assert shape.left == [1], "the one that waits for the next guest"
    # Time differs: each app asks the TEE for its notifications.
    assert told(result) == told(expected)


def told(result: Result) -> list[object]:
    return [
        (guest.name, guest.outcome, [(load.name, load.state) for load in guest.workloads])
        for guest in result.guests
    ]


def test_the_death_of_one_guests_app_is_no_other_guests_business() -> None:
    """With processes."""
    rig = AppRig(manifest=optee_manifest(instances=PER_GUEST))
    processes = {isolation.pid for isolation in rig.app.isolation}
    assert len(processes) == 3
    rig.register(0x5500, RAM + 0x3000)
    rig.invoke(RAM + 0x2000, Slow.PASS)
    instance = rig.app._homes[GUEST]
    rig.app._died(instance, GUEST, "planned")
    rig.app._bury(instance)
    assert rig.app.lost == (GUEST,)
    assert rig.host.pinned(GUEST) == 0
    out = rig.app.handle(OTHER, 0, UID)
    assert isinstance(out, Completed)
    assert out.regs[0] == 0x384F_B3E0
    assert rig.app.destroy_guest(GUEST) == Done()
    assert rig.app.create_guest(GUEST) == Done()
    rig.register(0x5500, RAM + 0x3000)
    rig.app.close()


class QuietApp(OpteeApp):
    """Does not tell what it does."""

    capabilities = OpteeApp.capabilities & ~abi.CAP_TRACE


class Quiet(LocalApp):
    """In this process."""

    app = QuietApp


def test_what_nobody_can_follow_is_not_called_checked() -> None:
    result = execute("pressure", Shape(EL0_APP, kind=Quiet))
    assert result.ok
    assert not result.checked
    assert result.invariants == ()
    assert execute("pressure", Shape(EL0_APP, kind=LocalApp)).checked
