# SPDX-License-Identifier: BSD-2-Clause
"""What explains a deviation is read off the scenario's calls and memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from specs.vectors.facts import Fact
from specs.vectors.model_target import ModelTarget
from specs.vectors.play import Play
from specs.vectors.reader import read_scenario
from specs.vectors.source import Value
from tests.vectors.golden import (
    Row,
    create,
    destroy,
    message,
    run,
    scenario,
    secure,
    smc,
    write,
)

WITH_ARG, RETURN = "0x32000004", "0x32000003"
MESSAGE, RPC_PAGE = "0x40000000", "0x40008000"
LIST = 0x40010000
NONCONTIG, TMEM_OUT = 0x200, 0xA
INVOKE, REGISTER, UNREGISTER, BOTTOM_HALF = 1, 4, 5, 6
FS, SHM_ALLOC = 2, 6
ALLOC = ("0xffff0000", "0x100", "0x0", "0x1")
CMD = ("0xffff0005", "0x0", "0x77", "0x1")


def calling(data: str, *calls: Row) -> list[Row]:
    return [create(), write(MESSAGE, data), smc(WITH_ARG, "0x0", MESSAGE, sw=list(calls))]


def invoking(*params: tuple[int, int, int, int], cmd: int = INVOKE) -> list[Row]:
    return calling(message(cmd, list(params)), secure(WITH_ARG))


def fast(function: str, *reply: str) -> list[Row]:
    padded = (*reply, *["0x0"] * (4 - len(reply)))
    return [create(), smc(function, sw=[secure(function, reply=padded)])]


def rpc(asked: str, answer: str = "", page: str = RPC_PAGE) -> list[Row]:
    """A call in which the TEE allocates an RPC page, asks something, and gets an answer."""
    steps = calling(message(INVOKE, []), secure(WITH_ARG, reply=ALLOC))
    request = secure(RETURN, "hi:m0", "lo:m0", reply=CMD)
    request["writes"] = [["m0", 0, asked]] if page != "0x0" else []
    steps.append(smc(RETURN, "0x0", page, "0x1", "0x0", "0x77", sw=[request]))
    if answer:
        steps.append(write(RPC_PAGE, answer))
        steps.append(smc(RETURN, "0x0", "0x77", "0x1", sw=[secure(RETURN)]))
    return steps


def many(count: int) -> list[Row]:
    """One call with ``count`` temporary buffers of one page."""
    params = [(NONCONTIG | TMEM_OUT, LIST, 0x1000, 0x100 + index) for index in range(count)]
    return [*invoking(*params)[:1], write(hex(LIST), "0000024000000000"), *invoking(*params)[1:]]


REQUEST = message(FS, [(1, 0, 0, 0)])
ZERO_PAGE = {"ipa": "0x0", "pages": 1, "kind": "ram", "pa": "0x890000000", "pa_step": 4096}
SHM_REQUEST = message(SHM_ALLOC, [(1, 0, 0x1000, 0)])
LISTED = NONCONTIG | TMEM_OUT


@pytest.mark.parametrize(
    ("fact", "steps"),
    [
        (Fact.CALLS_COUNT, fast("0xbf00ff00")),
        (Fact.SERVICE_QUERY, fast("0x8600ff01")[:1] + fast("0x8500ff01")[1:]),
        (Fact.THREAD_COUNT_CALL, fast("0xb200000f")),
        (Fact.BUILD_ID, fast("0xb2000001", "0x4", "0x1", "0xabcdef")),
        (Fact.NEWER_CAPABILITY, fast("0xb2000009", "0x0", "0x46")),
        (Fact.NOTIFICATION_CALL, fast("0xb2000010")),
        (Fact.NOTIFICATION_COMMAND, invoking(cmd=BOTTOM_HALF)),
        (Fact.RPC_ARG_CALL, fast("0x32000013")),
        (Fact.UNKNOWN_PARAM_TYPE, invoking((4, 1, 2, 3))),
        (Fact.CONTIGUOUS_BUFFER, invoking((TMEM_OUT, LIST, 8, 1))),
        (Fact.EMPTY_BUFFER, invoking((LISTED, LIST, 0, 1))),
        (Fact.LARGE_BUFFER, invoking((LISTED, LIST, 130 << 12, 1))),
        (Fact.MANY_BUFFERS, many(17)),
        (Fact.MANY_PAGES, invoking((LISTED, LIST, 16384 << 12, 1))),
        (
            Fact.UNALIGNED_LIST,
            [*invoking()[:1], write(hex(LIST), "0100024000000000"), *invoking((LISTED, LIST, 8, 1))[1:]],
        ),
        (Fact.OTHER_SHM_PARAM, invoking((1, 0, 0, 0), cmd=REGISTER)),
        (Fact.OTHER_SHM_PARAM, invoking(cmd=UNREGISTER)),
        (
            Fact.ATTRIBUTE_CHANGED,
            calling(message(INVOKE, [(3, 1, 2, 3)]), secure(WITH_ARG, "hi:m0", "lo:m0", writes=[["m0", 32, "01"]])),
        ),
        (Fact.ALLOCATION_FAILED, [create(), smc(WITH_ARG, "0x0", MESSAGE, fail_alloc=0)]),
        (Fact.TEARDOWN_PREEMPTED, [create(), destroy(preempt=[True])]),
        (Fact.REFUSED_DESTROY, [create(), {**destroy(), "sw": [secure("0xb200000e", reply=("0x7",) * 4)]}]),
        (
            Fact.LARGE_THREAD_ID,
            calling(message(INVOKE, []), secure(WITH_ARG, reply=("0xffff0004", "0x0", "0x0", "0x10000"))),
        ),
        (Fact.OVERSIZED_REQUEST, rpc("02000000" + "00" * 24 + "80000000")),
        (Fact.ADDRESS_IN_REQUEST, rpc(message(FS, [(9, 0x5000, 8, 1)]))),
        (Fact.COMMAND_IN_ANSWER, rpc(REQUEST, message(FS + 1, []))),
        (Fact.ADDRESS_IN_ANSWER, rpc(REQUEST, message(FS, [(9, 0x5000, 8, 1)]))),
        (Fact.ADDRESS_IN_ANSWER, rpc(SHM_REQUEST, message(SHM_ALLOC, [(LISTED | 1, LIST, 8, 1)]))),
        (Fact.CONTIGUOUS_ANSWER, rpc(SHM_REQUEST, message(SHM_ALLOC, [(TMEM_OUT, LIST, 8, 1)]))),
        (Fact.LARGE_BUFFER, rpc(SHM_REQUEST, message(SHM_ALLOC, [(LISTED, LIST, 130 << 12, 1)]))),
        (Fact.PAGE_ZERO, rpc(REQUEST, page="0x0")),
    ],
)  # fmt: skip
def test_facts(fact: Fact, steps: Sequence[Row]) -> None:
    assert fact in played(steps).facts.seen


def played(steps: Sequence[Row]) -> Play:
    """The scenario after its run, whatever differed in it."""
    row = scenario(*steps, kind="quirk", quirk="taste", map1=[ZERO_PAGE])
    play = Play(read_scenario(Value(row, "test", 1)), ModelTarget, "reference")
    play.run()
    return play


def test_a_plain_scenario_has_no_facts() -> None:
    assert not played([create(), smc("0xb2000007", out=("0x7",)), destroy()]).facts.seen


def test_facts_after_the_first_difference_explain_nothing() -> None:
    wrong = smc("0xb2000007", out=("0x6",))
    result = run(scenario(create(), wrong, *fast("0xbf00ff00")[1:]))
    assert result.differences
    assert Fact.CALLS_COUNT not in result.facts


def test_many_rpc_buffers() -> None:
    steps = calling(message(INVOKE, []), secure(WITH_ARG, reply=ALLOC))
    for index in range(17):
        page = hex(0x40020000 + (index << 12))
        entry = secure(RETURN, reply=ALLOC)
        steps.append(smc(RETURN, "0x0", page, "0x1", "0x0", hex(0x500 + index), sw=[entry]))
    assert Fact.MANY_RPC_BUFFERS in played(steps).facts.seen


def test_a_race_that_needs_a_second_read_ends_in_memory() -> None:
    """The recorded mediator reads an RPC answer twice; what the guest writes then is there after."""
    steps = rpc(REQUEST, message(FS, []))
    steps[-1]["race"] = {"after_fetch": 2, "writes": [[RPC_PAGE, "99"]]}
    place = 0x880100000 + 8 * 8192
    assert played(steps).target.read(place, 1) == b"\x99"
    steps[-1]["race"]["after_fetch"] = 3
    assert played(steps).target.read(place, 1) != b"\x99"
