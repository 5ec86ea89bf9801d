# SPDX-License-Identifier: BSD-2-Clause
"""Mediator errors that can be planted into a replay: what a wrong mediator would have sent.

Each fault looks at one outgoing call (or one answer to the guest) and says how it would look with
the error in it: other registers, other bytes in memory. Whether the comparison notices is not its
concern; whether the altered data *is* wrong is decided here, without asking the comparison.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import attrs

from secure_world.bus import BusError
from smccc import wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.registers import low32, pair, split
from specs.replay import names
from specs.replay.chain import Step
from specs.replay.compare import parameters, temporary
from specs.replay.judge import RESULT_REGISTERS
from specs.replay.machine import Machine
from specs.replay.mediated import ANSWERED, FORWARDED, MediatorReplay
from specs.replay.scripted import list_words

PAGE: Final = 4096
NONCONTIG: Final = msg.OPTEE_MSG_ATTR_NONCONTIG


class Alteration(NamedTuple):
    """What the error changes: the registers, and bytes at physical addresses."""

    story: str
    regs: tuple[int, ...]
    writes: tuple[tuple[int, bytes], ...] = ()


Alter = Callable[[MediatorReplay, Step, str, tuple[int, ...]], list[Alteration]]


@attrs.frozen
class MediatorFault:
    """A kind of mediator error. ``alter``: all the ways in which it can show in this call."""

    id: str
    story: str
    alter: Alter


def _swap(regs: tuple[int, ...], first: int, second: int) -> tuple[int, ...]:
    values = list(regs)
    values[first], values[second] = values[second], values[first]
    return tuple(values)


def _starts_flight(step: Step, side: str) -> bool:
    return side == FORWARDED and step.function in names.CALLS_WITH_MESSAGE


def _message_at(replay: MediatorReplay, step: Step, regs: tuple[int, ...]) -> int | None:
    """Physical address of the message (or RPC argument) that this call hands over."""
    if step.function in names.CALLS_WITH_MESSAGE:
        return pair(regs[1], regs[2]) if step.call.msg is not None else None
    return replay.scripted.rpc_message(step) if step.call.rpc_arg is not None else None


def _list_addresses(machine: Machine, step: Step, at: int, size: int) -> list[tuple[int, int]]:
    """(physical address of the word, its value) of all list entries of a forwarded message."""
    found: list[tuple[int, int]] = []
    try:
        data = machine.bus.read(step.client, at, size)
        for param in temporary(data):
            if not param.attr & NONCONTIG:
                continue
            words = list_words(machine.bus, step.client, param)
            place = param.a & -PAGE
            # The first list page is enough: the rest is like it.
            for i, (word,) in enumerate(struct.iter_unpack("<Q", words[: 8 * 511])):
                found.append((place + 8 * i, word))
    except BusError:
        return []
    return found


def _size(step: Step) -> int:
    content = step.call.msg if step.function in names.CALLS_WITH_MESSAGE else step.call.rpc_arg
    return 0 if content is None else len(content.data)


def _untranslated(
    replay: MediatorReplay, step: Step, side: str, regs: tuple[int, ...]
) -> list[Alteration]:
    """An address goes out as the guest wrote it."""
    if side != FORWARDED or step.client == 0:
        return []
    found: list[Alteration] = []
    at = _message_at(replay, step, regs)
    if _starts_flight(step, side) and at is not None and step.call.msg is not None:
        hi, lo = split(step.call.msg.pa)
        found.append(Alteration("message address", (regs[0], hi, lo, *regs[3:])))
    if at is None:
        return found
    machine = replay.machine
    entries = _list_addresses(machine, step, at, _size(step))
    for place, word in entries[:2] + entries[-1:]:
        ipa = replay.machine.to_ipa(step.client, word)
        if ipa is not None:
            found.append(Alteration("list entry", regs, ((place, struct.pack("<Q", ipa)),)))
    content = step.call.msg if _starts_flight(step, side) else step.call.rpc_arg
    if content is not None and entries:
        for param in temporary(content.data):
            address = struct.pack("<Q", param.a)
            found.append(Alteration("list address", regs, ((at + param.at + 8, address),)))
    return found


def _swapped(
    replay: MediatorReplay, step: Step, side: str, regs: tuple[int, ...]
) -> list[Alteration]:
    """Two neighbouring words change places."""
    found: list[Alteration] = []
    if side == ANSWERED:
        return _swapped_answer(step, regs)
    at = _message_at(replay, step, regs)
    if _starts_flight(step, side) and at is not None and regs[1] != regs[2]:
        found.append(Alteration("message address words", _swap(regs, 1, 2)))
    request = step.request
    if request is not None and low32(request.regs[0]) == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
        if low32(regs[4]) != low32(regs[5]):
            found.append(Alteration("cookie words", _swap(regs, 4, 5)))
        if regs[1] != regs[2] and pair(regs[2], regs[1]):
            found.append(Alteration("RPC message address words", _swap(regs, 1, 2)))
    if at is None or step.client == 0:
        return found
    machine = replay.machine
    entries = _list_addresses(machine, step, at, _size(step))
    for (place, word), (_, following) in itertools.pairwise(entries):
        if word != following:
            pair_of_words = struct.pack("<2Q", following, word)
            found.append(Alteration("list entries", regs, ((place, pair_of_words),)))
            break
    for param in parameters(machine.bus.read(step.client, at, _size(step))):
        if param.kind in (wire.KIND_RMEM, wire.KIND_TMEM) and param.b != param.c:
            words = struct.pack("<2Q", param.c, param.b)
            found.append(Alteration("size and reference", regs, ((at + param.at + 16, words),)))
    return found


def _swapped_answer(step: Step, regs: tuple[int, ...]) -> list[Alteration]:
    found: list[Alteration] = []
    assert step.answer is not None
    if step.function >> 31:
        count, after_ok = RESULT_REGISTERS.get(step.function, (1, False))
        if after_ok and low32(step.answer.regs[0]):
            count = 1
        if step.function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES:
            count = min(count, 2)  # a2 and a3 mean something only with their capability
    else:
        count = 4 if names.is_rpc(step.answer.regs[0]) else 1
    for first in range(count - 1):
        if low32(regs[first]) != low32(regs[first + 1]):
            found.append(Alteration(f"a{first} and a{first + 1}", _swap(regs, first, first + 1)))
    return found


def _stale(
    replay: MediatorReplay, step: Step, side: str, regs: tuple[int, ...]
) -> list[Alteration]:
    """A page of an earlier call goes out, or the results of this one do not come back."""
    machine = replay.machine
    if side == ANSWERED:
        return _stale_answer(replay, step, regs)
    if step.client == 0:
        return []
    found: list[Alteration] = []
    at = _message_at(replay, step, regs)
    if at is None:
        return found
    size = _size(step)
    if _starts_flight(step, side):
        data = machine.bus.read(step.client, at, size)
        for page in machine.shadow_addresses():
            if page != at and machine.peek(page, size) != data:
                found.append(Alteration("message page", (regs[0], *split(page), *regs[3:])))
                break
    entries = _list_addresses(machine, step, at, size)
    if entries:
        place, word = entries[-1]
        other = word ^ PAGE  # a neighbour of the right page in physical memory
        found.append(Alteration("list entry", regs, ((place, struct.pack("<Q", other)),)))
    return found


def _stale_answer(replay: MediatorReplay, step: Step, regs: tuple[int, ...]) -> list[Alteration]:
    """The guest's memory as it was before the answer."""
    answer, flight = step.answer, step.flight
    assert answer is not None
    if flight is None or answer.msg is None or flight.start.msg is None:
        return []
    before, after = flight.start.msg.data, answer.msg.data
    place = replay.normal.place(flight)
    if place is None or before == after or len(before) != len(after):
        return []
    writes: list[tuple[int, bytes]] = []
    at = 0
    for ipa, part in place.pieces(0, len(before)):
        pa = replay.machine.to_pa(step.client, ipa)
        if pa is not None:
            writes.append((pa, before[at : at + part]))
        at += part
    return [Alteration("results", regs, tuple(writes))]


def _wrong_client(
    replay: MediatorReplay, step: Step, side: str, regs: tuple[int, ...]
) -> list[Alteration]:
    """The call goes out in the name of another guest, or of the hypervisor."""
    if side != FORWARDED or step.client == 0:
        return []
    return [
        Alteration(f"a7 = {client}", (*regs[:7], client))
        for client in (regs[7] + 1, 0)
        if client != regs[7]
    ]


FAULTS: Final = (
    MediatorFault("untranslated-word", "an address goes out as the guest wrote it", _untranslated),
    MediatorFault("swapped-words", "two neighbouring words change places", _swapped),
    MediatorFault("stale-page", "a page of an earlier call is used", _stale),
    MediatorFault("wrong-client-id", "a call goes out in another guest's name", _wrong_client),
)
"""The kinds of mediator error that the self-check plants."""
