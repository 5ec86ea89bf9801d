# SPDX-License-Identifier: BSD-2-Clause
"""The trace: complete, valid by the importer's rules, and it says what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from mediator.scenario.perfetto import Picture
from mediator.scenario.reader import builtin_scenario
from mediator.scenario.result import Result
from mediator.scenario.run import Run
from mediator.scenario.trace_file import TraceFile
from secure_world import events as tee_events
from tests.scenario.support import ALPHA, HEADER, Seen, guest, make, parse_scenario, session
from tests.scenario.trace_check import Checked, Track, load


def traced(run: Run | str, path: Path, **options: Any) -> Result:
    scenario = (
        parse_scenario((HEADER + run).encode(), "x") if isinstance(run, str) else run.scenario
    )
    with TraceFile(path) as file:
        picture = Picture(file, scenario.machine.pcpus, scenario.mediator.client_id_base)
        listeners = [picture, *options.pop("listeners", [])]
        simulation = Run(scenario, listeners=listeners, load_session=session, **options)
        picture.attach(simulation.machine)
        return simulation.execute()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    seen = Seen(
        machine_events.TrapEnter,
        machine_events.VirqAcknowledged,
        events.RpcToGuest,
        events.BufferTaken,
        host_events.PagesPinned,
        tee_events.ThreadStarted,
        tee_events.ThreadResumed,
        tee_events.ThreadSuspended,
    )
    path = tmp_path_factory.mktemp("trace") / "run.json"
    scenario = builtin_scenario("interleave")
    result = traced(Run(scenario, load_session=session), path, listeners=[seen])
    return Scene(load(path), result, seen)


class Scene:
    def __init__(self, trace: Checked, result: Result, seen: Seen) -> None:
        self.trace = trace
        self.result = result
        self.seen = seen

    def count(self, *kinds: type) -> int:
        return sum(isinstance(event, kinds) for _, event in self.seen.events)


def test_there_is_a_track_for_each_vcpu_the_mediator_and_each_tee_thread(scene: Scene) -> None:
    trace = scene.trace
    for one in scene.result.guests:
        tracks = trace.named(f"guest {one.id}: {one.name}")
        # A vCPU that was never switched on has none.
        assert set(tracks) <= {f"vCPU {index}" for index in range(one.vcpus)}
        assert "vCPU 0" in tracks
    pcpus = {f"pCPU {index}" for index in range(scene.result.pcpus)}
    assert set(trace.named("machine")) == pcpus | {"control"}
    assert set(trace.named("mediator")) == pcpus | {"control"}
    threads = {
        (e[0], e[1]) for _, e in scene.seen.events if isinstance(e, tee_events.ThreadStarted)
    }
    names = trace.named("OP-TEE")
    assert len(names) >= len(threads)
    assert all(": thread " in name for name in names)


def test_every_trap_is_a_slice_of_its_vcpu(scene: Scene) -> None:
    slices = [
        one
        for (pid, _), found in scene.trace.slices.items()
        if pid >= 10
        for one in found
        if "x0" in one.args
    ]
    assert len(slices) == scene.count(machine_events.TrapEnter)
    assert all(one.end - one.start > 0 for one in slices)
    assert {"CALL_WITH_ARG", "CALL_RETURN_FROM_RPC"} <= {one.name for one in slices}


def test_every_entry_of_a_tee_thread_is_a_slice(scene: Scene) -> None:
    slices = [one for (pid, _), found in scene.trace.slices.items() if pid == 3 for one in found]
    entries = scene.count(tee_events.ThreadStarted, tee_events.ThreadResumed)
    assert len(slices) == entries
    asked = [one.args["asks"] for one in slices if "asks" in one.args]
    assert len(asked) == scene.count(tee_events.ThreadSuspended)
    assert {"ALLOC", "LOAD_TA", "SHM_ALLOC"} <= set(asked)


def arrows(trace: Checked, kind: str) -> list[tuple[Track, Track]]:
    """(from, to) of the arrows of a kind."""
    flows = [points for points in trace.flows.values() if points[0][3] == kind]
    assert all([phase for phase, _, _, _ in points] == ["s", "f"] for points in flows)
    return [(begin[1], end[1]) for begin, end in flows]


def test_arrows_lead_from_an_rpc_to_the_guest_and_back(scene: Scene) -> None:
    trace = scene.trace
    wanted = sum(
        isinstance(e, events.RpcToGuest) and e.function & 0xFFFF != 4 for _, e in scene.seen.events
    )
    requests, answers = arrows(trace, "RPC request"), arrows(trace, "RPC answer")
    services = arrows(trace, "RPC service")
    # Where every await is a switch point, pCPUs' clocks are far apart and some would go back.
    assert wanted * 0.8 < len(requests) <= wanted
    assert len(answers) > len(requests) // 2
    assert all(tee[0] == 3 and guest[0] >= 10 for tee, guest in requests)
    assert all(tee[0] == 3 and guest[0] >= 10 for guest, tee in answers)
    assert all(out[0] == back[0] for out, back in services)
    # Some are answered from another vCPU than the one that they went to.
    assert any(out != back for out, back in services)


def test_an_arrow_leads_from_an_interrupt_to_the_vcpu_that_takes_it(scene: Scene) -> None:
    taken = arrows(scene.trace, "vIRQ")
    assert 0 < len(taken) <= scene.count(machine_events.VirqAcknowledged)
    assert all(source[0] == 1 and target[0] >= 10 for source, target in taken)


def test_counters_of_pages_end_at_zero_and_peak_as_reported(scene: Scene) -> None:
    for one in scene.result.guests:
        pids = [
            pid
            for pid, name in scene.trace.processes.items()
            if name == f"guest {one.id}: {one.name}"
        ]
        (pid,) = pids
        for name, peak in (("shared pages", one.pages_peak), ("pinned pages", one.pinned_peak)):
            values = [value for _, value in scene.trace.counters[pid, name]]
            assert (values[0], values[-1], max(values)) == (0, 0, peak)


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    text = ALPHA + '[[guest.workload]]\nrun = "memrefs"\n'
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    assert traced(text, first).digest == traced(text, second).digest
    assert first.read_bytes() == second.read_bytes()


def test_watching_does_not_change_the_run(tmp_path: Path) -> None:
    text = ALPHA + '[[guest.workload]]\nrun = "memrefs"\n'
    assert traced(text, tmp_path / "a.json").digest == make(text).execute().digest


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>\\u001b[31m[red]"
    text = f'[[guest]]\nname = "{name}"\nram = "8MiB"\n'
    path = tmp_path / "a.json"
    result = traced(text, path)
    assert guest(result, "<script>\x1b[31m[red]").outcome == "done"
    assert "guest 1: <script>\\x1b[31m[red]" in load(path).processes.values()
    assert "\x1b" not in path.read_text("utf-8")


# The file itself


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old", encoding="utf-8")
    with TraceFile(path) as file:
        file.process(1, "p")
        assert path.read_text("utf-8") == "old"
    assert load(path).processes == {1: "p"}
    assert list(tmp_path.iterdir()) == [path]


def broken_off(path: Path, error: type[BaseException], begun: bool) -> None:
    with TraceFile(path) as file:
        track = file.track(1, 1, "t")
        file.process(1, "p")
        file.begin(track, "key", "unfinished", 5)
        file.begin(track, "key", "inner", 7)
        file.begun = begun
        raise error


def test_a_run_that_fails_leaves_its_trace_and_one_that_is_broken_off_does_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.json"
    for error, begun, left in (
        (ValueError, True, True),
        (ValueError, False, False),
        (KeyboardInterrupt, True, False),
    ):
        with pytest.raises(error):
            broken_off(path, error, begun)
        assert path.exists() == left
        if left:
            names = [(s.start, s.end, s.name) for s in load(path).track("p", "t")]
            assert names == [(7, 9, "inner"), (5, 9, "unfinished")]
            path.unlink()
        assert not list(tmp_path.iterdir())


def test_slices_nest_whatever_the_times_are(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with TraceFile(path) as file:
        file.process(1, "p")
        track = file.track(1, 1, "t")
        file.begin(track, "a", "a", 100)
        file.begin(track, "b", "b", 90)
        file.moment(track, "moment", 95, 50)
        file.end(track, "nothing", 10)
        file.end(track, "a", 99)
        file.begin(track, "c", "c", 50)
        file.end(track, "c", 50)
    slices = load(path).track("p", "t")
    assert [(s.name, s.start, s.end) for s in slices] == [
        ("moment", 100, 150),
        ("b", 100, 150),
        ("a", 100, 150),
        ("c", 150, 152),
    ]


def test_a_long_trace_is_written_as_it_happens(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "run.json") as file:
        file.process(1, "p")
        track = file.track(1, 1, "t")
        for index in range(5000):
            file.instant(track, "x" * 40, index)
        (part,) = tmp_path.iterdir()
        assert part.stat().st_size > 200_000
        assert sum(map(len, file._pending)) < 100_000


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), TraceFile(tmp_path / "no" / "run.json"):
        pass
