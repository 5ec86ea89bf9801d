# SPDX-License-Identifier: BSD-2-Clause
"""A recorded Linux session as a guest: it is answered as the recorded OP-TEE answered it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from mediator.guest.replayed import RecordedSession
from mediator.hypervisor import machine_events
from mediator.scenario.result import ReplayResult
from smccc.constants import optee_smc as smc
from specs.replay import names
from specs.replay.guest import load_session
from specs.replay.records import TraceError
from tests.scenario.support import TRACES, Seen, guest, make, problems, run, session

TRACE = TRACES / "linux-optee-session.jsonl"
REPLAY = '[[guest]]\nname = "recorded"\nkernel = "replay"\nscatter = false\n'


def replayed(recording: RecordedSession, more: str = "", mode: str = "direct") -> ReplayResult:
    text = f'[platform]\nmode = "{mode}"\n' + REPLAY + more
    result = run(text, load_session=lambda *_: recording)
    assert result.totals.pins == result.totals.violations == 0
    found = guest(result, "recorded").replay
    assert found is not None
    assert (problems(result) == []) == (not found.different)
    return found


def test_the_recording_in_the_wheel_is_the_one_of_the_tests() -> None:
    data = Path(__file__).parents[2] / "mediator" / "scenario" / "data" / "linux-session.jsonl"
    assert data.read_bytes() == TRACE.read_bytes()


@pytest.mark.parametrize("mode", ["direct", "interleave"])
@pytest.mark.parametrize("more", ["", 'conduit = "hvc"\n', "vcpus = 1\n", "vcpus = 3\n"])
def test_every_answer_is_as_recorded(mode: str, more: str) -> None:
    found = replayed(session("builtin:linux-session", "", ""), more, mode)
    assert (found.calls, found.answers, found.alike) == (36, 33, 33)
    assert (found.astray, found.different) == (0, 0)
    assert found.recording.startswith("Debian Linux 6.12")


def test_a_stretch_between_markers() -> None:
    whole = load_session(TRACE)
    probe = load_session(TRACE, "driver probe: insmod tee, optee", "driver probed")
    assert probe.calls == whole.calls[: len(probe.calls)]
    assert replayed(probe).alike == len(probe.calls)
    rest = load_session(TRACE, "pta open", "module unload")
    found = replayed(rest)
    # Its first page of messages was registered before the stretch begins.
    assert found.astray > 0
    assert found.alike + found.astray + found.different == found.answers


@pytest.mark.parametrize(
    ("first", "last", "missing"),
    [
        ("nowhere", "", "nowhere"),
        ("", "nowhere", "nowhere"),
        ("module unload", "pta open", "pta open"),
    ],
)
def test_a_marker_that_is_not_there(first: str, last: str, missing: str) -> None:
    with pytest.raises(TraceError, match=f"has no marker '{missing}'"):
        load_session(TRACE, first, last)


def changed(recording: RecordedSession, number: int, **changes: Any) -> RecordedSession:
    calls = list(recording.calls)
    calls[number] = attrs.evolve(calls[number], **changes)
    return attrs.evolve(recording, calls=tuple(calls))


def test_one_changed_bit_in_any_recorded_answer_is_found() -> None:
    recording = load_session(TRACE)
    planted = 0
    for number, call in enumerate(recording.calls):
        if call.final_message is None:
            continue
        ipa, data = call.final_message
        spoilt = data[:20] + bytes([data[20] ^ 1]) + data[21:]
        found = replayed(changed(recording, number, final_message=(ipa, spoilt)))
        assert found.different == 1
        assert "message field 5: " in found.differences[0]
        planted += 1
    assert planted > 20


def test_a_changed_register_and_a_changed_buffer_are_found() -> None:
    recording = load_session(TRACE)
    uid = next(
        n for n, call in enumerate(recording.calls) if call.function == smc.OPTEE_SMC_CALLS_UID
    )
    answer = recording.calls[uid].answer
    assert answer is not None
    found = replayed(changed(recording, uid, answer=(*answer[:3], answer[3] ^ 0x100)))
    assert found.differences == (
        "OPTEE_SMC_CALLS_UID: registers: 0x384fb3e0 0xe7f811e3 0xaf630002 0xa5d5c51b"
        " instead of 0x384fb3e0 0xe7f811e3 0xaf630002 0xa5d5c41b",
    )
    place, call = next((n, c) for n, c in enumerate(recording.calls) if c.final_buffers)
    ipa, data = call.final_buffers[0]
    spoilt = ((ipa, data[:-1] + bytes([data[-1] ^ 0x80])),)
    found = replayed(changed(recording, place, final_buffers=spoilt))
    assert f"byte {len(data) - 1} at {ipa:#x}" in found.differences[0]


def test_an_answer_that_differs_is_a_problem_of_the_run() -> None:
    recording = load_session(TRACE)
    message = recording.calls[-1].final_message
    assert message is not None
    spoilt = changed(recording, -1, final_message=(message[0], b"\1" + message[1][1:]))
    result = run(REPLAY, load_session=lambda *_: spoilt)
    (problem,) = problems(result)
    assert problem.startswith("recorded: ")
    assert "message field 0" in problem


def test_a_session_with_a_user_ta_goes_another_way_and_still_ends() -> None:
    """Its RPCs depend on images and stores that are not ours: refused, counted, never compared."""
    for name in ("linux61-params.jsonl.gz", "linux612-virtualization-guest1.jsonl.gz"):
        found = replayed(load_session(TRACES / name))
        assert found.different == 0, found.differences
        assert found.astray > 0
        assert found.alike > found.answers // 2


def test_the_session_is_the_recorded_one() -> None:
    lines = [json.loads(line) for line in TRACE.read_text("utf-8").splitlines()]
    calls = [line for line in lines if line.get("dir") == "call"]
    recording = load_session(TRACE)
    assert [list(map(hex, call.regs)) for call in recording.calls] == [c["regs"] for c in calls]
    assert [call.cpu for call in recording.calls] == [c["cpu"] for c in calls]
    assert [call.ended for call in recording.calls] == list(range(len(calls)))
    assert recording.vcpus == 2
    assert recording.ram == ((0x4000_0000, 262_144),)


def test_calls_begin_in_the_recorded_order_on_the_recorded_cpu() -> None:
    seen = Seen(machine_events.TrapEnter)
    recording = load_session(TRACE)
    text = '[platform]\nmode = "interleave"\n' + REPLAY
    result = make(text, listeners=[seen], load_session=lambda *_: recording).execute()
    assert result.ok
    traps = [
        trap for trap in seen.of(machine_events.TrapEnter) if trap.regs[0] != names.RETURN_FROM_RPC
    ]
    wanted = [call for call in recording.calls if call.function != names.RETURN_FROM_RPC]
    assert [(trap.vcpu, trap.regs[0]) for trap in traps] == [
        (call.cpu, call.function) for call in wanted
    ]
