# SPDX-License-Identifier: BSD-2-Clause
"""The app in C and its twin: the mediator of this distribution with the settings that make it as small."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mediator.deployment.el0_app.manifest import Manifest, parse
from mediator.optee.settings import REFERENCE_CAPABILITIES, Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.app_c.build import EXAMPLE

TWIN = MediatorSettings(
    limits=Limits(calls=16, buffers=64, buffer_pages=511, total_pages=4096, rpc_buffers=16),
    capabilities=REFERENCE_CAPABILITIES | smc.OPTEE_SMC_SEC_CAP_RPC_ARG,
    contiguous=False,
    entry_offsets=False,
    hold_waits=False,
)
"""The same offers and limits as ``examples/app_c/mini.h``."""

SOURCES = ("main.c", "calls.c", "rpc.c", "records.c", "place.c", "trace.c")


def manifest_of(program: Path) -> Manifest:
    """The example's manifest for a program, as its Makefile writes it."""
    text = (EXAMPLE / "manifest.toml").read_text("utf-8")
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    text = text.replace("# sha256\n", f'sha256 = "{digest}"\n')
    text = text.replace('"mini_mediator"', f'"{program.name}"')
    return parse(text, folder=program.parent)
