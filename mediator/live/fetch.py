# SPDX-License-Identifier: BSD-2-Clause
"""``live fetch``: from package names to a bundle of guest files.

Only what a guest needs is kept: of the kernel package that is the kernel and its TEE modules.
"""

from __future__ import annotations

import hashlib
import lzma
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from mediator.live import bundle, deb
from mediator.live.packages import ARCHITECTURE, FetchError, PackageSource, Say

KERNEL_META: Final = f"linux-image-{ARCHITECTURE}"
"""The package that depends on the current kernel."""
_KERNEL_NAME: Final = rf"linux-image-\d[\w.+-]*-{ARCHITECTURE}"

PROGRAMS: Final[Mapping[str, Mapping[str, str]]] = {
    "busybox-static": {r"(usr/)?bin/busybox": bundle.BUSYBOX},
    "tee-supplicant": {r"usr/sbin/tee-supplicant": bundle.SUPPLICANT},
    "libteec": {r"usr/lib/aarch64-linux-gnu/libteec\.so\.[12]": bundle.LIBTEEC},
    "libc6": {
        r"(usr/)?lib/aarch64-linux-gnu/libc\.so\.6": bundle.LIBC,
        r"(usr/)?lib/aarch64-linux-gnu/ld-linux-aarch64\.so\.1": bundle.LOADER,
    },
    "optee-client-dev": {r"usr/include/(\w+\.h)": bundle.HEADER_PREFIX},
}
"""Package, and which of its files play which role. A role that ends in "/" is a folder."""

LIBTEEC_PACKAGES: Final = ("libteec1", "libteec2")
"""The client library's package is named after its ABI, which differs between releases."""

MODULES: Final = ("tee", "optee", "optee-rng")
"""Modules that a guest loads. What they depend on is looked up in the modules themselves."""
MAYBE_NEEDED: Final = ("rpmb-core", "rng-core", "arm-ffa", "ffa-core", "ffa-module")
"""Modules that the TEE modules of some kernels depend on."""


def modinfo(module: bytes, key: str) -> str | None:
    """A value of a module's ``.modinfo`` section (``key=value`` strings), ``None`` if it has none."""
    found = re.search(rb"\0" + key.encode() + rb"=([^\0]*)\0", b"\0" + module)
    return found[1].decode("utf-8", "replace") if found else None


def order_modules(modules: Mapping[str, bytes], wanted: tuple[str, ...]) -> list[str]:
    """``wanted`` modules and what they depend on, dependencies first.

    Names use "-" for the kernel's "_". :class:`FetchError` for a dependency that is not there.
    """
    ordered: dict[str, None] = {}

    def add(name: str, chain: tuple[str, ...]) -> None:
        if name in ordered:
            return
        module = modules.get(name)
        if module is None or name in chain:
            raise FetchError(f"kernel module {name} (for {' <- '.join(chain) or 'us'}) is missing")
        for need in filter(None, (modinfo(module, "depends") or "").split(",")):
            add(need.replace("_", "-"), (*chain, name))
        ordered[name] = None

    for name in wanted:
        add(name, ())
    return list(ordered)


def kernel_files(path: Path) -> tuple[str, dict[str, bytes]]:
    """Release of the kernel in a kernel package, and its files by role."""
    names = "|".join(map(re.escape, (*MODULES, *MAYBE_NEEDED)))
    pattern = re.compile(rf"boot/vmlinuz-.+|(usr/)?lib/modules/[^/]+/.*/({names})\.ko(\.xz)?")
    found = deb.extract(path, lambda name: pattern.fullmatch(name) is not None)
    images = [name for name in found if name.startswith("boot/")]
    if len(images) != 1:
        raise FetchError(f"{path.name} has {len(images)} kernels")
    release = images[0].removeprefix("boot/vmlinuz-")
    modules: dict[str, bytes] = {}
    for name, data in found.items():
        file = name.rpartition("/")[2]
        if file.endswith(".ko.xz"):
            modules[file[:-6]] = lzma.decompress(data)
        elif file.endswith(".ko"):
            modules[file[:-3]] = data
    files = {bundle.KERNEL: found[images[0]]}
    for module in order_modules(modules, MODULES):
        files[f"{bundle.MODULE_PREFIX}{module}.ko"] = modules[module]
    return release, files


def program_files(key: str, path: Path) -> dict[str, bytes]:
    """Files by role of the package that :data:`PROGRAMS` calls ``key``."""
    roles = {re.compile(pattern): role for pattern, role in PROGRAMS[key].items()}

    def wanted(name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in roles)

    files: dict[str, bytes] = {}
    for name, data in deb.extract(path, wanted).items():
        for pattern, role in roles.items():
            match = pattern.fullmatch(name)
            if match is not None:
                files[role + match[1] if role.endswith("/") else role] = data
    absent = [role for role in roles.values() if not any(k.startswith(role) for k in files)]
    if absent:
        raise FetchError(f"{path.name} has no {', '.join(absent)}")
    return files


def _make(
    cache: Path,
    name: str,
    suite: str,
    kernel: Path,
    programs: Mapping[str, Path],
    say: Say,
) -> bundle.Bundle:
    say("unpacking")
    release, files = kernel_files(kernel)
    for key, path in programs.items():
        files.update(program_files(key, path))
    records = []
    for path in (kernel, *programs.values()):
        package, version = path.name.split("_")[:2]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        records.append(bundle.PackageRecord(name=package, version=unquote(version), sha256=digest))
    return bundle.store(
        cache, name, suite=suite, release=release, packages=tuple(records), files=files
    )


def fetch(
    cache: Path,
    name: str,
    *,
    suite: str | None = None,
    refresh: bool = False,
    keep: bool = False,
    say: Say,
) -> bundle.Bundle:
    """Get the packages of ``suite`` (default: this system's) and make the bundle ``name`` of them.

    What was fetched before and still has the right hash is not fetched again. ``refresh``: get the
    package index anew. ``keep``: keep the packages. :class:`FetchError` if it cannot be done.
    """
    source = PackageSource(cache / "packages" / (suite or "default"), suite, say)
    if refresh or not source.has_index():
        source.update()
    kernel_name = source.dependency(KERNEL_META, _KERNEL_NAME)
    library = _first(source, LIBTEEC_PACKAGES)
    names = [library if key == "libteec" else key for key in PROGRAMS]
    packages = {package.name: package for package in source.resolve([kernel_name, *names])}
    target = cache / "packages" / "archives"
    paths = {name: source.download(package, target) for name, package in packages.items()}
    programs = {key: paths[real] for key, real in zip(PROGRAMS, names, strict=True)}
    made = _make(cache, name, source.suite, paths[kernel_name], programs, say)
    if not keep:
        for path in paths.values():
            path.unlink(missing_ok=True)
    return made


def _first(source: PackageSource, names: tuple[str, ...]) -> str:
    problem: FetchError | None = None
    for name in names:
        try:
            source.resolve([name])
        except FetchError as error:
            problem = error
        else:
            return name
    assert problem is not None
    raise problem


def unpack_folder(cache: Path, name: str, folder: Path, say: Say) -> bundle.Bundle:
    """Make a bundle of packages that the user has downloaded into ``folder``."""

    def find(test: Callable[[str], bool], what: str) -> Path:
        found = sorted(p for p in folder.glob("*.deb") if test(p.name.partition("_")[0]))
        if not found:
            raise FetchError(f"{folder}: no package {what}")
        return found[-1]

    kernel = find(lambda package: re.fullmatch(_KERNEL_NAME, package) is not None, KERNEL_META)
    programs = {
        key: find(
            (lambda package: package in LIBTEEC_PACKAGES) if key == "libteec" else key.__eq__, key
        )
        for key in PROGRAMS
    }
    return _make(cache, name, "own", kernel, programs, say)
