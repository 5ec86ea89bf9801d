# SPDX-License-Identifier: BSD-2-Clause
"""The object store against a normal world that changes, swaps, forgets, replays and fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mediator.suspend import Suspend, run
from secure_world.apps.object_store import (
    BLOCKS_PER_INDEX,
    MAX_OBJECT_SIZE,
    MAX_OBJECTS,
    ObjectInfo,
    ObjectStore,
)
from secure_world.apps.sealed import BLOCK_SIZE, RECORD_SIZE
from secure_world.ta import TeeError
from smccc.constants import tee
from tests.secure_world_apps.environment import Disk, Environment

CORRUPT = tee.TEE_ERROR_CORRUPT_OBJECT
ROLLED_BACK = tee.TEE_ERROR_SECURITY

# One octet of each field of a sealed record, and whole-file damage.
BYTE_CLASSES = {
    "magic": 0,
    "kind": 4,
    "reserved": 5,
    "position": 8,
    "generation": 12,
    "nonce": 20,
    "ciphertext": 32,
    "padding": 4127,
    "tag": 4128,
    "last": RECORD_SIZE - 1,
}


class Store:
    """The store as a synchronous object; errors come out as their code."""

    def __init__(self, env: Environment | None = None) -> None:
        self.env = env or Environment()
        self.disk = self.env.disk

    @property
    def api(self) -> ObjectStore:
        return ObjectStore(self.env)

    def create(self, name: bytes, data: bytes = b"", overwrite: bool = False) -> ObjectInfo:
        return run(self.api.create(name, data, overwrite=overwrite))

    def write(self, number: int, offset: int, data: bytes) -> None:
        run(self.api.write(number, offset, data))

    def read(self, number: int, offset: int = 0, size: int = MAX_OBJECT_SIZE) -> bytes:
        return run(self.api.read(number, offset, size))

    def contents(self) -> dict[bytes, bytes]:
        return {i.name: self.read(i.number) for i in run(self.api.objects())}

    def error(self, action: Callable[[], object]) -> int:
        """The code with which ``action`` fails, TEE_SUCCESS if it does not."""
        try:
            action()
        except TeeError as error:
            return error.code
        return tee.TEE_SUCCESS

    def object_file(self, info: ObjectInfo) -> str:
        (name,) = [n for n in self.disk.files if n.endswith(f".{info.number:x}")]
        return name

    def directory_file(self) -> str:
        """The directory file that counts now."""
        before = dict(self.disk.files)
        names = [n for n in before if ".d" in n]
        for name in names:
            self.disk.files[name] = b""
            broken = self.error(self.contents)
            self.disk.files[name] = before[name]
            if broken:
                return name
        raise AssertionError("no directory file counts")


def test_contents_survive_the_session_and_are_not_readable_outside() -> None:
    store = Store()
    info = store.create(b"name of the object", b"plain text " * 1000)
    again = Store(store.env)
    assert again.contents() == {b"name of the object": b"plain text " * 1000}
    assert run(again.api.find(b"name of the object")) == info
    stored = b"".join(store.disk.files.values())
    assert b"plain text" not in stored
    assert b"name of" not in stored
    assert all(b"name" not in n.encode() for n in store.disk.files)
    # Sizes are hidden in whole records.
    assert {len(f) % RECORD_SIZE for f in store.disk.files.values()} == {0}


def test_equal_plaintexts_look_different() -> None:
    store = Store()
    store.create(b"a", bytes(BLOCK_SIZE * 2))
    store.create(b"b", bytes(BLOCK_SIZE * 2))
    records = [
        data[at + 32 : at + RECORD_SIZE]
        for data in store.disk.files.values()
        for at in range(0, len(data), RECORD_SIZE)
        if any(data[at : at + RECORD_SIZE])
    ]
    assert len(set(records)) == len(records) > 5


def test_nonces_are_never_used_twice_also_after_failures() -> None:
    store = Store()
    seen: list[bytes] = []

    def collect() -> None:
        for data in store.disk.files.values():
            for at in range(0, len(data), RECORD_SIZE):
                record = data[at : at + RECORD_SIZE]
                if any(record) and record not in seen:
                    seen.append(record)

    info = store.create(b"a", b"first")
    for attempt in range(20):
        store.disk.torn = RECORD_SIZE if attempt % 2 else None
        store.error(lambda: store.write(info.number, 0, b"again"))
        collect()
    nonces = [record[20:32] for record in seen]
    assert len(nonces) == len(set(nonces)) > 20


@pytest.mark.parametrize("offset", BYTE_CLASSES.values(), ids=BYTE_CLASSES.keys())
def test_every_byte_class_of_every_record_in_use(offset: int) -> None:
    store = Store()
    info = store.create(b"a", b"x" * (2 * BLOCK_SIZE))
    for name in (store.object_file(info), store.directory_file()):
        whole = store.disk.files[name]
        hits = 0
        for at in range(0, len(whole), RECORD_SIZE):
            changed = bytearray(whole)
            changed[at + offset] ^= 0x10
            in_use = any(whole[at : at + RECORD_SIZE])
            store.disk.files[name] = bytes(changed)
            found = store.error(store.contents)
            assert found == (CORRUPT if in_use else tee.TEE_SUCCESS)
            hits += in_use
        assert hits >= 1
        store.disk.files[name] = whole
    assert store.contents() == {b"a": b"x" * (2 * BLOCK_SIZE)}


@given(data=st.data())
def test_any_single_bit_of_the_live_records(data: st.DataObject) -> None:
    store = Store()
    info = store.create(b"a", b"x" * 10)
    name = data.draw(st.sampled_from([store.object_file(info), store.directory_file()]))
    whole = store.disk.files[name]
    live = [a for a in range(0, len(whole), RECORD_SIZE) if any(whole[a : a + RECORD_SIZE])]
    at = data.draw(st.sampled_from(live)) + data.draw(st.integers(0, RECORD_SIZE - 1))
    changed = bytearray(whole)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    store.disk.files[name] = bytes(changed)
    assert store.error(store.contents) == CORRUPT


@pytest.mark.parametrize("keep", [0, 1, 31, 32, RECORD_SIZE - 1])
def test_cut_files(keep: int) -> None:
    store = Store()
    info = store.create(b"a", b"x")
    for name in (store.object_file(info), store.directory_file()):
        whole = store.disk.files[name]
        store.disk.files[name] = whole[:keep]
        assert store.error(store.contents) == CORRUPT
        store.disk.files[name] = whole


def test_appended_octets_change_nothing() -> None:
    store = Store()
    info = store.create(b"a", b"x")
    for name in (store.object_file(info), store.directory_file()):
        store.disk.files[name] += b"more" * 3000
    assert store.contents() == {b"a": b"x"}


def test_missing_object_file_is_corrupt_and_missing_directory_a_roll_back() -> None:
    store = Store()
    info = store.create(b"a", b"x")
    name, directory = store.object_file(info), store.directory_file()
    saved = store.disk.files.pop(name)
    assert store.error(lambda: store.read(info.number)) == CORRUPT
    store.disk.files[name] = saved
    del store.disk.files[directory]
    assert store.error(lambda: store.read(info.number)) == ROLLED_BACK
    store.disk.files.clear()
    assert store.error(store.contents) == ROLLED_BACK
    # Nobody may think that the store is empty and go on from there.
    assert store.error(lambda: store.create(b"b")) == ROLLED_BACK


def test_records_moved_within_a_file_are_corrupt() -> None:
    store = Store()
    info = store.create(b"a", b"1" * BLOCK_SIZE + b"2" * BLOCK_SIZE)
    name = store.object_file(info)
    whole = store.disk.files[name]
    records = [whole[at : at + RECORD_SIZE] for at in range(0, len(whole), RECORD_SIZE)]
    used = [i for i, record in enumerate(records) if any(record)]
    for i in used:
        for j in used:
            if i != j:
                moved = list(records)
                moved[i] = records[j]
                store.disk.files[name] = b"".join(moved)
                assert store.error(store.contents) == CORRUPT


def test_files_of_two_objects_swapped_are_corrupt() -> None:
    store = Store()
    a, b = store.create(b"a", b"first"), store.create(b"b", b"second")
    files, one, two = store.disk.files, store.object_file(a), store.object_file(b)
    files[one], files[two] = files[two], files[one]
    assert store.error(lambda: store.read(a.number)) == CORRUPT
    assert store.error(lambda: store.read(b.number)) == CORRUPT


def test_roll_back_of_the_object_file_alone() -> None:
    store = Store()
    info = store.create(b"a", b"old")
    name = store.object_file(info)
    history = [store.disk.files[name]]
    for n in range(4):
        store.write(info.number, 0, b"new%d" % n)
        history.append(store.disk.files[name])
    newest = history.pop()
    for old in history:
        store.disk.files[name] = old
        assert store.error(lambda: store.read(info.number)) == ROLLED_BACK
    store.disk.files[name] = newest
    assert store.read(info.number) == b"new3"


def test_roll_back_of_the_directory_alone_and_of_everything() -> None:
    store = Store()
    info = store.create(b"a", b"balance ---")
    store.write(info.number, 8, b"100")  # from here on both directory files exist
    states = [dict(store.disk.files)]
    for n in range(5):
        store.write(info.number, 8, b"%03d" % n)
        states.append(dict(store.disk.files))
    newest = states.pop()
    for old in states[:-1]:
        store.disk.files = dict(old)
        assert store.error(lambda: store.read(info.number)) == ROLLED_BACK
        store.disk.files = {n: old[n] if ".d" in n else newest[n] for n in newest}
        assert store.error(lambda: store.read(info.number)) == ROLLED_BACK
    store.disk.files = dict(states[-1])
    assert store.error(lambda: store.read(info.number)) == ROLLED_BACK
    store.disk.files = dict(newest)
    assert store.read(info.number) == b"balance 004"


def test_a_deleted_object_does_not_come_back() -> None:
    store = Store()
    info = store.create(b"a", b"secret")
    before = dict(store.disk.files)
    run(store.api.delete(info.number))
    store.disk.files = before
    assert store.error(store.contents) == ROLLED_BACK


def test_records_of_an_abandoned_transaction_are_a_roll_back() -> None:
    """A change that failed at the very end left genuine records; they must not count later."""
    store = Store()
    info = store.create(b"a", b"kept")
    anchor = dict(store.env.protected)
    run(store.api.rename(info.number, b"lost"))
    abandoned = dict(store.disk.files)
    store.env.protected = dict(anchor)  # as if it had failed just before the anchor
    assert store.contents() == {b"a": b"kept"}
    run(store.api.rename(info.number, b"next"))
    directory = store.directory_file()
    current = store.disk.files[directory]
    assert len(current) == len(abandoned[directory])
    store.disk.files[directory] = abandoned[directory]
    assert store.error(store.contents) == ROLLED_BACK
    store.disk.files[directory] = current
    assert store.contents() == {b"next": b"kept"}


def fail_nth(disk: Disk, count: int, code: int) -> Callable[[], bool]:
    """Make the ``count``-th request fail; the result tells whether it came to that."""
    left = count

    def fail(operation: str) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise TeeError(code)

    disk.fail = fail
    return lambda: left < 0


ACTIONS: dict[str, Callable[[Store, int], object]] = {
    "create": lambda s, n: s.create(b"new", b"n" * 9000),
    "overwrite": lambda s, n: s.create(b"a", b"n" * 9000, overwrite=True),
    "write": lambda s, n: s.write(n, 4000, b"w" * 6000),
    "shrink": lambda s, n: run(s.api.truncate(n, 4100)),
    "grow": lambda s, n: run(s.api.truncate(n, 90_000)),
    "rename": lambda s, n: run(s.api.rename(n, b"renamed")),
    "delete": lambda s, n: run(s.api.delete(n)),
    "read": lambda s, n: s.read(n),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (tee.TEE_ERROR_GENERIC, tee.TEE_ERROR_STORAGE_NOT_AVAILABLE),
        (tee.TEE_ERROR_MAC_INVALID, tee.TEE_ERROR_STORAGE_NOT_AVAILABLE),
        (tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ERROR_OUT_OF_MEMORY),
        (tee.TEE_ERROR_STORAGE_NO_SPACE, tee.TEE_ERROR_STORAGE_NO_SPACE),
    ],
)
def test_every_request_fails_in_turn_and_the_old_state_stays(
    action: str, code: int, expected: int
) -> None:
    failures = 0
    for count in range(100):
        store = Store()
        info = store.create(b"a", b"o" * 10_000)
        store.create(b"other", b"untouched")
        before = store.contents()
        failed = fail_nth(store.disk, count, code)
        result = store.error(partial(ACTIONS[action], store, info.number))
        came = failed()
        store.disk.fail = lambda operation: None
        assert store.disk.open_files == 0
        assert not store.env.lock.held
        if not came:
            assert result == tee.TEE_SUCCESS
            break
        if result != tee.TEE_SUCCESS:
            # Only close and the clean-up after the commit may fail unnoticed.
            assert result == expected
            assert store.contents() == before
            failures += 1
        # Whatever happened, the store goes on.
        assert store.error(partial(store.create, b"next", b"1")) == tee.TEE_SUCCESS
        assert store.contents()[b"other"] == b"untouched"
    else:
        raise AssertionError("the action never ended")
    assert failures >= 2


@pytest.mark.parametrize("action", ["create", "overwrite", "write", "shrink"])
@pytest.mark.parametrize("kept", [0, 1, 100, RECORD_SIZE - 1, RECORD_SIZE])
def test_torn_writes_leave_the_old_state(action: str, kept: int) -> None:
    store = Store()
    info = store.create(b"a", b"o" * 10_000)
    before = store.contents()
    store.disk.torn = kept
    result = store.error(lambda: ACTIONS[action](store, info.number))
    assert result == tee.TEE_ERROR_STORAGE_NOT_AVAILABLE
    assert store.contents() == before
    ACTIONS[action](store, info.number)
    assert store.contents() != before


def test_a_write_that_was_only_acknowledged_is_found_on_reading() -> None:
    store = Store()
    info = store.create(b"a", b"old")
    frozen = dict(store.disk.files)
    store.write(info.number, 0, b"new")
    store.disk.files = {n: frozen.get(n, b"") for n in store.disk.files}
    assert store.error(lambda: store.read(info.number)) in (CORRUPT, ROLLED_BACK)


def test_longer_answers_than_asked_are_refused_not_used() -> None:
    class Generous(Disk):
        async def read(self, fd: int, offset: int, size: int) -> bytes:
            return await super().read(fd, offset, size) + b"extra"

    store = Store(Environment(disk=Generous()))
    info = store.create(b"a", b"x")
    assert store.error(lambda: store.read(info.number)) == CORRUPT


def test_an_interrupted_transaction_leaves_the_old_state() -> None:
    """The partition's coroutine is thrown away in the middle of any request."""

    class Slow(Disk):
        stop = -1

        async def write(self, fd: int, offset: int, data: bytes) -> None:
            await super().write(fd, offset, data)
            self.stop -= 1
            if self.stop == 0:
                await Suspend[None]("gone")

    for stop in range(1, 20):
        disk = Slow()
        env = Environment(disk=disk)
        store = Store(env)
        info = store.create(b"a", b"o" * 10_000)
        disk.stop = stop
        coroutine = ObjectStore(env).write(info.number, 0, b"n" * 10_000)
        try:
            assert coroutine.send(None) == "gone"
        except StopIteration:
            break
        coroutine.close()
        env.lock.held = False  # the lock goes with the partition's coroutines
        assert store.read(info.number) == b"o" * 10_000
    else:
        raise AssertionError("never completed")
    assert stop > 3


def test_tas_and_partitions_are_strangers_on_one_disk() -> None:
    disk = Disk()
    stores = [
        Store(Environment(ta=ta, client_id=client, disk=disk, seed=client))
        for ta in ("one", "two")
        for client in (1, 2)
    ]
    for n, store in enumerate(stores):
        assert store.contents() == {}
        store.create(b"a", b"of %d" % n)
    for n, store in enumerate(stores):
        assert store.contents() == {b"a": b"of %d" % n}
    assert len(disk.files) == 8


def test_a_partition_with_a_used_id_starts_empty() -> None:
    old = Store()
    old.create(b"a", b"of the guest before")
    new = Store(Environment(disk=old.disk, seed=7))
    assert new.contents() == {}
    new.create(b"a", b"mine")
    assert new.contents() == {b"a": b"mine"}


def test_reset_overcomes_a_damaged_directory() -> None:
    store = Store()
    store.create(b"a", b"x")
    saved = dict(store.disk.files)
    store.disk.files.clear()
    assert store.error(store.contents) == ROLLED_BACK
    run(store.api.reset())
    assert store.contents() == {}
    store.create(b"b", b"y")
    assert store.contents() == {b"b": b"y"}
    store.disk.files.update(saved)  # the files from before mean nothing any more
    assert store.error(store.contents) == CORRUPT


def test_a_damaged_object_can_be_deleted_and_replaced() -> None:
    store = Store()
    info = store.create(b"a", b"x")
    store.disk.files[store.object_file(info)] = b""
    assert store.error(lambda: store.read(info.number)) == CORRUPT
    store.create(b"a", b"again", overwrite=True)
    assert store.contents() == {b"a": b"again"}


def test_limits() -> None:
    store = Store()
    info = store.create(b"n" * 64, b"")
    no_space = tee.TEE_ERROR_STORAGE_NO_SPACE
    assert store.error(lambda: store.create(b"n" * 65)) == tee.TEE_ERROR_BAD_PARAMETERS
    rename = store.error(lambda: run(store.api.rename(info.number, b"n" * 65)))
    assert rename == tee.TEE_ERROR_BAD_PARAMETERS
    assert store.error(lambda: store.create(b"n" * 64)) == tee.TEE_ERROR_ACCESS_CONFLICT
    too_far = store.error(lambda: store.write(info.number, MAX_OBJECT_SIZE, b"x"))
    assert too_far == no_space
    assert (
        store.error(lambda: run(store.api.truncate(info.number, MAX_OBJECT_SIZE + 1))) == no_space
    )
    store.write(info.number, MAX_OBJECT_SIZE - 1, b"x")
    assert run(store.api.info(info.number)).size == MAX_OBJECT_SIZE
    assert store.read(info.number, MAX_OBJECT_SIZE - 3) == b"\0\0x"
    assert store.read(info.number, 0, 10) == bytes(10)
    assert len(store.disk.files[store.object_file(info)]) < 3 * MAX_OBJECT_SIZE


def test_the_number_of_objects_is_bounded() -> None:
    store = Store()
    for n in range(MAX_OBJECTS):
        store.create(b"%064d" % n)
    assert store.error(lambda: store.create(b"one more")) == tee.TEE_ERROR_STORAGE_NO_SPACE
    store.create(b"%064d" % 5, b"replaced", overwrite=True)
    assert len(run(store.api.objects())) == MAX_OBJECTS
    # The largest directory takes more than one request of several records.
    assert max(len(f) for n, f in store.disk.files.items() if ".d" in n) > 4 * RECORD_SIZE


def test_shrinking_forgets() -> None:
    store = Store()
    info = store.create(b"a", b"s" * (3 * BLOCK_SIZE))
    run(store.api.truncate(info.number, BLOCK_SIZE + 5))
    run(store.api.truncate(info.number, 3 * BLOCK_SIZE))
    expected = b"s" * (BLOCK_SIZE + 5) + bytes(2 * BLOCK_SIZE - 5)
    assert store.read(info.number) == expected


@pytest.mark.parametrize("edge", [1, BLOCK_SIZE, BLOCKS_PER_INDEX * BLOCK_SIZE])
@pytest.mark.parametrize("delta", [-1, 0, 1])
def test_block_and_index_edges(edge: int, delta: int) -> None:
    store = Store()
    info = store.create(b"a")
    at = max(edge + delta, 0)
    store.write(info.number, at, b"abc")
    assert run(store.api.info(info.number)).size == at + 3
    assert store.read(info.number, max(at - 2, 0), 10) == bytes(min(at, 2)) + b"abc"
    run(store.api.truncate(info.number, at + 1))
    store.write(info.number, at + 2, b"z")
    assert store.read(info.number, at, 10) == b"a\0z"


def test_the_same_seed_stores_the_same_octets() -> None:
    def fill(seed: int) -> dict[str, bytes]:
        store = Store(Environment(seed=seed))
        info = store.create(b"a", b"x" * 5000)
        store.write(info.number, 3, b"y")
        return store.disk.files

    assert fill(3) == fill(3)
    assert fill(3) != fill(4)


NAMES = st.sampled_from([b"", b"a", b"b", b"n" * 64])
SIZES = st.integers(0, 3 * BLOCK_SIZE) | st.sampled_from([0, 1, 4095, 4096, 4097, 8192])


class StoreModel(RuleBasedStateMachine):
    """Any sequence of operations equals the same on a dictionary of byte strings."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.model: dict[bytes, bytes] = {}
        self.history: list[dict[str, bytes]] = []

    def _number(self, name: bytes) -> int:
        return run(self.store.api.find(name)).number

    @rule(name=NAMES, size=SIZES, fill=st.integers(0, 255), overwrite=st.booleans())
    def create(self, name: bytes, size: int, fill: int, overwrite: bool) -> None:
        data = bytes([fill]) * size
        result = self.store.error(lambda: self.store.create(name, data, overwrite))
        if name in self.model and not overwrite:
            assert result == tee.TEE_ERROR_ACCESS_CONFLICT
        else:
            assert result == tee.TEE_SUCCESS
            self.model[name] = data

    @precondition(lambda self: self.model)
    @rule(choice=st.randoms(use_true_random=False), offset=SIZES, size=SIZES)
    def write(self, choice: random.Random, offset: int, size: int) -> None:
        name = choice.choice(sorted(self.model))
        data = choice.randbytes(size)
        self.store.write(self._number(name), offset, data)
        old = self.model[name]
        if data:
            old = old.ljust(offset, b"\0")
            self.model[name] = old[:offset] + data + old[offset + size :]

    @precondition(lambda self: self.model)
    @rule(choice=st.randoms(use_true_random=False), size=SIZES)
    def truncate(self, choice: random.Random, size: int) -> None:
        name = choice.choice(sorted(self.model))
        run(self.store.api.truncate(self._number(name), size))
        self.model[name] = self.model[name][:size].ljust(size, b"\0")

    @precondition(lambda self: self.model)
    @rule(choice=st.randoms(use_true_random=False), new=NAMES)
    def rename(self, choice: random.Random, new: bytes) -> None:
        name = choice.choice(sorted(self.model))
        number = self._number(name)
        result = self.store.error(lambda: run(self.store.api.rename(number, new)))
        if new in self.model:
            assert result == tee.TEE_ERROR_ACCESS_CONFLICT
        else:
            assert result == tee.TEE_SUCCESS
            self.model[new] = self.model.pop(name)

    @precondition(lambda self: self.model)
    @rule(choice=st.randoms(use_true_random=False))
    def delete(self, choice: random.Random) -> None:
        name = choice.choice(sorted(self.model))
        run(self.store.api.delete(self._number(name)))
        del self.model[name]

    @rule(count=st.integers(0, 30))
    def failing_write(self, count: int) -> None:
        fail_nth(self.store.disk, count, tee.TEE_ERROR_GENERIC)
        self.store.error(lambda: self.store.create(b"a", b"must not half appear", True))
        self.store.disk.fail = lambda operation: None
        if self.store.contents().get(b"a") == b"must not half appear":
            self.model[b"a"] = b"must not half appear"

    @rule()
    def remember(self) -> None:
        self.history.append(dict(self.store.disk.files))

    @precondition(lambda self: self.history)
    @rule(choice=st.randoms(use_true_random=False))
    def roll_back(self, choice: random.Random) -> None:
        now = self.store.disk.files
        old = choice.choice(self.history)
        directories = {n: f for n, f in now.items() if ".d" in n}
        if {n: f for n, f in old.items() if ".d" in n} == directories:
            return
        self.store.disk.files = dict(old)
        code = self.store.error(self.store.contents)
        current = self.store.env.protected
        self.store.disk.files = now
        # Either the directory file that counts is the same, and its objects too, or it is noticed.
        assert code in (tee.TEE_SUCCESS, ROLLED_BACK, CORRUPT)
        if code == tee.TEE_SUCCESS:
            assert self.store.contents() == self.model
        assert self.store.env.protected == current

    @invariant()
    def equals_the_model(self) -> None:
        assert self.store.contents() == self.model
        assert self.store.disk.open_files == 0


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=60, stateful_step_count=25)
