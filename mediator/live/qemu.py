# SPDX-License-Identifier: BSD-2-Clause
"""One emulator process for one guest: its options, its sockets, its end.

Everything that the process shares with this one is handed over as open files: RAM and the stub are
anonymous memory, console, bell and interrupt line are socket pairs. So there is nothing to clean up,
and the kernel ends the emulator when this process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import IO, Final

import attrs

from mediator.live.mailbox import MAX_VCPUS

PROGRAM: Final = "qemu-system-aarch64"
PACKAGE: Final = "qemu-system-arm"
"""The Debian package with the program."""
_PR_SET_PDEATHSIG: Final = 1
DUMP_SECONDS: Final = 30
"""What the emulator may take to write its device tree; it needs a tenth of a second."""

SEMIHOSTING: Final = "semihosting"
"""Bell by semihosting: a waiting vCPU sleeps. Guest *kernel* code can reach files of this user."""
POLLING: Final = "polling"
"""No bell: both sides look all the time. Fast on an idle machine, and nothing of the host is reachable."""
UART: Final = "uart"
"""Bell by a UART of the secure side, with the stub at EL3. Nothing of the host is reachable; a waiting
vCPU spins. Only SMC: there is no EL2 that an HVC could reach."""
BELLS: Final = (SEMIHOSTING, UART, POLLING)


class QemuError(Exception):
    """The emulator is missing or did not do what it should; the message says what."""


@attrs.frozen(kw_only=True)
class BoardSettings:
    """The emulated board. ``ram``: bytes, whole MiB. ``bell``: how a vCPU says that it waits."""

    ram: int = attrs.field(default=256 << 20)
    vcpus: int = attrs.field(default=1)
    cpu: str = "cortex-a57"
    bell: str = attrs.field(default=SEMIHOSTING)

    @ram.validator
    def _whole(self, _attribute: attrs.Attribute[int], value: int) -> None:
        if value % (1 << 20) or not 64 << 20 <= value <= 3 << 30:
            raise ValueError(f"ram: {value} bytes are not whole MiB between 64 MiB and 3 GiB")

    @vcpus.validator
    def _few(self, _attribute: attrs.Attribute[int], value: int) -> None:
        if not 1 <= value <= MAX_VCPUS:
            raise ValueError(f"vcpus: {value} is not 1 to {MAX_VCPUS}")

    @bell.validator
    def _known(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in BELLS:
            raise ValueError(f"bell: {value!r} is not one of {', '.join(BELLS)}")


def at_el3(board: BoardSettings) -> bool:
    """Whether the board has EL3 and our stub there, instead of EL2."""
    return board.bell == UART


def find_program() -> str | None:
    """Path of the emulator, ``None`` if it is not installed."""
    return shutil.which(PROGRAM)


def machine_arguments(board: BoardSettings) -> list[str]:
    """Options that decide what the board looks like: the same for its device tree and for a run."""
    return [
        "-machine",
        # acpi=off: with firmware and ACPI the board has another GPIO than the dumped tree says.
        f"virt,gic-version=3,{'secure' if at_el3(board) else 'virtualization'}=on,"
        "memory-backend=ram,dtb-randomness=off,acpi=off",
        *("-cpu", board.cpu, "-smp", str(board.vcpus), "-m", f"{board.ram >> 20}M"),
        *("-accel", "tcg", "-nodefaults", "-display", "none", "-nic", "none", "-no-reboot"),
    ]


class _Dump:
    """The emulator, writing its device tree for a board."""

    def __init__(self, board: BoardSettings) -> None:
        program = find_program()
        if program is None:
            raise QemuError(f"{PROGRAM} is not installed (Debian package {PACKAGE})")
        _libc()
        self._folder = tempfile.TemporaryDirectory(prefix="optee-live-")
        self._path = Path(self._folder.name) / "board.dtb"
        arguments = machine_arguments(board)
        arguments[1] += f",dumpdtb={self._path}"
        backend = f"memory-backend-ram,id=ram,size={board.ram}"
        self._process = subprocess.Popen(
            [program, *arguments, "-object", backend],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=partial(_die_with, os.getpid()),
        )

    def read(self) -> bytes:
        """Wait for its end; the tree."""
        with self._folder:
            try:
                _, complaint = self._process.communicate(timeout=DUMP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                _, complaint = self._process.communicate()
            if not self._path.is_file():
                raise QemuError(f"no device tree: {complaint.decode('utf-8', 'replace').strip()}")
            return self._path.read_bytes()


@cache
def begin_device_tree(board: BoardSettings) -> _Dump:
    """Let the emulator begin with :func:`device_tree`: it takes a tenth of a second."""
    return _Dump(board)


@cache
def device_tree(board: BoardSettings) -> bytes:
    """The device tree that the emulator makes for this board."""
    return begin_device_tree(board).read()


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> None:
    """Between fork and exec: the kernel kills the emulator when the thread that started it ends."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that could be asked for
        os._exit(1)
    os.setpgid(0, 0)


class Memory:
    """RAM of a guest that this process and the emulator share."""

    def __init__(self, size: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise QemuError("live guests need Linux (memfd_create)")
        self.fd = os.memfd_create("optee-live-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Let go of the file; the mapping lives until the last view of it is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _anonymous(name: str, data: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd


class Emulator:
    """A running emulator. ``console``, ``bell`` and ``interrupts`` are our ends of its sockets."""

    def __init__(self, board: BoardSettings, memory: Memory, stub: bytes) -> None:
        program = find_program()
        if program is None:
            raise QemuError(f"{PROGRAM} is not installed (Debian package {PACKAGE})")
        self.console, console = socket.socketpair()
        self.bell, bell = socket.socketpair()
        self.interrupts, interrupts = socket.socketpair()
        firmware = _anonymous("optee-live-stub", stub)
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        arguments = [
            program,
            *machine_arguments(board),
            "-object",
            f"memory-backend-file,id=ram,size={board.ram},mem-path=/proc/self/fd/{memory.fd},share=on",
            *("-bios", f"/proc/self/fd/{firmware}"),
            *("-chardev", f"socket,id=console,fd={console.fileno()}", "-serial", "chardev:console"),
            # The identifier must be this very word, else QEMU 7.2 aborts.
            *("-chardev", f"socket,id=qtest,fd={interrupts.fileno()}", "-qtest", "chardev:qtest"),
            *("-qtest-log", "none"),
        ]
        inherited = [memory.fd, firmware, console.fileno(), interrupts.fileno()]
        if board.bell != POLLING:
            inherited.append(bell.fileno())
            arguments += ["-chardev", f"socket,id=bell,fd={bell.fileno()}"]
        if board.bell == UART:
            arguments += ["-serial", "chardev:bell"]
        elif board.bell == SEMIHOSTING:
            arguments += ["-semihosting-config", "enable=on,target=native,chardev=bell"]
        _libc()  # loaded before the fork: nothing but calls happens in the child
        try:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=self.errors,
                stderr=self.errors,
                pass_fds=inherited,
                preexec_fn=partial(_die_with, os.getpid()),
            )
        except OSError as error:
            self._close_sockets()
            self.errors.close()
            raise QemuError(f"{program}: {error}") from None
        finally:
            os.close(firmware)
            for theirs in (console, bell, interrupts):
                theirs.close()
        for ours in (self.console, self.bell, self.interrupts):
            ours.setblocking(False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def complaint(self) -> str:
        """What the emulator wrote to its standard error."""
        if self.errors.closed:
            return ""
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace").strip()

    def end(self) -> int:
        """Kill the process if it runs, and reap it; its return code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        code = self.process.wait()
        self._close_sockets()
        self.errors.close()
        return code

    def _close_sockets(self) -> None:
        for ours in (self.console, self.bell, self.interrupts):
            ours.close()
