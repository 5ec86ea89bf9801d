# SPDX-License-Identifier: BSD-2-Clause
"""The mediator between the reference host and the simulated OP-TEE, trap by trap.

Where :mod:`tests.mediator.rig` scripts the TEE, here a real one decides, and its bus says whether it
touched a page that it was not to touch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from uuid import UUID

from mediator.checkers.standard import standard_watch
from mediator.checkers.watch import Watch
from mediator.deployment.choice import AnyDeployment
from mediator.deployment.face import Completed, Done
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from mediator.hypervisor.bus import SecureBus
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from mediator.optee.settings import MediatorSettings
from secure_world.settings import SecureWorldSettings
from secure_world.ta import Params, TaEnvironment, TaRegistry, TrustedApplication
from secure_world.world import SecureWorld
from smccc.constants import optee_smc as smc
from tests.mediator.rig import Heard, msg
from tests.secure_world.support import Scripted

RAM = 0x4000_0000
PAGES = 512
MESSAGE_AT = RAM
GUEST = 1
OTHER = 2
CLASSIC = MediatorSettings(
    capabilities=MediatorSettings().capabilities & ~smc.OPTEE_SMC_SEC_CAP_RPC_ARG
)


class Slow(TrustedApplication):
    """Leaves with its memory in hand, and uses it when it comes back."""

    uuid = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be0aa")
    name = "slow"
    pseudo = True
    multi_session = True

    PASS = 0
    """Interrupted once."""
    WRITE = 1
    """Interrupted once, then writes SECRET into p0."""
    COPY = 2
    """p0 to p1."""
    ALLOCATE = 3
    """SHM_ALLOC of a page, interrupted, then SHM_FREE."""
    LOCKED = 4
    """Waits for the lock, writes SECRET into p0 if there is one."""
    HOLD = 5
    """Holds the lock, interrupted once."""

    SECRET = b"of the secure world"

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        if command in (self.PASS, self.WRITE):
            await env.checkpoint()
        if command == self.WRITE:
            params.memref(0).write(0, self.SECRET)
        elif command == self.COPY:
            source = params.memref(0)
            params.memref(1).write(0, source.read(0, source.capacity))
        elif command == self.ALLOCATE:
            memory = await env.shm_alloc(PAGE_SIZE)
            await env.checkpoint()
            await env.shm_free(memory)
        elif command in (self.LOCKED, self.HOLD):
            lock = env.mutex("lock", shared=True)
            await lock.lock()
            if command == self.HOLD:
                await env.checkpoint()
            elif params.types:
                params.memref(0).write(0, self.SECRET)
            await lock.unlock()
        return 0


class WithOptee:
    """Two guests (1 and 2) with RAM at :data:`RAM`; sessions of :class:`Slow`, one for each call."""

    def __init__(self, settings: MediatorSettings | None = None) -> None:
        self.events = Heard()
        self.memory = PhysicalMemory()
        self.bus = SecureBus(self.memory, sink=self.events.append)
        self.monitor = Scripted()
        self.world = SecureWorld(
            self.bus, SecureWorldSettings(threads=4), self.monitor, registry=TaRegistry([Slow])
        )
        self.host = ReferenceHost(self.memory, secure_smc=self.world.smc, sink=self.events.append)
        self.tee = self.deploy(settings)
        self.watch = standard_watch(
            Watch(), self.memory, self.host, self.tee.mediator, bus=self.bus
        )
        self.events.listener = self.watch
        self.classic = settings is CLASSIC
        assert self.tee.probe().found
        for guest in (GUEST, OTHER):
            self.host.add_guest(guest)
            assert self.host.populate(guest, RAM, PAGES)
            assert self.tee.create_guest(guest) == Done()

    def deploy(self, settings: MediatorSettings | None) -> AnyDeployment:
        """The mediator in its home."""
        return InHypervisor(self.host, settings, self.events.append)

    def smc(self, *regs: int, guest: int = GUEST) -> tuple[int, ...]:
        out = self.tee.handle(guest, 0, tuple(regs) + (0,) * (8 - len(regs)))
        assert isinstance(out, Completed)
        return out.regs

    def pa(self, ipa: int, guest: int = GUEST) -> int:
        frame, _ = self.host.stage2(guest).lookup(ipa >> PAGE_SHIFT)
        return frame << PAGE_SHIFT | ipa & PAGE_MASK

    def put(self, ipa: int, data: bytes, guest: int = GUEST) -> None:
        self.memory.write(self.pa(ipa, guest), data)

    def get(self, ipa: int, length: int, guest: int = GUEST) -> bytes:
        return bytes(self.memory.read(self.pa(ipa, guest), length))

    def page_list(self, ipa: int, *pages: int) -> int:
        self.put(ipa, struct.pack(f"<{len(pages)}Q", *pages))
        return ipa

    def call(self, ipa: int, data: bytes) -> tuple[int, ...]:
        """A call with the message at ``ipa``, in the style of the settings."""
        self.put(ipa, data)
        function = smc.OPTEE_SMC_CALL_WITH_ARG if self.classic else smc.OPTEE_SMC_CALL_WITH_RPC_ARG
        return self.smc(function, ipa >> 32, ipa & 0xFFFF_FFFF)

    def resume(self, thread: int, *more: int) -> tuple[int, ...]:
        first = (*more, 0, 0, 0, 0)
        return self.smc(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, *first[:2], thread, *first[2:4])

    def result(self, ipa: int) -> tuple[int, int]:
        """``ret`` and ``ret_origin``."""
        ret, origin = struct.unpack("<2I", self.get(ipa + 20, 8))
        return ret, origin

    def session(self) -> int:
        high, low = struct.unpack("<2Q", Slow.uuid.bytes)
        body = msg(0, session=0, params=[(0x101, high, low, 0), (0x101, 0, 0, 0)])
        assert self.call(MESSAGE_AT, body)[0] == 0
        assert self.result(MESSAGE_AT)[0] == 0
        session: int = struct.unpack("<I", self.get(MESSAGE_AT + 8, 4))[0]
        return session

    def invoke(
        self,
        ipa: int,
        command: int,
        params: Sequence[tuple[int, int, int, int]] = (),
        *,
        interrupted: bool = False,
    ) -> tuple[int, ...]:
        """Invoke in a session of its own; ``interrupted``: the first chance for it is taken."""
        session = self.session()
        self.monitor.pending = int(interrupted)
        return self.call(ipa, msg(1, func=command, session=session, params=params))

    def register(self, cookie: int, page: int) -> None:
        listed = self.page_list(RAM + 0x1F_0000, page)
        assert self.call(MESSAGE_AT, msg(4, params=[(0x20A, listed, PAGE_SIZE, cookie)]))[0] == 0
        assert self.result(MESSAGE_AT)[0] == 0

    def clean(self) -> bool:
        """Nothing of the guest is held any more, and the TEE kept to what it was given."""
        self.watch.check()
        info = self.tee.guest_info(GUEST)
        assert info is not None
        counts = (info.calls, info.buffers, info.pages, info.rpc_buffers)
        return counts == (0, 0, 0, 0) and not self.host.pinned(GUEST) and not self.bus.breaches
