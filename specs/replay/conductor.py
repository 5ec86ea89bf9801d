# SPDX-License-Identifier: BSD-2-Clause
"""Our secure world, made to take the recorded schedule.

Inside OP-TEE the order of things is not in a trace: a foreign interrupt says that a thread left, not
where it was, and calls that overlap may have entered in any order. The conductor chooses, at the sites
that the secure world offers, so that locks are held as shortly as the recording allows: a flight
begins its work when the recording shows a request or a result of it, and then goes on to its results
unless it must ask for something; recorded stimuli come before or after. Thread and session numbers in
the recording tell who came first where it matters. Where a thread still waits for a lock in another
order than recorded, the conductor serves that wait itself and counts it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final
from uuid import UUID

import attrs

from secure_world.monitor import (
    SITE_EXIT,
    SITE_WAITED,
    STIMULUS_FOREIGN_INTERRUPT,
    STIMULUS_SEND,
    STIMULUS_WAIT,
)
from secure_world.ta import TaRegistry
from secure_world.thread import FREE
from secure_world.world import SecureWorld
from smccc import wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.registers import low32, pair, split
from specs.replay import names
from specs.replay.chain import Flight, Step
from specs.replay.expectation import Kind, Plan
from specs.replay.player import Answer, Player
from specs.replay.recorded_memory import RecordedMemory
from specs.replay.records import Return

NOTIFICATION_BASE: Final = 0x40
"""A thread waits for 0x40 plus its number (OP-TEE OS ``kernel/notif.h``)."""

MAX_ROUNDS: Final = 64
"""Hidden rounds of one slice before it is given up: each serves one wait or send of a lock."""

MAX_WAITS: Final = 4
"""Times that a slice looks again for a lock that it cannot get."""

_M32: Final = 0xFFFF_FFFF


@attrs.define
class _Run:
    """What may happen while our secure world runs a slice: ``work``: the flight may begin its work;
    ``finish``: it may end the slice as recorded, and else is held at its results."""

    player: Player
    work: bool
    finish: bool
    stuck: bool = False
    """It waits for a lock that it cannot get now."""
    presented: bool = False
    hidden: bool = False


class Conductor:
    """A monitor that raises the recorded stimuli, and the player of all flights."""

    def __init__(
        self, memory: RecordedMemory, registry: TaRegistry, plans: Iterable[Plan] = ()
    ) -> None:
        self._memory = memory
        self._registry = registry
        self._finals: dict[tuple[int, int | None], list[int]] = {}
        """Client and thread to ``seq`` of the final answers of its flights, ascending."""
        for plan in plans:
            final = plan.flight.final
            if final is not None:
                key = plan.flight.client, plan.flight.thread
                self._finals.setdefault(key, []).append(final.seq)
        for finals in self._finals.values():
            finals.sort()
        self._seq = 0
        """Number of the recorded event that is being played."""
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
        player = run.player
        if site == SITE_EXIT:
            player.inside = False
            return self._raise(run, thread) if run.finish or player.stimulated else self._hide(run)
        if not player.worked:
            if not self._ready(player):
                if player.stimulated and run.finish:
                    return self._raise(run, thread)
                if not run.work:
                    return self._hide(run)
            player.worked = player.inside = True
            return None
        if site == SITE_WAITED and run.stuck:
            return self._raise(run, thread)
        if not player.plan.asks_after(player.slice):
            return None  # on to the results, so that locks are free as soon as they can be
        if player.stimulated and run.finish:
            return self._raise(run, thread)
        return None if run.finish else self._hide(run)

    def _ready(self, player: Player) -> bool:
        """Whether the work can be done at once, in one go and in nobody's way.

        The recorded flight did it at some time before its end, and after the last of its waits.
        """
        plan, rest = player.plan, player.plan.ends[player.slice :]
        sends = player.end is not None and player.end.sends
        if plan.asks_after(player.slice) or (player.closes and not sends):
            return False  # a session number may depend on whether one was closed before
        if any(end.waits for end in rest):
            return False
        if player.opens and player.opens != self._next_session(player.client):
            return False
        return not any(
            other.inside and self._clash(plan, other.plan) for other in self._others(player)
        )

    def _clash(self, one: Plan, other: Plan) -> bool:
        """Whether two flights can want the same lock of our secure world."""
        if one.apart or other.apart or one.uuid is None or other.uuid is None:
            return False
        if msg.OPTEE_MSG_CMD_CANCEL in (one.command, other.command):
            return False
        if one.session and one.session == other.session:
            return True
        if self._single(one.uuid) and self._single(other.uuid):
            return True
        opening = msg.OPTEE_MSG_CMD_OPEN_SESSION in (one.command, other.command)
        return one.uuid == other.uuid and opening

    def _single(self, uuid: UUID) -> bool:
        application = self._registry.find(uuid.bytes)
        return (
            application is not None and application.single_instance and not application.concurrent
        )

    def _raise(self, run: _Run, thread: int) -> tuple[int, int] | None:
        """The recorded stimulus of this slice, if there is one."""
        player, end = run.player, run.player.end
        if end is None or not player.stimulated:
            return None
        if not run.finish:
            return self._hide(run)
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

    # --- entering and leaving ---------------------------------------------------------------------

    def enter(self, step: Step, plan: Plan, alone: bool) -> None:
        """A recorded call. ``alone``: its return comes next, so nobody else can matter."""
        assert step.flight is not None
        player = self._players.get(step.flight)
        if player is None:
            player = self._players[step.flight] = Player(plan)
        self._seq = step.call.seq
        player.slice += 1
        player.active = True
        player.answer = None
        if player.over:
            return
        player.regs = step.call.regs
        if player.thread >= 0:
            self._note_allocation(player, step)
            player.regs = (*step.call.regs[:3], player.thread, *step.call.regs[4:])
            if step.request is not None:
                self._image(player, step)
            if player.held:
                player.regs = None  # it went on before its time; nothing is left to resume
        if alone:
            self._complete(player)
        elif player.refused:
            self._refuse(player.client)
        elif player.worked and player.regs is not None:
            self._play(player, work=True, finish=False)

    def leave(self, step: Step) -> Answer | None:
        """A recorded return: what our secure world answered; None if it has no answer left."""
        assert step.flight is not None
        assert step.answer is not None
        self._seq = step.answer.seq
        player = self._players[step.flight]
        if player.answer is None and not player.over:
            self._complete(player)
        answer, player.answer = player.answer, None
        player.active = False
        if step.answer is step.flight.final:
            self._players.pop(step.flight)
        return answer

    def before_end_of(self, client: int) -> None:
        """A partition ends: whoever is in it and will be answered must have been there before."""
        for player in list(self._players.values()):
            if player.client != client or not player.active or player.answer is not None:
                continue
            end = player.end
            late = end is not None and low32(end.answer.regs[0]) == smc.OPTEE_SMC_RETURN_ENOTAVAIL
            if not late and not player.over:
                self._complete(player)

    def forget(self, client: int) -> None:
        """A partition is gone; calls that are on their way out still have their answers."""
        for flight, player in list(self._players.items()):
            if player.client == client and not player.active:
                del self._players[flight]

    def _complete(self, player: Player) -> None:
        """Bring a slice to its recorded end, and first whatever must have happened before."""
        if player.thread < 0:
            self._find_thread(player)
        if player.ends:
            self._before_end(player)
        if player.closes and not player.worked:
            self._before_close(player)
        if not player.worked:
            if not player.stimulated or (player.end is not None and player.end.sends):
                self._find_session(player)  # who sends has done the work that holds the lock
            if not player.stimulated:
                self._find_lock(player)
        if player.answer is None and not player.over:
            self._play(player, work=True, finish=True)

    # --- what must have happened before ---------------------------------------------------------------

    def _others(self, player: Player) -> list[Player]:
        """The other flights of its partition that are not over."""
        return [
            other
            for other in self._players.values()
            if other is not player and other.client == player.client and not other.over
        ]

    def _free_threads(self, client: int) -> list[int]:
        """Free threads of a partition, the one that the next call takes first."""
        assert self.world is not None
        partition = self.world.partition(client)
        if partition is None:
            return []
        return [thread.index for thread in partition.threads if thread.state == FREE]

    def _waiting(self, player: Player) -> list[Player]:
        """Other flights under way that have no thread yet and will get one."""
        return [
            other
            for other in self._others(player)
            if other.thread < 0 and other.active and not other.refused and other.answer is None
        ]

    def _find_thread(self, player: Player) -> None:
        """Let those start or end that did so before this flight got its thread.

        OP-TEE takes the first free thread. A recorded flight shows its thread with its first RPC.
        """
        if player.refused:
            for other in self._waiting(player):
                if self._free_threads(player.client):
                    self._play(other, work=False, finish=False)
            return
        wanted = player.wanted_thread
        for _ in range(MAX_ROUNDS):
            free = self._free_threads(player.client)
            if free and wanted in (None, free[0]):
                # Who shows no thread was done before the last one was taken.
                brief = [o for o in self._waiting(player) if o.wanted_thread is None and o.ends]
                if wanted is None or len(free) > 1 or not brief:
                    return
                self._complete(brief[0])
            elif not free or (wanted is not None and wanted < free[0]):
                if not self._end_one(player, wanted):
                    return
            elif not self._start_one(player, free[0]):
                return

    def _before_end(self, player: Player) -> None:
        """What a flight that ends must not change for others: who was refused, who got which thread."""
        self._refuse(player.client)
        for _ in range(MAX_ROUNDS if player.thread >= 0 else 0):
            free = self._free_threads(player.client)
            found = [o for o in self._waiting(player) if free and o.wanted_thread == free[0]]
            found = [o for o in found if not self._after_another(o)]
            if not found or player.thread > free[0]:
                return
            self._play(found[0], work=False, finish=False)

    def _after_another(self, player: Player) -> bool:
        """Whether another flight still has to come and go on the same thread before this one."""
        finals = self._finals.get((player.client, player.wanted_thread), [])
        following = bisect_right(finals, self._seq)
        return following < len(finals) and finals[following] < player.plan.shown

    def _before_close(self, player: Player) -> None:
        """Whoever waits while it opens a session has the number of that session already."""
        number = self._next_session(player.client)
        if player.plan.session != number - 1:
            return
        for other in self._others(player):
            past = other.plan.ends[: other.slice + (not other.active)]
            if other.opens == number and not other.worked and any(end.waits for end in past):
                self._play(other, work=True, finish=False)
                return

    def _refuse(self, client: int) -> None:
        """Enter with those that found no thread, as long as there is none."""
        for player in list(self._players.values()):
            waiting = player.client == client and player.refused and player.active
            if waiting and player.answer is None and not self._free_threads(client):
                self._play(player, work=False, finish=False)

    def _end_one(self, player: Player, thread: int | None) -> bool:
        """End a flight whose last slice is under way and that has the thread (or any thread)."""
        for other in self._others(player):
            ending = other.active and other.ends and other.thread >= 0 and other.answer is None
            if ending and thread in (None, other.thread):
                self._complete(other)
                return True
        return False

    def _start_one(self, player: Player, thread: int) -> bool:
        """Start a flight that had this thread, or one that shows none."""
        for wanted in (thread, None):
            for other in self._waiting(player):
                if other.wanted_thread == wanted:
                    self._play(other, work=False, finish=False)
                    return True
        return False

    def _next_session(self, client: int) -> int:
        """The number that the next session will get: one more than that of the last one."""
        assert self.world is not None
        partition = self.world.partition(client)
        sessions = {} if partition is None else partition.sessions.sessions
        return next(reversed(sessions), 0) + 1

    @staticmethod
    def _can_work(other: Player) -> bool:
        """Whether a flight can begin its work: it has a thread, or is about to get one."""
        return other.thread >= 0 or (other.active and other.answer is None and not other.refused)

    def _find_session(self, player: Player) -> None:
        """Let sessions be opened and closed that were so before this flight opened its own."""
        for _ in range(MAX_ROUNDS if player.opens else 0):
            free = self._next_session(player.client)
            if free == player.opens:
                return
            later = [o for o in self._others(player) if not o.worked and self._can_work(o)]
            if free < player.opens:
                found = [o for o in later if o.opens == free]
            else:
                found = [o for o in later if o.closes]
            if not found:
                return
            if found[0].thread < 0:
                self._find_thread(found[0])
            self._play(found[0], work=True, finish=False)

    def _find_lock(self, player: Player) -> None:
        """Before a lock is held across a request: let those do their work that never wait for it.

        Which of them came first the recording does not say; done at once, they are in nobody's way.
        """
        if player.ends:
            return
        for other in self._others(player):
            under_way = other.active and other.answer is None
            if other.worked or not self._can_work(other):
                continue
            if not self._clash(player.plan, other.plan):
                continue
            rest = other.plan.ends[other.slice + (not under_way) :]
            if other.plan.asks_after(other.slice) or any(end.waits for end in rest):
                continue
            if other.opens and other.opens != self._next_session(other.client):
                continue
            if under_way and (other.ends or other.thread < 0):
                self._complete(other)
            else:
                self._play(other, work=True, finish=False)

    # --- playing ------------------------------------------------------------------------------------

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
        partition = self.world.partition(player.client)
        memory = None if partition is None else partition.shm.by_cookie.get(cookie)
        if memory is None or offset + size > memory.size:
            return
        try:
            image = self._registry.image(player.plan.uuid, size=size)
        except KeyError:
            return
        if offset + len(image) <= memory.size:
            memory.write(offset, image)

    def _play(self, player: Player, *, work: bool, finish: bool) -> None:
        """Run our secure world for a slice until it has an answer or is held back."""
        assert self.world is not None
        regs = player.regs or self._resumption(player)
        player.regs = None
        answer: Answer | None = None
        waits = 0
        for _ in range(MAX_ROUNDS):
            run = self._run = _Run(player, work, finish, stuck=waits > 0)
            answer = self.world.smc(*regs)
            self._run = None
            player.held = run.hidden
            if not names.is_rpc(answer[0]):
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
            if again == "wait":
                waits += 1
                if not finish or waits > MAX_WAITS:
                    player.held = True
                    break
                self._let_go(player)
            regs = self._serve(player, answer)
        if finish:
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
            value = int.from_bytes(data[48:56], "little")
            if end.waits or end.notification[1] == value:
                return None  # else another waiter was first in the queue: the recorded one follows
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

    def _let_go(self, player: Player) -> None:
        """Somebody holds the lock that ``player`` wants: let those go on who can."""
        for other in self._others(player):
            able = other.held or other.regs is not None
            if other.inside and able and other.thread >= 0:
                self._play(other, work=True, finish=False)

    def _resumption(self, player: Player) -> tuple[int, ...]:
        place = self._rpc_place(player)
        if place is not None:
            # It may wait for a lock: then this is what a driver answers.
            self._memory.store(place + 20, tee.TEE_SUCCESS.to_bytes(4, "little"))
        client = player.plan.flight.start.regs[7]
        return names.RETURN_FROM_RPC, 0, 0, player.thread, 0, 0, 0, client

    def script(self) -> Return | None:
        """The recorded final answer of the call that our secure world is running."""
        return None if self._run is None else self._run.player.plan.flight.final
