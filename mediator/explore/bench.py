# SPDX-License-Identifier: BSD-2-Clause
"""A mediator between guests of a few pages and the simulated OP-TEE, quick to make.

What runs is the product: :class:`~mediator.optee.mediator.OpteeMediator` on the reference host with
the secure bus and the secure world, all under the watch of the checkers of I1 to I8. *Every* system
call of the mediator is a switch point here, also those that no deployment suspends in. What a
processor of a guest does between two traps is one step with the beginning of the next trap.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Hashable, Sequence
from types import coroutine
from typing import Final, TypeVar, cast
from uuid import UUID

from mediator.checkers.standard import standard_watch
from mediator.checkers.watch import Watch
from mediator.explore.engine import Actor, Until
from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Host
from mediator.hypervisor import machine_events
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from mediator.optee.mediator import OpteeMediator
from mediator.optee.settings import MediatorSettings
from mediator.optee.syscalls import Syscalls
from mediator.suspend import Suspend
from secure_world.settings import SecureWorldSettings
from secure_world.ta import Params, TaEnvironment, TaRegistry, TrustedApplication
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from smccc.wire import HEADER_SIZE, MESSAGE

T = TypeVar("T")
BACK: Final = "comes back from the TEE"
Registers = tuple[int, ...]
Param = tuple[int, int, int, int]
Event = tuple[object, ...]

GUEST: Final = 1
OTHER: Final = 2

RAM: Final = 0x4000_0000
PAGES: Final = 16
"""Pages of a guest: messages in the first ones, page lists and buffers behind."""
FRAMES: Final = 512
FIRST_FRAME: Final = 512
"""RAM of the machine: 2 MiB from 2 MiB on. Nothing is where a guest's addresses are."""

LIST: Final = RAM + 8 * PAGE_SIZE
DATA: Final = RAM + 10 * PAGE_SIZE
"""Where page lists and buffers of a guest begin."""

TMEM: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT
LISTED: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
RMEM: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT
_META: Final = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT

TEE_SETTINGS: Final = SecureWorldSettings(threads=3, guests=4, checkpoints_per_entry=1)
SETTINGS: Final = MediatorSettings()
WITH_RPC_ARG: Final = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN: Final = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
_RPC: Final = smc.OPTEE_SMC_RETURN_RPC_PREFIX


class Patient(TrustedApplication):
    """Leaves with its memory in hand, and uses it when it comes back."""

    uuid = UUID("2a7c4b19-5d0f-4c83-9f62-7f1f0f3a6d11")
    name = "patient"
    pseudo = True
    multi_session = True

    PASS = 0
    """Interrupted once."""
    TOUCH = 1
    """Interrupted once, then writes p0."""
    LOCK = 2
    """Waits for the lock of all partitions."""
    HOLD = 3
    """Takes that lock, is interrupted once, and gives it back."""
    ALLOCATE = 4
    """SHM_ALLOC of a page, written when it is there, and SHM_FREE."""
    QUICK = 5
    """Writes p0 at once."""

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """See the commands."""
        if command in (self.PASS, self.TOUCH):
            await env.checkpoint()
        if command in (self.TOUCH, self.QUICK):
            params.memref(0).write(0, b"used")
        elif command in (self.LOCK, self.HOLD):
            lock = env.mutex("lock", shared=True)
            await lock.lock()
            if command == self.HOLD:
                await env.checkpoint()
            await lock.unlock()
        elif command == self.ALLOCATE:
            memory = await env.shm_alloc(PAGE_SIZE)
            memory.write(0, b"used")
            await env.shm_free(memory)
        return 0


REGISTRY: Final = TaRegistry([Patient])


def _switch_point(name: str, method: Callable[..., object]) -> Callable[..., Awaitable[object]]:
    @coroutine
    def system_call(*arguments: object) -> Generator[object, None, object]:
        yield name
        return method(*arguments)

    return system_call


def _secure_call(method: Callable[..., object]) -> Callable[..., Awaitable[object]]:
    """Two switch points: who entered the TEE first need not be the first to come back."""

    @coroutine
    def system_call(*arguments: object) -> Generator[object, None, object]:
        yield "smc"
        answer = method(*arguments)
        yield BACK
        return answer

    return system_call


class SwitchPoints:
    """The system calls of ``host``, each of which offers to switch first and says its name."""

    def __init__(self, host: Host) -> None:
        for name in SYSTEM_CALLS:
            setattr(self, name, _switch_point(name, getattr(host, name)))
        self.smc = _secure_call(host.smc)


SYSTEM_CALLS: Final = tuple(name for name in vars(Host) if not name.startswith("_"))


class Interrupt:
    """The monitor of the secure world: no clock, and one interrupt that stays until it is taken."""

    def __init__(self) -> None:
        self.raised = False

    def now(self) -> int:
        """Time stands still: only what happens lets anybody go on."""
        return 0

    def charge(self, ns: int) -> None:
        """Nothing takes time."""

    def foreign_interrupt_pending(self) -> bool:
        """Never: applications leave by themselves."""
        return False

    def raise_notification(self) -> None:
        """The interrupt is pending."""
        self.raised = True


class Bench:
    """A machine; guest 1 exists. Implements :class:`mediator.explore.engine.Run`.

    ``guests``: who exists. ``preemptions``: how often the question whether to preempt is answered
    yes, from the first on. ``events``: gets all events, for a story.
    """

    def __init__(
        self,
        guests: Sequence[int] = (GUEST,),
        settings: MediatorSettings = SETTINGS,
        *,
        preemptions: int = 0,
        events: list[Event] | None = None,
    ) -> None:
        self.watch = Watch()
        sink = self.watch if events is None else self._heard
        self._events = events
        memory = PhysicalMemory(FRAMES, FIRST_FRAME)
        self.memory = memory
        self.bus = SecureBus(memory, sink=sink)
        self.interrupt = Interrupt()
        self.world = SecureWorld(
            self.bus, TEE_SETTINGS, self.interrupt, registry=REGISTRY, sink=sink
        )
        self._preemptions = preemptions
        self.host = ReferenceHost(
            memory,
            secure_smc=self.world.smc,
            should_preempt=self._preempt,
            inject_virq=self._inject,
            park_vcpu=self._park,
            wake_vcpu=self._wake,
            sink=sink,
        )
        self.mediator = OpteeMediator(settings, sink)
        standard_watch(self.watch, memory, self.host, self.mediator)
        self.sys = cast("Syscalls", SwitchPoints(self.host))
        self._sink = sink
        self.actors: list[tuple[str, Actor]] = []
        self.wrong: list[str] = []
        self.entered: Counter[int] = Counter()
        self.left: Counter[int] = Counter()
        self._outcome: Hashable = None
        self.told: dict[tuple[int, int], None] = {}
        self.virqs: dict[int, None] = {}
        self.resting: dict[tuple[int, int], None] = {}
        self.listens: dict[int, None] = {}
        self.raised = 0
        self.creating = False
        self.checks: list[Callable[[], str]] = []
        assert self.now(self.mediator.probe(self.sys)).found
        for guest in guests:
            assert self.now(self.create(guest))

    # --- the run --------------------------------------------------------------------------------

    def _heard(self, event: Event) -> None:
        assert self._events is not None
        self._events.append(event)
        self.watch(event)

    def add(self, name: str, actor: Coroutine[object, None, Hashable]) -> None:
        """An actor; it begins when it is chosen for the first time."""
        self.actors.append((name, actor))

    def now(self, work: Coroutine[object, None, T]) -> T:
        """Do something from its beginning to its end before the run."""
        try:
            while True:
                work.send(None)
        except StopIteration as end:
            result: T = end.value
            return result

    def queue_up(self, actor: Coroutine[object, None, T]) -> Coroutine[object, None, T]:
        """Let an actor go on before the run until the TEE has answered it for the first time."""
        while actor.send(None) != BACK:
            pass
        return actor

    def violations(self) -> Sequence[str]:
        """See :class:`mediator.explore.engine.Run`; likewise below."""
        if not self.wrong and not self.watch.total:
            return ()
        return [*self.wrong, *map(str, self.watch.violations)]

    def finish(self) -> None:
        self.watch.finish()
        self.wrong += [found for check in self.checks if (found := check())]
        self._outcome = tuple(
            (guest, self.mediator.guest_info(guest), self.host.pinned(guest))
            for guest in self.host.guests()
        )
        for guest in self.host.guests():
            self.now(self.destroy(guest))
        if self.world.clients():
            self.wrong.append(f"the TEE still has partitions {self.world.clients()}")
        kept = len(cast("list[object]", self.mediator.snapshot()["free_pages"]))
        if self.host.shadows.in_use != kept:
            self.wrong.append(f"{self.host.shadows.in_use - kept} pages of the mediator are lost")

    def outcome(self) -> Hashable:
        return self._outcome

    def state(self) -> Sequence[object]:
        return (
            self.watch,
            self.memory,
            self.bus,
            self.world,
            self.host,
            self.mediator,
            self._preemptions,
            self.wrong,
            self.entered,
            self.left,
            self.told,
            self.virqs,
            self.resting,
            self.listens,
            self.raised,
            self.creating,
        )

    def _preempt(self) -> bool:
        if not self._preemptions:
            return False
        self._preemptions -= 1
        return True

    def _inject(self, guest: int, intid: int) -> None:
        if guest not in self.listens:
            self.wrong.append(f"guest {guest} is interrupted, which never asked for it")
        self.virqs[guest] = None

    def _park(self, guest: int, vcpu: int, until: int) -> None:
        self.resting[guest, vcpu] = None

    def _wake(self, guest: int, vcpu: int) -> None:
        self.resting.pop((guest, vcpu), None)

    # --- the host -------------------------------------------------------------------------------

    async def interrupts(self) -> Hashable:
        """The handler of the TEE's interrupt, for as long as there are any."""
        interrupt = self.interrupt
        while True:
            await Suspend(
                Until(lambda: interrupt.raised, "waits for the TEE's interrupt", idle=True)
            )
            interrupt.raised = False
            while not await self.mediator.notification_interrupt(self.sys):
                pass

    async def raise_value(self, guest: int, value: int) -> Hashable:
        """Another partition has released what a thread of the guest's partition waits for.

        ``True`` unless the guest has no partition.
        """
        partition = self.world.partition(guest + self.mediator.settings.client_id_base)
        if partition is None:
            return False
        partition.notify(value)
        self.raised += 1
        return True

    async def create(self, guest: int) -> bool:
        """Make a guest and tell the mediator."""
        self.host.add_guest(guest)
        assert self.host.populate(guest, RAM, PAGES)
        return await self.announce(guest)

    async def announce(self, guest: int) -> bool:
        """Tell the mediator of a guest that the host has."""
        self.entered[guest] += 1
        created = await self.mediator.guest_created(self.sys, guest)
        self.left[guest] += 1
        return created

    async def destroy(self, guest: int) -> str:
        """Destroy a guest, entering again until it is done, and take its memory.

        After an entry that could not go on the next one is made when something of the guest has
        left the mediator: one before would do the same.
        """
        while True:
            self.entered[guest] += 1
            done = await self.mediator.guest_destroyed(self.sys, guest)
            self.left[guest] += 1
            if done:
                break
            if self.entered[guest] != self.left[guest]:
                await Suspend(Until(self._changed(guest), "waits for an entry to leave"))
        if guest in self.host.guests():
            removed = self.host.remove_guest(guest)
            if removed.held:
                self.wrong.append(f"guest {guest} is gone and {removed.held} pages are pinned")
        return "destroyed"

    def _changed(self, guest: int) -> Callable[[], bool]:
        left, before = self.left, self.left[guest]
        return lambda: left[guest] != before

    # --- the guest ------------------------------------------------------------------------------

    def pa(self, guest: int, ipa: int) -> int:
        """Where a page of a guest is."""
        frame, _ = self.host.stage2(guest).lookup(ipa >> PAGE_SHIFT)
        return frame << PAGE_SHIFT | ipa & PAGE_MASK

    def put(self, guest: int, ipa: int, data: bytes) -> None:
        """The guest stores ``data`` in one of its pages."""
        self.memory.write(self.pa(guest, ipa), data)

    def get(self, guest: int, ipa: int, length: int) -> bytes:
        """The guest loads from one of its pages."""
        return self.memory.read(self.pa(guest, ipa), length)

    async def trap(self, guest: int, vcpu: int, *regs: int) -> Registers | None:
        """An SMC of the guest; ``None``: unknown function, or the guest has gone."""
        if guest not in self.host.guests():
            return None
        frame = regs + (0,) * (8 - len(regs))
        self._sink(machine_events.TrapEnter(guest, vcpu, False, 0, frame))
        self.entered[guest] += 1
        out = await self.mediator.handle(self.sys, guest, vcpu, frame)
        self.left[guest] += 1
        after = (0xFFFF_FFFF, *frame[1:]) if out is None else out
        self._sink(machine_events.TrapExit(guest, vcpu, True, after))
        return out

    def message(self, guest: int, slot: int, body: bytes) -> int:
        """Put a message into a page of its own; its address."""
        at = RAM + slot * PAGE_SIZE
        self.put(guest, at, body)
        return at

    def result(self, guest: int, slot: int) -> int:
        """``ret`` of a message."""
        value: int = struct.unpack("<I", self.get(guest, RAM + slot * PAGE_SIZE + 20, 4))[0]
        return value

    async def call(self, guest: int, vcpu: int, slot: int, body: bytes) -> Registers | None:
        """A call with its message in page ``slot``."""
        if guest not in self.host.guests():
            return None
        at = self.message(guest, slot, body)
        return await self.trap(guest, vcpu, WITH_RPC_ARG, at >> 32, at & 0xFFFF_FFFF)

    async def drive(
        self, guest: int, vcpu: int, slot: int, body: bytes, *, gives: int = DATA
    ) -> Hashable:
        """A call as a driver makes it: RPCs are served until it ends. x0 and ``ret``."""
        out = await self.call(guest, vcpu, slot, body)
        behind = RAM + slot * PAGE_SIZE + len(body)
        while out is not None and out[0] & 0xFFFF_0000 == _RPC:
            if out[0] == smc.OPTEE_SMC_RETURN_RPC_CMD:
                await self.serve(guest, behind, gives)
            elif (guest, vcpu) in self.resting:
                await self._rest(guest, vcpu)
            out = await self.trap(guest, vcpu, RETURN, 0, 0, out[3])
        if out is None:
            return "no TEE"
        return out[0], self.result(guest, slot)

    async def _rest(self, guest: int, vcpu: int) -> None:
        """Time does not pass: only who is woken goes on, as if a rest had no end."""
        resting, place = self.resting, (guest, vcpu)
        await Suspend(Until(lambda: place not in resting, "rests"))

    async def handler(self, guest: int, vcpu: int) -> Hashable:
        """The guest's handler of its notification interrupt: reads values until there are none."""
        virqs = self.virqs
        while True:
            await Suspend(Until(lambda: guest in virqs, "waits for a virtual interrupt", idle=True))
            del virqs[guest]
            more = True
            while more:
                out = await self.trap(guest, vcpu, smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)
                if out is None:
                    return "no TEE"
                if out[2] & smc.OPTEE_SMC_ASYNC_NOTIF_VALID:
                    self.told[guest, out[1]] = None
                more = bool(out[2] & smc.OPTEE_SMC_ASYNC_NOTIF_PENDING)

    async def enable(self, guest: int, vcpu: int) -> int:
        """ENABLE_ASYNC_NOTIF; from the trap on the guest may be interrupted."""
        self.listens[guest] = None
        out = await self.trap(guest, vcpu, smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)
        return -1 if out is None else out[0]

    def capabilities(self, guest: int) -> None:
        """EXCHANGE_CAPABILITIES before the run: what a driver asks first."""
        out = self.now(self.trap(guest, 0, smc.OPTEE_SMC_EXCHANGE_CAPABILITIES))
        assert out is not None
        assert out[0] == smc.OPTEE_SMC_RETURN_OK

    async def serve(self, guest: int, at: int, gives: int) -> None:
        """Serve the RPC message at ``at`` as Linux does, with the page ``gives`` if one is asked for."""
        command, count = struct.unpack("<I24xI", self.get(guest, at, HEADER_SIZE))
        fields = MESSAGE[count].unpack(self.get(guest, at, HEADER_SIZE + 32 * count))
        answer = struct.pack("<I", 0)
        if command == optee_rpc.OPTEE_RPC_CMD_NOTIFICATION:
            await self._notification(guest, fields[9], fields[10])
        elif command == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC:
            self.put(guest, LIST, struct.pack("<Q", gives))
            given = struct.pack("<4Q", LISTED, LIST, PAGE_SIZE, gives)
            self.put(guest, at + HEADER_SIZE, given)
        self.put(guest, at + 20, answer)

    async def _notification(self, guest: int, what: int, key: int) -> None:
        """SEND is remembered until a WAIT takes it."""
        told = self.told
        if what == optee_rpc.OPTEE_RPC_NOTIFICATION_SEND:
            told[guest, key] = None
        else:
            if (guest, key) not in told:
                await Suspend(Until(lambda: (guest, key) in told, f"waits for key {key:#x}"))
            del told[guest, key]

    def session(self, guest: int, slot: int = 0) -> int:
        """Open a session before the run."""
        high, low = struct.unpack("<2Q", Patient.uuid.bytes)
        body = build(0, params=[(_META, high, low, 0), (_META, 0, 0, 0)])
        assert self.now(self.drive(guest, 0, slot, body)) == (0, 0)
        session: int = struct.unpack("<I", self.get(guest, RAM + slot * PAGE_SIZE + 8, 4))[0]
        return session

    def interrupted(self, guest: int, slot: int, body: bytes) -> int:
        """Begin a call before the run; it leaves for a foreign interrupt. Its thread."""
        out = self.now(self.call(guest, 0, slot, body))
        assert out is not None
        assert out[0] & 0xFFFF_0000 == _RPC, hex(out[0])
        return out[3]


def build(command: int, *, func: int = 0, session: int = 0, params: Sequence[Param] = ()) -> bytes:
    """A message."""
    flat = [word for param in params for word in param]
    return MESSAGE[len(params)].pack(command, func, session, 0, 0, 0, 0, len(params), *flat)


def invoke(session: int, func: int, params: Sequence[Param] = ()) -> bytes:
    """INVOKE_COMMAND."""
    return build(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, func=func, session=session, params=params)


def register(listed: int, pages: int, cookie: int) -> bytes:
    """REGISTER_SHM of the page list at ``listed``."""
    return build(
        msg.OPTEE_MSG_CMD_REGISTER_SHM, params=[(LISTED, listed, pages * PAGE_SIZE, cookie)]
    )


def unregister(cookie: int) -> bytes:
    """UNREGISTER_SHM."""
    rmem = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT
    return build(msg.OPTEE_MSG_CMD_UNREGISTER_SHM, params=[(rmem, 0, 0, cookie)])
