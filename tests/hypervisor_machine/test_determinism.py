# SPDX-License-Identifier: BSD-2-Clause
"""A seed is a run: in this process, in others, and whatever their string hashes are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mediator.hypervisor.scheduler import Mode
from tests.hypervisor_machine.busy_machine import digest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE])
def test_the_same_seed_is_the_same_run_in_every_process(mode: Mode) -> None:
    here = digest(mode, 42)
    assert digest(mode, 42) == here
    assert digest(mode, 43) != here
    for hash_seed in ("0", "12345"):
        output = subprocess.run(
            [sys.executable, "-m", "tests.hypervisor_machine.busy_machine", mode.value, "42"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert output.strip() == here


def test_the_scheduler_seed_alone_changes_an_interleaving() -> None:
    runs = {digest(Mode.INTERLEAVE, seed, steps=2_000) for seed in range(5)}
    assert len(runs) == 5
