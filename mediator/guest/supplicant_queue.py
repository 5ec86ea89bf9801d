# SPDX-License-Identifier: BSD-2-Clause
"""Requests to the supplicant as they pass through the driver (``drivers/tee/optee/supp.c``)."""

from __future__ import annotations

from collections import deque
from typing import Final

from mediator.guest.kernel import Completion, Kernel, Thread
from mediator.guest.shm import Shm
from smccc.constants import tee

MAX_PARAMS: Final = 5
"""Parameters the supplicant has room for (RPC_NUM_PARAMS of tee-supplicant)."""


class SupplicantParam:
    """One parameter of a request: ``attr`` and three words; ``shm`` behind a memory reference.

    A memory reference has its offset in ``a`` and its size in ``b``; ``shm`` None is a null one.
    """

    __slots__ = ("a", "attr", "b", "c", "shm")

    def __init__(self, attr: int, a: int, b: int, c: int, shm: Shm | None = None) -> None:
        self.attr = attr
        self.a = a
        self.b = b
        self.c = c
        self.shm = shm


class SupplicantRequest:
    """One request: an RPC command and its parameters, which the answer changes in place."""

    __slots__ = ("answered", "command", "params", "result", "thread")

    def __init__(self, kernel: Kernel, command: int, params: list[SupplicantParam]) -> None:
        self.command = command
        self.params = params
        self.result = tee.TEE_ERROR_COMMUNICATION
        self.answered = Completion(kernel, f"the supplicant to serve RPC command {command}")
        self.thread = kernel.current
        """Who waits for it."""


class SupplicantQueue:
    """Requests on their way to the supplicant, and those it is working on."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._waiting: deque[SupplicantRequest] = deque()
        self._serving: list[SupplicantRequest] = []
        self._available = Completion(kernel, "requests to the supplicant")
        self.attached = False
        """True while a supplicant has the device open."""

    async def request(self, command: int, params: list[SupplicantParam], nowait: bool) -> int:
        """Have a request served; its result. Waits for a supplicant to come unless ``nowait``."""
        if nowait and not self.attached:
            return tee.TEE_ERROR_COMMUNICATION
        request = SupplicantRequest(self._kernel, command, params)
        self._waiting.append(request)
        self._available.complete()
        await request.answered.wait()
        return request.result

    async def receive(self) -> SupplicantRequest | None:
        """The next request for one thread of the supplicant; None once the device is closed."""
        while True:
            await self._available.wait()
            if not self.attached:
                # Let the next thread of a closing supplicant through as well.
                self._available.complete()
                return None
            if not self._waiting:
                continue
            request = self._waiting.popleft()
            if len(request.params) > MAX_PARAMS:
                self._finish(request, tee.TEE_ERROR_COMMUNICATION)
                continue
            self._serving.append(request)
            return request

    def answer(self, request: SupplicantRequest, result: int) -> None:
        """The supplicant has served ``request``."""
        if request in self._serving:
            self._serving.remove(request)
            self._finish(request, result)

    def interrupt(self, thread: Thread) -> bool:
        """``thread`` is killed while it waits for a supplicant: its request fails.

        False: it does not wait, or a supplicant is at work for it; then nothing happens.
        """
        for request in self._waiting:
            if request.thread is thread:
                self._waiting.remove(request)
                self._finish(request, tee.TEE_ERROR_COMMUNICATION)
                return True
        return False

    def open(self) -> None:
        """A supplicant opens the device."""
        self.attached = True
        self._available.reset()
        for _ in self._waiting:
            self._available.complete()

    def close(self) -> None:
        """The supplicant is gone: whoever it was working for, or who waits for it, gets an error."""
        self.attached = False
        for request in (*self._serving, *self._waiting):
            self._finish(request, tee.TEE_ERROR_COMMUNICATION)
        self._serving.clear()
        self._waiting.clear()
        self._available.complete()

    @staticmethod
    def _finish(request: SupplicantRequest, result: int) -> None:
        request.result = result
        request.answered.complete()
