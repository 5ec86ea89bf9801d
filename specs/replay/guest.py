# SPDX-License-Identifier: BSD-2-Clause
"""A recorded normal world as a guest of the simulated machine.

The guest issues the recorded calls, in their order and on the processors that issued them, against
whatever secure world lies behind its hypervisor. It is not a driver: it knows what it will say. Where the
live secure world asks for less than the recorded one did (no file system, no interrupt), the recorded
answers are left out; where it asks for more, the guest answers as a plain driver would. What a call
gave in the end is compared with the record.

>>> from specs.replay import recorded_session
>>> guest = ReplayGuest(recorded_session())
>>> len(guest.programs), guest.calls
(2, 33)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final
from uuid import UUID

import attrs

from mediator.guest.cpu import GuestCpu, VcpuProgram
from smccc import page_list, wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.registers import low32
from specs.replay import names
from specs.replay.chain import Enter, Flight, Leave, Step, follow
from specs.replay.compare import parameters
from specs.replay.normal_world import NormalWorld, Place
from specs.replay.reader import Trace
from specs.replay.records import Return
from specs.replay.survey import HYPERVISOR, SLOT_SIZE, survey

PAGE: Final = 4096
TURN_SGI: Final = 1
"""Software generated interrupt by which one vCPU tells another that it is its turn."""

RETRY_NS: Final = 1_000_000
"""A waiter that nobody in the recording wakes looks again after 1 ms, as a time-out would make it."""

SCRATCH_PAGES: Final = 256
"""Pages for allocations that only the live secure world asks for: 1 MiB."""

MAX_ROUNDS: Final = 10_000
"""RPC rounds of one call beyond the recorded ones; a secure world that wants more is given up."""

Images = Callable[[UUID, int], bytes | None]
"""The image of a TA, padded to a size in bytes; None if there is none."""

_SESSION_AT: Final = 8
_RET_AT: Final = 20
_COMPARED_VALUES: Final = {smc.OPTEE_SMC_CALLS_UID: 4, smc.OPTEE_SMC_CALLS_REVISION: 2}
"""Fast calls whose values are the same everywhere; of all others only the status is compared."""

_WITH_SESSION: Final = (
    msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
    msg.OPTEE_MSG_CMD_CLOSE_SESSION,
    msg.OPTEE_MSG_CMD_CANCEL,
)


@attrs.frozen
class ReplayDifference:
    """A call that gave something else than it did in the recording. ``seq``: of its return there."""

    seq: int
    call: str
    what: str
    recorded: str
    live: str


@attrs.define
class ReplayGuestResult:
    """How far the guest came. ``calls`` ended, of which ``equal`` and ``different`` were compared;
    ``left_out``: recorded RPC answers that nobody asked for; ``extra``: RPCs beyond the recorded."""

    calls: int = 0
    equal: int = 0
    different: int = 0
    left_out: int = 0
    extra: int = 0
    done: bool = False
    differences: list[ReplayDifference] = attrs.Factory(list)


@attrs.define(eq=False)
class _Live:
    """A flight at the live secure world. ``wanted``: the recorded step that answers its RPC."""

    flight: Flight
    steps: list[Step]
    thread: int = -1
    position: int = 0
    """Recorded steps of the flight that have been used up."""
    wanted: Step | None = None
    answer: tuple[int, ...] = ()
    ended: bool = False


class _Shadow:
    """The guest's memory as far as this program knows it; writes are passed on to a processor."""

    def __init__(self, ram: tuple[int, int]) -> None:
        self.ram = ram
        self.pending: list[tuple[int, bytes]] = []

    def load(self, client: int, ipa: int, length: int, /) -> bytes | None:
        """Nothing is remembered: invented lists are always written."""
        return bytes(length)

    def store(self, client: int, ipa: int, data: bytes, /) -> bool:
        """Note a write for the processor."""
        self.pending.append((ipa, data))
        return True


class ReplayGuest:
    """The programs of a guest that replays a trace, or the part of it that ``last_seq`` ends.

    ``client``: the recorded guest to take (with virtualization), by default the first.
    ``images``: TA images for a secure world that loads one. ``ram``: what the guest needs mapped, as
    (IPA, pages). ``programs``: one for each processor. ``result``: filled while they run.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        last_seq: int | None = None,
        client: int | None = None,
        images: Images | None = None,
    ) -> None:
        facts = survey(trace)
        self.result = ReplayGuestResult()
        self._images = images
        self._normal = NormalWorld(self._memory(facts.ram[0]))
        self._enters: list[tuple[Step, bool]] = []
        self._lives: dict[Flight, _Live] = {}
        self._sessions: dict[int, int] = {}
        self._turn = 0
        self._mapped: dict[int, int] = {}
        self._collect(trace, last_seq, client)
        self._cpus = sorted({step.call.cpu for step, _ in self._enters})
        slots = {address // SLOT_SIZE for address in self._named()}
        runs = _runs(sorted(slots))
        scratch = (runs[-1][0] + runs[-1][1]) * SLOT_SIZE if runs else facts.ram[0][0]
        self._scratch = scratch
        self._scratch_used = 0
        pages = SLOT_SIZE // PAGE
        self.ram: tuple[tuple[int, int], ...] = (
            *[(start * SLOT_SIZE, count * pages) for start, count in runs],
            (scratch, SCRATCH_PAGES),
        )
        self.programs: tuple[VcpuProgram, ...] = tuple(
            [self._program(number) for number in range(len(self._cpus))]
        )

    @property
    def calls(self) -> int:
        """Recorded calls that the guest will make, not counting answers to RPCs."""
        return len([step for step, _ in self._enters if step.function != names.RETURN_FROM_RPC])

    def _memory(self, ram: tuple[int, int]) -> _Shadow:
        self._shadow = _Shadow(ram)
        return self._shadow

    def _collect(self, trace: Trace, last_seq: int | None, client: int | None) -> None:
        """The calls to make, each with whether it overlaps the one after it."""
        chosen = client
        open_steps: set[int] = set()
        for happening in follow(trace, survey(trace)):
            if isinstance(happening, Enter):
                step = happening.step
                if step.client == HYPERVISOR:
                    continue
                chosen = step.client if chosen is None else chosen
                late = last_seq is not None and step.call.seq > last_seq
                known = step.flight in self._lives
                starts = step.flight is None or step.function != names.RETURN_FROM_RPC
                if step.client != chosen or (late and starts) or (not starts and not known):
                    continue
                if step.flight is not None:
                    live = self._lives.setdefault(step.flight, _Live(step.flight, []))
                    live.steps.append(step)
                if open_steps and self._enters:
                    self._enters[-1] = self._enters[-1][0], True
                self._enters.append((step, False))
                open_steps.add(step.call.seq)
            elif isinstance(happening, Leave):
                open_steps.discard(happening.step.call.seq)

    def _named(self) -> set[int]:
        """Addresses that the chosen calls and their answers name."""
        found: set[int] = set()
        for step, _ in self._enters:
            for event in (step.call, step.answer):
                if event is None:
                    continue
                for content in (event.msg, event.rpc_arg):
                    if content is not None:
                        found.update((content.pa, content.pa + len(content.data)))
                found.update(buffer.pa for buffer in event.buffers)
                for page in event.page_list or ():
                    found.add(page.pa)
                    found.update(page.entries)
        return found

    # --- turns -----------------------------------------------------------------------------------------

    def _program(self, number: int) -> VcpuProgram:
        async def program(cpu: GuestCpu) -> None:
            await self._run(cpu, number)

        return program

    async def _run(self, cpu: GuestCpu, number: int) -> None:
        """Take every turn of one recorded processor."""
        recorded = self._cpus[number]
        while self._turn < len(self._enters):
            step, overlaps = self._enters[self._turn]
            if step.call.cpu != recorded:
                await self._sleep(cpu)
                continue
            if overlaps:
                self._pass_turn(cpu)
            await self._step(cpu, step)
            if not overlaps:
                self._pass_turn(cpu)
        self.result.done = self._turn >= len(self._enters)

    def _pass_turn(self, cpu: GuestCpu) -> None:
        self._turn += 1
        if self._turn < len(self._enters):
            target = self._cpus.index(self._enters[self._turn][0].call.cpu)
            if target != cpu.index:
                cpu.send_sgi(target, TURN_SGI)
            return
        for target in range(len(self._cpus)):
            if target != cpu.index:
                cpu.send_sgi(target, TURN_SGI)

    async def _sleep(self, cpu: GuestCpu) -> None:
        """Wait for an interrupt and take it."""
        await cpu.wfi()
        while (pending := cpu.acknowledge()) is not None:
            cpu.end_of_interrupt(pending)

    async def _flush(self, cpu: GuestCpu) -> None:
        """Bring the recorded memory into the guest's."""
        writes, self._shadow.pending = self._shadow.pending, []
        for ipa, data in writes:
            await cpu.write(ipa, data)

    # --- one recorded call -------------------------------------------------------------------------------

    async def _step(self, cpu: GuestCpu, step: Step) -> None:
        if step.flight is None:
            answer = await cpu.smc(*step.call.regs[:7])
            self._compare_fast(step, answer)
            return
        live = self._lives[step.flight]
        live.position += 1
        if step.function == names.RETURN_FROM_RPC:
            if live.ended or live.wanted is not step:
                self.result.left_out += 1
                return
            await self._answer_rpc(cpu, live, step)
            return
        self._normal.enter(step)
        await self._flush(cpu)
        await self._map_session(cpu, step)
        live.answer = await cpu.smc(*step.call.regs[:7])
        await self._settle(cpu, live)

    async def _map_session(self, cpu: GuestCpu, step: Step) -> None:
        """Sessions have the numbers that the live secure world gave them."""
        content = step.call.msg
        assert step.flight is not None
        place = self._normal.place(step.flight)
        if content is None or place is None or names.command(content) not in _WITH_SESSION:
            return
        number = int.from_bytes(content.data[_SESSION_AT : _SESSION_AT + 4], "little")
        session = self._sessions.get(number, number)
        await self._write(cpu, place, _SESSION_AT, session.to_bytes(4, "little"))

    @staticmethod
    async def _write(cpu: GuestCpu, place: Place, offset: int, data: bytes) -> None:
        done = 0
        for ipa, part in place.pieces(offset, len(data)):
            await cpu.write(ipa, data[done : done + part])
            done += part

    @staticmethod
    async def _read(cpu: GuestCpu, place: Place, offset: int, length: int) -> bytes:
        parts = [await cpu.read(ipa, part) for ipa, part in place.pieces(offset, length)]
        return b"".join(parts)

    async def _answer_rpc(self, cpu: GuestCpu, live: _Live, step: Step) -> None:
        """Answer the live request with the recorded answer to the same request."""
        live.wanted = None
        self._normal.enter(step)
        await self._flush(cpu)
        await self._give_image(cpu, step)
        regs = step.call.regs
        live.answer = await cpu.smc(regs[0], regs[1], regs[2], live.thread, regs[4], regs[5])
        await self._settle(cpu, live)

    async def _give_image(self, cpu: GuestCpu, step: Step) -> None:
        """A TA image is recorded with its first bytes only: give one that the live TEE accepts."""
        content = step.call.rpc_arg
        if content is None or names.command(content) != rpc.OPTEE_RPC_CMD_LOAD_TA:
            return
        params = parameters(content.data)
        if len(params) < 2 or params[1].kind != wire.KIND_RMEM or self._images is None:
            return
        octets = params[0].a.to_bytes(8, "little") + params[0].b.to_bytes(8, "little")
        image = self._images(UUID(bytes=octets), params[1].b)
        pages = self._mapped_pages(step, params[1].c)
        if image is None or pages is None or len(image) > len(pages) * PAGE:
            return
        for number, ipa in enumerate(pages):
            part = image[number * PAGE : (number + 1) * PAGE]
            if part:
                await cpu.write(ipa, part)

    def _mapped_pages(self, step: Step, cookie: int) -> tuple[int, ...] | None:
        """Pages of a recorded SHM_ALLOC answer of this flight."""
        assert step.flight is not None
        for other in self._lives[step.flight].steps:
            content, pages = other.call.rpc_arg, other.call.page_list
            if content is not None and pages is not None:
                params = parameters(content.data)
                if params and params[0].c == cookie:
                    return tuple([entry for page in pages for entry in page.entries])
        return None

    async def _settle(self, cpu: GuestCpu, live: _Live) -> None:
        """Look at the live answer: the end, a request that the recording answers, or an extra one."""
        for _ in range(MAX_ROUNDS):
            status = low32(live.answer[0])
            if not names.is_rpc(status):
                live.ended = True
                await self._ended(cpu, live)
                return
            live.thread = low32(live.answer[3])
            live.wanted = await self._recorded_answer(cpu, live)
            if live.wanted is not None:
                return
            self.result.extra += 1
            back = await self._serve(cpu, live)
            live.answer = await cpu.smc(names.RETURN_FROM_RPC, *back[:2], live.thread, *back[2:])
        live.ended = True

    async def _recorded_answer(self, cpu: GuestCpu, live: _Live) -> Step | None:
        """The recorded step that answers the live request, if there is one ahead."""
        status = low32(live.answer[0])
        command = await self._request(cpu, live)
        for step in live.steps[live.position :]:
            request = step.request
            if request is None or low32(request.regs[0]) != status:
                continue
            if status != smc.OPTEE_SMC_RETURN_RPC_CMD:
                return step
            recorded = request.rpc_arg
            if recorded is None or names.command(recorded) != command[0]:
                continue
            if command[0] == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                wanted = parameters(recorded.data)
                if not wanted or wanted[0].b < command[10]:
                    continue
            return step
        return None

    async def _request(self, cpu: GuestCpu, live: _Live) -> tuple[int, ...]:
        """The live RPC argument, unpacked; zeros if there is none."""
        place = self._rpc_place(live)
        if low32(live.answer[0]) != smc.OPTEE_SMC_RETURN_RPC_CMD or place is None:
            return (0,) * 24
        data = await self._read(cpu, place, 0, wire.message_size(4))
        return wire.MESSAGE[4].unpack(data)

    def _rpc_place(self, live: _Live) -> Place | None:
        start = live.flight.start.msg
        place = self._normal.place(live.flight)
        if not live.flight.with_rpc_arg or start is None or place is None:
            return None
        return attrs.evolve(place, start=place.start + wire.message_size(start.num_params))

    # --- requests that the recording does not have -----------------------------------------------------------

    async def _serve(self, cpu: GuestCpu, live: _Live) -> tuple[int, int, int, int]:
        """Answer as a plain driver: (a1, a2, a4, a5)."""
        place = self._rpc_place(live)
        if low32(live.answer[0]) != smc.OPTEE_SMC_RETURN_RPC_CMD or place is None:
            return 0, 0, 0, 0
        fields = await self._request(cpu, live)
        ret, origin = tee.TEE_SUCCESS, 0
        command = fields[0]
        if command == rpc.OPTEE_RPC_CMD_GET_TIME:
            seconds, rest = divmod(cpu.now(), 1_000_000_000)
            await self._write(cpu, place, 40, struct.pack("<2Q", seconds, rest))
        elif command == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
            ret = await self._allocate(cpu, place, fields[10])
            origin = tee.TEE_ORIGIN_COMMS
        elif command == rpc.OPTEE_RPC_CMD_NOTIFICATION and fields[9] == 0:
            cpu.set_timer(cpu.now() + RETRY_NS)
            await self._sleep(cpu)
        elif command == rpc.OPTEE_RPC_CMD_SUSPEND:
            cpu.set_timer(cpu.now() + fields[9] * 1_000_000)
            await self._sleep(cpu)
        elif command not in (rpc.OPTEE_RPC_CMD_SHM_FREE, rpc.OPTEE_RPC_CMD_NOTIFICATION):
            # No supplicant here: neither TAs nor files.
            ret, origin = tee.TEE_ERROR_ITEM_NOT_FOUND, tee.TEE_ORIGIN_COMMS
        await self._write(cpu, place, _RET_AT, struct.pack("<2I", ret, origin))
        return 0, 0, 0, 0

    async def _allocate(self, cpu: GuestCpu, place: Place, size: int) -> int:
        """SHM_ALLOC from the scratch pages; they are used once."""
        count = page_list.entry_count(0, size)
        listed = page_list.list_page_count(count)
        if not count or self._scratch_used + count + listed > SCRATCH_PAGES:
            return tee.TEE_ERROR_OUT_OF_MEMORY
        first = self._scratch + self._scratch_used * PAGE
        self._scratch_used += count + listed
        pages = [first + (listed + i) * PAGE for i in range(count)]
        for number in range(listed):
            words = pages[number * page_list.ENTRIES : (number + 1) * page_list.ENTRIES]
            at = first + number * PAGE
            await cpu.write(at, struct.pack(f"<{len(words)}Q", *words))
            await cpu.write(at + page_list.LINK_OFFSET, struct.pack("<Q", at + PAGE))
        attr = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
        await self._write(cpu, place, 32, struct.pack("<4Q", attr, first, size, first))
        return tee.TEE_SUCCESS

    # --- the end of a call -------------------------------------------------------------------------------------

    def _note(self, seq: int, call: str, found: list[tuple[str, str, str]]) -> None:
        self.result.calls += 1
        if found:
            self.result.different += 1
            self.result.differences += [ReplayDifference(seq, call, *one) for one in found]
        else:
            self.result.equal += 1

    def _compare_fast(self, step: Step, answer: tuple[int, ...]) -> None:
        recorded = step.answer
        if recorded is None:
            return
        found: list[tuple[str, str, str]] = []
        for number in range(_COMPARED_VALUES.get(step.function, 1)):
            expected, live = low32(recorded.regs[number]), low32(answer[number])
            status = number == 0 and step.function not in _COMPARED_VALUES
            if status and step.function == smc.OPTEE_SMC_CALL_GET_OS_REVISION:
                continue  # a version, and not the same one
            if expected != live:
                found.append((f"a{number}", f"{expected:#x}", f"{live:#x}"))
        self._note(recorded.seq, step.name, found)

    async def _ended(self, cpu: GuestCpu, live: _Live) -> None:
        """Compare the final answer, and note the session that was opened."""
        final, place = live.flight.final, self._normal.place(live.flight)
        if final is None:
            self.result.calls += 1
            return
        found: list[tuple[str, str, str]] = []
        if low32(final.regs[0]) != low32(live.answer[0]):
            found.append(("a0", f"{low32(final.regs[0]):#x}", f"{low32(live.answer[0]):#x}"))
        elif final.msg is not None and place is not None:
            data = await self._read(cpu, place, 0, len(final.msg.data))
            found += self._compare_message(live, final, data)
            found += await self._compare_buffers(cpu, final)
        last = live.steps[-1] if live.steps else None
        if last is not None and last.answer is not None:
            self._normal.leave(last, last.answer)
        self._note(final.seq, live.flight.name, found)

    def _compare_message(
        self, live: _Live, final: Return, data: bytes
    ) -> list[tuple[str, str, str]]:
        assert final.msg is not None
        recorded = bytearray(final.msg.data)
        session = int.from_bytes(recorded[_SESSION_AT : _SESSION_AT + 4], "little")
        mine = int.from_bytes(data[_SESSION_AT : _SESSION_AT + 4], "little")
        opened = names.command(final.msg) == msg.OPTEE_MSG_CMD_OPEN_SESSION
        if opened and session and mine:
            self._sessions[session] = mine
        recorded[_SESSION_AT : _SESSION_AT + 4] = self._sessions.get(session, session).to_bytes(
            4, "little"
        )
        found: list[tuple[str, str, str]] = []
        at = 0
        while at < len(recorded):
            size = 4 if at < wire.HEADER_SIZE else 8
            expected, got = recorded[at : at + size], data[at : at + size]
            if expected != got:
                one, other = int.from_bytes(expected, "little"), int.from_bytes(got, "little")
                found.append((wire.field_at(at), f"{one:#x}", f"{other:#x}"))
            at += size
        return found

    @staticmethod
    async def _compare_buffers(cpu: GuestCpu, final: Return) -> list[tuple[str, str, str]]:
        assert final.msg is not None
        outputs = {
            param.number
            for param in parameters(final.msg.data)
            if wire.PARAM_OUTPUT[param.attr & 0xFF]
        }
        found: list[tuple[str, str, str]] = []
        for buffer in final.buffers:
            if buffer.param in outputs and buffer.data:
                data = await cpu.read(buffer.pa, len(buffer.data))
                if data != buffer.data:
                    found.append(
                        (f"buffer {buffer.param}", buffer.data[:16].hex(), data[:16].hex())
                    )
        return found


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Runs (first, count) of ascending numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][0] + runs[-1][1]:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((number, 1))
    return runs
