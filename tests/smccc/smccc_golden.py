# SPDX-License-Identifier: BSD-2-Clause
"""The golden ABI data: printed by compiled headers, never typed in by hand."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data" / "abi"


@cache
def document(name: str) -> Any:
    """A JSON file of the golden data."""
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@cache
def records(name: str) -> list[dict[str, Any]]:
    """A JSON lines file of the golden data."""
    text = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]
