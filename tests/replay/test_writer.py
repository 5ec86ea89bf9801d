# SPDX-License-Identifier: BSD-2-Clause
"""Writing traces: what is written is read back, and fits the schema."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from specs.replay.reader import load_trace
from specs.replay.writer import create_trace
from tests.replay.golden import ALL, SESSION, trace

GOLDEN = Path(__file__).parent / "golden-trace-v1.jsonl"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_round_trip(path: Path, name: str, tmp_path: Path) -> None:
    whole = trace(path)
    with create_trace(tmp_path / name, whole.meta.values) as writer:
        for record in whole.records:
            writer.write(record)
    again = load_trace(tmp_path / name)
    assert again.records == whole.records
    assert again.meta.values == whole.meta.values


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one.gz", "other.gz"):
        with create_trace(tmp_path / name, {"scenario": "s"}) as writer:
            for record in trace(SESSION).records[:20]:
                writer.write(record)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_the_header_names_format_and_version(tmp_path: Path) -> None:
    with create_trace(tmp_path / "t", {"threads": 2}):
        pass
    first = json.loads((tmp_path / "t").read_text("utf-8"))
    assert first == {"format": "optee-smc-trace", "version": 1, "meta": {"threads": 2}}


def test_golden_file_of_version_1(tmp_path: Path) -> None:
    """Readers accept every version that was ever written; this is what version 1 looks like."""
    schema = json.loads(
        resources.files("specs.replay").joinpath("trace.schema.json").read_text("utf-8")
    )
    for line in GOLDEN.read_text("utf-8").splitlines():
        jsonschema.validate(json.loads(line), schema)
    whole = load_trace(GOLDEN)
    assert len(whole.records) == 9
    with create_trace(tmp_path / "t", whole.meta.values) as writer:
        for record in whole.records:
            writer.write(record)
    assert (tmp_path / "t").read_bytes() == GOLDEN.read_bytes()
