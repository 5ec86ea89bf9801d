# SPDX-License-Identifier: BSD-2-Clause
"""The built-in scenario, run by the command in two processes: the same bytes, and the known digest.

The digest covers every event with its virtual time. It changes with every change of what mediator,
guests, hypervisor or secure world do or cost; then the new one is written with

    optee-mediator run --json | python -c "import json, sys; print(json.load(sys.stdin)['digest'])"

into ``data/default.digest``, in the commit that means it to change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.scenario.support import DATA, schema
from tests.scenario.trace_check import load

ROOT = Path(__file__).parents[2]
CODE = "from mediator.command import main; main(prog_name='optee-mediator')"


def start(folder: Path, hash_seed: str) -> subprocess.Popen[bytes]:
    # The same relative name in both, because the report says where the trace is.
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "run", "--json", "--trace", "trace.json"],
        cwd=folder,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, bytes, Path]]:
    """(standard output, trace, its path) of two processes at the same time."""
    folders = [tmp_path_factory.mktemp(f"run{number}") for number in range(2)]
    processes = [start(folder, str(seed)) for folder, seed in zip(folders, (0, 4711), strict=True)]
    found = []
    for folder, process in zip(folders, processes, strict=True):
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err.decode()
        trace = folder / "trace.json"
        found.append((out, trace.read_bytes(), trace))
    return found


def document(run: tuple[bytes, bytes, Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run[0])
    return found


def test_two_processes_with_different_hash_seeds_agree(
    runs: list[tuple[bytes, bytes, Path]],
) -> None:
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] == runs[1][1]


def test_the_digest_is_the_committed_one(runs: list[tuple[bytes, bytes, Path]]) -> None:
    known = (DATA / "default.digest").read_text("utf-8").strip()
    assert document(runs[0])["digest"] == known, "see the docstring of this module"


def test_the_built_in_scenario_shows_everything(runs: list[tuple[bytes, bytes, Path]]) -> None:
    found = document(runs[0])
    jsonschema.validate(found, schema("report"))
    assert found["problems"] == []
    assert found["ok"]
    assert (found["totals"]["pins"], found["totals"]["violations"]) == (0, 0)
    guests = {guest["name"]: guest for guest in found["guests"]}
    two = [g for g in guests.values() if (g["kernel"], g["vcpus"]) == ("linux-6.12", 2)]
    assert len(two) >= 2
    assert any(g["kernel"] == "linux-6.1" for g in guests.values())
    assert {g["style"] for g in guests.values()} == {"", "rpc-arg", "classic"}
    assert {g["conduit"] for g in guests.values()} == {"smc", "hvc"}
    assert guests["mallory"]["hostile"]["attacks"] > 50
    replay = guests["recorded"]["replay"]
    assert replay["alike"] == replay["answers"] > 30
    assert guests["victim"]["outcome"] == "destroyed"
    assert guests["heir"]["outcome"] == "done"
    assert guests["heir"]["id"] == guests["victim"]["id"]
    assert any("mid-call" in text or "in flight" in text for _, text in found["story"])
    assert max(g["pages_peak"] for g in guests.values()) > 64 << 8
    assert {"ALLOC", "FREE", "FS", "LOAD_TA", "NOTIFICATION", "SHM_ALLOC"} <= set(
        found["totals"]["rpcs"]
    )
    assert all(w["state"] != "failed" for g in guests.values() for w in g["workloads"])
    assert sum(g["checks"] for g in guests.values()) > 200


def test_its_trace_is_valid(runs: list[tuple[bytes, bytes, Path]]) -> None:
    trace = load(runs[0][2])
    assert {"RPC request", "RPC service", "RPC answer", "vIRQ"} == {
        points[0][3] for points in trace.flows.values()
    }
    assert any("mallory" in name for name in trace.processes.values())
