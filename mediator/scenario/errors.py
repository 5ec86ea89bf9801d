# SPDX-License-Identifier: BSD-2-Clause
"""How a scenario can be unusable."""

from __future__ import annotations


class ScenarioError(ValueError):
    """A scenario cannot be used. ``path``, ``line`` (1-based, 0: the file itself), ``field``, ``reason``."""

    def __init__(self, path: str, line: int, field: str, reason: str) -> None:
        super().__init__(path, line, field, reason)
        self.path = path
        self.line = line
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.field}: {self.reason}" if self.field else f"{place}: {self.reason}"
