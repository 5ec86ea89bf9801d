# SPDX-License-Identifier: BSD-2-Clause
"""The storage TA: object handles, rights, sharing, positions, enumeration, hostile parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.suspend import run
from secure_world.apps.storage import MAX_HANDLES, Command, StorageApplication
from secure_world.ta import (
    TYPE_MEMREF_INPUT,
    TYPE_MEMREF_OUTPUT,
    TYPE_VALUE_INOUT,
    TYPE_VALUE_INPUT,
    TYPE_VALUE_OUTPUT,
    TeeError,
    Value,
)
from smccc.constants import tee
from tests.secure_world_apps.environment import Buffer, Environment, Parameters

READ = tee.TEE_DATA_FLAG_ACCESS_READ
WRITE = tee.TEE_DATA_FLAG_ACCESS_WRITE
META = tee.TEE_DATA_FLAG_ACCESS_WRITE_META
SHARE_READ = tee.TEE_DATA_FLAG_SHARE_READ
SHARE_WRITE = tee.TEE_DATA_FLAG_SHARE_WRITE
OVERWRITE = tee.TEE_DATA_FLAG_OVERWRITE
ALL = READ | WRITE | META
OK = tee.TEE_SUCCESS


class Ta:
    """One instance of the TA with sessions 1, 2, ...; each call names its session."""

    def __init__(self) -> None:
        self.app = StorageApplication()
        self.env = Environment()
        self.slots: dict[int, object] = {}
        assert run(self.app.create(self.env)) == OK
        for session in (1, 2):
            self.open_session(session)

    def open_session(self, session: int) -> None:
        self.env.session_id = session
        assert run(self.app.open_session(self.env, Parameters())) == OK
        self.slots[session] = self.env.data

    def close_session(self, session: int) -> None:
        self.env.session_id = session
        run(self.app.close_session(self.env))

    def invoke(self, session: int, command: int, *given: tuple[int, Value | Buffer]) -> int:
        self.env.session_id = session
        self.env.data = self.slots[session]
        try:
            return run(self.app.invoke(self.env, command, Parameters(*given)))
        except TeeError as error:
            return error.code

    def create(
        self, name: bytes, data: bytes = b"", flags: int = ALL, session: int = 1
    ) -> tuple[int, int]:
        value = Value(flags)
        code = self.invoke(
            session,
            Command.CREATE,
            (TYPE_MEMREF_INPUT, Buffer(name)),
            (TYPE_VALUE_INOUT, value),
            (TYPE_VALUE_INPUT, Value(tee.TEE_STORAGE_PRIVATE)),
            (TYPE_MEMREF_INPUT, Buffer(data)),
        )
        return code, value.b

    def open(
        self, name: bytes, flags: int, session: int = 1, storage: int = tee.TEE_STORAGE_PRIVATE
    ) -> tuple[int, int]:
        value = Value(flags)
        code = self.invoke(
            session,
            Command.OPEN,
            (TYPE_MEMREF_INPUT, Buffer(name)),
            (TYPE_VALUE_INOUT, value),
            (TYPE_VALUE_INPUT, Value(storage)),
        )
        return code, value.b

    def close(self, handle: int, session: int = 1) -> int:
        return self.invoke(session, Command.CLOSE, (TYPE_VALUE_INPUT, Value(handle)))

    def read(self, handle: int, size: int, session: int = 1) -> tuple[int, bytes]:
        out, value = Buffer(bytes(size)), Value(handle)
        code = self.invoke(
            session, Command.READ, (TYPE_MEMREF_OUTPUT, out), (TYPE_VALUE_INOUT, value)
        )
        if code == OK:
            assert out.size == value.b
            return code, bytes(out.memory[: value.b])
        return code, b""

    def write(self, handle: int, data: bytes, session: int = 1) -> int:
        return self.invoke(
            session,
            Command.WRITE,
            (TYPE_MEMREF_INPUT, Buffer(data)),
            (TYPE_VALUE_INPUT, Value(handle)),
        )

    def seek(self, handle: int, offset: int, whence: int) -> tuple[int, int]:
        value = Value(whence)
        code = self.invoke(
            1,
            Command.SEEK,
            (TYPE_VALUE_INPUT, Value(handle, offset & 0xFFFFFFFF)),
            (TYPE_VALUE_INOUT, value),
        )
        return code, value.b

    def info(self, handle: int) -> tuple[int, int]:
        value = Value()
        code = self.invoke(
            1, Command.GET_INFO, (TYPE_VALUE_INPUT, Value(handle)), (TYPE_VALUE_OUTPUT, value)
        )
        assert code == OK
        return value.a, value.b

    def simple(self, command: int, a: int, b: int = 0, session: int = 1) -> int:
        return self.invoke(session, command, (TYPE_VALUE_INPUT, Value(a, b)))

    def rename(self, handle: int, name: bytes) -> int:
        return self.invoke(
            1,
            Command.RENAME,
            (TYPE_VALUE_INPUT, Value(handle)),
            (TYPE_MEMREF_INPUT, Buffer(name)),
        )

    def next(self, room: int = 64, session: int = 1) -> tuple[int, bytes, int]:
        out, value = Buffer(bytes(room)), Value()
        code = self.invoke(
            session, Command.NEXT_ENUM, (TYPE_MEMREF_OUTPUT, out), (TYPE_VALUE_OUTPUT, value)
        )
        return code, bytes(out.memory[: out.size]) if code == OK else b"", value.a


def test_the_life_of_an_object() -> None:
    ta = Ta()
    code, handle = ta.create(b"object", b"hello world")
    assert code == OK
    assert ta.read(handle, 5) == (OK, b"hello")
    assert ta.read(handle, 100) == (OK, b" world")
    assert ta.read(handle, 100) == (OK, b"")
    assert ta.seek(handle, -5, tee.TEE_DATA_SEEK_END) == (OK, 6)
    assert ta.write(handle, b"there") == OK
    assert ta.info(handle) == (11, 11)
    assert ta.seek(handle, 0, tee.TEE_DATA_SEEK_SET) == (OK, 0)
    assert ta.read(handle, 11) == (OK, b"hello there")
    assert ta.simple(Command.TRUNCATE, handle, 5) == OK
    assert ta.info(handle) == (5, 11)  # the position stays, also beyond the end
    assert ta.read(handle, 10) == (OK, b"")
    assert ta.write(handle, b"!") == OK
    assert ta.seek(handle, 3, tee.TEE_DATA_SEEK_SET) == (OK, 3)
    assert ta.read(handle, 20) == (OK, b"lo" + bytes(6) + b"!")
    assert ta.rename(handle, b"renamed") == OK
    assert ta.close(handle) == OK
    assert ta.open(b"object", READ)[0] == tee.TEE_ERROR_ITEM_NOT_FOUND
    code, handle = ta.open(b"renamed", ALL)
    assert code == OK
    assert ta.simple(Command.UNLINK, handle) == OK
    assert ta.open(b"renamed", READ)[0] == tee.TEE_ERROR_ITEM_NOT_FOUND
    assert ta.close(handle) == tee.TEE_ERROR_BAD_PARAMETERS


@pytest.mark.parametrize(
    ("whence", "offset", "expected"),
    [
        (tee.TEE_DATA_SEEK_SET, 4, 4),
        (tee.TEE_DATA_SEEK_SET, -1, 0),
        (tee.TEE_DATA_SEEK_CUR, 3, 8),
        (tee.TEE_DATA_SEEK_CUR, -9, 0),
        (tee.TEE_DATA_SEEK_END, 0, 10),
        (tee.TEE_DATA_SEEK_END, 7, 17),
        (tee.TEE_DATA_SEEK_END, -0x80000000, 0),
        (tee.TEE_DATA_SEEK_END, 0x7FFFFFFF, 0x80000009),
    ],
)
def test_seek(whence: int, offset: int, expected: int) -> None:
    ta = Ta()
    _, handle = ta.create(b"a", bytes(10))
    assert ta.seek(handle, 5, tee.TEE_DATA_SEEK_SET) == (OK, 5)
    assert ta.seek(handle, offset, whence) == (OK, expected)


def test_seek_and_write_beyond_what_a_position_can_be() -> None:
    ta = Ta()
    _, handle = ta.create(b"a")
    for expected in (0x7FFFFFFF, 0xFFFFFFFE):
        assert ta.seek(handle, 0x7FFFFFFF, tee.TEE_DATA_SEEK_CUR) == (OK, expected)
    assert ta.seek(handle, 2, tee.TEE_DATA_SEEK_CUR)[0] == tee.TEE_ERROR_OVERFLOW
    assert ta.write(handle, b"xx") == tee.TEE_ERROR_OVERFLOW
    assert ta.seek(handle, 0, 3)[0] == tee.TEE_ERROR_BAD_PARAMETERS
    assert ta.seek(handle, -0x7FFFFFFF, tee.TEE_DATA_SEEK_CUR) == (OK, 0x7FFFFFFF)
    assert ta.write(handle, b"x") == tee.TEE_ERROR_STORAGE_NO_SPACE


def test_rights() -> None:
    ta = Ta()
    ta.close(ta.create(b"a", b"x")[1])
    denied = tee.TEE_ERROR_ACCESS_DENIED
    _, reader = ta.open(b"a", READ)
    assert ta.write(reader, b"y") == denied
    assert ta.simple(Command.TRUNCATE, reader, 0) == denied
    assert ta.simple(Command.UNLINK, reader) == denied
    assert ta.rename(reader, b"b") == denied
    ta.close(reader)
    _, writer = ta.open(b"a", WRITE)
    assert ta.read(writer, 1)[0] == denied
    assert ta.write(writer, b"y") == OK


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (READ, READ, tee.TEE_ERROR_ACCESS_CONFLICT),
        (READ | SHARE_READ, READ, tee.TEE_ERROR_ACCESS_CONFLICT),
        (READ, READ | SHARE_READ, tee.TEE_ERROR_ACCESS_CONFLICT),
        (READ | SHARE_READ, READ | SHARE_READ, OK),
        (READ | SHARE_READ, WRITE | SHARE_READ, tee.TEE_ERROR_ACCESS_CONFLICT),
        (READ | SHARE_READ | SHARE_WRITE, WRITE | SHARE_READ | SHARE_WRITE, OK),
        (META, SHARE_READ | SHARE_WRITE, tee.TEE_ERROR_ACCESS_CONFLICT),
        (SHARE_READ | SHARE_WRITE, META | SHARE_READ | SHARE_WRITE, tee.TEE_ERROR_ACCESS_CONFLICT),
        (0, 0, OK),
    ],
)
@pytest.mark.parametrize("session", [1, 2])
def test_sharing_between_and_within_sessions(
    first: int, second: int, expected: int, session: int
) -> None:
    ta = Ta()
    ta.close(ta.create(b"a")[1])
    assert ta.open(b"a", first)[0] == OK
    assert ta.open(b"a", second, session)[0] == expected


@given(first=st.integers(0, 63), second=st.integers(0, 63))
def test_sharing_does_not_depend_on_the_order(first: int, second: int) -> None:
    legal = ALL | SHARE_READ | SHARE_WRITE
    codes = []
    for one, two in ((first & legal, second & legal), (second & legal, first & legal)):
        ta = Ta()
        ta.close(ta.create(b"a")[1])
        assert ta.open(b"a", one)[0] == OK
        codes.append(ta.open(b"a", two, 2)[0])
    assert codes[0] == codes[1]


def test_an_open_object_is_not_replaced() -> None:
    ta = Ta()
    _, handle = ta.create(b"a", b"old")
    assert ta.create(b"a", b"new", ALL | OVERWRITE, 2)[0] == tee.TEE_ERROR_ACCESS_CONFLICT
    assert ta.create(b"a", b"new", ALL, 2)[0] == tee.TEE_ERROR_ACCESS_CONFLICT
    ta.close(handle)
    code, handle = ta.create(b"a", b"new", ALL | OVERWRITE, 2)
    assert code == OK
    assert ta.read(handle, 10, 2) == (OK, b"new")
    assert ta.create(b"b", b"first", ALL | OVERWRITE)[0] == OK


def test_handles_belong_to_their_session_and_go_with_it() -> None:
    ta = Ta()
    _, handle = ta.create(b"a", b"x")
    assert ta.read(handle, 1, session=2)[0] == tee.TEE_ERROR_BAD_PARAMETERS
    assert ta.close(handle, session=2) == tee.TEE_ERROR_BAD_PARAMETERS
    assert ta.open(b"a", READ, 2)[0] == tee.TEE_ERROR_ACCESS_CONFLICT
    ta.close_session(1)
    assert len(ta.app.handles) == 0
    code, other = ta.open(b"a", READ, 2)
    assert code == OK
    assert other != handle


def test_handles_are_bounded_and_a_refused_create_leaves_nothing() -> None:
    ta = Ta()
    for n in range(MAX_HANDLES):
        assert ta.create(b"%d" % n)[0] == OK
    assert ta.create(b"more")[0] == tee.TEE_ERROR_OUT_OF_MEMORY
    assert ta.open(b"0", 0)[0] == tee.TEE_ERROR_OUT_OF_MEMORY
    ta.close_session(1)
    assert ta.open(b"more", READ, 2)[0] == tee.TEE_ERROR_ITEM_NOT_FOUND


def test_enumeration() -> None:
    ta = Ta()
    assert ta.next()[0] == tee.TEE_ERROR_BAD_STATE
    for n, name in enumerate((b"one", b"two", b"three")):
        ta.close(ta.create(name, bytes(n))[1])
    assert ta.simple(Command.START_ENUM, tee.TEE_STORAGE_PRIVATE) == OK
    assert ta.next() == (OK, b"one", 0)
    assert ta.next(room=2)[0] == tee.TEE_ERROR_SHORT_BUFFER
    assert ta.next() == (OK, b"two", 1)
    # Deleting what was already listed, and adding, does not disturb it.
    assert ta.simple(Command.UNLINK, ta.open(b"one", META)[1]) == OK
    ta.close(ta.create(b"", b"1234")[1])
    assert ta.next() == (OK, b"three", 2)
    assert ta.next() == (OK, b"", 4)
    assert ta.next()[0] == tee.TEE_ERROR_ITEM_NOT_FOUND
    assert ta.next(session=2)[0] == tee.TEE_ERROR_BAD_STATE
    assert ta.simple(Command.START_ENUM, tee.TEE_STORAGE_PRIVATE, session=2) == OK
    assert ta.next(session=2) == (OK, b"two", 1)


def test_other_storages_do_not_exist() -> None:
    ta = Ta()
    ta.close(ta.create(b"a")[1])
    for storage in (0, 2, tee.TEE_STORAGE_PRIVATE_RPMB):
        missing = tee.TEE_ERROR_ITEM_NOT_FOUND
        assert ta.open(b"a", READ, storage=storage)[0] == missing
        assert ta.simple(Command.START_ENUM, storage) == missing
        assert ta.simple(Command.RESET, storage) == missing
    assert ta.open(b"a", READ, storage=tee.TEE_STORAGE_PRIVATE_REE)[0] == OK


@pytest.mark.parametrize("flags", [8, 0x800, 0x80000000, OVERWRITE])
def test_unknown_flags(flags: int) -> None:
    ta = Ta()
    ta.close(ta.create(b"a")[1])
    assert ta.open(b"a", READ | flags)[0] == tee.TEE_ERROR_BAD_PARAMETERS
    if flags != OVERWRITE:
        assert ta.create(b"b", b"", READ | flags)[0] == tee.TEE_ERROR_BAD_PARAMETERS


def test_names_are_bounded() -> None:
    ta = Ta()
    bad = tee.TEE_ERROR_BAD_PARAMETERS
    assert ta.create(b"n" * 65)[0] == bad
    assert ta.open(b"n" * 65, 0)[0] == bad
    assert ta.rename(ta.create(b"n" * 64)[1], b"m" * 65) == bad


def test_tampering_reaches_the_client_as_a_code() -> None:
    ta = Ta()
    _, handle = ta.create(b"a", b"x")
    files = ta.env.disk.files
    saved = dict(files)
    for name in files:
        files[name] = b"\xff" + files[name][1:]
    assert ta.read(handle, 1)[0] == tee.TEE_ERROR_CORRUPT_OBJECT
    files.clear()
    assert ta.read(handle, 1)[0] == tee.TEE_ERROR_SECURITY
    files.update(saved)
    assert ta.read(handle, 1) == (OK, b"x")


def test_reset_needs_all_handles_closed() -> None:
    ta = Ta()
    _, handle = ta.create(b"a", b"x", session=2)
    ta.env.disk.files.clear()
    storage = tee.TEE_STORAGE_PRIVATE
    assert ta.simple(Command.RESET, storage) == tee.TEE_ERROR_ACCESS_CONFLICT
    ta.close(handle, session=2)
    assert ta.simple(Command.RESET, storage) == OK
    assert ta.create(b"a", b"y")[0] == OK


@given(
    command=st.sampled_from([*Command, 9, 99, 0xFFFFFFFF]),
    kinds=st.lists(st.sampled_from([0, 1, 2, 3, 5, 6, 7, 4, 8, 15]), min_size=4, max_size=4),
    words=st.lists(st.integers(0, 0xFFFFFFFF), min_size=8, max_size=8),
    null=st.booleans(),
)
def test_hostile_parameters_give_codes_only(
    command: int, kinds: list[int], words: list[int], null: bool
) -> None:
    ta = Ta()
    ta.create(b"a", b"x")
    given_params: list[tuple[int, Value | Buffer]] = []
    for i, kind in enumerate(kinds):
        if kind in (5, 6, 7):
            given_params.append((kind, Buffer(None if null else bytes(words[2 * i] % 100))))
        else:
            given_params.append((kind, Value(words[2 * i], words[2 * i + 1])))
    assert 0 <= ta.invoke(1, command, *given_params) <= 0xFFFFFFFF
    assert ta.create(b"the instance is alive")[0] == OK


@given(handle=st.integers(0, 0xFFFFFFFF), word=st.integers(0, 0xFFFFFFFF))
def test_hostile_handles(handle: int, word: int) -> None:
    ta = Ta()
    _, good = ta.create(b"a", b"x")
    if handle == good:
        return
    bad = tee.TEE_ERROR_BAD_PARAMETERS
    assert ta.read(handle, 4)[0] == bad
    assert ta.write(handle, b"1") == bad
    assert ta.seek(handle, word, 0)[0] == bad
    for command in (Command.CLOSE, Command.UNLINK, Command.TRUNCATE):
        assert ta.simple(command, handle, word) == bad
