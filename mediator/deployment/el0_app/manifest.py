# SPDX-License-Identifier: BSD-2-Clause
"""The manifest of an app: what it is, what it may use, what it gets.

A TOML file (keys: ``specs/app_abi``), or :func:`optee_manifest` for the mediator that comes with this
distribution. What is not listed is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

from mediator.deployment import app_abi as abi
from mediator.optee.syscalls import Syscall

FORMAT: Final = "optee-mediator-app-manifest"
VERSION: Final = 1
"""The newest version of the format that this reader knows; it accepts all earlier ones."""

ALL_GUESTS: Final = "all-guests"
PER_GUEST: Final = "per-guest"

ARENA_PAGES: Final = 8192
"""32 MiB: the lists of eight buffers of 1 GiB, or as many calls in flight as anybody has."""
MEMORY_BYTES: Final = 1 << 30
CPU_SECONDS: Final = 3600
PINNED_PAGES: Final = 2 << 20
SILENCE_MS: Final = 5000
"""Real time: far beyond any turn of a healthy app on a busy machine."""

SCRIPT: Final = b"#!"
PYTHON: Final = "python:"
"""Prefix of a program that is a module of this distribution."""

IMAGE_PARTS: Final = (
    "mediator/__init__.py",
    "mediator/host.py",
    "mediator/suspend.py",
    "mediator/app",
    "mediator/deployment/__init__.py",
    "mediator/deployment/app_abi.py",
    "mediator/optee",
    "smccc",
)
"""The image of a Python app: the sources that it runs. The interpreter and what is installed beside it
are the platform that it runs on."""

Ranges = tuple[tuple[int, int], ...]


class ManifestError(ValueError):
    """A manifest that cannot be used: file, key and reason."""

    def __init__(self, file: str, key: str, reason: str) -> None:
        super().__init__(": ".join(part for part in (file, key, reason) if part))
        self.file = file
        self.key = key
        self.reason = reason


@frozen(kw_only=True)
class Manifest:
    """What an app is and may do. Ranges are inclusive; see ``specs/app_abi`` for each key."""

    name: str
    program: str
    syscalls: frozenset[int]
    sha256: str | None = None
    forward: Ranges = ()
    smc_hooks: Ranges = ()
    mmio_hooks: Ranges = ()
    interrupt_hooks: Ranges = ()
    timer_hook: bool = False
    virqs: Ranges = ()
    devices: Ranges = ()
    streams: Ranges = ()
    instances: str = ALL_GUESTS
    arena_pages: int = ARENA_PAGES
    memory_bytes: int = MEMORY_BYTES
    cpu_seconds: int = CPU_SECONDS
    pinned_pages: int = PINNED_PAGES
    shadow_pages: int = ARENA_PAGES
    silence_ms: int = SILENCE_MS
    folder: Path = field(factory=Path, eq=False)
    """Where a relative program path starts."""


def within(ranges: Ranges, first: int, last: int) -> bool:
    """Whether one of ``ranges`` has all of ``first`` to ``last``."""
    return any(low <= first <= last <= high for low, high in ranges)


OPTEE_SYSCALLS: Final = frozenset(
    int(call)
    for call in Syscall
    if call
    not in (
        Syscall.MAP_GUEST_PAGE,
        Syscall.UNMAP_GUEST_PAGE,
        Syscall.MAP_DEVICE,
        Syscall.IOMMU,
        Syscall.SET_TIMER,
    )
)
TOS_RANGES: Final = ((0x3200_0000, 0x3FFF_FFFF), (0xB200_0000, 0xBFFF_FFFF))
"""Yielding and fast calls of a Trusted OS, 32-bit convention (Arm DEN 0028, table 6-1)."""
ALL_INTERRUPTS: Final = ((0, 1019),)


def optee_manifest(*, instances: str = ALL_GUESTS, arena_pages: int = ARENA_PAGES) -> Manifest:
    """The manifest of the mediator that comes with this distribution, with the hash of its image."""
    program = PYTHON + "mediator.app"
    return Manifest(
        name="optee-mediator",
        program=program,
        sha256=python_image_hash(),
        syscalls=OPTEE_SYSCALLS,
        forward=TOS_RANGES,
        smc_hooks=TOS_RANGES,
        interrupt_hooks=ALL_INTERRUPTS,
        virqs=ALL_INTERRUPTS,
        instances=instances,
        arena_pages=arena_pages,
        # The mediator's own limits end below it; whatever one guest does, the others have a quarter.
        shadow_pages=arena_pages * 3 // 4,
    )


# --- the image ------------------------------------------------------------------------------------


def is_python(manifest: Manifest) -> bool:
    """Whether the program is a module of this distribution."""
    return manifest.program.startswith(PYTHON)


def command(manifest: Manifest) -> tuple[str, ...]:
    """The arguments to start it with."""
    if is_python(manifest):
        return (sys.executable, "-I", "-m", manifest.program.removeprefix(PYTHON))
    return (str(manifest.folder / manifest.program),)


def image_hash(manifest: Manifest) -> str:
    """SHA-256 of the image as it is now. ``OSError`` if it cannot be read."""
    if is_python(manifest):
        return python_image_hash()
    return hashlib.sha256(Path(command(manifest)[0]).read_bytes()).hexdigest()


def python_image_hash() -> str:
    """SHA-256 over names and contents of all sources that a Python app of ours is made of."""
    digest = hashlib.sha256()
    for name, path in sorted(_sources()):
        data = path.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _sources() -> Iterator[tuple[str, Path]]:
    for part in IMAGE_PARTS:
        package, _, rest = part.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise OSError(f"package {package} has no sources")
        place = Path(spec.origin).parent / rest
        for path in [place] if place.is_file() else place.rglob("*.py"):
            yield os.path.relpath(path, Path(spec.origin).parent.parent), path


def check_image(manifest: Manifest, file: str) -> None:
    """Whether the program of the manifest in ``file`` can be started, and is the one that it names.

    Raises :class:`ManifestError`. The same is checked at every start.
    """
    if is_python(manifest):
        module = manifest.program.removeprefix(PYTHON)
        try:
            known = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            known = False
        if not known:
            raise ManifestError(file, "program", f"there is no module {module!r}")
    path = Path(command(manifest)[0])
    try:
        found = image_hash(manifest)
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror or error}"
        raise ManifestError(file, "program", reason) from error
    if not os.access(path, os.X_OK):
        raise ManifestError(file, "program", f"{path} may not be executed")
    if not is_python(manifest) and path.read_bytes()[:2] == SCRIPT:
        # What is started is a sealed copy without a name, which no interpreter could open.
        raise ManifestError(file, "program", f"{path} is a script, not an executable image")
    if manifest.sha256 is not None and found != manifest.sha256:
        raise ManifestError(file, "sha256", f"that of {manifest.program} is {found}")


# --- the file -------------------------------------------------------------------------------------

_KEYS: Final = frozenset(
    {
        "format",
        "version",
        "name",
        "program",
        "sha256",
        "syscalls",
        "forward",
        "hooks",
        "virqs",
        "devices",
        "streams",
        "instances",
        "arena_pages",
        "memory_bytes",
        "cpu_seconds",
        "pinned_pages",
        "shadow_pages",
        "silence_ms",
    }
)
_HOOK_KEYS: Final = frozenset({"smc", "mmio", "interrupt", "timer"})
_LEAST_ARENA: Final = 2 * abi.WINDOW_PAGES
_MOST_ARENA: Final = 1 << 20
"""Pages: 4 GiB."""


def load(path: Path) -> Manifest:
    """The manifest in a file. Raises :class:`ManifestError`."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(str(path), "", f"not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise ManifestError(str(path), "", error.strerror or str(error)) from error
    return parse(text, str(path), path.parent)


def parse(text: str, file: str = "manifest", folder: Path | None = None) -> Manifest:
    """A manifest from TOML. Raises :class:`ManifestError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(file, "", str(error)) from error
    reader = _Reader(file, document)
    if document.get("format") != FORMAT:
        raise ManifestError(file, "format", f"{document.get('format')!r} is not {FORMAT!r}")
    if document.get("version") != VERSION:
        found = document.get("version")
        raise ManifestError(file, "version", f"{found!r} is not known, only {VERSION}")
    reader.only(document, _KEYS, "")
    hooks = document.get("hooks", {})
    if not isinstance(hooks, dict):
        raise ManifestError(file, "hooks", "a table is needed")
    reader.only(hooks, _HOOK_KEYS, "hooks.")
    hooked = _Reader(file, hooks, "hooks.")
    name = reader.text("name")
    if not 0 < len(name.encode()) <= abi.MAX_NAME:
        raise ManifestError(file, "name", f"1 to {abi.MAX_NAME} bytes are needed")
    sha256 = reader.optional("sha256")
    if sha256 is not None and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
        raise ManifestError(file, "sha256", "64 hexadecimal digits are needed")
    instances = reader.text("instances", ALL_GUESTS)
    if instances not in (ALL_GUESTS, PER_GUEST):
        raise ManifestError(file, "instances", f"{ALL_GUESTS} or {PER_GUEST} is needed")
    arena = reader.integer("arena_pages", ARENA_PAGES, _LEAST_ARENA, _MOST_ARENA)
    if arena % abi.WINDOW_PAGES:
        raise ManifestError(file, "arena_pages", f"a multiple of {abi.WINDOW_PAGES} is needed")
    return Manifest(
        name=name,
        program=reader.text("program"),
        sha256=sha256,
        syscalls=reader.syscalls("syscalls"),
        forward=reader.ranges("forward"),
        smc_hooks=hooked.ranges("smc"),
        mmio_hooks=hooked.ranges("mmio"),
        interrupt_hooks=hooked.ranges("interrupt"),
        timer_hook=hooked.boolean("timer"),
        virqs=reader.ranges("virqs"),
        devices=reader.ranges("devices"),
        streams=reader.ranges("streams"),
        instances=instances,
        arena_pages=arena,
        memory_bytes=reader.integer("memory_bytes", MEMORY_BYTES, 1 << 20, 1 << 62),
        cpu_seconds=reader.integer("cpu_seconds", CPU_SECONDS, 1, 1 << 30),
        pinned_pages=reader.integer("pinned_pages", PINNED_PAGES, 1, 1 << 40),
        shadow_pages=reader.integer("shadow_pages", arena, 1, _MOST_ARENA),
        silence_ms=reader.integer("silence_ms", SILENCE_MS, 1, 3_600_000),
        folder=folder or Path(),
    )


class _Reader:
    """Typed access to a table of the file."""

    __slots__ = ("_file", "_prefix", "_table")

    def __init__(self, file: str, table: Mapping[str, object], prefix: str = "") -> None:
        self._file = file
        self._table = table
        self._prefix = prefix

    def _wrong(self, key: str, reason: str) -> ManifestError:
        return ManifestError(self._file, self._prefix + key, reason)

    def only(self, table: Mapping[str, object], known: frozenset[str], prefix: str) -> None:
        """Refuse keys that nobody knows."""
        for key in table:
            if key not in known:
                raise ManifestError(self._file, prefix + key, "unknown key")

    def optional(self, key: str) -> str | None:
        return self.text(key) if key in self._table else None

    def text(self, key: str, default: str = "") -> str:
        value = self._table.get(key, default)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "a text is needed")
        return value

    def boolean(self, key: str) -> bool:
        value = self._table.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false is needed")
        return value

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        value = self._table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(key, f"an integer from {least} to {most} is needed")
        return value

    def ranges(self, key: str) -> Ranges:
        value = self._table.get(key, [])
        found: list[tuple[int, int]] = []
        for item in value if isinstance(value, list) else [None]:
            if (
                not isinstance(item, list)
                or len(item) != 2
                or not all(isinstance(end, int) and not isinstance(end, bool) for end in item)
                or not 0 <= item[0] <= item[1] < 1 << 64
            ):
                raise self._wrong(key, "an array of [first, last] is needed")
            found.append((item[0], item[1]))
        return tuple(found)

    def syscalls(self, key: str) -> frozenset[int]:
        value = self._table.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "an array of names is needed")
        numbers = {int(Syscall.RETURN), int(Syscall.PANIC)}
        for name in value:
            if not isinstance(name, str) or name not in Syscall.__members__:
                raise self._wrong(key, f"{name!r} is no syscall")
            numbers.add(int(Syscall[name]))
        return frozenset(numbers)
