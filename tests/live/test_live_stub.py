# SPDX-License-Identifier: BSD-2-Clause
"""The forwarding stub: words and source agree, and the mailbox protocol is what both sides think."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from mediator.hypervisor.machine_events import TrapUndefined
from mediator.hypervisor.psci import PsciAction
from mediator.live import mailbox, run, stub
from mediator.live.bundle import Bundle
from mediator.live.mailbox import Mailbox
from mediator.live.power import Power
from mediator.live.qemu import POLLING, SEMIHOSTING, UART, BoardSettings
from smccc.constants import psci

AS, OBJCOPY = "aarch64-linux-gnu-as", "aarch64-linux-gnu-objcopy"
FOLDER = Path(__file__).parent
CALLS = {stub.EL2: 0x88, stub.EL3: 0x84}
VECTORS = 0x800
STATES = {
    stub.EL2: ("RUNNING", "REQUEST", "FORWARD", "FAULT", "UNDEFINED"),
    stub.EL3: ("RUNNING", "REQUEST", "FAULT", "OFF", "UNDEFINED"),
}


def assembled(source: str, folder: Path) -> bytes:
    if shutil.which(AS) is None:
        pytest.skip(f"{AS} is not installed (Debian package binutils-aarch64-linux-gnu)")
    (folder / "x.S").write_text(source, "utf-8")
    subprocess.run([AS, "-o", "x.o", "x.S"], cwd=folder, check=True, timeout=60)
    subprocess.run([OBJCOPY, "-O", "binary", "x.o", "x.bin"], cwd=folder, check=True, timeout=60)
    return (folder / "x.bin").read_bytes()


@pytest.mark.parametrize("name", [stub.EL2, stub.EL3])
def test_the_words_are_the_source(name: str, tmp_path: Path) -> None:
    assert stub.code(name) == assembled(stub.source(name), tmp_path)


def test_the_words_of_the_test_kernel_are_its_source(tmp_path: Path) -> None:
    source, words = [FOLDER / f"undefined.{kind}" for kind in ("S", "hex")]
    code = stub.parse_words(words.read_text("utf-8"))
    assert code == assembled(source.read_text("utf-8"), tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("bell", "served"),
    [(SEMIHOSTING, 4), (POLLING, 4), (UART, 3)],
    ids=[SEMIHOSTING, POLLING, UART],
)
def test_calls_with_an_immediate_are_undefined(files: Bundle, bell: str, served: int) -> None:
    """A kernel of our own counts its exceptions. Without EL2 the processor itself refuses the HVC."""
    kernel = stub.parse_words((FOLDER / "undefined.hex").read_text("utf-8"))
    events: list[object] = []
    settings = run.RunSettings(kernel=kernel, board=BoardSettings(bell=bell), seconds=30)
    with run.Run(files, settings, sinks=[events.append]) as running:
        guest = running.start()
        assert running.serve()
        running.result(finished=False)
    assert guest.console.lines == ["uuut"]
    assert guest.ended == "switched off"
    assert len([event for event in events if isinstance(event, TrapUndefined)]) == served


@pytest.mark.parametrize("name", [stub.EL2, stub.EL3])
def test_source_and_mailbox_have_the_same_numbers(name: str) -> None:
    numbers = {
        symbol: int(value, 0)
        for symbol, value in re.findall(r"\.equ\s+(\w+), (0x[0-9a-f]+|\d+)", stub.source(name))
    }
    assert numbers["MAILBOX"] == mailbox.MAILBOX
    for state in STATES[name]:
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
    box.undefined()
    assert struct.unpack_from("<8Q", page) == (9, 8, 0, 6, 5, 6, 7, 8)
    assert box.state == mailbox.UNDEFINED


@pytest.mark.parametrize("name", [stub.EL2, stub.EL3])
def test_only_calls_of_el1_are_served(name: str) -> None:
    """Fifteen of sixteen vectors lead to the end of the stub, one to the call."""
    code, call = stub.code(name), CALLS[name]
    targets = []
    for vector in range(16):
        at = VECTORS + 128 * vector
        (word,) = struct.unpack_from("<I", code, at)
        assert word >> 26 == 0b000101  # b
        offset = (word & 0x3FFFFFF) - (1 << 26 if word & 1 << 25 else 0)
        targets.append(at + 4 * offset)
    assert targets[8] == call
    assert len(set(targets[:8] + targets[9:])) == 1
    assert call not in targets[:8] + targets[9:]


def test_vcpus_that_the_emulator_does_not_start() -> None:
    """At EL3 an entry of 0 means off; PSCI is answered here."""
    pages = [bytearray(4096) for _ in range(2)]
    boxes = [Mailbox(memoryview(page)) for page in pages]
    power = Power(boxes)
    on = (psci.PSCI_CPU_ON_AARCH64, 1, 0x4020_0000, 7, 0, 0, 0, 0)
    assert power.call(0, on) == (0, *on[1:])
    assert struct.unpack_from("<QQ", pages[1], 0x58) == (0x4020_0000, 7)
    already = (1 << 64) + psci.PSCI_E_ALREADY_ON
    again = power.call(0, on)
    assert isinstance(again, tuple)
    assert again[0] == already
    assert power.call(1, (psci.PSCI_CPU_OFF, *[0] * 7)) is PsciAction.CPU_OFF
    assert struct.unpack_from("<QQ", pages[1], 0x50) == (mailbox.OFF, 0)
    assert power.power_state(1) == psci.PSCI_0_2_AFFINITY_LEVEL_OFF
    assert power.call(0, (psci.PSCI_SYSTEM_OFF, *[0] * 7)) is PsciAction.SYSTEM_OFF


@pytest.mark.parametrize("text", ["0: 1\n0: 2\n", "2: 1\n", "x\n"])
def test_a_broken_listing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"stub|invalid"):
        stub.parse_words(text)
