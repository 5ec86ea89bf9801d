# SPDX-License-Identifier: BSD-2-Clause
"""Client programs: each runs in both call styles, and each notices a TEE that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mediator.scenario.result import Result
from mediator.scenario.workloads import WORKLOADS
from secure_world.apps import cipher, default_registry
from secure_world.apps.basic import Arithmetic, Clock, Locker, MemoryReferences
from secure_world.apps.crypto import CryptoApplication
from secure_world.apps.echo import Echo
from secure_world.apps.storage import StorageApplication
from secure_world.ta import Params, TaEnvironment, TaRegistry, TrustedApplication
from smccc.constants import tee
from tests.scenario.support import guest, make, passes, problems, run

SMALL = {"large-memory": 'size = "300KiB"\n', "resident": 'size = "20KiB"\n', "busy": "steps = 9\n"}
PAIRED = {"contention": 3, "signals": 2}


def workload(name: str, style: str = "rpc-arg", more: str = "") -> str:
    return (
        f'[[guest]]\nname = "alpha"\nram = "16MiB"\ncall-style = "{style}"\n'
        f'[[guest.workload]]\nrun = "{name}"\nrounds = 2\ninstances = {PAIRED.get(name, 1)}\n'
        f"{SMALL.get(name, '')}{more}"
    )


@pytest.mark.parametrize("style", ["rpc-arg", "classic"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_passes(name: str, style: str) -> None:
    result = passes(workload(name, style))
    alpha = guest(result, "alpha")
    assert alpha.outcome == "done"
    assert alpha.style == style
    assert all(w.state == "done" for w in alpha.workloads)
    assert sum(w.rounds for w in alpha.workloads) == 2 * PAIRED.get(name, 1)
    assert alpha.checks > 0
    assert alpha.counters["anomalies"] == 0


RPCS = {
    "sessions": "LOAD_TA",
    "time": "GET_TIME",
    "contention": "NOTIFICATION",
    "signals": "NOTIFICATION",
    "storage": "FS",
    "resident": "SUSPEND",
    "busy": "FOREIGN_INTR",
    "cancellation": "FOREIGN_INTR",
}


@pytest.mark.parametrize("name", RPCS)
def test_a_workload_causes_the_rpcs_that_it_is_for(name: str) -> None:
    text = workload(name).replace("steps = 9\n", "steps = 90\n")
    assert guest(passes(text), "alpha").rpcs[RPCS[name]] > 0


# A TEE that is wrong


def registry(change: type[TrustedApplication]) -> TaRegistry:
    """All built-in TAs, one of them replaced by ``change``, which has its UUID."""
    kept = [app for app in default_registry().applications() if app.uuid != change.uuid]
    return TaRegistry([*kept, change])


def wrong(base: type[TrustedApplication], spoil: Callable[[Params], None]) -> TaRegistry:
    """A TA that changes its results after the fact."""

    class Wrong(base):  # type: ignore[misc, valid-type]
        uuid = base.uuid
        name = base.name

        async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
            result: int = await super().invoke(env, command, params)
            spoil(params)
            return result

    return registry(Wrong)


def add_one(params: Params) -> None:
    for index in range(4):
        if params.type(index) in (2, 3):
            params.value(index).a += 1


def flip(params: Params) -> None:
    for index in range(4):
        if params.type(index) in (6, 7) and params.memref(index).capacity:
            memref = params.memref(index)
            memref.write(0, bytes([memref.read(0, 1)[0] ^ 1]))


def failure(text: str, tas: TaRegistry) -> str:
    result: Result = run(text, registry=tas)
    assert not result.ok
    alpha = guest(result, "alpha")
    assert [w.state for w in alpha.workloads].count("failed") >= 1
    assert result.totals.violations == 0
    return problems(result)[0]


@pytest.mark.parametrize(
    ("name", "tas", "complaint"),
    [
        ("values", wrong(Arithmetic, add_one), "alpha: values/0: round 0: command 0 of "),
        ("memrefs", wrong(Echo, flip), "an inverted buffer: "),
        ("short-buffers", wrong(MemoryReferences, flip), "a copy: "),
        ("large-memory", wrong(Echo, flip), "large-memory/0: round 0: 4096 bytes at 0: "),
        ("storage", wrong(StorageApplication, flip), "an object as written: "),
        ("crypto", wrong(CryptoApplication, flip), "a SHA-256 digest: "),
        ("sessions", wrong(Echo, add_one), "values that the TA counts up: "),
        ("time", wrong(Clock, add_one), "a time between "),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_workload_notices_a_wrong_result(name: str, tas: TaRegistry, complaint: str) -> None:
    assert complaint in failure(workload(name), tas)


def test_contention_notices_a_lock_that_lets_two_in() -> None:
    class Open(Locker):
        uuid = Locker.uuid

        async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
            await env.sleep(params.value(0).a)
            return tee.TEE_SUCCESS

    more = 'sleep = "20ms"\n'
    text = workload("contention", more=more).replace("rounds = 2", "rounds = 6")
    assert "one holder at a time" in failure(text, registry(Open))


def test_signals_notice_a_wait_that_does_not_wait() -> None:
    class Eager(Locker):
        uuid = Locker.uuid

        async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
            if command == self.SIGNAL:
                await env.sleep(50)
            return tee.TEE_SUCCESS

    assert "a signal that was sent" in failure(workload("signals"), registry(Eager))


def test_panic_notices_a_ta_that_lives_on() -> None:
    class Immortal(Echo):
        uuid = Echo.uuid

        async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
            if command == 7:
                return tee.TEE_SUCCESS
            return await super().invoke(env, command, params)

    assert "a panic: 'success'" in failure(workload("panic"), registry(Immortal))


def test_cancellation_notices_a_ta_that_cannot_be_cancelled() -> None:
    class Stubborn(Clock):
        uuid = Clock.uuid

        async def open_session(self, env: TaEnvironment, params: Params) -> int:
            return tee.TEE_SUCCESS

    more = 'steps = 100\nafter = "1ms"\n'
    text = workload("cancellation", more=more)
    assert "ran to its end before it was cancelled" in failure(text, registry(Stubborn))


# Errors that are tolerated, programs that are skipped


def test_a_tolerated_error_ends_a_round_only() -> None:
    more = 'size = "1MiB"\ntolerate = ["BAD_PARAMETERS"]\n'
    text = "[mediator]\nbuffer-pages = 20\n" + workload("large-memory", more=more).replace(
        SMALL["large-memory"], ""
    )
    (one,) = guest(passes(text), "alpha").workloads
    assert (one.state, one.rounds, one.tolerated) == ("done", 2, 2)
    assert one.checks == 12
    strict = run(text.replace('tolerate = ["BAD_PARAMETERS"]\n', ""))
    assert problems(strict) == [
        "alpha: large-memory/0: round 0: TEE_ERROR_BAD_PARAMETERS, origin 1"
    ]


def test_without_the_extra_crypto_its_programs_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise cipher.MissingExtra("crypto", "cryptography")

    monkeypatch.setattr(cipher, "require_crypto", missing)
    result = passes(workload("storage") + '[expect]\nrpcs = ["FS"]\n')
    (one,) = guest(result, "alpha").workloads
    assert one.state == "skipped"
    assert one.problem == "needs the extra: pip install 'optee-mediator[crypto]'"


def test_the_same_program_in_several_threads() -> None:
    result = passes(workload("memrefs").replace("instances = 1", "instances = 4"))
    names = [w.name for w in guest(result, "alpha").workloads]
    assert names == [f"memrefs/{n}" for n in range(4)]


def test_parameters_reach_the_program() -> None:
    run_: Any = make(workload("sessions", more="sessions = 7\n"))
    assert run_.actors[0].tasks[0].integer("sessions") == 7
    # 7 sessions and 1 that is refused, twice; 1 for the device enumeration at each probe and scan.
    assert guest(run_.execute(), "alpha").sessions == 14 + 2
