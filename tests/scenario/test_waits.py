# SPDX-License-Identifier: BSD-2-Clause
"""Guests that wait for each other inside the TEE, with and without notifications."""

from __future__ import annotations

import pytest

from mediator.optee import events
from tests.scenario.support import Seen, guest, passes

MODES = ["direct", "interleave"]


def contender(name: str, *, notifications: bool, style: str, more: str = "") -> str:
    return (
        f'[[guest]]\nname = "{name}"\nram = "16MiB"\ncall-style = "{style}"\n{more}'
        f"notifications = {str(notifications).lower()}\n"
        '[[guest.workload]]\nrun = "contention"\nshared = true\ninstances = 2\nrounds = 6\n'
        'steps = 40\nsleep = "2ms"\n'
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("style", ["rpc-arg", "classic"])
@pytest.mark.parametrize("listening", [(True, True), (True, False), (False, False)])
def test_guests_that_want_one_lock_of_the_tee_all_get_it(
    mode: str, style: str, listening: tuple[bool, bool]
) -> None:
    for seed in (1, 2):
        seen = Seen(events.WaitBegan, events.GuestInterrupted)
        one, two = listening
        text = (
            f'[platform]\nmode = "{mode}"\n'
            + contender("one", notifications=one, style=style)
            + contender("two", notifications=two, style="rpc-arg")
        )
        result = passes(text, seed=seed, listeners=(seen,))
        waits = [event for _, event in seen.events if isinstance(event, events.WaitBegan)]
        assert {wait.guest for wait in waits if wait.held} == {
            guest(result, name).id
            for name, told in zip(("one", "two"), listening, strict=True)
            if not told
        }
        told = {
            event.guest for _, event in seen.events if isinstance(event, events.GuestInterrupted)
        }
        assert told <= {
            guest(result, name).id
            for name, told in zip(("one", "two"), listening, strict=True)
            if told
        }, "never a guest that did not enable notifications"
