# SPDX-License-Identifier: BSD-2-Clause
"""One seed for a run, and one for each of its parts that depends on it."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *parts: str | int) -> int:
    """A seed for one part of a run: 64 bits of SHA-256 over the run's seed and the part's name."""
    text = "/".join([str(seed), *[str(part) for part in parts]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
