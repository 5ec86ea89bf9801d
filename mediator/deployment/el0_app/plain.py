# SPDX-License-Identifier: BSD-2-Clause
"""Settings, counters and snapshots as the JSON of the app ABI's payloads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, cast

import attrs

from mediator.deployment.el0_app.grants import Grant
from mediator.optee.mediator import GuestInfo, Wait
from mediator.optee.settings import MediatorSettings

BYTES: Final = "hex"
"""The only key of an object that stands for bytes."""

BOOKS: Final = "el0_app"
"""Key of a snapshot under which the hypervisor's side keeps its own books."""

Plain = dict[str, object]


def settings(value: MediatorSettings) -> bytes:
    """Payload of WELCOME."""
    return json.dumps({"mediator": attrs.asdict(value)}, separators=(",", ":")).encode()


def encoded(data: Plain) -> bytes:
    """Plain data with bytes as JSON."""
    return json.dumps(data, default=_plain, separators=(",", ":")).encode()


def decoded(payload: bytes) -> object:
    """The same backwards. ``ValueError`` if it is no JSON."""
    return json.loads(payload, object_hook=_object)


def _plain(value: object) -> object:
    if isinstance(value, (bytes, bytearray)):
        return {BYTES: value.hex()}
    raise TypeError(f"no plain data: {type(value).__name__}")


def _object(value: Plain) -> object:
    if len(value) == 1 and isinstance(value.get(BYTES), str):
        return bytes.fromhex(cast("str", value[BYTES]))
    return value


def guest_info(payload: bytes, guest: int) -> GuestInfo | None:
    """The counters of a guest in the answer to INSPECT, if they are there and are counters."""
    try:
        found = json.loads(payload)["guests"].get(str(guest))
        return None if found is None else GuestInfo(**{key: int(found[key]) for key in found})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def waits(payload: bytes) -> tuple[Wait, ...]:
    """The waits in the answer to INSPECT; none if it is not what it should be."""
    try:
        return tuple([Wait(**wait) for wait in json.loads(payload)["waits"]])
    except (ValueError, TypeError, KeyError):
        return ()


def _lent(grant: Grant) -> tuple[dict[int, int], ...]:
    return grant.lent.waits, grant.lent.asked, grant.lent.cookies


def books(grants: Iterable[Grant], shadows: list[bytes]) -> Plain:
    """What the hypervisor's side knows of the guests of an app."""
    return {
        "shadows": shadows,
        "guests": [
            [
                grant.guest,
                grant.client,
                grant.partition,
                grant.pins.everything(),
                [grant.listens, grant.renewed, grant.owed],
                [[*lent.items()] for lent in _lent(grant)],
                [[*key, *read] for key, read in grant.ahead.items()],
            ]
            for grant in grants
        ],
    }


def books_from(data: object) -> tuple[list[Grant], list[bytes]]:
    """The same backwards. ``ValueError`` if it is something else."""
    if not isinstance(data, dict):
        raise ValueError("not a snapshot of an app: it has no books")
    grants: list[Grant] = []
    for guest, client, partition, frames, state, lent, reads in cast(
        "list[list[object]]", data["guests"]
    ):
        grant = Grant(cast("int", guest), cast("int", client))
        grant.partition = bool(partition)
        listens, renewed, owed = cast("tuple[bool, bool, int]", state)
        grant.listens, grant.renewed, grant.owed = listens, renewed, owed
        for table, items in zip(
            _lent(grant), cast("list[list[tuple[int, int]]]", lent), strict=True
        ):
            table.update(items)
        for *key, number, address, length in cast("list[list[int]]", reads):
            grant.ahead[tuple(key)] = number, address, length
        if frames:
            grant.pins.add(cast("bytes", frames))
        grants.append(grant)
    return grants, cast("list[bytes]", data["shadows"])
