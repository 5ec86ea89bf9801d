# SPDX-License-Identifier: BSD-2-Clause
"""Message commands and RPC commands as typed values."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smccc.calls import (
    MESSAGE_COMMANDS,
    RPC_COMMANDS,
    MessageCommand,
    RpcArgument,
    UnknownCommand,
    UnknownRpcArgument,
    messages,
    parse_command,
    parse_rpc_argument,
    rpc,
)
from smccc.calls.params import (
    IN,
    INOUT,
    OUT,
    Answer,
    Command,
    Identifier,
    Memory,
    NoAnswer,
    Numbers,
    Rest,
)
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc_numbers
from smccc.errors import BuildError, ParseError, Reason
from smccc.message import Message, Param, parse_message
from tests.smccc.smccc_golden import document, records
from tests.smccc.test_smccc_codec import MESSAGES, PARAMS

TABLES = document("register_tables")
COMMANDS = {entry["name"]: entry for entry in TABLES["optee_messages"]}
RPCS = {entry["name"]: entry for entry in TABLES["optee_rpc_messages"]}

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)

Answered = type[MessageCommand] | type[RpcArgument]

ALL_COMMANDS: list[Answered] = [*MESSAGE_COMMANDS.values(), *RPC_COMMANDS.values()]


def attributes_in(text: str) -> set[int]:
    """The attributes that a table's text names by their types."""
    found = set()
    for names in re.findall(r"((?:VALUE|TMEM|RMEM|FMEM)_(?:INPUT|OUTPUT|INOUT)(?:\|\w+)*)", text):
        number = 0
        for name in names.split("|"):
            kind = "" if name in ("META", "NONCONTIG") else "TYPE_"
            number |= getattr(msg, f"OPTEE_MSG_ATTR_{kind}{name}")
        found.add(number)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_message_commands_are_as_the_table_says(name: str) -> None:
    entry = COMMANDS[name]
    command = MESSAGE_COMMANDS[entry["cmd"]]
    assert command.COMMAND == getattr(msg, name) == entry["cmd"]
    rows = [row for row in entry["params"] if not row["attr"].startswith("any")]
    assert len(rows) == len([place for place in command.PARAMS if not isinstance(place, Rest)])
    assert any(isinstance(place, Rest) for place in command.PARAMS) == (
        len(rows) < len(entry["params"])
    )
    for place, row in zip(command.PARAMS, rows, strict=False):
        assert not isinstance(place, Rest)
        legal = set(place.types if isinstance(place, Memory) else place.attrs)
        if command is messages.ReclaimProtmem:
            as_value = messages.ReclaimProtmem.AS_VALUE[0]
            assert isinstance(as_value, Numbers)
            legal |= set(as_value.attrs)
        text = attributes_in(row["attr"])
        if command is messages.RegisterShm:
            # "TMEM_INPUT [|NONCONTIG]" in the header's text.
            text.add(msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT | msg.OPTEE_MSG_ATTR_NONCONTIG)
        assert legal == text
        for key, place_name in (("buf_ptr", "a"), ("size", "b"), ("shm_ref", "c")):
            if key in row and isinstance(place, Numbers):
                assert getattr(place, place_name) is not None


@pytest.mark.parametrize("name", RPCS)
def test_rpc_commands_are_as_the_table_says(name: str) -> None:
    entry = RPCS[name]
    command = RPC_COMMANDS[entry["cmd"]]
    assert command.COMMAND == getattr(rpc_numbers, name) == entry["cmd"]
    for text in entry["params"]:
        match = re.fullmatch(r"(in|out|inout) (value|memref)\[(\d)\](?:\.([a-c,-]+).*)?", text)
        if match is None:
            assert text in ("out params[0]", "in value[0].b,c value[1].a,b"), text
            continue
        direction, kind, at, fields = match.groups()
        place = command.PARAMS[int(at)]
        if kind == "memref":
            assert isinstance(place, Memory)
            assert place.types == {"in": IN, "out": OUT, "inout": INOUT}[direction]
        elif direction == "out":
            places = {(out.param, out.place) for out in command.ANSWER.OUT}
            assert {(int(at), field) for field in fields.split(",")} <= places
        elif isinstance(place, Identifier):
            assert fields == "a-b"
        else:
            assert isinstance(place, Numbers)
            assert all(getattr(place, field) for field in fields.split(","))


def test_every_command_of_the_tables_is_known_and_no_other() -> None:
    assert set(MESSAGE_COMMANDS) == {entry["cmd"] for entry in COMMANDS.values()}
    assert set(RPC_COMMANDS) == {entry["cmd"] for entry in RPCS.values()}


def memory(types: tuple[int, ...]) -> st.SearchStrategy[Param]:
    noise = st.sampled_from([0, msg.OPTEE_MSG_ATTR_NONCONTIG, 1 << 16, 1 << 40])
    attr = st.builds(lambda type_, bits: type_ | bits, st.sampled_from(types), noise)
    return st.builds(Param, attr, U64, U64, U64)


def values_of(cls: type[Command]) -> st.SearchStrategy[Command]:
    fields: dict[str, st.SearchStrategy[object]] = dict.fromkeys(cls.HEADER, U32)
    for place in cls.PARAMS:
        match place:
            case Rest():
                fields[place.field] = st.lists(PARAMS, max_size=4).map(tuple)
            case Memory():
                fields[place.field] = memory(place.types)
            case Identifier():
                fields[place.uuid] = st.uuids()
                if place.c:
                    fields[place.c] = U64
            case Numbers():
                fields |= {name: U64 for name in (place.a, place.b, place.c) if name}
                if place.attr:
                    fields[place.attr] = st.sampled_from(place.attrs)
    if cls is messages.ReclaimProtmem:
        fields["as_value"] = st.booleans()
    return st.builds(cls, **fields)


def parse(cls: type[Command], message: Message) -> Command:
    return (
        parse_command(message) if cls in MESSAGE_COMMANDS.values() else parse_rpc_argument(message)
    )


@pytest.mark.parametrize("cls", ALL_COMMANDS, ids=[cls.__name__ for cls in ALL_COMMANDS])
@settings(deadline=None, max_examples=10)
@given(st.data())
def test_commands_round_trip(cls: type[Command], data: st.DataObject) -> None:
    value = data.draw(values_of(cls))
    message = value.message()
    assert message.cmd == cls.COMMAND
    assert parse(cls, parse_message(message.build())) == value
    assert (message.ret, message.ret_origin) == (0, 0)


@pytest.mark.parametrize("cls", ALL_COMMANDS, ids=[cls.__name__ for cls in ALL_COMMANDS])
def test_a_command_refuses_another_s_message(cls: type[Command]) -> None:
    with pytest.raises(ParseError) as caught:
        cls.parse(Message(cls.COMMAND + 1))
    assert caught.value == ParseError(0, "cmd", Reason.WRONG_COMMAND)


def answers_of(cls: type[Answer]) -> st.SearchStrategy[Answer]:
    fields: dict[str, st.SearchStrategy[object]] = dict.fromkeys(cls.HEADER, U32)
    fields |= {out.field: U64 for out in cls.OUT}
    if cls is rpc.ShmAllocAnswer:
        fields |= {"buf_ptr": U64, "size": U64, "cookie": U64, "noncontig": st.booleans()}
    return st.builds(cls, **fields)


@pytest.mark.parametrize("cls", ALL_COMMANDS, ids=[cls.__name__ for cls in ALL_COMMANDS])
@settings(deadline=None, max_examples=10)
@given(st.data())
def test_answers_round_trip_and_change_nothing_else(cls: Answered, data: st.DataObject) -> None:
    request = data.draw(values_of(cls)).message()
    kind = cls.ANSWER
    answer = data.draw(answers_of(kind))
    if kind.REST is not None:
        start, field = kind.REST
        rest = tuple([param._replace(b=7) for param in request.params[start:]])
        answer = kind(
            **{
                **{name: getattr(answer, name) for name in kind.HEADER},
                **{out.field: getattr(answer, out.field) for out in kind.OUT},
                field: rest,
            }
        )
    back = answer.apply(request)
    assert kind.parse(back) == answer
    assert back.num_params == request.num_params
    changed = {*kind.HEADER, "params"}
    for name in Message._fields:
        if name not in changed:
            assert getattr(back, name) == getattr(request, name)
    if kind.REST is None and kind is not rpc.ShmAllocAnswer:
        places = {(out.param, out.place) for out in kind.OUT}
        for at, (before, after) in enumerate(zip(request.params, back.params, strict=True)):
            for place in Param._fields:
                if (at, place) not in places:
                    assert getattr(before, place) == getattr(after, place)


@settings(deadline=None)
@given(MESSAGES)
def test_any_message_parses_or_says_what_is_wrong(message: Message) -> None:
    for parse_it in (parse_command, parse_rpc_argument):
        for cmd in (message.cmd, *range(25)):
            candidate = message._replace(cmd=cmd)
            try:
                value = parse_it(candidate)
            except ParseError as error:
                assert error.field in ("num_params", *[f"params[{at}].attr" for at in range(6)])  # noqa: PT017
            else:
                again = value.message()
                assert parse_it(again) == value


@given(MESSAGES)
def test_unknown_commands_survive(message: Message) -> None:
    unknown = message._replace(cmd=0x1234)
    assert parse_command(unknown) == UnknownCommand(unknown)
    assert parse_rpc_argument(unknown) == UnknownRpcArgument(unknown)
    assert parse_command(unknown).message() == unknown
    assert parse_rpc_argument(unknown).message() == unknown
    assert parse_command(unknown).command == 0x1234


TA = uuid.UUID("7011a688-ddde-4053-a5a9-7b3c4ddf13b8")
TA_AB = (0x5340_DEDD_88A6_1170, 0xB813_DF4D_3C7B_A9A5)
REF_IN, REF_OUT, REF_INOUT = [Param(kind[0], 0x10, 0x20, 0x30) for kind in (IN, OUT, INOUT)]

EXAMPLES: list[tuple[Command, tuple[Param, ...]]] = [
    (
        messages.OpenSession(TA, TA, 4, (REF_IN,)),
        (Param(0x101, *TA_AB, 0), Param(0x101, *TA_AB, 4), REF_IN),
    ),
    (messages.InvokeCommand(1, 2, (REF_OUT,)), (REF_OUT,)),
    (messages.CloseSession(1), ()),
    (messages.Cancel(1, 2), ()),
    (messages.RegisterShm(buf_ptr=1, size=2, cookie=3), (Param(0x20A, 1, 2, 3),)),
    (messages.UnregisterShm(cookie=3), (Param(5, 0, 0, 3),)),
    (messages.DoBottomHalf(), ()),
    (messages.StopAsyncNotif(), ()),
    (
        messages.LendProtmem(use_case=1, address=2, size=3, cookie=4),
        (Param(1, 1), Param(9, 2, 3, 4)),
    ),
    (messages.ReclaimProtmem(cookie=3), (Param(5, 0, 0, 3),)),
    (messages.ReclaimProtmem(cookie=3, as_value=True), (Param(1, 3),)),
    (messages.GetProtmemConfig(use_case=1, endpoints=REF_OUT), (Param(3, 1), REF_OUT)),
    (messages.AssignProtmem(cookie=1, use_case=2), (Param(1, 1, 2),)),
    (rpc.LoadTa(TA, REF_OUT), (Param(1, *TA_AB), REF_OUT)),
    (rpc.Rpmb(REF_IN, REF_OUT), (REF_IN, REF_OUT)),
    (rpc.Fs(operation=4, handle=5, offset=6, params=(REF_IN,)), (Param(1, 4, 5, 6), REF_IN)),
    (rpc.GetTime(), (Param(2),)),
    (rpc.Notification(operation=1, key=2, timeout=3), (Param(1, 1, 2, 3),)),
    (rpc.Suspend(milliseconds=50), (Param(1, 50),)),
    (rpc.ShmAlloc(type=1, size=2, align=3), (Param(1, 1, 2, 3),)),
    (rpc.ShmFree(type=1, cookie=2), (Param(1, 1, 2),)),
    (rpc.SqlFsReserved((REF_IN,)), (REF_IN,)),
    (rpc.Gprof(1, REF_IN, REF_IN), (Param(3, 1), REF_IN, REF_IN)),
    (rpc.Socket(operation=3, instance=4, handle=5), (Param(1, 3, 4, 5),)),
    (rpc.Ftrace(1, REF_IN, REF_IN), (Param(3, 1), REF_IN, REF_IN)),
    (
        rpc.SuppPlugin(0, 1, 2, 3, 4, plugin_command=5, sub_command=6, data=REF_INOUT),
        (Param(1, 0, 1, 2), Param(1, 3, 4, 5), Param(3, 6), REF_INOUT),
    ),
    (rpc.BenchReg(sub_command=1, address=2, size=3), (Param(1, 1, 2, 3),)),
    (
        rpc.I2cTransfer(direction=1, bus=2, chip=3, flags=4, data=REF_INOUT),
        (Param(1, 1, 2, 3), Param(1, 4), REF_INOUT, Param(2)),
    ),
    (rpc.RpmbProbeReset(), (Param(2),)),
    (rpc.RpmbProbeNext(cid=REF_OUT), (Param(2), REF_OUT)),
    (rpc.RpmbFrames(REF_IN, REF_OUT), (REF_IN, REF_OUT)),
]
"""Each command with different numbers in all places (``register_tables`` has the places as text)."""


@pytest.mark.parametrize(
    ("value", "params"), EXAMPLES, ids=[type(value).__name__ for value, _ in EXAMPLES]
)
def test_fields_lie_in_their_places(value: Command, params: tuple[Param, ...]) -> None:
    assert value.message().params == params
    assert parse(type(value), value.message()) == value


def test_there_is_an_example_of_every_command() -> None:
    assert {type(value) for value, _ in EXAMPLES} == set(ALL_COMMANDS)


ANSWERS: list[tuple[Answer, int, Param]] = [
    (messages.GetProtmemConfigAnswer(1, 2, 3, 4), 0, Param(0, 1, 2, 3)),
    (messages.GetProtmemConfigAnswer(1, 2, 3, 4), 1, Param(0, 0, 4)),
    (rpc.LoadTaAnswer(size=5), 1, Param(0, 0, 5)),
    (rpc.RpmbAnswer(size=5), 1, Param(0, 0, 5)),
    (rpc.GetTimeAnswer(seconds=1, nanoseconds=2), 0, Param(0, 1, 2)),
    (rpc.FileIdAnswer(file_id=1), 0, Param(0, 1)),
    (rpc.SuppPluginAnswer(length=2), 2, Param(0, 0, 2)),
    (rpc.I2cTransferAnswer(moved=1), 3, Param(0, 1)),
    (rpc.RpmbProbeResetAnswer(shm_type=1), 0, Param(0, 1)),
    (rpc.RpmbProbeNextAnswer(kind=1, size=2, reliable_writes=3, cid_size=4), 0, Param(0, 1, 2, 3)),
    (rpc.RpmbProbeNextAnswer(kind=1, size=2, reliable_writes=3, cid_size=4), 1, Param(0, 0, 4)),
]


@pytest.mark.parametrize(("answer", "index", "param"), ANSWERS)
def test_answers_lie_in_their_places(answer: Answer, index: int, param: Param) -> None:
    assert answer.apply(Message(0, params=(Param(),) * 4)).params[index] == param


COMMAND_CLASSES = [name.removeprefix("OPTEE_MSG_CMD_").lower() for name in COMMANDS]


def test_the_vectors_of_the_message_commands_are_well_formed() -> None:
    seen = set()
    for vector in records("message_vectors"):
        if vector["class"] in COMMAND_CLASSES:
            value = parse_command(parse_message(bytes.fromhex(vector["hex"])))
            assert not isinstance(value, UnknownCommand)
            seen.add(type(value))
    assert seen == set(MESSAGE_COMMANDS.values())


def test_what_op_tee_insists_on_is_what_is_sent() -> None:
    register = messages.RegisterShm(0x4200_1080, 9000, 5).message()
    assert register.params == (Param(0x20A, 0x4200_1080, 9000, 5),)
    reclaim = messages.ReclaimProtmem(5).message()
    assert reclaim.params == (Param(0x5, 0, 0, 5),)
    opened = messages.OpenSession(uuid.UUID(int=1), login=4).message()
    assert [param.attr for param in opened.params] == [0x101, 0x101]
    assert opened.params[1].c == 4


def test_uuids_travel_in_text_order() -> None:
    ta = uuid.UUID("7011a688-ddde-4053-a5a9-7b3c4ddf13b8")
    data = messages.OpenSession(ta).message().build()
    assert data[40:56].hex() == ta.hex
    plugin = rpc.SuppPlugin.invoke(ta, 1, 2, Param(INOUT[0]))
    assert plugin.plugin == ta
    words = plugin.message().params
    assert (words[0].b, words[0].c, words[1].a, words[1].b) == (
        0x88A6_1170,
        0x5340_DEDD,
        0x3C7B_A9A5,
        0xB813_DF4D,
    )


def test_shm_alloc_rewrites_its_own_parameter() -> None:
    request = rpc.ShmAlloc(rpc_numbers.OPTEE_RPC_SHM_TYPE_APPL, 8192, 8).message()
    answer = rpc.ShmAllocAnswer(0x1000, 8192, 77, ret_origin=2)
    back = answer.apply(request)
    assert back.params == (Param(0x20A, 0x1000, 8192, 77),)
    contiguous = rpc.ShmAllocAnswer(0x1000, 8192, 77, noncontig=False).apply(request)
    assert contiguous.params[0].attr == 0xA
    with pytest.raises(ParseError) as caught:
        rpc.ShmAllocAnswer.parse(request)
    assert caught.value == ParseError(32, "params[0].attr", Reason.WRONG_ATTRIBUTE)


def test_wrong_counts_and_attributes() -> None:
    cases = [
        (Message(2, params=(Param(),)), 28, "num_params", Reason.WRONG_PARAM_COUNT),
        (Message(4), 28, "num_params", Reason.WRONG_PARAM_COUNT),
        (Message(0, params=(Param(0x101),)), 28, "num_params", Reason.WRONG_PARAM_COUNT),
        (
            Message(0, params=(Param(0x101), Param(0x10101))),
            64,
            "params[1].attr",
            Reason.WRONG_ATTRIBUTE,
        ),
        (Message(4, params=(Param(0xA),)), 32, "params[0].attr", Reason.WRONG_ATTRIBUTE),
        (
            Message(10, params=(Param(3), Param(0x106))),
            64,
            "params[1].attr",
            Reason.WRONG_ATTRIBUTE,
        ),
    ]
    for message, offset, field, reason in cases:
        with pytest.raises(ParseError) as caught:
            parse_command(message)
        assert caught.value == ParseError(offset, field, reason)


def test_values_that_cannot_be_sent() -> None:
    cases: list[tuple[Command, str]] = [
        (messages.RegisterShm(0, 1 << 64, 0), "size"),
        (messages.RegisterShm(0, 1, 0, attr=0x5), "attr"),
        (rpc.LoadTa(uuid.UUID(int=0), Param(0x5)), "image"),
        (rpc.Suspend(-1), "milliseconds"),
    ]
    for value, field in cases:
        with pytest.raises(BuildError) as caught:
            value.message()
        assert caught.value.field == field


def test_answers_need_their_parameters() -> None:
    for answer, field in (
        (rpc.GetTimeAnswer(1, 2), "seconds"),
        (rpc.ShmAllocAnswer(0, 0, 0), "buf_ptr"),
        (messages.InvokeCommandAnswer((Param(),)), "params"),
    ):
        with pytest.raises(BuildError) as caught:
            answer.apply(Message(3))
        assert caught.value.field == field
        if not isinstance(answer, messages.InvokeCommandAnswer):
            with pytest.raises(ParseError) as refused:
                type(answer).parse(Message(3))
            assert refused.value.reason is Reason.WRONG_PARAM_COUNT


def test_nobody_writes_the_result_of_the_bottom_half() -> None:
    request = messages.DoBottomHalf().message()._replace(ret=5, ret_origin=6)
    assert messages.DoBottomHalf().parse_answer(request) == NoAnswer()
    assert NoAnswer(ret=0).apply(request) == request


def test_the_answer_of_a_command() -> None:
    back = Message(0, session=7, ret_origin=4, params=(Param(0x101), Param(0x101), Param(2, 9)))
    opened = messages.OpenSession(uuid.UUID(int=1)).parse_answer(back)
    assert opened == messages.OpenSessionAnswer(7, (Param(2, 9),), ret_origin=4)
    asked = rpc.GetTime()
    assert asked.parse_answer(Message(3, params=(Param(2, 5, 6),))) == rpc.GetTimeAnswer(5, 6)
