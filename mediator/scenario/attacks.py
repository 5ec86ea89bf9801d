# SPDX-License-Identifier: BSD-2-Clause
"""What a hostile guest tries: seeded attacks on the mediator, with raw registers and memory.

Each attack is one short story told by an :class:`~mediator.guest.hostile.Attacker`. What comes back
does not matter here: the invariants watch, and the other guests must not notice.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Final

import attrs

from mediator.guest.cpu import GuestCpu, VcpuProgram
from mediator.guest.hostile import (
    Attacker,
    Outcome,
    Param,
    Store,
    message,
    perform,
)
from mediator.guest.memory import PAGE_SIZE
from secure_world.apps.basic import Clock, Locker
from secure_world.apps.echo import Echo
from smccc import names
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.page_list import ENTRIES, list_page_count

MASK64: Final = (1 << 64) - 1
OUTSIDE: Final = 0x8_0000_0000
"""IPA that no guest has; the machine has RAM at this physical address."""

REGION_PAGES: Final = 160
"""Pages of a vCPU that its attacks use, from the start again in every round."""

MAX_LEFT: Final = 3
"""Calls that are left suspended at one time: a guest that holds all its threads can attack no more."""

RACE_PAUSE: Final = 1_500
"""ns between two stores of the vCPU that races: about the length of a trap."""

_NONCONTIG: Final = msg.OPTEE_MSG_ATTR_NONCONTIG
_TMEM: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT
_RMEM: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT
_VALUE: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
_META: Final = msg.OPTEE_MSG_ATTR_META | _VALUE

Body = Callable[[Attacker, Random], Awaitable[Outcome | None]]
"""An attack; what it returns is the last answer of a call that it leaves suspended, if any."""


@attrs.frozen
class Attack:
    """One kind of attack."""

    help: str
    body: Body


def _anywhere(rng: Random, own: int) -> int:
    """An address: one's own, unmapped, odd, or where RAM really is."""
    return rng.choice(
        (
            own,
            own + 1,
            own + PAGE_SIZE - 8,
            0,
            OUTSIDE + rng.randrange(1 << 20) * PAGE_SIZE,
            rng.getrandbits(64),
            MASK64,
        )
    )


async def _registers(attacker: Attacker, rng: Random) -> None:
    """Any function of the TEE's ranges with any registers, immediates and conduits."""
    known = sorted(value for value in names.FUNCTIONS if value >> 24 in (0x32, 0xB2, 0xBF))
    for _ in range(8):
        function = rng.choice(known) if rng.random() < 0.7 else 0x3200_0000 | rng.getrandbits(16)
        if function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            continue
        words = [rng.getrandbits(rng.choice((1, 12, 32, 64))) for _ in range(7)]
        immediate = rng.choice((0, 0, 0, 1, 0xFFFF))
        outcome = await attacker.smc(function, *words, immediate=immediate, hvc=rng.random() < 0.3)
        await attacker.to_the_end(outcome, limit=8)


async def _messages(attacker: Attacker, rng: Random) -> None:
    """Messages with false counts, commands, attributes and addresses."""
    for _ in range(4):
        place = attacker.take()
        params: list[Param] = [
            (
                rng.getrandbits(rng.choice((4, 8, 16))),
                _anywhere(rng, place),
                rng.choice((0, 1, PAGE_SIZE, 1 << 40, MASK64)),
                rng.getrandbits(rng.choice((1, 64))),
            )
            for _ in range(rng.randrange(7))
        ]
        count = rng.choice((None, None, 0, 5, 126, 127, 128, 0xFFFF_FFFF))
        content = message(
            rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 0x7FFF_FFFF)),
            params,
            function=rng.getrandbits(8),
            session=rng.randrange(4),
            num_params=count,
        )
        await attacker.store(place, content)
        where = place if rng.random() < 0.7 else _anywhere(rng, place)
        function = rng.choice((smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG))
        outcome = await attacker.smc(function, where >> 32, where & 0xFFFF_FFFF)
        await attacker.to_the_end(outcome, limit=8)


def _list(rng: Random, entries: list[int], ipa: int) -> bytes:
    """A page list whose links lead on, back to the start, or anywhere."""
    links = rng.choice(("on", "back", "away"))
    image = b""
    for first in range(0, len(entries), ENTRIES):
        words = entries[first : first + ENTRIES]
        words += [0] * (ENTRIES - len(words))
        link = {"on": ipa + len(image) + PAGE_SIZE, "back": ipa, "away": _anywhere(rng, ipa)}[links]
        image += struct.pack("<512Q", *words, link)
    return image


async def _lists(attacker: Attacker, rng: Random) -> None:
    """Page lists that loop, lead elsewhere, or name pages that are not the guest's."""
    pages = [attacker.take() for _ in range(rng.choice((1, 3, 20)))]
    for _ in range(3):
        entries = [rng.choice(pages) for _ in range(rng.choice((1, 5, 511, 512, 1023)))]
        if rng.random() < 0.5:
            entries[rng.randrange(len(entries))] = _anywhere(rng, pages[0])
        ipa = attacker.take(list_page_count(len(entries)))
        await attacker.store(ipa, _list(rng, entries, ipa))
        size = rng.choice((len(entries) * PAGE_SIZE, 1, 1 << 31, MASK64))
        cookie = rng.choice((0, 1, rng.getrandbits(64)))
        attr = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | _NONCONTIG
        content = message(msg.OPTEE_MSG_CMD_REGISTER_SHM, [(attr, ipa, size, cookie)])
        _, outcome = await attacker.call(content)
        await attacker.to_the_end(outcome, limit=64)


async def _cookies(attacker: Attacker, rng: Random) -> None:
    """Names of buffers that are taken, gone, or another guest's."""
    classic = rng.random() < 0.5
    function = smc.OPTEE_SMC_CALL_WITH_ARG if classic else smc.OPTEE_SMC_CALL_WITH_RPC_ARG
    cookie = rng.choice((0, 0xFFFF_0000_1000_0000, rng.getrandbits(64)))
    pages = [attacker.take(), attacker.take()]
    await attacker.register(cookie, pages, function=function)
    await attacker.register(cookie, pages[:1], function=function)
    await attacker.store(pages[0], message(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, session=1))
    for offset in (0, 4, PAGE_SIZE - 16, 2 * PAGE_SIZE, 0xFFFF_FFF8):
        outcome = await attacker.call_registered(cookie, offset)
        await attacker.to_the_end(outcome, pages[0] + 32, limit=8)
    await attacker.call_registered(rng.getrandbits(64), 0)
    await attacker.unregister(cookie, function)
    await attacker.unregister(cookie, function)
    await attacker.call_registered(cookie, 0)


async def _threads(attacker: Attacker, rng: Random) -> None:
    """Resumption of calls that are not one's own, or that never were."""
    for thread in (0, 1, 2, 7, 0x1_0000, 0x1_0001, rng.getrandbits(32)):
        words = [rng.getrandbits(rng.choice((1, 32))) for _ in range(4)]
        await attacker.resume(thread, *words)


async def _sessions(attacker: Attacker, rng: Random) -> None:
    """Invokes, closes and cancels in sessions that others opened."""
    for session in (1, 2, 3, rng.getrandbits(32)):
        command = rng.choice(
            (
                msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
                msg.OPTEE_MSG_CMD_CLOSE_SESSION,
                msg.OPTEE_MSG_CMD_CANCEL,
            )
        )
        count = 4 if command == msg.OPTEE_MSG_CMD_INVOKE_COMMAND else 0
        content = message(command, [(0, 0, 0, 0)] * count, session=session)
        _, outcome = await attacker.call(content)
        await attacker.to_the_end(outcome, limit=8)


def _open(uuid: bytes) -> bytes:
    words = (int.from_bytes(uuid[:8], "little"), int.from_bytes(uuid[8:], "little"))
    return message(
        msg.OPTEE_MSG_CMD_OPEN_SESSION,
        [(_META, *words, 0), (_META, 0, 0, tee.TEE_LOGIN_PUBLIC)],
    )


async def _requests(attacker: Attacker, rng: Random) -> Outcome | None:
    """RPCs that are answered wrongly, twice, or never."""
    uuid = rng.choice((Echo.uuid, Clock.uuid)).bytes
    place, outcome = await attacker.call(_open(uuid), function=smc.OPTEE_SMC_CALL_WITH_RPC_ARG)
    argument = place + len(_open(uuid))
    for _ in range(6):
        if not outcome.is_rpc or rng.random() < 0.1:
            break
        await _lie(attacker, rng, outcome, argument)
        words = [rng.getrandbits(rng.choice((1, 32, 64))) for _ in range(4)]
        thread = outcome.thread
        outcome = await attacker.resume(thread, *words)
        if rng.random() < 0.3:
            await attacker.resume(thread)
    if rng.random() < 0.5:
        return outcome
    await attacker.to_the_end(outcome, argument, limit=64)
    return None


async def _lie(attacker: Attacker, rng: Random, outcome: Outcome, argument: int) -> None:
    """Some answer to a request: memory that is not there, a count that is not true."""
    if outcome.status != smc.OPTEE_SMC_RETURN_RPC_CMD:
        return
    attr = rng.choice((_TMEM, _TMEM | _NONCONTIG, _RMEM, _VALUE, 0xC))
    where = _anywhere(rng, argument)
    answer = message(
        rng.choice((6, 7, 2)),
        [(attr, where, rng.choice((0, 4096, MASK64)), rng.getrandbits(8))],
        num_params=rng.choice((None, None, 0, 127, 0xFFFF_FFFF)),
        ret=rng.choice((0, 0, tee.TEE_ERROR_GENERIC)),
    )
    await attacker.store(argument, answer)


async def _locks(attacker: Attacker, rng: Random) -> Outcome | None:
    """A lock that is taken and not let go for long: the call that holds it stays suspended."""
    uuid = Locker.uuid.bytes
    place, outcome = await attacker.call(_open(uuid))
    outcome = await attacker.to_the_end(outcome)
    head = await attacker.load(place, 12)
    session = int.from_bytes(head[8:12], "little")
    if session:
        content = message(
            msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
            [(_VALUE, rng.randrange(1, 4), 0, 0), *[(0, 0, 0, 0)] * 3],
            function=Locker.HOLD_ASLEEP,
            session=session,
        )
        return (await attacker.call(content))[1]
    return None


ATTACKS: Final[Mapping[str, Attack]] = MappingProxyType(
    {
        "registers": Attack("any function with any registers", _registers),
        "messages": Attack("messages with false counts, commands and addresses", _messages),
        "lists": Attack("page lists that loop or name pages of others", _lists),
        "cookies": Attack("names of buffers that are taken, gone or not its own", _cookies),
        "threads": Attack("resumption of calls that are not its own", _threads),
        "sessions": Attack("sessions of others", _sessions),
        "requests": Attack("RPCs answered wrongly, twice or never", _requests),
        "locks": Attack("a lock that is taken and not let go", _locks),
    }
)


class HostileGuest:
    """The programs of a hostile guest. ``outcomes``: how often each status (x0) came back."""

    def __init__(self, attacks: tuple[str, ...], rounds: int, ram: int, seed: int) -> None:
        self.attacks = attacks
        self.rounds = rounds
        self.done = 0
        self.outcomes: Counter[str] = Counter()
        self._ram = ram
        self._seed = seed
        self._running = 0

    def programs(self, vcpus: int) -> tuple[VcpuProgram, ...]:
        """One program per vCPU: all attack; the last of several also writes into others' memory."""
        self._running = 1
        return (
            self._main,
            *[self._race if index == vcpus - 1 else self._side for index in range(1, vcpus)],
        )

    def _region(self, index: int) -> int:
        return self._ram + index * REGION_PAGES * PAGE_SIZE

    async def _main(self, cpu: GuestCpu) -> None:
        try:
            await self._side(cpu)
        finally:
            self._running = 0

    async def _side(self, cpu: GuestCpu) -> None:
        """All attacks in a drawn order, as often as there are rounds."""
        rng = Random(self._seed + cpu.index)
        left: list[Outcome] = []
        for _ in range(self.rounds):
            for name in rng.sample(self.attacks, len(self.attacks)):
                attacker = Attacker(cpu, self._region(cpu.index), REGION_PAGES)
                try:
                    if len(left) > rng.randrange(MAX_LEFT):
                        await attacker.to_the_end(left.pop(0), limit=64)
                    outcome = await ATTACKS[name].body(attacker, rng)
                    if outcome is not None and outcome.is_rpc:
                        left.append(outcome)
                except MemoryError:
                    # The attacker's pages are used up; the next attack gets them again.
                    self.outcomes["out of pages"] += 1
                for answer in attacker.outcomes:
                    self.outcomes[_status(answer)] += 1
                self.done += 1

    async def _race(self, cpu: GuestCpu) -> None:
        """Change the memory of the others' messages and lists while they are looked at."""
        rng = Random(self._seed + cpu.index)
        while self._running:
            place = self._region(0) + rng.randrange(REGION_PAGES) * PAGE_SIZE
            at = place + rng.choice((0, 20, 28, 32, 40, 48, 56, 64, 72, 4088))
            await perform(cpu, Store(at, rng.choice((b"\xff", bytes(8), rng.randbytes(8)))))
            cpu.set_timer(cpu.now() + RACE_PAUSE)
            await cpu.wfi()
            intid = cpu.acknowledge()
            cpu.set_timer(None)
            if intid is not None:
                cpu.end_of_interrupt(intid)


def _status(outcome: Outcome) -> str:
    if outcome.regs is None:
        return outcome.kind
    if outcome.is_rpc:
        return "RPC"
    if names.STATUS.full(outcome.status) is None:
        return "a value"
    return names.STATUS.short(outcome.status)
