# SPDX-License-Identifier: BSD-2-Clause
"""A pytest fixture: tests that run libteec clients in a real Linux guest, or say why they cannot.

Put ``from mediator.live.fixture import live_client`` into a ``conftest.py``; a test that asks for
``live_client`` gets :func:`mediator.live.trial.try_client`, or is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mediator.live.trial import Trial, try_client, why_not


@pytest.fixture
def live_client() -> Callable[..., Trial]:
    """:func:`mediator.live.trial.try_client`; skips where no guest can run."""
    reason = why_not(compiler=True)
    if reason:
        pytest.skip(reason)
    return try_client
