# SPDX-License-Identifier: BSD-2-Clause
"""Guests paused, destroyed and created again in every state of every call, and what the TEE holds.

A real mediator on a real machine and its memory; the TEE is a script, which says exactly in which
state a call stands. The checkers watch; here stand the sentences about lives, ids and frames.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from mediator.checkers.standard import standard_watch
from mediator.checkers.watch import Watch
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.guest.cpu import GuestCpu
from mediator.host import PAGE_SIZE
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.frames import FIRST_GUEST
from mediator.hypervisor.guest import GuestSpec, GuestState, RamExtent
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.machine import Created, Machine, Refused
from mediator.hypervisor.memory import PhysicalMemory
from mediator.hypervisor.monitor import MachineMonitor
from mediator.hypervisor.scheduler import Mode
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from tests.mediator.rig import msg

RAM: Final = 0x4000_0000
PAGES: Final = 1024
ROOM: Final = 1200
"""Frames of the machine: one guest, the mediator's pages, and too little for a second one."""
LIST: Final = RAM + 0x8000
ARRAY: Final = RAM + 0x10_0000
ANSWER_PAGE: Final = RAM + 0x9000
COOKIE: Final = 0xC00C1E
BATCH: Final = 2 * 511
"""List entries that a walk pins together; it may stop after every 511."""
GO: Final = 40
"""The interrupt that lets a guest go on."""
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
ASK_ALLOC = smc.OPTEE_SMC_RETURN_RPC_ALLOC
ASK_CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
CLASSIC = smc.OPTEE_SMC_CALL_WITH_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
CREATED, DESTROYED = smc.OPTEE_SMC_VM_CREATED, smc.OPTEE_SMC_VM_DESTROYED

Frame = tuple[int, ...]
Answer = tuple[int, int, int, int]
Script = Callable[["Stage", Frame], Answer]
Regs = tuple[int, int, int, int, int, int, int, int]


class Stage:
    """Machine, memory, mediator, and a TEE that does what ``script`` says, one entry after another.

    ``lives``: (function, client id) of the life-cycle calls. ``keep``: what the TEE answers to
    VM_DESTROYED. ``preempt``: answers to the mediator's question, then no. ``values``: notification
    values that the TEE has for whoever asks.
    """

    def __init__(self, mode: Mode) -> None:
        self.memory = PhysicalMemory(frames=ROOM)
        self.monitor = MachineMonitor()
        self.monitor.preempt = lambda: bool(self.preempt) and self.preempt.pop(0)
        events: list[Callable[[tuple[object, ...]], None]] = []

        def sink(event: tuple[object, ...]) -> None:
            for listener in events:
                listener(event)

        bus = SecureBus(self.memory, sink=sink)
        self.host = ReferenceHost(
            self.memory,
            secure_smc=self.smc,
            should_preempt=self.monitor.should_preempt,
            inject_virq=self.monitor.inject_virq,
            now=self.monitor.now,
            set_timer=self.monitor.set_timer,
            park_vcpu=self._park,
            wake_vcpu=self.monitor.wake_vcpu,
            quarantine=self.monitor.quarantine,
            sink=sink,
        )
        interleave = mode is Mode.INTERLEAVE
        settings = MediatorSettings(limits=Limits(walk_entries=511, pin_entries=BATCH))
        self.tee = InHypervisor(self.host, settings, sink, suspending=interleave)
        self.machine = Machine(
            MachineSettings(mode=mode, pcpus=2),
            self.host,
            self.tee,
            sink=sink,
            monitor=self.monitor,
        )
        self.watch = standard_watch(
            Watch(), self.memory, self.host, self.tee.mediator, self.machine, bus
        )
        events.append(self.watch)
        self.script: list[Script] = []
        self.preempt: list[bool] = []
        self.lives: list[tuple[int, int]] = []
        self.keep = 0
        self.entries = 0
        self.on_destroyed: Callable[[int], None] | None = None
        self.inside: Callable[[int], None] | None = None
        self.ended: list[Regs] = []
        self.calls = 0
        self.values: list[int] = []
        self.parked = 0

    def _park(self, guest: int, vcpu: int, until: int) -> None:
        self.parked += 1
        self.monitor.park_vcpu(guest, vcpu, until)

    def smc(self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int) -> Answer:
        if a0 in (CREATED, DESTROYED):
            self.lives.append((a0, a1))
            if a0 == DESTROYED and self.on_destroyed is not None:
                self.on_destroyed(a1 - 1)
            return (self.keep if a0 == DESTROYED else 0, 0, 0, 0)
        if a0 == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE:
            if self.values:
                return (0, self.values.pop(0), smc.OPTEE_SMC_ASYNC_NOTIF_VALID, 0)
            return (0, 0, 0, 0)
        self.entries += 1
        if self.script:
            return self.script.pop(0)(self, (a0, a1, a2, a3, a4, a5, a6, a7))
        return (0, 0, 0, 0)

    def guest(self, plot: Plot, **spec: Any) -> int:
        async def program(cpu: GuestCpu) -> None:
            self.ended.append(await plot(self, cpu))

        ram = (RamExtent(RAM, PAGES),)
        answer = self.machine.create_guest(GuestSpec("guest", (program,), ram=ram, **spec))
        assert isinstance(answer, Created), answer
        return answer.guest

    def go(self, guest: int) -> None:
        self.machine.inject(guest, GO)
        self.machine.run(max_steps=100_000)

    def owned(self, guest: int) -> int:
        return self.memory.owned(FIRST_GUEST + guest)


Plot = Callable[[Stage, GuestCpu], Awaitable[Regs]]


async def idle(cpu: GuestCpu) -> None:
    """What a guest does that is only there to take something."""
    await cpu.wfi()


# --- what the TEE does ---------------------------------------------------------------------------


def interrupted(stage: Stage, regs: Frame) -> Answer:
    return (INTR, 0, 0, 1)


def asks_for_a_page(stage: Stage, regs: Frame) -> Answer:
    return (ASK_ALLOC, 0xA0, 0, 1)


def gives_the_page_back(stage: Stage, regs: Frame) -> Answer:
    return (smc.OPTEE_SMC_RETURN_RPC_FREE, 0, COOKIE, 1)


def asks(command: int, *params: tuple[int, int, int, int]) -> Script:
    """RPC CMD in the argument behind the message, which has one parameter."""

    def script(stage: Stage, regs: Frame) -> Answer:
        if regs[0] in (RPC_ARG, CLASSIC):
            stage.calls = regs[1] << 32 | regs[2]
        stage.memory.write(stage.calls + 64, msg(command, ret=0xFFFF0000, params=params))
        return (ASK_CMD, 0, 0, 1)

    return script


def acts(stage: Stage, regs: Frame) -> Answer:
    """Something happens to the guest while the TEE works for it."""
    assert stage.inside is not None
    stage.inside(regs[7] - 1)
    return (0, 0, 0, 0)


# --- what the guest does -------------------------------------------------------------------------


async def pages_of(cpu: GuestCpu, count: int) -> None:
    """A page list at LIST that names ``count`` pages from ARRAY on."""
    words = [ARRAY + index % 256 * PAGE_SIZE for index in range(count)]
    for number, start in enumerate(range(0, count, 511)):
        part = words[start : start + 511]
        page = LIST + number * PAGE_SIZE
        await cpu.write(page, struct.pack(f"<{len(part)}Q", *part))
        await cpu.write(page + 4088, struct.pack("<Q", page + PAGE_SIZE))


async def rest(cpu: GuestCpu) -> None:
    """Wait in guest code until the test says go."""
    await cpu.wfi()
    intid = cpu.acknowledge()
    assert intid == GO
    cpu.end_of_interrupt(intid)


async def serve(cpu: GuestCpu, regs: Regs) -> Regs:
    """Answer all RPCs of a call; its end. Before each answer, rest."""
    while regs[0] >> 16 == 0xFFFF and regs[0] != 0xFFFFFFFF:
        await rest(cpu)
        answer = [regs[1], regs[2], regs[3], 0, 0]
        if regs[0] == ASK_ALLOC:
            answer = [0, ANSWER_PAGE, regs[3], 0, COOKIE]
        elif regs[0] == ASK_CMD:
            command = struct.unpack("<I", await cpu.read(RAM + 64, 4))[0]
            body = msg(command)
            if command == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                await pages_of(cpu, 2)
                body = msg(command, params=[(0x20A, LIST, 2 * PAGE_SIZE, COOKIE)])
            await cpu.write(RAM + 64, body)
        regs = await cpu.smc(RETURN, *answer)
    return regs


async def invoke(
    cpu: GuestCpu, *, function: int = RPC_ARG, param: tuple[int, int, int, int] = (3, 1, 2, 3)
) -> Regs:
    await cpu.write(RAM, msg(1, params=[param]))
    return await serve(cpu, await cpu.smc(function, 0, RAM))


async def register(cpu: GuestCpu, count: int) -> Regs:
    await pages_of(cpu, count)
    await cpu.write(RAM, msg(4, params=[(0x20A, LIST, count * PAGE_SIZE, COOKIE)]))
    return await serve(cpu, await cpu.smc(RPC_ARG, 0, RAM))


def plain(*script: Script, function: int = RPC_ARG) -> Plot:
    """A call with one value, and what the TEE does with it."""

    async def plot(stage: Stage, cpu: GuestCpu) -> Regs:
        stage.script = list(script)
        return await invoke(cpu, function=function)

    return plot


async def temporary(stage: Stage, cpu: GuestCpu) -> Regs:
    stage.script = [interrupted]
    await pages_of(cpu, 3)
    return await invoke(cpu, param=(0x20B, LIST, 3 * PAGE_SIZE, COOKIE))


async def in_a_slot(stage: Stage, cpu: GuestCpu) -> Regs:
    await register(cpu, 2)
    stage.script = [interrupted]
    await cpu.write(ARRAY + 0x180, msg(1, params=[(3, 1, 2, 3)]))
    regs = await cpu.smc(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, COOKIE, 0x180)
    return await serve(cpu, regs)


async def registered(stage: Stage, cpu: GuestCpu) -> Regs:
    regs = await register(cpu, 4)
    await rest(cpu)
    return regs


async def registering(stage: Stage, cpu: GuestCpu) -> Regs:
    stage.script = [interrupted]
    return await register(cpu, 4)


async def walking(stage: Stage, cpu: GuestCpu) -> Regs:
    stage.preempt = [False, True]
    return await register(cpu, 1200)


async def walking_with_pins(stage: Stage, cpu: GuestCpu) -> Regs:
    """The first batch is pinned, the second is being read."""
    stage.preempt = [False] * (BATCH // 511) + [True]
    return await register(cpu, BATCH + 1022)


async def unregistering(stage: Stage, cpu: GuestCpu) -> Regs:
    await register(cpu, 4)
    stage.script = [interrupted]
    await cpu.write(RAM, msg(5, params=[(5, 0, 0, COOKIE)]))
    return await serve(cpu, await cpu.smc(RPC_ARG, 0, RAM))


async def draining(stage: Stage, cpu: GuestCpu) -> Regs:
    """A page of a call that is over is still in the TEE's cache."""
    stage.script = [asks_for_a_page]
    await invoke(cpu, function=CLASSIC)
    await rest(cpu)
    return await cpu.smc(smc.OPTEE_SMC_ENABLE_SHM_CACHE)


def offers_notifications(stage: Stage, regs: Frame) -> Answer:
    caps = smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM | smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
    return (0, caps | smc.OPTEE_SMC_SEC_CAP_RPC_ARG, 0x44, 4)


async def waiting(stage: Stage, cpu: GuestCpu) -> Regs:
    """A driver that knows of notifications and does not use them: the mediator keeps the wait."""
    stage.script = [offers_notifications]
    await cpu.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)
    stage.script = [asks(optee_rpc.OPTEE_RPC_CMD_NOTIFICATION, WAIT)]
    return await invoke(cpu)


SHM_ALLOC, SHM_FREE = optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC, optee_rpc.OPTEE_RPC_CMD_SHM_FREE
KEY: Final = 5
WAIT: Final = (1, optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT, KEY, 0)
STATES: Final[dict[str, tuple[Plot, int]]] = {
    "interrupted": (plain(interrupted), 0),
    "asked for a page": (plain(asks_for_a_page, function=CLASSIC), 0),
    "interrupted with a page": (plain(asks_for_a_page, interrupted, function=CLASSIC), 1),
    "freed the page": (plain(asks_for_a_page, gives_the_page_back, function=CLASSIC), 0),
    "asked for the time": (plain(asks(optee_rpc.OPTEE_RPC_CMD_GET_TIME)), 0),
    "asked for memory": (plain(asks(SHM_ALLOC, (1, 0, 8192, 8))), 0),
    "interrupted with memory": (plain(asks(SHM_ALLOC, (1, 0, 8192, 8)), interrupted), 2),
    "freed the memory": (
        plain(asks(SHM_ALLOC, (1, 0, 8192, 8)), asks(SHM_FREE, (1, 0, COOKIE, 0))),
        0,
    ),
    "waits in the mediator": (waiting, 0),
    "waits": (plain(asks(optee_rpc.OPTEE_RPC_CMD_NOTIFICATION, WAIT)), 0),
    "interrupted with a temporary buffer": (temporary, 3),
    "interrupted in a slot of a buffer": (in_a_slot, 2),
    "registering": (registering, 4),
    "registered": (registered, 4),
    "walking": (walking, 0),
    "walking with pins": (walking_with_pins, BATCH),
    "unregistering": (unregistering, 4),
    "page in the TEE's cache": (draining, 1),
}
"""Name: the guest's program, and how many references are held in that state at least."""

MODES = [pytest.param(mode, id=mode.value) for mode in (Mode.DIRECT, Mode.INTERLEAVE)]
every_state = pytest.mark.parametrize("state", STATES)
both_modes = pytest.mark.parametrize("mode", MODES)


def brought(state: str, mode: Mode) -> tuple[Stage, int]:
    """A guest that rests in ``state``."""
    stage = Stage(mode)
    plot, held = STATES[state]
    guest = stage.guest(plot)
    stage.machine.run(max_steps=100_000)
    for _ in range(3):
        # Some states come after an earlier RPC: the last rest is the one that matters.
        if stage.host.pinned(guest) >= held and not stage.script and not stage.ended:
            break
        stage.go(guest)
    assert stage.machine.waiting() == ((guest, 0),), "the guest does not rest"
    assert not stage.ended
    assert stage.host.pinned(guest) >= held
    return stage, guest


def finish(stage: Stage, guest: int) -> None:
    """Let the program of ``guest`` end; it must end well."""
    if stage.parked:
        stage.values = [KEY]
    for _ in range(4):
        if stage.ended:
            break
        stage.go(guest)
    assert [regs[0] for regs in stage.ended] == [0]


@both_modes
@every_state
def test_a_pause_changes_nothing(state: str, mode: Mode) -> None:
    stage, guest = brought(state, mode)
    before = (stage.host.pinned(guest), stage.entries, stage.tee.guest_info(guest))
    stage.machine.pause_guest(guest)
    stage.go(guest)
    stage.machine.at(stage.machine.now() + 10**10, lambda: None)
    stage.machine.run(max_steps=10_000)
    assert (stage.host.pinned(guest), stage.entries, stage.tee.guest_info(guest)) == before
    assert not stage.ended
    stage.machine.resume_guest(guest)
    stage.machine.run(max_steps=100_000)
    finish(stage, guest)
    stage.watch.check()


@both_modes
@every_state
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_destroyed_and_created_again(state: str, mode: Mode, paused: bool) -> None:
    stage, guest = brought(state, mode)
    free = stage.memory.free_frames
    if paused:
        stage.machine.pause_guest(guest)
    stage.machine.destroy_guest(guest)
    stage.machine.run(max_steps=100_000)
    assert stage.machine.guests == ()
    assert stage.lives == [(CREATED, guest + 1), (DESTROYED, guest + 1)]
    assert stage.owned(guest) == 0
    assert stage.memory.free_frames >= free + PAGES
    stage.script, stage.preempt = [], []
    again = stage.guest(STATES[state][0], guest_id=guest)
    assert stage.lives[2:] == [(CREATED, again + 1)]
    assert stage.tee.guest_info(again) is not None
    stage.machine.run(max_steps=100_000)
    finish(stage, again)
    stage.watch.check()


@both_modes
@every_state
def test_nobody_gets_a_page_before_the_tee_has_let_go(state: str, mode: Mode) -> None:
    """Not a page, not the id: the machine is asked again and again while teardown goes on."""
    stage, guest = brought(state, mode)
    spec = GuestSpec("thief", (idle,), ram=(RamExtent(RAM, PAGES),))
    answers: list[object] = []

    def steal(dying: int) -> None:
        assert dying == guest
        assert stage.owned(guest) == PAGES
        answers.append(stage.machine.create_guest(spec))
        answers.append(stage.machine.create_guest(GuestSpec("same", (idle,), guest_id=guest)))

    stage.on_destroyed = steal
    stage.preempt = [True, False] * 3
    stage.machine.destroy_guest(guest)
    for _ in range(200):
        if stage.machine.state(guest) is not GuestState.DYING:
            break
        steal(guest)
        stage.machine.run(max_steps=1)
    dying = f"id {guest} is in use: its guest is being torn down"
    assert answers[-2:] == [Refused("not enough memory"), Refused(dying)]
    assert answers == answers[-2:] * (len(answers) // 2)
    stage.on_destroyed = None
    assert isinstance(stage.machine.create_guest(spec), Created)
    stage.watch.check()


@both_modes
@every_state
def test_what_the_tee_keeps_nobody_gets(state: str, mode: Mode) -> None:
    stage, guest = brought(state, mode)
    stage.keep = smc.OPTEE_SMC_RETURN_ENOTAVAIL
    stage.machine.destroy_guest(guest)
    stage.machine.run(max_steps=100_000)
    assert stage.machine.state(guest) is GuestState.QUARANTINED
    assert stage.host.pinned(guest) == 0, "the mediator itself holds nothing"
    assert stage.owned(guest) == PAGES
    same = stage.machine.create_guest(GuestSpec("same", (idle,), guest_id=guest))
    reason = f"id {guest} is in quarantine: the TEE did not let go of its last guest"
    assert same == Refused(reason)
    ram = (RamExtent(RAM, PAGES),)
    large = stage.machine.create_guest(GuestSpec("large", (idle,), ram=ram))
    assert large == Refused("not enough memory")
    # The rest of the machine goes on, with the frames and the id that are left.
    ram = (RamExtent(RAM, stage.memory.free_frames - 20),)
    other = stage.machine.create_guest(GuestSpec("other", (idle,), ram=ram))
    assert isinstance(other, Created)
    assert other.guest != guest
    assert stage.owned(guest) == PAGES
    stage.machine.release_quarantine(guest)
    assert stage.owned(guest) == 0
    stage.watch.check()


@both_modes
@pytest.mark.parametrize("function", [RPC_ARG, CLASSIC, smc.OPTEE_SMC_CALLS_UID])
def test_paused_or_destroyed_while_the_tee_works_for_it(mode: Mode, function: int) -> None:
    """The entry ends on its pCPU; only then the guest rests, or goes."""

    async def plot(stage: Stage, cpu: GuestCpu) -> Regs:
        stage.script = [acts]
        await cpu.write(RAM, msg(1, params=[(3, 1, 2, 3)]))
        return await cpu.smc(function, 0, RAM)

    stage = Stage(mode)
    stage.inside = stage.machine.pause_guest
    guest = stage.guest(plot)
    stage.machine.run(max_steps=100_000)
    assert stage.entries == 1
    assert not stage.ended
    stage.machine.resume_guest(guest)
    stage.machine.run(max_steps=100_000)
    assert [regs[0] for regs in stage.ended] == [0]

    stage = Stage(mode)
    stage.inside = stage.machine.destroy_guest
    guest = stage.guest(plot)
    stage.machine.run(max_steps=100_000)
    assert stage.entries == 1
    assert not stage.ended
    assert stage.machine.guests == ()
    assert stage.lives == [(CREATED, guest + 1), (DESTROYED, guest + 1)]
    stage.watch.check()


@both_modes
@pytest.mark.parametrize("woken", [False, True], ids=["rest over", "woken"])
def test_a_vcpu_that_rests_for_a_kept_wait_is_paused_and_resumed(mode: Mode, woken: bool) -> None:
    stage = Stage(mode)
    guest = stage.guest(waiting)
    stage.machine.run(lambda: bool(stage.parked) and stage.machine.waiting() == ((guest, 0),))
    stage.machine.pause_guest(guest)
    if woken:
        stage.machine.wake_vcpu(guest, 0)
    entries = stage.entries
    stage.machine.inject(guest, GO)
    stage.machine.run(max_steps=10_000)
    assert stage.entries == entries, "paused, whatever woke it"
    assert stage.machine.waiting() == ()
    stage.values = [KEY]
    stage.machine.resume_guest(guest)
    stage.machine.run(max_steps=10_000)
    finish(stage, guest)
    assert stage.tee.waits() == ()
    stage.watch.check()


@both_modes
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_guest_goes_while_its_vcpu_rests(mode: Mode, paused: bool) -> None:
    stage = Stage(mode)
    guest = stage.guest(waiting)
    stage.machine.run(lambda: bool(stage.parked) and stage.machine.waiting() == ((guest, 0),))
    if paused:
        stage.machine.pause_guest(guest)
    stage.machine.destroy_guest(guest)
    stage.machine.run(max_steps=10_000)
    assert stage.machine.guests == ()
    assert stage.tee.waits() == ()
    assert stage.lives == [(CREATED, guest + 1), (DESTROYED, guest + 1)]
    assert stage.guest(waiting, guest_id=guest) == guest
    stage.watch.check()
