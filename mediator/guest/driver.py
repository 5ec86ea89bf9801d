# SPDX-License-Identifier: BSD-2-Clause
"""The OP-TEE driver of a simulated guest, as the one in Linux behaves towards the secure world.

Two styles of calling, by what the secure world offers (EXCHANGE_CAPABILITIES):

* with RPC_ARG, messages live in slots of a registered page and enter by CALL_WITH_REGD_ARG, the RPC
  argument right behind them; only REGISTER_SHM and UNREGISTER_SHM use a private page and
  CALL_WITH_RPC_ARG;
* without it, every message has a private page and enters by CALL_WITH_ARG, and the secure world
  gets memory for its RPC arguments by the RPCs ALLOC and FREE, which it may cache.

:meth:`Driver.call` reads top to bottom: slot, message, admission, SMC, RPCs, result. What a real
driver leaves unchecked because it trusts the secure world is counted in ``counters.anomalies``
here, never an exception. Sources: Linux ``drivers/tee/optee`` (behaviour; the code is our own) and
recorded traffic of Linux 6.1 and 6.12.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

from mediator.guest.call_queue import CallQueue, Waiter
from mediator.guest.cpu import GuestCpu, Registers
from mediator.guest.driver_settings import (
    DriverCounters,
    DriverSettings,
    ProbeError,
    RegistrationError,
)
from mediator.guest.kernel import Completion, Kernel, Mutex, Thread
from mediator.guest.memory import (
    PAGE_SIZE,
    Buffer,
    CookieAllocator,
    OutOfMemory,
    PageAllocator,
    page_list,
)
from mediator.guest.notification import Notifications
from mediator.guest.rpc import RpcContext, RpcService
from mediator.guest.shm import (
    KERNEL,
    MESSAGE_PARAMS,
    PRIVATE,
    USER,
    Shm,
    ShmTable,
    Slot,
    SlotPage,
)
from mediator.guest.supplicant_queue import SupplicantQueue
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.page_list import list_page_count
from smccc.wire import MESSAGE, RET, RET_ORIGIN, SESSION, message_size

DEVICE_ENUMERATION: Final = UUID("7011a688-ddde-4053-a5a9-7b3c4ddf13b8")
"""Pseudo TA that lists the devices OP-TEE implements (PTA_DEVICE_ENUM)."""

_OK: Final = smc.OPTEE_SMC_RETURN_OK
_RPC_PREFIX: Final = smc.OPTEE_SMC_RETURN_RPC_PREFIX
_UNKNOWN: Final = smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
_FOREIGN_INTR: Final = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
_THREAD_LIMIT: Final = smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
_MASK32: Final = 0xFFFF_FFFF
_GONE: Final = (smc.OPTEE_SMC_RETURN_ENOTAVAIL, smc.OPTEE_SMC_RETURN_ERESUME)
"""What ends a call whose mediator has died; no secure world answers a correct driver so."""
_NO_WORDS: Final = (0, 0, 0, 0)

Words = Sequence[int]
"""Parameters of a message, four words each: attr, a, b, c."""


class Driver:
    """One loaded OP-TEE driver. :meth:`probe` it first, :meth:`remove` it last."""

    def __init__(
        self,
        kernel: Kernel,
        pages: PageAllocator,
        settings: DriverSettings,
        cookies: CookieAllocator | None = None,
        processors: int = 2,
    ) -> None:
        """``processors`` of the machine, running or not, unless the settings say otherwise."""
        self.kernel = kernel
        self.pages = pages
        self.settings = settings
        self.counters = DriverCounters()
        if cookies is None:
            cookies = CookieAllocator(size=settings.profile.object_size)
        self.shms = ShmTable(pages, cookies)
        self.supplicant = SupplicantQueue(kernel)
        self.capabilities = 0
        """Capabilities of the secure world, OPTEE_SMC_SEC_CAP_*."""
        self.rpc_param_count = 0
        """Parameters of the RPC argument behind each message; 0 in the classic style."""
        self.revision = (0, 0)
        self.devices: list[bytes] = []
        """UUIDs (16 octets) that the device enumeration has found."""
        self.probed = False
        self.lost = False
        """True once a driver that renews has learned that its secure world is gone."""
        self.queue = CallQueue(0)
        self.notifications = Notifications(kernel, tee.OPTEE_DEFAULT_MAX_NOTIF_VALUE)
        self.rpc = RpcService(self)
        self.alter_answer: Callable[[list[int]], None] | None = None
        """Hostile guests only: changes an RPC answer (message fields) before it is handed back."""
        self._hvc = settings.hvc
        self._own_capabilities = 0
        if (settings.processors or processors) == 1:
            self._own_capabilities = smc.OPTEE_SMC_NSEC_CAP_UNIPROCESSOR
        self._slot_pages: list[SlotPage] = []
        self._slot_lock = Mutex(kernel, "message slots")
        self._slot_size = message_size(MESSAGE_PARAMS)
        self._bottom_half: Completion | None = None
        self._scan: Thread | None = None

    # Registers

    def trap(self, a0: int, a1: int = 0, a2: int = 0, a3: int = 0) -> Awaitable[Registers]:
        """One fast call through the conduit, from the current vCPU."""
        cpu = self.kernel.cpu
        return (cpu.hvc if self._hvc else cpu.smc)(a0, a1, a2, a3)

    # Life

    async def probe(self) -> None:
        """Find out what the secure world offers and get ready. Raises :class:`ProbeError`."""
        uid = await self.trap(smc.OPTEE_SMC_CALLS_UID)
        if uid[:4] != (
            msg.OPTEE_MSG_UID_0,
            msg.OPTEE_MSG_UID_1,
            msg.OPTEE_MSG_UID_2,
            msg.OPTEE_MSG_UID_3,
        ):
            raise ProbeError("api uid mismatch")
        revision = await self.trap(smc.OPTEE_SMC_CALL_GET_OS_REVISION)
        self.revision = (revision[0], revision[1])
        api = await self.trap(smc.OPTEE_SMC_CALLS_REVISION)
        if api[0] != msg.OPTEE_MSG_REVISION_MAJOR or api[1] < msg.OPTEE_MSG_REVISION_MINOR:
            raise ProbeError("api revision mismatch")
        threads = 0
        if self.settings.profile.reads_thread_count:
            count = await self.trap(smc.OPTEE_SMC_GET_THREAD_COUNT)
            threads = count[1] & _MASK32 if not count[0] else 0
        answer = await self.trap(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, self._own_capabilities)
        if answer[0] != _OK:
            raise ProbeError("capabilities mismatch")
        self._adopt(answer, threads)
        if self.capabilities & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF:
            await self._start_notifications()
        # Cookies that a previous kernel left in the cache mean nothing here: drop them unread.
        await self._drain_shm_cache(free=False)
        if not self.rpc_param_count:
            await self._enable_shm_cache()
        self.probed = True
        await self.enumerate_devices(tee.PTA_CMD_GET_DEVICES)

    def _adopt(self, answer: Registers, threads: int) -> None:
        self.capabilities = answer[1] & _MASK32 & ~self.settings.unknown_capabilities
        if not self.capabilities & smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM:
            raise ProbeError("no dynamic shared memory")
        max_key = tee.OPTEE_DEFAULT_MAX_NOTIF_VALUE
        if self.capabilities & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF:
            max_key = answer[2] & _MASK32
        self.rpc_param_count = 0
        if self.capabilities & smc.OPTEE_SMC_SEC_CAP_RPC_ARG:
            self.rpc_param_count = answer[3] & 0xFF
        self._slot_size = message_size(MESSAGE_PARAMS)
        if self.rpc_param_count:
            self._slot_size += message_size(self.rpc_param_count)
        self.queue = CallQueue(threads)
        self.notifications = Notifications(self.kernel, max_key)
        self._scan = None

    async def remove(self) -> None:
        """Unload: leave nothing behind in the secure world. Sessions must be closed by then."""
        if not self.rpc_param_count:
            await self._drain_shm_cache(free=True)
        if self._bottom_half is not None:
            intid = self.settings.notification_intid
            await self.call(msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF, 0, 0, 0, 0, ())
            if intid is not None:
                self.kernel.free_irq(intid)
            stopped, self._bottom_half = self._bottom_half, None
            stopped.complete()
        self.probed = False
        self.devices.clear()
        while self._slot_pages:
            page = self._slot_pages.pop(0)
            if self.rpc_param_count:
                await self._unregister(page.shm)
            self.shms.free(page.shm)

    def lose(self) -> None:
        """The mediator is another one, or none: what the secure world had of this guest is gone."""
        self.lost = self.lost or self.settings.renews

    async def renew(self) -> None:
        """Take back what the lost secure world had, and probe the one that is there now.

        No call may be in flight and no client open. Raises :class:`ProbeError`; may be tried again.
        """
        if self._bottom_half is not None:
            intid = self.settings.notification_intid
            if intid is not None:
                self.kernel.free_irq(intid)
            stopped, self._bottom_half = self._bottom_half, None
            stopped.complete()
        self.probed = False
        self.devices.clear()
        self._slot_pages.clear()
        for cookie in self.shms.cookies():
            shm = self.shms.find(cookie)
            if shm is not None and shm.kind != USER:
                self.shms.free(shm)
        self.lost = False
        try:
            await self.probe()
        except (ProbeError, RegistrationError):
            self.lose()
            raise
        if self.lost:
            raise ProbeError("the secure world was lost again")

    async def _drain_shm_cache(self, *, free: bool) -> None:
        """DISABLE_SHM_CACHE until the secure world has no cookie left."""
        waiter = Waiter(self.kernel)
        self.queue.join(waiter, False)
        while True:
            answer = await self.trap(smc.OPTEE_SMC_DISABLE_SHM_CACHE)
            if answer[0] == smc.OPTEE_SMC_RETURN_ENOTAVAIL:
                break
            if answer[0] != _OK:
                await self.queue.another_call(waiter)
            elif free:
                # Only the low half of a2 counts: OP-TEE leaves the whole cookie there.
                self.free_private((answer[1] & _MASK32) << 32 | answer[2] & _MASK32)
        self.queue.leave(waiter)

    async def _enable_shm_cache(self) -> None:
        waiter = Waiter(self.kernel)
        self.queue.join(waiter, False)
        while (await self.trap(smc.OPTEE_SMC_ENABLE_SHM_CACHE))[0] != _OK:
            await self.queue.another_call(waiter)
        self.queue.leave(waiter)

    def free_private(self, cookie: int) -> None:
        """Free a private object that the secure world gives back."""
        shm = self.shms.find(cookie)
        if shm is None or shm.kind != PRIVATE:
            self.counters.anomalies += 1
        else:
            self.shms.free(shm)

    # Asynchronous notifications

    async def _start_notifications(self) -> None:
        intid = self.settings.notification_intid
        if intid is None:
            raise ProbeError("no interrupt for asynchronous notifications")
        wanted = Completion(self.kernel, "a bottom half to do")
        self._bottom_half = wanted
        self.kernel.request_irq(intid, self._notification_interrupt)
        self.kernel.spawn(self._bottom_halves(wanted), f"irq/{intid}-optee", daemon=True)
        await self.trap(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)

    async def _notification_interrupt(self, cpu: GuestCpu) -> None:
        self.counters.interrupts += 1
        conduit = cpu.hvc if self._hvc else cpu.smc
        bottom_half = False
        pending = True
        while pending:
            status, value, flags, *_ = await conduit(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)
            if status or not flags & smc.OPTEE_SMC_ASYNC_NOTIF_VALUE_VALID:
                if status == smc.OPTEE_SMC_RETURN_ENOTAVAIL:
                    self.lose()
                break
            self.counters.notifications += 1
            pending = bool(flags & smc.OPTEE_SMC_ASYNC_NOTIF_VALUE_PENDING)
            if value == smc.OPTEE_SMC_ASYNC_NOTIF_VALUE_DO_BOTTOM_HALF:
                bottom_half = True
            else:
                self.notifications.send(value)
        if bottom_half and self._bottom_half is not None:
            self._bottom_half.reset()
            self._bottom_half.complete()

    async def _bottom_halves(self, wanted: Completion) -> None:
        """The interrupt's thread. (One that is wanted while it runs runs once more.)"""
        while True:
            await wanted.wait()
            if self._bottom_half is not wanted:
                return
            self.counters.bottom_halves += 1
            await self.call(msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF, 0, 0, 0, 0, ())

    # Calls

    async def call(
        self,
        command: int,
        function: int,
        session: int,
        cancel_id: int,
        count: int,
        words: Words,
        *,
        system: bool = False,
        nowait: bool = False,
        slot: Slot | None = None,
    ) -> tuple[int, ...]:
        """Send one message of ``count`` parameters (0..6) and return it as it came back.

        The layout is that of :mod:`smccc.wire`. A call that the secure world did not take has
        result COMMUNICATION, origin COMMS. ``system``: on behalf of a system session. ``nowait``:
        requests to a supplicant that does not run fail instead of waiting for it. ``slot``: where
        the message goes, a free slot if not given.
        """
        kernel = self.kernel
        if slot is None:
            slot = self._free_slot() or await self._new_slot()
        codec = MESSAGE[count]
        data = codec.pack(command, function, session, cancel_id, 0, 0, 0, count, *words)
        # The whole slot, so that no RPC argument of an earlier call is left in it.
        await kernel.cpu.write(slot.ipa, data.ljust(self._slot_size, b"\0"))
        counters = self.counters
        counters.calls += 1
        counters.smcs += 1
        queue = self.queue
        waiter = slot.waiter
        if not queue.join(waiter, system):
            await queue.admission(waiter)
        cpu = kernel.cpu
        answer = await (cpu.hvc if self._hvc else cpu.smc)(*slot.request)
        intid = cpu.acknowledge()
        if intid is not None:
            await kernel.interrupt(cpu, intid)
        status = answer[0] & _MASK32
        if status != _OK:
            context = RpcContext(slot.ipa + codec.size if self.rpc_param_count else 0, nowait)
            try:
                status = await self._serve(slot, answer, context)
            except Exception:
                # Not for GeneratorExit: in a guest that is destroyed nobody is to be woken.
                queue.leave(waiter)
                raise
            self.rpc.finish(context)
            if status in _GONE:
                self.lose()
        queue.leave(waiter)
        if status == _OK:
            reply = codec.unpack(await kernel.cpu.read(slot.ipa, codec.size))
        else:
            refused = list(codec.unpack(data))
            refused[RET] = tee.TEE_ERROR_COMMUNICATION
            refused[RET_ORIGIN] = tee.TEE_ORIGIN_COMMS
            reply = tuple(refused)
        slot.page.free |= slot.bit
        return reply

    async def _serve(self, slot: Slot, answer: Registers, context: RpcContext) -> int:
        """Serve RPCs, and wait for a thread if there is none, until the call has ended."""
        kernel = self.kernel
        counters = self.counters
        a0, a1, a2, a3 = slot.request
        # Never cleared within one call: Linux hands back what the last ALLOC left there.
        a4 = a5 = 0
        cpu = kernel.cpu
        while True:
            status = answer[0] & _MASK32
            if status >= _RPC_PREFIX and status != _UNKNOWN:
                a0 = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
                a1 = answer[1] & _MASK32
                a2 = answer[2] & _MASK32
                a3 = answer[3] & _MASK32
                if status == _FOREIGN_INTR:
                    counters.foreign_interrupts += 1
                    if kernel.runnable:
                        await kernel.yield_()
                else:
                    a1, a2, a4, a5 = await self.rpc.serve(context, status, a1, a2, a4, a5)
                    if self.settings.migrate_every:
                        await self._migrate()
                if kernel.cpu is not cpu:
                    counters.migrated_rpcs += 1
            elif status == _THREAD_LIMIT:
                counters.thread_limits += 1
                await self.queue.another_call(slot.waiter)
            else:
                return status
            cpu = kernel.cpu
            counters.smcs += 1
            answer = await (cpu.hvc if self._hvc else cpu.smc)(a0, a1, a2, a3, a4, a5, 0, 0)
            intid = cpu.acknowledge()
            if intid is not None:
                await kernel.interrupt(cpu, intid)

    async def _migrate(self) -> None:
        if sum(self.counters.rpcs.values()) % self.settings.migrate_every == 0:
            cpus = self.kernel.cpus
            place = cpus.index(self.kernel.cpu.index) + 1
            await self.kernel.migrate(cpus[place % len(cpus)])

    # Message slots

    def _free_slot(self) -> Slot | None:
        for page in self._slot_pages:
            free = page.free
            if free:
                bit = free & -free
                page.free = free ^ bit
                return page.slots[bit]
        return None

    async def _new_slot(self) -> Slot:
        """A slot of a new page; others wait meanwhile, and may find one of its slots."""
        async with self._slot_lock:
            slot = self._free_slot()
            if slot is None:
                if self.rpc_param_count:
                    shm = await self.alloc_kernel(PAGE_SIZE)
                    count = PAGE_SIZE // self._slot_size
                    function = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
                    page = SlotPage(self.kernel, shm, function, count, self._slot_size)
                else:
                    shm = self.shms.alloc(PRIVATE, PAGE_SIZE)
                    page = SlotPage(self.kernel, shm, smc.OPTEE_SMC_CALL_WITH_ARG)
                self._slot_pages.insert(0, page)
                page.free ^= 1
                slot = page.slots[1]
        return slot

    # Registered memory

    async def register(self, buffer: Buffer, size: int) -> Shm:
        """Register ``size`` bytes (1 or more) of a client's buffer.

        Raises :class:`RegistrationError`, or OutOfMemory for the page list.
        """
        return await self._register(self.shms.of_buffer(USER, buffer, size))

    async def alloc_kernel(self, size: int) -> Shm:
        """Allocate and register kernel memory, whole pages of zeros. Raises as :meth:`register`."""
        shm = self.shms.alloc(KERNEL, size)
        await self.kernel.cpu.write(shm.ipa, bytes(shm.size))
        return await self._register(shm)

    async def _register(self, shm: Shm) -> Shm:
        try:
            run = list_page_count(len(shm.pages))
            list_ipa = self.pages.alloc_run(run)
        except OutOfMemory:
            self.shms.free(shm)
            raise
        await self.kernel.cpu.write(list_ipa, page_list(shm.pages, list_ipa))
        result = await self._private_call(
            msg.OPTEE_MSG_CMD_REGISTER_SHM,
            msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG,
            list_ipa | shm.offset,
            shm.size,
            shm.cookie,
        )
        self.pages.free_run(list_ipa, run)
        if result:
            self.shms.free(shm)
            raise RegistrationError(result)
        self.counters.registrations += 1
        self.counters.registered_pages += len(shm.pages)
        return shm

    async def unregister(self, shm: Shm) -> bool:
        """Unregister and free; False if the secure world refused (then it still knows the pages)."""
        done = await self._unregister(shm)
        self.shms.free(shm)
        return done

    async def _unregister(self, shm: Shm) -> bool:
        result = await self._private_call(
            msg.OPTEE_MSG_CMD_UNREGISTER_SHM,
            msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT,
            0,
            0,
            shm.cookie,
        )
        return result == tee.TEE_SUCCESS

    async def _private_call(self, command: int, attr: int, a: int, b: int, c: int) -> int:
        """Send a message of one parameter in a private page; its result."""
        private = self.shms.alloc(PRIVATE, self._slot_size)
        entry = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
        if not self.rpc_param_count:
            entry = smc.OPTEE_SMC_CALL_WITH_ARG
        page = SlotPage(self.kernel, private, entry)
        reply = await self.call(command, 0, 0, 0, 1, (attr, a, b, c), slot=page.slots[1])
        self.shms.free(private)
        return reply[RET]

    # Sessions of the kernel itself

    async def enumerate_devices(self, function: int) -> None:
        """Ask the enumeration pseudo TA for the devices of one kind (PTA_CMD_GET_DEVICES*)."""
        opened = await self.open_session(DEVICE_ENUMERATION, 0, (), nowait=True)
        if opened[RET]:
            return
        session = opened[SESSION]
        null = (msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT, 0, 0, 0)
        asked = await self.invoke(session, function, (*null, *_NO_WORDS * 3))
        size = asked[10]
        if asked[RET] in (tee.TEE_SUCCESS, tee.TEE_ERROR_SHORT_BUFFER) and size:
            shm = await self.alloc_kernel(size)
            room = (msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT, 0, size, shm.cookie)
            reply = await self.invoke(session, function, (*room, *_NO_WORDS * 3))
            if not reply[RET]:
                found = await self.kernel.cpu.read(shm.ipa, min(reply[10], shm.size))
                self.devices += [found[i : i + 16] for i in range(0, len(found) - 15, 16)]
            await self.unregister(shm)
        await self.close_session(session)

    async def open_session(
        self,
        uuid: UUID,
        count: int,
        words: Words,
        *,
        login: int = tee.TEE_LOGIN_PUBLIC,
        client: UUID | None = None,
        cancel_id: int = 0,
        nowait: bool = False,
    ) -> tuple[int, ...]:
        """OPEN_SESSION with ``count`` parameters of the client (0..4) behind the two META ones."""
        meta = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT | msg.OPTEE_MSG_ATTR_META
        identity = struct.unpack("<2Q", client.bytes) if client is not None else (0, 0)
        return await self.call(
            msg.OPTEE_MSG_CMD_OPEN_SESSION,
            0,
            0,
            cancel_id,
            count + 2,
            (meta, *struct.unpack("<2Q", uuid.bytes), 0, meta, *identity, login, *words),
            nowait=nowait,
        )

    async def invoke(self, session: int, function: int, words: Words) -> tuple[int, ...]:
        """INVOKE_COMMAND by the kernel: four parameters."""
        return await self.call(
            msg.OPTEE_MSG_CMD_INVOKE_COMMAND, function, session, 0, 4, words, nowait=True
        )

    async def close_session(self, session: int) -> tuple[int, ...]:
        """CLOSE_SESSION."""
        return await self.call(msg.OPTEE_MSG_CMD_CLOSE_SESSION, 0, session, 0, 0, ())

    # Supplicant

    def supplicant_opened(self) -> Thread | None:
        """The supplicant opened its device: the first time, look for devices that need it.

        Returns the thread that looks, for who wants to wait for it.
        """
        if self._scan is None:
            self._scan = self.kernel.spawn(
                self.enumerate_devices(tee.PTA_CMD_GET_DEVICES_SUPP), "optee_bus_scan", daemon=True
            )
        return self._scan
