# SPDX-License-Identifier: BSD-2-Clause
"""The turns of a session, numbered: what each is about, in which state, and which of them go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final, NamedTuple

from fuzz.containment.faults import FAULTS, Fault
from fuzz.containment.local import LocalLink
from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER
from mediator.optee import events
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc

ENTRIES: Final = {
    value: name.removeprefix("ENTRY_").lower().replace("_", " ")
    for name, value in vars(abi).items()
    if name.startswith("ENTRY_") and isinstance(value, int)
}
"""Names of entries by number."""

_GUEST_ENTRIES: Final = frozenset(
    (abi.ENTRY_GUEST_CREATED, abi.ENTRY_GUEST_DESTROYED, abi.ENTRY_HANDLE_SMC)
)
_RPCS: Final = {
    smc.OPTEE_SMC_RETURN_RPC_ALLOC & 0xFFFF: "ALLOC",
    smc.OPTEE_SMC_RETURN_RPC_FREE & 0xFFFF: "FREE",
    smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR & 0xFFFF: "foreign interrupt",
}


class Turn(NamedTuple):
    """One turn. ``call``: the system call that it ended with; ``guest``: whom the entry serves, -1 for
    all; ``open``: entries that the app has open; ``suspended``: kinds of RPC that calls of any guest
    are suspended in.
    """

    number: int
    app: int
    entry: str
    call: str
    guest: int
    open: int
    suspended: tuple[str, ...]


class Calls:
    """Which calls are suspended, from the events of the mediator."""

    def __init__(self) -> None:
        self._inside: dict[tuple[int, int], str] = {}

    def __call__(self, event: tuple[object, ...]) -> None:
        """A sink."""
        if isinstance(event, events.RpcToGuest):
            kind = _RPCS.get(event.function & 0xFFFF)
            if kind is None:
                notified = event.command == rpc.OPTEE_RPC_CMD_NOTIFICATION
                kind = "NOTIFICATION" if notified else "CMD"
            self._inside[event.guest, event.call] = kind
        elif isinstance(event, events.WaitBegan) and event.held:
            self._inside[event.guest, event.call] = "held wait"
        elif isinstance(event, (events.RpcAnswered, events.CallEnded)):
            self._inside.pop((event.guest, event.call), None)
        elif isinstance(event, events.GuestTornDown):
            for key in [key for key in self._inside if key[0] == event.guest]:
                del self._inside[key]

    def kinds(self) -> tuple[str, ...]:
        """Kinds of RPC, sorted."""
        return tuple(sorted(set(self._inside.values())))


class Turns:
    """Implements :class:`~fuzz.containment.local.Interference`.

    ``faults``: name by number of the turn. ``record``: keep all of them in ``seen``. ``told``: those
    that went wrong; ``struck``: the faults themselves.
    """

    def __init__(self, faults: Mapping[int, str], seed: int = 0, *, record: bool = False) -> None:
        self._faults = faults
        self._rng = Random(seed)
        self._record = record
        self.calls = Calls()
        self.turns = 0
        self.seen: list[Turn] = []
        self.told: list[Turn] = []
        self.struck: list[Fault] = []
        self._guests: dict[tuple[int, int], int] = {}

    def turn(self, link: LocalLink, message: bytes) -> bytes:
        """See :class:`~fuzz.containment.local.Interference`."""
        number = self.turns
        self.turns += 1
        kind, what, _, entry, _, _, first, *_ = HEADER.unpack_from(message)
        if kind == abi.ENTRY:
            self._guests[link.number, entry] = first if what in _GUEST_ENTRIES else -1
        name = self._faults.get(number)
        if name is None and not self._record:
            return link.say(message)
        suspended, entries = self.calls.kinds(), len(link.entries)
        about = ENTRIES.get(link.entries.get(entry, 0), "")
        guest = self._guests.get((link.number, entry), -1)
        if name is not None:
            self.told.append(Turn(number, link.number, about, "", guest, entries, suspended))
            self.struck.append(FAULTS[name])
            return FAULTS[name].act(link, message, self._rng)
        said = link.say(message)
        call = Syscall(HEADER.unpack_from(said, _final_at(said))[1]).name
        self.seen.append(Turn(number, link.number, about, call, guest, entries, suspended))
        return said


def _final_at(said: bytes) -> int:
    at = 0
    while True:
        end = at + abi.HEADER_SIZE + HEADER.unpack_from(said, at)[4]
        if end >= len(said):
            return at
        at = end
