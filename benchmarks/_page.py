# SPDX-License-Identifier: BSD-2-Clause
"""Turns what the benchmarks report as JSON into a page of the documentation."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = "make speed"
VERDICTS = {True: "yes", False: "**no**", None: ""}

HEAD = """\
# Speed

Written by `{command}`, which makes it anew; do not edit.

Every figure is a ratio to a baseline that is measured side by side in the same run, the median of its rounds; times are of
the process, not of the wall. So the ratios hold for other machines, the times only for this one. On a machine that is busy
with other work the ratios rise by a tenth and more: a benchmark fails at its target times 1.15, and the column
*target met* has no slack.

| | |
| --- | --- |
"""


def machine() -> dict[str, str]:
    """What was measured, and on what. No name of a machine or of a folder."""
    processors = os.cpu_count() or 1
    found = {
        "commit": _commit(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "NumPy": metadata.version("numpy"),
        "system": f"{platform.system()} on {platform.machine()}, {processors} processors",
    }
    if hasattr(os, "getloadavg"):
        found["load before"] = f"{os.getloadavg()[0] / processors:.1f} for each processor"
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _commit() -> str:
    commit = _git("rev-parse", "--short=10", "HEAD")
    if not commit:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}, with changes" if changed else commit


def page(facts: Mapping[str, str], reports: Mapping[str, tuple[str, Mapping[str, object]]]) -> str:
    """The page. ``reports``: by name of the benchmark, its docstring and its JSON document."""
    lines = [HEAD.format(command=COMMAND).rstrip("\n")]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    for name, (docstring, document) in reports.items():
        lines += ["", f"## {name}", "", *_prose(docstring), ""]
        lines += ["```console", f"$ python benchmarks/{name}.py", "```", ""]
        lines += _document(document)
    return "\n".join(lines) + "\n"


def _prose(docstring: str) -> list[str]:
    """A benchmark's own words, up to how it is called."""
    lines = docstring.strip().splitlines()
    end = next((at for at, line in enumerate(lines) if line.startswith("    python ")), len(lines))
    return "\n".join(lines[:end]).rstrip().splitlines()


def _document(document: Mapping[str, object]) -> list[str]:
    lines: list[str] = []
    single = {
        key: value
        for key, value in document.items()
        if not isinstance(value, (Mapping, list)) and key not in ("benchmark", "passed")
    }
    if single:
        lines.append(
            ", ".join(f"{_words(key)}: {_cell(key, value)}" for key, value in single.items()) + "."
        )
    for key, value in document.items():
        if isinstance(value, Mapping):
            lines += ["", f"| | {_words(key)} |", "| --- | ---: |"]
            lines += [f"| {name} | {_cell(key, figure)} |" for name, figure in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines += ["", *_table(value)]
    return lines[1:] if lines and not lines[0] else lines


def _table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    # "passed" has the slack, which depends on the day; "target_met" says the same without it.
    columns = [
        key
        for key in rows[0]
        if key != "at_least" and (key != "passed" or "target_met" not in rows[0])
    ]
    rule = ["---" if isinstance(rows[0][key], str) else "---:" for key in columns]
    lines = [_row([_words(key) for key in columns]), _row(rule)]
    lines += [_row([_cell(key, row[key], row) for key in columns]) for row in rows]
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _cell(key: str, value: object, row: Mapping[str, object] | None = None) -> str:
    if value is None or isinstance(value, bool):
        # Where nothing is asked for, nothing is met.
        asked = row is None or row.get("target", 0) is not None
        return VERDICTS[value] if asked else ""
    text = (
        f"{value:,g}"
        if isinstance(value, float) and abs(value) < 1e6
        else f"{value:,}"
        if isinstance(value, (int, float))
        else str(value)
    )
    if key == "target" and row is not None:
        return f"{'at least' if row.get('at_least') else 'at most'} {text}"
    return text
