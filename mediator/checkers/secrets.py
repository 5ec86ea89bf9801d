# SPDX-License-Identifier: BSD-2-Clause
"""I1 no leak, and I2 own memory only: judged from memory itself, not from what the mediator says."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, cast

from mediator.checkers.verdict import Event, Handler, Report
from mediator.checkers.view import MachineView
from mediator.host import PAGE_LIST_ENTRIES, PAGE_MASK, PAGE_SIZE
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.registers import pair
from smccc.wire import HEADER_SIZE, KIND_TMEM, MAX_PARAMS, PARAM_KIND, PARAM_SIZE

CARRIES_MESSAGE: Final = frozenset((smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG))
GUEST_ONLY: Final = frozenset((smc.OPTEE_SMC_CALL_WITH_REGD_ARG,))
"""Functions that name guest memory directly: never forwarded."""


class NoLeak:
    """I1: no address of a hidden page reaches a guest, in registers or in memory."""

    def __init__(self, view: MachineView, report: Report) -> None:
        self._view = view
        self._report = report
        self._asked: dict[tuple[int, int], tuple[int, ...]] = {}

    def handlers(self) -> Mapping[type, Handler]:
        """Registers at the boundary and every write of the mediator into guest memory."""
        return {
            machine_events.TrapEnter: self._enter,
            machine_events.TrapExit: self._exit,
            host_events.GuestWritten: self._written,
            host_events.PinnedWritten: self._written,
        }

    def _enter(self, event: Event) -> None:
        trap = cast("machine_events.TrapEnter", event)
        self._asked[trap.guest, trap.vcpu] = trap.regs

    def _exit(self, event: Event) -> None:
        trap = cast("machine_events.TrapExit", event)
        before = self._asked.pop((trap.guest, trap.vcpu), None)
        if before is None or before == trap.regs:
            return
        now = trap.regs
        for value in (*now, pair(now[1], now[2]), pair(now[4], now[5])):
            if value not in before and self._view.is_hidden(value):
                if value == pair(before[1], before[2]) or value == pair(before[4], before[5]):
                    continue
                self._report("I1", trap.guest, f"a register holds the hidden address {value:#x}")

    def _written(self, event: Event) -> None:
        # Both events have the segments last and the guest first.
        guest = cast("int", event[0])
        for offset, data in cast("tuple[tuple[int, bytes], ...]", event[2]):
            start = -offset % 8
            for (word,) in struct.iter_unpack(
                "<Q", data[start : len(data) - (len(data) - start) % 8]
            ):
                if self._view.is_hidden(word):
                    self._report("I1", guest, f"guest memory gets the hidden address {word:#x}")

    def finish(self, report: Report) -> None:
        """Nothing is left to see."""


class OwnMemoryOnly:
    """I2: all memory that the TEE is given is mediator memory or pinned RAM of that very guest."""

    def __init__(self, view: MachineView, report: Report) -> None:
        self._view = view
        self._report = report
        self._rpc_at: dict[tuple[int, int], int] = {}
        self._requests: dict[tuple[int, int], bytes] = {}

    def handlers(self) -> Mapping[type, Handler]:
        """Every entry of the TEE on behalf of a guest, and breaches of the bus."""
        return {
            events.Forwarded: self._forwarded,
            events.Answered: self._answered,
            events.CallEnded: self._ended,
            events.GuestTornDown: self._gone,
            host_events.BusBreach: self._breach,
        }

    def _breach(self, event: Event) -> None:
        breach = cast("host_events.BusBreach", event)
        kind = "wrote" if breach.write else "read"
        self._report(
            "I2", -1, f"client {breach.client} {kind} {breach.length} bytes at {breach.pa:#x}"
        )

    def _forwarded(self, event: Event) -> None:
        guest, call, _, regs = cast("events.Forwarded", event)
        function = regs[0]
        if function in GUEST_ONLY:
            self._report("I2", guest, f"function {function:#x} names guest memory directly")
        if function in CARRIES_MESSAGE:
            pa = pair(regs[1], regs[2])
            size = self._message(guest, pa)
            if function == smc.OPTEE_SMC_CALL_WITH_RPC_ARG:
                self._rpc_at[guest, call] = pa + size
        elif function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            pa = pair(regs[1], regs[2])
            if pa and (regs[4] or regs[5]) and not self._view.is_mediators(pa):
                self._report("I2", guest, f"the TEE gets {pa:#x} for its RPC messages")
            at = self._rpc_at.get((guest, call))
            if at is not None:
                self._message(guest, at, self._requests.get((guest, call), b""))

    def _answered(self, event: Event) -> None:
        # What the TEE wrote into its own request nobody gave it, even if it comes back.
        guest, call, _, _ = cast("events.Answered", event)
        at = self._rpc_at.get((guest, call))
        if at is not None:
            rest = PAGE_SIZE - (at & PAGE_MASK)
            self._requests[guest, call] = self._view.read(at, rest) or b""

    def _ended(self, event: Event) -> None:
        guest, call, _, _ = cast("events.CallEnded", event)
        self._rpc_at.pop((guest, call), None)
        self._requests.pop((guest, call), None)

    def _gone(self, event: Event) -> None:
        guest = cast("events.GuestTornDown", event).guest
        for key in [key for key in self._rpc_at if key[0] == guest]:
            del self._rpc_at[key]
            self._requests.pop(key, None)

    def _message(self, guest: int, pa: int, own: bytes = b"") -> int:
        """Check one message in mediator memory; its size in bytes. ``own``: what the TEE wrote."""
        data = self._view.read(pa & ~PAGE_MASK, PAGE_SIZE)
        if data is None or not self._view.is_mediators(pa):
            self._report("I2", guest, f"the message at {pa:#x} is no mediator memory")
            return HEADER_SIZE
        start = pa & PAGE_MASK
        (count,) = struct.unpack_from("<I", data, start + 28)
        if count > MAX_PARAMS or start + HEADER_SIZE + count * PARAM_SIZE > PAGE_SIZE:
            return HEADER_SIZE
        for index in range(count):
            at = start + HEADER_SIZE + index * PARAM_SIZE
            attr, address, size, _ = struct.unpack_from("<4Q", data, at)
            if data[at : at + PARAM_SIZE] == own[at - start :][:PARAM_SIZE]:
                continue
            if PARAM_KIND[attr & 0xFF] == KIND_TMEM and address:
                self._buffer(guest, attr, address, size)
        return HEADER_SIZE + cast("int", count) * PARAM_SIZE

    def _buffer(self, guest: int, attr: int, address: int, size: int) -> None:
        if not attr & msg.OPTEE_MSG_ATTR_NONCONTIG:
            self._report("I2", guest, f"the TEE gets the guest's own address {address:#x}")
            return
        left = ((address & PAGE_MASK) + size + PAGE_MASK) // PAGE_SIZE
        link = address & ~PAGE_MASK
        while left > 0:
            page = self._view.read(link, PAGE_SIZE)
            if page is None or not self._view.is_mediators(link):
                self._report("I2", guest, f"the list page {link:#x} is no mediator memory")
                return
            here = min(left, PAGE_LIST_ENTRIES)
            if not self._view.shared(guest, page[: here * 8]):
                self._report("I2", guest, f"the list at {link:#x} names a page that is not pinned")
                return
            left -= here
            link = int.from_bytes(page[PAGE_LIST_ENTRIES * 8 :], "little")

    def finish(self, report: Report) -> None:
        """Nothing is left to see."""
