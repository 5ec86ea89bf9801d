# SPDX-License-Identifier: BSD-2-Clause
"""The processes of one deployment, and the arenas that they share with the hypervisor's side."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from mediator.deployment import app_abi as abi
from mediator.deployment.el0_app.launch import Arena, Isolation, Launcher, Running, current_cpu
from mediator.deployment.el0_app.manifest import Manifest
from mediator.deployment.el0_app.pool import AppPool
from mediator.deployment.el0_app.server import SHADOWS_AT, SharedShadows


class Obtained(NamedTuple):
    """A process to talk to. ``source``: of its shadow pages. ``used``: it has served another
    deployment and must be told to forget it."""

    process: Running
    arena: Arena
    source: int
    used: bool


class Fleet:
    """Starts, keeps and ends processes, each under the number of its app.

    ``settings``, ``offers``: what WELCOME says. ``pinned``: the caller and all apps on one processor,
    the one that the caller runs on now. ``launcher``: starts them. ``pool``: where processes come from and go to.
    """

    __slots__ = (
        "_affinity",
        "_arenas",
        "_cpu",
        "_free_arenas",
        "_launcher",
        "_manifest",
        "_offers",
        "_pool",
        "_processes",
        "_require",
        "_settings",
        "_shadows",
    )

    def __init__(
        self,
        manifest: Manifest,
        settings: bytes,
        offers: int,
        shadows: SharedShadows,
        launcher: Launcher,
        *,
        pinned: bool,
        require_isolation: bool,
        pool: AppPool | None,
    ) -> None:
        self._manifest = manifest
        self._settings = settings
        self._offers = offers
        self._shadows = shadows
        self._launcher = launcher
        self._require = require_isolation
        self._pool = pool
        self._processes: dict[int, Running] = {}
        self._arenas: dict[int, tuple[Arena, int]] = {}
        self._free_arenas: list[tuple[Arena, int]] = []
        self._cpu = current_cpu() if pinned else None
        self._affinity: set[int] | None = None
        if self._cpu is not None:
            self._affinity = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {self._cpu})

    @property
    def isolation(self) -> tuple[Isolation, ...]:
        """What each running process was seen to be."""
        return tuple(process.isolation for process in self._processes.values())

    def pid(self, app: int) -> int:
        """The process of an app that runs."""
        return self._processes[app].isolation.pid

    def runs(self, app: int) -> bool:
        """Whether this app has a process."""
        return app in self._processes

    def obtain(self, app: int) -> Obtained:
        """A process for an app. Raises :class:`~.launch.LaunchError` and ``AppGone``."""
        old = None if self._pool is None else self._pool.take(self._key())
        if old is not None:
            process, arena = old
            if self._cpu is not None:
                process.move(self._cpu)
            source = self._shadows.share(arena.view[SHADOWS_AT:])
        else:
            arena, source = self._arena()
            try:
                process = self._launcher(
                    self._manifest,
                    arena,
                    self._settings,
                    self._offers,
                    cpu=self._cpu,
                    require_isolation=self._require,
                )
            except BaseException:
                self._free_arenas.append((arena, source))
                raise
        self._processes[app] = process
        self._arenas[app] = arena, source
        return Obtained(process, arena, source, old is not None)

    def _key(self) -> tuple[object, ...]:
        return (self._manifest, self._offers, self._cpu is None, self._require)

    def _arena(self) -> tuple[Arena, int]:
        if self._free_arenas:
            return self._free_arenas.pop()
        arena = Arena(self._manifest.arena_pages)
        return arena, self._shadows.share(arena.view[SHADOWS_AT:])

    def end(self, app: int) -> None:
        """End the process; its arena stays with what is left of the app."""
        process = self._processes.pop(app, None)
        if process is not None:
            process.end()

    def retire(self, app: int) -> None:
        """Nothing is left of the app: its arena may go to another."""
        self.end(app)
        arena = self._arenas.pop(app, None)
        if arena is not None:
            arena[0].wipe()
            self._free_arenas.append(arena)

    def keep(self, app: int) -> None:
        """Give the process of a healthy app with nothing open to the pool, if there is one."""
        process = self._processes.get(app)
        if self._pool is None or process is None or not process.capabilities & abi.CAP_STATE:
            return
        del self._processes[app]
        self._pool.give(self._key(), process, self._arenas.pop(app)[0])

    def close(self) -> None:
        """End all processes, and let the caller run where it did before. May be called twice."""
        for process in self._processes.values():
            process.end()
        self._processes.clear()
        for arena, _ in [*self._arenas.values(), *self._free_arenas]:
            arena.close()
        self._arenas.clear()
        self._free_arenas.clear()
        if self._affinity is not None:
            with contextlib.suppress(OSError):
                if os.sched_getaffinity(0) == {self._cpu}:
                    os.sched_setaffinity(0, self._affinity)
            self._affinity = None
