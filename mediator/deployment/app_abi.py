# SPDX-License-Identifier: BSD-2-Clause
"""Constants and structures of the app ABI, for both sides of the channel.

The definition, with the meaning of everything, is ``specs/app_abi/app_abi.toml``; a test compares.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

MAJOR: Final = 1
MINOR: Final = 0

HEADER: Final = struct.Struct("<HHIIIq8QQ")
"""kind, number, flags, entry, payload length, status, eight arguments, reserved."""
HEADER_SIZE: Final = 96

HELLO: Final = 1
WELCOME: Final = 2
ENTRY: Final = 3
SYSCALL: Final = 4
RESULT: Final = 5

FLAG_POSTED: Final = 1 << 0
FLAG_PREEMPT: Final = 1 << 1

CAP_NESTING: Final = 1 << 0
CAP_INTERLEAVING: Final = 1 << 1
CAP_TRACE: Final = 1 << 2
CAP_STATE: Final = 1 << 3
CAP_READ_AHEAD: Final = 1 << 4

OFFER_POSTING: Final = 1 << 0
OFFER_FUSED: Final = 1 << 1
OFFER_TRACE: Final = 1 << 2

OK: Final = 0
NO: Final = 1
BAD_ARGUMENT: Final = -1
NOT_ALLOWED: Final = -2
NO_SUCH_CALL: Final = -3
NOT_YOURS: Final = -4
TOO_MUCH: Final = -5
HOST_FAILED: Final = -6
UNKNOWN_VERSION: Final = -7
NOT_ISOLATED: Final = -8
NOT_TRUSTED: Final = -9

OUTCOME_DONE: Final = 0
OUTCOME_PREEMPTED: Final = 1
OUTCOME_NOT_MINE: Final = 2
OUTCOME_REFUSED: Final = 3
OUTCOME_FAILED: Final = 4

ENTRY_INIT: Final = 1
ENTRY_GUEST_CREATED: Final = 2
ENTRY_GUEST_DESTROYED: Final = 3
ENTRY_HANDLE_SMC: Final = 4
ENTRY_HANDLE_MMIO: Final = 5
ENTRY_HANDLE_TIMER: Final = 6
ENTRY_HANDLE_INTERRUPT: Final = 7
ENTRY_INSPECT: Final = 8
ENTRY_SNAPSHOT: Final = 9
ENTRY_RESTORE: Final = 10

INIT_START: Final = 0
INIT_PROBE: Final = 1
INIT_KNOWN: Final = 2
INIT_RESET: Final = 3

HOOK_SMC: Final = 1
HOOK_MMIO: Final = 2
HOOK_TIMER: Final = 3
HOOK_INTERRUPT: Final = 4

MAX_PAYLOAD: Final = 16 << 20
MAX_ENTRIES: Final = 256
MAX_POSTED: Final = 4096
MAX_SEGMENTS: Final = 512
MAX_LOG: Final = 1024
MAX_NAME: Final = 64
MAX_REFUSALS: Final = 1000
MAX_HOOKS: Final = 64
WINDOW_PAGES: Final = 16
MAX_PAGES: Final = MAX_PAYLOAD // 8

NO_GUEST: Final = (1 << 64) - 1
"""In place of a guest in LOG."""

REGISTERS: Final = struct.Struct("<8Q")
"""Payload of HANDLE_SMC: x0..x7; what was read ahead follows."""

TRAPPED: Final = struct.Struct(HEADER.format + "8Q")
"""A HANDLE_SMC up to its registers."""

_PAIRS: Final = tuple([struct.Struct(f"<{2 * count}I") for count in range(MAX_SEGMENTS + 1)])


def pack_segments(segments: Sequence[tuple[int, bytes]]) -> bytes:
    """``(offset, data)`` segments as a payload."""
    layout: list[int] = []
    parts = [b""]
    for offset, data in segments:
        layout += (offset, len(data))
        parts.append(data)
    parts[0] = _PAIRS[len(segments)].pack(*layout)
    return b"".join(parts)


def unpack_segments(count: int, payload: bytes, page: int) -> list[tuple[int, bytes]] | None:
    """The segments of a payload; ``None`` unless they are inside one page and fit exactly."""
    if not 0 <= count <= MAX_SEGMENTS:
        return None
    pairs = _PAIRS[count]
    at = pairs.size
    if len(payload) < at:
        return None
    words = iter(pairs.unpack_from(payload))
    segments: list[tuple[int, bytes]] = []
    for offset, length in zip(words, words, strict=True):
        if offset + length > page:
            return None
        end = at + length
        segments.append((offset, payload[at:end]))
        at = end
    return segments if at == len(payload) else None
