# SPDX-License-Identifier: BSD-2-Clause
"""What a message's attributes mean for the mediator, worked out once for each shape.

Two calls whose parameters have the same attributes are copied back and translated in the same
places; real drivers use a handful of shapes. A guest that makes up new ones all the time only
makes the table start again.
"""

from __future__ import annotations

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


def segments(
    outputs: tuple[tuple[int, int], ...], data: bytes, base: int
) -> list[tuple[int, bytes]]:
    """The results in ``data``, as segments of a page in which the message begins at ``base``."""
    # A plain loop: a comprehension would make a function and cells for every call.
    found = []
    for start, end in outputs:
        found.append((base + start, data[start:end]))
    return found


def references(places: tuple[int, ...], fields: tuple[int, ...]) -> list[int]:
    """The references of registered memory at ``places`` that are not null (0)."""
    found = []
    for place in places:
        reference = fields[place]
        if reference:
            found.append(reference)
    return found


class Plan:
    """``outputs``: (start, end) of every result of the message. ``tmem``: parameters to translate. ``rmem``: places
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
        self.outputs = tuple(outputs)
        self.tmem = tuple(tmem)
        self.rmem = tuple(rmem)


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
