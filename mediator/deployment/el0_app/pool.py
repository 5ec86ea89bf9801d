# SPDX-License-Identifier: BSD-2-Clause
"""Processes for one deployment after the other: a start costs some thousand calls.

For those who make deployments by the hundred (vectors, campaigns). A process that is used again is told
to forget everything; it must have the capability STATE. It is not a way to save starts where the
isolation between two uses matters.
"""

from __future__ import annotations

from types import TracebackType

from mediator.deployment.el0_app.launch import Arena, Running


class AppPool:
    """Keeps processes that nobody uses. Close it, or use it as a context manager."""

    __slots__ = ("_free", "starts")

    def __init__(self) -> None:
        self._free: dict[tuple[object, ...], list[tuple[Running, Arena]]] = {}
        self.starts = 0
        """Processes that had to be started."""

    def take(self, key: tuple[object, ...]) -> tuple[Running, Arena] | None:
        """A process that was started with ``key``, if one is free."""
        free = self._free.get(key)
        if free:
            return free.pop()
        self.starts += 1
        return None

    def give(self, key: tuple[object, ...], process: Running, arena: Arena) -> None:
        """A process that is healthy and has nothing open."""
        self._free.setdefault(key, []).append((process, arena))

    def close(self) -> None:
        """End all processes."""
        for free in self._free.values():
            for process, arena in free:
                process.end()
                arena.close()
        self._free.clear()

    def __enter__(self) -> AppPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
