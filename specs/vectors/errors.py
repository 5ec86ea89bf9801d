# SPDX-License-Identifier: BSD-2-Clause
"""What is wrong with an input file: file, line, field and reason, never a traceback."""

from __future__ import annotations


class InputError(Exception):
    """A file that cannot be used. ``line`` counts from 1 (0: the file as a whole)."""

    def __init__(self, file: str, line: int, field: str, reason: str) -> None:
        place = file if not line else f"{file}:{line}"
        super().__init__(f"{place}: {field}: {reason}" if field else f"{place}: {reason}")
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason
