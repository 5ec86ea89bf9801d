# SPDX-License-Identifier: BSD-2-Clause
"""Typed calls against the register tables, and round trips of every value."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smccc import names
from smccc.calls import (
    CALLS,
    RPC_REQUESTS,
    Call,
    Completed,
    Done,
    Failed,
    Return,
    RpcRequest,
    UnknownCall,
    UnknownReturn,
    arch,
    fast,
    parse_answer,
    parse_call,
    parse_yielding_return,
    psci,
    yielding,
)
from smccc.calls.slots import Native, OpteeUid, Pair, ServiceUid, Signed, Slot, Whole, Word
from smccc.constants import optee_smc as smc
from smccc.constants import psci as psci_numbers
from smccc.errors import BuildError, ParseError, Reason
from smccc.registers import RegisterFrame
from tests.smccc.smccc_golden import document

TABLES = document("register_tables")
OPTEE_CALLS = {entry["name"]: entry for entry in TABLES["optee_calls"]}

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
FRAMES = st.builds(RegisterFrame, st.tuples(*[U64] * 8))

IN_REGISTERS = (Word, Whole, Native, Pair, Signed)
"""The slots that name their first register."""

MEANINGLESS = {"unused", "preserved", "fid", "zero"}


def registers_of(slots: tuple[Slot, ...]) -> set[str]:
    """Which registers carry the fields of a table."""
    found: set[str] = set()
    for slot in slots:
        if isinstance(slot, OpteeUid | ServiceUid):
            found |= {"a0", "a1", "a2", "a3"}
            continue
        assert isinstance(slot, IN_REGISTERS)
        first = slot.register
        found.add(f"a{first}")
        if isinstance(slot, Pair):
            found.add(f"a{first + 1}")
    return found


def meaningful(row: dict[str, str]) -> set[str]:
    return {name for name in row if re.fullmatch(r"a\d", name) and row[name] not in MEANINGLESS}


def pairs_of(row: dict[str, str]) -> set[int]:
    """First registers of the high/low pairs that a row of the table describes."""
    return {
        number
        for number in range(7)
        if "63:32" in row.get(f"a{number}", "") and "31:0" in row.get(f"a{number + 1}", "")
    }


def pairs_in(slots: tuple[Slot, ...]) -> set[int]:
    return {slot.register for slot in slots if isinstance(slot, Pair)}


def known_call(name: str) -> type[Call]:
    return CALLS[int(OPTEE_CALLS[name]["fid"], 16)]


@pytest.mark.parametrize("name", OPTEE_CALLS)
def test_arguments_are_where_the_table_says(name: str) -> None:
    call = known_call(name)
    row = dict(OPTEE_CALLS[name]["in"])
    if name == "OPTEE_SMC_CALL_RETURN_FROM_RPC":
        # a6 and, where there is no hypervisor, a7 are resume information: an answer is written over
        # the registers of the request.
        del row["a6"]
    assert registers_of(call.SLOTS) == meaningful(row)
    assert pairs_in(call.SLOTS) == pairs_of(row)


def table_returns(entry: dict[str, list[dict[str, str]]]) -> Iterator[dict[str, str]]:
    for row in entry["out"]:
        if row["a0"] not in ("RETURN_UNKNOWN_FUNCTION",) and "rpc function" not in row["a0"]:
            yield row


@pytest.mark.parametrize("name", OPTEE_CALLS)
def test_results_are_where_the_table_says(name: str) -> None:
    call = known_call(name)
    for row in table_returns(OPTEE_CALLS[name]):
        status = row["a0"]
        if not status.startswith("RETURN_"):
            result: type[Return] = call.RETURN
            assert result.STATUS is None
            expected = meaningful(row)
        elif status == "RETURN_OK":
            result = call.RETURN
            expected = meaningful(row) - {"a0"}
            if call is fast.L2ccMutex:
                result = fast.L2ccMutexReturn
            assert result.STATUS == smc.OPTEE_SMC_RETURN_OK
        else:
            assert hasattr(smc, f"OPTEE_SMC_{status}")
            continue
        assert registers_of(result.SLOTS) == expected, row
        assert pairs_in(result.SLOTS) == pairs_of(row)


def test_yielding_calls_complete() -> None:
    for name, entry in OPTEE_CALLS.items():
        assert (known_call(name).RETURN is Completed) == (entry["type"] == "yielding")


def test_64_bit_results_in_one_register_are_not_split() -> None:
    for result in (fast.GetShmConfigReturn, fast.GetProtmemConfigReturn):
        kinds = {slot.field: type(slot) for slot in result.SLOTS}
        assert kinds["start"] is kinds["size"] is Whole
    notes = [OPTEE_CALLS[f"OPTEE_SMC_GET_{x}_CONFIG"]["notes"][0] for x in ("SHM", "PROTMEM")]
    assert all("not hi/lo pairs" in note for note in notes)


def test_return_codes() -> None:
    golden = {int(entry["value"], 16): entry["name"] for entry in TABLES["return_codes"]}
    for value, name in golden.items():
        assert getattr(smc, name) == value
        assert names.STATUS.full(value) == name


RPC = {entry["name"]: entry for entry in TABLES["optee_rpc"]}


@pytest.mark.parametrize("name", RPC)
def test_rpc_requests_and_answers_are_where_the_table_says(name: str) -> None:
    entry = RPC[name]
    request = RPC_REQUESTS[int(entry["a0"], 16)]
    assert request.STATUS is not None
    assert getattr(smc, name) == request.STATUS
    assert yielding.rpc_function(request.STATUS) == entry["func"]
    asked = {
        register
        for register in ("a1", "a2", "a3")
        if entry["from_secure"][register] not in MEANINGLESS
    }
    assert registers_of(request.SLOTS) == asked
    assert pairs_in(request.SLOTS) == pairs_of(entry["from_secure"])
    # "preserved" registers are the request's, whose fields the answer repeats; a7 is the client.
    answer = request.ANSWER
    row = entry["to_secure"]
    filled = {register for register in row if row[register] not in (*MEANINGLESS, "a0")} - {"a0"}
    assert filled | {"a3"} <= registers_of(answer.SLOTS)
    assert registers_of(answer.SLOTS) - {"a7"} <= filled | {"a1", "a2", "a3"}
    assert pairs_of(row) <= pairs_in(answer.SLOTS)


def test_undefined_rpc_functions_stay_unknown() -> None:
    defined = {entry["func"] for entry in TABLES["optee_rpc"]}
    for function in range(8):
        frame = RegisterFrame.of(yielding.rpc_status(function), 1, 2, 3)
        found = parse_yielding_return(frame)
        assert isinstance(found, yielding.UnknownRpc) == (function not in defined)


PSCI = [
    (name, int(fid, 16), entry)
    for entry in TABLES["psci"]
    for name, fid in entry["function_ids"].items()
]


@pytest.mark.parametrize(("name", "fid", "entry"), PSCI, ids=[row[0] for row in PSCI])
def test_psci_calls(name: str, fid: int, entry: dict[str, dict[str, str]]) -> None:
    assert getattr(psci_numbers, name) == fid
    call = CALLS[fid]
    assert issubclass(call, psci.PsciCall)
    assert (fid if name.endswith("_AARCH64") else call.FUNCTION64) == call.FUNCTION64
    assert registers_of(call.SLOTS) == set(entry["args"])


def test_psci_arguments_of_32_bit_calls_are_low_words() -> None:
    frame = RegisterFrame.of(psci_numbers.PSCI_CPU_ON_AARCH32, 1 << 32 | 2, 1 << 32 | 3, 4)
    narrow = parse_call(frame)
    assert narrow == psci.CpuOn(2, 3, 4, smc64=False)
    wide = parse_call(frame.replace(a0=psci_numbers.PSCI_CPU_ON_AARCH64))
    assert wide == psci.CpuOn(1 << 32 | 2, 1 << 32 | 3, 4)


def test_power_state_is_32_bits_in_both_conventions() -> None:
    frame = RegisterFrame.of(psci_numbers.PSCI_CPU_SUSPEND_AARCH64, 1 << 40 | 7, 1 << 40, 9)
    assert parse_call(frame) == psci.CpuSuspend(7, 1 << 40, 9)


def test_every_function_of_the_tables_is_known() -> None:
    tables = {int(entry["fid"], 16) for entry in TABLES["optee_calls"]} | {row[1] for row in PSCI}
    architecture = {call.FUNCTION for call in arch.ARCH_CALLS}
    assert set(CALLS) == tables | architecture


# --- round trips -------------------------------------------------------------------------------

RETURNS: list[type[Return]] = sorted(
    {
        *[call.RETURN for call in CALLS.values()],
        *[query.RETURN for query in arch.SERVICE_QUERIES.values()],
        *RPC_REQUESTS.values(),
        fast.L2ccMutexReturn,
        yielding.UnknownRpc,
        Failed,
        Done,
    },
    key=lambda cls: cls.__name__,
)


def values_for(slots: tuple[Slot, ...], wide: bool) -> st.SearchStrategy[dict[str, object]]:
    fields: dict[str, st.SearchStrategy[object]] = {}
    for slot in slots:
        match slot:
            case OpteeUid() | ServiceUid():
                fields[slot.field] = st.uuids()
            case Pair() | Whole():
                fields[slot.field] = U64
            case Signed():
                fields[slot.field] = st.integers(-(2**31), 2**31 - 1)
            case Word():
                fields[slot.field] = U32
            case _:
                fields[slot.field] = U64 if wide else U32
    return st.fixed_dictionaries(fields)


@pytest.mark.parametrize("fid", CALLS, ids=[f"{fid:#x}" for fid in CALLS])
@settings(deadline=None, max_examples=10)
@given(st.data())
def test_calls_round_trip(fid: int, data: st.DataObject) -> None:
    cls = CALLS[fid]
    wide = fid == cls.FUNCTION64
    fields = data.draw(values_for(cls.SLOTS, wide))
    call = cls(**fields, smc64=wide) if issubclass(cls, psci.NativePsciCall) else cls(**fields)
    over = data.draw(FRAMES)
    frame = call.registers(over)
    assert frame.x[0] == fid
    assert parse_call(frame) == call
    untouched = {f"a{number}" for number in range(1, 8)} - registers_of(cls.SLOTS)
    for name in untouched:
        assert frame.x[int(name[1])] == over.x[int(name[1])]
    # Rubbish above the words of a 32-bit call changes nothing.
    rubbish = RegisterFrame((frame.x[0] | 0xBAD << 40, *frame.x[1:]))
    assert parse_call(rubbish) == call


@pytest.mark.parametrize("cls", RETURNS, ids=[cls.__name__ for cls in RETURNS])
@settings(deadline=None, max_examples=10)
@given(st.data())
def test_returns_round_trip(cls: type[Return], data: st.DataObject) -> None:
    wide = cls is psci.PsciValueReturn
    value = cls(**data.draw(values_for(cls.SLOTS, wide)))
    caller = data.draw(FRAMES)
    frame = value.registers(caller, wide)
    assert cls.parse(frame, wide) == value
    if cls.STATUS is not None:
        assert frame.x[0] == cls.STATUS
    carried = registers_of(cls.SLOTS) | ({"a0"} if cls.STATUS is not None else set())
    for number in range(8):
        if f"a{number}" not in carried:
            assert frame.x[number] == caller.x[number], "a preserved register changed"


@given(FRAMES)
def test_any_frame_is_a_call_and_a_return(frame: RegisterFrame) -> None:
    call = parse_call(frame)
    parse_yielding_return(frame)
    assert parse_call(call.registers(frame)) == call
    call.parse_return(frame)


@given(st.sampled_from(sorted(CALLS)), FRAMES, FRAMES)
def test_any_registers_may_come_back_from_any_call(
    fid: int, frame: RegisterFrame, back: RegisterFrame
) -> None:
    call = parse_call(RegisterFrame((fid, *frame.x[1:])))
    value = call.parse_return(back)
    again = call.parse_return(value.registers(back, call.wide))
    assert again == value


@given(FRAMES)
def test_unknown_calls_keep_their_registers(frame: RegisterFrame) -> None:
    unknown = RegisterFrame((frame.x[0] & ~0xFFFF_FFFF | 0xC600_1234, *frame.x[1:]))
    call = parse_call(unknown)
    assert call == UnknownCall(unknown)
    assert call.registers() == unknown
    assert call.function == 0xC600_1234
    assert call.parse_return(frame) == UnknownReturn(frame)
    assert call.parse_return(frame).registers(unknown) == frame


def test_the_sve_hint_makes_another_id() -> None:
    """Whoever dispatches clears the hint first; a value must not hide that it was there."""
    frame = RegisterFrame.of(smc.OPTEE_SMC_CALLS_UID | 1 << 16)
    assert parse_call(frame) == UnknownCall(frame)


@given(st.integers(0, 63), st.sampled_from(sorted(arch.SERVICE_QUERIES)))
def test_general_queries_of_every_owner(owner: int, number: int) -> None:
    fid = 0x8000_0000 | owner << 24 | number
    call = parse_call(RegisterFrame.of(fid))
    if owner == smc.OPTEE_SMC_OWNER_TRUSTED_OS_API:
        assert isinstance(call, fast.CallsCount | fast.CallsUid | fast.CallsRevision)
    else:
        assert isinstance(call, arch.ServiceQuery)
        assert call.owner == owner
    assert call.registers().a0 == fid


def test_errors_and_rpcs_of_a_yielding_call() -> None:
    call = yielding.CallWithArg(0x4200_0000)
    for code in range(1, 8):
        assert call.parse_return(RegisterFrame.of(code, 5, 6)) == Failed(code)
    assert call.parse_return(RegisterFrame.of(0xFFFF_FFFF)) == Failed(0xFFFF_FFFF)
    assert call.parse_return(RegisterFrame.of(0, 9, 9, 9)) == Completed()
    asked = call.parse_return(RegisterFrame.of(0xFFFF_0000, 160, 0, 1))
    assert asked == yielding.RpcAlloc(thread=1, size=160)


@given(st.sampled_from(sorted(RPC_REQUESTS)), FRAMES, FRAMES)
def test_answers_are_written_over_the_request(
    status: int, asked: RegisterFrame, random: RegisterFrame
) -> None:
    returned = RegisterFrame((status, *asked.x[1:]))
    request = parse_yielding_return(returned)
    assert isinstance(request, RpcRequest)
    answer = parse_answer(
        request, RegisterFrame((smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, *random.x[1:]))
    )
    frame = answer.registers(returned)
    assert frame.x[6] == returned.x[6], "resume information comes back unchanged"
    assert parse_answer(request, frame) == answer
    resumed = parse_call(frame)
    assert isinstance(resumed, yielding.ResumeCall)
    assert isinstance(answer, yielding.ResumeCall | yielding.RpcAnswer)
    assert resumed.thread == answer.thread


def test_only_return_from_rpc_answers() -> None:
    with pytest.raises(ParseError) as caught:
        parse_answer(yielding.RpcFree(0, 1), RegisterFrame.of(smc.OPTEE_SMC_CALL_WITH_ARG))
    assert caught.value == ParseError(0, "a0", Reason.WRONG_FUNCTION)


@pytest.mark.parametrize("fid", CALLS, ids=[f"{fid:#x}" for fid in CALLS])
def test_a_value_refuses_the_registers_of_another_call(fid: int) -> None:
    with pytest.raises(ParseError) as caught:
        CALLS[fid].parse(RegisterFrame.of(fid ^ 0x8000))
    assert caught.value.reason is Reason.WRONG_FUNCTION


def test_fields_that_do_not_fit_their_registers() -> None:
    cases: list[tuple[Call | Return, str]] = [
        (yielding.CallWithArg(1 << 64), "address"),
        (yielding.CallWithArg(0, client=1 << 32), "client"),
        (fast.GetShmConfigReturn(1 << 64, 0, 0), "start"),
        (psci.CpuOn(1 << 32, 0, 0, smc64=False), "target"),
        (psci.PsciReturn(1 << 31), "value"),
        (fast.UuidReturn(5), "uuid"),  # type: ignore[arg-type]
        (fast.VmCreated(uuid.UUID(int=1)), "guest"),  # type: ignore[arg-type]
    ]
    for value, field in cases:
        with pytest.raises(BuildError) as caught:
            value.registers(RegisterFrame.of())
        assert caught.value.field == field


def test_values_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        yielding.CallWithArg(1).address = 2  # type: ignore[misc]


def test_results_of_the_architecture_calls() -> None:
    version = arch.Version().parse_return(RegisterFrame.of(0x1_0002))
    assert isinstance(version, arch.VersionReturn)
    assert (version.major, version.minor, version.supported) == (1, 2, True)
    refused = arch.ArchFeatures(0x8000_8000).parse_return(RegisterFrame.of(2**64 - 1))
    assert refused == arch.SmcccReturn(-1)
    soc = arch.SocId().parse_return(RegisterFrame.of(0x0936_0070))
    assert isinstance(soc, arch.SocIdReturn)
    assert (soc.jep106_bank, soc.jep106_code, soc.soc_id) == (9, 0x36, 0x70)
    psci_version = psci.PsciVersion().parse_return(RegisterFrame.of(0x1_0001))
    assert isinstance(psci_version, psci.PsciVersionReturn)
    assert (psci_version.major, psci_version.minor) == (1, 1)


def test_capabilities_and_notifications() -> None:
    found = fast.ExchangeCapabilities().parse_return(RegisterFrame.of(0, 0xF5, 0x42, 4))
    assert isinstance(found, fast.ExchangeCapabilitiesReturn)
    assert found.rpc_param_count == 4
    value = fast.GetAsyncNotifValue().parse_return(RegisterFrame.of(0, 5, 3))
    assert isinstance(value, fast.GetAsyncNotifValueReturn)
    assert (value.valid, value.pending) == (True, True)


def test_a_cached_cookie_counts_only_its_low_word() -> None:
    """OP-TEE leaves the whole cookie in a2."""
    back = RegisterFrame.of(0, 0xFFFF_0000, 0xFFFF_0000_1234_5678)
    assert fast.DisableShmCache().parse_return(back) == fast.DisableShmCacheReturn(
        0xFFFF_0000_1234_5678
    )


def test_get_addr_of_the_lock_brings_an_address() -> None:
    back = RegisterFrame.of(0, 0, 0x1, 0x2000)
    asked = fast.L2ccMutex(smc.OPTEE_SMC_L2CC_MUTEX_GET_ADDR)
    assert asked.parse_return(back) == fast.L2ccMutexReturn(0x1_0000_2000)
    assert fast.L2ccMutex(smc.OPTEE_SMC_L2CC_MUTEX_ENABLE).parse_return(back) == Done()


EXAMPLES: list[tuple[Call, tuple[int, ...]]] = [
    (yielding.CallWithArg(address=1 << 32 | 2, cache=3, client=4), (1, 2, 3, 0, 0, 0, 4)),
    (yielding.CallWithRpcArg(address=1 << 32 | 2, cache=3, client=4), (1, 2, 3, 0, 0, 0, 4)),
    (yielding.CallWithRegdArg(cookie=1 << 32 | 2, offset=3, client=4), (1, 2, 3, 0, 0, 0, 4)),
    (
        yielding.ResumeCall(result=1 << 32 | 2, thread=3, cookie=4 << 32 | 5, client=6),
        (1, 2, 3, 4, 5, 0, 6),
    ),
    (fast.L2ccMutex(operation=1, address=2 << 32 | 3, client=4), (1, 2, 3, 0, 0, 0, 4)),
    (fast.BootSecondary(core=1, entry=2 << 32 | 3), (1, 2, 3, 0, 0, 0, 0)),
    (fast.VmCreated(guest=1), (1, 0, 0, 0, 0, 0, 0)),
    (fast.VmDestroyed(guest=1, client=2), (1, 0, 0, 0, 0, 0, 2)),
    (psci.CpuOn(target=1, entry=2, context=3), (1, 2, 3, 0, 0, 0, 0)),
    (psci.CpuSuspend(power_state=1, entry=2, context=3), (1, 2, 3, 0, 0, 0, 0)),
    (psci.SystemSuspend(entry=1, context=2), (1, 2, 0, 0, 0, 0, 0)),
    (psci.AffinityInfo(target=1, lowest_level=2), (1, 2, 0, 0, 0, 0, 0)),
    (psci.NodeHwState(target=1, power_level=2), (1, 2, 0, 0, 0, 0, 0)),
    (psci.StatCount(target=1, power_state=2), (1, 2, 0, 0, 0, 0, 0)),
    (psci.StatResidency(target=1, power_state=2), (1, 2, 0, 0, 0, 0, 0)),
    (psci.SystemReset2(type=1, cookie=2), (1, 2, 0, 0, 0, 0, 0)),
    (psci.MemChkRange(base=1, length=2), (1, 2, 0, 0, 0, 0, 0)),
]
"""Every call of more than one field, with different numbers in all words."""


@pytest.mark.parametrize(
    ("call", "registers"), EXAMPLES, ids=[type(call).__name__ for call, _ in EXAMPLES]
)
def test_fields_lie_in_their_registers(call: Call, registers: tuple[int, ...]) -> None:
    assert call.registers().x == (call.function, *registers)


def test_there_is_an_example_of_every_call_with_fields() -> None:
    fields = {cls for cls in CALLS.values() if len(registers_of(cls.SLOTS) - {"a7"}) > 1}
    assert fields <= {type(call) for call, _ in EXAMPLES}


RETURN_EXAMPLES: list[tuple[Return, tuple[int, ...]]] = [
    (fast.CallsRevisionReturn(major=1, minor=2), (1, 2, 0, 0)),
    (fast.GetOsRevisionReturn(major=1, minor=2, build_id=3), (1, 2, 3, 0)),
    (fast.GetShmConfigReturn(start=1 << 40, size=2 << 40, settings=3), (0, 1 << 40, 2 << 40, 3)),
    (fast.L2ccMutexReturn(address=2 << 32 | 3), (0, 0, 2, 3)),
    (fast.ExchangeCapabilitiesReturn(1, 2, 3), (0, 1, 2, 3)),
    (fast.DisableShmCacheReturn(cookie=1 << 32 | 2), (0, 1, 2, 0)),
    (fast.GetAsyncNotifValueReturn(value=1, flags=2), (0, 1, 2, 0)),
    (fast.GetProtmemConfigReturn(start=1 << 40, size=2, pa_width=3), (0, 1 << 40, 2, 3)),
    (yielding.RpcAlloc(size=1, thread=3), (0xFFFF0000, 1, 0, 3)),
    (yielding.RpcFree(cookie=1 << 32 | 2, thread=3), (0xFFFF0002, 1, 2, 3)),
    (yielding.RpcForeignInterrupt(resume1=1, resume2=2, thread=3), (0xFFFF0004, 1, 2, 3)),
    (yielding.RpcCommand(cookie=1 << 32 | 2, thread=3), (0xFFFF0005, 1, 2, 3)),
    (arch.ServiceRevisionReturn(major=1, minor=2), (1, 2, 0, 0)),
]


@pytest.mark.parametrize(
    ("value", "registers"),
    RETURN_EXAMPLES,
    ids=[type(value).__name__ for value, _ in RETURN_EXAMPLES],
)
def test_results_lie_in_their_registers(value: Return, registers: tuple[int, ...]) -> None:
    assert value.registers(RegisterFrame.of()).x[:4] == registers


def test_there_is_an_example_of_every_return_with_fields() -> None:
    fields = {cls for cls in RETURNS if len(registers_of(cls.SLOTS)) > 1}
    uids = {fast.UuidReturn, arch.ServiceUidReturn, yielding.UnknownRpc}
    assert fields - uids <= {type(value) for value, _ in RETURN_EXAMPLES}
