# SPDX-License-Identifier: BSD-2-Clause
"""A target with guests on it, driven step by step and inspected after each.

What a guest does goes through here: stores, traps, answers to RPCs, changes of its stage 2, its end.
The bench keeps what the guests can know (which calls are suspended, where their RPC arguments are)
and nothing of what a mediator should do; that is judged by the inspector alone.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from attrs import frozen

from fuzz.inspector import Bounds, Inspector
from fuzz.service import PendingRpc, pending_from
from fuzz.strategies.disturbances import QUIET, Disturbance, Remap
from fuzz.view import GuestView, Writes
from fuzz.worlds import FuzzWorld
from smccc.constants import optee_smc as smc
from smccc.registers import MASK32, pair
from smccc.wire import MAX_PARAMS, NUM_PARAMS_OFFSET, message_size
from specs.target import PAGE_SIZE, Outcome, PageKind, Registers, Setup, Target, TargetFactory, Trap

W = TypeVar("W", bound=FuzzWorld)
WorldFactory = Callable[[Inspector], W]

MAX_TEARDOWN: Final = 4096
"""Entries that the destruction of a guest may take when it is preempted each time."""

_OFFSET: Final = PAGE_SIZE - 1


@frozen
class RegisteredBuffer:
    """A buffer that a guest registered: its pages in order, and the offset in the first."""

    pages: tuple[int, ...]
    offset: int = 0

    def ipa(self, position: int) -> int:
        """The IPA of byte ``position``; 0 beyond the end."""
        position += self.offset
        if position // PAGE_SIZE >= len(self.pages):
            return 0
        return self.pages[position // PAGE_SIZE] | position & _OFFSET


class _State:
    """What one guest knows."""

    def __init__(self) -> None:
        self.pending: dict[int, PendingRpc] = {}
        self.behind: dict[int, int | None] = {}
        self.arguments: dict[int, int] = {}
        self.buffers: dict[int, RegisteredBuffer] = {}


class Bench:
    """A target built from ``setup``, with all guests created in the TEE."""

    def __init__(
        self,
        factory: TargetFactory,
        setup: Setup,
        world: WorldFactory[FuzzWorld],
        bounds: Bounds | None = None,
    ) -> None:
        self.setup = setup
        self.specs = {guest.number: guest for guest in setup.guests}
        self.views = {guest.number: GuestView.of(guest) for guest in setup.guests}
        self.inspector = Inspector(setup.guests, bounds or Bounds())
        self.world = world(self.inspector)
        self.world.on_race = self._race
        self.world.on_meanwhile = self._meanwhile
        self.target: Target = factory(setup, self.world)
        self.inspector.attach(self.target)
        self._states = {number: _State() for number in self.specs}
        self._actor = 0
        self.alive: dict[int, None] = {}
        if not self.target.probe(True):
            self.inspector.report("I7", -1, "no usable TEE was found")
            self.inspector.check()
        for number in self.specs:
            self.create(number)

    # --- life cycle ------------------------------------------------------------------------------------

    def create(self, guest: int) -> bool:
        """Create the guest in the TEE; False if it is refused."""
        self.world.creating(guest)
        if not self.target.create(guest, True):
            return False
        self._states[guest] = _State()
        self.alive[guest] = None
        return True

    def destroy(self, guest: int, disturbance: Disturbance = QUIET) -> None:
        """Destroy the guest in the TEE, however often that is preempted, and judge what is left."""
        for _ in range(MAX_TEARDOWN):
            self.world.begin(guest, disturbance)
            try:
                done = self.target.destroy(guest)
            finally:
                self.world.end()
            if done:
                break
            disturbance = QUIET
        else:
            self.inspector.report("I7", guest, f"not destroyed after {MAX_TEARDOWN} entries")
        self.world.forget(guest)
        self.alive.pop(guest, None)
        self._states[guest] = _State()
        self.inspector.gone(guest)

    # --- memory ------------------------------------------------------------------------------------------

    def store(self, guest: int, writes: Writes) -> None:
        """The guest's stores; those to pages that it does not own are left out."""
        self.inspector.guest_wrote(writes)
        for address, data in writes:
            self._store(guest, address, data)

    def _store(self, guest: int, address: int, data: bytes) -> None:
        while data:
            part = data[: PAGE_SIZE - (address & _OFFSET)]
            pa = self.inspector.map.translate(guest, address)
            if pa is not None and self.inspector.owns(guest, pa):
                self.target.write(pa, part)
            address += len(part)
            data = data[len(part) :]

    def load(self, guest: int, address: int, length: int) -> bytes:
        """Bytes inside one page; zeroes where the guest has no memory."""
        pa = self.inspector.map.translate(guest, address)
        if pa is None or not self.inspector.owns(guest, pa):
            return bytes(length)
        return self.target.read(pa, length)

    def remap(self, guest: int, change: Remap) -> None:
        """Change stage 2 of the guest."""
        self.target.remap(guest, change.ipa, change.pages, change.kind)

    def restore_map(self, guest: int) -> None:
        """Every page of the guest is again what its map says."""
        for region in self.specs[guest].regions:
            if region.kind.owned:
                self.target.remap(guest, region.ipa, region.pages, region.kind)

    # --- traps ---------------------------------------------------------------------------------------------

    def trap(self, trap: Trap, disturbance: Disturbance = QUIET) -> Outcome:
        """One trap, judged. Exceptions of the target pass through: they are bugs by themselves."""
        guest = trap.guest
        self.inspector.guest_passed(trap.regs)
        place = self._place(trap)
        nested, self._actor = self._actor, guest
        self.world.begin(guest, disturbance)
        try:
            outcome = self.target.trap(trap)
        finally:
            self.world.end()
            self._actor = nested
        self.inspector.returned(trap, outcome, honest=self.world.honest)
        self._follow(trap, outcome, place)
        return outcome

    def call(
        self,
        guest: int,
        function: int,
        ipa: int,
        *,
        disturbance: Disturbance = QUIET,
        vcpu: int = 0,
    ) -> Outcome:
        """A yielding call with the message at ``ipa``."""
        regs: Registers = (function, ipa >> 32, ipa & MASK32, 1, 0, 0, 0, 0)
        return self.trap(Trap(guest, regs, vcpu=vcpu), disturbance)

    def call_registered(
        self, guest: int, cookie: int, offset: int, disturbance: Disturbance = QUIET
    ) -> Outcome:
        """CALL_WITH_REGD_ARG."""
        function = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
        regs: Registers = (function, cookie >> 32, cookie & MASK32, offset, 0, 0, 0, 0)
        return self.trap(Trap(guest, regs), disturbance)

    def trap_registers(
        self, guest: int, registers: Registers, disturbance: Disturbance = QUIET
    ) -> Outcome:
        """An SMC with these registers."""
        return self.trap(Trap(guest, registers), disturbance)

    def registered(self, guest: int, cookie: int, buffer: RegisteredBuffer) -> None:
        """The guest knows that ``buffer`` is registered under ``cookie``."""
        self._states[guest].buffers[cookie] = buffer

    def buffer(self, guest: int, cookie: int) -> RegisteredBuffer | None:
        """What the guest registered last under ``cookie``."""
        return self._states[guest].buffers.get(cookie)

    def pending(self, guest: int) -> tuple[PendingRpc, ...]:
        """The suspended calls of the guest as it sees them now, arguments included."""
        return tuple(
            [
                rpc if rpc.place is None else self._fresh(guest, rpc, rpc.place)
                for rpc in self._states[guest].pending.values()
            ]
        )

    def has_pending(self, guest: int) -> bool:
        """Whether a call of the guest is suspended."""
        return bool(self._states[guest].pending)

    def _fresh(self, guest: int, rpc: PendingRpc, place: int) -> PendingRpc:
        data = self.load(guest, place, PAGE_SIZE - (place & _OFFSET))
        return PendingRpc(rpc.thread, rpc.status, rpc.a1, rpc.a2, place, data)

    # --- inside ----------------------------------------------------------------------------------------------

    def _race(self, disturbance: Disturbance) -> None:
        guest = self._actor
        self.store(guest, disturbance.race_writes)
        if disturbance.race_remap is not None:
            self.remap(guest, disturbance.race_remap)

    def _meanwhile(self, trap: Trap) -> None:
        self.trap(trap)

    def _place(self, trap: Trap) -> int | None:
        """Where the RPC argument behind the message of this call is; None: it has none there."""
        regs = trap.regs
        function = regs[0] & MASK32
        value = pair(regs[1], regs[2])
        if function == smc.OPTEE_SMC_CALL_WITH_RPC_ARG:
            base: int | None = value
        elif function == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
            buffer = self._states[trap.guest].buffers.get(value)
            base = None if buffer is None else buffer.ipa(regs[3] & MASK32)
        elif function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            state = self._states[trap.guest]
            known = state.pending.get(regs[3] & MASK32)
            if known is not None and known.status == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
                state.arguments[pair(regs[4], regs[5])] = value
            return state.behind.get(regs[3] & MASK32)
        else:
            return None
        if base is None or base & _OFFSET > PAGE_SIZE - 32:
            return None
        head = self.load(trap.guest, base + NUM_PARAMS_OFFSET, 4)
        (count,) = struct.unpack("<I", head)
        if count > MAX_PARAMS:
            return None
        place = base + message_size(count)
        return place if place & ~_OFFSET == base & ~_OFFSET else None

    def _follow(self, trap: Trap, outcome: Outcome, place: int | None) -> None:
        """Keep the books of suspended calls."""
        if outcome.undefined or outcome.handled_by is not None:
            return
        state = self._states[trap.guest]
        function = trap.regs[0] & MASK32
        if function >> 31 or function >> 24 != 0x32:
            return
        status = outcome.regs[0] & MASK32
        if function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            if status == smc.OPTEE_SMC_RETURN_ERESUME:
                return
            state.pending.pop(trap.regs[3] & MASK32, None)
            state.behind.pop(trap.regs[3] & MASK32, None)
        rpc = pending_from(outcome.regs, place)
        if rpc is None:
            return
        if rpc.is_command and place is None:
            found = state.arguments.get(pair(rpc.a1, rpc.a2))
            rpc = PendingRpc(rpc.thread, rpc.status, rpc.a1, rpc.a2, found)
        state.pending[rpc.thread] = rpc
        state.behind[rpc.thread] = place

    # --- judging -----------------------------------------------------------------------------------------------

    def inspect(self, *, rest: bool = False) -> None:
        """All invariants, now. ``rest``: no call of any guest is in flight."""
        inspector = self.inspector
        inspector.steps += 1
        for guest in self.specs:
            inspector.memory(guest)
            if guest not in self.alive:
                inspector.gone(guest)
                continue
            used = self.world.in_use(guest)
            if used is None:
                inspector.pins(guest)
                continue
            pages, cookies = used
            hold: Counter[int] = Counter(pages)
            if rest:
                for cookie in cookies:
                    pa = inspector.map.translate(
                        guest, self._states[guest].arguments.get(cookie, 0)
                    )
                    if pa is not None:
                        hold[pa] += 1
            inspector.pins(guest, hold, rest)
        inspector.check()

    def kinds(self, guest: int) -> tuple[PageKind, ...]:
        """Kinds of pages that the guest's map has."""
        return tuple(dict.fromkeys([region.kind for region in self.specs[guest].regions]))
