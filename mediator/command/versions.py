# SPDX-License-Identifier: BSD-2-Clause
"""Versions of every format and ABI that this distribution reads or writes."""

from __future__ import annotations

from typing import Final

from mediator.command import decode
from mediator.deployment import app_abi as app
from mediator.live import bundle
from mediator.live import result as live_result
from mediator.live import sweep as live_sweep
from mediator.optee import snapshots
from mediator.scenario import model
from mediator.scenario import report as run_report
from specs import app_abi, rules
from specs.replay import records
from specs.replay import report as replay_report
from specs.vectors import report as vectors_report

ABI: Final = "OP-TEE SMC and message ABI 2.0, SMCCC 1.2"
"""CALLS_REVISION answers 2.0; SMCCC_VERSION answers 1.2."""

APP_ABI: Final = f"{app.MAJOR}.{app.MINOR}"
"""What an app and the hypervisor tell each other in HELLO and WELCOME."""

FORMATS: Final[dict[str, int]] = {
    module.FORMAT: module.VERSION
    for module in (
        app_abi,
        bundle,
        decode,
        live_result,
        live_sweep,
        model,
        records,
        replay_report,
        rules,
        run_report,
        snapshots,
        vectors_report,
    )
}
"""Name of a format, as its files have it → newest version; readers accept all earlier ones."""


def all_versions() -> dict[str, object]:
    """What ``optee-mediator --version --json`` prints beside the tool's own version."""
    return {"abi": ABI, "app_abi": APP_ABI, "formats": dict(sorted(FORMATS.items()))}
