# SPDX-License-Identifier: BSD-2-Clause
"""Runs every benchmark of this folder, each in a process of its own: ``python -m benchmarks``.

A benchmark is a script that prints its ratios and exits with 1 if one is above its target (with the
slack that it documents). Names as arguments pick some; further options are handed on. The exit code
is 1 if any benchmark failed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the benchmarks named in ``arguments``, all by default."""
    folder = Path(__file__).parent
    known = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem[0] != "_"}
    names = [a for a in arguments if not a.startswith("-")] or list(known)
    options = [a for a in arguments if a.startswith("-")]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in names:
        print(f"--- {name}", flush=True)
        if subprocess.run([sys.executable, str(known[name]), *options], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
