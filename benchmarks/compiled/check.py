# SPDX-License-Identifier: BSD-2-Clause
"""Shows that the compiled tree behaves as the interpreted one: ``python -m benchmarks.compiled.check``.

Three things, in the compiled tree, which is brought up to date first:

- the modules that a process there loads are the compiled ones, all of them;
- what the command prints about golden vectors, recorded traces (as mediator and as secure world, with
  planted errors) and the built-in scenario, its digest included, is the same text to the last byte;
- the tests of the mediator, of the codec and of the scenario's digest pass.

Exit code 0 the same, 1 a difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.compiled.build import INTO, ROOT, build
from benchmarks.compiled.modules import HOT

COMMAND: Final = "from mediator.command import main; main(prog_name='optee-mediator')"
TRACES: Final = tuple(
    str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests/data/traces").glob("*.jsonl*"))
)
VECTORS: Final = tuple(
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "tests/data").glob("*/*_vectors.jsonl.gz"))
)
BEHAVIOUR: Final = "tests/data/vectors/mediator_behaviour.jsonl.gz"

RUNS: Final = {
    "golden vectors": ("vectors", "--json", *VECTORS, BEHAVIOUR),
    "traces as mediator": ("replay", "--json", "--self-check", "20", *TRACES),
    "traces as secure world": ("replay", "--json", "--as", "secure-world", *TRACES),
    "built-in scenario": ("run", "--json"),
}
"""Command lines whose output must not depend on the tree."""

TESTS: Final = (
    "tests/mediator",
    "tests/smccc/test_smccc_codec.py",
    "tests/scenario/test_determinism.py",
)

LEFT_OUT: Final = {
    "tests/mediator/test_host_boundary.py::test_every_service_is_a_host_method_a_system_call_and_a_number": "asks whether methods are functions of Python",
    "tests/mediator/test_refused_cookie.py::test_the_checkers_see_the_page_of_another_guest": "plants a mutant",
}
"""Tests of what only the interpreted modules have, and why."""

PROBE: Final = """\
import json
from benchmarks.compiled.worker import loaded
print(json.dumps(loaded()))
"""


def python(tree: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start Python in ``tree`` with the packages of that tree."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compiled_only(tree: Path) -> bool:
    """Whether a process in ``tree`` loads every hot module compiled, from there."""
    out, err = (process := python(tree, "-c", PROBE)).communicate()
    if process.returncode:
        print(err, file=sys.stderr)
        return False
    found = json.loads(out)
    print(f"modules: {len(found['compiled'])} of {len(HOT)} compiled")
    for kind in ("interpreted", "elsewhere"):
        for name in found[kind]:
            print(f"  {name}: {kind}", file=sys.stderr)
    return len(found["compiled"]) == len(HOT)


def same(name: str, line: tuple[str, ...], tree: Path) -> bool:
    """Whether the command answers alike in the checkout and in ``tree``, and well."""
    processes = [python(where, "-c", COMMAND, *line) for where in (ROOT, tree)]
    (plain, plain_error), (fast, fast_error) = (process.communicate() for process in processes)
    codes = [process.returncode for process in processes]
    good = bool(plain) and plain == fast and codes[0] == codes[1] and codes[0] in (0, 1)
    print(
        f"{name}: {'the same' if good else 'DIFFERENT'}, {len(plain)} bytes, exit code {codes[0]}"
    )
    if not good:
        print(f"interpreted: exit code {codes[0]}\n{plain_error[-2000:]}", file=sys.stderr)
        print(f"compiled: exit code {codes[1]}\n{fast_error[-2000:]}", file=sys.stderr)
    return good


def tests_pass(tree: Path) -> bool:
    """Whether the tests pass in ``tree``."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    command += [word for test in LEFT_OUT for word in ("--deselect", test)]
    command += ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run(command, cwd=tree, env=environment, check=False).returncode == 0


def main() -> int:
    """Build and compare."""
    if build(INTO):
        return 1
    good = compiled_only(INTO)
    for name, line in RUNS.items():
        good = same(name, line, INTO) and good
    good = tests_pass(INTO) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
