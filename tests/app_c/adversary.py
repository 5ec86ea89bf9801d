# SPDX-License-Identifier: BSD-2-Clause
"""A guest and a TEE that do anything: seeded, so that two mediators can be put between the same two.

Both draw from generators of their own. As long as two mediators behave the same they are asked the
same questions, and so draw the same; the first difference shows in the transcript.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from mediator.deployment.face import Completed, Done
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import PAGE_MASK, PAGE_SIZE, Host
from smccc.constants import optee_rpc
from smccc.constants import optee_smc as smc
from smccc.wire import MESSAGE
from tests.app_c.peer import Peer
from tests.mediator.rig import RAM, SHADOW, RigHost

M32 = 0xFFFF_FFFF
PAGES = 24
"""Pages of the guest that it plays with: few, so that everything meets."""
COOKIES = (1, 2, 3, 0xFFFF_FFFF_0000_0000)
CALLS = (smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG)
FAST = (
    smc.OPTEE_SMC_CALLS_COUNT,
    smc.OPTEE_SMC_CALLS_UID,
    smc.OPTEE_SMC_CALLS_REVISION,
    smc.OPTEE_SMC_CALL_GET_OS_UUID,
    smc.OPTEE_SMC_CALL_GET_OS_REVISION,
    smc.OPTEE_SMC_GET_SHM_CONFIG,
    smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
    smc.OPTEE_SMC_GET_THREAD_COUNT,
    smc.OPTEE_SMC_ENABLE_SHM_CACHE,
    smc.OPTEE_SMC_DISABLE_SHM_CACHE,
    smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF,
    smc.OPTEE_SMC_VM_CREATED,
    0x3200_FFFF,
)
TYPES = (0, 1, 2, 3, 5, 6, 7, 9, 0xA, 0xB, 0x20A, 0x209, 0x20A, 0x20B, 0x101, 0xFF, 4)
RPCS = (smc.OPTEE_SMC_RETURN_RPC_ALLOC, smc.OPTEE_SMC_RETURN_RPC_FREE,
        smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, smc.OPTEE_SMC_RETURN_RPC_CMD,
        smc.OPTEE_SMC_RETURN_RPC_CMD, smc.OPTEE_SMC_RETURN_RPC_CMD)  # fmt: skip
REQUESTS = (
    optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC,
    optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC,
    optee_rpc.OPTEE_RPC_CMD_SHM_FREE,
    optee_rpc.OPTEE_RPC_CMD_GET_TIME,
    optee_rpc.OPTEE_RPC_CMD_NOTIFICATION,
)


def page(index: int) -> int:
    return RAM + index * PAGE_SIZE


def masked(view: memoryview) -> bytes:
    """A page of the mediator, without the addresses of others: which it takes is its own affair."""
    words = struct.unpack("<512Q", view)
    own = range(SHADOW, SHADOW + (1 << 30))
    return struct.pack("<512Q", *[word & PAGE_MASK if word in own else word for word in words])


def parameter(random: Random) -> tuple[int, int, int, int]:
    """A parameter that may mean something."""
    attr = random.choice(TYPES)
    kind = attr & 0xFF
    size = random.choice((1, 64, PAGE_SIZE, 2 * PAGE_SIZE, 3 * PAGE_SIZE + 8, 1 << 40))
    if kind in (9, 0xA, 0xB):
        at = page(random.randrange(PAGES + 1)) + random.choice((0, 0, 8, 0xFF8))
        if not random.randrange(8):
            at = 0
        return attr, at, size if random.random() < 0.8 else 0, random.choice(COOKIES)
    if kind in (5, 6, 7):
        return attr, random.choice((0, 8, 1 << 33)), size, random.choice(COOKIES)
    return attr, random.choice((0, 1, 2)), random.choice(COOKIES), random.choice(COOKIES)


def message(random: Random, command: int | None = None) -> bytes:
    """A message, seldom a sensible one."""
    if command is None:
        command = random.choice((0, 1, 1, 1, 2, 3, 4, 4, 4, 5, 5, 6, 99))
    params = [parameter(random) for _ in range(random.choice((0, 1, 1, 1, 2, 4)))]
    if command == 4 and random.random() < 0.8:
        at = page(random.randrange(PAGES)) + random.choice((0, 0, 8))
        size = random.choice((64, PAGE_SIZE, 2 * PAGE_SIZE))
        params = [(0x20A, at, size, random.choice(COOKIES))]
    if command == 5 and random.random() < 0.8:
        params = [(5, 0, 0, random.choice(COOKIES))]
    flat = [word for one in params for word in one]
    count = len(params) if random.random() < 0.95 else random.choice((127, 128, M32))
    body = MESSAGE[len(params)].pack(
        command, random.randrange(4), 1, 0, 0, 0, 0, len(params), *flat
    )
    return body[:28] + struct.pack("<I", count) + body[32:]


class WildHost(RigHost):
    """A host whose TEE answers what it likes, and which now and then wants the processor."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = Random(seed)
        self.stops = Random(seed + 1)
        self.shared = 0
        self.threads: dict[int, int] = {}  # those that are away: the page of their message
        self.seen: list[object] = []

    def should_preempt(self) -> bool:
        return self.stops.random() < 0.2

    def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        random = self.random
        own = (a1 << 32 | a2) >= SHADOW
        # Which of its pages the mediator takes is its own affair.
        self.seen.append((a0, "own page" if own else (a1, a2), a3, a4, a5, a6, a7))
        if a0 in CALLS:
            self.shared = a1 << 32 | a2
            assert own
            assert self.shared & PAGE_MASK == 0
            self._look()
        elif a0 != smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            return self._fast(a0)
        else:
            # A thread that it never had cannot come back.
            self.shared = self.threads.pop(a3)
        view = self.memory(self.shared)
        if a0 not in CALLS:
            self.seen.append(masked(view))
        count = min(struct.unpack_from("<I", view, 28)[0], 4)
        for at in range(32, 32 + 32 * count, 32):
            # It may also change what is not its to change.
            if random.random() < 0.5:
                struct.pack_into(
                    "<3Q", view, at + 8, *(random.randrange(1 << 40) for _ in range(3))
                )
            if random.random() < 0.1:
                struct.pack_into("<Q", view, at, random.choice(TYPES))
        struct.pack_into("<I", view, 8, random.randrange(100))
        if random.random() < 0.5 + 0.1 * len(self.threads):
            struct.pack_into("<2I", view, 20, random.choice((0, 0, 0, 0xFFFF_0006)), 3)
            return random.choice((0, 0, 0, 0, smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT, M32)), 1, 2, 3
        return self._rpc(view)

    def _look(self) -> None:
        """Note what the mediator made of the guest's message, and the page lists that it leads to."""
        view = self.memory(self.shared)
        count = struct.unpack_from("<I", view, 28)[0]
        body = bytearray(view[: 32 + 32 * count])
        for at in range(32, len(body), 32):
            attr, address = struct.unpack_from("<2Q", body, at)
            if attr & 0xFF in (9, 0xA, 0xB) and address:
                assert address >= SHADOW
                assert attr & 0x200
                self.seen.append(bytes(self.memory(address & ~PAGE_MASK)))
                struct.pack_into("<Q", body, at + 8, address & PAGE_MASK)
        self.seen.append(bytes(body))

    def _fast(self, function: int) -> tuple[int, int, int, int]:
        if function in (smc.OPTEE_SMC_VM_CREATED, smc.OPTEE_SMC_VM_DESTROYED):
            return 0, 0, 0, 0
        if function == smc.OPTEE_SMC_DISABLE_SHM_CACHE:
            return self.random.choice((0, 3)), 0, self.random.choice(COOKIES[:3]), 0
        if function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES:
            return self.random.choice((0, 0, 0, 5)), self.random.choice((0xFF, 0x54, 3)), 9, 4
        return 0, self.random.randrange(40), 3, 4

    def _rpc(self, view: memoryview) -> tuple[int, int, int, int]:
        random = self.random
        kind = random.choice(RPCS)
        thread = next(number for number in range(99) if number not in self.threads)
        if random.random() < 0.02:
            thread = random.choice((*self.threads, 0x1_0000))
        else:
            self.threads[thread] = self.shared
        if kind == smc.OPTEE_SMC_RETURN_RPC_CMD:
            body = message(random, random.choice(REQUESTS))
            if random.random() < 0.7:
                values = (random.choice((0, 1)), random.choice(COOKIES), 8)
                body = MESSAGE[1].pack(random.choice(REQUESTS), 0, 0, 0, 0, 0, 0, 1, 1, *values)
            at = random.choice((0, 32, 64, 96, 160))
            view[at : at + len(body)] = body
        return kind, 0, random.choice(COOKIES[:3]), thread


def run(
    seed: int, steps: int, make: Callable[[Host], InHypervisor | Peer]
) -> tuple[list[object], WildHost]:
    """A transcript of everything that a guest sees, and of every SMC of the mediator."""
    random = Random(seed)
    host = WildHost(seed + 2)
    tee = make(host)
    host.add_guest(0)
    assert tee.create_guest(0) == Done()
    # Page lists at every page, so that any address is one: words of few pages, some of nobody.
    for index in range(PAGES):
        words = [page(random.randrange(PAGES)) for _ in range(512)]
        if random.random() < 0.1:
            words[random.randrange(3)] = page(4000)
        host.page(host.pa(0, page(index)))[:] = struct.pack("<512Q", *words)
    story: list[object] = []
    threads = [0]
    for _ in range(steps):
        regs = act(random, host, threads)
        out = tee.handle(0, 0, regs)
        story.append((regs, out, host.pins.total()))
        if isinstance(out, Completed) and out.regs[0] in RPCS:
            threads.append(out.regs[3])
        if random.random() < 0.01:
            while tee.destroy_guest(0) != Done():
                story.append("preempted")
            host.threads.clear()
            assert not host.pins
            assert tee.create_guest(0) == Done()
    story.append(dict(host.pins))
    story.append({at: bytes(data) for at, data in host.pages.items()})
    story.append(host.seen)
    for _ in range(1000):
        if tee.destroy_guest(0) == Done():
            break
    assert not host.pins
    return story, host


def act(random: Random, host: WildHost, threads: list[int]) -> tuple[int, ...]:
    """Change memory and make a call."""

    def put(ipa: int, data: bytes) -> None:
        frame = host.page(host.pa(0, ipa & ~PAGE_MASK))
        at = ipa & PAGE_MASK
        frame[at : at + len(data)] = data[: PAGE_SIZE - at]

    rest = tuple(random.randrange(1 << 64) for _ in range(4))
    choice = random.random()
    if choice < 0.1:
        return (random.choice(FAST), *(random.randrange(1 << 32) for _ in range(3)), *rest)
    if choice < 0.4:
        # The answer to an RPC, wherever that may lie, and back.
        ipa = page(random.randrange(PAGES))
        kind = random.choice((6, 6, 7, 3))
        attr = random.choice((0x20A, 0x20A, 0xA, 9, 1))
        param = (
            attr,
            page(random.randrange(PAGES)),
            random.choice((0, 64, 9000)),
            random.choice(COOKIES),
        )
        body = MESSAGE[1].pack(kind, 0, 0, 0, 0, random.choice((0, 0, 0, 5)), 0, 1, *param)
        put(ipa + random.choice((0, 32, 64, 96, 160)), body)
        away = tuple(host.threads) or (0,)
        thread = random.choice(away if random.random() < 0.9 else threads)
        cookie = random.choice(COOKIES)
        back = (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, ipa, thread, cookie >> 32, cookie & M32)
        return (*back, *rest[:2])
    body = message(random)
    if choice < 0.55:
        cookie = random.choice(COOKIES)
        position = random.choice((0, 0, 8, 64, 3936, 4000, 4064, 4072, 4096, 8192 - 32, 3))
        for index in range(PAGES):
            if random.random() < 0.8:
                put(page(index) + (position & PAGE_MASK), body)
        call = (smc.OPTEE_SMC_CALL_WITH_REGD_ARG, cookie >> 32, cookie & M32, position)
        return (*call, *rest)
    ipa = page(random.randrange(PAGES + 1))
    if ipa < page(PAGES):
        put(ipa, body)
    else:
        ipa = random.choice((page(4000), ipa + 8, 0))
    return (random.choice(CALLS), ipa >> 32, ipa & M32, 0, *rest)
