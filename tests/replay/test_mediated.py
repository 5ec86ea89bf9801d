# SPDX-License-Identifier: BSD-2-Clause
"""Replay as mediator: recorded traffic passes unchanged, and a wrong mediator does not get through."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from mediator.optee.mediator import OpteeMediator
from mediator.optee.settings import Limits, MediatorSettings
from smccc import wire
from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay import homes, mediated
from specs.replay.drive import ReplaySyscalls
from specs.replay.mediated import replay_as_mediator
from specs.replay.reader import Trace, build_trace, load_trace
from specs.replay.records import Call, Return
from specs.replay.result import MediatorResult
from specs.replay.writer import create_trace
from tests.replay.golden import ALL, PARAMS, SESSION, VIRTUAL, trace

REGISTER = "CALL_WITH_RPC_ARG REGISTER_SHM"
INTERRUPT = "RETURN_FROM_RPC FOREIGN_INTR"
PROBE = {"CALLS_UID": 1, "GET_THREAD_COUNT": 1}
"""The mediator's own calls that every replay has."""


@pytest.mark.parametrize(
    ("path", "events", "classes", "by_rule", "own"),
    [
        (
            SESSION,
            72,
            {"CALL_WITH_REGD_ARG INVOKE_COMMAND": 18, REGISTER: 6, INTERRUPT: 6},
            1,
            {"VM_CREATED": 1, "VM_DESTROYED": 2, "GET_ASYNC_NOTIF_VALUE": 3},
        ),
        (
            PARAMS,
            638,
            {"RETURN_FROM_RPC FS": 270, REGISTER: 36, INTERRUPT: 92, "RETURN_FROM_RPC SUSPEND": 4},
            2,
            {"VM_CREATED": 1, "VM_DESTROYED": 2, "GET_ASYNC_NOTIF_VALUE": 8},
        ),
        (
            VIRTUAL,
            1680,
            {"RETURN_FROM_RPC NOTIFICATION": 228, REGISTER: 180, "VM_CREATED": 4},
            2,
            {"VM_DESTROYED": 2, "GET_ASYNC_NOTIF_VALUE": 8},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_recorded_traffic_passes_unchanged(
    path: Path, events: int, classes: dict[str, int], by_rule: int, own: dict[str, int]
) -> None:
    result = replay_as_mediator(trace(path))
    assert result.differences == ()
    assert (result.transparent, result.events) == (events, events)
    assert {c.name: c.events for c in result.classes}.items() >= classes.items()
    assert sum(c.events for c in result.classes) == events
    assert result.rules == {"hidden-capabilities": by_rule}
    assert result.own_calls == PROBE | own
    assert not result.blind
    assert not result.findings
    assert not result.pinned_before_teardown
    assert not result.pinned
    # Notification values, from what the mediator was told when the interrupt came.
    values = {c.name: c.events for c in result.classes}.get("GET_ASYNC_NOTIF_VALUE", 0)
    assert result.answered_by_mediator == values // 2
    assert result.ok


def test_a_trace_without_capability_words_needs_no_rule() -> None:
    result = replay_as_mediator(trace(SESSION), MediatorSettings(capabilities=0xFFFFFFFF))
    assert result.ok
    assert not result.rules


# --- wrong mediators ------------------------------------------------------------------------------


def test_a_hidden_capability_that_must_not_be_hidden_is_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mediated, "MediatorSettings", partial(MediatorSettings, capabilities=0xD6))
    result = replay_as_mediator(trace(SESSION))
    assert not result.ok
    assert result.differences[0].event == "answer to EXCHANGE_CAPABILITIES"


@pytest.mark.parametrize(
    "settings",
    [
        MediatorSettings(client_id_base=2),
        MediatorSettings(limits=Limits(buffers=1)),
        MediatorSettings(limits=Limits(buffer_pages=1)),
    ],
    ids=["client", "buffers", "pages"],
)
def test_wrong_settings_are_noticed(settings: MediatorSettings) -> None:
    result = replay_as_mediator(trace(PARAMS), settings)
    assert not result.ok or result.rules.keys() - {"hidden-capabilities"}
    assert not result.pinned


class WrongClient(ReplaySyscalls):
    async def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        return await super().smc(a0, a1, a2, a3, a4, a5, a6, 0)


class LostStatus(ReplaySyscalls):
    async def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        a0, *_ = await super().smc(a0, a1, a2, a3, a4, a5, a6, a7)
        return a0, 0, 0, 0


class Untranslated(ReplaySyscalls):
    """Pins the right pages, and tells the secure world the guest's addresses."""

    async def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        return None if await super().pin_pages(guest, ipas) is None else ipas

    async def unpin_pages(self, guest: int, frames: bytes) -> None:
        pass


class StillPinned(ReplaySyscalls):
    async def unpin_pages(self, guest: int, frames: bytes) -> None:
        pass


class NothingComesBack(ReplaySyscalls):
    async def write_guest(
        self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]
    ) -> bool:
        return True

    async def write_pinned(
        self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]
    ) -> None:
        pass


class Misreads(ReplaySyscalls):
    """Reads one bit of the first parameter wrong."""

    async def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        data = await super().read_guest(guest, ipa, length)
        return None if data is None else self._misread(data)

    async def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        return self._misread(await super().read_pinned(guest, pa, length))

    @staticmethod
    def _misread(data: bytes) -> bytes:
        at = wire.message_size(0) + 16
        return data if len(data) <= at else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Raises(ReplaySyscalls):
    async def alloc_shadow(self, pages: int) -> object:  # type: ignore[override]
        raise RuntimeError("no shadow today")


class Chatty(ReplaySyscalls):
    """Enters the secure world twice for every call."""

    async def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        await super().smc(a0, a1, a2, a3, a4, a5, a6, a7)
        return await super().smc(a0, a1, a2, a3, a4, a5, a6, a7)


def wrong(
    monkeypatch: pytest.MonkeyPatch, syscalls: type[ReplaySyscalls], path: Path
) -> MediatorResult:
    monkeypatch.setattr(homes, "ReplaySyscalls", syscalls)
    return replay_as_mediator(trace(path))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "syscalls", [WrongClient, LostStatus, Untranslated, NothingComesBack, Misreads, Raises, Chatty]
)
def test_a_wrong_mediator_is_noticed(
    monkeypatch: pytest.MonkeyPatch, syscalls: type[ReplaySyscalls], path: Path
) -> None:
    result = wrong(monkeypatch, syscalls, path)
    assert not result.ok
    assert result.differences
    assert result.events == sum(c.events for c in result.classes), "every event is judged once"
    assert result.different_events == sum(c.different for c in result.classes)


def test_pins_that_stay_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    result = wrong(monkeypatch, StillPinned, PARAMS)
    assert not result.differences
    assert result.pinned_before_teardown
    assert result.pinned
    assert not result.ok


def test_an_exception_in_the_mediator_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    result = wrong(monkeypatch, Raises, SESSION)
    assert any("RuntimeError: no shadow today" in str(d) for d in result.differences)


def test_a_mediator_that_answers_by_itself_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = OpteeMediator.handle

    async def deaf(
        self: OpteeMediator, sys: ReplaySyscalls, guest: int, vcpu: int, regs: tuple[int, ...]
    ) -> tuple[int, ...]:
        if low32(regs[0]) == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
            return (smc.OPTEE_SMC_RETURN_EBADADDR, *regs[1:])
        return await handle(self, sys, guest, vcpu, regs)  # type: ignore[return-value]

    monkeypatch.setattr(OpteeMediator, "handle", deaf)
    result = replay_as_mediator(trace(SESSION))
    assert not result.ok
    events = {(d.event, d.side, d.field) for d in result.differences}
    assert ("CALL_WITH_REGD_ARG OPEN_SESSION", "forwarded", "call") in events
    assert ("end of CALL_WITH_REGD_ARG OPEN_SESSION", "answered", "a0") in events
    assert len(result.differences) == len(set(result.differences))
    assert result.answered_by_mediator


# --- incomplete recordings ------------------------------------------------------------------------


def stretch(path: Path, first: int, last: int) -> Trace:
    """Records of a part of a trace, renumbered."""
    whole = trace(path)
    events = [e for e in whole.events if first <= e.seq < last]
    calls = {e.seq for e in events if isinstance(e, Call)}
    kept = [e for e in events if isinstance(e, Call) or e.of in calls]
    return build_trace("stretch", iter([whole.meta, *kept]), {})


@pytest.mark.parametrize("path", [PARAMS, VIRTUAL], ids=lambda path: path.name)
@pytest.mark.parametrize("share", [0.05, 0.21, 0.5, 0.77, 0.93])
def test_a_trace_may_end_anywhere(path: Path, share: float) -> None:
    end = int(len(trace(path).records) * share)
    result = replay_as_mediator(stretch(path, 0, end))
    assert result.differences == ()
    assert result.ok
    assert result.events == result.transparent


@pytest.mark.parametrize("path", [PARAMS, VIRTUAL], ids=lambda path: path.name)
@pytest.mark.parametrize("share", [0.05, 0.21, 0.5, 0.77, 0.93])
def test_a_trace_may_begin_anywhere(path: Path, share: float) -> None:
    whole = trace(path)
    cut = stretch(path, int(len(whole.records) * share), len(whole.records))
    result = replay_as_mediator(cut)
    assert result.differences == ()
    assert result.ok
    assert result.rules.keys() <= {"hidden-capabilities", "before-the-trace", "one-instance"}


def test_a_call_that_never_returns_is_counted(tmp_path: Path) -> None:
    whole = trace(SESSION)
    last = max(e.seq for e in whole.events if isinstance(e, Return))
    result = replay_as_mediator(stretch(SESSION, 0, last))
    assert (result.events, result.transparent, result.unanswered) == (71, 71, 1)
    assert result.ok


def test_unknown_fields_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "t"
    whole = trace(SESSION)
    with create_trace(path, whole.meta.values) as writer:
        for record in whole.records:
            writer.write(record)
    lines = path.read_text().splitlines(keepends=True)
    lines = [line.replace('{"seq"', '{"temperature": 7, "seq"') for line in lines]
    path.write_text("".join(lines))
    result = replay_as_mediator(load_trace(path))
    assert result.ok
    assert any("temperature" in note for note in result.notes)
