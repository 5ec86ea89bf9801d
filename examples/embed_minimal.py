# SPDX-License-Identifier: BSD-2-Clause
"""The mediator inside somebody else's hypervisor model: all that it needs of it, in about 60 lines.

One bytearray is the machine's memory. Page ``n`` of guest ``g`` lies at ``(g + 1) * SPAN - n`` pages,
so no guest address equals a physical one. The simulated OP-TEE is the secure world behind it:
``TinyBus`` is what that may touch, and the only part that a real secure world would make superfluous.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence

from mediator import Completed, InHypervisor
from mediator.host import PAGE_SIZE, Shadow
from secure_world.apps.basic import Arithmetic
from secure_world.bus import BusError
from secure_world.world import SecureWorld
from smccc.constants import optee_msg, optee_smc
from smccc.message import Message, Param, parse_message, uuid_to_value

SPAN, OFFSET = 64, PAGE_SIZE - 1  # pages of a guest; the bits of an address inside its page


class TinyHypervisor:
    """Implements mediator.host.Host."""

    def __init__(self, guests: int) -> None:
        self.guests = guests
        self.memory = memoryview(bytearray((guests + 2) * SPAN * PAGE_SIZE))
        self.free = (guests + 1) * SPAN + 1  # this page and those behind it are for the mediator
        self.pins: Counter[tuple[int, int]] = Counter()
        self.tee = SecureWorld(TinyBus(self))

    def pa(self, guest: int, ipa: int) -> int | None:
        page = ipa // PAGE_SIZE
        return ((guest + 1) * SPAN - page) * PAGE_SIZE | ipa & OFFSET if page < SPAN else None

    def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        pa = self.pa(guest, ipa)
        return None if pa is None else bytes(self.memory[pa : pa + length])

    def write_guest(self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]) -> bool:
        pa = self.pa(guest, ipa)
        if pa is None:
            return False
        self.write_pinned(guest, pa, segments)
        return True

    def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        words, link = b"", ipa
        for left in range(entries, 0, -511):
            page = self.read_guest(guest, link & ~OFFSET, PAGE_SIZE)
            if page is None:
                return None
            words += page[: 8 * min(left, 511)]
            link = int.from_bytes(page[4088:], "little") if left >= 511 else 0
        return words, link

    def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        frames = [self.pa(guest, ipa & ~OFFSET) for (ipa,) in struct.iter_unpack("<Q", ipas)]
        if None in frames:
            return None
        self.pins.update((guest, frame) for frame in frames if frame is not None)
        return struct.pack(f"<{len(frames)}Q", *frames)

    def unpin_pages(self, guest: int, frames: bytes) -> None:
        self.pins.subtract((guest, frame) for (frame,) in struct.iter_unpack("<Q", frames))

    def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        return bytes(self.memory[pa : pa + length])

    def write_pinned(self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]) -> None:
        for offset, data in segments:
            self.memory[pa + offset : pa + offset + len(data)] = data

    def alloc_shadow(self, pages: int) -> Shadow | None:
        first, self.free = self.free, self.free + pages
        if self.free > (self.guests + 2) * SPAN:
            return None
        words = struct.pack(f"<{pages}Q", *(PAGE_SIZE * page for page in range(first, self.free)))
        return self.map_shadow(words)

    def map_shadow(self, pages: bytes) -> Shadow:
        start = int.from_bytes(pages[:8], "little")
        return Shadow(pages, self.memory[start : start + len(pages) // 8 * PAGE_SIZE])

    def free_shadow(self, shadow: Shadow) -> None:
        """This model never uses a page twice; a larger one would."""

    def smc(self, *args: int) -> tuple[int, int, int, int]:
        return self.tee.smc(*args)

    def should_preempt(self) -> bool:
        return False

    def now(self) -> int:
        return 0

    def inject_virq(self, guest: int, intid: int) -> None: ...
    def set_timer(self, deadline: int | None) -> None: ...
    def park_vcpu(self, guest: int, vcpu: int, until: int) -> None: ...
    def wake_vcpu(self, guest: int, vcpu: int) -> None: ...
    def quarantine(self, guest: int, answer: int) -> None: ...
    def log(self, guest: int, message: str) -> None: ...


class TinyBus:
    """Implements secure_world.bus.Bus: the mediator's pages, and what the client's guest has pinned."""

    def __init__(self, machine: TinyHypervisor) -> None:
        self.machine = machine

    def check(self, client: int, pa: int, n: int) -> bool:
        first, last = pa // PAGE_SIZE, (pa + max(n, 1) - 1) // PAGE_SIZE
        return first > self.machine.guests * SPAN + SPAN or all(
            self.machine.pins[client - 1, page * PAGE_SIZE] for page in range(first, last + 1)
        )

    def check_pages(self, client: int, pages: bytes) -> bool:
        return all(self.check(client, pa, PAGE_SIZE) for (pa,) in struct.iter_unpack("<Q", pages))

    def read(self, client: int, pa: int, n: int) -> bytes:
        if not self.check(client, pa, n):
            raise BusError(pa, n)
        return self.machine.read_pinned(client - 1, pa, n)

    def write(self, client: int, pa: int, data: bytes) -> None:
        if not self.check(client, pa, len(data)):
            raise BusError(pa, len(data), write=True)
        self.machine.write_pinned(client - 1, pa, [(0, data)])


def main() -> None:
    """A guest opens a session with a trusted application and lets it add two numbers."""
    machine = TinyHypervisor(guests=1)
    mediator = InHypervisor(machine)
    print("OP-TEE found:", mediator.probe().found)
    print("guest:", mediator.create_guest(0))

    def call(message: Message) -> Message:
        machine.write_guest(0, 0x1000, [(0, message.build())])
        regs: tuple[int, ...] = (optee_smc.OPTEE_SMC_CALL_WITH_ARG, 0, 0x1000, 0, 0, 0, 0, 0)
        while True:
            outcome = mediator.handle(0, 0, regs)
            assert isinstance(outcome, Completed), outcome
            if outcome.regs[0] == optee_smc.OPTEE_SMC_RETURN_OK:
                return parse_message(machine.read_guest(0, 0x1000, PAGE_SIZE) or b"")
            assert outcome.regs[0] == optee_smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, outcome
            regs = (optee_smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, *outcome.regs[1:])

    meta = optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT | optee_msg.OPTEE_MSG_ATTR_META
    who = (Param(meta, *uuid_to_value(Arithmetic.uuid)), Param(meta))
    session = call(Message(optee_msg.OPTEE_MSG_CMD_OPEN_SESSION, params=who)).session
    operands = Param(optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 40, 2)
    result = Param(optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT)
    invoke = optee_msg.OPTEE_MSG_CMD_INVOKE_COMMAND
    answer = call(Message(invoke, Arithmetic.ADD, session, params=(operands, result)))
    print("40 + 2 =", answer.params[1].a)
    call(Message(optee_msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=session))
    mediator.destroy_guest(0)
    print("pages still pinned:", sum(machine.pins.values()))


if __name__ == "__main__":
    main()
