# SPDX-License-Identifier: BSD-2-Clause
"""The simulated OP-TEE: one synchronous entry per SMC, registers in, registers out.

Model of OP-TEE OS 4.10 behind TF-A's OP-TEE dispatcher. :meth:`SecureWorld.smc` runs a thread until
it ends, makes an RPC or takes a foreign interrupt; it never raises for anything that the normal
world does. Function ids and results: ``optee_smc.h``; what is not in that header was measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from secure_world import events
from secure_world.apps import default_registry
from secure_world.bus import Bus
from secure_world.entry import CLIENT_PARAMS, call_with_arg, call_with_regd_arg
from secure_world.events import Sink
from secure_world.fault import Fault, FaultyBus, Registers4, Registers8
from secure_world.leaving import ResumeRegs, Running
from secure_world.loader import Loader
from secure_world.monitor import Monitor, NullMonitor, Stimuli
from secure_world.params import Shapes
from secure_world.partition import Partition
from secure_world.settings import SecureWorldSettings
from secure_world.shm import PAGE_SIZE
from secure_world.ta import TaRegistry
from secure_world.thread import (
    FREE,
    RPC_ARG_SIZE,
    RPC_PARAMS,
    RUNNING,
    SUSPENDED,
    Thread,
)
from secure_world.waiting import TeeCondition, TeeMutex
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.wire import PARAMS

_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_FAST: Final = 0x8000_0000
_OWNER_SHIFT: Final = 24
_FIRST_OS_OWNER: Final = 50
"""TF-A's dispatcher owns the entity numbers 50 to 63; others are answered at EL3 with -1."""
_OWNER_MASK: Final = 0x3F
_FAST_RESERVED: Final = 0x00FE_0000
"""Bits 23:17 of a fast id must be zero (TF-A); bit 16 is the SVE hint and is not looked at."""
_SVE_HINT: Final = 0x0001_0000
_HYPERVISOR: Final = 0
"""Client id of the hypervisor itself (HYP_CLNT_ID)."""
_CLIENT_MASK: Final = 0xFFFF

CALLS: Final = 12
"""CALLS_COUNT of OP-TEE; virtualization adds VM_CREATED and VM_DESTROYED."""
CALLS_VIRTUALIZATION: Final = 2

_OK: Final = smc.OPTEE_SMC_RETURN_OK
_ENOTAVAIL: Final = smc.OPTEE_SMC_RETURN_ENOTAVAIL
_EBUSY: Final = smc.OPTEE_SMC_RETURN_EBUSY
_UNKNOWN: Final = smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
_NO_THREAD: Final = (smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT, 0, 0, 0)
_NO_RESUME: Final = (smc.OPTEE_SMC_RETURN_ERESUME, 0, 0, 0)
_NO_PARTITION: Final = (_ENOTAVAIL, 0, 0, 0)
_NSEC_KNOWN: Final = smc.OPTEE_SMC_NSEC_CAP_UNIPROCESSOR


class LockWait(NamedTuple):
    """``thread`` of ``client`` waits for ``lock``; its owner, or -1 and -1."""

    client: int
    thread: int
    lock: str
    owner_client: int
    owner_thread: int


def _waits(lock: TeeMutex) -> list[LockWait]:
    owner = lock.owner
    who = (-1, -1) if owner is None else (owner.partition.client, owner.index)
    return [
        LockWait(thread.partition.client, thread.index, lock.name, *who)
        for thread in lock.queue.threads()
    ]


FastHandler = Callable[[Partition, int, int, int, int], Registers4]
Begin = Callable[[Thread, int, int, int], Running | None]


class SecureWorld:
    """A simulated OP-TEE on a memory bus.

    ``registry``: the trusted applications, by default all built-in ones. ``sink`` receives the
    events of :mod:`secure_world.events`. ``fault``: a policy that lies, for fuzzing.
    """

    def __init__(
        self,
        bus: Bus,
        settings: SecureWorldSettings | None = None,
        monitor: Monitor | None = None,
        sink: Sink | None = None,
        *,
        registry: TaRegistry | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.settings = settings = settings if settings is not None else SecureWorldSettings()
        self.bus: Bus = bus if fault is None else FaultyBus(bus, fault)
        self.monitor: Monitor = monitor if monitor is not None else NullMonitor()
        self.sink = sink
        self.registry = registry if registry is not None else default_registry()
        self.invoke_shapes = Shapes(PARAMS)
        self.open_shapes = Shapes(CLIENT_PARAMS)
        self.loader = Loader(self.registry, settings.max_ta_image)
        self.device_key = hashlib.sha256(f"device {settings.seed}".encode()).digest()
        self.max_bytes = settings.max_object_pages * PAGE_SIZE
        self.reserved = None if settings.virtualization else settings.reserved_shm
        self.asks_for_interrupts = not isinstance(self.monitor, NullMonitor)
        self.interrupt_pending = self.monitor.foreign_interrupt_pending
        self.stimulus = self.monitor.stimulus if isinstance(self.monitor, Stimuli) else None
        # A machine without a clock of its own is not told what the core itself takes.
        self._charge = self.monitor.charge if self.asks_for_interrupts else None
        self._fast_ns = settings.fast_call_ns
        self._entry_ns = settings.entry_ns
        self._fault = fault
        self._mutexes: dict[str, TeeMutex] = {}
        self._conditions: dict[str, TeeCondition] = {}
        self._partitions: dict[int, Partition] = {}
        self._instances = 0
        self._births = 0
        self._virtual = settings.virtualization
        # How a yielding call begins, and the bytes that must follow its message.
        self._entries: dict[int, tuple[Begin, int]] = {
            smc.OPTEE_SMC_CALL_WITH_ARG: (call_with_arg, 0)
        }
        if settings.rpc_arg:
            self._entries[smc.OPTEE_SMC_CALL_WITH_RPC_ARG] = (call_with_arg, RPC_ARG_SIZE)
            self._entries[smc.OPTEE_SMC_CALL_WITH_REGD_ARG] = (call_with_regd_arg, RPC_ARG_SIZE)
        # The part of OP-TEE outside all partitions; without virtualization it is the only one.
        self._nexus = Partition(self, _HYPERVISOR)
        self._fast: dict[int, FastHandler] = {
            smc.OPTEE_SMC_CALLS_COUNT: self._calls_count,
            smc.OPTEE_SMC_CALLS_UID: self._calls_uid,
            smc.OPTEE_SMC_CALLS_REVISION: self._calls_revision,
            smc.OPTEE_SMC_CALL_GET_OS_UUID: self._os_uuid,
            smc.OPTEE_SMC_CALL_GET_OS_REVISION: self._os_revision,
            smc.OPTEE_SMC_EXCHANGE_CAPABILITIES: self._exchange_capabilities,
            smc.OPTEE_SMC_DISABLE_SHM_CACHE: self._disable_cache,
            smc.OPTEE_SMC_ENABLE_SHM_CACHE: self._enable_cache,
            smc.OPTEE_SMC_BOOT_SECONDARY: self._boot_secondary,
            smc.OPTEE_SMC_GET_THREAD_COUNT: self._thread_count,
        }
        if settings.reserved_shm is not None:
            self._fast[smc.OPTEE_SMC_GET_SHM_CONFIG] = self._shm_config
        if settings.async_notifications:
            self._fast[smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF] = self._enable_notifications
            self._fast[smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE] = self._notification_value
        if settings.virtualization:
            self._fast[smc.OPTEE_SMC_VM_CREATED] = self._vm_created
            self._fast[smc.OPTEE_SMC_VM_DESTROYED] = self._vm_destroyed

    # The entry.

    def smc(
        self,
        a0: int,
        a1: int = 0,
        a2: int = 0,
        a3: int = 0,
        a4: int = 0,
        a5: int = 0,
        a6: int = 0,
        a7: int = 0,
    ) -> Registers4:
        """One SMC of the normal world: a0..a7 in (up to 64 bits each), a0..a3 out.

        Registers that a fast call does not define come back as they were; those that a yielding
        call does not define are 0 (the real ones hold left-over values).
        """
        if self._fault is not None:
            return self._lie((a0, a1, a2, a3, a4, a5, a6, a7))
        a0 &= _M32
        entry = self._entries.get(a0)
        if entry is None:
            return self._other(a0, a1, a2, a3, a4, a5, a7)
        if self._charge is not None:
            self._charge(self._entry_ns)
        partition = self._nexus
        if self._virtual:
            found = self._partitions.get(a7 & _CLIENT_MASK)
            if found is None:
                return _NO_PARTITION
            partition = found
        for thread in partition.threads:
            if not thread.state:
                break
        else:
            return self._no_thread(partition)
        if self.sink is not None:
            self.sink(events.ThreadStarted(partition.client, thread.index, a0))
        thread.state = RUNNING
        begin, behind = entry
        call = begin(thread, (a1 & _M32) << 32 | a2 & _M32, a3 & _M32, behind)
        if call is None:
            return self._ended(thread, thread.result)
        calls = thread.calls or thread.start()
        left = calls.send(call)
        if isinstance(left, int):
            if self.sink is not None:
                return self._ended(thread, left)
            thread.state = FREE
            return (left, 0, 0, 0)
        thread.coroutine = calls
        thread.state = SUSPENDED
        if self.sink is not None:
            thread.report_suspension(left)
        return (left[0], left[1], left[2], thread.index)

    def _lie(self, asked: Registers8) -> Registers4:
        """The entry when a fault policy has the last word; meanwhile there is none."""
        fault, self._fault = self._fault, None
        try:
            registers = self.smc(*asked)
        finally:
            self._fault = fault
        return registers if fault is None else fault.answer(asked, registers)

    def _other(self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a7: int) -> Registers4:
        """Fast calls, resumption, and everything that is not known."""
        if a0 == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            return self._resume(a3 & _M32, (a1, a2, a4, a5), a7 & _CLIENT_MASK)
        if not a0 >> _OWNER_SHIFT & _OWNER_MASK >= _FIRST_OS_OWNER:
            return (_M64, a1, a2, a3)
        if self._charge is not None:
            self._charge(self._fast_ns)
        client = a7 & _CLIENT_MASK
        partition: Partition | None = self._nexus
        if self._virtual and not (a0 & _FAST and client == _HYPERVISOR):
            partition = self._partitions.get(client)
        if a0 & _FAST:
            if a0 & _FAST_RESERVED:
                return (_M64, a1, a2, a3)
            if partition is None:
                return (_ENOTAVAIL, a1, a2, a3)
            handler = self._fast.get(a0 & ~_SVE_HINT)
            if handler is None:
                return (_UNKNOWN, a1, a2, a3)
            return handler(partition, a1, a2, a3, a7)
        if partition is None:
            return _NO_PARTITION
        # An unknown yielding function takes a thread before it is found to be unknown.
        for thread in partition.threads:
            if thread.state == FREE:
                if self.sink is not None:
                    self.sink(events.ThreadStarted(partition.client, thread.index, a0))
                return self._ended(thread, smc.OPTEE_SMC_RETURN_EBADCMD)
        return self._no_thread(partition)

    def _no_thread(self, partition: Partition) -> Registers4:
        if self.sink is not None:
            self.sink(events.ThreadRefused(partition.client))
        return _NO_THREAD

    def _resume(self, index: int, value: ResumeRegs, client: int) -> Registers4:
        """RETURN_FROM_RPC: run a suspended thread on."""
        if self._charge is not None:
            self._charge(self._entry_ns)
        partition = self._partitions.get(client) if self._virtual else self._nexus
        if partition is None:
            return _NO_PARTITION
        if index >= len(partition.threads):
            return _NO_RESUME
        thread = partition.threads[index]
        coroutine = thread.coroutine
        if thread.state != SUSPENDED or coroutine is None:
            return _NO_RESUME
        if self.sink is not None:
            self.sink(events.ThreadResumed(partition.client, index))
        thread.state = RUNNING
        left = coroutine.send(value)
        if isinstance(left, int):
            return self._ended(thread, left)
        thread.state = SUSPENDED
        if self.sink is not None:
            thread.report_suspension(left)
        return (left[0], left[1], left[2], index)

    def _ended(self, thread: Thread, result: int) -> Registers4:
        thread.coroutine = None
        thread.state = FREE
        if self.sink is not None:
            self.sink(events.ThreadEnded(thread.partition.client, thread.index, result))
        return (result, 0, 0, 0)

    # For whoever runs the machine.

    def partition(self, client: int) -> Partition | None:
        """The partition that answers for ``client`` (without virtualization always the same)."""
        return self._partitions.get(client & _CLIENT_MASK) if self._virtual else self._nexus

    def clients(self) -> tuple[int, ...]:
        """Client ids that have a partition, in the order of their creation."""
        return tuple(self._partitions)

    def notify(self, client: int, value: int = 0) -> bool:
        """A secure interrupt handler sends notification ``value`` (0: do bottom half) to a client.

        False if the client has no partition or has not enabled notifications; ValueError for a
        value above the highest one.
        """
        if not 0 <= value <= self.settings.max_notification:
            raise ValueError(f"{value} is no notification value")
        partition = self.partition(client)
        if partition is None or not partition.notifications.enabled:
            return False
        partition.notify(value)
        return True

    def suspended(self, client: int) -> tuple[int, ...]:
        """Indices of the client's threads that wait for RETURN_FROM_RPC."""
        partition = self.partition(client)
        if partition is None:
            return ()
        return tuple([t.index for t in partition.threads if t.state == SUSPENDED])

    def lock_waits(self) -> tuple[LockWait, ...]:
        """The threads that wait for a lock or a condition now, and who holds the lock."""
        found: list[LockWait] = []
        for lock in self._mutexes.values():
            found += _waits(lock)
        for partition in self._partitions.values() if self._virtual else (self._nexus,):
            for lock in partition.mutexes():
                found += _waits(lock)
        return tuple(found)

    def mutex(self, name: str) -> TeeMutex:
        """The lock of that name which all partitions share."""
        lock = self._mutexes.get(name)
        if lock is None:
            lock = self._mutexes[name] = TeeMutex(name)
        return lock

    def condition(self, name: str) -> TeeCondition:
        """The condition variable of that name which all partitions share."""
        condition = self._conditions.get(name)
        if condition is None:
            condition = self._conditions[name] = TeeCondition()
        return condition

    def shared_mutexes(self) -> Iterable[TeeMutex]:
        """All locks that partitions share."""
        return tuple(self._mutexes.values())

    # Fast calls.

    def _calls_count(self, _p: Partition, a1: int, a2: int, a3: int, _a7: int) -> Registers4:
        return (CALLS + (CALLS_VIRTUALIZATION if self._virtual else 0), a1, a2, a3)

    def _calls_uid(self, _p: Partition, _a1: int, _a2: int, _a3: int, _a7: int) -> Registers4:
        return (msg.OPTEE_MSG_UID_0, msg.OPTEE_MSG_UID_1, msg.OPTEE_MSG_UID_2, msg.OPTEE_MSG_UID_3)

    def _calls_revision(self, _p: Partition, _a1: int, a2: int, a3: int, _a7: int) -> Registers4:
        return (msg.OPTEE_MSG_REVISION_MAJOR, msg.OPTEE_MSG_REVISION_MINOR, a2, a3)

    def _os_uuid(self, _p: Partition, _a1: int, _a2: int, _a3: int, _a7: int) -> Registers4:
        return (
            msg.OPTEE_MSG_OS_OPTEE_UUID_0,
            msg.OPTEE_MSG_OS_OPTEE_UUID_1,
            msg.OPTEE_MSG_OS_OPTEE_UUID_2,
            msg.OPTEE_MSG_OS_OPTEE_UUID_3,
        )

    def _os_revision(self, _p: Partition, _a1: int, _a2: int, a3: int, _a7: int) -> Registers4:
        major, minor = self.settings.revision
        return (major, minor, self.settings.build_id, a3)

    def _exchange_capabilities(
        self, _p: Partition, a1: int, a2: int, _a3: int, _a7: int
    ) -> Registers4:
        if a1 & _M32 & ~_NSEC_KNOWN:
            return (_ENOTAVAIL, a1, a2, _a3)
        settings = self.settings
        highest = settings.max_notification if settings.async_notifications else a2
        return (_OK, settings.reported_capabilities, highest, RPC_PARAMS)

    def _disable_cache(self, p: Partition, a1: int, a2: int, a3: int, _a7: int) -> Registers4:
        if not p.idle():
            return (_EBUSY, a1, a2, a3)
        cookie = p.take_cached_argument()
        if not cookie:
            p.keeps_arguments = False
            return (_ENOTAVAIL, a1, a2, a3)
        # As the real one: a1 the upper half, a2 the whole cookie (its low word is what counts).
        return (_OK, cookie >> 32, cookie, a3)

    def _enable_cache(self, p: Partition, a1: int, a2: int, a3: int, _a7: int) -> Registers4:
        if not p.idle():
            return (_EBUSY, a1, a2, a3)
        p.keeps_arguments = self.settings.rpc_cache
        return (_OK, a1, a2, a3)

    def _boot_secondary(self, _p: Partition, a1: int, a2: int, a3: int, _a7: int) -> Registers4:
        return (_ENOTAVAIL, a1, a2, a3)

    def _thread_count(self, _p: Partition, _a1: int, a2: int, a3: int, _a7: int) -> Registers4:
        return (_OK, self.settings.threads, a2, a3)

    def _shm_config(self, _p: Partition, _a1: int, _a2: int, _a3: int, _a7: int) -> Registers4:
        start, size = self.reserved or (0, 0)
        return (_OK, start, size, smc.OPTEE_SMC_SHM_CACHED)

    def _enable_notifications(
        self, p: Partition, a1: int, a2: int, a3: int, _a7: int
    ) -> Registers4:
        p.notifications.enabled = True
        return (_OK, a1, a2, a3)

    def _notification_value(
        self, p: Partition, _a1: int, _a2: int, a3: int, _a7: int
    ) -> Registers4:
        value, flags = p.notifications.take()
        return (_OK, value, flags, a3)

    def _vm_created(self, _p: Partition, a1: int, a2: int, a3: int, a7: int) -> Registers4:
        client = a1 & _CLIENT_MASK
        if a7 & _M32 != _HYPERVISOR or not client or self._instances >= self.settings.guests:
            return (_ENOTAVAIL, a1, a2, a3)
        self._births += 1
        partition = Partition(self, client, self._births)
        partition.older = self._partitions.get(client)
        self._partitions[client] = partition
        self._instances += 1
        if self.sink is not None:
            self.sink(events.PartitionCreated(client))
        return (_OK, a1, a2, a3)

    def _vm_destroyed(self, _p: Partition, a1: int, a2: int, a3: int, a7: int) -> Registers4:
        if a7 & _M32 != _HYPERVISOR:
            return (_ENOTAVAIL, a1, a2, a3)
        client = a1 & _CLIENT_MASK
        partition = self._partitions.get(client)
        if partition is not None:
            if partition.older is None:
                del self._partitions[client]
            else:
                self._partitions[client] = partition.older
            self._instances -= 1
            partition.destroy()
        return (_OK, a1, a2, a3)
