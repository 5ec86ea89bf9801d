# SPDX-License-Identifier: BSD-2-Clause
"""How a secure thread leaves for the normal world, and what runs its calls: bare generators.

The thread is a coroutine that yields ``(a0, a1, a2)`` to leave and is sent ``(a1, a2, a4, a5)`` of
RETURN_FROM_RPC. These two are generators that may be awaited, which Python can only interpret; a
module of their own leaves everything else of a thread to the compiler.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any

LeaveRegs = tuple[int, int, int]
ResumeRegs = tuple[int, int, int, int]

Running = Coroutine[LeaveRegs, ResumeRegs | None, int]
"""A call in a thread: started by sending None, ends with a0."""


@types.coroutine
def leave(registers: LeaveRegs) -> Generator[LeaveRegs, ResumeRegs, ResumeRegs]:
    """Leave the secure world with a0..a2; returns a1, a2, a4, a5 of the resumption."""
    return (yield registers)


Calls = Generator[LeaveRegs | int, Any, None]
"""Sent a ``Running`` and then what that is resumed with: two types, where a generator has one."""


@types.coroutine
def calls_in_turn() -> Calls:
    """Runs one call after another: sent a call, yields what that leaves with, and its a0 at the end.

    A coroutine that is driven directly ends with an exception, which is slow to raise and to catch.
    """
    call = yield 0
    while True:
        call = yield (yield from call)
