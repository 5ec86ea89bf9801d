# SPDX-License-Identifier: BSD-2-Clause
"""Invocations that the built-in trusted applications understand: the way into deep states."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from hypothesis import strategies as st

from fuzz.strategies.messages import (
    COOKIES,
    Prepared,
    contiguous_params,
    listed_params,
    null_params,
)
from fuzz.strategies.remember import remembered
from fuzz.view import GuestView, Writes
from secure_world.apps import echo
from secure_world.apps.basic import Arithmetic, Clock, Locker, MemoryReferences, Panicker
from secure_world.apps.echo import Echo, EchoShared
from smccc.calls.messages import InvokeCommand
from smccc.constants import optee_msg as msg
from smccc.message import Param


class Direction(IntEnum):
    """What a parameter is for, as the low part of its type number says."""

    INPUT = 0
    OUTPUT = 1
    INOUT = 2


VALUE: Final = "value"
MEMORY: Final = "memory"

Shape = tuple[tuple[str, Direction], ...]
"""Kind and direction of each parameter."""

_IN, _OUT, _INOUT = Direction
_NUMBERS: Final[Shape] = ((VALUE, _IN), (VALUE, _OUT))
_ECHO: Final[Mapping[int, Shape]] = {
    echo.NOTHING: (),
    echo.ECHO: ((VALUE, _INOUT), (MEMORY, _OUT), (MEMORY, _INOUT), (MEMORY, _IN)),
    echo.LOOP: ((VALUE, _IN),),
    echo.RETURN: ((VALUE, _IN),),
    echo.WAIT: ((VALUE, _IN),),
    echo.REE_TIME: ((VALUE, _OUT),),
    echo.SIZED_OUTPUT: ((MEMORY, _OUT),),
    echo.PANIC: ((VALUE, _IN),),
}

COMMANDS: Final[Mapping[uuid.UUID, Mapping[int, Shape]]] = {
    Arithmetic.uuid: dict.fromkeys(range(4), _NUMBERS),
    MemoryReferences.uuid: {
        MemoryReferences.SUM: ((MEMORY, _IN), (VALUE, _OUT)),
        MemoryReferences.FILL: ((MEMORY, _OUT), (VALUE, _IN)),
        MemoryReferences.REVERSE: ((MEMORY, _INOUT),),
        MemoryReferences.COPY: ((MEMORY, _IN), (MEMORY, _OUT)),
        MemoryReferences.IS_NULL: ((MEMORY, _INOUT), (VALUE, _OUT)),
    },
    Echo.uuid: _ECHO,
    EchoShared.uuid: _ECHO,
    Locker.uuid: {Locker.HOLD: ((VALUE, _IN),), Locker.HOLD_ASLEEP: ((VALUE, _IN),)},
    Clock.uuid: {
        Clock.WORK: ((VALUE, _IN),),
        Clock.SLEEP: ((VALUE, _IN),),
        Clock.REE_TIME: ((VALUE, _OUT),),
    },
    Panicker.uuid: {Panicker.PANIC: ((VALUE, _IN),), Panicker.SURVIVE: ()},
}
"""Commands of the built-in applications and the parameters that each wants.

Left out is what waits for another call for ever (``Locker.WAIT_SIGNAL``) and what partitions share.
"""


@remembered
@st.composite
def _memory(
    draw: st.DrawFn, view: GuestView, direction: Direction, cookies: tuple[int, ...]
) -> tuple[Param, Writes]:
    """Registered, listed, contiguous or null memory in this direction."""
    kind = draw(st.sampled_from(("rmem", "listed", "contiguous", "null", "rmem")))
    tmem = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT + direction
    if kind == "rmem":
        size = draw(st.sampled_from((0, 1, 100, 0x1000, 0x1001, 0x2000)))
        offset = draw(st.sampled_from((0, 0, 8, 0xFFF, 0x1000)))
        attr = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT + direction
        return Param(attr, offset, size, draw(st.sampled_from(cookies))), ()
    if kind == "listed":
        param, writes = draw(listed_params(view, cookies))
        return param._replace(attr=tmem | msg.OPTEE_MSG_ATTR_NONCONTIG), writes
    param = draw(null_params() if kind == "null" else contiguous_params(view))
    return param._replace(attr=tmem), ()


@remembered
@st.composite
def application_calls(
    draw: st.DrawFn,
    view: GuestView,
    session: int,
    application: uuid.UUID,
    *,
    cookies: tuple[int, ...] = COOKIES,
) -> Prepared:
    """An invocation in ``session`` with the parameters that ``application`` wants.

    ``ValueError`` for an application that :data:`COMMANDS` does not have.
    """
    shapes = COMMANDS.get(application)
    if shapes is None:
        raise ValueError(f"{application} is no built-in application")
    command = draw(st.sampled_from(tuple(shapes)))
    found: list[Param] = []
    writes: list[tuple[int, bytes]] = []
    for kind, direction in shapes[command]:
        if kind == VALUE:
            # Counts of steps and times: small, so that a call ends.
            a, b = draw(st.tuples(st.integers(0, 40), st.integers(0, 3)))
            found.append(Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT + direction, a, b))
        else:
            param, stores = draw(_memory(view, direction, cookies))
            found.append(param)
            writes += stores
    call = InvokeCommand(session, command, tuple(found))
    label = f"invoke command {command} of {application}"
    return Prepared(call.message().build(), tuple(writes), label)
