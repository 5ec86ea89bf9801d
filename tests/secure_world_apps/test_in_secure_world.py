# SPDX-License-Identifier: BSD-2-Clause
"""Crypto and storage TA inside the simulated OP-TEE, with a normal world that serves its RPCs."""

from __future__ import annotations

import hashlib

import pytest

from secure_world.apps import crypto, storage
from secure_world.settings import SecureWorldSettings
from secure_world.ta import TeeError
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee
from tests.secure_world_apps.environment import Disk
from tests.secure_world_apps.normal_world import Machine, Memref, NormalWorld, Words

OK = tee.TEE_SUCCESS
STORAGE = storage.StorageApplication.uuid
CRYPTO = crypto.CryptoApplication.uuid
FLAGS = (
    tee.TEE_DATA_FLAG_ACCESS_READ
    | tee.TEE_DATA_FLAG_ACCESS_WRITE
    | tee.TEE_DATA_FLAG_ACCESS_WRITE_META
)


class Client:
    """A session of a guest with the storage TA."""

    def __init__(self, guest: NormalWorld) -> None:
        self.guest = guest
        self.session = guest.open(STORAGE)

    def _named(self, command: int, name: bytes, *more: Memref) -> tuple[int, int]:
        handle = Words(FLAGS)
        where = Words(tee.TEE_STORAGE_PRIVATE, kind=1)
        code = self.guest.invoke(self.session, command, Memref(name), handle, where, *more)
        return code, handle.b

    def create(self, name: bytes, data: bytes) -> tuple[int, int]:
        return self._named(storage.Command.CREATE, name, Memref(data))

    def open(self, name: bytes) -> tuple[int, int]:
        return self._named(storage.Command.OPEN, name)

    def read(self, handle: int, size: int) -> tuple[int, bytes]:
        out, words = Memref(bytes(size), output=True), Words(handle)
        code = self.guest.invoke(self.session, storage.Command.READ, out, words)
        return code, out.data[: words.b] if code == OK else b""

    def write(self, handle: int, data: bytes) -> int:
        words = Words(handle, kind=1)
        return self.guest.invoke(self.session, storage.Command.WRITE, Memref(data), words)


def test_an_object_lives_on_after_its_session() -> None:
    machine = Machine()
    guest = machine.guest(1)
    first = Client(guest)
    code, handle = first.create(b"diary", b"dear diary, " * 1000)
    assert code == OK
    assert first.write(handle, b"DEAR") == OK
    guest.close(first.session)
    second = Client(guest)
    code, handle = second.open(b"diary")
    assert code == OK
    assert second.read(handle, 20_000) == (OK, b"DEAR diary, " + b"dear diary, " * 999)
    stored = b"".join(guest.disk.files.values())
    assert b"diary" not in stored
    # Every buffer that OP-TEE asked for was given back.
    assert guest.served.count(rpc.OPTEE_RPC_CMD_SHM_ALLOC) > 0
    assert guest.disk.open_files == 0
    guest.close(second.session)
    assert guest.shm == {}


def test_tampering_and_roll_back_reach_the_client() -> None:
    machine = Machine()
    guest = machine.guest(1)
    client = Client(guest)
    _, handle = client.create(b"a", b"version 1")
    assert client.write(handle, b"VERSION") == OK
    old = dict(guest.disk.files)
    assert client.write(handle, b" two") == OK
    new = dict(guest.disk.files)
    guest.disk.files = {n: data[:40] + b"\0" + data[41:] for n, data in new.items()}
    assert client.read(handle, 100)[0] == tee.TEE_ERROR_CORRUPT_OBJECT
    guest.disk.files = old
    assert client.read(handle, 100)[0] == tee.TEE_ERROR_SECURITY
    guest.disk.files = new
    assert client.read(handle, 100) == (OK, b"")  # the position is behind the end
    assert Client(guest).open(b"a")[0] == tee.TEE_ERROR_ACCESS_CONFLICT


def test_guests_are_strangers_even_on_one_disk() -> None:
    machine, disk = Machine(), Disk()
    one, two = Client(machine.guest(1, disk)), Client(machine.guest(2, disk))
    assert one.create(b"a", b"of one")[0] == OK
    assert two.open(b"a")[0] == tee.TEE_ERROR_ITEM_NOT_FOUND
    _, handle = two.create(b"a", b"of two")
    assert two.read(handle, 10) == (OK, b"of two")
    nonces = [data[20:32] for data in disk.files.values()]
    assert len(set(nonces)) == len(nonces)


def test_a_guest_with_a_used_id_starts_empty_and_repeats_no_nonce() -> None:
    machine, disk = Machine(), Disk()
    lives: list[set[bytes]] = []
    for life in (b"first", b"second", b"third"):
        guest = machine.guest(1, disk)
        client = Client(guest)
        code, handle = client.create(b"a", life)
        assert code == OK
        assert client.read(handle, 20) == (OK, life)
        lives.append({data[20:32] for data in disk.files.values()})
        machine.destroy(guest)
    assert len(set().union(*lives)) == sum(len(nonces) for nonces in lives)


def test_a_guest_cannot_read_what_its_predecessor_stored() -> None:
    machine, disk = Machine(), Disk()
    guest = machine.guest(1, disk)
    Client(guest).create(b"a", b"first life")
    machine.destroy(guest)
    assert Client(machine.guest(1, disk)).open(b"a")[0] == tee.TEE_ERROR_ITEM_NOT_FOUND


@pytest.mark.parametrize("code", [tee.TEE_ERROR_GENERIC, tee.TEE_ERROR_STORAGE_NO_SPACE, 1])
def test_a_failing_disk_never_ends_a_session(code: int) -> None:
    machine = Machine()
    guest = machine.guest(1)
    client = Client(guest)
    _, handle = client.create(b"a", b"old")
    result = -1
    for count in range(40):

        def fail(operation: str, left: list[int] = [count]) -> None:  # noqa: B006
            left[0] -= 1
            if left[0] == -1:
                raise TeeError(code)

        guest.disk.fail = fail
        result = client.write(handle, b"x")
        guest.disk.fail = lambda operation: None
        expected = (
            code if code == tee.TEE_ERROR_STORAGE_NO_SPACE else tee.TEE_ERROR_STORAGE_NOT_AVAILABLE
        )
        assert result in (OK, expected)
    assert result == OK
    guest.close(client.session)
    assert guest.shm == {}


def test_denied_memory_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    guest = machine.guest(1)
    client = Client(guest)

    def refuse(self: NormalWorld, size: int) -> None:
        raise TeeError(tee.TEE_ERROR_OUT_OF_MEMORY)

    with monkeypatch.context() as patch:
        patch.setattr(NormalWorld, "_shm_alloc", refuse)
        assert client.create(b"a", b"x")[0] == tee.TEE_ERROR_OUT_OF_MEMORY
    assert client.create(b"a", b"x")[0] == OK


def test_the_seed_decides_every_octet_on_the_disk() -> None:
    def fill(seed: int) -> dict[str, bytes]:
        guest = Machine(SecureWorldSettings(seed=seed)).guest(1)
        client = Client(guest)
        client.write(client.create(b"a", b"x" * 5000)[1], b"y")
        return guest.disk.files

    assert fill(1) == fill(1)
    assert fill(1) != fill(2)


def test_crypto_over_shared_memory() -> None:
    guest = Machine().guest(1)
    session = guest.open(CRYPTO)
    data = bytes(range(256)) * 40
    out = Memref(bytes(32), output=True)
    assert guest.invoke(session, crypto.Command.DIGEST, Memref(data), out) == OK
    assert (out.size, out.data) == (32, hashlib.sha256(data).digest())
    short = Memref(bytes(5), output=True)
    code = guest.invoke(session, crypto.Command.DIGEST, Memref(data), short)
    assert (code, short.size, short.data) == (tee.TEE_ERROR_SHORT_BUFFER, 32, bytes(5))
    key = Words(crypto.KEY_ECDSA_P256)
    assert guest.invoke(session, crypto.Command.GENERATE_KEY, key) == OK
    signature = Memref(bytes(64), output=True)
    handle = Words(key.b, kind=1)
    digest = Memref(out.data)
    assert guest.invoke(session, crypto.Command.SIGN, handle, digest, signature) == OK
    given = Memref(signature.data)
    assert guest.invoke(session, crypto.Command.VERIFY, handle, digest, given) == OK
    forged = Memref(bytes(64))
    code = guest.invoke(session, crypto.Command.VERIFY, handle, digest, forged)
    assert code == tee.TEE_ERROR_SIGNATURE_INVALID


def test_without_the_extra_the_session_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_world.apps import cipher

    def missing() -> None:
        raise cipher.MissingExtra("crypto", "cryptography")

    guest = Machine().guest(1)
    monkeypatch.setattr(cipher, "require_crypto", missing)
    for uuid in (CRYPTO, STORAGE):
        with pytest.raises(TeeError) as caught:
            guest.open(uuid)
        assert caught.value.code == tee.TEE_ERROR_NOT_SUPPORTED
