# SPDX-License-Identifier: BSD-2-Clause
"""The supplicant: TA images, files, plug-ins, memory, and what happens when it is not there."""

from __future__ import annotations

from collections.abc import Generator
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.guest.client import TeeError
from mediator.guest.cpu import Registers
from mediator.guest.guest import Guest, GuestSettings, Main
from mediator.guest.storage import FIRST_DESCRIPTOR, FileStore, OpenFiles
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee
from tests.guest.machine import FakeMachine
from tests.guest.scripted import Answer, Call, Handler, ScriptedTee, Steps

RAM = ((0x4000_0000, 1024),)
UUID_OF_TA = UUID(int=0x1234)
IMAGE = bytes(range(256)) * 50
PLUGIN = UUID("a8b7c6d5-1122-3344-5566-778899aabbcc")

OK = 0
BAD = tee.TEE_ERROR_BAD_PARAMETERS
NOT_FOUND = tee.TEE_ERROR_ITEM_NOT_FOUND

Request = Generator[Answer, Registers, tuple[int, ...]]


class Ree:
    """What OP-TEE's file code does with RPCs, for the scripts below."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.buffer = 0
        self.pages: list[int] = []

    def start(self) -> Generator[Answer, Registers, None]:
        answer = yield from self.call.rpc(rpc.OPTEE_RPC_CMD_SHM_ALLOC, (1, 0, 4096, 8))
        self.pages, _ = self.call.tee.walk(answer[9], answer[10])
        self.buffer = answer[11]

    def end(self) -> Generator[Answer, Registers, None]:
        yield from self.call.rpc(rpc.OPTEE_RPC_CMD_SHM_FREE, (1, 0, self.buffer, 0))

    def put(self, data: bytes, offset: int = 0) -> None:
        self.call.tee.machine.store(self.pages[0] + offset, data)

    def get(self, size: int) -> bytes:
        return self.call.tee.machine.load(self.pages[0], size)

    def fs(self, *params: tuple[int, int, int, int]) -> Request:
        return self.call.rpc(rpc.OPTEE_RPC_CMD_FS, *params)

    def named(self, operation: int, name: bytes) -> Generator[Answer, Registers, tuple[int, int]]:
        """(result, descriptor) of an operation with a name."""
        self.put(name + b"\0")
        answer = yield from self.fs((1, operation, 0, 0), (5, 0, 350, self.buffer), (2, 0, 0, 0))
        return answer[5], answer[17]

    def remove(self, name: bytes) -> Generator[Answer, Registers, int]:
        self.put(name + b"\0")
        operation = rpc.OPTEE_RPC_FS_REMOVE
        return (yield from self.fs((1, operation, 0, 0), (5, 0, 350, self.buffer)))[5]

    def write(self, fd: int, offset: int, data: bytes) -> Generator[Answer, Registers, int]:
        self.put(data)
        operation = rpc.OPTEE_RPC_FS_WRITE
        params = (1, operation, fd, offset), (5, 0, len(data), self.buffer)
        return (yield from self.fs(*params))[5]

    def read(
        self, fd: int, offset: int, size: int
    ) -> Generator[Answer, Registers, tuple[int, bytes]]:
        operation = rpc.OPTEE_RPC_FS_READ
        answer = yield from self.fs((1, operation, fd, offset), (6, 0, size, self.buffer))
        return answer[5], self.get(answer[14])


def run(invoke: Handler, guest: Guest | None = None, *mains: Main) -> Guest:
    """Run one invoke against a supplicant; the script's assertions are the test."""
    guest = guest or Guest(GuestSettings("g", RAM, 1, images={UUID_OF_TA: IMAGE}))

    async def main(guest: Guest) -> None:
        async with guest.client().open_session(UUID_OF_TA) as session:
            await session.invoke(1)

    guest.start(*(mains or (main,)))
    assert FakeMachine(RAM, ScriptedTee(invoke=invoke), 1).run(guest.programs), guest.stuck()
    guest.check()
    return guest


def test_a_ta_image_is_asked_for_twice() -> None:
    low, high = UUID_OF_TA.bytes[:8], UUID_OF_TA.bytes[8:]
    words = int.from_bytes(low, "little"), int.from_bytes(high, "little")

    def invoke(call: Call) -> Steps:
        name = (1, *words, 0)
        answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_LOAD_TA, name, (0xA, 0, 0, 0))
        assert (answer[5], answer[6], answer[12:16]) == (OK, 2, (0xA, 0, len(IMAGE), 0))
        shm = yield from call.rpc(rpc.OPTEE_RPC_CMD_SHM_ALLOC, (1, 0, len(IMAGE), 8))
        pages, _ = call.tee.walk(shm[9], shm[10])
        short = yield from call.rpc(rpc.OPTEE_RPC_CMD_LOAD_TA, name, (6, 0, 100, shm[11]))
        assert (short[5], short[14]) == (OK, len(IMAGE))
        full = (6, 0, len(IMAGE), shm[11])
        answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_LOAD_TA, name, full)
        assert (answer[5], answer[14]) == (OK, len(IMAGE))
        image = b"".join(call.tee.machine.load(page, 4096) for page in pages)
        assert image[: len(IMAGE)] == IMAGE
        missing = yield from call.rpc(rpc.OPTEE_RPC_CMD_LOAD_TA, (1, 1, 1, 0), (0xA, 0, 0, 0))
        assert (missing[5], missing[14]) == (NOT_FOUND, 0)
        wrong = yield from call.rpc(rpc.OPTEE_RPC_CMD_LOAD_TA, name)
        assert wrong[5] == BAD
        yield from call.rpc(rpc.OPTEE_RPC_CMD_SHM_FREE, (1, 0, shm[11], 0))
        return None

    guest = run(invoke)
    assert guest.pages.in_use == 0


def test_files_from_creation_to_removal() -> None:
    def invoke(call: Call) -> Steps:
        ree = Ree(call)
        yield from ree.start()
        # The shared memory has the first descriptor.
        assert (yield from ree.named(rpc.OPTEE_RPC_FS_OPEN, b"/a")) == (NOT_FOUND, 0)
        assert (yield from ree.remove(b"/a")) == NOT_FOUND
        result, fd = yield from ree.named(rpc.OPTEE_RPC_FS_CREATE, b"/a")
        assert (result, fd) == (OK, FIRST_DESCRIPTOR + 1)
        assert (yield from ree.write(fd, 3, b"abc")) == OK
        assert (yield from ree.read(fd, 0, 100)) == (OK, b"\0\0\0abc")
        assert (yield from ree.read(fd, 5, 100)) == (OK, b"c")
        assert (yield from ree.read(fd, 50, 100)) == (OK, b"")
        assert (yield from ree.read(77, 0, 1))[0] == tee.TEE_ERROR_GENERIC
        assert (yield from ree.write(77, 0, b"x")) == tee.TEE_ERROR_GENERIC
        truncate = (1, rpc.OPTEE_RPC_FS_TRUNCATE, fd, 4)
        assert (yield from ree.fs(truncate))[5] == OK
        assert (yield from ree.read(fd, 0, 100)) == (OK, b"\0\0\0a")
        close = (1, rpc.OPTEE_RPC_FS_CLOSE, fd, 0)
        assert (yield from ree.fs(close))[5] == OK
        assert (yield from ree.fs(close))[5] == tee.TEE_ERROR_GENERIC
        assert (yield from ree.named(rpc.OPTEE_RPC_FS_OPEN, b"/a")) == (OK, fd)
        assert (yield from ree.remove(b"/a")) == OK
        # An open file outlives its name.
        assert (yield from ree.read(fd, 3, 1)) == (OK, b"a")
        # Not a request: no parameters, an unknown operation, wrong types.
        assert (yield from ree.fs())[5] == BAD
        assert (yield from ree.fs((1, 11, 0, 0)))[5] == BAD
        assert (yield from ree.fs((1, rpc.OPTEE_RPC_FS_READ, fd, 0)))[5] == BAD
        yield from ree.end()
        return None

    guest = run(invoke)
    assert guest.store.paths() == []
    assert guest.supplicant.served[rpc.OPTEE_RPC_CMD_FS] == 19


def test_names_directories_and_renaming() -> None:
    def invoke(call: Call) -> Steps:
        ree = Ree(call)
        yield from ree.start()
        for name in (b"/ta/x/one", b"/ta/x/two", b"/ta/.hidden"):
            assert (yield from ree.named(rpc.OPTEE_RPC_FS_CREATE, name))[0] == OK

        def rename(old: bytes, new: bytes, overwrite: int) -> Request:
            ree.put(old + b"\0")
            ree.put(new + b"\0", 1000)
            return ree.fs(
                (1, rpc.OPTEE_RPC_FS_RENAME, overwrite, 0),
                (5, 0, 350, ree.buffer),
                (5, 1000, 350, ree.buffer),
            )

        conflict = tee.TEE_ERROR_ACCESS_CONFLICT
        assert (yield from rename(b"/ta/x/one", b"/ta/x/two", 0))[5] == conflict
        assert (yield from rename(b"/nowhere", b"/ta/x/three", 0))[5] == NOT_FOUND
        assert (yield from rename(b"/ta/x/one", b"/ta/x/two", 1))[5] == OK
        assert (yield from rename(b"/ta/x/two", b"/ta/x/three", 0))[5] == OK
        result, handle = yield from ree.named(rpc.OPTEE_RPC_FS_OPENDIR, b"/ta")
        assert result == OK
        listed = []
        while True:
            answer = yield from ree.fs(
                (1, rpc.OPTEE_RPC_FS_READDIR, handle, 0), (6, 0, 350, ree.buffer)
            )
            if answer[5]:
                assert answer[5] == NOT_FOUND
                break
            listed.append(ree.get(answer[14]))
        assert listed == [b"x\0"]
        result, other = yield from ree.named(rpc.OPTEE_RPC_FS_OPENDIR, b"/ta/x/")
        assert other == handle + 1
        small = yield from ree.fs((1, rpc.OPTEE_RPC_FS_READDIR, other, 0), (6, 0, 2, ree.buffer))
        assert (small[5], small[14]) == (tee.TEE_ERROR_SHORT_BUFFER, len(b"three\0"))
        assert (yield from ree.fs((1, rpc.OPTEE_RPC_FS_CLOSEDIR, handle, 0)))[5] == OK
        assert (yield from ree.fs((1, rpc.OPTEE_RPC_FS_CLOSEDIR, handle, 0)))[5] == BAD
        gone = yield from ree.fs((1, rpc.OPTEE_RPC_FS_READDIR, handle, 0), (6, 0, 9, ree.buffer))
        assert gone[5] == BAD
        assert (yield from ree.named(rpc.OPTEE_RPC_FS_OPENDIR, b"/none"))[0] == NOT_FOUND
        # A name without its NUL is no name.
        ree.put(b"x" * 350)
        answer = yield from ree.fs((1, 0, 0, 0), (5, 0, 350, ree.buffer), (2, 0, 0, 0))
        assert answer[5] == BAD
        yield from ree.end()
        return None

    guest = run(invoke)
    assert guest.store.paths() == ["/ta/.hidden", "/ta/x/three"]


def test_a_plugin_is_found_by_its_uuid_words() -> None:
    seen: list[tuple[int, int, bytes]] = []

    def plugin(command: int, sub_command: int, data: bytes) -> tuple[int, bytes]:
        seen.append((command, sub_command, data))
        return OK, data.upper()

    words = [int.from_bytes(PLUGIN.bytes[n : n + 4], "little") for n in range(0, 16, 4)]

    def invoke(call: Call) -> Steps:
        ree = Ree(call)
        yield from ree.start()
        ree.put(b"data")

        def request(uuid_words: list[int]) -> Request:
            return call.rpc(
                rpc.OPTEE_RPC_CMD_SUPP_PLUGIN,
                (1, 0, uuid_words[0], uuid_words[1]),
                (1, uuid_words[2], uuid_words[3], 7),
                (3, 9, 0, 0),
                (7, 0, 4, ree.buffer),
            )

        answer = yield from request(words)
        assert (answer[5], answer[18]) == (OK, 4)
        assert ree.get(4) == b"DATA"
        assert (yield from request(words[::-1]))[5] == NOT_FOUND
        yield from ree.end()
        return None

    run(invoke, Guest(GuestSettings("g", RAM, 1, plugins={PLUGIN: plugin})))
    assert seen == [(7, 9, b"data")]


def test_a_request_waits_for_a_supplicant_and_one_that_dies_fails_it() -> None:
    results: list[int] = []
    finished: list[str] = []

    def invoke(call: Call) -> Steps:
        for _ in range(2):
            answer = yield from call.rpc(rpc.OPTEE_RPC_CMD_SOCKET, (1, 0, 0, 0))
            results.append(answer[5])
        return None

    async def client(guest: Guest) -> None:
        async with guest.client().open_session(UUID_OF_TA) as session:
            await session.invoke(1)
        finished.append("client")

    async def operator(guest: Guest) -> None:
        await guest.kernel.sleep(1000)
        assert results == []
        guest.driver.supplicant.open()
        await guest.kernel.sleep(1000)
        # Nobody has served it: the process dies before that.
        assert results == []
        guest.supplicant.stop()
        await guest.kernel.sleep(1000)
        assert results == [tee.TEE_ERROR_COMMUNICATION]
        await guest.supplicant.start()
        finished.append("operator")

    guest = Guest(GuestSettings("g", RAM, 1, supplicant=False))
    run(invoke, guest, client, operator)
    assert sorted(finished) == ["client", "operator"]
    assert results == [tee.TEE_ERROR_COMMUNICATION, tee.TEE_ERROR_NOT_SUPPORTED]


def test_the_kernel_itself_does_not_wait_for_a_supplicant() -> None:
    results: list[int] = []

    def opened(call: Call) -> Steps:
        results.append((yield from call.rpc(rpc.OPTEE_RPC_CMD_LOAD_TA, (1, 1, 1, 0)))[5])
        return tee.TEE_ERROR_ITEM_NOT_FOUND

    async def main(guest: Guest) -> None:
        reply = await guest.driver.open_session(UUID_OF_TA, 0, (), nowait=True)
        assert reply[5] == tee.TEE_ERROR_ITEM_NOT_FOUND
        with pytest.raises(TeeError):
            await guest.client().open_session(UUID_OF_TA)

    guest = Guest(GuestSettings("g", RAM, 1, supplicant=False))
    guest.start(main)
    # The client's open waits for a supplicant that never comes.
    assert not FakeMachine(RAM, ScriptedTee(opened=opened), 1).run(guest.programs)
    assert results == [tee.TEE_ERROR_COMMUNICATION]
    assert dict(guest.stuck())["main"].startswith("the supplicant")


def test_a_disk_can_be_rolled_back_and_tampered_with() -> None:
    store = FileStore({"/dir/a": b"one"})
    image = store.snapshot()
    store.tamper("/dir/a", 1, 0x80)
    store.replace("/b", b"new")
    assert store.read("/dir/a") == b"o\xeee"
    store.restore(image)
    assert store.paths() == ["/dir/a"]
    assert store.read("/dir/a") == b"one"
    store.delete("/dir/a")
    with pytest.raises(KeyError):
        store.tamper("/dir/a", 0)


names = st.sampled_from(["/a", "/b", "/d/a", "/d/e/f"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["create", "open", "write", "truncate", "close", "remove", "rename"]),
            names,
            st.integers(0, 3),
            st.integers(0, 40),
        ),
        max_size=30,
    )
)
def test_files_behave_like_a_dictionary_of_bytes(steps: list[tuple[str, str, int, int]]) -> None:
    files = OpenFiles(FileStore())
    model: dict[str, bytearray] = {}
    opened: dict[int, bytearray] = {}
    for step, name, which, number in steps:
        fd = FIRST_DESCRIPTOR + which
        if step == "create":
            result, fd = files.create(name)
            content = model.setdefault(name, bytearray())
            del content[:]
            assert result == OK
            assert fd not in opened
            opened[fd] = content
        elif step == "open":
            result, fd = files.open(name)
            assert result == (OK if name in model else NOT_FOUND)
            if result == OK:
                opened[fd] = model[name]
        elif step == "write":
            assert (files.write(fd, number, b"xyz") == OK) == (fd in opened)
            if fd in opened:
                content = opened[fd]
                content.extend(bytes(max(number - len(content), 0)))
                content[number : number + 3] = b"xyz"
        elif step == "truncate":
            assert (files.truncate(fd, number) == OK) == (fd in opened)
            if fd in opened:
                kept = bytes(opened[fd][:number]).ljust(number, b"\0")
                opened[fd][:] = kept
        elif step == "close":
            assert (files.close(fd) == OK) == (opened.pop(fd, None) is not None)
        elif step == "remove":
            assert (files.remove(name) == OK) == (model.pop(name, None) is not None)
        elif name != "/a":
            result = files.rename(name, "/a", overwrite=bool(which))
            if not which and "/a" in model:
                assert result == tee.TEE_ERROR_ACCESS_CONFLICT
            elif name in model:
                assert result == OK
                model["/a"] = model.pop(name)
            else:
                assert result == NOT_FOUND
        assert files.store.snapshot() == {path: bytes(data) for path, data in model.items()}
        for fd, content in opened.items():
            assert files.read(fd, 0, 100) == bytes(content[:100])
    assert sorted(files.open_descriptors) == sorted(opened)
