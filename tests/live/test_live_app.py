# SPDX-License-Identifier: BSD-2-Clause
"""A real kernel whose mediator lives in a process of its own, and dies there in the middle of a call."""

from __future__ import annotations

from pathlib import Path

import pytest

from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app import events as app_events
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.supervisor import LAST_CLIENT
from mediator.hypervisor.machine_events import TrapEnter
from mediator.live import client, run
from mediator.live.bundle import Bundle
from mediator.live.faults import KILL_APP, PlannedFault, served_again
from mediator.live.initramfs import PROBE, RECOVERY, RNG, SERVED, UNLOAD
from mediator.live.platform import LiveError, LiveSettings
from mediator.live.result import FAIL, OK, SERVED_AGAIN
from mediator.optee.events import WaitBegan

pytestmark = pytest.mark.timeout(120)

HOME = LiveSettings(deployment=Deployment(EL0_APP, require_isolation=True, pinned=False))
COMMUNICATION = "0xffff000e origin 2"
"""TEEC_ERROR_COMMUNICATION of TEEC_ORIGIN_COMMS: what a client gets whose TEE is gone."""


def test_the_whole_workload(files: Bundle, cache: Path) -> None:
    outcome = run.execute(files, run.RunSettings(platform=HOME), cache=cache)
    assert outcome.good, outcome
    assert outcome.pins == 0
    assert outcome.deployment == EL0_APP
    assert [app["complete"] for app in outcome.apps] == [True]
    assert outcome.deaths == 0


LOSS = (
    app_events.AppDied,
    app_events.GuestLost,
    app_events.PartitionCleaned,
    app_events.PartitionRenewed,
)


class Killer:
    """Kills the app at the first call after a thread of the TEE has begun to wait for another one."""

    def __init__(self) -> None:
        self.running: run.Run | None = None
        self.waited = False
        self.events: list[tuple[object, ...]] = []

    def __call__(self, event: tuple[object, ...]) -> None:
        if isinstance(event, WaitBegan):
            self.waited = True
        elif isinstance(event, TrapEnter) and self.waited and self.running is not None:
            self.running.platform.kill_app()
            self.running = None
        elif type(event).__module__ == app_events.__name__:
            self.events.append(event)


def test_a_guest_survives_the_death_of_the_app_during_its_call(files: Bundle, cache: Path) -> None:
    """A thread of the guest's kernel waits for a value that nobody will send, in an RPC of an invoke,
    and others of its threads are in calls: all of them come back with an error."""
    if client.find_compiler() is None:
        pytest.skip("no cross compiler for the guest's client")
    workload = client.compile_client(client.workload_source(), files, cache)
    settings = run.RunSettings(platform=HOME, recover=True, quiet=20.0, seconds=100.0)
    killer = Killer()
    with run.Run(files, settings, workload=workload, sinks=[killer]) as running:
        app = running.platform.tee
        assert isinstance(app, El0App)
        killer.running = running
        running.start()
        assert running.serve()
        outcome = running.result()
        # The control domain had a partition of its own again until it ended.
        assert app.guest_of(LAST_CLIENT) == 0
    (guest,) = outcome.guests
    assert (outcome.deaths, len(outcome.apps), outcome.pins) == (1, 2, 0)
    assert outcome.violations == ()
    assert any("has died" in line for line in outcome.log)
    assert [type(event) for event in killer.events if isinstance(event, LOSS)] == [*LOSS]
    # The kernel has nothing to complain of, the clients have got errors, and the driver serves again.
    assert guest.alarms == ()
    names = [check.name for check in guest.checks]
    first, again = names[: names.index(RECOVERY)], names[names.index(RECOVERY) :]
    failed = {check.name: check.detail for check in guest.checks if check.state == FAIL}
    assert failed
    assert set(failed) <= set(first)
    assert failed["everyones"] == COMMUNICATION or COMMUNICATION in " ".join(failed.values())
    assert {"reprobe", "again-concurrent", "again-storage", "again-unload-again", SERVED} <= set(
        again
    )
    assert served_again(guest)
    assert guest.ended == "switched off"


def test_the_other_guests_of_the_app_come_to_an_end(files: Bundle, cache: Path) -> None:
    """They have lost their TEE until they are made anew; their kernels and programs go on without."""
    settings = run.RunSettings(
        guests=2,
        platform=HOME,
        steps=(PROBE, RNG, UNLOAD),
        faults=(PlannedFault(KILL_APP, 12),),
        quiet=20.0,
    )
    outcome = run.execute(files, settings, cache=cache)
    assert outcome.verdict == SERVED_AGAIN
    assert outcome.good, outcome
    lost = outcome.guests[1]
    assert lost.alarms == ()
    assert [c.state for c in lost.checks if c.name in ("reprobe", "end")] == [FAIL, OK]


def test_there_must_be_an_app_to_kill(files: Bundle) -> None:
    with pytest.raises(LiveError, match="needs the deployment el0-app"):
        run.Run(files, run.RunSettings(faults=(PlannedFault(KILL_APP, 1),)))
