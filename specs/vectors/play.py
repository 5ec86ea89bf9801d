# SPDX-License-Identifier: BSD-2-Clause
"""Playing one scenario against a target and noting every difference.

:class:`Play` is the world of the target: the scripted secure world, the processors that change
memory meanwhile, the answers to preemption questions and the allocations that fail. It compares all
that the format records, entry by entry, and goes on after a difference as well as it can.
"""

from __future__ import annotations

from collections import deque

from attrs import frozen

from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from specs.target import PAGE_SIZE, Outcome, Setup, SetupRefused, Target, TargetFactory, Trap
from specs.vectors.case import Difference
from specs.vectors.facts import Fact, Facts
from specs.vectors.judge import Judge, registers_text
from specs.vectors.scenario import (
    CallStep,
    CreateStep,
    DestroyStep,
    GuestWrite,
    ProbeStep,
    RemapStep,
    Scenario,
    SecureCall,
    Step,
    Word,
    WriteStep,
)

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
    return run.run()


class Play:
    """One run of one scenario. Implements :class:`specs.target.World`."""

    def __init__(self, scenario: Scenario, factory: TargetFactory, preset: str) -> None:
        self._scenario = scenario
        self._physical = scenario.physical
        self._setup = Setup(scenario.guests, scenario.threads, preset, scenario.max_buffer_pages)
        self._frames: list[_Frame] = []
        self._preempt: deque[bool] = deque()
        self._reads = 0
        self._allocations = 0
        self._step: CallStep | None = None
        self._before: dict[int, bytearray] = {}
        self._probing = False
        self.target: Target = factory(self._setup, self)
        self._judge = Judge(scenario, self.target)
        self.facts = Facts(self._guest_page)

    # --- running -----------------------------------------------------------------------------

    def run(self) -> Played:
        """Play all steps."""
        if self._probe():
            for index, step in enumerate(self._scenario.steps):
                self._judge.step = self.facts.step = index
                self._run_step(step, f"steps[{index}]")
        facts = self.facts.until(self._judge.first_step)
        return Played(tuple(self._judge.differences), facts)

    def _probe(self) -> bool:
        """The probe that precedes a scenario; False when it failed."""
        if self._scenario.threads is not None:
            self._probing = True
            try:
                found = self._guarded("probe", self.target.probe, True)
            finally:
                self._probing = False
            if found is not True:
                self._judge.differ("probe before the first step", "found", str(found))
                return False
        return True

    def _run_step(self, step: Step, place: str) -> None:
        """One step, and what holds after it."""
        self._before.clear()
        self._reads = self._allocations = 0
        self._step = step if isinstance(step, CallStep) else None
        if self._step is not None and self._step.fail_alloc is not None:
            self.facts.note(Fact.ALLOCATION_FAILED)
        match step:
            case WriteStep(writes):
                for write in writes:
                    self._guest_write(write)
                return
            case RemapStep():
                self._remap(step, place)
                return
            case CallStep():
                self._trap(step, place)
            case ProbeStep():
                found = self._with_calls(
                    step.calls, place, "probe", self.target.probe, step.present
                )
                self._judge.equal(f"{place}.found", step.found, found)
            case CreateStep():
                ok = self._with_calls(
                    step.calls, place, "create", self.target.create, step.guest, step.tee
                )
                self._judge.equal(f"{place}.ok", step.ok, ok)
            case DestroyStep():
                self._preempt.extend(step.preempt)
                if any(self._preempt):
                    self.facts.note(Fact.TEARDOWN_PREEMPTED)
                done = self._with_calls(
                    step.calls, place, "destroy", self.target.destroy, step.guest
                )
                self._judge.equal(f"{place}.done", step.done, done)
        if step.after is not None:
            self._judge.compare_memory(step.after, self._before, place)
            self._judge.compare_pins(step.after, place)

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
            self._judge.differ(
                f"{place}.sw[{index}]", f"a call {registers_text(calls[index].regs)}", "no call"
            )
            self._judge.names.used(calls[index].symbols())
        return result

    def _guarded(self, place: str, entry: object, *arguments: object) -> object:
        """A target that raises is a difference, not the end of the run."""
        assert callable(entry)
        try:
            return entry(*arguments)
        except Exception as error:
            self._judge.differ(place, "an answer", f"{type(error).__name__}: {error}")
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
        outcome = self._with_calls(step.calls, place, "smc", self.target.trap, trap)
        self._late_race(step)
        if not isinstance(outcome, Outcome):
            return
        self._judge.equal(f"{place}.undef", step.undefined, outcome.undefined)
        self._judge.equal(
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
            self._judge.differ(f"{place}.out[{index}]", hex(expected), self._judge.show(actual))

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
            self._judge.differ(place, "no call", f"a call {registers_text(regs)}")
            return _UNKNOWN_FUNCTION
        call = frame.calls[frame.done]
        frame.done += 1
        self._judge.compare_entry(call, regs, place)
        for symbol, offset, data in call.writes:
            page = self._judge.locate(symbol)
            if page is None:
                self._judge.differ(
                    place + ".writes", f"{symbol.text} to be known", "no such page yet"
                )
            else:
                self.facts.written_by_tee(offset, data, self.target.read(page, PAGE_SIZE))
                self.target.write(page + offset, data)
                self._also_before(page + offset, data)
        self._judge.names.used(call.symbols())
        for write in call.guest_writes:
            self._guest_write(write)
        for index, event in enumerate(call.meanwhile):
            if isinstance(event, RemapStep):
                self._remap(event, place)
            else:
                self._trap(event, f"{place}.meanwhile[{index}].smc")
        reply = [self._reply_word(word, place) for word in call.reply]
        self._judge.note_rpc(regs, reply)
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

    def _late_race(self, step: CallStep) -> None:
        """What the guest writes after a read that the target need not make is in memory all the same.

        The recorded mediator reads the answer to an RPC twice, its header first; the second read
        comes in a mediator that takes one snapshot with the first.
        """
        answer = step.regs[0] & _MASK32 == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
        if answer and step.race_after is not None and self._reads < step.race_after <= 2:
            for write in step.race_writes:
                self._guest_write(write)

    def guest_memory_write(self, pa: int) -> None:
        """Keep what stood in the page before the mediator's first write of this step."""
        if pa not in self._before:
            self._before[pa] = bytearray(self.target.read(pa, PAGE_SIZE))

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

    def _remap(self, step: RemapStep, place: str) -> None:
        self._guarded(
            f"{place} remap", self.target.remap, step.guest, step.ipa, step.pages, step.kind
        )

    def _guest_page(self, guest: int, ipa: int) -> bytes | None:
        """The page at ``ipa`` of the guest's map, whatever stage 2 says now."""
        page = self._physical.translate(guest, ipa & ~_OFFSET)
        return None if page is None else self.target.read(page, PAGE_SIZE)

    def _guest_write(self, write: GuestWrite) -> None:
        address, data = write.ipa, write.data
        while data:
            pa = self._physical.translate(write.guest, address)
            part = data[: PAGE_SIZE - (address & _OFFSET)]
            if pa is not None:
                self.target.write(pa, part)
                self._also_before(pa, part)
            address += len(part)
            data = data[len(part) :]

    def _also_before(self, pa: int, data: bytes) -> None:
        """What others than the mediator write is no change by the mediator."""
        before = self._before.get(pa & ~_OFFSET)
        if before is not None:
            offset = pa & _OFFSET
            before[offset : offset + len(data)] = data

    def _reply_word(self, word: Word, place: str) -> int:
        if isinstance(word, int):
            return word
        address = self._judge.locate(word)
        if address is None:
            self._judge.differ(place + ".reply", f"{word.text} to be known", "no such page yet")
            return 0
        return {"hi": address >> 32, "lo": address & _MASK32}.get(word.part, address)
