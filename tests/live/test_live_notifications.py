# SPDX-License-Identifier: BSD-2-Clause
"""Asynchronous notifications and waits across guests, with the real driver."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import attrs
import pytest

from mediator.live import client, run
from mediator.live.bundle import Bundle
from mediator.live.faults import PlannedFault
from mediator.live.image import HVC, SMC
from mediator.live.initramfs import PROBE
from mediator.live.platform import LiveSettings
from mediator.live.qemu import POLLING, SEMIHOSTING, UART, BoardSettings
from mediator.live.result import HUNG, SURVIVED, Result
from mediator.optee import events as mediator_events
from mediator.optee.settings import OFFERED_CAPABILITIES, MediatorSettings
from secure_world import events
from secure_world.apps.rng import registry_with_rng
from secure_world.ta import (
    TYPE_VALUE_OUTPUT,
    Params,
    TaEnvironment,
    TaRegistry,
    TrustedApplication,
)
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from specs.replay.mediated import replay_as_mediator
from specs.replay.reader import load_trace

pytestmark = pytest.mark.timeout(180)

WITHOUT = MediatorSettings(
    capabilities=OFFERED_CAPABILITIES & ~smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF,
)
BUSY = 120.0
"""Seconds for a run on a machine that is busy with other things."""

# Meets the other guest, then its threads take a lock of the whole TEE in turn, awake and asleep.
CONTENDER = """
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>
#include <tee_client_api.h>
static const TEEC_UUID locker = { 0x5f1c6a52, 0x9d0e, 0x4c64, { 0x9b, 0x53, 0x3d, 0x6f, 0x2a, 0x7b, 0xe0, 3 } };
static const TEEC_UUID meeting = { 0x5f1c6a52, 0x9d0e, 0x4c64, { 0x9b, 0x53, 0x3d, 0x6f, 0x2a, 0x7b, 0xe0, 0x77 } };
static TEEC_Context context;
static void *contend(void *unused)
{
    TEEC_Session s;
    uint32_t origin;
    (void)unused;
    if (TEEC_OpenSession(&context, &s, &locker, TEEC_LOGIN_PUBLIC, NULL, NULL, &origin))
        return (void *)1;
    for (int i = 0; i < 15; i++) {
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
        op.params[0].value.a = i % 3 ? 60 : 3;
        if (TEEC_InvokeCommand(&s, i % 3 ? 1 : 3, &op, &origin))
            return (void *)1;
    }
    TEEC_CloseSession(&s);
    return NULL;
}
int main(void)
{
    TEEC_Session s;
    uint32_t origin, present = 0;
    pthread_t threads[3];
    void *failed;
    int failures = 0;
    if (TEEC_InitializeContext(NULL, &context) ||
        TEEC_OpenSession(&context, &s, &meeting, TEEC_LOGIN_PUBLIC, NULL, NULL, &origin))
        return 1;
    while (present < 2) {
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_OUTPUT, 0, 0, 0) };
        if (TEEC_InvokeCommand(&s, 0, &op, &origin))
            return 1;
        present = op.params[0].value.a;
        usleep(10000);
    }
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, contend, NULL);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], &failed);
        failures += failed != NULL;
    }
    return failures;
}
"""

# Waits in the normal world for a value that the secure world sends 50 ms later.
WAITER = """
#include <stdint.h>
#include <tee_client_api.h>
int main(void)
{
    TEEC_Context context;
    TEEC_Session s;
    uint32_t origin;
    TEEC_UUID notifier = { 0x5f1c6a52, 0x9d0e, 0x4c64, { 0x9b, 0x53, 0x3d, 0x6f, 0x2a, 0x7b, 0xe0, 6 } };
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
    op.params[0].value.a = 33;
    op.params[0].value.b = 50;
    return TEEC_InitializeContext(NULL, &context) ||
           TEEC_OpenSession(&context, &s, &notifier, TEEC_LOGIN_PUBLIC, NULL, NULL, &origin) ||
           TEEC_InvokeCommand(&s, 1, &op, &origin);
}
"""


class Log:
    """A sink that keeps the events of some classes."""

    def __init__(self, *kinds: type) -> None:
        self._kinds = kinds
        self.events: list[tuple[object, ...]] = []

    def __call__(self, event: tuple[object, ...]) -> None:
        if isinstance(event, self._kinds):
            self.events.append(event)

    def count(self, *event: object) -> int:
        """How often this event came; its class first."""
        return sum(type(e) is event[0] and e == event[1:] for e in self.events)


def _program(source: str, files: Bundle, cache: Path) -> bytes:
    if client.find_compiler() is None:
        pytest.skip("no cross compiler")
    return client.compile_client(source, files, cache)


def _meeting() -> TaRegistry:
    """The built-in applications, and one that counts the guests that have called it."""
    present: dict[int, None] = {}

    class Meeting(TrustedApplication):
        uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be077")
        name = "meeting"
        pseudo = True
        multi_session = True

        async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
            assert params.types == TYPE_VALUE_OUTPUT
            present[env.client_id] = None
            params.value(0).a = len(present)
            return tee.TEE_SUCCESS

    registry = registry_with_rng()
    registry.register(Meeting)
    return registry


@pytest.mark.parametrize(
    ("bell", "conduit", "vcpus"), [(SEMIHOSTING, SMC, 2), (UART, SMC, 2), (POLLING, HVC, 1)]
)
def test_values_reach_an_idle_driver_until_it_is_unloaded(
    files: Bundle, bell: str, conduit: str, vcpus: int
) -> None:
    """Only the guest that is meant is interrupted, once for several values; none after STOP."""
    log = Log(events.BottomHalf, mediator_events.NotificationsTaken)
    taken = "until awk '/optee/ { exit !($2 + $3) }' /proc/interrupts; do sleep 0.1; done"
    command = f"echo ready; {taken}; echo taken; sleep 0.5; rmmod optee && echo gone; sleep 0.5"
    settings = run.RunSettings(
        guests=2,
        board=BoardSettings(bell=bell, vcpus=vcpus),
        conduit=conduit,
        steps=(PROBE,),
        commands=(command,),
        seconds=BUSY,
    )
    with run.Run(files, settings, sinks=[log]) as running:
        first = running.start()
        second = running.start()
        world = running.platform.secure_world

        def both(line: str) -> bool:
            return all(line in guest.console.lines for guest in (first, second))

        assert running.serve(lambda: both("ready"))
        assert (first.interrupts, second.interrupts) == (0, 0)
        assert world.notify(first.ident + 1, 0)
        assert running.serve(lambda: "taken" in first.console.lines)
        assert (first.interrupts, second.interrupts) == (1, 0)
        assert running.serve(lambda: log.count(events.BottomHalf, first.ident + 1) == 1)
        assert world.notify(second.ident + 1, 0)
        assert world.notify(second.ident + 1, 40)
        assert running.serve(lambda: both("gone"))
        before = first.interrupts, second.interrupts
        for guest in (first, second):
            assert not world.notify(guest.ident + 1, 0)
        assert running.serve()
        assert (first.interrupts, second.interrupts) == before
        outcome = running.result()
    assert outcome.good, outcome
    assert log.count(events.BottomHalf, second.ident + 1) == 1
    for result in outcome.guests:
        assert any(check.name == "notifications" for check in result.checks)


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("mediator", [MediatorSettings(), WITHOUT])
def test_two_guests_wait_for_one_lock(
    files: Bundle, cache: Path, tmp_path: Path, mediator: MediatorSettings, vcpus: int
) -> None:
    """Each is told when the other releases it, by notification or by the mediator; and it replays."""
    log = Log(mediator_events.NotificationsTaken, mediator_events.WaitBegan)
    settings = run.RunSettings(
        guests=2,
        board=BoardSettings(vcpus=vcpus),
        platform=LiveSettings(mediator=mediator),
        steps=(PROBE,),
        commands=("contend",),
        files={"/bin/contend": (_program(CONTENDER, files, cache), 0o755)},
        record=tmp_path / "session.jsonl",
        seconds=BUSY,
    )
    outcome = run.execute(files, settings, cache=cache, registry=_meeting(), sinks=[log])
    assert outcome.good, outcome
    taken = {e.guest for e in log.events if isinstance(e, mediator_events.NotificationsTaken)}
    assert taken == {0, 1}
    held = {e.held for e in log.events if isinstance(e, mediator_events.WaitBegan)}
    assert held == {int(mediator is WITHOUT)}
    for guest in outcome.guests:
        assert (guest.interrupts == 0) == (mediator is WITHOUT)
    for number in (1, 2):
        replayed = replay_as_mediator(load_trace(tmp_path / f"session.{number}.jsonl"))
        assert replayed.transparent


@pytest.mark.parametrize("kind", ["drop-interrupt", "drop-notification", "no-interrupts"])
def test_a_value_that_is_lost(files: Bundle, cache: Path, kind: str) -> None:
    """Nobody tells a driver twice: its client waits for ever, and that is what the verdict says."""
    outcome = _wait_with_fault(files, cache, MediatorSettings(), kind)
    assert outcome.verdict == HUNG
    assert outcome.violations == ()


def test_a_late_value(files: Bundle, cache: Path) -> None:
    outcome = _wait_with_fault(files, cache, MediatorSettings(), "late-interrupts")
    assert outcome.verdict == SURVIVED
    assert outcome.good, outcome


def _wait_with_fault(files: Bundle, cache: Path, mediator: MediatorSettings, kind: str) -> Result:
    settings = run.RunSettings(
        platform=LiveSettings(mediator=mediator),
        steps=(PROBE,),
        commands=("waiter",),
        files={"/bin/waiter": (_program(WAITER, files, cache), 0o755)},
        quiet=4.0,
        faults=(PlannedFault(kind, 2),),
        seconds=BUSY,
    )
    return run.execute(files, settings, cache=cache)


def test_a_lost_interrupt_of_the_tee_delays_waits_that_the_mediator_keeps(
    files: Bundle, cache: Path
) -> None:
    """The mediator asks again whenever the guest comes back: nobody hangs."""
    program = _program(CONTENDER, files, cache)
    settings = run.RunSettings(
        guests=2,
        platform=LiveSettings(mediator=WITHOUT),
        steps=(PROBE,),
        commands=("contend",),
        files={"/bin/contend": (program, 0o755)},
        quiet=20.0,
        seconds=BUSY,
    )
    with run.Run(files, settings, registry=_meeting()) as running:
        lost: list[int] = []

        def lose() -> bool:
            lost.append(1)
            return True

        running.platform.lost = lose
        running.start()
        running.start()
        assert running.serve()
        outcome = running.result()
    assert outcome.good, attrs.asdict(outcome)
    assert lost
