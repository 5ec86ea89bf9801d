# SPDX-License-Identifier: BSD-2-Clause
"""What can become of one turn of an app: it dies, is silent, breaks the protocol, or lies.

A *fatal* fault ends the app, whatever the turn was about. A *lie* is a turn that the protocol allows:
what comes of it depends on what was lied about, and the app may live on, perhaps confused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Final

import attrs

from fuzz.containment.local import ENDED, LocalLink
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER, HEADER_SIZE, REGISTERS
from mediator.deployment.el0_app.channel import AppGone
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_smc as smc

M64: Final = (1 << 64) - 1
STATUS: Final = 5
ARGS: Final = 6
"""Fields of an unpacked header."""
RESERVED: Final = 14

Act = Callable[[LocalLink, bytes, Random], bytes]


@attrs.frozen
class Fault:
    """``act``: what the hypervisor hears instead. ``fatal``: the app is gone after it. ``misled``: the
    app itself was told something false, so nothing that it says later can be trusted. ``wants``:
    system calls that it makes sense for, empty: any turn.
    """

    name: str
    act: Act = attrs.field(repr=False)
    fatal: bool = False
    misled: bool = False
    wants: frozenset[int] = frozenset()


def messages(said: bytes) -> list[bytes]:
    """A turn as its messages."""
    found: list[bytes] = []
    at = 0
    while at < len(said):
        end = at + HEADER_SIZE + HEADER.unpack_from(said, at)[4]
        found.append(said[at:end])
        at = end
    return found


def changed(
    message: bytes, fields: Mapping[str, int] | None = None, payload: bytes | None = None
) -> bytes:
    """A message with some fields of its header changed (``kind``, ``number``, ``flags``, ``entry``,
    ``status``, ``a0``..``a7``, ``reserved``), and another payload."""
    header = list(HEADER.unpack_from(message))
    data = message[HEADER_SIZE:] if payload is None else payload
    header[4] = len(data)
    for name, value in (fields or {}).items():
        header[_FIELDS[name]] = value
    return HEADER.pack(*header) + data


_FIELDS: Final = {
    "kind": 0,
    "number": 1,
    "flags": 2,
    "entry": 3,
    "length": 4,
    "status": STATUS,
    "reserved": RESERVED,
    **{f"a{index}": ARGS + index for index in range(8)},
}


def _last(said: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The turn with another last message."""
    *posted, final = messages(said)
    return b"".join([*posted, change(final)])


# --- the end of the app ---------------------------------------------------------------------------


def _dead_before(link: LocalLink, message: bytes, rng: Random) -> bytes:
    raise AppGone(ENDED)


def _dead_after(link: LocalLink, message: bytes, rng: Random) -> bytes:
    link.say(message)
    raise AppGone(ENDED)


def _silent(link: LocalLink, message: bytes, rng: Random) -> bytes:
    raise AppGone("silence: nothing for 5000 ms")


def _cut_short(link: LocalLink, message: bytes, rng: Random) -> bytes:
    said = link.say(message)
    return said[: rng.randrange(1, len(said))]


def _panic(link: LocalLink, message: bytes, rng: Random) -> bytes:
    entry = HEADER.unpack_from(message)[3]
    words = (0,) * 8
    return HEADER.pack(abi.SYSCALL, int(Syscall.PANIC), 0, entry, 5, 0, *words, 0) + b"panic"


# --- what no app may say --------------------------------------------------------------------------


def _header(**fields: int) -> Act:
    def act(link: LocalLink, message: bytes, rng: Random) -> bytes:
        return _last(link.say(message), lambda final: changed(final, fields))

    return act


def _wrong_entry(link: LocalLink, message: bytes, rng: Random) -> bytes:
    """The name of an entry that is open, if there is another one; else of none."""
    mine = HEADER.unpack_from(message)[3]
    said = link.say(message)
    others = [name for name in link.entries if name != mine] or [mine ^ 0x100]
    return _last(said, lambda final: changed(final, {"entry": others[rng.randrange(len(others))]}))


def _rubbish(link: LocalLink, message: bytes, rng: Random) -> bytes:
    link.say(message)
    return b"\xa5" + rng.randbytes(HEADER_SIZE * 2)


def _out_of_turn(link: LocalLink, message: bytes, rng: Random) -> bytes:
    said = link.say(message)
    return said + messages(said)[-1]


def _unknown_outcome(link: LocalLink, message: bytes, rng: Random) -> bytes:
    return _last(link.say(message), lambda final: _returned(final, 77))


def _unasked_stop(link: LocalLink, message: bytes, rng: Random) -> bytes:
    """PREEMPTED where that is an outcome is a lie; elsewhere it is none that there is."""
    return _last(link.say(message), lambda final: _returned(final, abi.OUTCOME_FAILED))


def _endless_post(link: LocalLink, message: bytes, rng: Random) -> bytes:
    said = link.say(message)
    entry = HEADER.unpack_from(message)[3]
    words = (abi.NO_GUEST, *(0,) * 7)
    post = HEADER.pack(abi.SYSCALL, int(Syscall.LOG), abi.FLAG_POSTED, entry, 0, 0, *words, 0)
    return post * (abi.MAX_POSTED + 1) + said


def _refused_for_ever(link: LocalLink, message: bytes, rng: Random) -> bytes:
    said = link.say(message)
    entry = HEADER.unpack_from(message)[3]
    post = HEADER.pack(abi.SYSCALL, 0x7FF, abi.FLAG_POSTED, entry, 0, 0, *(0,) * 8, 0)
    return post * (abi.MAX_REFUSALS + 1) + said


# --- lies -----------------------------------------------------------------------------------------


def _returned(final: bytes, outcome: int, registers: tuple[int, ...] = (0,) * 8) -> bytes:
    words = {f"a{index}": value for index, value in enumerate(registers)}
    return changed(final, {"number": 0, "flags": 0, "status": outcome, **words}, b"")


def _return(outcome: int, *x0: int) -> Act:
    def act(link: LocalLink, message: bytes, rng: Random) -> bytes:
        registers = (rng.choice(x0) if x0 else 0, *[rng.getrandbits(40) for _ in range(7)])
        return _last(link.say(message), lambda final: _returned(final, outcome, registers))

    return act


def _lost_posts(link: LocalLink, message: bytes, rng: Random) -> bytes:
    return messages(link.say(message))[-1]


def _double_posts(link: LocalLink, message: bytes, rng: Random) -> bytes:
    *posted, final = messages(link.say(message))
    return b"".join([*posted, *posted, final])


def _another_call(link: LocalLink, message: bytes, rng: Random) -> bytes:
    """Some other system call with the same arguments."""
    number = rng.choice([int(call) for call in Syscall if int(call) > 2])
    return _last(link.say(message), lambda final: changed(final, {"number": number}))


def _unknown_call(link: LocalLink, message: bytes, rng: Random) -> bytes:
    return _last(link.say(message), lambda final: changed(final, {"number": 0x3FF}))


def _another_guest(link: LocalLink, message: bytes, rng: Random) -> bytes:
    guest = rng.randrange(4)
    return _last(link.say(message), lambda final: changed(final, {"a0": guest}))


def _wild_arguments(link: LocalLink, message: bytes, rng: Random) -> bytes:
    which = rng.randrange(8)
    value = rng.choice((0, 1, 0xFFF, 1 << 12, 1 << 31, M64, rng.getrandbits(64)))
    return _last(link.say(message), lambda final: changed(final, {f"a{which}": value}))


def _wild_payload(link: LocalLink, message: bytes, rng: Random) -> bytes:
    def wild(final: bytes) -> bytes:
        data = bytearray(final[HEADER_SIZE:])
        what = rng.randrange(3)
        if what == 0:
            return changed(final, None, rng.randbytes(rng.choice((1, 8, 64, 4096))))
        if what == 1:
            return changed(final, None, bytes(data[: len(data) // 2]))
        for _ in range(8):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return changed(final, None, bytes(data))

    return _last(link.say(message), wild)


def _wild_posts(link: LocalLink, message: bytes, rng: Random) -> bytes:
    """What it posts is about other pages."""
    *posted, final = messages(link.say(message))
    wild = [changed(one, {f"a{rng.randrange(4)}": rng.getrandbits(40)}) for one in posted]
    return b"".join([*wild, final])


def _end_of(own: bool) -> Act:
    def act(link: LocalLink, message: bytes, rng: Random) -> bytes:
        """VM_DESTROYED, as the hypervisor would say it."""

        def call(final: bytes) -> bytes:
            client = HEADER.unpack_from(final)[ARGS + 7]
            other = client if own else client % 3 + 1
            words = {"a0": smc.OPTEE_SMC_VM_DESTROYED, "a1": other, "a2": 0, "a3": 0}
            return changed(final, {**words, "a7": client if own else 0})

        return _last(link.say(message), call)

    return act


def _another_client(link: LocalLink, message: bytes, rng: Random) -> bytes:
    client = rng.choice((0, 1, 2, 3, 4, 77, 0xFFFF))
    return _last(link.say(message), lambda final: changed(final, {"a7": client}))


def _another_function(link: LocalLink, message: bytes, rng: Random) -> bytes:
    function = rng.choice(_FUNCTIONS)
    return _last(link.say(message), lambda final: changed(final, {"a0": function}))


_FUNCTIONS: Final = (
    smc.OPTEE_SMC_CALL_WITH_ARG,
    smc.OPTEE_SMC_CALL_RETURN_FROM_RPC,
    smc.OPTEE_SMC_VM_CREATED,
    smc.OPTEE_SMC_DISABLE_SHM_CACHE,
    smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF,
    0x8400_0008,
)


def _misheard(link: LocalLink, message: bytes, rng: Random) -> bytes:
    """A word of what the app is told is another one."""
    header = list(HEADER.unpack_from(message))
    at = rng.randrange(STATUS, RESERVED)
    header[at] = (0, 1, -6)[rng.randrange(3)] if at == STATUS else rng.getrandbits(48)
    return link.say(HEADER.pack(*header) + message[HEADER_SIZE:])


def _misread(link: LocalLink, message: bytes, rng: Random) -> bytes:
    """What comes with it has some bits changed."""
    data = bytearray(message[HEADER_SIZE:])
    if len(data) == REGISTERS.size:
        data[8 * rng.randrange(8) + rng.randrange(8)] ^= 1 << rng.randrange(8)
    for _ in range(4):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return link.say(message[:HEADER_SIZE] + bytes(data))


_SMC: Final = frozenset((int(Syscall.SMC),))
_RPC: Final = (
    smc.OPTEE_SMC_RETURN_RPC_ALLOC,
    smc.OPTEE_SMC_RETURN_RPC_CMD,
    smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR,
    smc.OPTEE_SMC_RETURN_RPC_FREE,
)

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        fault.name: fault
        for fault in (
            Fault("death before", _dead_before, fatal=True),
            Fault("death after", _dead_after, fatal=True),
            Fault("silence", _silent, fatal=True),
            Fault("cut short", _cut_short, fatal=True),
            Fault("panic", _panic, fatal=True),
            Fault("kind", _header(kind=9), fatal=True),
            Fault("flags", _header(flags=0x40), fatal=True),
            Fault("posted only", _header(flags=abi.FLAG_POSTED), fatal=True),
            Fault("reserved word", _header(reserved=1), fatal=True),
            Fault("huge payload", _header(length=abi.MAX_PAYLOAD + 1), fatal=True),
            Fault("wrong entry", _wrong_entry, fatal=True),
            Fault("rubbish", _rubbish, fatal=True),
            Fault("out of turn", _out_of_turn, fatal=True),
            Fault("unknown outcome", _unknown_outcome, fatal=True),
            Fault("failed without a failure", _unasked_stop, fatal=True),
            Fault("endless posts", _endless_post, fatal=True),
            Fault("refused for ever", _refused_for_ever, fatal=True),
            Fault("lie: done", _return(abi.OUTCOME_DONE, 0)),
            Fault("lie: an RPC", _return(abi.OUTCOME_DONE, *_RPC)),
            Fault("lie: an error", _return(abi.OUTCOME_DONE, 1, 2, 4, 9, 10, 0xFFFF_FFFF)),
            Fault("lie: not mine", _return(abi.OUTCOME_NOT_MINE)),
            Fault("lie: refused", _return(abi.OUTCOME_REFUSED)),
            Fault("lie: stopped", _return(abi.OUTCOME_PREEMPTED)),
            Fault("posts lost", _lost_posts),
            Fault("posts twice", _double_posts),
            Fault("posts about others", _wild_posts),
            Fault("another system call", _another_call),
            Fault("unknown system call", _unknown_call),
            Fault("another guest", _another_guest),
            Fault("wild arguments", _wild_arguments),
            Fault("wild payload", _wild_payload),
            Fault("own partition ended", _end_of(True), wants=_SMC),
            Fault("another partition ended", _end_of(False), wants=_SMC),
            Fault("another client", _another_client, wants=_SMC),
            Fault("another function", _another_function, wants=_SMC),
            Fault("misheard", _misheard, misled=True),
            Fault("misread", _misread, misled=True),
        )
    }
)
"""All faults by name."""
