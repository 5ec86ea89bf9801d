# SPDX-License-Identifier: BSD-2-Clause
"""Text from files and guests is hostile: shown escaped."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with everything but printable characters escaped, so that none drives a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
