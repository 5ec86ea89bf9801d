# SPDX-License-Identifier: BSD-2-Clause
"""What an app reports to the recorder: an event of the mediator, checked like everything it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, cast

from mediator.optee import events

EVENTS: Final[Mapping[str, type[tuple[object, ...]]]] = MappingProxyType(
    {
        name: cast("type[tuple[object, ...]]", value)
        for name, value in vars(events).items()
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields")
    }
)
"""Events that TRACE may report, by name."""


def traced(payload: bytes) -> tuple[object, ...] | None:
    """The event that TRACE reports; ``None`` if it is none that an app can have."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, list) or not document:
        return None
    event = EVENTS.get(document[0]) if isinstance(document[0], str) else None
    fields = document[1:]
    if event is None or len(fields) != len(vars(event)["_fields"]):
        return None
    values: list[object] = []
    for field in fields:
        if isinstance(field, list) and all(isinstance(word, int) for word in field):
            values.append(tuple(field))
        elif isinstance(field, (int, str)):
            values.append(field)
        else:
            return None
    make = cast("Callable[..., tuple[object, ...]]", event)
    return make(*values)
