# SPDX-License-Identifier: BSD-2-Clause
"""One changed character in any expectation is noticed; in information it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from specs.vectors.case import Verdict
from specs.vectors.errors import InputError
from specs.vectors.files import Options, run_file
from specs.vectors.model_target import ModelTarget
from tests.vectors.golden import (
    ABI_FILES,
    Path_,
    Row,
    behaviour,
    change,
    expectations,
    leaves,
    run,
    text,
)

CHANGES_PER_SCENARIO = 3

NO_EXPECTATION = {
    "function ids": (),
    # What the number and the class of a message are for, nobody can tell.
    "messages": ("id", "class"),
    # A size may change without changing a page, and then nothing else does.
    "page lists": ("id", "size"),
}
"""Fields of the wire vectors that say nothing about the wire."""


def noticed(row: Row) -> bool:
    try:
        return bool(run(row).differences)
    except InputError:
        return True


def abi_rows() -> list[Row]:
    return behaviour(kind="abi")


@pytest.mark.parametrize("part", range(4))
def test_every_scenario_notices(part: int) -> None:
    random = Random(f"behaviour {part}")
    for row in abi_rows()[part::4]:
        paths = expectations(row)
        for path in random.sample(paths, min(len(paths), CHANGES_PER_SCENARIO)):
            changed = json.loads(json.dumps(row))
            done = change(changed, path, random)
            assert noticed(changed), (row["id"], done)


@pytest.mark.parametrize(
    "field",
    ["out", "mem", "pins", "done", "ok", "found", "undef", "handled_by", "regs", "msg", "rpc_msg"],
)
def test_every_kind_of_field_notices(field: str) -> None:
    """Rare fields too, which a sample of all leaves seldom hits."""
    random = Random(field)
    found: list[tuple[Row, Path_]] = [
        (row, path)
        for row in abi_rows()
        for path in expectations(row)
        if (path[2] if path[2] != "sw" else path[4]) == field
    ]
    assert found
    for row, path in random.sample(found, min(len(found), 20)):
        changed = json.loads(json.dumps(row))
        done = change(changed, path, random)
        assert noticed(changed), (row["id"], done)


def test_information_is_not_compared() -> None:
    for row in abi_rows()[::7]:
        for step in row["steps"]:
            for counters in step.get("acct", {}).values():
                for name in counters:
                    counters[name] += 1
            if "preempt_checks" in step:
                step["preempt_checks"] += 1
        row["id"] = row["title"] = row["cat"] = row["note"] = "anything"
        assert not run(row).differences


def _changed_line(line: bytes, without: tuple[str, ...], random: Random) -> tuple[bytes, str]:
    row = json.loads(line)
    paths = [path for path in leaves(row) if path[0] not in without]
    by_field: dict[str, list[Path_]] = {}
    for path in paths:
        by_field.setdefault(".".join(str(key) for key in path if isinstance(key, str)), []).append(
            path
        )
    path = random.choice(by_field[random.choice(sorted(by_field))])
    done = change(row, path, random)
    return json.dumps(row).encode(), done


@pytest.mark.parametrize(
    ("kind", "changes"), [("function ids", 200), ("messages", 300), ("page lists", 120)]
)
def test_wire_vectors_notice(kind: str, changes: int, tmp_path: Path) -> None:
    random = Random(kind)
    lines = text(ABI_FILES[kind]).splitlines()
    file = tmp_path / "changed"
    for _ in range(changes):
        number = random.randrange(len(lines))
        line, done = _changed_line(lines[number], NO_EXPECTATION[kind], random)
        file.write_bytes(line + b"\n")
        try:
            result = run_file(file, Options(ModelTarget, "reference"))
        except InputError:
            continue
        assert result.count(Verdict.FAILED), (number, done)


TABLES: dict[str, Callable[[Path_], bool]] = {
    "constants": lambda path: (
        path[-1] in ("hex", "dec", "signed", "u32")
        or path[0] == "function_ids"
        or path[:2]
        in (
            ("derived", "optee_msg_and_smc_macros"),
            ("derived", "service_uids_as_returned_in_w0_w3"),
        )
    ),
    "structure layouts": lambda path: (
        path[0] not in ("_format", "variants")
        and path[-1] in ("offset", "size", "sizeof", "alignof", "kind", "name")
    ),
    "register tables": lambda path: (
        path[-1] in ("value", "fid", "type", "convention", "owner", "func", "cmd", "name")
        or path[-2:] == ("calls", "w3")
        or path[-2:-1] == ("function_ids",)
    ),
}
"""Which leaves of the tables from headers are values; the others are prose and provenance."""


@pytest.mark.parametrize("kind", TABLES)
def test_header_tables_notice(kind: str, tmp_path: Path) -> None:
    random = Random(kind)
    document: Any = json.loads(text(ABI_FILES[kind]))
    paths = [path for path in leaves(document) if "sources" not in path and TABLES[kind](path)]
    file = tmp_path / "changed.json"
    for path in random.sample(paths, 40):
        changed = json.loads(json.dumps(document))
        done = change(changed, path, random)
        file.write_text(json.dumps(changed), encoding="utf-8")
        try:
            result = run_file(file, Options(ModelTarget, "reference"))
        except InputError:
            continue
        assert result.count(Verdict.FAILED), done
