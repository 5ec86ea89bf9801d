# SPDX-License-Identifier: BSD-2-Clause
"""The world around a target: an honest secure world or a lying one, and everything that disturbs.

A world plays :class:`specs.target.World`: it judges each entry of the secure world (I2, I5), counts the
steps of each trap (I7), and strikes where the :class:`~fuzz.strategies.disturbances.Disturbance` of
the trap says so.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from fuzz.inspector import PHYSICAL_ADDRESS_CALLS, Inspector
from fuzz.strategies.disturbances import QUIET, Disturbance
from fuzz.strategies.tee import COMPLETED, TeeAnswer, TeeStore, Where
from mediator.checkers.handed import HandedPages
from mediator.host import PAGE_SHIFT
from mediator.optee.events import NO_CALL, Answered, Forwarded, GuestTornDown
from secure_world.bus import BusError
from secure_world.settings import SecureWorldSettings
from secure_world.shm import SharedMemory
from secure_world.ta import TaRegistry
from secure_world.world import SecureWorld
from smccc.calls.yielding import is_rpc
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.errors import ParseError
from smccc.message import Kind, parse_message
from smccc.registers import MASK32, pair
from smccc.wire import HEADER_SIZE, PARAM_SIZE, message_size
from specs.target import PAGE_SIZE, Registers, Trap

Registers4 = tuple[int, int, int, int]

MAX_STEPS: Final = 2048
"""Calls of the world that one trap may cost: as many as the checker of I7 allows on our platform."""

HYPERVISOR: Final = 0
"""Client id of the hypervisor itself."""

THREADS: Final = 3
"""Threads of the secure world: enough for calls to overlap, few enough to run out of."""

_OFFSET: Final = PAGE_SIZE - 1
_UID: Final = (
    msg.OPTEE_MSG_UID_0,
    msg.OPTEE_MSG_UID_1,
    msg.OPTEE_MSG_UID_2,
    msg.OPTEE_MSG_UID_3,
)
_LIFE_CYCLE: Final = frozenset((smc.OPTEE_SMC_VM_CREATED, smc.OPTEE_SMC_VM_DESTROYED))


class FuzzWorld:
    """Implements :class:`specs.target.World`; subclasses answer in :meth:`secure`."""

    honest: bool
    """Whether calls of an honest guest must succeed."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        self.steps = 0
        """Calls of the world in the current trap."""
        self.most_steps = 0
        """The largest number of steps of any trap so far."""
        self.entries = 0
        """Entries of the secure world so far."""
        self.client_of: dict[int, int] = {}
        """Client ids by guest, as the mediator announced them."""
        self.on_meanwhile: Callable[[Trap], None] | None = None
        """Makes a trap of another processor."""
        self.on_race: Callable[[Disturbance], None] | None = None
        """Changes guest memory and stage 2 as the disturbance says."""
        self._serving: list[int] = []
        self._creating = -1
        self._disturbance = QUIET
        self._reads = 0
        self._allocations = 0
        self._preempt: deque[bool] = deque()
        self._interrupts: deque[bool] = deque()
        self._struck = False
        self._over = 0
        self._requests: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._arguments: dict[tuple[int, int], int] = {}
        self._messages: dict[tuple[int, int], int] = {}

    # --- for whoever drives the target ---------------------------------------------------------------

    def begin(self, guest: int, disturbance: Disturbance = QUIET) -> None:
        """The target works for ``guest`` from now on. Nests: inside, nothing is disturbed."""
        if not self._serving:
            self._disturbance = disturbance
            self._preempt = deque(disturbance.preempt)
            self._interrupts = deque(disturbance.interrupts)
            self._reads = self._allocations = self.steps = self._over = 0
            self._struck = False
        self._serving.append(guest)

    def end(self) -> None:
        """The target is done."""
        self._serving.pop()
        if not self._serving:
            self._disturbance = QUIET
            self._preempt.clear()
            self._interrupts.clear()

    def creating(self, guest: int) -> None:
        """The next VM_CREATED is for ``guest``."""
        self._creating = guest

    def forget(self, guest: int) -> None:
        """The guest was destroyed."""
        client = self.client_of.pop(guest, None)
        for table in (self._requests, self._arguments, self._messages):
            for key in [key for key in table if key[0] == client]:
                del table[key]

    def guest_of(self, client: int) -> int | None:
        """The guest that a client id stands for."""
        for guest, known in self.client_of.items():
            if known == client:
                return guest
        return None

    def in_use(self, guest: int) -> tuple[Counter[int], tuple[int, ...]] | None:
        """Pages that the secure world uses by count, and its RPC buffers by name; None: unknown."""
        return None

    # --- World -------------------------------------------------------------------------------------

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> Registers4:
        """One entry: judge it, let others strike, answer it."""
        self._step()
        self.entries += 1
        regs = (a0, a1, a2, a3, a4, a5, a6, a7)
        client = a7 & MASK32
        if client == HYPERVISOR:
            return self._for_hypervisor(regs)
        guest = self._judge(client, regs)
        if not self._struck and len(self._serving) == 1:
            self._struck = True
            self._strike()
        answer = self.secure(client, regs)
        self._note(guest, client, regs, answer)
        return answer

    def should_preempt(self) -> bool:
        """What the disturbance says, then False."""
        self._step()
        return self._preempt.popleft() if self._preempt and len(self._serving) == 1 else False

    def allocation_fails(self) -> bool:
        """Whether this allocation is the one to fail."""
        self._step()
        number = self._allocations
        self._allocations += 1
        return self._disturbance.fail_allocation == number and len(self._serving) == 1

    def guest_memory_read(self) -> None:
        """Let the guest race, if it is time."""
        self._step()
        self._reads += 1
        if (
            self._disturbance.race_after == self._reads
            and len(self._serving) == 1
            and self.on_race is not None
        ):
            self.on_race(self._disturbance)

    def guest_memory_write(self, pa: int) -> None:
        """Judge where the mediator writes."""
        self._step()
        if self._serving:
            self.inspector.written(self._serving[-1], pa)

    # --- inside --------------------------------------------------------------------------------------

    def secure(self, client: int, regs: Registers) -> Registers4:
        """The answer of the secure world to an entry on behalf of a guest."""
        raise NotImplementedError

    def announced(self, regs: Registers) -> Registers4:
        """The answer to a call of the hypervisor."""
        raise NotImplementedError

    def interrupted(self) -> bool:
        """Whether the disturbance has a foreign interrupt now."""
        return self._interrupts.popleft() if self._interrupts else False

    def _step(self) -> None:
        self.steps += 1
        self.most_steps = max(self.most_steps, self.steps)
        if self.steps > MAX_STEPS and not self._over:
            self._over = 1
            guest = self._serving[-1] if self._serving else -1
            self.inspector.report("I7", guest, f"more than {MAX_STEPS} steps in one trap")

    def _for_hypervisor(self, regs: Registers) -> Registers4:
        answer = self.announced(regs)
        if regs[0] == smc.OPTEE_SMC_VM_CREATED and answer[0] == smc.OPTEE_SMC_RETURN_OK:
            client = regs[1]
            if client == HYPERVISOR or self.guest_of(client) is not None:
                self.inspector.report("I5", self._creating, f"client id {client} is not its own")
            self.client_of[self._creating] = client
        return answer

    def _strike(self) -> None:
        disturbance = self._disturbance
        if self.on_race is not None and disturbance.meanwhile_remap is not None:
            self.on_race(Disturbance(race_remap=disturbance.meanwhile_remap))
        if self.on_meanwhile is not None:
            for trap in disturbance.meanwhile:
                self.on_meanwhile(trap)

    def _judge(self, client: int, regs: Registers) -> int:
        """I2 and I5 of an entry; the guest that it is for."""
        inspector = self.inspector
        serving = self._serving[-1] if self._serving else -1
        guest = self.guest_of(client)
        if guest is None or guest != serving:
            inspector.report("I5", serving, f"an entry for guest {guest}, client id {client}")
            return serving
        function = regs[0]
        if function in _LIFE_CYCLE:
            inspector.report("I5", guest, f"a guest reached function {function:#x}")
        elif function == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
            inspector.report("I2", guest, "the TEE reads the message in the guest's memory")
        elif function in PHYSICAL_ADDRESS_CALLS:
            inspector.message_handed(guest, pair(regs[1], regs[2]))
        elif function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            key = (client, regs[3])
            address, cookie = pair(regs[1], regs[2]), pair(regs[4], regs[5])
            place, before = self._requests.pop(key, (0, b""))
            if place:
                inspector.message_handed(guest, place, before)
            if address and key in self._arguments:
                inspector.page_handed(guest, address)
                self._arguments[client, -1 - cookie] = address
            self._arguments.pop(key, None)
        return guest

    def _note(self, guest: int, client: int, regs: Registers, answer: Registers4) -> None:
        """Remember what the secure world asked, to judge what it gets."""
        if regs[0] >> 31:
            return
        key = (client, regs[3])
        resumed = regs[0] == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
        behind = self._messages.pop(key, 0) if resumed else self._behind(regs)
        if not is_rpc(answer[0]):
            return
        asked = (client, answer[3] & MASK32)
        self._messages[asked] = behind
        status = answer[0] & MASK32
        if status == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            self._arguments[asked] = 0
        elif status == smc.OPTEE_SMC_RETURN_RPC_CMD:
            place = self.argument_at(client, behind, pair(answer[1], answer[2]))
            if place and self.inspector.is_mediators(place):
                target = self.inspector.target
                data = target.read(place & ~_OFFSET, PAGE_SIZE)[place & _OFFSET :]
                self._requests[asked] = (place, data)

    def _behind(self, regs: Registers) -> int:
        """Where the RPC argument behind a message is; 0 in the classic style."""
        if regs[0] != smc.OPTEE_SMC_CALL_WITH_RPC_ARG:
            return 0
        place = pair(regs[1], regs[2])
        if not self.inspector.is_mediators(place) or place & _OFFSET:
            return 0
        count = int.from_bytes(self.inspector.target.read(place + 28, 4), "little")
        size = message_size(count)
        return place + size if size < PAGE_SIZE else 0

    def argument_at(self, client: int, behind: int, cookie: int) -> int:
        """Where the RPC argument is: behind the message, or in the buffer of that name (0: nowhere)."""
        return behind or self._arguments.get((client, -1 - cookie), 0)


class _View:
    """What :class:`~mediator.checkers.handed.HandedPages` looks at: the mediator's pages."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector

    def read(self, pa: int, length: int) -> bytes | None:
        """Bytes of a page of the mediator, ``None`` elsewhere."""
        return self._inspector.target.read(pa, length) if self.is_mediators(pa) else None

    def is_mediators(self, pa: int) -> bool:
        """Whether the mediator owns the page at ``pa``."""
        return self._inspector.is_mediators(pa)


class TargetBus:
    """The memory bus of a secure world over a target: what is not handed to it is a breach of I2."""

    def __init__(self, world: FuzzWorld) -> None:
        self._world = world
        self._pins: dict[int, frozenset[int]] = {}
        self.handed: HandedPages | None = None
        """Knows which guest each page of the mediator was handed to."""

    def entered(self) -> None:
        """References may have changed since the last entry."""
        self._pins.clear()

    def _may(self, client: int, page: int) -> bool:
        inspector = self._world.inspector
        if inspector.is_mediators(page):
            return self.handed is None or self.handed.may(client, page >> PAGE_SHIFT)
        guest = self._world.guest_of(client)
        if guest is None:
            return False
        pins = self._pins.get(client)
        if pins is None:
            pins = self._pins[client] = frozenset(inspector.target.pins(guest))
        return page in pins

    def _pieces(self, client: int, pa: int, n: int, write: bool) -> list[tuple[int, int]]:
        pieces: list[tuple[int, int]] = []
        at, end = pa, pa + n
        while at < end:
            if not self._may(client, at & ~_OFFSET):
                guest = self._world.guest_of(client)
                verb = "writes" if write else "reads"
                self._world.inspector.report(
                    "I2", -1 if guest is None else guest, f"the TEE {verb} {n} bytes at {pa:#x}"
                )
                raise BusError(at, n, write)
            size = min(end, (at | _OFFSET) + 1) - at
            pieces.append((at, size))
            at += size
        return pieces

    def read(self, client: int, pa: int, n: int) -> bytes:
        """See :class:`secure_world.bus.Bus`; likewise below."""
        read = self._world.inspector.target.read
        return b"".join([read(at, size) for at, size in self._pieces(client, pa, n, False)])

    def write(self, client: int, pa: int, data: bytes) -> None:
        target = self._world.inspector.target
        for at, size in self._pieces(client, pa, len(data), True):
            target.write(at, data[at - pa : at - pa + size])

    def check(self, client: int, pa: int, n: int) -> bool:
        first, last = pa & ~_OFFSET, (pa + max(n, 1) - 1) & ~_OFFSET
        return all(self._may(client, page) for page in range(first, last + 1, PAGE_SIZE))

    def check_pages(self, client: int, pages: bytes) -> bool:
        words = memoryview(pages).cast("Q")
        return all(not page & _OFFSET and self._may(client, page) for page in words)


class _Monitor:
    """Time that only counts charges, and the foreign interrupts of the disturbance."""

    def __init__(self, world: FuzzWorld) -> None:
        self._world = world
        self._now = 0
        self.notifications = 0

    def now(self) -> int:
        """See :class:`secure_world.monitor.Monitor`; likewise below."""
        return self._now

    def charge(self, ns: int) -> None:
        self._now += ns

    def foreign_interrupt_pending(self) -> bool:
        return self._world.interrupted()

    def raise_notification(self) -> None:
        self.notifications += 1


class HonestWorld(FuzzWorld):
    """A real :class:`secure_world.world.SecureWorld` over the target's memory."""

    honest = True

    def __init__(
        self,
        inspector: Inspector,
        settings: SecureWorldSettings | None = None,
        registry: TaRegistry | None = None,
    ) -> None:
        super().__init__(inspector)
        self._bus = TargetBus(self)
        self._handed = HandedPages(_View(inspector), self._guest, inspector.report)
        self._heard = self._handed.handlers()
        self._bus.handed = self._handed
        self._calls = 0
        self._call_of: dict[tuple[int, int], int] = {}
        settings = settings or SecureWorldSettings(threads=THREADS)
        self.secure_world = SecureWorld(self._bus, settings, _Monitor(self), registry=registry)

    def secure(self, client: int, regs: Registers) -> Registers4:
        """What OP-TEE answers."""
        self._bus.entered()
        guest, call = self._guest(client), self._call(client, regs)
        self._hear(Forwarded(guest, call, 0, regs))
        answer = self.secure_world.smc(*regs)
        self._hear(Answered(guest, call, 0, answer))
        if call != NO_CALL and is_rpc(answer[0]):
            self._call_of[client, answer[3] & MASK32] = call
        return answer

    def _guest(self, client: int) -> int:
        guest = self.guest_of(client)
        return -1 if guest is None else guest

    def _call(self, client: int, regs: Registers) -> int:
        """A number for the call that enters: its own, or that of the thread that it resumes."""
        if regs[0] == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            return self._call_of.pop((client, regs[3]), NO_CALL)
        if regs[0] >> 31:
            return NO_CALL
        self._calls += 1
        return self._calls

    def _hear(self, event: Forwarded | Answered | GuestTornDown) -> None:
        self._heard[type(event)](event)

    def forget(self, guest: int) -> None:
        """The guest was destroyed."""
        client = self.client_of.get(guest)
        self._hear(GuestTornDown(guest, 0))
        for key in [key for key in self._call_of if key[0] == client]:
            del self._call_of[key]
        super().forget(guest)

    def announced(self, regs: Registers) -> Registers4:
        """What OP-TEE answers to the hypervisor."""
        self._bus.entered()
        return self.secure_world.smc(*regs)

    def in_use(self, guest: int) -> tuple[Counter[int], tuple[int, ...]] | None:
        """See the base class: everything that OP-TEE knows by cookie."""
        pages: Counter[int] = Counter()
        cookies: list[int] = []
        client = self.client_of.get(guest)
        partition = None if client is None else self.secure_world.partition(client)
        if partition is None:
            return pages, ()
        for head in partition.shm.by_cookie.values():
            memory: SharedMemory | None = head
            while memory is not None:
                for page in memory.pages:
                    if self.inspector.is_mediators(page):
                        cookies.append(memory.cookie)
                    else:
                        pages[page] += 1
                memory = memory.older
        return pages, tuple(cookies)

    def busy(self, guest: int) -> bool:
        """Whether a thread of the secure world still works for the guest."""
        client = self.client_of.get(guest)
        return client is not None and bool(self.secure_world.suspended(client))


class LyingWorld(FuzzWorld):
    """A secure world that answers whatever it is told to answer.

    Fill :attr:`answers` before a trap; once they are used up calls end at once. Calls of the
    hypervisor are answered as a real one would, but for :attr:`life_cycle`.
    """

    honest = False

    def __init__(self, inspector: Inspector) -> None:
        super().__init__(inspector)
        self.answers: deque[TeeAnswer] = deque()
        self.life_cycle: deque[int] = deque()
        """Statuses of the next VM_CREATED and VM_DESTROYED, then OK."""
        self._pages: dict[tuple[int, int], int] = {}
        self._addresses: dict[int, frozenset[int]] = {}

    def plan(self, answers: Iterable[TeeAnswer]) -> None:
        """What to answer from now on."""
        self.answers = deque(answers)

    def announced(self, regs: Registers) -> Registers4:
        """The probe goes well."""
        match regs[0]:
            case smc.OPTEE_SMC_CALLS_UID:
                return _UID
            case smc.OPTEE_SMC_GET_THREAD_COUNT:
                return (smc.OPTEE_SMC_RETURN_OK, THREADS, 0, 0)
            case smc.OPTEE_SMC_VM_CREATED | smc.OPTEE_SMC_VM_DESTROYED if regs[1]:
                status = self.life_cycle.popleft() if self.life_cycle else 0
                return (status, 0, 0, 0)
            case smc.OPTEE_SMC_VM_CREATED | smc.OPTEE_SMC_VM_DESTROYED:
                return (smc.OPTEE_SMC_RETURN_OK, 0, 0, 0)
            case _:
                return (smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION, 0, 0, 0)

    def secure(self, client: int, regs: Registers) -> Registers4:
        """The next of :attr:`answers`, after its stores."""
        answer = self.answers.popleft() if self.answers else COMPLETED
        page, behind = 0, 0
        if regs[0] in PHYSICAL_ADDRESS_CALLS:
            page, behind = pair(regs[1], regs[2]), self._behind(regs)
            self._addresses[page] = self._address_fields(page)
        elif regs[0] == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            page = self._pages.pop((client, regs[3]), 0)
            behind = self._messages.get((client, regs[3]), 0)
        for store in answer.stores:
            at = page
            if store.where is Where.ARGUMENT:
                cookie = pair(answer.registers[1], answer.registers[2])
                at = self.argument_at(client, behind, cookie)
            self._store(at, store, page)
        if is_rpc(answer.registers[0]):
            self._pages[client, answer.registers[3] & MASK32] = page
        return answer.registers

    def _store(self, at: int, store: TeeStore, page: int) -> None:
        if not at or not self.inspector.is_mediators(at):
            return
        image = bytearray(store.data)
        for place in store.secrets:
            # In a value it would be the secure world's own leak, which no mediator can tell.
            is_message = store.where is Where.MESSAGE
            if not is_message or store.offset + place in self._addresses.get(page, ()):
                image[place : place + 8] = page.to_bytes(8, "little")
        start = at + store.offset
        room = PAGE_SIZE - (start & _OFFSET)
        if start & ~_OFFSET == at & ~_OFFSET:
            self.inspector.target.write(start, bytes(image[:room]))

    def _address_fields(self, page: int) -> frozenset[int]:
        """Offsets of the addresses of temporary memory in the message at ``page``, as it is handed."""
        if not self.inspector.is_mediators(page):
            return frozenset()
        data = self.inspector.target.read(page & ~_OFFSET, PAGE_SIZE)[page & _OFFSET :]
        try:
            params = parse_message(data).params
        except ParseError:
            return frozenset()
        return frozenset(
            [
                HEADER_SIZE + index * PARAM_SIZE + 8
                for index, param in enumerate(params)
                if param.kind is Kind.TMEM
            ]
        )
