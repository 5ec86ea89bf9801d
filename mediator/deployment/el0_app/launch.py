# SPDX-License-Identifier: BSD-2-Clause
"""Starting an app: a fresh program with its ends of a channel and the arena, and nothing else.

The image is hashed before it is started. The process gets descriptors 0 and 1 (the channel: two pipes)
and 2 (the arena, which it maps and closes), an empty environment, and limits. It isolates itself before it says
HELLO; what it obtained is read from ``/proc`` here, not believed, before WELCOME is sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterable
from mmap import MADV_REMOVE, mmap
from pathlib import Path
from typing import Final, Protocol

import attrs

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER
from mediator.deployment.el0_app.channel import AppGone, Link, PipeLink
from mediator.deployment.el0_app.manifest import Manifest, command, image_hash, is_python
from mediator.host import PAGE_SIZE

LAYERS: Final = (
    "image",
    "descriptors",
    "environment",
    "no_new_privs",
    "seccomp",
    "limits",
    "single_thread",
)
"""The layers of isolation, in the order in which they are reported."""

_F_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW (Linux ``fcntl.h``)."""


class LaunchError(RuntimeError):
    """An app cannot be started; the message says which and why."""


class UnknownAbiVersion(LaunchError):
    """The app speaks a major version of the app ABI that this hypervisor does not know."""


class NotIsolated(LaunchError):
    """A layer of isolation that was required is missing."""


@attrs.frozen
class Isolation:
    """What an app's process was seen to be. ``layers``: name → whether it is there."""

    layers: dict[str, bool]
    pid: int
    image: str
    cpus: str

    @property
    def missing(self) -> tuple[str, ...]:
        """The layers that are not there."""
        return tuple(name for name in LAYERS if not self.layers[name])

    def as_json(self) -> dict[str, object]:
        """For ``--json``."""
        return {"layers": self.layers, "complete": not self.missing, "image_sha256": self.image}


class Arena:
    """Memory that the hypervisor shares with one app: a sealed memory file, mapped here."""

    __slots__ = ("_map", "fd", "view")

    def __init__(self, pages: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise LaunchError("an EL0 app needs Linux (memfd, seccomp)")
        size = pages * PAGE_SIZE
        self.fd = os.memfd_create("arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)
        self._map = mmap(self.fd, size)
        self.view = memoryview(self._map)

    def wipe(self) -> None:
        """Forget its contents, and give their memory back: another app is to have it."""
        self._map.madvise(MADV_REMOVE)

    def close(self) -> None:
        """Close the file. The mapping stays as long as pages of it are in use."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@attrs.define(eq=False)
class Process:
    """A running app that has said HELLO."""

    child: subprocess.Popen[bytes]
    link: PipeLink
    isolation: Isolation
    capabilities: int

    def end(self) -> None:
        """Kill it and wait for it."""
        self.link.close()
        with contextlib.suppress(OSError):
            self.child.kill()
        self.child.wait()

    def move(self, cpu: int) -> None:
        """Let it run on this processor only."""
        os.sched_setaffinity(self.child.pid, {cpu})


class Running(Protocol):
    """What a deployment needs of a :class:`Process`."""

    @property
    def link(self) -> Link:
        """The way to the app."""

    @property
    def isolation(self) -> Isolation:
        """What it was seen to be."""

    @property
    def capabilities(self) -> int:
        """Those of HELLO."""

    def end(self) -> None:
        """See :meth:`Process.end`."""

    def move(self, cpu: int) -> None:
        """See :meth:`Process.move`."""


class Launcher(Protocol):
    """:func:`launch`, or what stands in for it."""

    def __call__(
        self,
        manifest: Manifest,
        arena: Arena,
        settings: bytes,
        offers: int,
        *,
        cpu: int | None,
        require_isolation: bool,
    ) -> Running:
        """Start an app and greet it. Raises :class:`LaunchError`."""


def current_cpu() -> int | None:
    """The processor that this thread runs on, ``None`` if it cannot be told."""
    with contextlib.suppress(AttributeError, OSError):
        cpu = int(ctypes.CDLL(None).sched_getcpu())
        if cpu >= 0:
            return cpu
    return None


def launch(
    manifest: Manifest,
    arena: Arena,
    settings: bytes,
    offers: int,
    *,
    cpu: int | None = None,
    require_isolation: bool = False,
    closing: Callable[[Process], None] | None = None,
) -> Process:
    """Start the app of ``manifest`` and greet it. Raises :class:`LaunchError`.

    ``settings``: payload of WELCOME. ``cpu``: the only processor it may run on. The app ends with the
    thread that calls this.
    """
    if signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL:
        raise LaunchError(
            "SIGPIPE is not ignored: the death of an app would be that of its hypervisor"
        )
    image = _checked_image(manifest)
    allowed = os.sched_getaffinity(0)
    their_source, our_sink = os.pipe()
    our_source, their_sink = os.pipe()
    link = PipeLink(our_source, our_sink, manifest.silence_ms)
    try:
        # A numerical library starts a thread for each processor that it sees when it is loaded.
        os.sched_setaffinity(0, {min(allowed) if cpu is None else cpu})
        try:
            child = _spawn(manifest, their_source, their_sink, arena.fd)
        finally:
            os.sched_setaffinity(0, allowed)
    except BaseException:
        link.close()
        raise
    finally:
        # With a copy of theirs here, the end of the app would not end the channel.
        os.close(their_source)
        os.close(their_sink)
    process = Process(child, link, _NOTHING, 0)
    try:
        _limit(child.pid, manifest)
        _greet(process, manifest, image, settings, offers, require_isolation)
        if cpu is None:
            os.sched_setaffinity(child.pid, allowed)
    except BaseException:
        process.end()
        raise
    return process


_NOTHING: Final = Isolation(dict.fromkeys(LAYERS, False), 0, "", "")


def _checked_image(manifest: Manifest) -> str:
    try:
        found = image_hash(manifest)
    except OSError as error:
        raise LaunchError(f"app {manifest.name!r}: its image cannot be read: {error}") from error
    if manifest.sha256 is not None and found != manifest.sha256:
        raise LaunchError(
            f"app {manifest.name!r}: its image has SHA-256 {found}, not {manifest.sha256}"
        )
    return found


def _spawn(manifest: Manifest, source: int, sink: int, arena: int) -> subprocess.Popen[bytes]:
    """Start the program: always by exec, never a copy of this process."""
    arguments = command(manifest)
    copy = -1
    executable = arguments[0]
    if not is_python(manifest):
        # What is started is a copy that nobody can change any more, and of which the hash is checked.
        copy = _sealed_copy(manifest, executable)
        executable = f"/proc/{os.getpid()}/fd/{copy}"
    try:
        return subprocess.Popen(
            arguments,
            executable=executable,
            stdin=source,
            stdout=sink,
            stderr=arena,
            close_fds=True,
            env={},
            cwd="/",
        )
    except OSError as error:
        raise LaunchError(f"app {manifest.name!r}: it cannot be started: {error}") from error
    finally:
        if copy >= 0:
            os.close(copy)


def _sealed_copy(manifest: Manifest, path: str) -> int:
    data = Path(path).read_bytes()
    if manifest.sha256 is not None and hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise LaunchError(f"app {manifest.name!r}: its image has changed while it was started")
    copy = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(copy, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(copy, _F_ADD_SEALS, _SEALS | 0x8)
    return copy


def _limit(pid: int, manifest: Manifest) -> None:
    """Limits, from outside: also for a program that does not care."""
    try:
        for kind, value in limits(manifest):
            resource.prlimit(pid, kind, (value, value))
    except ProcessLookupError as error:
        raise LaunchError(f"app {manifest.name!r}: it ended at once") from error
    except OSError as error:
        raise LaunchError(f"app {manifest.name!r}: it cannot be limited: {error}") from error


def limits(manifest: Manifest) -> Iterable[tuple[int, int]]:
    """``(kind, value)`` of the resource limits that hold from the first instruction."""
    yield resource.RLIMIT_AS, manifest.memory_bytes
    yield resource.RLIMIT_CPU, manifest.cpu_seconds
    yield resource.RLIMIT_CORE, 0
    yield resource.RLIMIT_FSIZE, 0
    yield resource.RLIMIT_NPROC, 0


def _greet(
    process: Process,
    manifest: Manifest,
    image: str,
    settings: bytes,
    offers: int,
    require_isolation: bool,
) -> None:
    link = process.link
    try:
        header, payload = link.hello()
    except AppGone as error:
        code = process.child.poll()
        raise LaunchError(f"app {manifest.name!r} said no HELLO: {error}, exit {code}") from error
    kind, number, flags, entry, _, status, major, minor, capabilities, *rest = header
    if kind != abi.HELLO or number or flags or entry or status or any(rest):
        raise LaunchError(f"app {manifest.name!r}: its first message is no HELLO")
    if major != abi.MAJOR:
        known = f"only {abi.MAJOR}.x"
        reason = f"app ABI {major}.{minor} is not known, {known}"
        _refuse(link, abi.UNKNOWN_VERSION, reason)
        raise UnknownAbiVersion(f"app {manifest.name!r}: {reason}")
    name = payload.decode("utf-8", "replace")
    if len(payload) > abi.MAX_NAME or name != manifest.name:
        _refuse(link, abi.NOT_TRUSTED, f"the manifest is for {manifest.name!r}")
        raise LaunchError(f"app {manifest.name!r} calls itself {name[: abi.MAX_NAME]!r}")
    process.isolation = observe(process.child.pid, manifest, image, link.pipes())
    process.capabilities = capabilities
    if require_isolation and process.isolation.missing:
        missing = ", ".join(process.isolation.missing)
        _refuse(link, abi.NOT_ISOLATED, f"missing: {missing}")
        raise NotIsolated(f"app {manifest.name!r} is not isolated, missing: {missing}")
    arena = manifest.arena_pages * PAGE_SIZE
    words = (abi.MAJOR, abi.MINOR, offers, arena, abi.MAX_ENTRIES, 0, 0, 0)
    try:
        link.send(HEADER.pack(abi.WELCOME, 0, 0, 0, len(settings), 0, *words, 0) + settings)
    except AppGone as error:
        raise LaunchError(f"app {manifest.name!r} ended before WELCOME: {error}") from error


def _refuse(link: PipeLink, status: int, reason: str) -> None:
    text = reason.encode()
    words = (abi.MAJOR, abi.MINOR, 0, 0, 0, 0, 0, 0)
    with contextlib.suppress(AppGone):
        link.send(HEADER.pack(abi.WELCOME, 0, 0, 0, len(text), status, *words, 0) + text)


# --- what is seen from outside --------------------------------------------------------------------


def observe(pid: int, manifest: Manifest, image: str, channel: tuple[str, str]) -> Isolation:
    """The isolation of a process as ``/proc`` shows it.

    ``channel``: what its descriptors 0 and 1 must be, as ``/proc`` names them.
    """
    place = Path("/proc") / str(pid)
    status = _fields(place / "status")
    layers = {
        "image": manifest.sha256 is not None,
        "descriptors": _descriptors(place) == {"0": channel[0], "1": channel[1]},
        "environment": _read(place / "environ") == b"",
        "no_new_privs": status.get("NoNewPrivs") == "1",
        "seccomp": status.get("Seccomp") == "2",
        "limits": _limits_hold(pid, manifest),
        "single_thread": status.get("Threads") == "1",
    }
    return Isolation(layers, pid, image, status.get("Cpus_allowed_list", ""))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _fields(path: Path) -> dict[str, str]:
    lines = (_read(path) or b"").decode("utf-8", "replace").splitlines()
    pairs = [line.partition(":") for line in lines]
    return {name: value.strip() for name, _, value in pairs}


def _descriptors(place: Path) -> dict[str, str] | None:
    try:
        return {name: os.readlink(place / "fd" / name) for name in os.listdir(place / "fd")}
    except OSError:
        return None


def _limits_hold(pid: int, manifest: Manifest) -> bool:
    try:
        return all(
            resource.prlimit(pid, kind) == (value, value) for kind, value in limits(manifest)
        )
    except OSError:
        return False
