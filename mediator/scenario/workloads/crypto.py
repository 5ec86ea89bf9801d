# SPDX-License-Identifier: BSD-2-Clause
"""Cryptography in the TEE, compared with the standard library and with itself."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from mediator.guest.client import INPUT, OUTPUT, Client, Memref, Session, Value
from mediator.guest.memory import Buffer
from mediator.scenario.fields import Field, Kind
from mediator.scenario.workloads.task import Task, WorkloadKind
from secure_world.apps.cipher import NONCE_SIZE, TAG_SIZE
from secure_world.apps.crypto import (
    KEY_AES_256,
    KEY_ECDSA_P256,
    KEY_HMAC_SHA256,
    Command,
    CryptoApplication,
)
from smccc.constants import tee

DIGEST_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64


class _Keys:
    """A session with the TA, and buffers that are freed at the end."""

    def __init__(self, client: Client, session: Session) -> None:
        self._client = client
        self._session = session
        self._held: list[Buffer] = []

    async def given(self, data: bytes) -> Memref:
        """An input."""
        buffer = await self._client.buffer_of(data)
        self._held.append(buffer)
        return Memref(buffer, direction=INPUT)

    def room(self, size: int) -> tuple[Buffer, Memref]:
        """An output of ``size`` bytes."""
        buffer = self._client.buffer(size)
        self._held.append(buffer)
        return buffer, Memref(buffer, direction=OUTPUT)

    def free(self) -> None:
        """Give all buffers back."""
        while self._held:
            self._client.free(self._held.pop())

    async def generate(self, kind: int) -> int:
        """A new key of the session."""
        value = Value(kind)
        await self._session.invoke(Command.GENERATE_KEY, value)
        return value.b

    async def imported(self, kind: int, secret: bytes) -> int:
        """A key with known bytes."""
        value = Value(kind)
        await self._session.invoke(Command.IMPORT_KEY, value, await self.given(secret))
        return value.b

    async def delete(self, handle: int) -> None:
        """Forget a key."""
        await self._session.invoke(Command.DELETE_KEY, Value(handle, 0, INPUT))


async def crypto(task: Task) -> None:
    """SHA-256 and HMAC against Python's; AES-GCM and ECDSA there and back, and tampered with."""
    async with task.client.open_session(CryptoApplication.uuid) as session:
        keys = _Keys(task.client, session)

        async def body(_: int) -> None:
            data = task.rng.randbytes(task.integer("size"))
            buffer, out = keys.room(DIGEST_SIZE)
            await session.invoke(Command.DIGEST, await keys.given(data), out)
            digest = hashlib.sha256(data).digest()
            task.expect(await buffer.read(), digest, "a SHA-256 digest")
            await _mac(task, session, keys, data)
            await _sealed(task, session, keys, data)
            await _signed(task, session, keys, digest)
            keys.free()

        await task.each_round(body)


async def _mac(task: Task, session: Session, keys: _Keys, data: bytes) -> None:
    secret = task.rng.randbytes(DIGEST_SIZE)
    key = await keys.imported(KEY_HMAC_SHA256, secret)
    buffer, out = keys.room(DIGEST_SIZE)
    await session.invoke(Command.MAC, Value(key, 0, INPUT), await keys.given(data), out)
    wanted = hmac.digest(secret, data, hashlib.sha256)
    task.expect(await buffer.read(), wanted, "an HMAC")
    wrong = await keys.given(bytes([wanted[0] ^ 1]) + wanted[1:])
    await task.refused(
        session.invoke(Command.MAC_VERIFY, Value(key, 0, INPUT), await keys.given(data), wrong),
        tee.TEE_ERROR_MAC_INVALID,
        "a wrong HMAC",
    )
    await keys.delete(key)


async def _sealed(task: Task, session: Session, keys: _Keys, data: bytes) -> None:
    key = await keys.generate(KEY_AES_256)
    nonce_and_aad = await keys.given(task.rng.randbytes(NONCE_SIZE) + b"header")
    buffer, out = keys.room(len(data) + TAG_SIZE)
    which = Value(key, NONCE_SIZE, INPUT)
    await session.invoke(Command.AE_ENCRYPT, which, nonce_and_aad, await keys.given(data), out)
    sealed = await buffer.read()
    task.expect(data[:16] in sealed, False, "plain text in what was encrypted")
    plain, opened = keys.room(len(data))
    params = (which, nonce_and_aad, await keys.given(sealed), opened)
    await session.invoke(Command.AE_DECRYPT, *params)
    task.expect(await plain.read(), data, "what was encrypted and decrypted")
    at = task.rng.randrange(len(sealed))
    broken = sealed[:at] + bytes([sealed[at] ^ 0x80]) + sealed[at + 1 :]
    _, opened = keys.room(len(data))
    await task.refused(
        session.invoke(Command.AE_DECRYPT, which, nonce_and_aad, await keys.given(broken), opened),
        tee.TEE_ERROR_MAC_INVALID,
        "a sealed text with one bit changed",
    )
    await keys.delete(key)


async def _signed(task: Task, session: Session, keys: _Keys, digest: bytes) -> None:
    key = await keys.generate(KEY_ECDSA_P256)
    which = Value(key, 0, INPUT)
    buffer, out = keys.room(SIGNATURE_SIZE)
    await session.invoke(Command.SIGN, which, await keys.given(digest), out)
    signature = await buffer.read()
    given = await keys.given(signature)
    await session.invoke(Command.VERIFY, which, await keys.given(digest), given)
    other = await keys.given(hashlib.sha256(digest).digest())
    await task.refused(
        session.invoke(Command.VERIFY, which, other, given),
        tee.TEE_ERROR_SIGNATURE_INVALID,
        "a signature of something else",
    )
    await keys.delete(key)


KINDS: Final = (
    WorkloadKind(
        "crypto",
        "SHA-256, HMAC, AES-GCM and ECDSA in a user TA",
        crypto,
        (Field("size", Kind.SIZE, "bytes of the data", 4000, low=16, high=1 << 20),),
        crypto=True,
    ),
)
