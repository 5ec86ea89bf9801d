# SPDX-License-Identifier: BSD-2-Clause
"""Private package lists are made from the system's; hashes of the index are what counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mediator.live.packages import (
    Package,
    codename,
    derive_sources,
    parse_uri_line,
    verified,
)

STANZAS = """\
# a comment
Types: deb deb-src
URIs: mirror://one
Suites: bookworm bookworm-updates
Components: main
Signed-By: /k.gpg

Types: deb
URIs: mirror://two
Suites: nodistro
Components: main

Types: deb
URIs: mirror://three
Suites: bookworm-security
Components: main
Architectures: amd64
"""


def test_only_the_distribution_itself_is_asked() -> None:
    derived = derive_sources(
        {"d.sources": STANZAS, "notes.txt": "deb x bookworm main"}, "bookworm", "bookworm"
    )
    (text,) = derived.values()
    assert "nodistro" not in text
    assert "deb-src" not in text
    assert "Architectures" not in text
    assert "Suites: bookworm bookworm-updates\n" in text
    assert "Suites: bookworm-security\n" in text
    assert "Signed-By: /k.gpg" in text


def test_another_suite_comes_from_the_same_place() -> None:
    derived = derive_sources({"d.sources": STANZAS}, "bookworm", "bookworm-backports")
    assert "Suites: bookworm bookworm-updates bookworm-backports\n" in derived["d.sources"]
    lines = "deb [arch=amd64 signed-by=/k] mirror://one bookworm main\ndeb mirror://x other main\n"
    derived = derive_sources({"s.list": lines}, "bookworm", "bookworm-backports")
    assert derived["s.list"].splitlines() == [
        "deb [ signed-by=/k] mirror://one bookworm main",
        "deb [ signed-by=/k] mirror://one bookworm-backports main",
    ]


def test_a_disabled_source_stays_disabled() -> None:
    text = "Types: deb\nEnabled: no\nURIs: mirror://one\nSuites: bookworm\nComponents: main\n"
    assert derive_sources({"d.sources": text}, "bookworm", "bookworm") == {}


def test_the_code_name() -> None:
    assert codename('NAME="x"\nVERSION_CODENAME=bookworm\n') == "bookworm"
    assert codename("NAME=x\n") is None


def test_what_is_downloaded_is_what_the_index_says(tmp_path: Path) -> None:
    data = b"package"
    digest = hashlib.sha256(data).hexdigest()
    line = f"'mirror://one/x_1%3a2_arm64.deb' x_1%3a2_arm64.deb {len(data)} SHA256:{digest}"
    package = parse_uri_line(line)
    assert package == Package(
        name="x", version="1:2", file="x_1%3a2_arm64.deb", size=7, sha256=digest
    )
    path = tmp_path / package.file
    assert not verified(path, package)
    path.write_bytes(data)
    assert verified(path, package)
    path.write_bytes(b"Package")
    assert not verified(path, package)
    assert parse_uri_line("Reading package lists...") is None
    assert parse_uri_line(line.replace("SHA256", "MD5Sum")) is None
