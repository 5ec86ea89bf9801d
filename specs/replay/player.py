# SPDX-License-Identifier: BSD-2-Clause
"""A recorded flight while it is played into our secure world."""

from __future__ import annotations

import attrs

from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay.expectation import Expectation, Kind, Plan

Answer = tuple[int, int, int, int]
"""x0..x3 of our secure world."""


@attrs.define(eq=False)
class Player:
    """One flight in our secure world.

    ``thread``: its thread there, -1 before it starts; ``slice``: number of the recorded slice that is
    under way (``active``); ``regs``: the call that begins it, until our secure world was entered with
    it. ``inside``: its work has begun and its results are not written, so it may hold locks;
    ``worked``: it has been inside. ``held``: suspended by the conductor, not by the recording.
    ``answer``: how our secure world ended the slice, None as long as it has not. ``over``: its thread
    is done.
    """

    plan: Plan
    thread: int = -1
    slice: int = -1
    active: bool = False
    regs: tuple[int, ...] | None = None
    inside: bool = False
    worked: bool = False
    held: bool = False
    answer: Answer | None = None
    over: bool = False
    allocation: tuple[int, int] = (0, 0)
    """Address and cookie that the normal world gave for the RPC argument."""

    @property
    def end(self) -> Expectation | None:
        """How the present slice ended in the recording."""
        if 0 <= self.slice < len(self.plan.ends):
            return self.plan.ends[self.slice]
        return None

    @property
    def client(self) -> int:
        """Partition of the flight."""
        return self.plan.flight.client

    @property
    def stimulated(self) -> bool:
        """Whether the present slice ended with something that happened to the recorded OP-TEE."""
        end = self.end
        return end is not None and end.kind in (Kind.INTERRUPT, Kind.NOTIFICATION, Kind.HELD)

    @property
    def ends(self) -> bool:
        """Whether the present slice ended the call."""
        end = self.end
        return end is not None and end.kind is Kind.FINAL

    @property
    def refused(self) -> bool:
        """Whether the recorded OP-TEE had no thread for it."""
        end = self.end
        limit = smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
        return end is not None and self.thread < 0 and low32(end.answer.regs[0]) == limit

    @property
    def wanted_thread(self) -> int | None:
        """The thread that the recorded flight had, None if no answer shows it."""
        return self.plan.flight.thread

    @property
    def opens(self) -> int:
        """The session that the recorded flight opened; 0: none."""
        opening = self.plan.command == msg.OPTEE_MSG_CMD_OPEN_SESSION
        return self.plan.session if opening else 0

    @property
    def closes(self) -> bool:
        """Whether it closes a session."""
        return self.plan.command == msg.OPTEE_MSG_CMD_CLOSE_SESSION
