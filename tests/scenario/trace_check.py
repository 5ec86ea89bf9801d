# SPDX-License-Identifier: BSD-2-Clause
"""A strict reader of trace files: what Perfetto's importer needs, and would drop silently otherwise."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import attrs

Trace = dict[str, Any]
Track = tuple[int, int]


@attrs.frozen
class Slice:
    start: int
    end: int
    name: str
    args: dict[str, Any]


@attrs.define
class Checked:
    processes: dict[int, str] = attrs.Factory(dict)
    threads: dict[Track, str] = attrs.Factory(dict)
    slices: dict[Track, list[Slice]] = attrs.Factory(lambda: defaultdict(list))
    instants: list[tuple[Track, str]] = attrs.Factory(list)
    counters: dict[tuple[int, str], list[tuple[int, int]]] = attrs.Factory(
        lambda: defaultdict(list)
    )
    flows: dict[int, list[tuple[str, Track, int, str]]] = attrs.Factory(lambda: defaultdict(list))

    def named(self, process: str) -> list[str]:
        """Names of the tracks of a process."""
        (pid,) = [pid for pid, name in self.processes.items() if name == process]
        return [name for (p, _), name in self.threads.items() if p == pid]

    def track(self, process: str, thread: str) -> list[Slice]:
        (key,) = [
            key
            for key, name in self.threads.items()
            if name == thread and self.processes[key[0]] == process
        ]
        return self.slices[key]


def nanoseconds(value: object) -> int:
    """``ts`` and ``dur`` are decimal microseconds with three places, parsed without loss."""
    assert isinstance(value, float | int)
    assert value >= 0
    return round(value * 1000)


def load(path: Path) -> Checked:
    """Read and check a trace file."""
    document: Trace = json.loads(path.read_text("utf-8"))
    assert list(document) == ["displayTimeUnit", "traceEvents"]
    assert document["displayTimeUnit"] == "ns"
    checked = Checked()
    for event in document["traceEvents"]:
        phase = event["ph"]
        track = (event["pid"], event["tid"])
        assert all(type(number) is int for number in track)
        if phase == "M":
            _metadata(checked, event, track)
            continue
        time = nanoseconds(event["ts"])
        if phase == "X":
            end = time + nanoseconds(event["dur"])
            checked.slices[track].append(Slice(time, end, event["name"], event["args"]))
        elif phase == "i":
            assert event["s"] == "t"
            checked.instants.append((track, event["name"]))
        elif phase == "C":
            (value,) = event["args"].values()
            assert type(value) is int
            checked.counters[event["pid"], event["name"]].append((time, value))
        else:
            assert phase in "stf"
            assert phase == "s" or event["bp"] == "e"
            assert event["cat"] == event["name"]
            checked.flows[event["id"]].append((phase, track, time, event["cat"]))
    for track in [*checked.slices, *[track for track, _ in checked.instants]]:
        assert track in checked.threads
        assert track[0] in checked.processes
    _check_nesting(checked)
    _check_flows(checked)
    return checked


def _metadata(checked: Checked, event: Trace, track: Track) -> None:
    name = event["name"]
    if name == "process_name":
        assert track[0] not in checked.processes
        checked.processes[track[0]] = event["args"]["name"]
    elif name == "thread_name":
        assert track not in checked.threads
        checked.threads[track] = event["args"]["name"]
    else:
        assert name in ("process_sort_index", "thread_sort_index")
        assert type(event["args"]["sort_index"]) is int


def _check_nesting(checked: Checked) -> None:
    """Slices of a track contain each other or do not touch."""
    for slices in checked.slices.values():
        open_: list[Slice] = []
        for one in sorted(slices, key=lambda s: (s.start, -s.end)):
            assert one.end > one.start
            while open_ and open_[-1].end <= one.start:
                open_.pop()
            assert not open_ or one.end <= open_[-1].end, (open_[-1], one)
            open_.append(one)


def _check_flows(checked: Checked) -> None:
    """An arrow starts once, never goes back in its own chain, and each point lies inside a slice."""
    for points in checked.flows.values():
        times = [time for _, _, time, _ in points]
        assert times == sorted(times)
        phases = [phase for phase, _, _, _ in points]
        assert phases.count("s") == 1
        assert phases[0] == "s"
        assert phases.count("f") <= 1
        assert "f" not in phases[:-1]
        assert len({kind for _, _, _, kind in points}) == 1
        for _, track, time, _ in points:
            assert any(s.start < time < s.end for s in checked.slices[track]), (track, time)
