# SPDX-License-Identifier: BSD-2-Clause
"""No app outlives the hypervisor that started it, whatever the app does and however that ends."""

from __future__ import annotations

import pytest

from tests.el0_app.orphans import killed

HYPERVISOR = """
import sys
from mediator.app.trial import LOOP
from tests.el0_app.rig import app_rig, trial_manifest

with app_rig(manifest=trial_manifest(silence_ms=60_000)) as rig:
    print(rig.app.isolation[0].pid, flush=True)
    if sys.argv[1] == "busy":
        rig.trial(LOOP)
    sys.stdin.read()
"""


@pytest.mark.parametrize("app", ["busy", "idle"])
def test_no_app_outlives_a_hypervisor_that_is_killed(app: str) -> None:
    killed(HYPERVISOR, app, busy=app == "busy")
