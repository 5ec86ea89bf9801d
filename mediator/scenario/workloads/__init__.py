# SPDX-License-Identifier: BSD-2-Clause
"""Client programs for scenarios: they use the client API only and check every result themselves."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mediator.scenario.workloads import (
    concurrency,
    crypto,
    failure,
    memory,
    sessions,
    storage,
)
from mediator.scenario.workloads.task import WorkloadKind

WORKLOADS: Final[Mapping[str, WorkloadKind]] = MappingProxyType(
    {
        kind.name: kind
        for module in (sessions, memory, storage, crypto, concurrency, failure)
        for kind in module.KINDS
    }
)
"""All workloads by the name that a scenario uses for them."""
