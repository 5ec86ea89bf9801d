# SPDX-License-Identifier: BSD-2-Clause
"""What an app gives up before it says HELLO: descriptors, privileges, resources, system calls.

The hypervisor looks from outside (``/proc``) whether it was done before it sends the first byte of a
guest. The filter is a seccomp program in classic BPF (Linux ``seccomp(2)``, ``linux/filter.h``): it
knows the few system calls that an interpreter needs to compute and to speak on descriptors 0 and 1, and
answers EPERM to all others, so that a try is an error of the app and no death without a word.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_MODE_FILTER: Final = 2
SECCOMP_RET_ALLOW: Final = 0x7FFF_0000
SECCOMP_RET_ERRNO: Final = 0x0005_0000
SECCOMP_RET_KILL_PROCESS: Final = 0x8000_0000
SIGKILL: Final = 9
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
KEPT_BYTES: Final = 32 << 20
"""The largest that glibc takes for M_MMAP_THRESHOLD; some lists of 1 GiB, each 2 MiB, at once."""
EPERM: Final = 1
MAP_ANONYMOUS: Final = 0x20
PROT_EXEC: Final = 4

AUDIT_ARCHES: Final[Mapping[str, int]] = MappingProxyType(
    {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
)
"""AUDIT_ARCH_* of ``linux/audit.h``, by machine name."""

X32_BIT: Final = 0x4000_0000
"""__X32_SYSCALL_BIT: another table under the same architecture, refused as a whole."""

ON_CHANNEL: Final[Mapping[str, tuple[tuple[int, int], ...]]] = MappingProxyType(
    {
        "x86_64": ((0, 0), (1, 1), (19, 0), (20, 1)),
        "aarch64": ((63, 0), (64, 1), (65, 0), (66, 1)),
    }
)
"""read, write, readv, writev, each with the only descriptor that it may be used on."""
ANONYMOUS: Final[Mapping[str, int]] = MappingProxyType({"x86_64": 9, "aarch64": 222})
"""mmap: anonymous memory that cannot be executed."""
PROTECT: Final[Mapping[str, int]] = MappingProxyType({"x86_64": 10, "aarch64": 226})
"""mprotect: not to executable."""
FREE: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        # munmap brk rt_sigaction rt_sigprocmask rt_sigreturn sched_yield mremap madvise exit
        # sigaltstack futex restart_syscall clock_gettime exit_group
        "x86_64": (11, 12, 13, 14, 15, 24, 25, 28, 60, 131, 202, 219, 228, 231),
        "aarch64": (215, 214, 134, 135, 139, 124, 216, 233, 93, 132, 98, 128, 113, 94),
    }
)
"""System calls that reach nothing outside of the process."""

# Offsets in struct seccomp_data, little-endian.
_NR: Final = 0
_ARCH: Final = 4
_ARGS: Final = 16

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

Instruction = tuple[int, int, int, int]


class NotIsolated(RuntimeError):
    """A layer of isolation cannot be had on this machine; the message says which and why."""


def single_threaded() -> None:
    """Keep numerical libraries from starting threads. Before they are loaded."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def keep_memory() -> None:
    """Let the C library keep what was freed: a long list is worked on in fresh pages otherwise, each
    of which costs a fault. How much it can be is the affair of the limit of the address space."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc has it; others keep what they like
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)


def program(machine: str) -> tuple[Instruction, ...]:
    """The filter for a machine: instructions (code, jump if true, jump if false, operand).

    ``KeyError`` for a machine whose system calls are not known.
    """
    allow: Instruction = (_RETURN, 0, 0, SECCOMP_RET_ALLOW)
    refuse: Instruction = (_RETURN, 0, 0, SECCOMP_RET_ERRNO | EPERM)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, AUDIT_ARCHES[machine]),
        (_RETURN, 0, 0, SECCOMP_RET_KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
        (_AT_LEAST, 0, 1, X32_BIT),
        refuse,
    ]
    for number, descriptor in ON_CHANNEL[machine]:
        # Of the argument the upper half, too.
        code += [
            (_EQUAL, 0, 6, number),
            (_LOAD, 0, 0, _ARGS),
            (_EQUAL, 0, 3, descriptor),
            (_LOAD, 0, 0, _ARGS + 4),
            (_EQUAL, 0, 1, 0),
            allow,
            refuse,
        ]
    code += [
        (_EQUAL, 0, 6, ANONYMOUS[machine]),
        (_LOAD, 0, 0, _ARGS + 2 * 8),
        (_ANY_BIT, 3, 0, PROT_EXEC),
        (_LOAD, 0, 0, _ARGS + 3 * 8),
        (_ANY_BIT, 0, 1, MAP_ANONYMOUS),
        allow,
        refuse,
        (_EQUAL, 0, 4, PROTECT[machine]),
        (_LOAD, 0, 0, _ARGS + 2 * 8),
        (_ANY_BIT, 1, 0, PROT_EXEC),
        allow,
        refuse,
    ]
    for number in FREE[machine]:
        code += [(_EQUAL, 0, 1, number), allow]
    code.append(refuse)
    return tuple(code)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def isolate() -> None:
    """Close descriptor 2, limit resources, give up privileges, install the filter.

    From here on the process ends with the thread that started it.

    Descriptors 0 and 1 stay. Everything that the app imports must have been imported. Raises
    :class:`NotIsolated` where a layer cannot be had.
    """
    machine = os.uname().machine
    if machine not in AUDIT_ARCHES:
        raise NotIsolated(f"seccomp: the system calls of {machine!r} are not known")
    _close_descriptors()
    _limit_resources()
    libc = ctypes.CDLL(None, use_errno=True)
    # An app that neither reads nor writes would outlive its hypervisor. Was that gone before this
    # call, nobody reads HELLO: the write fails.
    if libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0):
        raise NotIsolated(f"signal at the parent's death: errno {ctypes.get_errno()}")
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise NotIsolated(f"no new privileges: errno {ctypes.get_errno()}")
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program(machine))
    buffer = ctypes.create_string_buffer(packed, len(packed))
    filters = _Program(len(packed) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filters), 0, 0):
        raise NotIsolated(f"seccomp: errno {ctypes.get_errno()}")


def _close_descriptors() -> None:
    # The interpreter's own streams first: nothing may be flushed into the arena at the end.
    import sys

    sys.stdin = sys.stdout = sys.stderr = None
    sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None  # type: ignore[misc]
    os.closerange(2, 64)


def _limit_resources() -> None:
    import resource

    for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC"):
        resource.setrlimit(getattr(resource, name), (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (2, 2))
