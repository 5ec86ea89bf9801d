# SPDX-License-Identifier: BSD-2-Clause
"""The state of the mediator as JSON: for people, for checkers, and for a snapshot."""

from __future__ import annotations

import json
from typing import Final, cast

import attrs

from mediator.optee.mediator import OpteeMediator

BYTES: Final = "hex"
"""The only key of the object that stands for bytes; no record of a snapshot has just this one."""


def inspected(mediator: OpteeMediator) -> bytes:
    """Guests with their counters, and the threads of the TEE that wait."""
    guests: dict[str, object] = {}
    for guest in mediator.guests:
        info = mediator.guest_info(guest)
        assert info is not None
        guests[str(guest)] = attrs.asdict(info)
    waits = [attrs.asdict(wait) for wait in mediator.waits()]
    return json.dumps({"guests": guests, "waits": waits}, separators=(",", ":")).encode()


def encoded(data: dict[str, object]) -> bytes:
    """A snapshot as JSON."""
    return json.dumps(data, default=_plain, separators=(",", ":")).encode()


def decoded(data: bytes) -> dict[str, object]:
    """A snapshot from JSON. ``ValueError`` if it is none."""
    document = json.loads(data, object_hook=_object)
    if not isinstance(document, dict):
        raise ValueError("not a mediator snapshot: no object")
    return cast("dict[str, object]", document)


def _plain(value: object) -> object:
    if isinstance(value, (bytes, bytearray)):
        return {BYTES: value.hex()}
    raise TypeError(f"a snapshot holds no {type(value).__name__}")


def _object(value: dict[str, object]) -> object:
    if len(value) == 1 and BYTES in value:
        return bytes.fromhex(cast("str", value[BYTES]))
    return value
