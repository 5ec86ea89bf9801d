# SPDX-License-Identifier: BSD-2-Clause
"""Guests that wait for each other inside the TEE, with and without notifications."""

from __future__ import annotations

import jsonschema
import pytest

from mediator.optee import events
from mediator.scenario.report import as_json
from tests.scenario.support import Seen, guest, make, passes, schema

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


def test_waits_are_counted_per_guest() -> None:
    text = contender("one", notifications=True, style="rpc-arg") + contender(
        "two", notifications=False, style="rpc-arg"
    )
    result = passes(text)
    one, two = result.waits
    assert (one.guest, two.guest) == ("one", "two")
    assert one.waits
    assert two.waits
    assert (one.kept, two.kept) == (0, two.waits)
    assert 0 < one.longest < result.totals.time
    assert result.waiting == ()


def test_a_waiter_for_ever_is_a_finding_with_its_story() -> None:
    """The interrupt that tells the guest gets lost, and nobody tells it again."""
    text = contender("one", notifications=True, style="rpc-arg") + contender(
        "two", notifications=False, style="rpc-arg"
    )
    made = make(text)
    made.machine.plan_lost_interrupts(lambda _guest, intid, _vcpu: intid == 219)
    result = made.execute()
    assert not result.ok
    (wait, *_) = result.waiting
    assert (wait.guest, wait.kept) == ("one", False)
    told = next(problem.what for problem in result.problems if "waits for key" in problem.what)
    assert "the TEE raises its interrupt for value" in told
    assert "vIRQ 219 for it" in told
    jsonschema.validate(as_json(result), schema("report"))


def test_who_waits_for_whom_when_a_run_is_cut_off() -> None:
    holder = contender("one", notifications=True, style="rpc-arg")
    waiter = contender("two", notifications=False, style="rpc-arg")
    result = make('[limits]\ntime = "6ms"\n' + holder + waiter).execute()
    owned = [wait for wait in result.waiting if wait.owner]
    assert owned
    for wait in owned:
        assert wait.lock == "lock 0"
        assert wait.owner.split(",")[0] in ("one", "two")
        assert f"(lock 0), held by {wait.owner}" in str(wait)
