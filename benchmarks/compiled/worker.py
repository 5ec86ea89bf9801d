# SPDX-License-Identifier: BSD-2-Clause
"""One of the two processes that are compared: invokes when it is told, for ``benchmarks.compiled``.

Started in a tree, of which it uses the packages. First line out: which hot modules are compiled and
which are not, as JSON. Then for each line in, ``direct|suspending ARG|REGD_ARG calls``, the seconds of
processor time of one invoke.
"""

from __future__ import annotations

import gc
import json
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.compiled.modules import HOT
from benchmarks.invoke import Bench
from mediator.hypervisor.scheduler import Mode

MODES = {"direct": Mode.DIRECT, "suspending": Mode.INTERLEAVE}
WARM_UP = 300


def loaded() -> dict[str, list[str]]:
    """The hot modules of this process: ``compiled``, ``interpreted``, or from ``elsewhere``."""
    found: dict[str, list[str]] = {"compiled": [], "interpreted": [], "elsewhere": []}
    tree = Path.cwd().resolve()
    for name in HOT:
        path = Path(import_module(name).__file__ or "").resolve()
        if not path.is_relative_to(tree):
            kind = "elsewhere"
        else:
            kind = "interpreted" if path.suffix == ".py" else "compiled"
        found[kind].append(name)
    return found


def main() -> None:
    """Serve standard input."""
    print(json.dumps(loaded()), flush=True)
    benches = {name: Bench(mode) for name, mode in MODES.items()}
    for bench in benches.values():
        for by_cookie in (False, True):
            bench.run(by_cookie, WARM_UP)
    gc.collect()
    gc.disable()
    for line in sys.stdin:
        mode, style, calls = line.split()
        print(benches[mode].run(style == "REGD_ARG", int(calls)), flush=True)


if __name__ == "__main__":
    main()
