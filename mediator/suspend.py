# SPDX-License-Identifier: BSD-2-Clause
"""Suspension points of the coroutine world: no event loop, no threads, no clock.

Every actor is a coroutine and every ``await`` is a trap. An await that need not switch runs inline;
one that may switch awaits :data:`PREEMPTION_POINT` (or a :class:`Suspend` with a request) and
thereby hands control to whoever drives the coroutine: a scheduler, an explorer, a replay.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Final, Generic, TypeVar

T = TypeVar("T")


class UnexpectedSuspension(RuntimeError):
    """A coroutine that was driven to its end with :func:`run` suspended instead."""


class Suspend(Generic[T]):
    """Awaiting ``Suspend(request)`` yields ``request`` to the driver; the value sent back is the result."""

    __slots__ = ("request",)

    def __init__(self, request: object) -> None:
        self.request = request

    def __await__(self) -> Generator[object, T, T]:
        return (yield self.request)


class _PreemptionPoint(tuple[None, ...]):
    """Its iterator yields ``None`` once, and no Python code runs for it: half the price."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __await__(self) -> Generator[None, None, None]: ...

    else:
        __await__ = tuple.__iter__


PREEMPTION_POINT: Final = _PreemptionPoint((None,))
"""Awaiting this yields ``None``: the driver may resume any other actor first."""


def run(coroutine: Coroutine[object, None, T]) -> T:
    """Drive ``coroutine`` to its end and return its value.

    Raises :class:`UnexpectedSuspension` (after closing it) if it suspends on the way.
    """
    try:
        request = coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise UnexpectedSuspension(f"coroutine suspended with request {request!r}")
