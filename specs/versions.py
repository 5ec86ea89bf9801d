# SPDX-License-Identifier: BSD-2-Clause
"""Versions of every format and ABI that this distribution reads or writes."""

from __future__ import annotations

from typing import Final

ABI: Final = "OP-TEE SMC and message ABI 2.0, SMCCC 1.2"
"""CALLS_REVISION answers 2.0; SMCCC_VERSION answers 1.2."""

FORMATS: Final[dict[str, int]] = {
    "mediator-state": 1,
    "replay-report": 1,
    "rules": 1,
    "run-report": 1,
    "scenario": 1,
    "smc-trace": 1,
    "vectors-report": 1,
}
"""Format name → newest version; readers accept all earlier ones."""


def all_versions() -> dict[str, object]:
    """What ``optee-mediator --version --json`` prints beside the tool's own version."""
    return {"abi": ABI, "formats": dict(sorted(FORMATS.items()))}
