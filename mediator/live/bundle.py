# SPDX-License-Identifier: BSD-2-Clause
"""What guests are made of: kernel, modules and programs, unpacked once and kept in a cache folder.

A bundle is a folder with ``bundle.json`` (format and version first) and the files that it names by
role, each with its SHA-256. A file that differs from its hash is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

FORMAT: Final = "optee-mediator-live-bundle"
VERSION: Final = 1
MANIFEST: Final = "bundle.json"
CACHE_VARIABLE: Final = "OPTEE_MEDIATOR_CACHE"
"""Environment variable that names the cache folder."""

KERNEL: Final = "kernel"
BUSYBOX: Final = "busybox"
SUPPLICANT: Final = "tee-supplicant"
LIBTEEC: Final = "libteec.so.1"
LIBC: Final = "libc.so.6"
LOADER: Final = "ld-linux-aarch64.so.1"
MODULE_PREFIX: Final = "modules/"
HEADER_PREFIX: Final = "include/"


class BundleError(Exception):
    """There is no usable bundle; the message says why and what to do."""


@attrs.frozen(kw_only=True)
class PackageRecord:
    """Where files came from: a package, its version and the SHA-256 of its archive."""

    name: str
    version: str
    sha256: str


@attrs.frozen(kw_only=True)
class Bundle:
    """An unpacked set of files. ``release``: the kernel's; ``suite``: of the distribution."""

    folder: Path
    suite: str
    release: str
    packages: tuple[PackageRecord, ...]
    hashes: Mapping[str, str]

    def __contains__(self, role: str) -> bool:
        return role in self.hashes

    def read(self, role: str) -> bytes:
        """A file's contents, verified. :class:`BundleError` if it is missing or was changed."""
        expected = self.hashes.get(role)
        if expected is None:
            raise BundleError(f"{self.folder}: the bundle has no {role}")
        try:
            data = (self.folder / role).read_bytes()
        except OSError as error:
            raise BundleError(f"{error.filename}: {error.strerror}; fetch again") from None
        if hashlib.sha256(data).hexdigest() != expected:
            raise BundleError(f"{self.folder / role}: changed since it was fetched; fetch again")
        return data

    def modules(self) -> tuple[str, ...]:
        """Names of the kernel modules in the order in which they can be loaded."""
        prefix = MODULE_PREFIX
        return tuple([role[len(prefix) : -3] for role in self.hashes if role.startswith(prefix)])


def cache_folder(given: Path | None = None) -> Path:
    """``given``, else what the environment says, else the user's cache folder (XDG)."""
    if given is not None:
        return given
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "optee-mediator"


def bundle_folder(cache: Path, name: str) -> Path:
    """Where the bundle ``name`` lies."""
    return cache / "live" / name


def available(cache: Path) -> tuple[str, ...]:
    """Names of all bundles in the cache."""
    return tuple(sorted(path.parent.name for path in cache.glob(f"live/*/{MANIFEST}")))


def load(cache: Path, name: str) -> Bundle:
    """The bundle ``name``. :class:`BundleError` unless it is there and of a version we know."""
    folder = bundle_folder(cache, name)
    try:
        text = (folder / MANIFEST).read_text("utf-8")
    except FileNotFoundError:
        raise BundleError(
            f"no guest files in {folder}: run 'optee-mediator live fetch' first"
        ) from None
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}") from None
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise BundleError(f"{folder}: not a bundle but {data['format']!r}")
        if data["version"] > VERSION:
            raise BundleError(f"{folder}: version {data['version']} is newer than this tool")
        return Bundle(
            folder=folder,
            suite=data["suite"],
            release=data["release"],
            packages=tuple([PackageRecord(**record) for record in data["packages"]]),
            hashes=dict(data["files"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST}: damaged ({error}); fetch again") from None


def store(
    cache: Path,
    name: str,
    *,
    suite: str,
    release: str,
    packages: tuple[PackageRecord, ...],
    files: Mapping[str, bytes],
) -> Bundle:
    """Write a bundle; it replaces one of that name only when it is complete."""
    folder = bundle_folder(cache, name)
    part = folder.with_name(f".{name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    hashes: dict[str, str] = {}
    try:
        for role, data in files.items():
            path = part / role
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            hashes[role] = hashlib.sha256(data).hexdigest()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "suite": suite,
            "release": release,
            "packages": [attrs.asdict(record) for record in packages],
            "files": hashes,
        }
        text = json.dumps(manifest, indent=2) + "\n"
        (part / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load(cache, name)
