# SPDX-License-Identifier: BSD-2-Clause
"""A recorded session as operations: each call with its RPCs and its result, without addresses.

Every operation becomes lines of text that mean the same in every guest: a cookie is written as what was
registered under it, a private page as such, values and registers as they are. Two drivers behave the
same where their lines are equal. What is dropped, or written as a rule instead of a number, is told in
:mod:`mediator.live.comparison.reasons`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd
from typing import Final

import attrs

from smccc import wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.page_list import ENTRIES, entry_count
from smccc.registers import low32, pair
from specs.replay import names
from specs.replay.compare import Parameter, parameters
from specs.replay.records import MESSAGE_OWNER, Call, Content, ListPage, Return

PAGE: Final = 4096
_CANCEL_ID: Final = 12
_KINDS: Final = {0: "none", 1: "value in", 2: "value out", 3: "value inout"} | {
    base + n: f"{name} {way}"
    for base, name in (
        (msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT, "rmem"),
        (msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT, "tmem"),
    )
    for n, way in enumerate(("in", "out", "inout"))
}
_UNTIMED: Final = (smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR,)
_ALLOC: Final = smc.OPTEE_SMC_RETURN_RPC_ALLOC
_FREE: Final = smc.OPTEE_SMC_RETURN_RPC_FREE


@attrs.frozen
class Operation:
    """One call. ``head``: what was called; ``lines``: everything compared, the head first.

    ``seq``: of the call. ``session``: of the message, or the new one. ``command``: of the message, -1
    for a fast call. ``waits``: NOTIFICATION requests, which are dropped from the lines.
    """

    seq: int
    head: str
    lines: tuple[str, ...]
    command: int = -1
    session: int = 0
    interrupts: int = 0
    waits: int = 0
    limits: int = 0


@attrs.define
class _Flight:
    seq: int
    head: str
    lines: list[str]
    command: int
    session: int = 0
    interrupts: int = 0
    waits: int = 0
    limits: int = 0
    asked: int | None = None
    """Command of the RPC that is being served; None: no command."""
    request: int = 0
    """Status of that RPC."""
    leftover: tuple[int, int] = (0, 0)
    register: tuple[int, str] = (0, "")
    """Cookie and name of what it makes known."""
    message: tuple[int, ...] = ()
    """Registers that say where it is."""

    def done(self) -> Operation:
        return Operation(
            self.seq, self.head, tuple(self.lines), self.command, self.session,
            self.interrupts, self.waits, self.limits,
        )  # fmt: skip


@attrs.define
class Facts:
    """What a stream showed beside its operations.

    ``offsets``: for each size, offsets in their page at which memory of that size was registered.
    ``reused``: registrations under a cookie that had been given up.
    ``unknown``: where a cookie was named that was not registered. ``allocated``: RPC ALLOC answers.
    """

    offsets: dict[int, list[int]] = attrs.Factory(dict)
    registrations: int = 0
    reused: int = 0
    allocated: int = 0
    unknown: list[int] = attrs.Factory(list)


class Stream:
    """The operations of one guest, from its recorded calls and answers."""

    def __init__(self, events: Iterable[Call | Return]) -> None:
        self.facts = Facts()
        self._memory: dict[int, str] = {}
        self._private: dict[int, str] = {}
        self._gone: set[int] = set()
        self._cookies: set[int] = set()
        self._threads: dict[int, _Flight] = {}
        self._open: dict[int, tuple[Call, _Flight | None]] = {}
        self._limited: list[_Flight] = []
        order: list[_Flight | Operation] = []
        for event in events:
            if isinstance(event, Call):
                begun = self._call(event)
                if begun is not None:
                    order.append(begun)
            else:
                self._answer(event, order)
        self.operations = tuple([o.done() if isinstance(o, _Flight) else o for o in order])

    # Calls

    def _call(self, call: Call) -> _Flight | None:
        function = low32(call.regs[0])
        flight: _Flight | None = None
        if function in names.CALLS_WITH_MESSAGE:
            flight = self._begin(call)
            self._open[call.cpu] = call, flight
            for again in self._limited:
                if (again.message, again.lines) == (flight.message, flight.lines):
                    self._limited.remove(again)
                    self._open[call.cpu] = call, again
                    return None
            return flight
        if function == names.RETURN_FROM_RPC:
            flight = self._threads.pop(low32(call.regs[3]), None)
            if flight is not None:
                self._resume(call, flight)
        self._open[call.cpu] = call, flight
        return None

    def _begin(self, call: Call) -> _Flight:
        assert call.msg is not None
        head = call.name
        fields = wire.MESSAGE[0].unpack_from(call.msg.data)
        registers = [f"{number:#x}" for number in call.regs[3:7]]
        if low32(call.regs[0]) == names.CALL_WITH_REGD_ARG:
            where = f"slot of {self._name(pair(call.regs[1], call.regs[2]), call.seq)}"
        else:
            where = f"private page + {pair(call.regs[1], call.regs[2]) % PAGE:#x}"
        flight = _Flight(call.seq, head, [], fields[wire.CMD], fields[wire.SESSION])
        flight.message = call.regs[:4]
        flight.lines = [
            f"{head} in {where}",
            f"a3 to a6: {' '.join(registers)}",
            self._header(call.msg),
        ]
        registering = flight.command == msg.OPTEE_MSG_CMD_REGISTER_SHM
        for param in parameters(call.msg.data):
            text = self._list(param, call.page_list, flight) if registering else None
            flight.lines.append(f"param {param.number}: {text or self._param(param, call.seq)}")
        self._contents(call, flight)
        return flight

    def _resume(self, call: Call, flight: _Flight) -> None:
        a1, a2, a4, a5 = (low32(call.regs[n]) for n in (1, 2, 4, 5))
        status = flight.request
        if status == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
            flight.interrupts += 1
            return
        if status == _ALLOC:
            cookie = pair(a4, a5)
            self.facts.allocated += bool(cookie)
            self._cookies.add(cookie)
            self._private[cookie] = "private memory"
            given = "none" if not cookie else f"page + {pair(a1, a2) % PAGE:#x} and a cookie"
            flight.lines.append(f"ALLOC answered: {given}, a6 {call.regs[6]:#x}")
            flight.leftover = a4, a5
            return
        if flight.asked == rpc.OPTEE_RPC_CMD_NOTIFICATION:
            flight.waits += 1
            return
        same = "as its ALLOC left them" if (a4, a5) == flight.leftover else f"{a4:#x} {a5:#x}"
        flight.lines.append(
            f"resumed: a1:a2 {self._private.get(pair(a1, a2), f'{a1:#x} {a2:#x}')}, a4 a5 {same}, "
            f"a6 {call.regs[6]:#x}"
        )
        if call.rpc_arg is None:
            return
        flight.lines.append(f"answer: {self._header(call.rpc_arg)}")
        for param in parameters(call.rpc_arg.data):
            text = None
            if flight.asked == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                text = self._list(param, call.page_list, flight)
                if text:
                    self._remember(*flight.register)
            elif flight.asked == rpc.OPTEE_RPC_CMD_GET_TIME:
                text = f"{_KINDS.get(param.attr & 0xFF)} the time, c {param.c:#x}"
            elif flight.asked == rpc.OPTEE_RPC_CMD_SHM_FREE:
                text = f"{_KINDS.get(param.attr & 0xFF)} {param.a:#x}, the cookie, c {param.c:#x}"
            flight.lines.append(
                f"answer param {param.number}: {text or self._param(param, call.seq)}"
            )
        self._contents(call, flight)

    # Answers

    def _answer(self, event: Return, order: list[_Flight | Operation]) -> None:
        call, flight = self._open.pop(event.cpu)
        status = low32(event.regs[0])
        if flight is None:
            order.append(self._fast(call, event))
            return
        if names.is_rpc(status):
            flight.request = status
            flight.asked = None
            self._threads[low32(event.regs[3])] = flight
            self._request(event, flight, status)
            return
        if status == smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT:
            flight.limits += 1
            self._limited.append(flight)
            return
        flight.lines.append(f"ended: {names.STATUSES.get(status, hex(status))}")
        if event.msg is None:
            return
        fields = wire.MESSAGE[0].unpack_from(event.msg.data)
        flight.lines.append(f"result: {self._header(event.msg)}")
        if flight.command == msg.OPTEE_MSG_CMD_OPEN_SESSION:
            flight.session = fields[wire.SESSION]
        if flight.command == msg.OPTEE_MSG_CMD_REGISTER_SHM:
            if flight.register[1] and not fields[wire.RET]:
                self._remember(*flight.register)
        elif flight.command == msg.OPTEE_MSG_CMD_UNREGISTER_SHM:
            for param in parameters(event.msg.data):
                self._forget(param.c)
        else:
            for param in parameters(event.msg.data):
                flight.lines.append(f"result param {param.number}: {self._param(param, event.seq)}")

    def _fast(self, call: Call, event: Return) -> Operation:
        found = [f"{number:#x}" for number in event.regs[:4]]
        if low32(call.regs[0]) == smc.OPTEE_SMC_DISABLE_SHM_CACHE and not event.regs[0]:
            cookie = pair(event.regs[1], event.regs[2])
            found[1:3] = [self._private.pop(cookie, "an unknown cookie")]
        asked = " ".join([f"{number:#x}" for number in call.regs[1:8]])
        return Operation(call.seq, call.name, (call.name, f"a1 to a7: {asked}", " ".join(found)))

    def _request(self, event: Return, flight: _Flight, status: int) -> None:
        if status in _UNTIMED:
            return
        if status == _ALLOC:
            flight.lines.append(f"ALLOC of {event.regs[1]:#x}")
        elif status == _FREE:
            cookie = pair(event.regs[1], event.regs[2])
            flight.lines.append(f"FREE of {self._private.pop(cookie, 'an unknown cookie')}")
        if event.rpc_arg is None:
            return
        flight.asked = names.command(event.rpc_arg)
        if flight.asked == rpc.OPTEE_RPC_CMD_NOTIFICATION:
            return
        flight.lines.append(f"request {event.name}: {self._header(event.rpc_arg)}")
        for param in parameters(event.rpc_arg.data):
            text = None
            if flight.asked == rpc.OPTEE_RPC_CMD_SHM_FREE:
                text = f"value in {param.a:#x} of {self._name(param.b, event.seq)}"
                self._forget(param.b)
            flight.lines.append(f"param {param.number}: {text or self._param(param, event.seq)}")

    # Memory

    def _remember(self, cookie: int, name: str) -> None:
        facts = self.facts
        facts.registrations += 1
        facts.reused += cookie in self._gone
        self._cookies.add(cookie)
        self._memory[cookie] = name

    def _forget(self, cookie: int) -> None:
        self._memory.pop(cookie, None)
        self._gone.add(cookie)

    def _name(self, cookie: int, seq: int) -> str:
        name = self._memory.get(cookie)
        if name is None:
            self.facts.unknown.append(seq)
            return "unknown memory"
        return name

    def _list(self, param: Parameter, pages: tuple[ListPage, ...] | None, flight: _Flight) -> str:
        """A registration: sizes and the shape of the list."""
        if param.kind != wire.KIND_TMEM or pages is None:
            return ""
        offset = param.a % PAGE
        name = f"{param.b:#x} bytes at page + {offset:#x}"
        self.facts.offsets.setdefault(param.b, []).append(offset)
        flight.register = param.c, name
        shape = []
        for number, page in enumerate(pages):
            full = len(page.entries) == ENTRIES
            link = (
                "none" if not page.next else "the next page" if page.next == page.pa + PAGE else "?"
            )
            aligned = all(entry % PAGE == 0 for entry in page.entries)
            last = "" if number + 1 < len(pages) or not full else " (behind the list)"
            shape.append(
                f"{len(page.entries)} {'pages' if aligned else 'UNALIGNED'}, link {link}{last}"
            )
        count = sum(len(page.entries) for page in pages)
        exact = "" if count == entry_count(offset, param.b) else " NOT AS MANY AS THE SIZE SAYS"
        return f"attr {param.attr:#x} {name}: {'; '.join(shape)}{exact}"

    def _param(self, param: Parameter, seq: int) -> str:
        kind = _KINDS.get(param.attr & 0xFF, "?")
        flags = f" attr {param.attr:#x}" if param.attr >> 8 else ""
        if param.kind == wire.KIND_RMEM:
            if not param.c:
                return f"{kind}{flags} null, {param.a:#x} {param.b:#x}"
            return f"{kind}{flags} {param.b:#x} at {param.a:#x} of {self._name(param.c, seq)}"
        return f"{kind}{flags} {param.a:#x} {param.b:#x} {param.c:#x}"

    @staticmethod
    def _header(content: Content) -> str:
        cmd, func, session, cancel_id, pad, ret, origin, count = wire.MESSAGE[0].unpack_from(
            content.data
        )
        return (
            f"cmd {cmd} func {func} session {session} cancel_id {'set' if cancel_id else 0} pad {pad} "
            f"ret {ret:#x} origin {origin} params {count}"
        )

    def _contents(self, call: Call, flight: _Flight) -> None:
        """What the secure world gets to read: inputs of a message, outputs of an RPC."""
        content = call.msg or call.rpc_arg
        if content is None:
            return
        params = parameters(content.data)
        for buffer in call.buffers:
            kind = params[buffer.param].attr & 3
            wanted = kind & 1 if buffer.owner == MESSAGE_OWNER else kind & 2
            if wanted:
                shown = min(len(buffer.data), params[buffer.param].b)
                flight.lines.append(f"contents of {buffer.param}: {buffer.data[:shown].hex()}")

    def stride(self) -> int:
        """The greatest number of which every cookie's place in its page is a multiple, in octets."""
        return gcd(*[cookie % PAGE for cookie in self._cookies])
