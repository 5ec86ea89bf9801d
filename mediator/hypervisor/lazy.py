# SPDX-License-Identifier: BSD-2-Clause
"""Large zeroed memory that the operating system commits page by page.

``bytearray(n)`` writes its zeroes, and NumPy asks for huge pages, where every first touch costs
2 MiB. A private anonymous mapping does neither; where there is none, NumPy's memory serves.
"""

from __future__ import annotations

import numpy as np

try:
    import mmap
except ImportError:  # no such module on some platforms, and hidden in one test
    mmap = None  # type: ignore[assignment]

SMALLEST_MAPPING = 1 << 20
"""Bytes from which a mapping of its own is worth a system call."""


def zeroed(size: int) -> memoryview:
    """``size`` zero bytes, writable, private to this process also after a fork."""
    if size >= SMALLEST_MAPPING and mmap is not None:
        private = getattr(mmap, "MAP_PRIVATE", None)
        if private is not None:
            return memoryview(mmap.mmap(-1, size, flags=private | mmap.MAP_ANONYMOUS))
    return np.zeros(size, np.uint8).data
