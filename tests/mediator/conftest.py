# SPDX-License-Identifier: BSD-2-Clause
"""Every rig of these tests is watched by all checkers of the invariants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mediator.checkers.watch import Watch
from tests.checkers.rig_watch import watch_rig
from tests.mediator.rig import Rig


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watch]]:
    """The watches of the test's rigs; a violation fails the test when it is over."""
    watches: list[Watch] = []
    make = Rig.__init__

    def made(self: Rig, *settings: Any, **limits: Any) -> None:
        make(self, *settings, **limits)
        watches.append(watch_rig(self))

    monkeypatch.setattr(Rig, "__init__", made)
    yield watches
    for watch in watches:
        watch.check()
