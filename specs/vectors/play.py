# SPDX-License-Identifier: BSD-2-Clause
"""Playing one scenario against a target and noting every difference.

:class:`Play` is the world of the target: the scripted secure world, the processors that change
memory meanwhile, the answers to preemption questions and the allocations that fail. It compares all
that the format records, entry by entry, and goes on after a difference as well as it can.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable

from attrs import frozen

from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from specs.target import PAGE_SIZE, Outcome, Setup, SetupRefused, Target, TargetFactory, Trap
from specs.vectors.case import Difference
from specs.vectors.facts import Fact, Facts
from specs.vectors.names import Names
from specs.vectors.scenario import (
    Aftermath,
    CallStep,
    CreateStep,
    DestroyStep,
    ExpectedMessage,
    ExpectedParam,
    GuestWrite,
    ProbeStep,
    RemapStep,
    Scenario,
    SecureCall,
    Step,
    Symbol,
    Word,
    WriteStep,
)

MAX_DIFFERENCES = 64
"""Differences noted per scenario; after that the rest is noise."""

_MASK32 = (1 << 32) - 1
_MASK64 = (1 << 64) - 1
_OFFSET = PAGE_SIZE - 1
_UNKNOWN_FUNCTION = (smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION, 0, 0, 0)
_UID = (
    msg.OPTEE_MSG_UID_0,
    msg.OPTEE_MSG_UID_1,
    msg.OPTEE_MSG_UID_2,
    msg.OPTEE_MSG_UID_3,
)
_HEADER = struct.Struct("<8I")
_PARAM = struct.Struct("<4Q")
_HEADER_WORDS = {
    "cmd": 0,
    "func": 1,
    "session": 2,
    "cancel_id": 3,
    "ret": 5,
    "ret_origin": 6,
    "num_params": 7,
}
_MAX_PARAMS = (PAGE_SIZE - _HEADER.size) // _PARAM.size
_LIST_ENTRIES = 511
_NONCONTIG = 1 << 9
_TMEM_TYPES = (9, 10, 11)
_MAX_LIST = 1 << 20


class _Frame:
    """The secure-world calls that are expected from one trap."""

    __slots__ = ("calls", "done", "place")

    def __init__(self, calls: tuple[SecureCall, ...], place: str) -> None:
        self.calls = calls
        self.place = place
        self.done = 0


@frozen
class Played:
    """The differences of one run, and the facts up to the step of the first one."""

    differences: tuple[Difference, ...]
    facts: frozenset[Fact]


def play(scenario: Scenario, factory: TargetFactory, preset: str) -> Played:
    """Run ``scenario`` against a fresh target."""
    try:
        run = Play(scenario, factory, preset)
    except SetupRefused as error:
        refused = Difference("domains", "a target with these maps", str(error))
        return Played((refused,), frozenset())
    differences = tuple(run.run())
    return Played(differences, run.facts.until(run.first_difference))


class Play:
    """One run of one scenario. Implements :class:`specs.target.World`."""

    def __init__(self, scenario: Scenario, factory: TargetFactory, preset: str) -> None:
        self.differences: list[Difference] = []
        self._scenario = scenario
        self._physical = scenario.physical
        self._setup = Setup(scenario.guests, scenario.threads, preset, scenario.max_buffer_pages)
        self._frames: list[_Frame] = []
        self._preempt: deque[bool] = deque()
        self._reads = 0
        self._allocations = 0
        self._step: CallStep | None = None
        self._before: dict[int, bytearray] = {}
        self._pending: dict[tuple[int, int], tuple[int, int]] = {}
        self._rpc_pages: dict[tuple[int, int], int] = {}
        self._probing = False
        self._target: Target = factory(self._setup, self)
        self._names = Names(scenario, self._target.shadow)
        self.facts = Facts(self._guest_page)
        self.first_difference = len(scenario.steps)

    # --- running -----------------------------------------------------------------------------

    def run(self) -> list[Difference]:
        """Play all steps."""
        if self._scenario.threads is not None:
            self._probing = True
            try:
                found = self._guarded("probe", self._target.probe, True)
            finally:
                self._probing = False
            if found is not True:
                self._differ("probe before the first step", "found", str(found))
                return self.differences
        for index, step in enumerate(self._scenario.steps):
            if not self._run_step(step, f"steps[{index}]"):
                break
        return self.differences

    def _run_step(self, step: Step, place: str) -> bool:
        self._before.clear()
        self._reads = self._allocations = 0
        self.facts.step = int(place[6:-1])
        self._step = step if isinstance(step, CallStep) else None
        if self._step is not None and self._step.fail_alloc is not None:
            self.facts.note(Fact.ALLOCATION_FAILED)
        match step:
            case WriteStep(writes):
                for write in writes:
                    self._guest_write(write)
                return True
            case RemapStep():
                self._target.remap(step.guest, step.ipa, step.pages, step.kind)
                return True
            case CallStep():
                self._trap(step, place)
            case ProbeStep():
                found = self._with_calls(
                    step.calls, place, "probe", self._target.probe, step.present
                )
                self._compare(f"{place}.found", step.found, found)
            case CreateStep():
                ok = self._with_calls(
                    step.calls, place, "create", self._target.create, step.guest, step.tee
                )
                self._compare(f"{place}.ok", step.ok, ok)
            case DestroyStep():
                self._preempt.extend(step.preempt)
                if any(self._preempt):
                    self.facts.note(Fact.TEARDOWN_PREEMPTED)
                done = self._with_calls(
                    step.calls, place, "destroy", self._target.destroy, step.guest
                )
                self._compare(f"{place}.done", step.done, done)
        if step.after is not None:
            self._compare_memory(step.after, place)
            self._compare_pins(step.after, place)
        return True

    def _with_calls(
        self,
        calls: tuple[SecureCall, ...],
        place: str,
        what: str,
        entry: object,
        *arguments: object,
    ) -> object:
        frame = _Frame(calls, place)
        self._frames.append(frame)
        result = self._guarded(f"{place} {what}", entry, *arguments)
        self._frames.pop()
        for index in range(frame.done, len(calls)):
            self._differ(
                f"{place}.sw[{index}]", f"a call {_registers(calls[index].regs)}", "no call"
            )
            self._names.used(calls[index].symbols())
        return result

    def _guarded(self, place: str, entry: object, *arguments: object) -> object:
        """A target that raises is a difference, not the end of the run."""
        assert callable(entry)
        try:
            return entry(*arguments)
        except Exception as error:
            self._differ(place, "an answer", f"{type(error).__name__}: {error}")
            return None

    def _trap(self, step: CallStep, place: str) -> None:
        trap = Trap(
            step.guest,
            step.regs,
            step.hvc,
            step.aarch32,
            step.immediate,
            vcpu=len(self._frames),
        )
        self.facts.trapped(step.guest, step.regs)
        outcome = self._with_calls(step.calls, place, "smc", self._target.trap, trap)
        if not isinstance(outcome, Outcome):
            return
        self._compare(f"{place}.undef", step.undefined, outcome.undefined)
        self._compare(
            f"{place}.handled_by",
            step.handled_by or "nobody else",
            outcome.handled_by or "nobody else",
        )
        if step.out is None or outcome.handled_by is not None:
            return
        for index, (expected, actual) in enumerate(zip(step.out, outcome.regs, strict=True)):
            if actual == expected:
                continue
            # A refused function is -1; the ABI defines its low 32 bits only.
            if index == 0 and expected == _MASK64 and actual & _MASK32 == _MASK32:
                continue
            self._differ(f"{place}.out[{index}]", hex(expected), self._show(actual))

    # --- World -------------------------------------------------------------------------------

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        """The scripted secure world."""
        regs = (a0, a1, a2, a3, a4, a5, a6, a7)
        if self._probing:
            return self._answer_probe(a0)
        frame = self._frames[-1]
        place = f"{frame.place}.sw[{frame.done}]"
        if frame.done >= len(frame.calls):
            self._differ(place, "no call", f"a call {_registers(regs)}")
            return _UNKNOWN_FUNCTION
        call = frame.calls[frame.done]
        frame.done += 1
        self._compare_entry(call, regs, place)
        for symbol, offset, data in call.writes:
            page = self._locate(symbol)
            if page is None:
                self._differ(place + ".writes", f"{symbol.text} to be known", "no such page yet")
            else:
                self.facts.written_by_tee(offset, data, self._target.read(page, PAGE_SIZE))
                self._target.write(page + offset, data)
                self._also_before(page + offset, data)
        self._names.used(call.symbols())
        for write in call.guest_writes:
            self._guest_write(write)
        for index, event in enumerate(call.meanwhile):
            if isinstance(event, RemapStep):
                self._target.remap(event.guest, event.ipa, event.pages, event.kind)
            else:
                self._trap(event, f"{place}.meanwhile[{index}].smc")
        reply = [self._reply_word(word, place) for word in call.reply]
        self._note_rpc(regs, reply)
        self.facts.answered(regs, reply)
        return reply[0], reply[1], reply[2], reply[3]

    def should_preempt(self) -> bool:
        """The answers of the script, then False."""
        return self._preempt.popleft() if self._preempt else False

    def allocation_fails(self) -> bool:
        """Whether this is the allocation that the step wants to fail."""
        number = self._allocations
        self._allocations += 1
        return self._step is not None and self._step.fail_alloc == number

    def guest_memory_read(self) -> None:
        """Let the guest write after the n-th read, if the step says so."""
        self._reads += 1
        if self._step is not None and self._step.race_after == self._reads:
            for write in self._step.race_writes:
                self._guest_write(write)

    def guest_memory_write(self, pa: int) -> None:
        """Keep what stood in the page before the mediator's first write of this step."""
        if pa not in self._before:
            self._before[pa] = bytearray(self._target.read(pa, PAGE_SIZE))

    # --- what the script does ----------------------------------------------------------------

    def _answer_probe(self, function: int) -> tuple[int, int, int, int]:
        """The probe that precedes a scenario and is not part of the recording."""
        match function:
            case smc.OPTEE_SMC_CALLS_UID:
                return _UID
            case smc.OPTEE_SMC_GET_THREAD_COUNT:
                return (smc.OPTEE_SMC_RETURN_OK, self._scenario.threads or 0, 0, 0)
            case smc.OPTEE_SMC_VM_DESTROYED:
                return (smc.OPTEE_SMC_RETURN_OK, 0, 0, 0)
            case _:
                return _UNKNOWN_FUNCTION

    def _guest_page(self, guest: int, ipa: int) -> bytes | None:
        """The page at ``ipa`` of the guest's map, whatever stage 2 says now."""
        page = self._physical.translate(guest, ipa & ~_OFFSET)
        return None if page is None else self._target.read(page, PAGE_SIZE)

    def _guest_write(self, write: GuestWrite) -> None:
        address, data = write.ipa, write.data
        while data:
            pa = self._physical.translate(write.guest, address)
            part = data[: PAGE_SIZE - (address & _OFFSET)]
            if pa is not None:
                self._target.write(pa, part)
                self._also_before(pa, part)
            address += len(part)
            data = data[len(part) :]

    def _also_before(self, pa: int, data: bytes) -> None:
        """What others than the mediator write is no change by the mediator."""
        before = self._before.get(pa & ~_OFFSET)
        if before is not None:
            offset = pa & _OFFSET
            before[offset : offset + len(data)] = data

    def _locate(self, symbol: Symbol) -> int | None:
        if symbol.name:
            page = self._names.address(symbol.name)
            return None if page is None else page + symbol.offset
        if symbol.guest is None:
            return None
        address = self._guest_address(symbol)
        return None if address is None else address + symbol.offset

    def _guest_address(self, symbol: Symbol) -> int | None:
        guest = symbol.guest
        if guest is None:
            return None
        return self._physical.translate(
            self._physical.guests[0] if guest < 0 else guest, symbol.ipa
        )

    def _reply_word(self, word: Word, place: str) -> int:
        if isinstance(word, int):
            return word
        address = self._locate(word)
        if address is None:
            self._differ(place + ".reply", f"{word.text} to be known", "no such page yet")
            return 0
        return {"hi": address >> 32, "lo": address & _MASK32}.get(word.part, address)

    def _note_rpc(self, regs: tuple[int, ...], reply: list[int]) -> None:
        """Remember which RPC a thread waits in, to know the message of its return."""
        if regs[0] & _MASK32 == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            self._pending.pop((regs[7], regs[3]), None)
        answer = reply[0] & _MASK32
        if answer >> 16 == 0xFFFF and answer != _MASK32:
            cookie = (reply[1] & _MASK32) << 32 | reply[2] & _MASK32
            self._pending[regs[7], reply[3] & _MASK32] = (answer, cookie)

    # --- comparing ---------------------------------------------------------------------------

    def _differ(self, place: str, expected: str, actual: str) -> None:
        self.first_difference = min(self.first_difference, self.facts.step)
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(Difference(place, expected, actual))

    def _compare(self, place: str, expected: object, actual: object) -> None:
        if expected != actual:
            self._differ(place, str(expected), str(actual))

    def _compare_entry(self, call: SecureCall, regs: tuple[int, ...], place: str) -> None:
        for index, (expected, actual) in enumerate(zip(call.regs, regs, strict=True)):
            where = f"{place}.regs[{index}]"
            if isinstance(expected, int):
                if expected != actual:
                    self._differ(where, hex(expected), self._show(actual))
                continue
            first = index if expected.part == "hi" else index - 1
            address = regs[first] << 32 | regs[first + 1]
            if regs[first] >> 32 or regs[first + 1] >> 32:
                self._differ(where, expected.text, f"{actual:#x}, wider than 32 bits")
            else:
                self._compare_address(where, expected, address)
        self._compare_messages(call, regs, place)

    def _compare_messages(self, call: SecureCall, regs: tuple[int, ...], place: str) -> None:
        function = regs[0] & _MASK32
        page: int | None = None
        if function == smc.OPTEE_SMC_CALL_WITH_ARG:
            page = regs[1] << 32 | regs[2]
        self._compare_message(call.message, page, place + ".msg")
        page = None
        thread = (regs[7], regs[3])
        if function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC and thread in self._pending:
            answer, cookie = self._pending[thread]
            if answer == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
                address = regs[1] << 32 | regs[2]
                if address:
                    self._rpc_pages[regs[7], (regs[4] & _MASK32) << 32 | regs[5] & _MASK32] = (
                        address
                    )
            elif answer == smc.OPTEE_SMC_RETURN_RPC_CMD:
                page = self._rpc_pages.get((regs[7], cookie))
        self._compare_message(call.rpc_message, page, place + ".rpc_msg")

    def _compare_message(
        self, expected: ExpectedMessage | None, page: int | None, place: str
    ) -> None:
        if expected is None:
            if page is not None:
                self._differ(place, "no message", f"one at {self._show(page)}")
            return
        if page is None:
            page = self._locate(expected.at)
            self._differ(place, f"a message at {expected.at.text}", "none")
            if page is None:
                return
        elif not self._compare_address(place + ".at", expected.at, page):
            return
        try:
            raw = self._target.read(page & ~_OFFSET, PAGE_SIZE)
        except (KeyError, ValueError) as error:
            self._differ(place, f"a message at {expected.at.text}", f"no memory there ({error})")
            return
        header = _HEADER.unpack_from(raw)
        for name, value in expected.header:
            actual = header[_HEADER_WORDS[name]]
            if actual != value:
                self._differ(f"{place}.{name}", hex(value), hex(actual))
        count = min(header[7], _MAX_PARAMS)
        if count != len(expected.params):
            self._differ(f"{place}.params", f"{len(expected.params)} of them", str(count))
        for index, param in enumerate(expected.params[:count]):
            words = _PARAM.unpack_from(raw, _HEADER.size + index * _PARAM.size)
            self._compare_param(param, words, f"{place}.params[{index}]")

    def _compare_param(self, expected: ExpectedParam, words: tuple[int, ...], place: str) -> None:
        attr, address, size = words[0], words[1], words[2]
        if attr != expected.attr:
            self._differ(f"{place}.attr", hex(expected.attr), hex(attr))
        for index, word in enumerate(expected.words):
            where = f"{place}.v[{index}]"
            actual = words[index + 1]
            if isinstance(word, Symbol):
                self._compare_address(where, word, actual)
            elif word != actual:
                self._differ(where, hex(word), self._show(actual))
        listed = attr & _NONCONTIG and attr & 0xFF in _TMEM_TYPES and address
        if not listed:
            if expected.pages is not None:
                self._differ(f"{place}.pages", f"{len(expected.pages)} pages", "no list")
            return
        if expected.pages is None:
            self._differ(f"{place}.pages", "no list", f"a list at {self._show(address)}")
            return
        self._compare_pages(expected.pages, address, size, f"{place}.pages")

    def _compare_pages(
        self, expected: tuple[tuple[int, int], ...], address: int, size: int, place: str
    ) -> None:
        count = ((address & _OFFSET) + size + _OFFSET) // PAGE_SIZE
        if count != len(expected):
            self._differ(place, f"{len(expected)} pages", f"a size of {count} pages")
        page = address & ~_OFFSET
        for start in range(0, min(count, len(expected), _MAX_LIST), _LIST_ENTRIES):
            if self._target.shadow(page) is None:
                self._differ(place, "a list page of the mediator", self._show(page))
                return
            raw = struct.unpack("<512Q", self._target.read(page, PAGE_SIZE))
            for index, (guest, ipa) in enumerate(expected[start : start + _LIST_ENTRIES]):
                if raw[index] != self._physical.pa_of[guest, ipa]:
                    self._differ(
                        f"{place} page {start + index}",
                        f"guest {guest} {ipa:#x}",
                        self._show(raw[index]),
                    )
            page = raw[_LIST_ENTRIES]

    def _compare_address(self, place: str, expected: Symbol, actual: int) -> bool:
        reason: str | None
        if expected.name:
            if actual & _OFFSET != expected.offset:
                reason = "another offset"
            else:
                reason = self._names.match(expected.name, actual & ~_OFFSET)
        elif expected.stale:
            owned = self._target.shadow(actual & ~_OFFSET) is not None
            known = actual & ~_OFFSET in self._physical.seen_at
            reason = "a page in use" if owned or known or not actual else None
        else:
            address = self._guest_address(expected)
            same = address is not None and address + expected.offset == actual
            reason = None if same else "another address"
        if reason is not None:
            self._differ(place, expected.text, f"{self._show(actual)} ({reason})")
        return reason is None

    def _compare_memory(self, after: Aftermath, place: str) -> None:
        changed: dict[tuple[int, int], bytes] = {}
        for pa, before in self._before.items():
            guest, ipa = self._physical.seen_at.get(pa, (-1, pa))
            now = self._target.read(pa, PAGE_SIZE)
            if now == before:
                continue
            for offset in range(0, PAGE_SIZE, 4):
                word = now[offset : offset + 4]
                if word != before[offset : offset + 4]:
                    changed[guest, ipa + offset] = word
        for key in sorted(changed.keys() | after.memory.keys()):
            expected, actual = after.memory.get(key), changed.get(key)
            if expected != actual:
                self._differ(
                    f"{place}.mem guest {key[0]} {key[1]:#x}",
                    "no change" if expected is None else expected.hex(),
                    "no change" if actual is None else actual.hex(),
                )

    def _compare_pins(self, after: Aftermath, place: str) -> None:
        if after.pins is None:
            return
        held: dict[tuple[int, int], int] = {}
        for guest in self._physical.guests:
            for pa, count in self._target.pins(guest).items():
                ipa = self._physical.seen_at.get(pa, (guest, pa))[1]
                held[guest, ipa] = held.get((guest, ipa), 0) + count
        for key in sorted(held.keys() | after.pins.keys()):
            if held.get(key, 0) != after.pins.get(key, 0):
                self._differ(
                    f"{place}.pins guest {key[0]} {key[1]:#x}",
                    _references(after.pins.get(key, 0)),
                    _references(held.get(key, 0)),
                )

    def _show(self, address: int) -> str:
        name = self._names.describe(address)
        if name is None:
            seen = self._physical.seen_at.get(address & ~_OFFSET)
            if seen is not None:
                name = f"guest {seen[0]} {seen[1] + (address & _OFFSET):#x}"
        return hex(address) if name is None else f"{address:#x} = {name}"


def _registers(regs: Iterable[Word]) -> str:
    return " ".join(hex(word) if isinstance(word, int) else word.text for word in regs)


def _references(count: int) -> str:
    return f"{count} reference{'' if count == 1 else 's'}"
