# SPDX-License-Identifier: BSD-2-Clause
"""The forwarding stub: words and source agree, and the mailbox protocol is what both sides think."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from mediator.live import mailbox, stub
from mediator.live.mailbox import Mailbox

AS, OBJCOPY = "aarch64-linux-gnu-as", "aarch64-linux-gnu-objcopy"
CALL, VECTORS = 0x88, 0x800


def test_the_words_are_the_source(tmp_path: Path) -> None:
    if shutil.which(AS) is None:
        pytest.skip(f"{AS} is not installed (Debian package binutils-aarch64-linux-gnu)")
    (tmp_path / "stub.S").write_text(stub.source(), "utf-8")
    subprocess.run([AS, "-o", "stub.o", "stub.S"], cwd=tmp_path, check=True, timeout=60)
    subprocess.run(
        [OBJCOPY, "-O", "binary", "stub.o", "stub.bin"], cwd=tmp_path, check=True, timeout=60
    )
    assert stub.code() == (tmp_path / "stub.bin").read_bytes()


def test_source_and_mailbox_have_the_same_numbers() -> None:
    numbers = {
        name: int(value, 0)
        for name, value in re.findall(r"\.equ\s+(\w+), (0x[0-9a-f]+|\d+)", stub.source())
    }
    assert numbers["MAILBOX"] == mailbox.MAILBOX
    for state in ("RUNNING", "REQUEST", "FORWARD", "FAULT"):
        assert numbers[state] == getattr(mailbox, state)
    assert numbers["SMC64"] == mailbox.CLASS_SMC64
    page = bytearray(4096)
    box = Mailbox(memoryview(page))
    box.prepare(0x1111, 0x2222, rings=False)
    assert struct.unpack_from("<QQQ", page, numbers["ENTRY"]) == (0x1111, 0x2222, 1)
    assert numbers["BELL"] == numbers["ENTRY"] + 16
    struct.pack_into("<8Q2Q", page, 0, *range(1, 9), 0x5E000000, 0x4020)
    struct.pack_into("<Q", page, numbers["STATE"], mailbox.REQUEST)
    assert box.state == mailbox.REQUEST
    assert box.call() == (0x5E000000, tuple(range(1, 9)))
    box.answer((9, 8, 7, 6, 5, 4, 3, 2))
    assert struct.unpack_from("<8Q", page) == (9, 8, 7, 6, 5, 6, 7, 8)
    assert struct.unpack_from("<Q", page, numbers["STATE"]) == (mailbox.ANSWER,)
    box.forward((2, 0))
    assert struct.unpack_from("<8Q", page) == (9, 8, 0, 6, 5, 6, 7, 8)
    assert box.state == mailbox.FORWARD


def test_only_calls_of_el1_are_served() -> None:
    """Fifteen of sixteen vectors lead to the end of the stub, one to the call."""
    code = stub.code()
    targets = []
    for vector in range(16):
        at = VECTORS + 128 * vector
        (word,) = struct.unpack_from("<I", code, at)
        assert word >> 26 == 0b000101  # b
        offset = (word & 0x3FFFFFF) - (1 << 26 if word & 1 << 25 else 0)
        targets.append(at + 4 * offset)
    assert targets[8] == CALL
    assert len(set(targets[:8] + targets[9:])) == 1
    assert CALL not in targets[:8] + targets[9:]


@pytest.mark.parametrize("text", ["0: 1\n0: 2\n", "2: 1\n", "x\n"])
def test_a_broken_listing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"stub|invalid"):
        stub.parse_words(text)
