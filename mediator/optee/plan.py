# SPDX-License-Identifier: BSD-2-Clause
"""What a message's attributes mean for the mediator, worked out once for each shape.

Two calls whose parameters have the same attributes are copied back and translated in the same
places; real drivers use a handful of shapes. A guest that makes up new ones all the time only
makes the table start again.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Final

from smccc.constants import optee_msg as msg
from smccc.wire import HEADER_SIZE, PARAM_SIZE

MAX_PLANS: Final = 1024
"""Shapes remembered; each is a few hundred bytes."""

_VALUE_OUT: Final = 1
_MEMREF_OUT: Final = 2
_TMEM: Final = 4
_RMEM: Final = 8

SESSION_FIELD: Final = (8, 12)
RET_FIELDS: Final = (20, 28)
"""(start, end) of the results in the header: ``session``, and ``ret`` with ``ret_origin``."""

REFERENCE: Final = 11
"""Place of the reference of the first parameter: eight words of header, ``attr``, two more."""


def _classes() -> bytes:
    table = bytearray(256)
    for kind in (msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT, msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT):
        table[kind] = _VALUE_OUT
    table[msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT] = _RMEM
    for kind in (msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT, msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT):
        table[kind] = _RMEM | _MEMREF_OUT
    table[msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT] = _TMEM
    for kind in (msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT, msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT):
        table[kind] = _TMEM | _MEMREF_OUT
    return bytes(table)


PARAM_CLASS: Final = _classes()
"""Type byte → what the mediator does about it. Types that are holes pass through untouched."""


class Outputs:
    """Where the results of a message lie: ``ranges``, (start, end) in ascending order; two or more."""

    __slots__ = ("_cut", "_starts", "ranges")

    def __init__(self, ranges: tuple[tuple[int, int], ...]) -> None:
        self.ranges = ranges
        self._starts = tuple([start for start, _ in ranges])
        first, second, *rest = [slice(start, end) for start, end in ranges]
        self._cut: Callable[[bytes], tuple[bytes, ...]] = itemgetter(first, second, *rest)

    def segments(self, data: bytes, base: int) -> list[tuple[int, bytes]]:
        """The results in ``data``, as segments of a page in which the message begins at ``base``."""
        if not base:
            return list(zip(self._starts, self._cut(data), strict=True))
        found = []
        for start, end in self.ranges:
            found.append((base + start, data[start:end]))
        return found


class Plan:
    """``outputs``: every result of the message. ``tmem``: parameters to translate. ``rmem``: places
    of the references of registered memory among the words of the unpacked message."""

    __slots__ = ("outputs", "rmem", "tmem")

    def __init__(self, attributes: tuple[int, ...]) -> None:
        outputs = [SESSION_FIELD, RET_FIELDS]
        tmem = []
        rmem = []
        at = HEADER_SIZE
        for index, attr in enumerate(attributes):
            what = PARAM_CLASS[attr & 0xFF]
            if what == _VALUE_OUT:
                outputs.append((at + 8, at + 32))
            elif what & _MEMREF_OUT:
                outputs.append((at + 16, at + 24))
            if what & _TMEM:
                tmem.append(index)
            elif what & _RMEM:
                rmem.append(REFERENCE + 4 * index)
            at += PARAM_SIZE
        self.outputs = Outputs(tuple(outputs))
        self.tmem = tuple(tmem)
        self.rmem = tuple(rmem)


NO_PARAMS: Final = Plan(())
"""Of a message without parameters."""


class Plans:
    """The plans of one mediator, by the attributes of a message's parameters."""

    __slots__ = ("_plans",)

    def __init__(self) -> None:
        self._plans: dict[tuple[int, ...], Plan] = {}

    def of(self, attributes: tuple[int, ...]) -> Plan:
        """The plan for parameters with these ``attr`` words."""
        plan = self._plans.get(attributes)
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = self._plans[attributes] = Plan(attributes)
        return plan
