# SPDX-License-Identifier: BSD-2-Clause
"""``python -I -m mediator.app.trial``: an app that tries what is forbidden, and fails on demand.

It mediates as the real one does, and serves one function more, :data:`TRIAL`: x1 says what to try. Where
a try comes back, x1 is the error number that it met, 0 if nothing stopped it. For tests of isolation and
containment; its manifest is not that of the mediator.
"""

from __future__ import annotations

from mediator.app.isolation import single_threaded

single_threaded()  # before NumPy is loaded

import ctypes  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Final  # noqa: E402

from mediator.app.calls import AppSyscalls  # noqa: E402
from mediator.app.optee import OpteeApp  # noqa: E402
from mediator.app.runtime import Entry, arguments, returned, serve  # noqa: E402
from mediator.deployment import app_abi as abi  # noqa: E402
from mediator.deployment.app_abi import HEADER_SIZE, REGISTERS  # noqa: E402

NAME: Final = "trial"
TRIAL: Final = 0xB200_FE57
"""Function id of the trial: a fast call of a Trusted OS that OP-TEE does not have."""

PTRACE_ATTACH: Final = 16
PR_SET_DUMPABLE: Final = 4
SIGKILL: Final = 9
PARENT: Final = os.getppid()
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_BUFFER: Final = ctypes.create_string_buffer(16)


def _native(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _parents_memory() -> None:
    mine = _Vector(ctypes.addressof(_BUFFER), 16)
    theirs = _Vector(0x400000, 16)
    _native(_LIBC.process_vm_readv(PARENT, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))


def _executable_memory() -> None:
    import mmap

    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)


def _thread() -> None:
    import _thread

    try:
        _thread.start_new_thread(id, (0,))
    except RuntimeError as error:
        raise OSError(1, "refused") from error


ATTEMPTS: Final[dict[str, Callable[[], object]]] = {
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "create": lambda: os.open("/tmp/trial", os.O_WRONLY | os.O_CREAT),
    "socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "fork": os.fork,
    "execve": lambda: os.execve("/bin/true", ["true"], {}),
    "ptrace": lambda: _native(_LIBC.ptrace(PTRACE_ATTACH, PARENT, None, None)),
    "parent's memory": _parents_memory,
    "parent's memory file": lambda: os.open(f"/proc/{PARENT}/mem", os.O_RDONLY),
    "kill": lambda: os.kill(PARENT, 0),
    "kill itself": lambda: os.kill(os.getpid(), SIGKILL),
    "another descriptor": lambda: os.read(3, 1),
    "thread": _thread,
    "executable memory": _executable_memory,
    "dumpable": lambda: _native(_LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)),
    "directory": lambda: os.listdir("/"),
}
"""What must be refused, by name; x1 of the trial is the place in this table."""

CRASH: Final = 1000
EXIT: Final = 1001
LOOP: Final = 1002
MEMORY: Final = 1003
EXCEPTION: Final = 1004
GARBAGE: Final = 1005
FLOOD: Final = 1006
STRANGER: Final = 1007


class TrialApp(OpteeApp):
    """The mediator, and a function that does what it should not."""

    name = NAME

    def enter(self, sys: AppSyscalls, number: int, message: bytes) -> Entry:
        """Serve one entry."""
        if number == abi.ENTRY_HANDLE_SMC:
            regs = REGISTERS.unpack_from(message, HEADER_SIZE)
            if regs[0] == TRIAL:
                return _trial(sys, arguments(message)[0], regs)
        return super().enter(sys, number, message)


async def _trial(sys: AppSyscalls, guest: int, regs: tuple[int, ...]) -> bytes:
    what = regs[1]
    if what < len(ATTEMPTS):
        error = 0
        try:
            list(ATTEMPTS.values())[what]()
        except OSError as refused:
            error = refused.errno or 0
        return returned(abi.OUTCOME_DONE, (0, error, *regs[2:]))
    if what == CRASH:
        ctypes.string_at(0)
    elif what == EXIT:
        os._exit(0)
    elif what == LOOP:
        while True:
            pass
    elif what == MEMORY:
        held = []
        while True:
            held.append(bytes(range(256)) * (1 << 16))
    elif what == EXCEPTION:
        raise ValueError("as told")
    elif what == GARBAGE:
        for number in range(3, 200):
            try:
                await sys.call(number, b"\xff" * number, *regs)
            except Exception:  # every answer will do
                continue
    elif what == FLOOD:
        while True:
            await sys.post(1, b"flood", guest)
    elif what == STRANGER:
        # Another guest than the one of this entry.
        status = 0
        try:
            await sys.read_guest(regs[2], regs[3], 8)
        except Exception as error:
            status = -int(str(error).rsplit(maxsplit=1)[1])
        return returned(abi.OUTCOME_DONE, (0, status, *regs[2:]))
    return returned(abi.OUTCOME_DONE, (0, 0, *regs[2:]))


if __name__ == "__main__":
    serve(TrialApp)
