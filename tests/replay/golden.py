# SPDX-License-Identifier: BSD-2-Clause
"""The recorded traces that come with the tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from specs.replay.reader import Trace, load_trace

DATA = Path(__file__).parent.parent / "data" / "traces"
SESSION = DATA / "linux-optee-session.jsonl"
PARAMS = DATA / "linux61-params.jsonl.gz"
VIRTUAL = DATA / "linux612-virtualization-guest1.jsonl.gz"
ALL = (SESSION, PARAMS, VIRTUAL)


@cache
def trace(path: Path) -> Trace:
    return load_trace(path)
