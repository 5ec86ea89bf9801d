# SPDX-License-Identifier: BSD-2-Clause
"""``python -m mediator.live.comparison RECORDING...``: compare, and say what differs and why.

Exit code 1 if anything differs without a reason, 2 if a file cannot be used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mediator.live.comparison.compare import ComparisonError
from mediator.live.comparison.report import compare_file, text
from specs.replay.records import TraceError


def main(paths: Sequence[str]) -> int:
    """Compare each recording; the exit code."""
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    findings = 0
    for path in paths:
        try:
            comparison = compare_file(path)
        except (ComparisonError, TraceError, OSError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            return 2
        print(text(comparison))
        findings += len(comparison.findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
