# SPDX-License-Identifier: BSD-2-Clause
"""A real kernel whose mediator lives in a process of its own, and dies there in the middle of a call."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.supervisor import LAST_CLIENT
from mediator.live import run
from mediator.live.bundle import Bundle
from mediator.live.initramfs import PROBE, RNG, UNLOAD
from mediator.live.platform import LiveSettings
from smccc.constants import optee_smc as smc

pytestmark = pytest.mark.timeout(120)

HOME = LiveSettings(deployment=Deployment(EL0_APP, require_isolation=True, pinned=False))


def test_the_whole_workload(files: Bundle, cache: Path) -> None:
    outcome = run.execute(files, run.RunSettings(platform=HOME), cache=cache)
    assert outcome.good, outcome
    assert outcome.pins == 0


NTH = 4
"""The call in which the app is killed."""


def test_a_guest_survives_the_death_of_the_app_during_its_call(files: Bundle) -> None:
    settings = run.RunSettings(platform=HOME, steps=(PROBE, RNG, UNLOAD), seconds=40)
    with run.Run(files, settings) as running:
        app, host = running.platform.tee, running.platform.host
        assert isinstance(app, El0App)
        inner = host.secure_smc
        assert inner is not None
        calls = [0]

        def killing(*regs: int) -> tuple[int, int, int, int]:
            calls[0] += regs[0] == smc.OPTEE_SMC_CALL_WITH_RPC_ARG
            if calls[0] == NTH:
                calls[0] += 1
                os.kill(app.isolation[0].pid, signal.SIGKILL)
            return inner(*regs)

        host.secure_smc = killing
        guest = running.start()
        assert running.serve()
        outcome = running.result()
        assert app.deaths == 1
        # The control domain had a partition of its own again until it ended.
        assert app.guest_of(LAST_CLIENT) == 0
        assert guest.ended == "switched off"
        assert outcome.pins == 0
