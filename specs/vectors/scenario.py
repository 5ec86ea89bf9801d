# SPDX-License-Identifier: BSD-2-Clause
"""A behaviour scenario as typed, frozen values. How a file says it: :mod:`specs.vectors.reader`."""

from __future__ import annotations

from attrs import frozen

from specs.target import GuestSpec, PageKind, PhysicalMap, Registers


@frozen
class Symbol:
    """An address by name: a mediator page (``name``), a guest page, or one given back.

    ``part``: ``"hi"`` or ``"lo"`` half in a register, ``""`` the whole address.
    """

    text: str
    part: str = ""
    name: str = ""
    guest: int | None = None
    ipa: int = 0
    offset: int = 0

    @property
    def stale(self) -> bool:
        """Whether it stands for a page that the mediator no longer owns."""
        return not self.name and self.guest is None


Word = int | Symbol
"""An expected 64-bit word."""


@frozen
class ExpectedParam:
    """One parameter of a message; ``pages``: the guest pages that its list names, None if no list."""

    attr: int
    words: tuple[Word, ...]
    pages: tuple[tuple[int, int], ...] | None = None


@frozen
class ExpectedMessage:
    """A message as the secure world sees it. ``header``: field name and value, in wire order."""

    at: Symbol
    header: tuple[tuple[str, int], ...]
    params: tuple[ExpectedParam, ...]


@frozen
class GuestWrite:
    """Bytes that a processor of a guest writes."""

    guest: int
    ipa: int
    data: bytes


@frozen
class RemapStep:
    """Stage 2 of a guest changes."""

    guest: int
    ipa: int
    pages: int
    kind: PageKind


@frozen
class SecureCall:
    """One expected entry into the secure world and what the secure world does then."""

    regs: tuple[Word, ...]
    message: ExpectedMessage | None
    rpc_message: ExpectedMessage | None
    writes: tuple[tuple[Symbol, int, bytes], ...]
    guest_writes: tuple[GuestWrite, ...]
    meanwhile: tuple[RemapStep | CallStep, ...]
    reply: tuple[Word, ...]

    def symbols(self) -> list[Symbol]:
        """All symbols of this call in the order in which the secure world sees them."""
        found = [word for word in self.regs if isinstance(word, Symbol)]
        for message in (self.message, self.rpc_message):
            if message is not None:
                found.append(message.at)
                for param in message.params:
                    found += [word for word in param.words if isinstance(word, Symbol)]
        found += [page for page, _, _ in self.writes]
        found += [word for word in self.reply if isinstance(word, Symbol)]
        return found


@frozen
class Aftermath:
    """What holds after a step: changed words of guest memory and pins, both by (guest, IPA)."""

    memory: dict[tuple[int, int], bytes]
    pins: dict[tuple[int, int], int] | None


@frozen
class CallStep:
    """A guest's SMC or HVC. ``out`` None: not compared because another handler took the call."""

    guest: int
    hvc: bool
    aarch32: bool
    immediate: int
    regs: Registers
    calls: tuple[SecureCall, ...]
    out: tuple[int, ...] | None
    undefined: bool
    handled_by: str | None
    race_after: int | None = None
    race_writes: tuple[GuestWrite, ...] = ()
    fail_alloc: int | None = None
    after: Aftermath | None = None


@frozen
class ProbeStep:
    """The mediator looks for the secure world."""

    present: bool
    calls: tuple[SecureCall, ...]
    found: bool
    after: Aftermath


@frozen
class CreateStep:
    """A guest is created, with or without the TEE."""

    guest: int
    tee: bool
    calls: tuple[SecureCall, ...]
    ok: bool
    after: Aftermath


@frozen
class DestroyStep:
    """A guest's teardown is entered. ``preempt``: answers to "should I stop here?"."""

    guest: int
    preempt: tuple[bool, ...]
    calls: tuple[SecureCall, ...]
    done: bool
    after: Aftermath


@frozen
class WriteStep:
    """A guest writes its memory."""

    writes: tuple[GuestWrite, ...]


Step = ProbeStep | CreateStep | WriteStep | RemapStep | CallStep | DestroyStep


@frozen
class Scenario:
    """One scenario; ``line`` is its line in the file."""

    name: str
    category: str
    title: str
    kind: str
    quirk: str
    note: str
    threads: int | None
    max_buffer_pages: int | None
    guests: tuple[GuestSpec, ...]
    steps: tuple[Step, ...]
    physical: PhysicalMap
    line: int
