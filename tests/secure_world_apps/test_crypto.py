# SPDX-License-Identifier: BSD-2-Clause
"""The cryptography TA: published vectors, short buffers, forgeries, determinism, missing extra."""

from __future__ import annotations

import builtins
import hashlib
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.suspend import run
from secure_world.apps import cipher
from secure_world.apps.crypto import (
    KEY_AES_256,
    KEY_ECDSA_P256,
    KEY_ECDSA_P256_PUBLIC,
    KEY_HMAC_SHA256,
    MAX_DATA,
    MAX_KEYS,
    Command,
    CryptoApplication,
)
from secure_world.ta import (
    TYPE_MEMREF_INPUT,
    TYPE_MEMREF_OUTPUT,
    TYPE_VALUE_INOUT,
    TYPE_VALUE_INPUT,
    TeeError,
    Value,
)
from smccc.constants import tee
from tests.secure_world_apps.environment import Buffer, Environment, Parameters

# RFC 6979, A.2.5: P-256, SHA-256.
RFC6979_PRIVATE = bytes.fromhex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721")
RFC6979_PUBLIC = bytes.fromhex(
    "04"
    "60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6"
    "7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299"
)
RFC6979_SIGNATURES = {
    b"sample": (
        "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
        "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"
    ),
    b"test": (
        "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367"
        "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083"
    ),
}
# RFC 4231, test cases 1, 2 and 4.
RFC4231 = (
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (
        bytes(range(1, 26)),
        b"\xcd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
)
# The GCM specification (McGrew and Viega), test case 16.
GCM_KEY = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
GCM_NONCE = bytes.fromhex("cafebabefacedbaddecaf888")
GCM_AAD = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
GCM_PLAIN = bytes.fromhex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
GCM_SEALED = bytes.fromhex(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
    "76fc6ece0f4e1768cddf8853bb2d551b"
)


class Client:
    """A session with the TA, one method per kind of call."""

    def __init__(self, seed: int = 0) -> None:
        self.env = Environment(seed=seed)
        self.app = CryptoApplication()
        assert run(self.app.create(self.env)) == tee.TEE_SUCCESS
        assert run(self.app.open_session(self.env, Parameters())) == tee.TEE_SUCCESS

    def invoke(self, command: int, *given: tuple[int, Value | Buffer]) -> int:
        try:
            return run(self.app.invoke(self.env, command, Parameters(*given)))
        except TeeError as error:
            return error.code

    def generate(self, kind: int) -> int:
        value = Value(kind)
        assert self.invoke(Command.GENERATE_KEY, (TYPE_VALUE_INOUT, value)) == tee.TEE_SUCCESS
        return value.b

    def import_key(self, kind: int, secret: bytes) -> tuple[int, int]:
        value = Value(kind)
        code = self.invoke(
            Command.IMPORT_KEY, (TYPE_VALUE_INOUT, value), (TYPE_MEMREF_INPUT, Buffer(secret))
        )
        return code, value.b

    def ae(
        self, command: int, key: int, nonce: bytes, aad: bytes, data: bytes, room: int
    ) -> tuple[int, Buffer]:
        out = Buffer(bytes(room))
        code = self.invoke(
            command,
            (TYPE_VALUE_INPUT, Value(key, len(nonce))),
            (TYPE_MEMREF_INPUT, Buffer(nonce + aad)),
            (TYPE_MEMREF_INPUT, Buffer(data)),
            (TYPE_MEMREF_OUTPUT, out),
        )
        return code, out

    def keyed(
        self, command: int, key: int, data: bytes, third: Buffer, kind: int = TYPE_MEMREF_OUTPUT
    ) -> int:
        return self.invoke(
            command,
            (TYPE_VALUE_INPUT, Value(key)),
            (TYPE_MEMREF_INPUT, Buffer(data)),
            (kind, third),
        )

    def public(self, key: int) -> bytes:
        out = Buffer(bytes(65))
        code = self.invoke(
            Command.PUBLIC_KEY, (TYPE_VALUE_INPUT, Value(key)), (TYPE_MEMREF_OUTPUT, out)
        )
        assert code == tee.TEE_SUCCESS
        return bytes(out.memory)


def digest_call(client: Client, data: Buffer, out: Buffer) -> int:
    return client.invoke(Command.DIGEST, (TYPE_MEMREF_INPUT, data), (TYPE_MEMREF_OUTPUT, out))


@given(st.binary(max_size=300))
def test_digest_is_sha256_of_one_read(data: bytes) -> None:
    source, out = Buffer(data), Buffer(bytes(40))
    assert digest_call(Client(), source, out) == tee.TEE_SUCCESS
    assert out.size == 32
    assert bytes(out.memory) == hashlib.sha256(data).digest() + bytes(8)
    assert source.reads == (1 if data else 0)


def test_a_large_digest_lets_interrupts_through() -> None:
    client = Client()
    assert digest_call(client, Buffer(bytes(MAX_DATA)), Buffer(bytes(32))) == tee.TEE_SUCCESS
    assert client.env.checkpoints == 16
    assert client.env.charged == 1024 * 3000
    too_much = Buffer(bytes(MAX_DATA + 1))
    assert digest_call(client, too_much, Buffer(bytes(32))) == tee.TEE_ERROR_EXCESS_DATA


@pytest.mark.parametrize("room", [0, 1, 31])
def test_short_buffer_tells_the_size_and_writes_nothing(room: int) -> None:
    out = Buffer(b"\xaa" * room)
    assert digest_call(Client(), Buffer(b"x"), out) == tee.TEE_ERROR_SHORT_BUFFER
    assert out.size == 32
    assert bytes(out.memory) == b"\xaa" * room


def test_null_output_is_a_size_query() -> None:
    out = Buffer(None)
    assert digest_call(Client(), Buffer(b"x"), out) == tee.TEE_ERROR_SHORT_BUFFER
    assert out.size == 32


@pytest.mark.parametrize(("key", "data", "mac"), RFC4231)
def test_hmac_vectors(key: bytes, data: bytes, mac: str) -> None:
    client = Client()
    code, handle = client.import_key(KEY_HMAC_SHA256, key)
    assert code == tee.TEE_SUCCESS
    out = Buffer(bytes(32))
    assert client.keyed(Command.MAC, handle, data, out) == tee.TEE_SUCCESS
    assert bytes(out.memory) == bytes.fromhex(mac)
    verify = Command.MAC_VERIFY
    assert client.keyed(verify, handle, data, out, TYPE_MEMREF_INPUT) == tee.TEE_SUCCESS
    for wrong in (bytes(32), bytes(out.memory[:31]), b"", bytes(out.memory) + b"\0"):
        code = client.keyed(verify, handle, data, Buffer(wrong), TYPE_MEMREF_INPUT)
        assert code == tee.TEE_ERROR_MAC_INVALID


def test_gcm_vector_both_ways() -> None:
    client = Client()
    code, key = client.import_key(KEY_AES_256, GCM_KEY)
    assert code == tee.TEE_SUCCESS
    code, out = client.ae(Command.AE_ENCRYPT, key, GCM_NONCE, GCM_AAD, GCM_PLAIN, 76)
    assert (code, out.size, bytes(out.memory)) == (tee.TEE_SUCCESS, 76, GCM_SEALED)
    code, out = client.ae(Command.AE_DECRYPT, key, GCM_NONCE, GCM_AAD, GCM_SEALED, 100)
    assert (code, out.size, bytes(out.memory[:60])) == (tee.TEE_SUCCESS, 60, GCM_PLAIN)


@given(
    bit=st.integers(0, len(GCM_SEALED) * 8 - 1),
    where=st.sampled_from(["sealed", "nonce", "aad"]),
)
def test_any_changed_bit_is_mac_invalid_and_gives_no_plaintext(bit: int, where: str) -> None:
    parts = {"sealed": GCM_SEALED, "nonce": GCM_NONCE, "aad": GCM_AAD}
    changed = bytearray(parts[where])
    changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    parts[where] = bytes(changed)
    client = Client()
    _, key = client.import_key(KEY_AES_256, GCM_KEY)
    code, out = client.ae(
        Command.AE_DECRYPT, key, parts["nonce"], parts["aad"], parts["sealed"], 60
    )
    assert (code, out.size, bytes(out.memory)) == (tee.TEE_ERROR_MAC_INVALID, 0, bytes(60))


@given(plain=st.binary(max_size=100), aad=st.binary(max_size=40), short=st.integers(0, 200))
def test_gcm_round_trip_and_short_buffers(plain: bytes, aad: bytes, short: int) -> None:
    client = Client()
    key = client.generate(KEY_AES_256)
    need = len(plain) + 16
    code, out = client.ae(Command.AE_ENCRYPT, key, GCM_NONCE, aad, plain, short % need)
    assert (code, out.size) == (tee.TEE_ERROR_SHORT_BUFFER, need)
    code, out = client.ae(Command.AE_ENCRYPT, key, GCM_NONCE, aad, plain, need)
    assert code == tee.TEE_SUCCESS
    sealed = bytes(out.memory)
    code, out = client.ae(Command.AE_DECRYPT, key, GCM_NONCE, aad, sealed, len(plain))
    assert (code, bytes(out.memory)) == (tee.TEE_SUCCESS, plain)
    if plain:
        code, out = client.ae(Command.AE_DECRYPT, key, GCM_NONCE, aad, sealed, len(plain) - 1)
        assert (code, out.size) == (tee.TEE_ERROR_SHORT_BUFFER, len(plain))


@pytest.mark.parametrize(("nonce", "sealed"), [(bytes(11), GCM_SEALED), (bytes(13), GCM_SEALED)])
def test_other_nonce_sizes_are_refused(nonce: bytes, sealed: bytes) -> None:
    client = Client()
    key = client.generate(KEY_AES_256)
    code, _ = client.ae(Command.AE_DECRYPT, key, nonce, b"aad", sealed, 100)
    assert code == tee.TEE_ERROR_BAD_PARAMETERS


def test_a_nonce_that_is_not_all_there_is_refused() -> None:
    client = Client()
    key = client.generate(KEY_AES_256)
    code = client.invoke(
        Command.AE_ENCRYPT,
        (TYPE_VALUE_INPUT, Value(key, 12)),
        (TYPE_MEMREF_INPUT, Buffer(bytes(11))),
        (TYPE_MEMREF_INPUT, Buffer(b"")),
        (TYPE_MEMREF_OUTPUT, Buffer(bytes(16))),
    )
    assert code == tee.TEE_ERROR_BAD_PARAMETERS


@pytest.mark.parametrize("size", [0, 1, 15])
def test_less_than_a_tag_is_mac_invalid(size: int) -> None:
    client = Client()
    key = client.generate(KEY_AES_256)
    code, _ = client.ae(Command.AE_DECRYPT, key, GCM_NONCE, b"", bytes(size), 100)
    assert code == tee.TEE_ERROR_MAC_INVALID


@pytest.mark.parametrize("message", sorted(RFC6979_SIGNATURES))
def test_ecdsa_is_deterministic_rfc6979(message: bytes) -> None:
    client = Client()
    code, key = client.import_key(KEY_ECDSA_P256, RFC6979_PRIVATE)
    assert code == tee.TEE_SUCCESS
    assert client.public(key) == RFC6979_PUBLIC
    digest = hashlib.sha256(message).digest()
    out = Buffer(bytes(64))
    assert client.keyed(Command.SIGN, key, digest, out) == tee.TEE_SUCCESS
    signature = bytes(out.memory)
    assert signature == bytes.fromhex(RFC6979_SIGNATURES[message])
    code, public = client.import_key(KEY_ECDSA_P256_PUBLIC, RFC6979_PUBLIC)
    assert code == tee.TEE_SUCCESS
    for verifier in (key, public):
        given_signature = Buffer(signature)
        code = client.keyed(Command.VERIFY, verifier, digest, given_signature, TYPE_MEMREF_INPUT)
        assert code == tee.TEE_SUCCESS
    # A public key does not sign.
    assert client.keyed(Command.SIGN, public, digest, out) == tee.TEE_ERROR_BAD_PARAMETERS


@given(bit=st.integers(0, 511))
def test_any_changed_signature_bit_is_refused(bit: int) -> None:
    client = Client()
    key = client.generate(KEY_ECDSA_P256)
    digest = hashlib.sha256(b"message").digest()
    out = Buffer(bytes(64))
    assert client.keyed(Command.SIGN, key, digest, out) == tee.TEE_SUCCESS
    out.memory[bit // 8] ^= 1 << bit % 8
    code = client.keyed(Command.VERIFY, key, digest, out, TYPE_MEMREF_INPUT)
    assert code == tee.TEE_ERROR_SIGNATURE_INVALID


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), b"\xff" * 64])
def test_nonsense_signatures_are_refused(signature: bytes) -> None:
    client = Client()
    key = client.generate(KEY_ECDSA_P256)
    code = client.keyed(Command.VERIFY, key, bytes(32), Buffer(signature), TYPE_MEMREF_INPUT)
    assert code == tee.TEE_ERROR_SIGNATURE_INVALID


@pytest.mark.parametrize("room", [0, 63])
def test_short_signature_buffer(room: int) -> None:
    client = Client()
    key = client.generate(KEY_ECDSA_P256)
    out = Buffer(bytes(room))
    assert client.keyed(Command.SIGN, key, bytes(32), out) == tee.TEE_ERROR_SHORT_BUFFER
    assert out.size == 64


@pytest.mark.parametrize("size", [0, 31, 33])
def test_only_sha256_digests_are_signed(size: int) -> None:
    client = Client()
    key = client.generate(KEY_ECDSA_P256)
    code = client.keyed(Command.SIGN, key, bytes(size), Buffer(bytes(64)))
    assert code == tee.TEE_ERROR_BAD_PARAMETERS


def test_keys_and_random_octets_come_from_the_seed() -> None:
    def draw(seed: int) -> tuple[bytes, bytes]:
        client = Client(seed)
        public = client.public(client.generate(KEY_ECDSA_P256))
        out = Buffer(bytes(24))
        assert client.invoke(Command.RANDOM, (TYPE_MEMREF_OUTPUT, out)) == tee.TEE_SUCCESS
        return public, bytes(out.memory)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        (KEY_AES_256, bytes(31)),
        (KEY_AES_256, bytes(33)),
        (KEY_HMAC_SHA256, b""),
        (KEY_HMAC_SHA256, bytes(129)),
        (KEY_ECDSA_P256, bytes(32)),
        (KEY_ECDSA_P256, cipher.P256_ORDER.to_bytes(32, "big")),
        (KEY_ECDSA_P256, bytes(31) + b"\x01\x01"),
        (KEY_ECDSA_P256_PUBLIC, bytes(65)),
        (KEY_ECDSA_P256_PUBLIC, RFC6979_PUBLIC[:-1]),
        (KEY_ECDSA_P256_PUBLIC, RFC6979_PUBLIC[:-1] + b"\0"),
        (0, bytes(32)),
        (5, bytes(32)),
    ],
)
def test_bad_secrets_are_refused(kind: int, secret: bytes) -> None:
    assert Client().import_key(kind, secret)[0] == tee.TEE_ERROR_BAD_PARAMETERS


def test_scalars_stay_in_range() -> None:
    assert cipher.p256_scalar(bytes(40)) == (1).to_bytes(32, "big")
    assert cipher.p256_valid_scalar(cipher.p256_scalar(b"\xff" * 40))
    top = (cipher.P256_ORDER - 2).to_bytes(40, "big")
    assert cipher.p256_scalar(top) == (cipher.P256_ORDER - 1).to_bytes(32, "big")
    with pytest.raises(ValueError, match="40 octets"):
        cipher.p256_scalar(bytes(39))


def test_handles_belong_to_type_and_session_and_are_not_reused() -> None:
    client = Client()
    key = client.generate(KEY_HMAC_SHA256)
    assert client.keyed(Command.SIGN, key, bytes(32), Buffer(bytes(64))) == (
        tee.TEE_ERROR_BAD_PARAMETERS
    )
    assert Client().keyed(Command.MAC, key, b"", Buffer(bytes(32))) == tee.TEE_ERROR_BAD_PARAMETERS
    assert client.invoke(Command.DELETE_KEY, (TYPE_VALUE_INPUT, Value(key))) == tee.TEE_SUCCESS
    again = client.invoke(Command.DELETE_KEY, (TYPE_VALUE_INPUT, Value(key)))
    assert again == tee.TEE_ERROR_BAD_PARAMETERS
    assert client.generate(KEY_HMAC_SHA256) != key


def test_keys_are_bounded() -> None:
    client = Client()
    for _ in range(MAX_KEYS):
        client.generate(KEY_AES_256)
    value = Value(KEY_AES_256)
    code = client.invoke(Command.GENERATE_KEY, (TYPE_VALUE_INOUT, value))
    assert (code, value.b) == (tee.TEE_ERROR_OUT_OF_MEMORY, 0)


@given(command=st.integers(0, 20), types=st.integers(0, 0xFFFF))
def test_wrong_types_and_commands(command: int, types: int) -> None:
    from secure_world.apps.crypto import _TYPES

    client = Client()
    params = Parameters()
    params.types = types
    code: int
    if command not in _TYPES:
        expected = tee.TEE_ERROR_NOT_SUPPORTED
    elif _TYPES[command] != types:
        expected = tee.TEE_ERROR_BAD_PARAMETERS
    else:
        return
    code = run(client.app.invoke(client.env, command, params))
    assert code == expected


def test_without_the_extra_no_session_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def hide(name: str, *args: Any, **kwargs: Any) -> object:
        if name.partition(".")[0] == "cryptography":
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", hide)
    assert run(CryptoApplication().create(Environment())) == tee.TEE_ERROR_NOT_SUPPORTED
    with pytest.raises(cipher.MissingExtra, match=r"optee-mediator\[crypto\]") as caught:
        cipher.aes_gcm(bytes(32))
    assert caught.value.extra == "crypto"


def test_a_library_without_deterministic_signing_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    def refuse(*args: Any, **kwargs: Any) -> object:
        raise UnsupportedAlgorithm("deterministic")

    monkeypatch.setattr(ec, "ECDSA", refuse)
    client = Client()
    key = client.generate(KEY_ECDSA_P256)
    code = client.keyed(Command.SIGN, key, bytes(32), Buffer(bytes(64)))
    assert code == tee.TEE_ERROR_NOT_IMPLEMENTED
