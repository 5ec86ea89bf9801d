# SPDX-License-Identifier: BSD-2-Clause
"""Sealed records: the only form in which secure storage leaves the secure world.

A record is one 4 KiB block, encrypted and authenticated with AES-256-GCM under a key of its file::

    0   magic       4s   "OSR1"
    4   kind        u8   DIRECTORY, INDEX or DATA
    5   zero        3s
    8   position    u32  which record of the file this is
    12  generation  u64  number of the transaction that wrote it
    20  nonce       12s  fresh for every write
    32  ciphertext  4096
    4128 tag        16s  over header and ciphertext

The header is authenticated too, so a record fits in no other place. What a record cannot prove by
itself is that it is the *newest* one: that is what a :class:`Reference`, held by something more
trusted, is for. A record that is broken, or that belongs elsewhere, is TEE_ERROR_CORRUPT_OBJECT; one
that is genuine but not the one referred to was rolled back: TEE_ERROR_SECURITY.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final, NamedTuple

from secure_world.apps import cipher
from secure_world.ta import TeeError
from smccc.constants import tee

BLOCK_SIZE: Final = 4096
"""Plain octets of a record; the block size of OP-TEE's own REE file system storage."""
DIRECTORY: Final = 1
INDEX: Final = 2
DATA: Final = 3

_MAGIC: Final = b"OSR1"
_HEADER: Final = struct.Struct("<4sB3sIQ12s")
RECORD_SIZE: Final = _HEADER.size + BLOCK_SIZE + cipher.TAG_SIZE
_REFERENCE: Final = struct.Struct(f"<BQ{cipher.TAG_SIZE}s")
REFERENCE_SIZE: Final = _REFERENCE.size


class Reference(NamedTuple):
    """The record that counts: which of its two slots holds it, its generation and its tag."""

    slot: int
    generation: int
    tag: bytes

    def pack(self) -> bytes:
        """25 octets: slot, generation (u64), tag."""
        return _REFERENCE.pack(*self)

    @staticmethod
    def unpack(data: bytes, offset: int) -> Reference:
        """The reference at ``offset`` of ``data`` (which is authenticated, so never broken)."""
        slot, generation, tag = _REFERENCE.unpack_from(data, offset)
        return Reference(slot, generation, tag)


HOLE: Final = Reference(0xFF, 0, bytes(cipher.TAG_SIZE))
"""Stands for a block that was never written and reads as zeros."""


class Sealer:
    """Seals and opens the records of one file."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = cipher.aes_gcm(key)

    def seal(
        self, kind: int, position: int, generation: int, nonce: bytes, block: bytes
    ) -> tuple[bytes, bytes]:
        """The record for ``block`` (padded with zeros to a full one), and its tag."""
        header = _HEADER.pack(_MAGIC, kind, bytes(3), position, generation, nonce)
        plain = block + bytes(BLOCK_SIZE - len(block))
        sealed = cipher.gcm_seal(self._cipher, nonce, plain, header)
        return header + sealed, sealed[-cipher.TAG_SIZE :]

    def open(self, record: bytes, kind: int, position: int) -> tuple[int, bytes, bytes]:
        """Generation, tag and block of a genuine record of this kind and place.

        :class:`TeeError` CORRUPT_OBJECT for anything else.
        """
        if len(record) != RECORD_SIZE:
            raise TeeError(tee.TEE_ERROR_CORRUPT_OBJECT)
        magic, its_kind, _, its_position, generation, nonce = _HEADER.unpack_from(record)
        if (magic, its_kind, its_position) != (_MAGIC, kind, position):
            raise TeeError(tee.TEE_ERROR_CORRUPT_OBJECT)
        header, sealed = record[: _HEADER.size], record[_HEADER.size :]
        block = cipher.gcm_open(self._cipher, nonce, sealed, header)
        if block is None:
            raise TeeError(tee.TEE_ERROR_CORRUPT_OBJECT)
        return generation, sealed[-cipher.TAG_SIZE :], block

    def open_current(self, record: bytes, kind: int, position: int, wanted: Reference) -> bytes:
        """The block of exactly the record that ``wanted`` refers to.

        :class:`TeeError` CORRUPT_OBJECT if it is none, SECURITY if it is another genuine one.
        """
        generation, tag, block = self.open(record, kind, position)
        if generation != wanted.generation or not hmac.compare_digest(tag, wanted.tag):
            raise TeeError(tee.TEE_ERROR_SECURITY)
        return block
