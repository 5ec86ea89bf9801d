# SPDX-License-Identifier: BSD-2-Clause
"""Our secure world, made to take the recorded schedule.

Inside OP-TEE the order of things is not in a trace: a foreign interrupt says that a thread left, not
where it was. The conductor chooses, at the sites that the secure world offers, so that locks are held
as shortly as the recording allows: work without requests of its own runs in one go as soon as nobody
is in its way, and recorded stimuli come before or after it. Where a thread still waits for a lock in
another order than recorded, the conductor serves that wait itself and counts it.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import attrs

from secure_world.monitor import (
    SITE_ENTRY,
    SITE_EXIT,
    STIMULUS_FOREIGN_INTERRUPT,
    STIMULUS_SEND,
    STIMULUS_WAIT,
)
from secure_world.ta import TaRegistry
from secure_world.world import SecureWorld
from smccc import wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.registers import low32, pair, split
from specs.replay import names
from specs.replay.chain import Flight, Step
from specs.replay.expectation import Expectation, Kind, Plan
from specs.replay.recorded_memory import RecordedMemory
from specs.replay.records import Return

NOTIFICATION_BASE: Final = 0x40
"""A thread waits for 0x40 plus its number (OP-TEE OS ``kernel/notif.h``)."""

MAX_ROUNDS: Final = 64
"""Hidden rounds of one slice before it is given up: each serves one wait or send of a lock."""

Answer = tuple[int, int, int, int]
_M32: Final = 0xFFFF_FFFF


@attrs.define(eq=False)
class Player:
    """One flight in our secure world.

    ``thread``: its thread there; ``slice``: number of the recorded slice that runs; ``inside``: it
    is between its start and its results, and may hold locks. ``answer``: how our secure world ended
    the slice, None while it is held back. ``waiting``: it waits for a lock although the recorded one
    did not. ``over``: its thread is done.
    """

    plan: Plan
    thread: int = -1
    slice: int = -1
    inside: bool = False
    answer: Answer | None = None
    waiting: bool = False
    over: bool = False
    allocation: tuple[int, int] = (0, 0)
    """Address and cookie that the normal world gave for the RPC argument."""

    @property
    def end(self) -> Expectation | None:
        """How the present slice ended in the recording."""
        if 0 <= self.slice < len(self.plan.ends):
            return self.plan.ends[self.slice]
        return None


@attrs.define
class _Run:
    """What may happen while our secure world runs a slice."""

    player: Player
    forced: bool
    presented: bool = False
    hidden: bool = False


class Conductor:
    """A monitor that raises the recorded stimuli, and the player of all flights."""

    def __init__(self, memory: RecordedMemory, registry: TaRegistry) -> None:
        self._memory = memory
        self._registry = registry
        self._now = 0
        self._run: _Run | None = None
        self._players: dict[Flight, Player] = {}
        self.hidden_waits = 0
        self.world: SecureWorld | None = None

    # --- the monitor of the secure world ----------------------------------------------------------

    def now(self) -> int:
        """Virtual time in ns: what was charged."""
        return self._now

    def charge(self, ns: int) -> None:
        """Advance the clock."""
        self._now += ns

    def foreign_interrupt_pending(self) -> bool:
        """Never asked: stimuli decide."""
        return False

    def raise_notification(self) -> None:
        """The recorded normal world asks when it asks."""

    def stimulus(self, client: int, thread: int, site: int) -> tuple[int, int] | None:
        """What happens to the running thread at ``site``."""
        run = self._run
        if run is None or run.presented:
            return None
        player, end = run.player, run.player.end
        if end is None:
            return None
        stimulating = end.kind in (Kind.INTERRUPT, Kind.NOTIFICATION, Kind.HELD)
        if site == SITE_EXIT:
            player.inside = False
        elif site == SITE_ENTRY and not player.inside:
            blocked = self._blocked(player)
            if stimulating and blocked:
                return self._present(run, end, thread)
            if blocked and not run.forced:
                return self._hide(run)
            player.inside = True
            return None
        elif not player.plan.asks_after(player.slice):
            return None
        if stimulating:
            return self._present(run, end, thread)
        if site == SITE_EXIT and end.kind is Kind.FINAL and not run.forced:
            return self._hide(run)
        return None

    def _present(self, run: _Run, end: Expectation, thread: int) -> tuple[int, int]:
        run.presented = True
        if end.kind is Kind.INTERRUPT:
            return STIMULUS_FOREIGN_INTERRUPT, 0
        operation, value = end.notification
        if end.kind is Kind.NOTIFICATION and operation == rpc.OPTEE_RPC_NOTIFICATION_SEND:
            return STIMULUS_SEND, value
        return STIMULUS_WAIT, NOTIFICATION_BASE + thread

    @staticmethod
    def _hide(run: _Run) -> tuple[int, int]:
        """Hold the thread where it is; the recording knows nothing of it."""
        run.presented = run.hidden = True
        return STIMULUS_FOREIGN_INTERRUPT, 0

    def _blocked(self, player: Player) -> bool:
        """Whether somebody is inside whose lock this flight's work would want."""
        return any(
            other is not player and other.inside and not other.over and self._clash(player, other)
            for other in self._players.values()
        )

    def _clash(self, one: Player, other: Player) -> bool:
        first, second = one.plan, other.plan
        if first.flight.client != second.flight.client or first.apart or second.apart:
            return False
        if first.command == msg.OPTEE_MSG_CMD_CANCEL or second.command == msg.OPTEE_MSG_CMD_CANCEL:
            return False
        if first.uuid is None or second.uuid is None:
            return False
        if first.session and first.session == second.session:
            return True
        single = self._single(first.uuid), self._single(second.uuid)
        if all(single):
            return True
        loading = msg.OPTEE_MSG_CMD_OPEN_SESSION in (first.command, second.command)
        return first.uuid == second.uuid and loading

    def _single(self, uuid: UUID) -> bool:
        application = self._registry.find(uuid.bytes)
        return (
            application is not None and application.single_instance and not application.concurrent
        )

    # --- playing ------------------------------------------------------------------------------------

    def enter(self, step: Step, plan: Plan, alone: bool) -> None:
        """A recorded call. ``alone``: its return comes next, so nothing has to be held back."""
        assert step.flight is not None
        player = self._players.get(step.flight)
        regs = step.call.regs
        if player is None:
            player = self._players[step.flight] = Player(plan)
            self._make_room(plan)
        player.slice += 1
        player.answer = None
        if player.over:
            return
        if player.thread >= 0:
            self._note_allocation(player, step)
            regs = (*regs[:3], player.thread, *regs[4:])
            if step.request is not None:
                self._image(player, step)
        self._play(player, regs, forced=alone)

    def _note_allocation(self, player: Player, step: Step) -> None:
        request, regs = step.request, step.call.regs
        if request is None or low32(request.regs[0]) != smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            return
        player.allocation = pair(regs[1], regs[2]), pair(regs[4], regs[5])

    def _image(self, player: Player, step: Step) -> None:
        """The normal world's answer to LOAD_TA: our own image of that TA instead of the real one."""
        content, request = step.call.rpc_arg, step.request
        if content is None or request is None or player.plan.uuid is None:
            return
        if names.command(request.rpc_arg) != rpc.OPTEE_RPC_CMD_LOAD_TA:
            return
        data = content.data
        where = data[wire.HEADER_SIZE + wire.PARAM_SIZE :]
        if len(where) < wire.PARAM_SIZE or where[0] != msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT:
            return
        offset, size, cookie = (int.from_bytes(where[at : at + 8], "little") for at in (8, 16, 24))
        assert self.world is not None
        partition = self.world.partition(player.plan.flight.client)
        memory = None if partition is None else partition.shm.by_cookie.get(cookie)
        try:
            image = self._registry.image(player.plan.uuid, size=size)
        except KeyError:
            return
        if memory is not None and offset + len(image) <= memory.size:
            memory.write(offset, image)

    def _play(self, player: Player, regs: tuple[int, ...], *, forced: bool) -> None:
        """Run our secure world for a slice until it has an answer or is held back."""
        assert self.world is not None
        answer: Answer | None = None
        for _ in range(MAX_ROUNDS):
            run = self._run = _Run(player, forced)
            answer = self.world.smc(*regs)
            self._run = None
            status = low32(answer[0])
            if not names.is_rpc(status):
                player.over = True
                player.inside = False
                player.answer = answer
                return
            player.thread = answer[3]
            if run.hidden:
                return
            again = None if run.presented else self._unexpected(player, answer)
            if again is None:
                player.answer = answer
                return
            if again == "wait" and not forced:
                player.waiting = True
                return
            if again == "wait":
                self._run_others(player)
            regs = self._serve(player, answer)
        player.answer = answer

    def _unexpected(self, player: Player, answer: Answer) -> str | None:
        """An RPC that our secure world makes and the recorded one did not: of a lock, or ALLOC."""
        end = player.end
        status = low32(answer[0])
        if status == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            if end is not None and end.allocates:
                return None
            return "allocation" if player.allocation[0] else None
        if status != smc.OPTEE_SMC_RETURN_RPC_CMD:
            return None
        data = self._rpc_argument(player)
        if data is None or int.from_bytes(data[:4], "little") != rpc.OPTEE_RPC_CMD_NOTIFICATION:
            return None
        operation = int.from_bytes(data[40:48], "little")
        if end is not None and end.kind is Kind.NOTIFICATION and end.notification[0] == operation:
            return None
        self.hidden_waits += 1
        return "wait" if operation == rpc.OPTEE_RPC_NOTIFICATION_WAIT else "send"

    def _rpc_place(self, player: Player) -> int | None:
        """Address of the flight's RPC argument."""
        if not player.plan.flight.with_rpc_arg:
            return player.allocation[0] or None
        content = player.plan.flight.start.msg
        if content is None:
            return None
        return content.pa + wire.message_size(content.num_params)

    def _rpc_argument(self, player: Player) -> bytes | None:
        place = self._rpc_place(player)
        return None if place is None else self._memory.load(place, wire.message_size(1))

    def _serve(self, player: Player, answer: Answer) -> tuple[int, ...]:
        """Answer a hidden RPC as a driver would."""
        address, cookie = 0, 0
        if low32(answer[0]) == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            address, cookie = player.allocation
        else:
            place = self._rpc_place(player)
            if place is not None:
                self._memory.store(place + 20, tee.TEE_SUCCESS.to_bytes(4, "little"))
        client = player.plan.flight.start.regs[7]
        return names.RETURN_FROM_RPC, *split(address), player.thread, *split(cookie), 0, client

    def _run_others(self, player: Player) -> None:
        """Somebody holds the lock that ``player`` wants: let those go on that are held back."""
        for other in list(self._players.values()):
            if other is not player and not other.over and other.answer is None and other.slice >= 0:
                self._play(other, self._resumption(other), forced=not other.waiting)

    def _resumption(self, player: Player) -> tuple[int, ...]:
        client = player.plan.flight.start.regs[7]
        return names.RETURN_FROM_RPC, 0, 0, player.thread, 0, 0, 0, client

    def _make_room(self, plan: Plan) -> None:
        """A new flight: a thread that the recorded OP-TEE had free already must be free here."""
        if (
            not plan.ends
            or low32(plan.ends[0].answer.regs[0]) == smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
        ):
            return
        assert self.world is not None
        client = plan.flight.client
        partition = self.world.partition(client)
        if partition is None:
            return
        wanted = plan.flight.thread
        busy = self.world.suspended(client)
        full = len(busy) >= len(partition.threads)
        for other in list(self._players.values()):
            end = other.end
            if other.over or other.answer is not None or end is None:
                continue
            ends = end.kind is Kind.FINAL and other.plan.flight.client == client
            if ends and (full or other.thread == wanted):
                self._play(other, self._resumption(other), forced=True)

    def leave(self, step: Step) -> Answer | None:
        """A recorded return: what our secure world answered; None if it has no answer left."""
        assert step.flight is not None
        player = self._players[step.flight]
        if player.answer is None and not player.over:
            if player.waiting:
                self._run_others(player)
                player.waiting = False
                place = self._rpc_place(player)
                if place is not None:
                    self._memory.store(place + 20, tee.TEE_SUCCESS.to_bytes(4, "little"))
            self._play(player, self._resumption(player), forced=True)
        answer, player.answer = player.answer, None
        if step.answer is step.flight.final:
            self._players.pop(step.flight)
        return answer

    def forget(self, client: int) -> None:
        """A partition is gone."""
        for flight in [f for f in self._players if f.client == client]:
            del self._players[flight]

    def script(self) -> Return | None:
        """The recorded final answer of the call that our secure world is running."""
        return None if self._run is None else self._run.player.plan.flight.final
