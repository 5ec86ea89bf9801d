# SPDX-License-Identifier: BSD-2-Clause
"""The app in C and its twin: the mediator of this distribution with the settings that make it as small."""

from __future__ import annotations

from mediator.optee.settings import REFERENCE_CAPABILITIES, Limits, MediatorSettings
from smccc.constants import optee_smc as smc

TWIN = MediatorSettings(
    limits=Limits(calls=16, buffers=64, buffer_pages=511, total_pages=4096, rpc_buffers=16),
    capabilities=REFERENCE_CAPABILITIES | smc.OPTEE_SMC_SEC_CAP_RPC_ARG,
    contiguous=False,
    entry_offsets=False,
    hold_waits=False,
)
"""The same offers and limits as ``examples/app_c/mini.h``."""

SOURCES = ("main.c", "calls.c", "rpc.c", "records.c", "place.c")
