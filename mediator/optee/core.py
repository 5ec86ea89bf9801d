# SPDX-License-Identifier: BSD-2-Clause
"""What all parts of the mediator share: settings, guests, shadow pages, and every release.

Whatever is taken (a quota, a name, a pin, a shadow page) is given back by a function here and
nowhere else (I3). Taking happens *before* the first await of a call, giving back happens once: a
record is marked released before the system call that releases it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from mediator.host import PAGE_SIZE, Shadow
from mediator.optee import events
from mediator.optee.plan import Plans
from mediator.optee.records import REGISTERED, Buffer, Call, Guest, RpcBuffer
from mediator.optee.settings import MediatorSettings
from mediator.optee.syscalls import Syscalls
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc

M32: Final = 0xFFFF_FFFF
RPC_PREFIX: Final = smc.OPTEE_SMC_RETURN_RPC_PREFIX
UNKNOWN_FUNCTION: Final = smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
OK: Final = smc.OPTEE_SMC_RETURN_OK

OWN_THREAD_BASE: Final = 0x1_0000
"""Thread ids from here up name calls that the mediator itself suspended (a TEE has far fewer
threads); each is valid for one guest only."""

MAX_LOGGED_FINDINGS: Final = 32
"""Findings of one guest that reach the log; the rest are counted. A guest must not flood it."""

MAX_REFUSED_REQUESTS: Final = 16
"""RPC requests in a row that cannot be handed to the guest before it gets FOREIGN_INTR instead. A
thread of OP-TEE that waits for a lock asks again and again; without a bound a guest that takes its
message away would keep the processor for as long (I7)."""

DEFAULT_RPC_PARAMS: Final = 4
"""Parameters of the RPC argument when the guest never asked (THREAD_RPC_MAX_NUM_PARAMS)."""

_ZERO_PAGE: Final = bytes(PAGE_SIZE)

Registers = tuple[int, ...]

FusedWalk = Callable[
    [Syscalls, int, int, int, int, Shadow, int], Awaitable[tuple[int, int, int, bool]]
]
"""Reads a guest's page list and pins its pages, step by step, in one request: (system calls, guest,
address of the list, entries, entries a step, the TEE's list, its page that the entries begin in) →
(how many are pinned and stand in the list, next list page, how it ended, whether any of them has an
offset)."""
FinalWrite = Callable[[Syscalls, int, int, list[tuple[int, bytes]], int], Awaitable[None]]
"""Writes the results of a call as its last act: (system calls, guest, page, segments, x0 if refused).
What becomes of it is the deployment's affair, which answers the guest accordingly."""

WALKED: Final = 0
WALK_PREEMPTED: Final = 1
WALK_REFUSED: Final = 2
"""How a fused walk ended: all pinned, stopped between two steps, or refused at one."""


class Core:
    """State of one mediator. The records belong to their guests, the free shadow pages to it."""

    __slots__ = (
        "calls_count",
        "finish",
        "free_pages",
        "fused",
        "guests",
        "last_command",
        "listening",
        "plans",
        "settings",
        "sink",
        "stopped_rounds",
        "threads",
        "unasked",
    )

    def __init__(self, settings: MediatorSettings, sink: events.Sink | None) -> None:
        self.settings = settings
        self.sink = sink
        self.guests: dict[int, Guest] = {}
        self.free_pages: list[Shadow] = []
        self.threads: int | None = None
        self.calls_count = settings.calls_count or 0
        self.plans = Plans()
        self.fused: FusedWalk | None = None
        self.finish: FinalWrite | None = None
        # Guests that are told of notification values, those of them that the TEE must still be asked
        # about since its last interrupt, and interrupt entries that stopped before all were.
        self.listening: dict[int, None] = {}
        self.unasked: dict[int, None] = {}
        self.stopped_rounds = 0
        notifications = settings.capabilities & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
        self.last_command = (
            msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF
            if notifications
            else msg.OPTEE_MSG_CMD_UNREGISTER_SHM
        )

    async def fast(
        self, sys: Syscalls, guest: Guest | None, function: int, a1: int = 0
    ) -> tuple[int, int, int, int]:
        """A fast call to the TEE for a guest; ``None``: the hypervisor's own, client id 0."""
        ident, client = (events.NO_GUEST, 0) if guest is None else (guest.id, guest.client)
        if self.sink is not None:
            sent = (function, a1, 0, 0, 0, 0, 0, client)
            self.sink(events.Forwarded(ident, events.NO_CALL, -1, sent))
        answer = await sys.smc(function, a1, 0, 0, 0, 0, 0, client)
        if self.sink is not None:
            self.sink(events.Answered(ident, events.NO_CALL, -1, answer))
        return answer

    async def finding(self, sys: Syscalls, guest: Guest, rule: str, detail: str) -> None:
        """Count something that should not happen; tell the sink and, within limits, the log."""
        guest.findings += 1
        if guest.findings <= MAX_LOGGED_FINDINGS:
            if self.sink is not None:
                self.sink(events.Finding(guest.id, rule, detail))
            await sys.log(guest.id, f"{rule}: {detail}")

    def listens(self, guest: Guest) -> None:
        """Note whether the TEE has to be asked about ``guest``."""
        if guest.notified or guest.holding:
            self.listening[guest.id] = None
        else:
            self.listening.pop(guest.id, None)

    def end_wait(self, guest: Guest, call: Call) -> None:
        """The thread of ``call`` waits no more."""
        key = call.wait_key
        guest.end_wait(call)
        self.listens(guest)
        if self.sink is not None:
            self.sink(events.WaitEnded(guest.id, call.serial, call.thread, key))

    # --- shadow pages -----------------------------------------------------------------------

    async def take_page(self, sys: Syscalls) -> Shadow | None:
        """One zeroed mediator page."""
        if self.free_pages:
            return self.free_pages.pop()
        return await sys.alloc_shadow(1)

    async def give_page(self, sys: Syscalls, page: Shadow) -> None:
        """Take back one page; it is zeroed so that nothing travels from guest to guest."""
        if len(self.free_pages) < self.settings.shadow_cache:
            page.mem[:] = _ZERO_PAGE
            self.free_pages.append(page)
        else:
            await sys.free_shadow(page)

    async def take_list(self, sys: Syscalls, pages: int) -> Shadow | None:
        """``pages`` zeroed mediator pages for a page list."""
        if pages == 1:
            return await self.take_page(sys)
        return await sys.alloc_shadow(pages)

    async def give_list(self, sys: Syscalls, shadow: Shadow) -> None:
        """Take back the pages of a page list."""
        if len(shadow.pages) == 8:
            await self.give_page(sys, shadow)
        else:
            await sys.free_shadow(shadow)

    # --- releases ---------------------------------------------------------------------------

    async def release_buffer(
        self, sys: Syscalls, guest: Guest, buffer: Buffer, call: Call | None = None
    ) -> None:
        """Forget the name at once; drop pins, list and quota unless a call still uses the pages.

        ``call``: the one that took the buffer and is over. Any other one that names the same
        reference may have led the TEE to the pages. Of registered memory the TEE says itself when
        its last user has let go, by accepting UNREGISTER.
        """
        named = guest.buffers.get(buffer.reference) is buffer
        if named:
            del guest.buffers[buffer.reference]
        if buffer.users:
            if named:
                # It has no name any more, but the guest still has it.
                buffer.doomed = True
                guest.held += 1
            return
        if buffer.released:
            return
        if buffer.kind != REGISTERED:
            if buffer.doomed:
                return
            if guest.names(buffer.reference, call):
                buffer.doomed = True
                guest.lingering.setdefault(buffer.reference, []).append(buffer)
                guest.held += 1
                return
        await self._let_go(sys, guest, buffer)

    async def _let_go(self, sys: Syscalls, guest: Guest, buffer: Buffer) -> None:
        buffer.released = True
        frames, shadow = buffer.frames, buffer.list
        buffer.frames, buffer.list = b"", None
        # Its quota is used until the pins are gone: another processor may ask meanwhile.
        guest.held += 1
        try:
            if frames:
                await sys.unpin_pages(guest.id, bytes(frames))
            if shadow is not None:
                await self.give_list(sys, shadow)
        finally:
            guest.held -= 1
            guest.pages -= buffer.pages
        if self.sink is not None:
            self.sink(
                events.BufferReleased(guest.id, buffer.kind, buffer.reference, len(frames) >> 3)
            )

    async def release_rpc_buffer(self, sys: Syscalls, guest: Guest, buffer: RpcBuffer) -> None:
        """Forget and unpin an RPC message buffer."""
        if guest.rpc_buffers.get(buffer.cookie) is buffer:
            del guest.rpc_buffers[buffer.cookie]
        if buffer.released:
            return
        buffer.released = True
        frames, buffer.frames = buffer.frames, b""
        if frames:
            await sys.unpin_pages(guest.id, frames)
        await self.give_rpc_page(sys, buffer)

    async def give_rpc_page(self, sys: Syscalls, buffer: RpcBuffer) -> None:
        """Take back the page of a released RPC buffer, once no entry has it in hand."""
        shadow = buffer.shadow
        if shadow is not None and buffer.released and not buffer.users:
            buffer.shadow = None
            await self.give_page(sys, shadow)

    async def release_call(self, sys: Syscalls, guest: Guest, call: Call) -> None:
        """Give back what a call holds for itself. Its buffers are decided by its command."""
        guest.live_calls.pop(call.serial, None)
        if call.wait_key >= 0:
            self.end_wait(guest, call)
        shadow, alloc_list, carrier = call.shadow, call.alloc_list, call.carrier
        call.shadow = call.alloc_list = call.carrier = None
        if shadow is not None:
            if len(self.free_pages) < self.settings.shadow_cache:
                shadow.mem[:] = _ZERO_PAGE
                self.free_pages.append(shadow)
            else:
                await sys.free_shadow(shadow)
        if alloc_list is not None:
            await self.give_list(sys, alloc_list)
        if carrier is not None:
            carrier.users -= 1
            if carrier.doomed and not carrier.users:
                guest.held -= 1
                await self.release_buffer(sys, guest, carrier)
        if guest.lingering:
            for reference in call.named:
                while reference in guest.lingering and not guest.names(reference):
                    await self.release_lingering(sys, guest, reference)

    async def release_lingering(self, sys: Syscalls, guest: Guest, reference: int) -> None:
        """Let go of one buffer that a call named when it was released."""
        buffers = guest.lingering[reference]
        buffer = buffers.pop()
        guest.held -= 1
        if not buffers:
            del guest.lingering[reference]
        await self._let_go(sys, guest, buffer)

    async def drop_call(self, sys: Syscalls, guest: Guest, call: Call) -> None:
        """Release a call together with every buffer that it took."""
        if guest.suspended.get(call.thread) is call:
            del guest.suspended[call.thread]
        if call.walk is not None:
            walk, call.walk = call.walk, None
            await self.release_buffer(sys, guest, walk, call)
        buffers, call.buffers = call.buffers, []
        for buffer in buffers:
            await self.release_buffer(sys, guest, buffer, call)
        await self.release_call(sys, guest, call)
