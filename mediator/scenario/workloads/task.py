# SPDX-License-Identifier: BSD-2-Clause
"""One running client program: its rounds, what it checked, and how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

import attrs

from mediator.guest.client import Client, TeeError
from mediator.guest.cpu import GuestAbort
from mediator.guest.driver_settings import RegistrationError
from mediator.guest.guest import Guest
from mediator.guest.memory import OutOfMemory
from mediator.scenario.fields import Field
from mediator.scenario.model import ParamValue, WorkloadPlan
from secure_world.apps import cipher
from smccc import names
from smccc.constants import tee

NOT_STARTED: Final = "not started"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"

SHOWN: Final = 100
"""Characters of a value in a failure: enough to see the difference, bounded for buffers."""


class WorkloadFailed(Exception):
    """A client program got another result than the right one."""


@attrs.frozen
class WorkloadKind:
    """A kind of client program. ``fields``: its parameters; ``crypto``: its TA needs that extra."""

    name: str
    help: str
    body: Callable[[Task], Awaitable[None]]
    fields: tuple[Field, ...] = ()
    crypto: bool = False


class Task:
    """One instance of a workload. ``checks``: results that it compared and found right.

    ``rounds`` were completed, ``tolerated`` of them ended early by an error that the plan allows.
    ``state`` stays RUNNING if the guest went away under it.
    """

    def __init__(
        self,
        kind: WorkloadKind,
        plan: WorkloadPlan,
        number: int,
        seed: int,
        shared: dict[str, int] | None = None,
    ) -> None:
        self.kind = kind
        self.plan = plan
        self.number = number
        self.name = f"{plan.run}/{number}"
        self.__name__ = self.name
        self.rng = Random(seed)
        self.shared: dict[str, int] = {} if shared is None else shared
        """Numbers that all tasks of a guest share, to check each other."""
        self.state = NOT_STARTED
        self.problem = ""
        self.checks = 0
        self.rounds = 0
        self.tolerated = 0
        self._guest: Guest | None = None
        self._client: Client | None = None

    @property
    def guest(self) -> Guest:
        """The guest that it runs on."""
        assert self._guest is not None
        return self._guest

    @property
    def client(self) -> Client:
        """Its connection to the TEE."""
        assert self._client is not None
        return self._client

    async def __call__(self, guest: Guest) -> None:
        """The client program. Results that it did not expect are kept in ``problem``, not raised."""
        if self.kind.crypto and not _crypto():
            self.state = SKIPPED
            self.problem = "needs the extra: pip install 'optee-mediator[crypto]'"
            return
        self._guest = guest
        self._client = guest.client(self.name)
        self.state = RUNNING
        try:
            await self.kind.body(self)
        except TeeError as error:
            self._ended_by(error)
        except (WorkloadFailed, GuestAbort) as error:
            self.state = FAILED
            self.problem = f"round {self.rounds}: {error}"
        else:
            self.state = DONE
        try:
            await self.client.close()
        except TeeError as error:
            self._ended_by(error)

    def _ended_by(self, error: TeeError) -> None:
        if self._tolerates(error):
            self.tolerated += 1
            self.state = DONE if self.state == RUNNING else self.state
        elif self.state != FAILED:
            self.state = FAILED
            self.problem = f"round {self.rounds}: {error}"

    def _tolerates(self, error: TeeError) -> bool:
        return self.plan.tolerate is None or error.result in self.plan.tolerate

    # For the bodies

    def integer(self, name: str) -> int:
        """A parameter of the workload that is a number."""
        return int(self.plan.values[name])

    def flag(self, name: str) -> bool:
        """A parameter of the workload that is true or false."""
        return bool(self.plan.values[name])

    def value(self, name: str) -> ParamValue:
        """A parameter of the workload."""
        return self.plan.values[name]

    async def each_round(self, body: Callable[[int], Awaitable[None]]) -> None:
        """Run ``body`` with 0, 1, ... as often as the plan says."""
        plan = self.plan
        while plan.forever or self.rounds < plan.rounds:
            try:
                await _round(body, self.rounds)
            except TeeError as error:
                if not self._tolerates(error):
                    raise
                self.tolerated += 1
            self.rounds += 1
            if plan.pause:
                await self.guest.kernel.sleep(plan.pause)

    def expect(self, actual: object, wanted: object, what: str) -> None:
        """Count a check. Raises :class:`WorkloadFailed` if ``actual`` is not ``wanted``."""
        self.checks += 1
        if actual != wanted:
            raise WorkloadFailed(f"{what}: {_shown(actual)} instead of {_shown(wanted)}")

    async def refused(self, operation: Awaitable[object], result: int, what: str) -> None:
        """Check that an operation ends with the error ``result``, or with one that is tolerated."""
        try:
            await operation
        except TeeError as error:
            if error.result != result and self._tolerates(error):
                raise
            self.expect(names.RESULT.short(error.result), names.RESULT.short(result), what)
        else:
            self.expect("success", names.RESULT.short(result), what)


async def _round(body: Callable[[int], Awaitable[None]], number: int) -> None:
    try:
        await body(number)
    except (OutOfMemory, RegistrationError):
        # The driver itself got no memory, or could not share it: -ENOMEM to the program.
        raise TeeError(tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ORIGIN_API) from None


def _shown(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _crypto() -> bool:
    try:
        cipher.require_crypto()
    except cipher.MissingExtra:
        return False
    return True
