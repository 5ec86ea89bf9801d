# SPDX-License-Identifier: BSD-2-Clause
"""The C client against a hypervisor that says anything, under sanitizers."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from random import Random

import pytest

from mediator.deployment import app_abi as abi
from mediator.host import PAGE_SIZE
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_smc as smc
from specs.app_abi import c
from tests.app_c.build import HERE, SANITIZED, SANITIZER_EXIT
from tests.app_c.peer import ARENA_PAGES, AppProcess, Gone, pack

RUNS = 6000
"""About two seconds."""


def build(folder: Path, old: str = "", new: str = "") -> Path:
    """The fuzz program, with a change to the client's source."""
    c.write(folder)
    client = folder / "optee_app.c"
    text = client.read_text("utf-8")
    assert old in text
    client.write_text(text.replace(old, new), "utf-8")
    program = folder / "fuzz_client"
    flags = [flag for flag in SANITIZED if not flag.startswith("-D")]
    sources = [str(HERE / "fuzz_client.c"), str(HERE / "sanitizers.c")]
    subprocess.run(
        ["cc", "-std=gnu99", "-w", *flags, f"-I{folder}", "-o", str(program), *sources], check=True
    )
    return program


def fuzz(program: Path, seed: int, runs: int) -> subprocess.CompletedProcess[str]:
    command = [str(program), str(seed), str(runs)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("seed", [1, 2])
def test_any_words_of_the_hypervisor(seed: int, fuzzer: Path) -> None:
    done = fuzz(fuzzer, seed, RUNS)
    assert (done.returncode, done.stderr) == (0, "")
    entered, answered, broken, panics, reads = map(int, done.stdout.split())
    assert entered > 3 * RUNS
    assert answered > 10 * RUNS
    assert broken > RUNS // 3
    assert panics > RUNS // 50
    assert reads > answered


PLANTED = {
    "a payload of any length is taken": (
        "if (answer->payload_length != length)",
        "length = answer->payload_length; if (0)",
    ),
    "an offset is believed": (
        "return offset % APP_PAGE == 0 && offset <= app->arena_bytes &&",
        "return 1 || offset <= app->arena_bytes &&",
    ),
    "a payload beyond the app's buffer": (
        "if (in.length > (app->buffer == NULL ? 0 : app->buffer_bytes)) {",
        "if (0) {",
    ),
    "more is pinned than asked for": (
        "if (app->broken == 0 && answer.args[1] > entries)",
        "if (0)",
    ),
    "entries without end": ("app->depth >= app->max_entries)", "0)"),
    "too many segments": ("if (count > APP_MAX_SEGMENTS)", "if (0)"),
    "posted although nobody offered it": ("(app->offers & APP_OFFER_POSTING) != 0 &&", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    program = build(tmp_path, *PLANTED[name])
    assert fuzz(program, 1, RUNS).returncode != 0


# --- a whole app --------------------------------------------------------------------------------------


class Liar:
    """A hypervisor that starts an app properly and then answers what it likes."""

    def __init__(self, program: Path, seed: int, stderr: Path) -> None:
        self.random = Random(seed)
        self.process = AppProcess(program, stderr)

    def run(self) -> None:
        """Until the app or the patience ends."""
        self.process.message()
        offers = self.random.choice((0, abi.OFFER_POSTING))
        args = (abi.MAJOR, abi.MINOR, offers, ARENA_PAGES * PAGE_SIZE, abi.MAX_ENTRIES)
        self.process.send(pack(abi.WELCOME, args=args, payload=b"{}"))
        life = [(abi.ENTRY_INIT, (0,)), (abi.ENTRY_GUEST_CREATED, (1, 2))]
        for step in range(30):
            number, words = life[step] if step < len(life) else (abi.ENTRY_HANDLE_SMC, (1, 0))
            payload = self.registers() if number == abi.ENTRY_HANDLE_SMC else b""
            self.say(pack(abi.ENTRY, number, step + 1, args=words, payload=payload))
            while True:
                header, _ = self.process.message()
                if header[1] == Syscall.RETURN:
                    break
                if not header[2] & abi.FLAG_POSTED:
                    self.say(self.answer(header))

    def say(self, message: bytes) -> None:
        """Now and then with a wrong bit."""
        if self.random.random() < 0.01:
            wrong = bytearray(message)
            wrong[self.random.randrange(len(wrong))] ^= 1 << self.random.randrange(8)
            message = bytes(wrong)
        self.process.send(message)

    def registers(self) -> bytes:
        functions = (smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
                     smc.OPTEE_SMC_CALL_WITH_REGD_ARG, smc.OPTEE_SMC_CALL_RETURN_FROM_RPC,
                     smc.OPTEE_SMC_DISABLE_SHM_CACHE)  # fmt: skip
        small = [self.random.choice((0, 0, 1, 8, 0x1000, 4064)) for _ in range(7)]
        return abi.REGISTERS.pack(self.random.choice(functions), *small)

    def answer(self, header: tuple[int, ...]) -> bytes:
        random = self.random
        _, number, _, entry, length, _, *args = header
        status = random.choice((0, 0, 0, 0, 0, 0, 1, -4, -6))
        words: tuple[int, ...] = ()
        payload = b""
        if number == Syscall.SMC:
            answers = (0, 0, 3, smc.OPTEE_SMC_RETURN_RPC_CMD, smc.OPTEE_SMC_RETURN_RPC_ALLOC,
                       smc.OPTEE_SMC_RETURN_RPC_FREE, (1 << 64) - 1)  # fmt: skip
            words = (random.choice(answers), 0, 1, random.choice((0, 1, 2, 1 << 40)))
            arena = self.process.arena
            at = abi.WINDOW_PAGES * PAGE_SIZE
            for _ in range(4):
                place = at + random.randrange(256)
                arena[place] = random.randrange(256)
        elif number == Syscall.ALLOC_SHADOW:
            words = (abi.WINDOW_PAGES * PAGE_SIZE,)
            payload = struct.pack("<Q", 0x10_0000)
        elif number == Syscall.PIN_PAGES:
            payload = random.randbytes(length)
        elif number == Syscall.READ_PAGE_LIST:
            payload = random.randbytes(8 * args[2])
        elif number in (Syscall.READ_GUEST, Syscall.READ_PINNED):
            payload = self.guest_message().ljust(args[2], b"\0")[: args[2]]
        if status:
            words, payload = (), b""
        return pack(abi.RESULT, number, entry, status, words, payload)

    def guest_message(self) -> bytes:
        random = self.random
        count = random.choice((0, 1, 1, 2, 4, 127))
        body = struct.pack("<8I", random.choice((0, 1, 4, 4, 5)), 0, 0, 0, 0, 0, 0, count)
        for _ in range(count):
            attr = random.choice((1, 3, 5, 6, 0x209, 0x20A, 9, 0xFF))
            body += struct.pack("<4Q", attr, random.choice((0, 0x1000, 1 << 63)),
                                random.choice((8, 5000, 1 << 21, 1 << 63)), random.randrange(3))  # fmt: skip
        return body


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_a_mediator_and_a_lying_hypervisor(first: int, sanitized_app: Path, tmp_path: Path) -> None:
    for seed in range(first, first + 20):
        liar = Liar(sanitized_app, seed, tmp_path / "errors")
        try:
            liar.run()
        except Gone:
            code = liar.process.end()
            assert code in (0, 1), (seed, code, (tmp_path / "errors").read_text())
        else:
            assert liar.process.end() == 0
        assert code_is_clean(tmp_path / "errors")


def code_is_clean(errors: Path) -> bool:
    """Nothing was written by a sanitizer, whose exit code would have been another."""
    assert SANITIZER_EXIT not in (0, 1)
    return errors.read_text() == ""


@pytest.mark.parametrize("kind", [abi.HELLO, abi.ENTRY, abi.SYSCALL, abi.RESULT, 0, 0xFFFF])
def test_what_is_no_welcome_ends_the_app(kind: int, sanitized_app: Path, tmp_path: Path) -> None:
    process = AppProcess(sanitized_app, tmp_path / "errors")
    header, name = process.message()
    assert header[0] == abi.HELLO
    assert name == b"mini-mediator"
    args = (abi.MAJOR, abi.MINOR, 0, ARENA_PAGES * PAGE_SIZE, 4)
    process.send(pack(kind, args=args))
    assert process.child.wait(20) == 1
    process.end()
    assert code_is_clean(tmp_path / "errors")


@pytest.mark.parametrize(
    "status", [abi.UNKNOWN_VERSION, abi.NOT_ISOLATED, abi.NOT_TRUSTED], ids=str
)
def test_a_refused_app_ends(status: int, sanitized_app: Path) -> None:
    process = AppProcess(sanitized_app)
    process.message()
    process.send(pack(abi.WELCOME, status=status, payload=b"because"))
    assert process.child.wait(20) == 1
    process.end()


def test_a_payload_without_end_is_not_waited_for(sanitized_app: Path) -> None:
    process = AppProcess(sanitized_app)
    process.message()
    header = bytearray(pack(abi.WELCOME, args=(abi.MAJOR, 0, 0, ARENA_PAGES * PAGE_SIZE, 4)))
    header[12:16] = struct.pack("<I", abi.MAX_PAYLOAD + 1)
    process.send(bytes(header))
    assert process.child.wait(20) == 1
    process.end()
