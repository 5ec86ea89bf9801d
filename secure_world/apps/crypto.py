# SPDX-License-Identifier: BSD-2-Clause
"""The cryptography TA: SHA-256, HMAC-SHA-256, AES-256-GCM and ECDSA on P-256.

Keys live in the session, under small handles, and die with it. Generated keys come from the seeded
generator and signatures are deterministic (RFC 6979): the same seed gives the same bytes. Every
input is fetched from shared memory exactly once. An output that does not fit answers
TEE_ERROR_SHORT_BUFFER with the needed size in the parameter, and nothing is written.

Needs the extra ``crypto``; without it no session opens (TEE_ERROR_NOT_SUPPORTED), and
:func:`secure_world.apps.cipher.require_crypto` names what is missing.

Commands and their parameters (all others ``NONE``)::

    command          0                                    1                  2                3
    --------------   ----------------------------------   ----------------   --------------   ----------
    DIGEST           in: data                             out: 32
    GENERATE_KEY     inout value: a type, b handle out
    IMPORT_KEY       inout value: a type, b handle out    in: secret
    PUBLIC_KEY       value: a handle                      out: 65
    DELETE_KEY       value: a handle
    MAC              value: a handle                      in: data           out: 32
    MAC_VERIFY       value: a handle                      in: data           in: mac
    AE_ENCRYPT       value: a handle, b nonce octets      in: nonce, aad     in: plaintext    out: ct+tag
    AE_DECRYPT       value: a handle, b nonce octets      in: nonce, aad     in: ct+tag       out: plain
    SIGN             value: a handle                      in: digest (32)    out: r, s (64)
    VERIFY           value: a handle                      in: digest (32)    in: r, s (64)
    RANDOM           out: any size
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum
from typing import Final
from uuid import UUID

from secure_world.apps import cipher
from secure_world.ta import (
    TYPE_MEMREF_INPUT,
    TYPE_MEMREF_OUTPUT,
    TYPE_VALUE_INOUT,
    TYPE_VALUE_INPUT,
    Memref,
    Params,
    TaEnvironment,
    TeeError,
    TrustedApplication,
    param_types,
)
from smccc.constants import tee


class Command(IntEnum):
    """Commands of the TA; see the module's table for their parameters."""

    DIGEST = 0
    GENERATE_KEY = 1
    IMPORT_KEY = 2
    PUBLIC_KEY = 3
    DELETE_KEY = 4
    MAC = 5
    MAC_VERIFY = 6
    AE_ENCRYPT = 7
    AE_DECRYPT = 8
    SIGN = 9
    VERIFY = 10
    RANDOM = 11


KEY_AES_256: Final = 1
KEY_HMAC_SHA256: Final = 2
KEY_ECDSA_P256: Final = 3
KEY_ECDSA_P256_PUBLIC: Final = 4
"""A public point (65 octets, uncompressed): imported only, serves VERIFY only."""

MAX_KEYS: Final = 16
"""Keys of one session: enough for any test, small enough that a client cannot fill secure memory."""
MAX_HMAC_KEY: Final = 128
"""Octets of an imported HMAC key, TEE_TYPE_HMAC_SHA256's limit of 1024 bits (GP Internal Core API)."""
MAX_DATA: Final = 1 << 20
"""Octets of one input: a TA copies what it works on, and its heap is about this large."""
CHUNK: Final = 1 << 16
"""Octets worked on between two chances for a foreign interrupt."""
NS_PER_KIB: Final = 3000
"""Simulated cost of symmetric work, about that of a 1 GHz core with the crypto extension."""
NS_PER_SIGNATURE: Final = 400_000
"""Simulated cost of one P-256 operation on such a core."""

_VALUE, _KEY = TYPE_VALUE_INPUT, TYPE_VALUE_INOUT
_IN, _OUT = TYPE_MEMREF_INPUT, TYPE_MEMREF_OUTPUT
_TYPES: Final[dict[int, int]] = {
    Command.DIGEST: param_types(_IN, _OUT),
    Command.GENERATE_KEY: param_types(_KEY),
    Command.IMPORT_KEY: param_types(_KEY, _IN),
    Command.PUBLIC_KEY: param_types(_VALUE, _OUT),
    Command.DELETE_KEY: param_types(_VALUE),
    Command.MAC: param_types(_VALUE, _IN, _OUT),
    Command.MAC_VERIFY: param_types(_VALUE, _IN, _IN),
    Command.AE_ENCRYPT: param_types(_VALUE, _IN, _IN, _OUT),
    Command.AE_DECRYPT: param_types(_VALUE, _IN, _IN, _OUT),
    Command.SIGN: param_types(_VALUE, _IN, _OUT),
    Command.VERIFY: param_types(_VALUE, _IN, _IN),
    Command.RANDOM: param_types(_OUT),
}


class KeyRing:
    """The keys of one session: (type, secret octets) under handles from 1 up, never reused."""

    __slots__ = ("_keys", "_next")

    def __init__(self) -> None:
        self._keys: dict[int, tuple[int, bytes]] = {}
        self._next = 1

    def add(self, kind: int, secret: bytes) -> int:
        """Keep a key and return its handle; :class:`TeeError` OUT_OF_MEMORY when full."""
        if len(self._keys) >= MAX_KEYS:
            raise TeeError(tee.TEE_ERROR_OUT_OF_MEMORY)
        handle = self._next
        self._next += 1
        self._keys[handle] = (kind, secret)
        return handle

    def secret(self, handle: int, kind: int) -> bytes:
        """The secret of a key of type ``kind``; :class:`TeeError` BAD_PARAMETERS if there is none."""
        found = self._keys.get(handle)
        if found is None or found[0] != kind:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        return found[1]

    def kind(self, handle: int) -> int | None:
        """The type of a key, or ``None`` if there is none."""
        found = self._keys.get(handle)
        return None if found is None else found[0]

    def remove(self, handle: int) -> None:
        """Forget a key; :class:`TeeError` BAD_PARAMETERS if there is none."""
        if self._keys.pop(handle, None) is None:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)


def _fetch(memref: Memref) -> bytes:
    """All of an input, read once; EXCESS_DATA above :data:`MAX_DATA`."""
    if memref.capacity > MAX_DATA:
        raise TeeError(tee.TEE_ERROR_EXCESS_DATA)
    return memref.read(0, memref.capacity) if memref.capacity else b""


def _reserve(memref: Memref, size: int) -> None:
    """Make sure that ``size`` octets fit; otherwise tell the size and raise SHORT_BUFFER."""
    fits = memref.capacity >= size
    memref.set_size(size)
    if not fits:
        raise TeeError(tee.TEE_ERROR_SHORT_BUFFER)


def _put(memref: Memref, data: bytes) -> int:
    _reserve(memref, len(data))
    if data:
        memref.write(0, data)
    return tee.TEE_SUCCESS


async def _charge(env: TaEnvironment, octets: int) -> None:
    for start in range(0, max(octets, 1), CHUNK):
        await env.checkpoint(min(octets - start, CHUNK) * NS_PER_KIB // 1024)


def _nonce_and_aad(params: Params) -> tuple[bytes, bytes]:
    """Split parameter 1; the nonce has the 12 octets of SP 800-38D."""
    if params.value(0).b != cipher.NONCE_SIZE:
        raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
    both = _fetch(params.memref(1))
    if len(both) < cipher.NONCE_SIZE:
        raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
    return both[: cipher.NONCE_SIZE], both[cipher.NONCE_SIZE :]


class CryptoApplication(TrustedApplication):
    """User TA with one instance per session; see the module for its commands."""

    uuid = UUID("6f1d42a8-4b0c-4f7e-9a53-3f8e2c5d7b10")
    name = "crypto"

    async def create(self, env: TaEnvironment) -> int:
        """Refuse to live without the extra ``crypto``: TEE_ERROR_NOT_SUPPORTED."""
        try:
            cipher.require_crypto()
        except cipher.MissingExtra:
            return tee.TEE_ERROR_NOT_SUPPORTED
        return tee.TEE_SUCCESS

    async def open_session(self, env: TaEnvironment, params: Params) -> int:
        """A fresh, empty key ring; parameters are ignored."""
        env.data = KeyRing()
        return tee.TEE_SUCCESS

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """One of the module's commands; BAD_PARAMETERS for other types, NOT_SUPPORTED otherwise."""
        types = _TYPES.get(command)
        if types is None:
            return tee.TEE_ERROR_NOT_SUPPORTED
        if params.types != types:
            return tee.TEE_ERROR_BAD_PARAMETERS
        keys = env.data
        if not isinstance(keys, KeyRing):
            return tee.TEE_ERROR_BAD_STATE
        match command:
            case Command.DIGEST:
                return await self._digest(env, params)
            case Command.GENERATE_KEY | Command.IMPORT_KEY:
                return self._new_key(env, keys, params, imported=command == Command.IMPORT_KEY)
            case Command.PUBLIC_KEY:
                private = keys.secret(params.value(0).a, KEY_ECDSA_P256)
                return _put(params.memref(1), cipher.p256_public(private))
            case Command.DELETE_KEY:
                keys.remove(params.value(0).a)
                return tee.TEE_SUCCESS
            case Command.MAC | Command.MAC_VERIFY:
                return await self._mac(env, keys, params, verify=command == Command.MAC_VERIFY)
            case Command.AE_ENCRYPT:
                return await self._encrypt(env, keys, params)
            case Command.AE_DECRYPT:
                return await self._decrypt(env, keys, params)
            case Command.SIGN | Command.VERIFY:
                return await self._signature(env, keys, params, verify=command == Command.VERIFY)
            case _:
                return await self._random(env, params)

    async def _digest(self, env: TaEnvironment, params: Params) -> int:
        data = _fetch(params.memref(0))
        _reserve(params.memref(1), hashlib.sha256().digest_size)
        await _charge(env, len(data))
        return _put(params.memref(1), hashlib.sha256(data).digest())

    def _new_key(self, env: TaEnvironment, keys: KeyRing, params: Params, *, imported: bool) -> int:
        value = params.value(0)
        kind = value.a
        if imported:
            secret = _fetch(params.memref(1))
            valid = {
                KEY_AES_256: len(secret) == 32,
                KEY_HMAC_SHA256: 0 < len(secret) <= MAX_HMAC_KEY,
                KEY_ECDSA_P256: cipher.p256_valid_scalar(secret),
                KEY_ECDSA_P256_PUBLIC: cipher.p256_valid_point(secret),
            }.get(kind, False)
            if not valid:
                return tee.TEE_ERROR_BAD_PARAMETERS
        elif kind in (KEY_AES_256, KEY_HMAC_SHA256):
            secret = env.random(32)
        elif kind == KEY_ECDSA_P256:
            secret = cipher.p256_scalar(env.random(cipher.SCALAR_SEED_SIZE))
        else:
            return tee.TEE_ERROR_BAD_PARAMETERS
        value.b = keys.add(kind, secret)
        return tee.TEE_SUCCESS

    async def _mac(self, env: TaEnvironment, keys: KeyRing, params: Params, *, verify: bool) -> int:
        secret = keys.secret(params.value(0).a, KEY_HMAC_SHA256)
        data = _fetch(params.memref(1))
        given = _fetch(params.memref(2)) if verify else b""
        await _charge(env, len(data))
        mac = cipher.hmac_sha256(secret, data)
        if not verify:
            return _put(params.memref(2), mac)
        return tee.TEE_SUCCESS if hmac.compare_digest(mac, given) else tee.TEE_ERROR_MAC_INVALID

    async def _encrypt(self, env: TaEnvironment, keys: KeyRing, params: Params) -> int:
        secret = keys.secret(params.value(0).a, KEY_AES_256)
        nonce, aad = _nonce_and_aad(params)
        plain = _fetch(params.memref(2))
        _reserve(params.memref(3), len(plain) + cipher.TAG_SIZE)
        await _charge(env, len(plain) + len(aad))
        sealed = cipher.gcm_seal(cipher.aes_gcm(secret), nonce, plain, aad)
        return _put(params.memref(3), sealed)

    async def _decrypt(self, env: TaEnvironment, keys: KeyRing, params: Params) -> int:
        secret = keys.secret(params.value(0).a, KEY_AES_256)
        nonce, aad = _nonce_and_aad(params)
        sealed = _fetch(params.memref(2))
        if len(sealed) < cipher.TAG_SIZE:
            return tee.TEE_ERROR_MAC_INVALID
        _reserve(params.memref(3), len(sealed) - cipher.TAG_SIZE)
        await _charge(env, len(sealed) + len(aad))
        plain = cipher.gcm_open(cipher.aes_gcm(secret), nonce, sealed, aad)
        if plain is None:
            params.memref(3).set_size(0)
            return tee.TEE_ERROR_MAC_INVALID
        return _put(params.memref(3), plain)

    async def _signature(
        self, env: TaEnvironment, keys: KeyRing, params: Params, *, verify: bool
    ) -> int:
        handle = params.value(0).a
        public_only = verify and keys.kind(handle) == KEY_ECDSA_P256_PUBLIC
        key = keys.secret(handle, KEY_ECDSA_P256_PUBLIC if public_only else KEY_ECDSA_P256)
        digest = _fetch(params.memref(1))
        if len(digest) != hashlib.sha256().digest_size:
            return tee.TEE_ERROR_BAD_PARAMETERS
        if verify:
            given = _fetch(params.memref(2))
            await env.checkpoint(NS_PER_SIGNATURE)
            public = key if public_only else cipher.p256_public(key)
            genuine = cipher.p256_verify(public, digest, given)
            return tee.TEE_SUCCESS if genuine else tee.TEE_ERROR_SIGNATURE_INVALID
        _reserve(params.memref(2), 2 * cipher.COORDINATE_SIZE)
        await env.checkpoint(NS_PER_SIGNATURE)
        try:
            signature = cipher.p256_sign(key, digest)
        except NotImplementedError:
            return tee.TEE_ERROR_NOT_IMPLEMENTED
        return _put(params.memref(2), signature)

    async def _random(self, env: TaEnvironment, params: Params) -> int:
        out = params.memref(0)
        if out.capacity > MAX_DATA:
            return tee.TEE_ERROR_EXCESS_DATA
        await _charge(env, out.capacity)
        return _put(out, env.random(out.capacity))
