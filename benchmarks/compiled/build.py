# SPDX-License-Identifier: BSD-2-Clause
"""Compiles the hot modules with mypyc, in a copy of the project: ``python -m benchmarks.compiled.build``.

    python -m benchmarks.compiled.build [--into build/compiled] [--optimise 0..3] [--force]

The copy holds the packages, the tests and what those need; a compiled module lies beside its source
and is preferred by Python. The checkout is only read. Nothing is done if the copy is up to date.
Needs mypy (with mypyc), setuptools and a C compiler. Exit code 0 built or up to date, 1 it failed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Final

from benchmarks.compiled.modules import HOT, OPEN

ROOT: Final = Path(__file__).parents[2]
INTO: Final = ROOT / "build" / "compiled"
PACKAGES: Final = ("mediator", "secure_world", "smccc", "fuzz", "specs")
"""What the wheel holds."""
COMPILED: Final = ("mediator", "secure_world", "smccc")
"""Those of them that hold hot modules, or that hot modules import from."""
OTHERS: Final = ("tests", "benchmarks", "conftest.py", "pyproject.toml")
"""What the tests need besides."""
STAMP: Final = "sources.sha256"
LIBRARY: Final = "optee_hot"
"""Name of the shared library with the code of all modules."""
EXTENSION: Final = sysconfig.get_config_var("EXT_SUFFIX")

OPTIMISE: Final = "1"
"""-O1. A higher level costs twice the build time and gains less than runs differ."""
COMPILE: Final = ("-fno-semantic-interposition", "-fno-plt")
LINK: Final = ("-Wl,-Bsymbolic",)
"""Calls inside the library are direct calls, and may be inlined. For the ELF linkers of GNU systems."""

FRAME: Final = re.compile(r"tuple\[int(?:, int){3,7}\]")
"""The type of a frame of 4 to 8 registers."""

MYPY: Final = """\
[mypy]
python_version = 3.11
follow_imports = silent
ignore_missing_imports = True
"""

COMPILE_HERE: Final = """\
import json, sys
from mypyc.build import mypycify
from setuptools import setup
order = json.load(sys.stdin)
extensions = mypycify(
    ["--config-file", order["config"], *order["paths"]],
    opt_level=order["optimise"],
    debug_level="0",
    multi_file=True,
    group_name=order["library"],
)
for extension in extensions:
    extension.extra_compile_args += order["compile"]
    extension.extra_link_args += order["link"]
setup(name="hot", packages=[], ext_modules=extensions, script_args=["-q", "build_ext", "--inplace"])
"""


def source_of(module: str) -> Path:
    """Path of a module's source, from the root of a tree."""
    return Path(*module.split(".")).with_suffix(".py")


def copy(into: Path) -> str:
    """Copy the project to ``into``, drop sources that are gone; the digest of what is compiled."""
    digest = hashlib.sha256()
    wanted: set[Path] = set()
    for name in (*PACKAGES, *OTHERS):
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_dir() or "__pycache__" in path.parts or path.suffix in (".o", ".pyc"):
                continue
            where = path.relative_to(ROOT)
            data = path.read_bytes()
            module = ".".join(where.with_suffix("").parts)
            if name in COMPILED and path.suffix == ".py":
                data = adapt(data.decode(), OPEN.get(module, ())).encode()
            if name in COMPILED:
                digest.update(f"{where} {len(data)}\n".encode() + data)
            wanted.add(where)
            target = into / where
            if not target.is_file() or target.read_bytes() != data:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    for name in (*PACKAGES, *OTHERS):
        for path in sorted((into / name).rglob("*.py")):
            if path.relative_to(into) not in wanted:
                path.unlink()
    return digest.hexdigest()


def adapt(source: str, open_classes: tuple[str, ...]) -> str:
    """``source`` as it is compiled: two changes that mean nothing to the interpreter.

    Interpreted classes may inherit from ``open_classes``. Annotations of register frames say tuples
    of any length: those of a known one mypyc keeps unpacked, and packs for every call that it cannot
    resolve.
    """
    source = FRAME.sub("tuple[int, ...]", source)
    if open_classes:
        head = "from __future__ import annotations\n"
        source = source.replace(head, f"{head}\nfrom mypy_extensions import mypyc_attr\n", 1)
    for name in open_classes:
        decorated = f"@mypyc_attr(allow_interpreted_subclasses=True)\nclass {name}"
        source, found = re.subn(rf"^class {name}\b", decorated, source, flags=re.MULTILINE)
        if found != 1:
            raise ValueError(f"class {name} is defined {found} times")
    return source


def awaits_in_finally(source: str) -> list[int]:
    """Lines that mypyc compiles wrong: an ``await`` in a ``finally`` block.

    It raises what the interpreter's caller happens to handle at that moment (mypyc 2.4).
    """
    return [
        node.lineno
        for block in ast.walk(ast.parse(source))
        if isinstance(block, ast.Try)
        for statement in block.finalbody
        for node in ast.walk(statement)
        if isinstance(node, ast.Await)
    ]


def compile_in(tree: Path, optimise: str) -> int:
    """Run mypyc and the C compiler in ``tree``: the exit code."""
    wrong = {m: awaits_in_finally((tree / source_of(m)).read_text()) for m in HOT}
    for module, lines in wrong.items():
        for line in lines:
            print(f"{source_of(module)}:{line}: await in finally", file=sys.stderr)
    if any(wrong.values()):
        return 1
    for old in [*tree.rglob(f"*{EXTENSION}")]:
        old.unlink()
    shutil.rmtree(tree / "build", ignore_errors=True)
    (tree / "mypy.ini").write_text(MYPY)
    elf = sys.platform.startswith("linux")
    order = {
        "config": "mypy.ini",
        "paths": [str(source_of(module)) for module in HOT],
        "optimise": optimise,
        "library": LIBRARY,
        "compile": COMPILE if elf else (),
        "link": LINK if elf else (),
    }
    log = tree / "build.log"
    with log.open("w") as out:
        code = subprocess.run(
            [sys.executable, "-c", COMPILE_HERE],
            cwd=tree,
            input=json.dumps(order),
            text=True,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        print(log.read_text()[-4000:], file=sys.stderr)
    return code


def build(into: Path = INTO, optimise: str = OPTIMISE, *, force: bool = False) -> int:
    """Bring the compiled tree up to date: the exit code."""
    into.mkdir(parents=True, exist_ok=True)
    state = f"{copy(into)} {sorted(HOT)} {optimise} {EXTENSION}"
    stamp = into / STAMP
    if not force and stamp.is_file() and stamp.read_text() == state:
        print(f"{into}: up to date")
        return 0
    stamp.unlink(missing_ok=True)
    start, before = time.monotonic(), os.times()
    if compile_in(into, optimise):
        return 1
    after = os.times()
    used = sum(after[2:4]) - sum(before[2:4])
    stamp.write_text(state)
    wall = time.monotonic() - start
    print(f"{into}: {len(HOT)} modules compiled in {wall:.0f} s ({used:.0f} s of processor time)")
    return 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--into", type=Path, default=INTO, help="the tree (build/compiled)")
    parser.add_argument("--optimise", default=OPTIMISE, choices=list("0123"), help="level (1)")
    parser.add_argument("--force", action="store_true", help="also if it is up to date")
    options = parser.parse_args()
    return build(options.into.resolve(), options.optimise, force=options.force)


if __name__ == "__main__":
    sys.exit(main())
