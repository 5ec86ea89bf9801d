# SPDX-License-Identifier: BSD-2-Clause
"""Archives that guests are made of and made from, and the folder that keeps them."""

from __future__ import annotations

import io
import json
import lzma
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.live import bundle, cpio, deb, initramfs
from mediator.live.fetch import modinfo, order_modules
from mediator.live.packages import FetchError


def test_initramfs_entries_are_read_back() -> None:
    archive = cpio.Archive()
    archive.file("a/b/c.txt", b"hello", 0o640)
    archive.link("a/link", "b/c.txt")
    archive.device("dev/console", 5, 1)
    found = list(cpio.entries(archive.build()))
    assert [name for name, _, _ in found] == [
        "a",
        "a/b",
        "a/b/c.txt",
        "a/link",
        "dev",
        "dev/console",
    ]
    assert found[2][1:] == (stat.S_IFREG | 0o640, b"hello")
    assert found[3][1:] == (stat.S_IFLNK | 0o777, b"b/c.txt")
    assert stat.S_ISCHR(found[5][1])
    assert archive.build() == archive.build()
    with pytest.raises(ValueError, match="a/b"):
        archive.file("a/b", b"")


@given(st.dictionaries(st.text("abc/", min_size=1).filter(lambda n: n.strip("/")), st.binary()))
def test_any_files_survive(files: dict[str, bytes]) -> None:
    archive = cpio.Archive()
    added: dict[str, bytes] = {}
    for name, data in files.items():
        if "//" in name or name in archive or any(k.startswith(f"{name}/") for k in added):
            continue
        archive.file(name, data)
        added[name.strip("/")] = data
    read = {n: d for n, mode, d in cpio.entries(archive.build()) if stat.S_ISREG(mode)}
    assert read == added


def make_deb(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """A package with these files, as dpkg-deb would write it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar": b"x",
        "data.tar.xz": lzma.compress(stream.getvalue()),
    }
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
            file.write(data + b"\n" * (len(data) % 2))
    return path


def test_a_package_gives_what_is_wanted(tmp_path: Path) -> None:
    path = make_deb(
        tmp_path / "x_1_arm64.deb",
        {"usr/lib/libx.so.1.0": b"ELF", "usr/share/doc/x": b"text"},
        {"usr/lib/libx.so.1": "libx.so.1.0", "lib/x": "/usr/lib/libx.so.1.0"},
    )
    assert deb.extract(path, "usr/share/doc/x".__eq__) == {"usr/share/doc/x": b"text"}
    by_link = deb.extract(path, "usr/lib/libx.so.1".__eq__)
    assert by_link["usr/lib/libx.so.1"] == b"ELF"
    assert deb.extract(path, "lib/x".__eq__)["lib/x"] == b"ELF"


@pytest.mark.parametrize("octets", [b"", b"!<arch>\n", b"!<arch>\nrubbish", b"PK\3\4" * 30])
def test_no_package_is_a_named_error(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "broken.deb"
    path.write_bytes(octets)
    with pytest.raises(deb.DebError, match=r"broken\.deb"):
        deb.extract(path, lambda _name: True)


def module(depends: str) -> bytes:
    return b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def test_modules_are_loaded_after_what_they_depend_on() -> None:
    modules = {"tee": module(""), "optee": module("tee,rpmb_core"), "rpmb-core": module("")}
    assert modinfo(modules["optee"], "depends") == "tee,rpmb_core"
    assert order_modules(modules, ("optee", "tee")) == ["tee", "rpmb-core", "optee"]
    with pytest.raises(FetchError, match="rpmb-core"):
        order_modules({"optee": module("rpmb_core")}, ("optee",))
    with pytest.raises(FetchError, match="missing"):
        order_modules({"a": module("b"), "b": module("a")}, ("a",))


def store(cache: Path) -> bundle.Bundle:
    record = bundle.PackageRecord(name="linux", version="6", sha256="00")
    return bundle.store(
        cache,
        "default",
        suite="s",
        release="6.1",
        packages=(record,),
        files={"kernel": b"K", "modules/tee.ko": b"T", "modules/optee.ko": b"O"},
    )


def test_a_bundle_is_kept_and_verified(tmp_path: Path) -> None:
    made = store(tmp_path)
    assert made == bundle.load(tmp_path, "default")
    assert bundle.available(tmp_path) == ("default",)
    assert made.modules() == ("tee", "optee")
    assert made.read("kernel") == b"K"
    (made.folder / "kernel").write_bytes(b"k")
    with pytest.raises(bundle.BundleError, match="changed"):
        made.read("kernel")
    with pytest.raises(bundle.BundleError, match="no busybox"):
        made.read("busybox")
    assert store(tmp_path).read("kernel") == b"K"


def test_a_missing_a_damaged_and_a_newer_bundle_are_named(tmp_path: Path) -> None:
    with pytest.raises(bundle.BundleError, match="live fetch"):
        bundle.load(tmp_path, "default")
    path = store(tmp_path).folder / bundle.MANIFEST
    newer = json.loads(path.read_text("utf-8")) | {"version": bundle.VERSION + 1}
    path.write_text(json.dumps(newer), "utf-8")
    with pytest.raises(bundle.BundleError, match="newer"):
        bundle.load(tmp_path, "default")
    path.write_text("{}", "utf-8")
    with pytest.raises(bundle.BundleError, match="damaged"):
        bundle.load(tmp_path, "default")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(bundle.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bundle.cache_folder() == tmp_path / "optee-mediator"
    monkeypatch.setenv(bundle.CACHE_VARIABLE, str(tmp_path / "own"))
    assert bundle.cache_folder() == tmp_path / "own"
    assert bundle.cache_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("uptime", "micros"),
    [("0.92", 920000), ("0.08", 80000), ("1.00", 1000000), ("12.34", 12340000)],
)
def test_the_guests_clock_has_no_octal_numbers(tmp_path: Path, uptime: str, micros: int) -> None:
    """A kernel may have started in less than a second: a leading zero."""
    (tmp_path / "uptime").write_text(f"{uptime} 1.00\n", "ascii")
    (line,) = [line for line in initramfs.HEAD.splitlines() if line.startswith("us()")]
    script = line.replace("/proc/uptime", str(tmp_path / "uptime")) + "\nus"
    told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == f"{micros}\n"
