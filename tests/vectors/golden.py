# SPDX-License-Identifier: BSD-2-Clause
"""The golden files of the tests, and builders for scenarios of our own."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from specs.vectors.model_target import ModelTarget
from specs.vectors.play import Played, play
from specs.vectors.reader import read_scenario
from specs.vectors.source import Value

DATA = Path(__file__).parent.parent / "data"
BEHAVIOUR = DATA / "vectors" / "mediator_behaviour.jsonl.gz"
ABI_FILES = {
    "constants": DATA / "abi" / "constants.json.gz",
    "structure layouts": DATA / "abi" / "layouts.json.gz",
    "register tables": DATA / "abi" / "register_tables.json.gz",
    "function ids": DATA / "abi" / "function_id_vectors.jsonl.gz",
    "messages": DATA / "abi" / "message_vectors.jsonl.gz",
    "page lists": DATA / "abi" / "page_list_vectors.jsonl.gz",
}

Row = dict[str, Any]
Path_ = tuple[str | int, ...]


def text(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


@cache
def _behaviour() -> tuple[Row, ...]:
    return tuple(json.loads(line) for line in text(BEHAVIOUR).splitlines())


def behaviour(**wanted: str) -> list[Row]:
    """A fresh copy of the scenarios whose fields have these values."""
    return copy.deepcopy(
        [row for row in _behaviour() if all(row.get(k, "") == v for k, v in wanted.items())]
    )


def one(**wanted: str) -> Row:
    """A fresh copy of the first scenario whose fields have these values."""
    return copy.deepcopy(
        next(row for row in _behaviour() if all(row.get(k, "") == v for k, v in wanted.items()))
    )


def run(row: Row, *, target: Any = ModelTarget, preset: str = "reference") -> Played:
    return play(read_scenario(Value(row, "test", 1)), target, preset)


def leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


def _calls(calls: list[Row], path: Path_) -> Iterator[Path_]:
    for index, call in enumerate(calls):
        for key in ("regs", "msg", "rpc_msg"):
            yield from leaves(call.get(key, []), (*path, index, key))
        for number, event in enumerate(call.get("meanwhile", [])):
            inner = event.get("smc", {})
            place = (*path, index, "meanwhile", number, "smc")
            yield from leaves(inner.get("out", []), (*place, "out"))
            yield from _calls(inner.get("sw", []), (*place, "sw"))


def expectations(row: Row) -> list[Path_]:
    """Where the recorded behaviour of a scenario stands; the rest is input or information."""
    found: list[Path_] = []
    for index, step in enumerate(row["steps"]):
        for key in ("out", "mem", "pins", "undef", "handled_by", "done", "ok", "found"):
            if key in step:
                found += leaves(step[key], ("steps", index, key))
        found += _calls(step.get("sw", []), ("steps", index, "sw"))
    return found


def change(row: Row, path: Path_, random: Random) -> str:
    """Change one character of the value at ``path``; what was done, for a message."""
    holder: Any = row
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    new: Any
    if isinstance(old, bool):
        new = not old
    else:
        written = str(old)
        place = random.randrange(len(written))
        letters = "0123456789" if isinstance(old, int) else "0123456789abcdef"
        letter = random.choice([one for one in letters if one != written[place]])
        changed = written[:place] + letter + written[place + 1 :]
        new = int(changed) if isinstance(old, int) else changed
        if new == old:  # a leading zero
            new = old + 1
    holder[path[-1]] = new
    return f"{path}: {old!r} became {new!r}"


RAM = {"ipa": "0x40000000", "pages": 64, "kind": "ram", "pa": "0x880100000", "pa_step": 8192}


def scenario(*steps: Row, kind: str = "abi", guests: int = 1, **fields: Any) -> Row:
    """A scenario with one or two guests of 256 KiB."""
    maps = [
        [{**RAM, "pa": hex(0x880100000 + guest * 0x1000000)}, *fields.pop(f"map{guest + 1}", [])]
        for guest in range(guests)
    ]
    row: Row = {
        "id": "own",
        "cat": "own",
        "title": "of our own",
        "kind": kind,
        "threads": 2,
        "domains": [
            {"id": index + 1, "bits": fields.get("bits", 64), "map": pages}
            for index, pages in enumerate(maps)
        ],
        "steps": list(steps),
    }
    fields.pop("bits", None)
    return {**row, **fields}


def secure(*regs: str, reply: tuple[str, ...] = ("0x0", "0x0", "0x0", "0x0"), **more: Any) -> Row:
    padded = [*regs, *["0x0"] * (8 - len(regs))]
    return {"regs": padded, "reply": list(reply), **more}


def create(dom: int = 1) -> Row:
    sw = [secure("0xb200000d", hex(dom + 1))]
    return {"op": "create", "dom": dom, "tee": True, "sw": sw, "ok": True, "pins": {}}


def destroy(dom: int = 1, **more: Any) -> Row:
    sw = [secure("0xb200000e", hex(dom + 1))]
    return {"op": "destroy", "dom": dom, "sw": sw, "done": True, "pins": {}, **more}


def registers(*regs: str) -> list[str]:
    return [*regs, *["0x0"] * (8 - len(regs))]


def smc(*regs: str, out: tuple[str, ...] = ("0x0",), dom: int = 1, **more: Any) -> Row:
    """A call; ``out``: the first registers afterwards, the others keep their values."""
    before = registers(*regs)
    step: Row = {
        "op": "smc",
        "dom": dom,
        "via": "smc64",
        "regs": before,
        "out": [*out, *before[len(out) :]],
        "pins": {},
    }
    return {**step, **more}


def message(cmd: int, params: list[tuple[int, int, int, int]], session: int = 0) -> str:
    head = [cmd, 0, session, 0, 0, 0, 0, len(params)]
    data = b"".join(word.to_bytes(4, "little") for word in head)
    return (data + b"".join(w.to_bytes(8, "little") for p in params for w in p)).hex()


def seen(at: str, cmd: int, params: list[Row], session: int = 0) -> Row:
    """The message as the secure world is expected to see it."""
    return {
        "at": at,
        "cmd": cmd,
        "func": 0,
        "session": session,
        "cancel_id": 0,
        "ret": "0x0",
        "ret_origin": 0,
        "num_params": len(params),
        "params": params,
    }


def write(ipa: str, data: str, dom: int = 1) -> Row:
    return {"op": "write", "dom": dom, "at": [[ipa, data]]}
