# SPDX-License-Identifier: BSD-2-Clause
"""A small app that stands for a device, beside mediating: what the mediator itself has no use for.

Run as a process by tests with ``-c`` (it is no part of the distribution), or inside of the test.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import attrs

from mediator.app.calls import Answer, AppSyscalls, Refused
from mediator.app.optee import TOS_RANGES, OpteeApp
from mediator.app.runtime import Conversation, Entry, arguments, returned
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER_SIZE, REGISTERS
from mediator.deployment.el0_app.manifest import Manifest, optee_manifest
from mediator.optee.syscalls import Syscall

NAME: Final = "devices"
PLACE: Final = 0x0A00_0000
"""Guest physical address of the registers, where no guest has memory."""
END: Final = PLACE + 0xFFF
DEVICE: Final = 0x0C00_0000
"""Physical address of a device page that MAP_DEVICE may have."""
STREAMS: Final = (7, 8)
INTERRUPTS: Final = (40, 47)
VIRQ: Final = 60
MAX_VIRQ: Final = 99

# Registers, 8 bytes each.
LATCH: Final = PLACE
ALARM: Final = PLACE + 0x08
INJECT: Final = PLACE + 0x10
PARK: Final = PLACE + 0x18
WAKE: Final = PLACE + 0x20
CLOCK: Final = PLACE + 0x28
EXPIRED: Final = PLACE + 0x30
RAISED: Final = PLACE + 0x38
NOBODYS: Final = PLACE + 0x40
LISTEN: Final = PLACE + 0x48
STOPS: Final = PLACE + 0x50
NOTE: Final = PLACE + 0x58
NO_ALARM: Final = (1 << 64) - 1

ERRAND: Final = 0xB200_FE58
"""Function id: x1 says what to do."""
ASK: Final = 0
"""System call x2 with arguments x3..x7: status and results."""
PEEK: Final = 1
"""The word at byte x2 of the arena."""
POKE: Final = 2
"""Write x3 there."""
LOOK: Final = 3
"""Map page x3 of guest x2, write x5 to its second word: status, offset, first word before and after."""
KEEP: Final = 4
"""Map a page, remember where, and wait for the TEE; then the first word as it is, and as it was."""
DEVICES: Final = 6
"""Map device page x2, write x3 to its second word: status, offset, first word."""
SEEN: Final = 5
"""What the arena has where KEEP's window is, before and after another message."""

_WORD: Final = struct.Struct("<Q")
M64: Final = (1 << 64) - 1


def devices_manifest(**changes: Any) -> Manifest:
    """The mediator's manifest, and what this app needs."""
    base = optee_manifest()
    manifest = attrs.evolve(
        base,
        name=NAME,
        program="python:tests.el0_app.devices",
        syscalls=frozenset(map(int, Syscall)),
        mmio_hooks=((PLACE, END),),
        interrupt_hooks=(INTERRUPTS, (32, 32)),
        timer_hook=True,
        virqs=((0, MAX_VIRQ),),
        devices=((DEVICE, DEVICE + 0xFFF),),
        streams=(STREAMS,),
    )
    return attrs.evolve(manifest, **changes)


class DeviceApp(OpteeApp):
    """The mediator, and a page of registers for each guest."""

    name = NAME

    def __init__(self) -> None:
        super().__init__()
        self.latches: dict[tuple[int, int], int] = {}
        self.expired = 0
        self.raised = 0
        self.listener = 0
        self.stops = 0
        self.kept = 0
        self._talk: Conversation | None = None

    def welcome(self, talk: Conversation, offers: int, settings: dict[str, object]) -> None:
        self._talk = talk
        super().welcome(talk, offers, settings)

    def enter(self, sys: AppSyscalls, number: int, message: bytes) -> Entry:
        """Serve one entry."""
        args = arguments(message)
        if number == abi.ENTRY_INIT and args[0] in (abi.INIT_START, abi.INIT_KNOWN):
            return self._start(sys, *args[:2])
        if number == abi.ENTRY_HANDLE_MMIO:
            return self._register(sys, args)
        if number == abi.ENTRY_HANDLE_TIMER:
            return self._alarm(sys)
        if number == abi.ENTRY_HANDLE_INTERRUPT and args[0] != 32:
            return self._raise(sys, args[0])
        if number == abi.ENTRY_HANDLE_SMC:
            regs = REGISTERS.unpack_from(message, HEADER_SIZE)
            if regs[0] == ERRAND:
                return self._errand(sys, args[0], regs)
        return super().enter(sys, number, message)

    async def _start(self, sys: AppSyscalls, mode: int, threads: int) -> bytes:
        await sys.register_hook(abi.HOOK_MMIO, PLACE, END)
        await sys.register_hook(abi.HOOK_TIMER)
        await sys.register_hook(abi.HOOK_INTERRUPT, *INTERRUPTS)
        for first, last in TOS_RANGES:
            await sys.register_hook(abi.HOOK_SMC, first, last)
        if mode == abi.INIT_KNOWN:
            self._mediator.probed(threads)
        return returned(abi.OUTCOME_DONE, (threads,))

    async def _register(self, sys: AppSyscalls, args: tuple[int, ...]) -> bytes:
        guest, vcpu, ipa, size, write, value = args[:6]
        if ipa == NOBODYS:
            return returned(abi.OUTCOME_NOT_MINE)
        if not write:
            found = {CLOCK: 0, EXPIRED: self.expired, RAISED: self.raised}.get(ipa)
            if ipa == CLOCK:
                found = await sys.now()
            if found is None:
                found = self.latches.get((guest, ipa), 0)
            # More than the access has room for: the hypervisor cuts it.
            return returned(abi.OUTCOME_DONE, (found | 0xABCD << 48 if size < 8 else found,))
        if ipa == ALARM:
            self.listener = guest
            await sys.set_timer(None if value == NO_ALARM else value)
        elif ipa == INJECT:
            await sys.inject_virq(guest, value)
        elif ipa == PARK:
            await sys.park_vcpu(guest, vcpu, value)
        elif ipa == WAKE:
            await sys.wake_vcpu(guest, value)
        elif ipa == LISTEN:
            self.listener = guest
        elif ipa == NOTE:
            await sys.log(guest, "x" * value)
        elif ipa == STOPS:
            self.stops = value
        else:
            self.latches[guest, ipa] = value
        return returned(abi.OUTCOME_DONE)

    async def _alarm(self, sys: AppSyscalls) -> bytes:
        if self.stops and await sys.should_preempt():
            self.stops -= 1
            return returned(abi.OUTCOME_PREEMPTED)
        self.expired += 1
        await sys.inject_virq(self.listener, VIRQ)
        return returned(abi.OUTCOME_DONE)

    async def _raise(self, sys: AppSyscalls, intid: int) -> bytes:
        self.raised += 1
        await sys.inject_virq(self.listener, intid)
        return returned(abi.OUTCOME_DONE)

    # --- errands --------------------------------------------------------------------------------

    def word(self, offset: int) -> int:
        assert self._talk is not None
        value: int = _WORD.unpack_from(self._talk.arena, offset)[0]
        return value

    def put(self, offset: int, value: int) -> None:
        assert self._talk is not None
        _WORD.pack_into(self._talk.arena, offset, value)

    async def _errand(self, sys: AppSyscalls, guest: int, regs: tuple[int, ...]) -> bytes:
        what, x2, x3, _, x5 = regs[1:6]
        out: tuple[int, ...] = (0,)
        if what == ASK:
            answer = await asked(sys, x2, *regs[3:])
            out = (answer.status, *answer.args)
        elif what == PEEK:
            out = (self.word(x2),)
        elif what == POKE:
            self.put(x2, x3)
        elif what == LOOK:
            first = self.word(0)
            answer = await asked(sys, Syscall.MAP_GUEST_PAGE, x2, x3)
            out = (answer.status, answer.args[0])
            if not answer.status:
                self.put(answer.args[0] + 8, x5)
                await sys.should_preempt()
                out = (0, answer.args[0], first, self.word(answer.args[0]))
        elif what == DEVICES:
            answer = await asked(sys, Syscall.MAP_DEVICE, x2)
            await sys.should_preempt()
            out = (answer.status, answer.args[0], self.word(answer.args[0]))
            self.put(answer.args[0] + 8, x3)
            await sys.should_preempt()
        elif what == KEEP:
            before = self.word(0)
            answer = await asked(sys, Syscall.MAP_GUEST_PAGE, guest, x2)
            kept = self.kept = answer.args[0]
            # The TEE lets others in.
            await sys.smc(0xBF00_FF01, 0, 0, 0, 0, 0, 0, self._client(guest))
            out = (answer.status, kept, before, self.word(kept))
        elif what == SEEN:
            before = self.word(self.kept)
            answer = await asked(sys, Syscall.UNMAP_GUEST_PAGE, self.kept)
            out = (answer.status, before)
        return returned(abi.OUTCOME_DONE, tuple(word & M64 for word in (*out, *[0] * 8)[:8]))

    def _client(self, guest: int) -> int:
        return guest + 1


async def asked(sys: AppSyscalls, number: int, *args: int) -> Answer:
    """A system call; a refusal is an answer, too."""
    try:
        return await sys.call(number, b"", *args)
    except Refused as refused:
        return Answer(refused.status, (0,) * 8, b"")


class SerialDeviceApp(DeviceApp):
    """Serves one entry after the other."""

    capabilities = abi.CAP_TRACE | abi.CAP_STATE
