# SPDX-License-Identifier: BSD-2-Clause
"""Replay as secure world: our simulated OP-TEE answers recorded calls as the recorded one did."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from uuid import UUID

import attrs
import pytest

from secure_world.apps import applications, devices
from secure_world.ree_fs import ReeFileSystem
from secure_world.ta import TaRegistry
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay import simulated
from specs.replay.reader import build_trace
from specs.replay.records import Return
from specs.replay.result import SecureResult
from specs.replay.simulated import FS_LAYOUTS, replay_as_secure_world
from tests.replay.golden import ALL, PARAMS, SESSION, VIRTUAL, trace

STORE = "OP-TEE's own store"

KIND_RMEM = (
    0,
    msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT,
    msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT,
    msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT,
)

ALL_EQUAL = {
    "fast calls": lambda name: name.startswith(("CALLS_", "GET_", "EXCHANGE", "ENABLE", "DISABLE")),
    "life cycle": lambda name: name.startswith("VM_"),
    "registrations": lambda name: name.endswith(("REGISTER_SHM", "UNREGISTER_SHM")),
    "sessions": lambda name: name.endswith(("OPEN_SESSION", "CLOSE_SESSION", "CANCEL")),
    "invocations": lambda name: name.endswith("INVOKE_COMMAND"),
    "notifications": lambda name: name.endswith(("DO_BOTTOM_HALF", "STOP_ASYNC_NOTIF")),
    "suspension and time": lambda name: name.endswith(("SUSPEND", "GET_TIME")),
}
"""Groups of classes of which every answer must be equal, none apart."""


@cache
def replayed(path: Path) -> SecureResult:
    return replay_as_secure_world(trace(path))


@pytest.mark.parametrize(
    ("path", "answers", "equal", "apart"),
    [
        (SESSION, 36, 36, {}),
        (PARAMS, 319, 176, {"FS": 135, "SHM_ALLOC": 4, "SHM_FREE": 4}),
        (VIRTUAL, 840, 649, {"FS": 181, "SHM_ALLOC": 5, "SHM_FREE": 5}),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_recorded_calls_are_answered_as_recorded(
    path: Path, answers: int, equal: int, apart: dict[str, int]
) -> None:
    result = replayed(path)
    assert result.differences == ()
    assert result.ok
    assert (result.answers, result.equal, result.different) == (answers, equal, 0)
    assert result.apart == {f"{STORE}: {name}": count for name, count in apart.items()}
    assert result.hidden_waits == 0
    assert sum(c.answers for c in result.classes) == answers


@pytest.mark.parametrize("group", ALL_EQUAL)
def test_whole_groups_are_equal(group: str) -> None:
    seen = 0
    for path in ALL:
        for row in replayed(path).classes:
            if ALL_EQUAL[group](row.name):
                assert (row.equal, row.different, row.apart) == (row.answers, 0, 0), row.name
                seen += row.answers
    assert seen


def test_resumptions_in_calls_of_our_own_tas_are_equal() -> None:
    """What is apart after a foreign interrupt or a wait is only a request to OP-TEE's store."""
    for path in (PARAMS, VIRTUAL):
        recorded = trace(path)
        result = replayed(path)
        apart = sum(result.apart.values())
        requests = {"FS", "SHM_ALLOC", "SHM_FREE"}
        asked = [e for e in recorded.events if isinstance(e, Return) and e.rpc_arg is not None]
        assert apart <= len(asked)
        assert {name.removeprefix(f"{STORE}: ") for name in result.apart} <= requests


def test_a_wrong_answer_in_the_recording_is_a_difference() -> None:
    recorded = trace(SESSION)
    events = list(recorded.records)
    at = next(
        i
        for i, e in enumerate(events)
        if isinstance(e, Return) and e.msg is not None and any(e.msg.data[20:24])
    )
    event = events[at]
    assert isinstance(event, Return)
    assert event.msg is not None
    data = bytearray(event.msg.data)
    data[20] ^= 1
    events[at] = attrs.evolve(event, msg=attrs.evolve(event.msg, data=bytes(data)))
    changed = build_trace("changed", iter([recorded.meta, *events]), {})
    result = replay_as_secure_world(changed)
    assert not result.ok
    assert [d.seq for d in result.differences] == [event.seq]
    assert "msg.ret" in result.differences[0].field


def test_a_wrong_secure_world_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SecureWorld.smc

    def forgetful(self: SecureWorld, *regs: int) -> tuple[int, int, int, int]:
        if low32(regs[0]) == smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF:
            return smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION, 0, 0, 0
        return real(self, *regs)

    monkeypatch.setattr(SecureWorld, "smc", forgetful)
    result = replay_as_secure_world(trace(SESSION))
    assert result.differences[0].event == "ENABLE_ASYNC_NOTIF"
    assert result.differences[0].field == "a0"


# --- TAs that we do not have ------------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, path: Path) -> SecureResult:
    """With no TA of our own but the device enumeration, which shows the build."""
    monkeypatch.setattr(simulated, "default_registry", lambda: TaRegistry(applications(devices)))
    return replay_as_secure_world(trace(path))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_calls_of_tas_that_we_do_not_have_are_apart_by_name(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    result = without(monkeypatch, path)
    assert result.differences == (), "and everybody else is still in step"
    names = {name for name in result.apart if STORE not in name}
    assert names
    for name in names:
        UUID(name.removeprefix("TA ").split()[0])


def test_sessions_of_tas_that_we_do_not_have_are_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    result = without(monkeypatch, SESSION)
    rows = {row.name: row for row in result.classes}
    assert rows["CALL_WITH_REGD_ARG INVOKE_COMMAND"].apart
    assert rows["CALL_WITH_RPC_ARG REGISTER_SHM"].equal == 3
    assert rows["CALL_WITH_REGD_ARG DO_BOTTOM_HALF"].equal == 2


# --- OP-TEE's store ---------------------------------------------------------------------------------


class Payload:
    """The buffer of a file request: registered memory of the normal world."""

    def param(self, direction: int, offset: int, size: int) -> tuple[int, int, int, int]:
        return KIND_RMEM[direction], offset, size, 7

    def write(self, offset: int, data: bytes) -> None:
        pass

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)


class Requests(ReeFileSystem):
    """Collects requests instead of making them."""

    def __init__(self) -> None:
        self.layouts: dict[int, bytes] = {}

    async def _payload(self, size: int) -> Payload:  # type: ignore[override]
        return Payload()

    async def _request(self, *params: tuple[int, int, int, int]) -> tuple[int, ...]:
        self.layouts[params[0][1]] = bytes([param[0] for param in params])
        return (0,) * 32

    async def everything(self) -> None:
        await self.open("a")
        await self.create("a")
        await self.read(1, 0, 10)
        await self.write(1, 0, b"x")
        await self.truncate(1, 0)
        await self.close(1)
        await self.rename("a", "b")
        await self.remove("b")
        await self.opendir("d")
        await self.readdir(1)
        await self.closedir(1)


def test_layouts_of_file_requests_are_those_of_our_secure_world() -> None:
    requests = Requests()
    with pytest.raises(StopIteration):
        requests.everything().send(None)
    assert requests.layouts == FS_LAYOUTS
