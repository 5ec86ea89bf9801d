# SPDX-License-Identifier: BSD-2-Clause
"""Real AArch64 machine code executes ``smc #0``, and the mediator answers.

The Unicorn CPU emulator runs a few dozen bytes of EL1 code. Its memory is that of the minimal
hypervisor model in ``embed_minimal.py``: each guest page is mapped where the model's stage 2 has
it, so the emulated CPU sees IPAs and the TEE sees PAs. Unicorn's core is GPL-2: it serves this
example and its test, and is no dependency of the project.

    python -m examples.unicorn_smc
"""

from __future__ import annotations

import ctypes
import struct

from unicorn import UC_ARCH_ARM64, UC_HOOK_INTR, UC_MODE_ARM, UC_PROT_ALL, Uc
from unicorn import arm64_const as arm

from examples.embed_minimal import SPAN, TinyHypervisor
from mediator import Completed, Done, InHypervisor
from mediator.host import PAGE_SIZE
from secure_world.apps.basic import Arithmetic
from smccc.constants import optee_msg, optee_smc
from smccc.message import Message, Param, parse_message, uuid_to_value

GUEST = 0
CODE, MESSAGE, RESULT = 0x0_0000, 0x1000, 0x2000
SMC_EXCEPTION = 13
"""What Unicorn reports for an SMC (QEMU ``target/arm/cpu.h``, EXCP_SMC)."""
X = tuple([getattr(arm, f"UC_ARM64_REG_X{n}") for n in range(8)])

SMC = 0xD4000003


def mov(register: int, value: int) -> list[int]:
    """``movz``/``movk``: a 32-bit constant into W ``register``."""
    low, high = value & 0xFFFF, value >> 16
    return [0x52800000 | low << 5 | register, 0x72A00000 | high << 5 | register]


def program(*call: int) -> bytes:
    """Ask for the UID and store it at RESULT; then make ``call``, resuming it while interrupted."""
    words = [*mov(0, optee_smc.OPTEE_SMC_CALLS_UID), SMC]
    words += mov(20, RESULT)
    words += [0x29000680, 0x29010E82]  # stp w0, w1, [x20]; stp w2, w3, [x20, #8]
    for register, value in enumerate(call):
        words += mov(register, value)
    again = len(words)
    words += [SMC]
    words += mov(9, optee_smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR)
    words += [0x6B09001F, 0x54000001 | 4 << 5]  # cmp w0, w9; b.ne past the loop
    words += mov(0, optee_smc.OPTEE_SMC_CALL_RETURN_FROM_RPC)
    words += [0x14000000 | (again - len(words)) & 0x3FFFFFF]  # b again
    return struct.pack(f"<{len(words)}I", *words)


class Machine:
    """One emulated CPU on the memory of the minimal hypervisor model."""

    def __init__(self) -> None:
        self.model = TinyHypervisor(guests=1)
        self.mediator = InHypervisor(self.model)
        assert self.mediator.probe().found
        assert self.mediator.create_guest(GUEST) == Done()
        self.cpu = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.model.memory))
        for page in range(SPAN):
            pa = self.model.pa(GUEST, page * PAGE_SIZE)
            assert pa is not None
            self.cpu.mem_map_ptr(page * PAGE_SIZE, PAGE_SIZE, UC_PROT_ALL, base + pa)
        self.cpu.hook_add(UC_HOOK_INTR, self._trap)
        self.traps = 0

    def _trap(self, cpu: Uc, number: int, user: object) -> None:
        assert number == SMC_EXCEPTION, (
            f"exception {number} at {cpu.reg_read(arm.UC_ARM64_REG_PC):#x}"
        )
        self.traps += 1
        outcome = self.mediator.handle(GUEST, 0, [cpu.reg_read(register) for register in X])
        assert isinstance(outcome, Completed)
        for register, value in zip(X, outcome.regs, strict=True):
            cpu.reg_write(register, value)

    def run(self, message: Message) -> Message:
        """Put ``message`` into guest memory, run the program, return the message afterwards."""
        self.cpu.mem_write(MESSAGE, message.build())
        code = program(optee_smc.OPTEE_SMC_CALL_WITH_ARG, 0, MESSAGE, 0)
        self.cpu.mem_write(CODE, code)
        self.cpu.emu_start(CODE, CODE + len(code))
        status = self.cpu.reg_read(arm.UC_ARM64_REG_X0)
        assert status == optee_smc.OPTEE_SMC_RETURN_OK, f"x0 is {status:#x}"
        return parse_message(bytes(self.cpu.mem_read(MESSAGE, PAGE_SIZE)))


def main() -> None:
    """Open a session and add two numbers, each from machine code."""
    machine = Machine()
    meta = optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT | optee_msg.OPTEE_MSG_ATTR_META
    who = (Param(meta, *uuid_to_value(Arithmetic.uuid)), Param(meta))
    opened = machine.run(Message(optee_msg.OPTEE_MSG_CMD_OPEN_SESSION, params=who))
    uid = struct.unpack("<4I", machine.cpu.mem_read(RESULT, 16))
    print("UID:", *(f"{word:08x}" for word in uid))
    print("session", opened.session, "result", hex(opened.ret))
    operands = Param(optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 40, 2)
    result = Param(optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT)
    invoke = optee_msg.OPTEE_MSG_CMD_INVOKE_COMMAND
    answer = machine.run(Message(invoke, Arithmetic.ADD, opened.session, params=(operands, result)))
    print("40 + 2 =", answer.params[1].a)
    print("traps:", machine.traps)


if __name__ == "__main__":
    main()
