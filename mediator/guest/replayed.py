# SPDX-License-Identifier: BSD-2-Clause
"""A guest that repeats a recorded session: the calls of a real driver, in their recorded order.

Its RAM lies where the recorded machine had it, so addresses, cookies and messages are used as they
were recorded. What the TEE chooses is not: session ids and thread ids are translated, a foreign
interrupt comes when it comes, and an RPC that the recording does not have is refused. Each final
answer is compared with the recorded one.

Calls begin on the recorded vCPU, and not before all calls have ended that had ended in the
recording.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import attrs

from mediator.guest.cpu import GuestCpu, Registers, VcpuProgram
from smccc import names
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.wire import MESSAGE, PARAM_SIZE, RET, SESSION

WAKE_SGI: Final = 1
"""Software interrupt by which one vCPU tells another that it is its turn."""

MAX_DIFFERENCES: Final = 100
"""Differences that are kept with their text; the rest is counted."""

MAX_RESUMPTIONS: Final = 100_000
"""Resumptions of one call; a correct secure world ends long before."""

_MASK32: Final = 0xFFFF_FFFF
_RETURN_FROM_RPC: Final = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
_FOREIGN_INTR: Final = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
_CMD: Final = smc.OPTEE_SMC_RETURN_RPC_CMD
_WITH_SESSION: Final = (
    msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
    msg.OPTEE_MSG_CMD_CLOSE_SESSION,
    msg.OPTEE_MSG_CMD_CANCEL,
)

COMPARED: Final = {
    smc.OPTEE_SMC_CALLS_UID: 4,
    smc.OPTEE_SMC_CALLS_REVISION: 2,
    smc.OPTEE_SMC_CALL_GET_OS_UUID: 4,
    smc.OPTEE_SMC_CALL_GET_OS_REVISION: 2,
}
"""Result registers of a fast call that any OP-TEE of this version answers alike. Of other fast
calls only the status is compared: capabilities, thread count and pending notifications are the
platform's."""

Bytes = tuple[int, bytes]
"""IPA and what lies there."""


@attrs.frozen
class RecordedCall:
    """One recorded SMC and how it was answered.

    ``stores``: memory as it was before. ``flight``: number of the yielding call that this starts or
    resumes, -1 for a fast call. ``message``: its message, on the call that starts it. ``argument``:
    the RPC argument as handed back. ``request``: a0 and RPC command that a resumption comes back
    from. ``answer``: x0..x3, None if the recording ends before. ``final``: message and buffers
    after the last answer. ``ended``: so many calls from the first on had returned when it began.
    """

    cpu: int
    regs: Registers
    stores: tuple[Bytes, ...] = ()
    flight: int = -1
    message: Bytes | None = None
    argument: Bytes | None = None
    request: tuple[int, int] | None = None
    answer: tuple[int, ...] | None = None
    final_message: Bytes | None = None
    final_buffers: tuple[Bytes, ...] = ()
    ended: int = 0

    @property
    def function(self) -> int:
        """SMC function id."""
        return self.regs[0] & _MASK32


@attrs.frozen
class RecordedSession:
    """A stretch of a recording. ``ram``: (IPA, pages) of the guest; ``title`` for people."""

    title: str
    ram: tuple[tuple[int, int], ...]
    calls: tuple[RecordedCall, ...]

    @property
    def vcpus(self) -> int:
        """Processors that the recorded machine used."""
        return max([call.cpu for call in self.calls], default=0) + 1

    @property
    def answers(self) -> int:
        """Final answers in the recording: of fast calls, and of yielding calls at their end."""
        fast = [call for call in self.calls if call.flight < 0 and call.answer is not None]
        return len(fast) + len([call for call in self.calls if call.final_message is not None])


@attrs.define(eq=False)
class _Flight:
    """A yielding call under way. ``pending``: registers of the RPC that it waits for."""

    start: RecordedCall
    resumptions: int
    """Recorded resumptions that are still to come."""
    pending: Registers | None = None
    over: bool = False
    astray: bool = False
    """It asked for something that the recording does not have, or was refused."""


class ReplayedGuest:
    """The vCPU programs of a recorded session, and what came of it.

    ``alike``: calls that ended as recorded; ``astray``: calls that took another way (their results
    are not compared); ``differences``: what was not as recorded, as text.
    """

    def __init__(self, session: RecordedSession, vcpus: int, *, hvc: bool = False) -> None:
        self.session = session
        self.vcpus = vcpus
        self.alike = 0
        self.astray = 0
        self.different = 0
        self.differences: list[str] = []
        self._hvc = hvc
        self._next = 0
        self._returned = [False] * len(session.calls)
        self._over = 0
        """So many calls from the first on have returned."""
        self._flights: dict[int, _Flight] = {}
        self._sessions: dict[int, int] = {0: 0}
        """Recorded session ids to this machine's; those of sessions that went astray are missing."""
        for call in session.calls:
            if call.flight >= 0 and call.function != _RETURN_FROM_RPC:
                following = [c for c in session.calls if c.flight == call.flight]
                self._flights[call.flight] = _Flight(call, len(following) - 1)

    @property
    def finished(self) -> bool:
        """Whether every recorded call was made and has returned."""
        return self._over == len(self._returned)

    @property
    def programs(self) -> tuple[VcpuProgram, ...]:
        """One program per vCPU."""
        return (self._run,) * self.vcpus

    # Order

    async def _run(self, cpu: GuestCpu) -> None:
        calls: Sequence[RecordedCall] = self.session.calls
        while self._next < len(calls):
            number = self._next
            call = calls[number]
            if call.cpu % self.vcpus == cpu.index and self._over >= call.ended:
                self._next += 1
                self._wake(cpu)
                await self._perform(cpu, call)
                self._returned[number] = True
                while self._over < len(calls) and self._returned[self._over]:
                    self._over += 1
                self._wake(cpu)
            else:
                await cpu.wfi()
                self._take_interrupts(cpu)

    def _wake(self, cpu: GuestCpu) -> None:
        for index in range(self.vcpus):
            if index != cpu.index:
                cpu.send_sgi(index, WAKE_SGI)

    @staticmethod
    def _take_interrupts(cpu: GuestCpu) -> None:
        intid = cpu.acknowledge()
        while intid is not None:
            cpu.end_of_interrupt(intid)
            intid = cpu.acknowledge()

    # Calls

    async def _trap(self, cpu: GuestCpu, regs: Sequence[int]) -> Registers:
        answer = await (cpu.hvc if self._hvc else cpu.smc)(*regs)
        self._take_interrupts(cpu)
        return answer

    async def _perform(self, cpu: GuestCpu, call: RecordedCall) -> None:
        if call.flight < 0:
            self._compare_fast(call, await self._trap(cpu, (*call.regs[:7], 0)))
            return
        flight = self._flights.get(call.flight)
        if flight is None:
            # The stretch begins in the middle of this call.
            self.astray += 1
            return
        if call.function == _RETURN_FROM_RPC:
            flight.resumptions -= 1
            await self._resume(cpu, call, flight)
        else:
            await self._store(cpu, call)
            await self._settle(cpu, flight, await self._trap(cpu, (*call.regs[:7], 0)))
        if flight.over and not flight.resumptions:
            del self._flights[call.flight]
            await self._compare(cpu, call, flight)
        elif not flight.resumptions and call.answer is not None:
            await self._give_up(cpu, flight)
            await self._compare(cpu, call, flight)

    async def _store(self, cpu: GuestCpu, call: RecordedCall) -> None:
        """Make memory what it was, with this machine's session ids in messages."""
        for ipa, data in call.stores:
            await cpu.write(ipa, data)
        if call.message is not None:
            ipa, data = call.message
            await cpu.write(ipa, self._translated(data))

    def _translated(self, data: bytes) -> bytes:
        command, _, session = struct.unpack_from("<3I", data)
        if command in _WITH_SESSION and session in self._sessions:
            return data[:8] + struct.pack("<I", self._sessions[session]) + data[12:]
        return data

    async def _settle(self, cpu: GuestCpu, flight: _Flight, answer: Registers) -> None:
        """Go on after foreign interrupts until the call has ended or asks for something."""
        for _ in range(MAX_RESUMPTIONS):
            status = answer[0] & _MASK32
            if status != _FOREIGN_INTR:
                break
            words = [word & _MASK32 for word in answer[1:4]]
            answer = await self._trap(cpu, (_RETURN_FROM_RPC, *words, 0, 0, 0, 0))
        status = answer[0] & _MASK32
        if names.RPC_STATUS.full(status) is not None:
            flight.pending = answer
            return
        flight.over = True
        flight.pending = None
        flight.astray |= status != smc.OPTEE_SMC_RETURN_OK

    async def _resume(self, cpu: GuestCpu, call: RecordedCall, flight: _Flight) -> None:
        """A recorded resumption: of a foreign interrupt (long done), or of the same request."""
        pending = flight.pending
        if pending is None or call.request is None or call.request[0] == _FOREIGN_INTR:
            return
        if (pending[0] & _MASK32, await self._command(cpu, call, pending)) != call.request:
            await self._give_up(cpu, flight)
            return
        for ipa, data in call.stores:
            await cpu.write(ipa, data)
        if call.argument is not None:
            await cpu.write(*call.argument)
        a1, a2, a4, a5 = call.regs[1], call.regs[2], call.regs[4], call.regs[5]
        answer = await self._trap(cpu, (_RETURN_FROM_RPC, a1, a2, pending[3], a4, a5, 0, 0))
        await self._settle(cpu, flight, answer)

    @staticmethod
    async def _command(cpu: GuestCpu, call: RecordedCall, pending: Registers) -> int:
        """The command of the request, which lies where the recorded one lay; -1 without one."""
        if pending[0] & _MASK32 != _CMD or call.argument is None:
            return -1
        return int.from_bytes(await cpu.read(call.argument[0], 4), "little")

    async def _give_up(self, cpu: GuestCpu, flight: _Flight) -> None:
        """Refuse whatever the call asks for until it ends."""
        flight.astray = True
        for _ in range(MAX_RESUMPTIONS):
            pending = flight.pending
            if pending is None:
                return
            words = [word & _MASK32 for word in pending[1:4]]
            if pending[0] & _MASK32 == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
                words[:2] = 0, 0
            elif pending[0] & _MASK32 == _CMD and flight.start.message is not None:
                ipa, data = flight.start.message
                refusal = struct.pack("<I", tee.TEE_ERROR_NOT_SUPPORTED)
                await cpu.write(ipa + len(data) + 4 * RET, refusal)
            answer = await self._trap(cpu, (_RETURN_FROM_RPC, *words, 0, 0, 0, 0))
            flight.pending = None
            await self._settle(cpu, flight, answer)

    # Answers

    def _compare_fast(self, call: RecordedCall, answer: Registers) -> None:
        if call.answer is None:
            return
        count = COMPARED.get(call.function, 1)
        ours = [word & _MASK32 for word in answer[:count]]
        theirs = [word & _MASK32 for word in call.answer[:count]]
        self._judge(call, "registers", ours, theirs)

    async def _compare(self, cpu: GuestCpu, call: RecordedCall, flight: _Flight) -> None:
        """The end of a yielding call, which ``call`` had in the recording."""
        if call.final_message is None:
            return
        ipa, theirs = call.final_message
        command, _, session = struct.unpack_from("<3I", theirs)
        opens = command == msg.OPTEE_MSG_CMD_OPEN_SESSION
        if opens:
            self._sessions.pop(session, None)
        known = opens or command not in _WITH_SESSION or session in self._sessions
        if flight.astray or not known:
            self.astray += 1
            return
        ours = await cpu.read(ipa, len(theirs))
        if opens:
            opened = struct.unpack_from("<3I", ours)[SESSION]
            self._sessions[session] = opened
            theirs = theirs[:8] + struct.pack("<I", opened) + theirs[12:]
        else:
            theirs = self._translated(theirs)
        if ours != theirs:
            codec = MESSAGE[(len(theirs) - MESSAGE[0].size) // PARAM_SIZE]
            pairs = zip(codec.unpack(ours), codec.unpack(theirs), strict=True)
            place, (got, wanted) = next(
                (n, pair) for n, pair in enumerate(pairs) if len({*pair}) > 1
            )
            self._judge(call, f"message field {place}", [got], [wanted])
            return
        for at, data in call.final_buffers:
            got = await cpu.read(at, len(data))
            if got != data:
                place = next(n for n in range(len(data)) if got[n] != data[n])
                self._judge(call, f"byte {place} at {at:#x}", [got[place]], [data[place]])
                return
        self.alike += 1

    def _judge(
        self, call: RecordedCall, what: str, ours: Sequence[int], theirs: Sequence[int]
    ) -> None:
        if ours == theirs:
            self.alike += 1
            return
        self.different += 1
        if len(self.differences) < MAX_DIFFERENCES:
            name = names.function_name(call.function) or f"function {call.function:#x}"
            shown = " ".join([f"{word:#x}" for word in ours])
            wanted = " ".join([f"{word:#x}" for word in theirs])
            self.differences.append(f"{name}: {what}: {shown} instead of {wanted}")
