# SPDX-License-Identifier: BSD-2-Clause
"""The hypervisor's side of the app ABI, as small and as strict as it can be: what the client is tested with.

The services come from any :class:`mediator.host.Host`. Shadow pages of the host are copied to the
arena and back around each entry of the TEE, which is when both sides can see a difference.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

from mediator.deployment import app_abi as abi
from mediator.deployment.face import (
    DONE,
    NOT_MINE,
    PREEMPTED,
    REFUSED,
    Completed,
    Done,
    NotMine,
    Preempted,
    Refused,
)
from mediator.host import PAGE_SIZE, Host, Shadow
from mediator.optee.lifecycle import Probe
from mediator.optee.syscalls import Syscall
from specs.app_abi import app_abi as definition
from tests.app_c.build import LOG_FD

ARENA_PAGES = 1024
TIMEOUT = 20
"""Seconds that a test waits for an app that should have spoken."""

SPECS = {call.number: call for call in definition().syscalls}

Reply = tuple[int, tuple[int, ...], bytes]
"""Status, results, payload."""


class Wrong(AssertionError):
    """The app broke the ABI."""


class Gone(Exception):
    """The app ended."""


class AppProcess:
    """A program with a channel and an arena, and nothing said yet. ``stderr``: what it wrote there."""

    def __init__(self, program: Path, stderr: Path | None = None) -> None:
        self.arena_fd = os.memfd_create("arena", os.MFD_CLOEXEC)
        os.ftruncate(self.arena_fd, ARENA_PAGES * PAGE_SIZE)
        self.arena = memoryview(mmap(self.arena_fd, ARENA_PAGES * PAGE_SIZE))
        source, self._sink = os.pipe()
        self._source, sink = os.pipe()
        os.set_blocking(self._sink, False)
        log = os.open(stderr or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.dup2(log, LOG_FD)
            self.child = subprocess.Popen(
                [str(program)],
                stdin=source,
                stdout=sink,
                stderr=self.arena_fd,
                env={},
                close_fds=True,
                pass_fds=(LOG_FD,),
            )
        finally:
            for fd in (source, sink, log, LOG_FD):
                os.close(fd)

    def send(self, data: bytes) -> None:
        """Bytes to the app. Raises :class:`Gone` if it does not listen any more."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._sink, rest) :]
            except BlockingIOError:
                if not select.select([], [self._sink], [], TIMEOUT)[1]:
                    raise TimeoutError("the app does not read") from None
            except OSError as error:
                raise Gone("not listening") from error

    def read(self, length: int) -> bytes:
        """Exactly ``length`` bytes from the app."""
        parts = b""
        while len(parts) < length:
            if not select.select([self._source], [], [], TIMEOUT)[0]:
                raise TimeoutError("the app is silent")
            part = os.read(self._source, length - len(parts))
            if not part:
                raise Gone(f"{len(parts)} of {length} bytes")
            parts += part
        return parts

    def message(self) -> tuple[tuple[int, ...], bytes]:
        """Header and payload of the app's next message."""
        header = abi.HEADER.unpack(self.read(abi.HEADER_SIZE))
        if header[4] > abi.MAX_PAYLOAD or header[-1]:
            raise Wrong(f"header {header}")
        return header, self.read(header[4])

    def end(self) -> int:
        """Close the channel; the exit code of the program."""
        for fd in (self._sink, self._source):
            os.close(fd)
        code = self.child.wait(TIMEOUT)
        os.close(self.arena_fd)
        return code

    def kill(self) -> None:
        """Whatever it does."""
        if self.child.poll() is None:
            self.child.kill()
        self.end()


def pack(
    kind: int,
    number: int = 0,
    entry: int = 0,
    status: int = 0,
    args: tuple[int, ...] = (),
    payload: bytes = b"",
    flags: int = 0,
) -> bytes:
    """A message of the hypervisor."""
    words = (*args, *(0,) * (8 - len(args)))
    return abi.HEADER.pack(kind, number, flags, entry, len(payload), status, *words, 0) + payload


class Peer:
    """An app behind the faces of :class:`mediator.deployment.in_hypervisor.InHypervisor`."""

    def __init__(
        self,
        host: Host,
        program: Path,
        *,
        offers: int = abi.OFFER_POSTING,
        stderr: Path | None = None,
        client_base: int = 1,
    ) -> None:
        self.host = host
        self.process = AppProcess(program, stderr)
        self.calls: list[tuple[int, bool]] = []
        self.hooks: list[tuple[int, int, int]] = []
        self.turns = 0
        self.before_reply: Callable[[int], None] | None = None
        self._client_base = client_base
        self._entry = 0
        self._shadows: dict[int, tuple[Shadow, int]] = {}
        self._slots = list(range(abi.WINDOW_PAGES, ARENA_PAGES))[::-1]
        header, self.name = self.process.message()
        kind, number, flags, entry, _, status, major, _, capabilities, *rest = header
        if (kind, number, flags, entry, status, major) != (abi.HELLO, 0, 0, 0, 0, abi.MAJOR):
            raise Wrong(f"no HELLO: {header}")
        if any(rest):
            raise Wrong(f"HELLO: {rest}")
        self.capabilities = capabilities
        welcome = (abi.MAJOR, abi.MINOR, offers, ARENA_PAGES * PAGE_SIZE, abi.MAX_ENTRIES)
        self.process.send(pack(abi.WELCOME, args=welcome, payload=b"{}"))
        outcome, _, _ = self.enter(abi.ENTRY_INIT, (abi.INIT_START, 0))
        assert outcome == abi.OUTCOME_DONE

    # --- the faces --------------------------------------------------------------------------

    def probe(self) -> Probe:
        outcome, args, payload = self.enter(abi.ENTRY_INIT, (abi.INIT_PROBE, 0))
        found = outcome == abi.OUTCOME_DONE
        return Probe(found, args[0] if found else 0, payload.decode())

    def create_guest(self, guest: int) -> Done | Refused:
        outcome, _, _ = self.enter(abi.ENTRY_GUEST_CREATED, (guest, guest + self._client_base))
        return DONE if outcome == abi.OUTCOME_DONE else REFUSED

    def destroy_guest(self, guest: int) -> Done | Preempted:
        outcome, _, _ = self.enter(abi.ENTRY_GUEST_DESTROYED, (guest,))
        return DONE if outcome == abi.OUTCOME_DONE else PREEMPTED

    def handle(self, guest: int, vcpu: int, regs: tuple[int, ...]) -> Completed | NotMine:
        outcome, args, _ = self.enter(
            abi.ENTRY_HANDLE_SMC, (guest, vcpu), abi.REGISTERS.pack(*regs)
        )
        if outcome == abi.OUTCOME_NOT_MINE:
            return NOT_MINE
        assert outcome == abi.OUTCOME_DONE, outcome
        return Completed(args)

    async def handle_regs(
        self, guest: int, vcpu: int, regs: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        out = self.handle(guest, vcpu, regs)
        return out.regs if isinstance(out, Completed) else None

    async def guest_created(self, guest: int) -> bool:
        return self.create_guest(guest) == DONE

    async def guest_destroyed(self, guest: int) -> bool:
        return self.destroy_guest(guest) == DONE

    # --- the conversation -------------------------------------------------------------------

    def enter(
        self, number: int, args: tuple[int, ...], payload: bytes = b""
    ) -> tuple[int, tuple[int, ...], bytes]:
        """One entry: outcome, results, payload."""
        self._entry += 1
        name = self._entry * 7 & 0xFFFF_FFFF
        self.process.send(pack(abi.ENTRY, number, name, args=args, payload=payload))
        self.turns += 1
        while True:
            header, data = self.process.message()
            kind, number, flags, entry, _, status, *words, _ = header
            if kind != abi.SYSCALL or entry != name or flags & ~abi.FLAG_POSTED:
                raise Wrong(f"in entry {name}: {header}")
            if number == Syscall.RETURN:
                if flags:
                    raise Wrong("RETURN was posted")
                return status, tuple(words), data
            if number == Syscall.PANIC:
                raise Gone(data.decode())
            spec = SPECS.get(number)
            posted = bool(flags)
            if spec is None or status or (posted and not spec.posted):
                raise Wrong(f"syscall {header}")
            if any(words[len(spec.args) :]):
                raise Wrong(f"{spec.name}: an argument too many in {words}")
            self.calls.append((number, posted))
            reply = getattr(self, f"_{spec.name.lower()}")(words[: len(spec.args)], data)
            if posted:
                if reply[0] != abi.OK:
                    raise Wrong(f"{spec.name} was refused: {reply}")
                continue
            if self.before_reply is not None:
                self.before_reply(number)
            code, results, back = reply
            self.process.send(pack(abi.RESULT, number, name, code, results, back))
            self.turns += 1

    def end(self) -> int:
        """Close the channel; the exit code of the app."""
        return self.process.end()

    # --- services ---------------------------------------------------------------------------

    def _log(self, args: list[int], data: bytes) -> Reply:
        self.host.log(args[0], data.decode())
        return abi.OK, (), b""

    def _read_guest(self, args: list[int], data: bytes) -> Reply:
        found = self.host.read_guest(args[0], args[1], args[2])
        return (abi.NO, (), b"") if found is None else (abi.OK, (), found)

    def _write_guest(self, args: list[int], data: bytes) -> Reply:
        segments = abi.unpack_segments(args[2], data, PAGE_SIZE)
        assert segments is not None
        done = self.host.write_guest(args[0], args[1], segments)
        return (abi.OK if done else abi.NO), (), b""

    def _read_page_list(self, args: list[int], data: bytes) -> Reply:
        found = self.host.read_page_list(args[0], args[1], args[2])
        return (abi.NO, (), b"") if found is None else (abi.OK, (found[1],), found[0])

    def _pin_pages(self, args: list[int], data: bytes) -> Reply:
        found = self.host.pin_pages(args[0], data)
        return (abi.NO, (), b"") if found is None else (abi.OK, (), found)

    def _unpin_pages(self, args: list[int], data: bytes) -> Reply:
        self.host.unpin_pages(args[0], data)
        return abi.OK, (), b""

    def _read_pinned(self, args: list[int], data: bytes) -> Reply:
        return abi.OK, (), self.host.read_pinned(args[0], args[1], args[2])

    def _write_pinned(self, args: list[int], data: bytes) -> Reply:
        segments = abi.unpack_segments(args[2], data, PAGE_SIZE)
        assert segments is not None
        self.host.write_pinned(args[0], args[1], segments)
        return abi.OK, (), b""

    def _alloc_shadow(self, args: list[int], data: bytes) -> Reply:
        assert args[0] == 1, "the arena here has single pages only"
        shadow = self.host.alloc_shadow(1)
        if shadow is None:
            return abi.NO, (), b""
        offset = self._slots.pop() * PAGE_SIZE
        self.process.arena[offset : offset + PAGE_SIZE] = shadow.mem
        self._shadows[shadow.pa] = shadow, offset
        return abi.OK, (offset,), shadow.pages

    def _free_shadow(self, args: list[int], data: bytes) -> Reply:
        shadow, offset = self._shadows.pop(int.from_bytes(data[:8], "little"))
        assert data == shadow.pages
        self._slots.append(offset // PAGE_SIZE)
        self.host.free_shadow(shadow)
        return abi.OK, (), b""

    def _smc(self, args: list[int], data: bytes) -> Reply:
        arena = self.process.arena
        for shadow, offset in self._shadows.values():
            shadow.mem[:] = arena[offset : offset + PAGE_SIZE]
        answer = self.host.smc(*args)
        for shadow, offset in self._shadows.values():
            arena[offset : offset + PAGE_SIZE] = shadow.mem
        return abi.OK, answer, b""

    def _should_preempt(self, args: list[int], data: bytes) -> Reply:
        return abi.OK, (int(self.host.should_preempt()),), b""

    def _quarantine(self, args: list[int], data: bytes) -> Reply:
        self.host.quarantine(args[0], args[1])
        return abi.OK, (), b""

    def _register_hook(self, args: list[int], data: bytes) -> Reply:
        self.hooks.append((args[0], args[1], args[2]))
        return abi.OK, (), b""

    def _now(self, args: list[int], data: bytes) -> Reply:
        return abi.OK, (self.host.now(),), b""

    def _inject_virq(self, args: list[int], data: bytes) -> Reply:
        self.host.inject_virq(args[0], args[1])
        return abi.OK, (), b""

    def _park_vcpu(self, args: list[int], data: bytes) -> Reply:
        self.host.park_vcpu(args[0], args[1], args[2])
        return abi.OK, (), b""

    def _wake_vcpu(self, args: list[int], data: bytes) -> Reply:
        self.host.wake_vcpu(args[0], args[1])
        return abi.OK, (), b""

    def _set_timer(self, args: list[int], data: bytes) -> Reply:
        self.host.set_timer(None if args[1] else args[0])
        return abi.OK, (), b""

    def _map_shadow(self, args: list[int], data: bytes) -> Reply:
        return abi.OK, (self._shadows[struct.unpack_from("<Q", data)[0]][1],), b""

    def _trace(self, args: list[int], data: bytes) -> Reply:
        return abi.OK, (), b""
