# SPDX-License-Identifier: BSD-2-Clause
"""Whole runs: what happens to guests, what counts as a problem, and every mode and seed."""

from __future__ import annotations

import attrs
import pytest

from mediator.checkers.watch import Watch
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.hypervisor.stage2 import ABSENT
from mediator.optee import events
from mediator.scenario.errors import ScenarioError
from mediator.scenario.reader import builtin_scenario
from mediator.scenario.run import Progress, Run
from mediator.scenario.seeds import derived_seed
from mediator.scenario.workloads.task import Task
from smccc.constants import optee_smc as smc
from tests.scenario.support import (
    ALPHA,
    Seen,
    guest,
    make,
    passes,
    problems,
    run,
    session,
)

VALUES = '[[guest.workload]]\nrun = "values"\n'
FOREVER = '[[guest.workload]]\nrun = "resident"\nsize = "64KiB"\nforever = true\n'
VICTIM = '[[guest]]\nname = "victim"\nram = "16MiB"\noutcome = "destroyed"\n' + FOREVER


def hostile(rounds: int = 2, more: str = "") -> str:
    return (
        f'[[guest]]\nname = "mallory"\nkernel = "hostile"\nram = "8MiB"\nrounds = {rounds}\n{more}'
    )


# Modes and seeds


@pytest.mark.parametrize("seed", range(1, 6))
def test_everything_at_once_where_every_await_is_a_switch_point(seed: int) -> None:
    result = Run(builtin_scenario("interleave"), seed=seed, load_session=session).execute()
    assert problems(result) == []
    assert result.totals.pins == 0
    assert all(one.looked_at for one in result.invariants)
    assert guest(result, "heir").id == guest(result, "victim").id


@pytest.mark.parametrize("name", ["hostile", "pressure"])
def test_a_builtin_scenario_passes(name: str) -> None:
    result = Run(builtin_scenario(name), load_session=session).execute()
    assert problems(result) == []
    assert result.end == "idle"


def test_another_seed_is_another_run() -> None:
    text = ALPHA + '[[guest.workload]]\nrun = "memrefs"\n'
    digests = [passes(text, seed=seed).digest for seed in (1, 2, 1)]
    assert digests[0] == digests[2]
    assert digests[0] != digests[1]


def test_progress_does_not_change_a_run() -> None:
    text = '[platform]\nmode = "interleave"\n' + ALPHA + VALUES
    seen: list[Progress] = []
    watched = make(text).execute(seen.append)
    assert watched.digest == make(text).execute().digest
    assert (seen[-1].done, seen[-1].guests) == (1, 1)
    assert seen[-1].calls == watched.totals.calls


def test_without_checkers_nothing_is_watched() -> None:
    result = make(ALPHA + VALUES, checkers=False).execute()
    assert (result.ok, result.checked, result.invariants) == (True, False, ())


def test_seeds_of_parts_do_not_depend_on_each_other() -> None:
    seeds = {derived_seed(1, "a"), derived_seed(2, "a"), derived_seed(1, "b"), derived_seed(1)}
    assert len(seeds) == 4
    assert all(0 <= seed < 1 << 64 for seed in seeds)


# What is counted


def test_the_numbers_of_a_guest_are_those_of_its_events() -> None:
    seen = Seen(
        events.CallStarted, machine_events.TrapEnter, events.RpcToGuest, host_events.PagesPinned
    )
    text = ALPHA + '[[guest.workload]]\nrun = "memrefs"\n'
    result = passes(text, listeners=[seen])
    alpha = guest(result, "alpha")
    count = {kind: sum(type(event) is kind for _, event in seen.events) for kind in seen.kinds}
    assert alpha.calls == count[events.CallStarted] == alpha.counters["calls"]
    assert alpha.traps == count[machine_events.TrapEnter] == alpha.operations["trap"]
    assert sum(alpha.rpcs.values()) == count[events.RpcToGuest]
    assert alpha.counters["rpcs"] == sum(alpha.rpcs.values()) - alpha.rpcs.get("FOREIGN_INTR", 0)
    assert alpha.pinned_peak >= alpha.pages_peak > 5
    assert 0 < alpha.created < alpha.ended <= result.totals.time
    assert result.totals.events > len(seen.events)
    assert result.totals.shadow_pages <= result.totals.shadow_cache


def test_both_conduits_and_a_driver_of_an_older_kernel() -> None:
    text = (
        ALPHA + 'conduit = "hvc"\nkernel = "linux-6.1"\nmigrate-every = 2\n'
        '[[guest.workload]]\nrun = "sessions"\n'
    )
    seen = Seen(machine_events.TrapEnter)
    alpha = guest(passes(text, listeners=[seen]), "alpha")
    traps = seen.of(machine_events.TrapEnter)
    assert {trap.hvc for trap in traps} == {True}
    assert (alpha.kernel, alpha.conduit, alpha.style) == ("linux-6.1", "hvc", "rpc-arg")
    assert alpha.counters["migrated_rpcs"] > 0
    assert smc.OPTEE_SMC_GET_THREAD_COUNT not in {trap.regs[0] for trap in traps}


# Events


def test_a_guest_is_destroyed_in_the_middle_of_an_rpc_and_its_id_used_again() -> None:
    text = (
        VICTIM + '[[event]]\ndo = "destroy"\nguest = "victim"\nrpc = 9\n'
        '[[guest]]\nname = "heir"\nram = "16MiB"\nlater = true\nsame-id-as = "victim"\n'
        + VALUES
        + '[[event]]\ndo = "create"\nguest = "heir"\ngone = "victim"\n'
    )
    result = passes(text)
    victim, heir = guest(result, "victim"), guest(result, "heir")
    assert (victim.outcome, heir.outcome) == ("destroyed", "done")
    assert victim.id == heir.id
    assert victim.ended <= heir.created
    destroyed, created = [text for _, text in result.story]
    assert destroyed.startswith("victim is destroyed mid-call, waiting for RPC SUSPEND; ")
    assert created == f"heir is created under the id of victim, {victim.id}"


@pytest.mark.parametrize("trigger", ['at = "3ms"', "call = 9", 'rpc = 3\nof = "other"'])
def test_what_a_destruction_can_wait_for(trigger: str) -> None:
    text = (
        VICTIM
        + '[[guest]]\nname = "other"\nram = "16MiB"\n[[guest.workload]]\nrun = "sessions"\n'
        + f'[[event]]\ndo = "destroy"\nguest = "victim"\n{trigger}\n'
    )
    result = passes(text)
    assert guest(result, "victim").outcome == "destroyed"
    assert guest(result, "other").outcome == "done"


def test_a_guest_destroyed_before_it_runs_leaves_nothing() -> None:
    result = passes(VICTIM + '[[event]]\ndo = "destroy"\nguest = "victim"\nat = 0\n')
    assert guest(result, "victim").traps == 0


def test_pages_that_are_shared_are_taken_and_stay_alive_until_the_last_pin_goes() -> None:
    text = (
        ALPHA + '[[guest.workload]]\nrun = "resident"\nsize = "64KiB"\nrounds = 9\n'
        '[[event]]\ndo = "balloon"\nguest = "alpha"\npages = 4\npinned = true\nrpc = 6\n'
    )
    seen = Seen(host_events.Stage2Changed, host_events.FramesReleased)
    result = passes(text, listeners=[seen])
    assert [text for _, text in result.story] == [
        "4 pages that it shares with the TEE are taken from alpha"
    ]
    taken = [
        t for t, e in seen.events if isinstance(e, host_events.Stage2Changed) and e[3] == ABSENT
    ]
    assert len(taken) == 4
    released = [t for t, e in seen.events if isinstance(e, host_events.FramesReleased)]
    assert len(released) == 1
    assert released[0] > taken[-1]


def test_a_balloon_that_gives_pages() -> None:
    text = (
        ALPHA + '[[guest.workload]]\nrun = "memrefs"\nrounds = 3\n'
        '[[event]]\ndo = "balloon"\nguest = "alpha"\npages = 100\ncall = 20\n'
        '[[event]]\ndo = "balloon"\nguest = "alpha"\npages = 99999\ncall = 30\n'
    )
    assert [text for _, text in passes(text).story] == [
        "100 pages are taken from alpha",
        "0 pages are taken from alpha",
    ]


def test_memory_denied_to_the_mediator_is_an_error_to_who_asks() -> None:
    text = (
        ALPHA + '[[guest.workload]]\nrun = "large-memory"\nfrom = "4MiB"\nsize = "4MiB"\n'
        'rounds = 40\ntolerate = ["BAD_PARAMETERS", "OUT_OF_MEMORY"]\n'
        '[[event]]\ndo = "deny-memory"\nat = "200us"\nfor = "300us"\n'
    )
    (one,) = guest(passes(text), "alpha").workloads
    assert 0 < one.tolerated < one.rounds


def test_events_that_come_too_late_change_nothing() -> None:
    text = ALPHA + VALUES + '[[event]]\ndo = "destroy"\nguest = "alpha"\nat = "1s"\n'
    result = passes(text)
    assert result.story == ((1_000_000_000, "destroy: alpha is not there any more"),)


# Guests that are not honest


def test_a_hostile_guest_disturbs_nobody_and_leaves_nothing() -> None:
    result = passes(ALPHA + VALUES + hostile(4, "vcpus = 3\n"))
    mallory = guest(result, "mallory")
    assert mallory.hostile is not None
    assert mallory.hostile.attacks == 2 * 4 * 8
    assert set(mallory.hostile.statuses) > {"EBADADDR", "ERESUME", "OK", "RPC", "undefined"}
    assert mallory.outcome == "done"


def test_chosen_attacks_only() -> None:
    result = passes(hostile(5, 'vcpus = 1\nattacks = ["threads"]\n'))
    mallory = guest(result, "mallory")
    assert mallory.hostile is not None
    assert dict(mallory.hostile.statuses) == {"ERESUME": 35}


def test_a_lying_driver_hurts_itself_only() -> None:
    liar = (
        '[[guest]]\nname = "liar"\nram = "16MiB"\noutcome = "any"\nlies = ["an error"]\n'
        'lie-every = 2\n[[guest.workload]]\nrun = "sessions"\nrounds = 3\ntolerate = ["any"]\n'
    )
    result = passes(ALPHA + VALUES + liar)
    assert guest(result, "liar").workloads[0].tolerated > 0


# What counts as a problem


def test_a_missing_rpc_or_too_few_calls_are_problems() -> None:
    result = run(ALPHA + VALUES + '[expect]\ncalls = 10000\nrpcs = ["FS", "GET_TIME"]\n')
    calls = result.totals.calls
    assert problems(result) == [
        "expectation: no RPC FS occurred",
        "expectation: no RPC GET_TIME occurred",
        f"expectation: {calls} calls, not at least 10000",
    ]


def test_a_run_that_is_cut_off_is_a_problem() -> None:
    text = ALPHA + VALUES
    for limit in ("steps = 3", 'time = "20us"'):
        result = run(f"[limits]\n{limit}\n" + text)
        assert result.end == limit.split()[0]
        assert problems(result)[0] == f"run: was cut off by its limit of {result.end}"
        assert "alpha: is stuck, not done" in problems(result)
        assert result.totals.pins == 0


def test_a_guest_that_was_to_be_destroyed_and_was_not() -> None:
    text = ALPHA + 'outcome = "destroyed"\n' + VALUES
    result = run(text + '[[event]]\ndo = "destroy"\nguest = "alpha"\ncall = 999\n')
    assert problems(result) == ["alpha: is done, not destroyed"]


def test_a_guest_that_the_tee_refuses() -> None:
    text = "[secure-world]\nguests = 1\n" + ALPHA + VALUES
    result = run(text + '[[guest]]\nname = "beta"\nram = "16MiB"\n')
    assert problems(result) == ["beta: is refused, not done: the TEE refused it"]
    assert [text for _, text in result.story] == ["beta is refused: the TEE refused it"]
    beta = guest(result, "beta")
    assert (beta.id, beta.outcome, beta.calls) == (-1, "refused", 0)


def test_a_guest_that_nothing_creates() -> None:
    text = ALPHA + VALUES + '[[guest]]\nname = "late"\nlater = true\nram = "16MiB"\n'
    result = run(text + '[[event]]\ndo = "create"\nguest = "late"\nof = "alpha"\nrpc = 999\n')
    assert problems(result) == ["late: is never created, not done"]


def test_a_guest_that_waits_for_ever_says_for_what() -> None:
    text = ALPHA + '[[guest.workload]]\nrun = "signals"\ninstances = 2\nrounds = 2\n'
    simulation = make(text)
    # The signaller gives up: the other one waits for a signal that nobody sends.
    simulation.actors[0].tasks.pop()
    result = simulation.execute()
    found = problems(result)
    assert found[0] == "alpha: is stuck, not done"
    assert found[1] == "alpha: thread boot waits for the end of signals/0"
    assert found[2].startswith("alpha: thread signals/0 waits for ")
    assert "notification" in found[2]
    assert result.totals.pins == 0


def test_a_finding_about_an_honest_guest_is_a_problem() -> None:
    def noted(text: str) -> list[str]:
        simulation = make(text + VALUES)
        sink = simulation.platform.sink
        assert sink is not None
        simulation.machine.at(10_000, lambda: sink(events.Finding(1, "rule", "planted")))
        return problems(simulation.execute())

    assert noted(ALPHA) == ["alpha: 1 findings, not at most 0: rule: planted"]
    assert noted(ALPHA + "findings = 1\n") == []


def test_a_violated_invariant_is_a_problem() -> None:
    simulation = make(ALPHA + VALUES)
    watch = simulation.platform.watch
    assert isinstance(watch, Watch)
    watch.report("I3", 1, "planted")
    result = simulation.execute()
    assert problems(result) == ["invariant I3: I3 guest 1: planted"]
    assert [one.violations for one in result.invariants if one.violations] == [
        ("I3 guest 1: planted",)
    ]


def test_a_client_that_crashes_is_a_problem() -> None:
    async def crash(_: Task) -> None:
        raise KeyError("oops")

    simulation = make(ALPHA + VALUES)
    (task,) = simulation.actors[0].tasks
    task.kind = attrs.evolve(task.kind, body=crash)
    assert problems(simulation.execute()) == ["alpha: thread values/0: KeyError('oops')"]


def test_pins_that_are_left_are_a_problem() -> None:
    simulation = make(ALPHA + VALUES)
    host = simulation.platform.host
    pin = host.pin_pages

    def twice(guest: int, ipas: bytes) -> bytes | None:
        pin(guest, ipas)
        return pin(guest, ipas)

    simulation.platform.tee.host._host.pin_pages = twice  # type: ignore[attr-defined]
    result = simulation.execute()
    assert result.totals.pins > 0
    assert f"end: {result.totals.pins} pages are still pinned" in problems(result)
    assert any(problem.startswith("invariant I3: ") for problem in problems(result))


def test_a_replayed_guest_needs_a_reader() -> None:
    text = '[[guest]]\nname = "r"\nkernel = "replay"\n'
    with pytest.raises(ScenarioError, match=r"guest\[0\].trace: a replayed guest needs a reader"):
        make(text, load_session=None)
