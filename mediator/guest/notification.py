# SPDX-License-Identifier: BSD-2-Clause
"""Waits and sends of the secure world's threads in the driver (``drivers/tee/optee/notif.c``).

A send that finds nobody waiting is remembered, so the wait that comes later does not block. Keys
come from the secure world: the index of the waiting thread, or an allocated notification value.
"""

from __future__ import annotations

from mediator.guest.kernel import Completion, Kernel


class Notifications:
    """The notification keys 0..``max_key`` of one driver."""

    def __init__(self, kernel: Kernel, max_key: int) -> None:
        self._kernel = kernel
        self._remembered: set[int] = set()
        self._waiting: dict[int, Completion] = {}
        self.max_key = max_key

    @property
    def waiting(self) -> tuple[int, ...]:
        """Keys that somebody waits for, oldest wait first."""
        return tuple(self._waiting)

    async def wait(self, key: int, timeout: int | None) -> bool:
        """Wait for a send of ``key``, at most ``timeout`` ns.

        False if the key is out of range or has a waiter already, or if the time has passed.
        """
        if key > self.max_key:
            return False
        if key in self._remembered:
            self._remembered.remove(key)
            return True
        if key in self._waiting:
            return False
        completion = Completion(self._kernel, f"notification {key:#x}")
        self._waiting[key] = completion
        woken = await completion.wait(timeout)
        del self._waiting[key]
        return woken

    def send(self, key: int) -> bool:
        """Wake the waiter of ``key`` or remember the send. False if the key is out of range."""
        if key > self.max_key:
            return False
        completion = self._waiting.get(key)
        if completion is None:
            self._remembered.add(key)
        else:
            completion.complete()
        return True
