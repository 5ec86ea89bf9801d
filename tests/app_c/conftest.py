# SPDX-License-Identifier: BSD-2-Clause
"""The app in C, built once for each way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app_c.build import EXAMPLE, HERE, compile_app
from tests.app_c.twins import SOURCES


@pytest.fixture(scope="session")
def plain_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app as a user builds it."""
    folder = tmp_path_factory.mktemp("plain")
    return compile_app([EXAMPLE / name for name in SOURCES], folder / "mini_mediator")


@pytest.fixture(scope="session")
def sanitized_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app under the address and undefined-behaviour sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    sources = [EXAMPLE / name for name in SOURCES]
    return compile_app(sources, folder / "mini_mediator", sanitized=True)


@pytest.fixture(scope="session")
def trial_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app that tries what is forbidden."""
    return compile_app([HERE / "trial.c"], tmp_path_factory.mktemp("trial") / "trial")
