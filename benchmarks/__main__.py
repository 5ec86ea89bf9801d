# SPDX-License-Identifier: BSD-2-Clause
"""Runs every benchmark of this folder, each in a process of its own: ``python -m benchmarks``.

A benchmark is a script that prints its ratios and exits with 1 if one is above its target (with the
slack that it documents); ``--json`` makes it print one document instead. Names as arguments pick
some; further options are handed on. ``--markdown FILE`` writes all figures as a page, the one of the
documentation by ``python -m benchmarks --markdown docs/evidence/speed.md``. The exit code is 1 if any
benchmark failed, 2 for arguments or a file that cannot be used.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import _page

FOLDER = Path(__file__).parent
MARKDOWN = "--markdown"
HELP = ("-h", "--help")


def benchmarks() -> dict[str, Path]:
    """The scripts by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem[0] != "_"}


def main(arguments: list[str]) -> int:
    """Run the benchmarks named in ``arguments``, all by default."""
    if any(argument in HELP for argument in arguments):
        print(
            f"{__doc__}\nBenchmarks: {', '.join(benchmarks())}\nOptions of each: --rounds N, --json"
        )
        return 0
    written: Path | None = None
    if MARKDOWN in arguments:
        at = arguments.index(MARKDOWN)
        if len(arguments) == at + 1:
            print(f"{MARKDOWN} needs a file", file=sys.stderr)
            return 2
        written = Path(arguments[at + 1])
        arguments = arguments[:at] + arguments[at + 2 :]
    known = benchmarks()
    names, options = _split(arguments)
    names = names or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if written is None:
        failed = [name for name in names if not _show(name, known[name], options)]
    else:
        try:
            failed = _write(written, {name: known[name] for name in names}, options)
        except OSError as error:
            print(f"{written}: cannot be written: {error.strerror}", file=sys.stderr)
            return 2
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Names, and options with their values: a number belongs to the option before it."""
    names = [a for a in arguments if not a.startswith("-") and not a.isdigit()]
    return names, [a for a in arguments if a.startswith("-") or a.isdigit()]


def _show(name: str, path: Path, options: list[str]) -> bool:
    print(f"--- {name}", flush=True)
    return subprocess.run([sys.executable, str(path), *options], check=False).returncode == 0


def _write(target: Path, known: dict[str, Path], options: list[str]) -> list[str]:
    """Measure, and write the page when all is there; the names of those that failed."""
    facts = _page.machine()
    reports: dict[str, tuple[str, dict[str, object]]] = {}
    failed = []
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, path in known.items():
        print(f"measuring {name}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, str(path), "--json", *options], check=False, stdout=subprocess.PIPE
        )
        if done.returncode:
            failed.append(name)
        if done.returncode not in (0, 1):
            continue
        document = json.loads(done.stdout)
        reports[name] = ast.get_docstring(ast.parse(path.read_text())) or "", document
    target.write_text(_page.page(facts, reports), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
