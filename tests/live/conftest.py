# SPDX-License-Identifier: BSD-2-Clause
"""Tests of live guests skip, with the reason, where emulator or guest files are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mediator.live import bundle, trial
from mediator.live.bundle import Bundle
from mediator.live.fixture import live_client

__all__ = ["live_client"]


@pytest.fixture(scope="session")
def cache() -> Path:
    """The cache folder with guest files."""
    reason = trial.why_not()
    if reason:
        pytest.skip(reason)
    return bundle.cache_folder()


@pytest.fixture(scope="session")
def files(cache: Path) -> Bundle:
    """Kernel and programs of the guests."""
    return bundle.load(cache, "default")
