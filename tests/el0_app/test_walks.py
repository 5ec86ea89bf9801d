# SPDX-License-Identifier: BSD-2-Clause
"""A long list that is read and pinned in one request, into the arena: the list that the TEE would get."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.deployment import app_abi as abi
from mediator.deployment.el0_app.channel import Message
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.server import SHADOWS_AT
from mediator.deployment.el0_app.walks import list_writer
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import PAGE_LIST_ENTRIES, PAGE_SIZE, Shadow
from mediator.optee.memory import _linked, _listed
from mediator.optee.settings import Limits, MediatorSettings
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_smc as smc
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, MESSAGE_AT, RAM, WithOptee

LIST = RAM + 0x10_0000
FIRST = RAM + 0x20_0000
COOKIE = 0x7700
STEPS = MediatorSettings(
    limits=Limits(walk_entries=PAGE_LIST_ENTRIES, pin_entries=PAGE_LIST_ENTRIES)
)
COUNTS = (1, 37, 39, 510, 511, 512, 1021, 1022, 1023, 1600)


class Register:
    """Registers a buffer whose list is as a test wants it, and notes what the TEE got.

    ``rig``: its guest has more RAM than usual. ``stops``: at which questions the host wants to stop.
    """

    def __init__(self, rig: WithOptee, stops: tuple[int, ...] = ()) -> None:
        self.rig = rig
        self.asked = 0
        self.stops = stops
        self.seen: list[bytes] = []
        assert rig.host.populate(GUEST, FIRST, 2048)
        rig.events.listener = None
        rig.bus.guard_shadows(lambda client, frame: True)
        rig.host.preempt_policy = self.preempts
        self.world = rig.host.secure_smc
        rig.host.secure_smc = self.secure_smc

    def preempts(self) -> bool:
        self.asked += 1
        return self.asked in self.stops

    def secure_smc(self, *regs: int) -> tuple[int, int, int, int]:
        if regs[0] == smc.OPTEE_SMC_CALL_WITH_RPC_ARG:
            message = self.rig.memory.read(regs[1] << 32 | regs[2], 64)
            command, attr, at, size = (
                *struct.unpack_from("<I", message),
                *struct.unpack_from("<3Q", message, 32),
            )
            if command == 4 and attr & 0x200:
                entries = -(-size // PAGE_SIZE)
                pages = -(-entries // PAGE_LIST_ENTRIES)
                self.seen += [
                    self.rig.memory.read(at + n * PAGE_SIZE, PAGE_SIZE) for n in range(pages)
                ]
        assert self.world is not None
        return self.world(*regs)

    def __call__(self, words: list[int]) -> list[tuple[int, ...]]:
        """Registers of each call that it took."""
        for at in range(0, len(words), PAGE_LIST_ENTRIES):
            page = LIST + at // PAGE_LIST_ENTRIES * PAGE_SIZE
            part = words[at : at + PAGE_LIST_ENTRIES]
            self.rig.put(page, struct.pack(f"<{len(part)}Q", *part))
            self.rig.put(page + PAGE_SIZE - 8, struct.pack("<Q", page + PAGE_SIZE))
        body = msg(4, params=[(0x20A, LIST, len(words) * PAGE_SIZE, COOKIE)])
        answers = [self.rig.call(MESSAGE_AT, body)]
        while answers[-1][0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR and len(answers) < 20:
            answers.append(self.rig.resume(answers[-1][3]))
        return answers


class Here(WithOptee):
    def deploy(self, settings: MediatorSettings | None) -> InHypervisor:
        return InHypervisor(self.host, settings)


class There(AppRig):
    def deploy(self, settings: MediatorSettings | None) -> El0App:
        self.app = self._kind(self.host, settings)
        return self.app


def outcome(register: Register, words: list[int]) -> tuple[object, ...]:
    answers = register(words)
    rig = register.rig
    return (answers, rig.result(MESSAGE_AT), rig.host.pins(GUEST), rig.tee.guest_info(GUEST),
            register.seen, register.asked)  # fmt: skip


def compared(
    words: list[int], settings: MediatorSettings, stops: tuple[int, ...] = ()
) -> tuple[object, ...]:
    """The same in both homes; what came of it."""
    there = There(LocalApp, settings)
    try:
        expected = outcome(Register(Here(settings), stops), words)
        assert outcome(Register(there, stops), words) == expected
        assert not there.app.deaths
        assert not there.app.total_usage().refused
        return expected
    finally:
        there.app.close()


def pages(count: int) -> list[int]:
    """Pages of the guest, out of order, some of them twice."""
    return [FIRST + number * 7 % 2000 * PAGE_SIZE for number in range(count)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("settings", [MediatorSettings(), STEPS], ids=["long", "short"])
def test_the_tee_gets_the_same_list(count: int, settings: MediatorSettings) -> None:
    _, result, pins, _, seen, _ = compared(pages(count), settings)
    assert result[0] == 0  # type: ignore[index]
    assert sum(pins.values()) == count  # type: ignore[attr-defined]
    assert len(seen) == -(-count // PAGE_LIST_ENTRIES)  # type: ignore[arg-type]


@pytest.mark.parametrize("stops", [(1,), (2,), (1, 2, 3)])
def test_a_walk_that_is_stopped_goes_on_where_it_was(stops: tuple[int, ...]) -> None:
    answers, result, *_ = compared(pages(1600), STEPS, stops)
    assert len(answers) == 1 + len(stops)  # type: ignore[arg-type]
    assert result[0] == 0  # type: ignore[index]


@pytest.mark.parametrize("at", [0, 511, 1100, 1599])
def test_a_page_that_is_not_the_guests_ends_it_with_nothing_pinned(at: int) -> None:
    words = pages(1600)
    words[at] = 0x6000_0000_0000
    _, result, pins, *_ = compared(words, STEPS)
    assert result[0] != 0  # type: ignore[index]
    assert not pins


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("count", [3, 600])
def test_offsets_of_entries(kept: bool, count: int) -> None:
    words = pages(count)
    words[1] |= 0x123
    compared(words, attrs.evolve(STEPS, entry_offsets=kept))


# --- what an app may not --------------------------------------------------------------------------


@pytest.fixture
def rig() -> Iterator[There]:
    made = There(LocalApp, STEPS)
    Register(made)(pages(511))
    yield made
    made.app.close()


ARENA = 32 << 20


@pytest.mark.parametrize(
    ("entries", "step", "offset", "status"),
    [
        (511, 511, SHADOWS_AT, abi.OK),
        (511, 511, ARENA - PAGE_SIZE, abi.OK),
        (512, 511, ARENA - PAGE_SIZE, abi.BAD_ARGUMENT),
        (511, 511, ARENA, abi.BAD_ARGUMENT),
        (511, 511, (1 << 64) - PAGE_SIZE, abi.BAD_ARGUMENT),
        (abi.MAX_PAGES, 511, SHADOWS_AT, abi.TOO_MUCH),
        (abi.MAX_PAGES + 1, 511, SHADOWS_AT, abi.BAD_ARGUMENT),
        (1 << 63, 511, SHADOWS_AT, abi.BAD_ARGUMENT),
        (511, 511, 0, abi.BAD_ARGUMENT),
        (511, 511, SHADOWS_AT - PAGE_SIZE, abi.BAD_ARGUMENT),
        (511, 511, SHADOWS_AT + 8, abi.BAD_ARGUMENT),
        (0, 511, SHADOWS_AT, abi.BAD_ARGUMENT),
        (511, 0, SHADOWS_AT, abi.BAD_ARGUMENT),
        (511, 510, SHADOWS_AT, abi.BAD_ARGUMENT),
    ],
)
def test_the_place_of_the_list(
    entries: int, step: int, offset: int, status: int, rig: There
) -> None:
    (instance,) = rig.app._instances()
    grant = instance.grants[GUEST]
    before = grant.pins.count
    entry = instance.begin(abi.ENTRY_HANDLE_SMC, GUEST, grant)
    words = (GUEST, LIST, entries, step, offset, 0, 0, 0)
    asked = Message(int(Syscall.PIN_LIST), 0, entry.name, 0, words, b"")
    answer = struct.unpack_from("<q2Q", instance.server.execute(entry, asked), 16)
    assert answer[0] == status
    assert grant.pins.count - before == answer[2] == (entries if status == abi.OK else 0)
    instance.end(entry)


@given(
    st.lists(st.integers(0, 3), max_size=4),
    st.integers(0, 1200),
    st.integers(0, 2),
    st.integers(0, 1 << 52),
)
def test_what_is_written_is_what_is_read(steps: list[int], rest: int, page: int, base: int) -> None:
    """Any number of steps of whole pages and a last one, from any page of the list on."""
    count = sum(steps) * PAGE_LIST_ENTRIES + rest
    total = page + -(-count // PAGE_LIST_ENTRIES)
    memory = bytearray(b"\xee" * (total * PAGE_SIZE))
    shadow = Shadow(struct.pack(f"<{total}Q", *range(total)), memoryview(memory))
    words = [base + number for number in range(count)]
    write, at = list_writer(shadow.mem[page * PAGE_SIZE :]), 0
    for step in [*[step * PAGE_LIST_ENTRIES for step in steps], rest]:
        if step:
            write(struct.pack(f"<{step}Q", *words[at : at + step]))
            at += step
    assert struct.unpack(f"<{count}Q", _listed(shadow, page, count)) == tuple(words)
    assert memory[: page * PAGE_SIZE] == b"\xee" * (page * PAGE_SIZE)
    _linked(shadow, page, count)
    for number in range(page, total - 1):
        link = memory[(number + 1) * PAGE_SIZE - 8 : (number + 1) * PAGE_SIZE]
        assert int.from_bytes(link, "little") == number + 1
    assert struct.unpack(f"<{count}Q", _listed(shadow, page, count)) == tuple(words)
