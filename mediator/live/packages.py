# SPDX-License-Identifier: BSD-2-Clause
"""Getting a distribution's packages for another architecture, by name, without installing anything.

The distribution's own tool does it with private lists: it knows the user's mirrors and proxies, checks
the signature of the index, and resumes a download that broke off. What it stores is checked again
against the hash in that index. The system's own state is not touched and no privilege is needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import attrs

ARCHITECTURE: Final = "arm64"
TOOLS: Final = ("apt-get", "apt-cache")
UPDATE_SECONDS: Final = 600
DOWNLOAD_SECONDS: Final = 3600
_URI: Final = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) (?P<hash>\S+)$")
_SOURCES: Final = Path("/etc/apt")

Say = Callable[[str], None]


class FetchError(Exception):
    """Packages cannot be had; the message says which, why, and what to do about it."""


@attrs.frozen(kw_only=True)
class Package:
    """A package that can be downloaded: its file name, octets and SHA-256 by the signed index."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


def codename(text: str) -> str | None:
    """VERSION_CODENAME of an os-release text."""
    found = re.search(r'^VERSION_CODENAME="?([\w.-]+)"?$', text, re.MULTILINE)
    return found[1] if found else None


def system_codename() -> str | None:
    """The distribution's code name, ``None`` if it does not say."""
    try:
        return codename(Path("/etc/os-release").read_text("utf-8"))
    except OSError:
        return None


def derive_sources(files: Mapping[str, str], base: str, suite: str) -> dict[str, str]:
    """Private source lists: those of ``files`` (name: text) for ``base`` and its updates, and ``suite``.

    Both formats of sources.list(5). Stanzas for anything else are left out: their packages are not
    wanted, and their indexes cost time.
    """
    derived: dict[str, str] = {}
    for name, text in sorted(files.items()):
        lines: list[str] = []
        if name.endswith(".sources"):
            for stanza in re.split(r"\n\s*\n", text):
                kept = _stanza(stanza, base, suite)
                if kept:
                    lines += ["\n".join(kept) + "\n"]
        elif name.endswith(".list"):
            for line in text.splitlines():
                lines += _one_line(line.strip(), base, suite)
        if lines:
            derived[name] = "\n".join(lines) + "\n"
    return derived


def _suites(named: list[str], base: str, suite: str) -> list[str]:
    own = [word for word in named if word == base or word.startswith(f"{base}-")]
    if base in named and suite not in own:
        own.append(suite)
    return own


def _stanza(stanza: str, base: str, suite: str) -> list[str]:
    lines = [line for line in stanza.splitlines() if line and not line.startswith("#")]
    fields = {line.partition(":")[0].lower(): line.partition(":")[2] for line in lines}
    suites = _suites(fields.get("suites", "").split(), base, suite)
    if not suites or fields.get("enabled", "").strip().lower() == "no":
        return []
    dropped = ("suites:", "architectures:", "types:")
    kept = [line for line in lines if not line.lower().startswith(dropped)]
    return ["Types: deb", f"Suites: {' '.join(suites)}", *kept]


def _one_line(line: str, base: str, suite: str) -> list[str]:
    found = re.match(r"deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$", line)
    if found is None:
        return []
    options = re.sub(r"\barch=\S+?(?=[\s\]])", "", found[1] or "")
    suites = _suites([found[3]], base, suite)
    return [f"deb {options}{found[2]} {name} {found[4]}" for name in suites]


class PackageSource:
    """The distribution's tool with lists of its own below ``folder``."""

    def __init__(self, folder: Path, suite: str | None = None, say: Say | None = None) -> None:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise FetchError(
                f"{' and '.join(missing)} not found: packages are fetched with the tools of Debian; "
                "elsewhere download the packages yourself and use --packages FOLDER"
            )
        base = system_codename()
        if base is None:
            raise FetchError("this system does not say its code name in /etc/os-release")
        self.suite = suite or base
        self._base = base
        self._folder = folder
        self._say = say or (lambda _text: None)
        self._config = folder / "apt.conf"

    def update(self) -> None:
        """Get the index of the packages. :class:`FetchError` if that fails."""
        self._prepare()
        self._say(f"package index of {self.suite} for {ARCHITECTURE}")
        self._run(["apt-get", "-q", "update"], UPDATE_SECONDS, "the package index cannot be had")

    def has_index(self) -> bool:
        """Whether an index was fetched before."""
        return any((self._folder / "state" / "lists").glob("*Packages*"))

    def dependency(self, name: str, pattern: str) -> str:
        """The dependency of package ``name`` whose name matches: a meta package's real one."""
        text = self._run(["apt-cache", "depends", name], UPDATE_SECONDS, f"no package {name}")
        for line in text.splitlines():
            found = re.match(r"\s*Depends: (\S+)", line)
            if found and re.fullmatch(pattern, found[1]):
                return found[1]
        raise FetchError(f"package {name} depends on nothing like {pattern}")

    def resolve(self, names: Iterable[str]) -> tuple[Package, ...]:
        """What would be downloaded for these package names."""
        wanted = tuple(names)
        text = self._run(
            ["apt-get", "-q", "download", "--print-uris", *wanted],
            UPDATE_SECONDS,
            f"packages not found: {', '.join(wanted)}",
        )
        packages = [p for line in text.splitlines() if (p := parse_uri_line(line)) is not None]
        absent = set(wanted) - {package.name for package in packages}
        if absent:
            raise FetchError(f"the index has no {', '.join(sorted(absent))}")
        return tuple(packages)

    def download(self, package: Package, target: Path) -> Path:
        """The package's file in ``target``, complete and verified; nothing to do if it is there."""
        target.mkdir(parents=True, exist_ok=True)
        path = target / package.file
        if not verified(path, package):
            if path.is_file() and path.stat().st_size >= package.size:
                path.unlink()  # whole, but not this package: there is nothing to resume
            self._say(f"{package.name} {package.version} ({package.size / 1e6:.1f} MB)")
            self._run(
                ["apt-get", "-q", "download", package.name],
                DOWNLOAD_SECONDS,
                f"{package.name} cannot be downloaded",
                folder=target,
            )
            if not verified(path, package):
                path.unlink(missing_ok=True)
                raise FetchError(f"{package.file} does not have the hash that the index gives")
        return path

    def _prepare(self) -> None:
        folder = self._folder
        for name in ("state/lists/partial", "cache/archives/partial", "sources"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        candidates = [_SOURCES / "sources.list"]
        for pattern in ("*.list", "*.sources"):
            candidates += sorted((_SOURCES / "sources.list.d").glob(pattern))
        texts = {p.name: p.read_text("utf-8", "replace") for p in candidates if p.is_file()}
        sources = derive_sources(texts, self._base, self.suite)
        if not sources:
            raise FetchError(f"no source of packages for {self._base} is configured")
        for old in (folder / "sources").iterdir():
            old.unlink()
        for name, text in sources.items():
            (folder / "sources" / name).write_text(text, encoding="utf-8")
        settings = {
            "APT::Architecture": ARCHITECTURE,
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": folder / "sources",
            "Acquire::Languages": "none",
            "Acquire::Retries": 3,
            # The files are this user's own; the tool's own user could not write them.
            "APT::Sandbox::User": "root",
        }
        if self.suite != self._base:
            # Set for the base, it would make the base's updates look unwanted.
            settings["APT::Default-Release"] = self.suite
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        lines += ["#clear APT::Architectures;", f'APT::Architectures {{ "{ARCHITECTURE}"; }};']
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _run(self, command: list[str], seconds: int, why: str, folder: Path | None = None) -> str:
        if not self._config.is_file():
            self._prepare()
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FetchError(f"{why}: {error}") from None
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.startswith(("E:", "Err"))]
            raise FetchError(f"{why}: {' '.join(reasons) or done.stderr.strip()}")
        return done.stdout


def parse_uri_line(line: str) -> Package | None:
    """A package of one line of ``--print-uris``; ``None`` if the line is something else."""
    found = _URI.match(line)
    if found is None or not found["hash"].startswith("SHA256:"):
        return None
    # The file is named name_version_architecture.deb, with a quoted colon in the version.
    name, version, _ = found["file"].split("_")
    return Package(
        name=name,
        version=unquote(version),
        file=found["file"],
        size=int(found["size"]),
        sha256=found["hash"].partition(":")[2],
    )


def verified(path: Path, package: Package) -> bool:
    """Whether ``path`` is the complete, unchanged file of ``package``."""
    if not path.is_file() or path.stat().st_size != package.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
