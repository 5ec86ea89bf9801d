# SPDX-License-Identifier: BSD-2-Clause
"""Reads behaviour scenarios.

Every field of the format has its place here; a field that is missing, unknown or of the wrong type
is an :class:`~specs.vectors.errors.InputError`. ``acct`` and ``preempt_checks`` are checked for
their type only: they are counters of the recorded implementation, not part of the ABI.
"""

from __future__ import annotations

import re
from typing import Final

from specs.target import PAGE_SIZE, GuestSpec, PageKind, PhysicalMap, Region, Registers
from specs.vectors.scenario import (
    Aftermath,
    CallStep,
    CreateStep,
    DestroyStep,
    ExpectedMessage,
    ExpectedParam,
    GuestWrite,
    ProbeStep,
    RemapStep,
    Scenario,
    SecureCall,
    Step,
    Symbol,
    Word,
    WriteStep,
)
from specs.vectors.source import Value, hex_value, shown

MAX_PAGES: Final = 1 << 18
"""Pages of all maps of a scenario (1 GiB), or of one buffer; more in a file is a mistake."""

MAX_GUEST: Final = (1 << 16) - 2
"""Largest guest number: client ids are one more and 16 bits wide in OP-TEE."""

MAX_DEPTH: Final = 8
"""Processors that may trap inside each other's secure-world calls."""

_SYMBOL = re.compile(
    r"(?:(hi|lo):)?(?:(m)(0|[1-9][0-9]{0,5})|g([1-9][0-9]{0,5}|0)?:(0x[0-9a-f]+)|(stale))"
    r"(?:\+(0x[0-9a-f]+))?"
)


def read_scenario(value: Value) -> Scenario:
    """The scenario in one JSON line."""
    fields = value.fields(
        ("id", "cat", "title", "kind", "domains", "steps"),
        ("quirk", "note", "threads", "limits"),
    )
    kind = fields["kind"].text(("abi", "quirk"))
    if (kind == "quirk") != ("quirk" in fields):
        value.at("quirk").fail("is there exactly with kind quirk")
    guests = tuple(_guest(item) for item in fields["domains"].items())
    if len({guest.number for guest in guests}) != len(guests):
        fields["domains"].fail("two guests with one id")
    if sum(region.pages for guest in guests for region in guest.regions) > MAX_PAGES:
        fields["domains"].fail(f"more than {MAX_PAGES} pages in all maps")
    limits = fields["limits"].fields((), ("max_buf_pages",)) if "limits" in fields else {}
    physical = PhysicalMap.of(guests)
    reader = _Reader(physical)
    steps = tuple(reader.step(item) for item in fields["steps"].items())
    return Scenario(
        name=fields["id"].text(),
        category=fields["cat"].text(),
        title=fields["title"].text(),
        kind=kind,
        quirk=fields["quirk"].text() if "quirk" in fields else "",
        note=fields["note"].text() if "note" in fields else "",
        threads=fields["threads"].integer(0, (1 << 32) - 1) if "threads" in fields else None,
        max_buffer_pages=(
            limits["max_buf_pages"].integer(1, MAX_PAGES) if "max_buf_pages" in limits else None
        ),
        guests=guests,
        steps=steps,
        physical=physical,
        line=value.line,
    )


def _guest(value: Value) -> GuestSpec:
    fields = value.fields(("id", "bits", "map"))
    bits = fields["bits"].integer(32, 64)
    if bits not in (32, 64):
        fields["bits"].fail("must be 32 or 64")
    regions = tuple(_region(item) for item in fields["map"].items())
    taken: set[int] = set()
    for index, region in enumerate(regions):
        if len(taken) > MAX_PAGES:
            fields["map"].fail(f"more than {MAX_PAGES} pages")
        pages = range(region.ipa, region.ipa + region.pages * PAGE_SIZE, PAGE_SIZE)
        if not taken.isdisjoint(pages):
            fields["map"].items()[index].fail("overlaps an earlier entry")
        taken.update(pages)
    return GuestSpec(fields["id"].integer(0, MAX_GUEST), bits, regions)


def _region(value: Value) -> Region:
    fields = value.fields(("ipa", "pages", "kind"), ("pa", "pa_step"))
    kind = PageKind(fields["kind"].text([kind.value for kind in PageKind if kind != "absent"]))
    if (kind is PageKind.MMIO) == ("pa" in fields):
        value.at("pa").fail("is there for memory, and not for mmio")
    ipa = _page(fields["ipa"])
    pages = fields["pages"].integer(1, MAX_PAGES)
    if "pa" not in fields:
        return Region(ipa, pages, kind)
    pa = _page(fields["pa"])
    step = fields["pa_step"].integer(0, 1 << 40) if "pa_step" in fields else PAGE_SIZE
    if step % PAGE_SIZE:
        fields["pa_step"].fail("must be a multiple of 4096")
    return Region(ipa, pages, kind, pa, step)


def _page(value: Value) -> int:
    address = value.hex()
    if address % PAGE_SIZE:
        value.fail("must be a multiple of 0x1000")
    return address


def _word(value: Value) -> Word:
    number = hex_value(value.raw) if isinstance(value.raw, str) else None
    return number if number is not None else _symbol(value)


def _symbol(value: Value) -> Symbol:
    text = value.text()
    match = _SYMBOL.fullmatch(text)
    if match is None:
        value.fail(f"must be a number like 0x1f or a symbol like m0 or g:0x1000, not {shown(text)}")
    part, mediator, number, guest, ipa, _, offset = match.groups()
    address = _canonical(value, ipa) if ipa else 0
    return Symbol(
        text,
        part or "",
        f"m{number}" if mediator else "",
        None if not ipa else int(guest) if guest else -1,
        address,
        _canonical(value, offset) if offset else 0,
    )


def _canonical(value: Value, text: str) -> int:
    number = hex_value(text)
    if number is None:
        value.fail(f"{shown(text)} is no canonical hexadecimal number")
    return number


class _Reader:
    """Reads steps; knows the guests of the scenario, so that every address can be checked."""

    def __init__(self, physical: PhysicalMap) -> None:
        self._physical = physical

    def step(self, value: Value) -> Step:
        match value.at("op").text(("probe", "create", "write", "remap", "smc", "destroy")):
            case "probe":
                fields = value.fields(
                    ("op", "device_tree_node", "found"), ("sw", "mem", "pins", "acct")
                )
                return ProbeStep(
                    fields["device_tree_node"].boolean(),
                    self._calls(fields),
                    fields["found"].boolean(),
                    self._after(fields),
                )
            case "create":
                fields = value.fields(("op", "dom", "tee", "ok", "pins"), ("sw", "mem", "acct"))
                guest = self._number(fields)
                return CreateStep(
                    guest,
                    fields["tee"].boolean(),
                    self._calls(fields, guest),
                    fields["ok"].boolean(),
                    self._after(fields),
                )
            case "write":
                fields = value.fields(("op", "dom", "at"))
                return WriteStep(self._writes(fields["at"], self._number(fields)))
            case "remap":
                fields = value.fields(("op", "dom", "ipa", "pages", "kind"))
                return self._remap(fields, self._number(fields))
            case "smc":
                return self._call(value)
            case _:
                return self._destroy(value)

    def _destroy(self, value: Value) -> DestroyStep:
        fields = value.fields(
            ("op", "dom", "done", "pins"), ("sw", "preempt", "preempt_checks", "mem", "acct")
        )
        if "preempt_checks" in fields:
            fields["preempt_checks"].integer()
        guest = self._number(fields)
        answers = fields["preempt"].items() if "preempt" in fields else []
        return DestroyStep(
            guest,
            tuple(item.boolean() for item in answers),
            self._calls(fields, guest),
            fields["done"].boolean(),
            self._after(fields),
        )

    def _call(self, value: Value) -> CallStep:
        fields = value.fields(
            ("op", "dom", "via", "regs", "pins"),
            ("imm", "race", "fail_alloc", "sw", "out", "mem", "undef", "handled_by", "acct"),
        )
        guest = self._number(fields)
        hvc, aarch32 = _conduit(fields["via"])
        race_after: int | None = None
        race_writes: tuple[GuestWrite, ...] = ()
        if "race" in fields:
            race = fields["race"].fields(("after_fetch", "writes"))
            race_after = race["after_fetch"].integer(1, MAX_PAGES)
            race_writes = self._writes(race["writes"], guest)
        handled_by = fields["handled_by"].text(("psci",)) if "handled_by" in fields else None
        if (handled_by is None) != ("out" in fields):
            value.at("out").fail("is there exactly when the call is answered")
        return CallStep(
            guest,
            hvc,
            aarch32,
            fields["imm"].integer(0, 0xFFFF) if "imm" in fields else 0,
            _registers(fields["regs"]),
            self._calls(fields, guest, hvc, aarch32),
            _registers(fields["out"]) if "out" in fields else None,
            fields["undef"].boolean() if "undef" in fields else False,
            handled_by,
            race_after,
            race_writes,
            fields["fail_alloc"].integer() if "fail_alloc" in fields else None,
            self._after(fields),
        )

    def _nested(
        self, value: Value, guest: int | None, hvc: bool, aarch32: bool, depth: int
    ) -> RemapStep | CallStep:
        fields = value.fields((), ("smc", "remap"))
        if len(fields) != 1:
            value.fail("must be one of smc and remap")
        if "remap" in fields:
            inner = fields["remap"].fields(("ipa", "pages", "kind"), ("dom", "op"))
            return self._remap(inner, self._number(inner, guest))
        inner = fields["smc"].fields(
            ("regs",), ("op", "dom", "via", "imm", "sw", "out", "undef", "handled_by")
        )
        if depth >= MAX_DEPTH:
            fields["smc"].fail("nested too deeply")
        number = self._number(inner, guest)
        if "via" in inner:
            hvc, aarch32 = _conduit(inner["via"])
        handled_by = inner["handled_by"].text(("psci",)) if "handled_by" in inner else None
        if (handled_by is None) != ("out" in inner):
            fields["smc"].at("out").fail("is there exactly when the call is answered")
        return CallStep(
            number,
            hvc,
            aarch32,
            inner["imm"].integer(0, 0xFFFF) if "imm" in inner else 0,
            _registers(inner["regs"]),
            self._calls(inner, number, hvc, aarch32, depth + 1),
            _registers(inner["out"]) if "out" in inner else None,
            inner["undef"].boolean() if "undef" in inner else False,
            handled_by,
        )

    def _calls(
        self,
        fields: dict[str, Value],
        guest: int | None = None,
        hvc: bool = False,
        aarch32: bool = False,
        depth: int = 0,
    ) -> tuple[SecureCall, ...]:
        if "sw" not in fields:
            return ()
        return tuple(
            self._secure_call(item, guest, hvc, aarch32, depth) for item in fields["sw"].items()
        )

    def _secure_call(
        self, value: Value, guest: int | None, hvc: bool, aarch32: bool, depth: int
    ) -> SecureCall:
        fields = value.fields(
            ("regs", "reply"), ("msg", "rpc_msg", "writes", "guest_writes", "meanwhile")
        )
        registers = tuple(_word(item) for item in fields["regs"].items(8))
        for index, word in enumerate(registers):
            _check_half(registers, index, word, fields["regs"])
        writes = []
        for item in fields["writes"].items() if "writes" in fields else []:
            page, offset, data = item.items(3)
            place = offset.integer(0, PAGE_SIZE - 1)
            content = data.data()
            if place + len(content) > PAGE_SIZE:
                data.fail("reaches beyond the page")
            writes.append((self._placed(page), place, content))
        meanwhile = fields["meanwhile"].items() if "meanwhile" in fields else []
        return SecureCall(
            registers,
            self._message(fields["msg"]) if "msg" in fields else None,
            self._message(fields["rpc_msg"]) if "rpc_msg" in fields else None,
            tuple(writes),
            self._writes(fields["guest_writes"], guest) if "guest_writes" in fields else (),
            tuple(self._nested(item, guest, hvc, aarch32, depth) for item in meanwhile),
            tuple(_word(item) for item in fields["reply"].items(4)),
        )

    def _message(self, value: Value) -> ExpectedMessage:
        fields = value.fields(
            (
                "at",
                "cmd",
                "func",
                "session",
                "cancel_id",
                "ret",
                "ret_origin",
                "num_params",
                "params",
            )
        )
        limit = (1 << 32) - 1
        header = tuple(
            (name, fields[name].hex(32) if name == "ret" else fields[name].integer(0, limit))
            for name in ("cmd", "func", "session", "cancel_id", "ret", "ret_origin", "num_params")
        )
        return ExpectedMessage(
            self._placed(fields["at"]),
            header,
            tuple(self._param(item) for item in fields["params"].items()),
        )

    def _param(self, value: Value) -> ExpectedParam:
        fields = value.fields(("attr", "v"), ("pages",))
        words = tuple(_word(item) for item in fields["v"].items(3))
        if "pages" not in fields:
            return ExpectedParam(fields["attr"].hex(), words)
        pages: list[tuple[int, int]] = []
        for run in fields["pages"].items():
            parts = run.items((2, 3))
            guest = self._guest_number(parts[2]) if len(parts) == 3 else self._only(run)
            first = _page(parts[0])
            for index in range(parts[1].integer(1, MAX_PAGES)):
                pages.append((guest, first + index * PAGE_SIZE))
        for page in pages:
            if page not in self._physical.pa_of:
                fields["pages"].fail(f"no memory of guest {page[0]} at {page[1]:#x}")
        return ExpectedParam(fields["attr"].hex(), words, tuple(pages))

    def _placed(self, value: Value) -> Symbol:
        symbol = _symbol(value)
        if symbol.part or symbol.offset or symbol.ipa % PAGE_SIZE:
            value.fail("must name a page")
        if symbol.guest is not None:
            guest = self._only(value) if symbol.guest < 0 else symbol.guest
            if self._physical.translate(guest, symbol.ipa) is None:
                value.fail("no memory there in the map")
        return symbol

    def _writes(self, value: Value, default: int | None) -> tuple[GuestWrite, ...]:
        result = []
        for item in value.items():
            parts = item.items((2, 3))
            guest = self._guest_number(parts[2]) if len(parts) == 3 else default
            if guest is None:
                guest = self._only(item)
            ipa, data = parts[0].hex(), parts[1].data()
            for address in range(ipa & -PAGE_SIZE, ipa + len(data), PAGE_SIZE):
                if (guest, address) not in self._physical.pa_of:
                    item.fail(f"no memory of guest {guest} at {address:#x}")
            result.append(GuestWrite(guest, ipa, data))
        return tuple(result)

    def _remap(self, fields: dict[str, Value], guest: int) -> RemapStep:
        ipa, pages = _page(fields["ipa"]), fields["pages"].integer(1, MAX_PAGES)
        kind = PageKind(fields["kind"].text([kind.value for kind in PageKind]))
        return RemapStep(guest, ipa, pages, kind)

    def _after(self, fields: dict[str, Value]) -> Aftermath:
        memory: dict[tuple[int, int], bytes] = {}
        for item in fields["mem"].items() if "mem" in fields else []:
            parts = item.items((2, 3))
            guest = self._guest_number(parts[2]) if len(parts) == 3 else self._only(item)
            ipa, data = parts[0].hex(), parts[1].data()
            if ipa % 4 or len(data) % 4 or not data:
                item.fail("must be whole 32-bit words")
            for offset in range(0, len(data), 4):
                key = (guest, ipa + offset)
                if key in memory:
                    item.fail(f"{key[1]:#x} twice")
                if self._physical.translate(*key) is None:
                    item.fail(f"no memory of guest {guest} at {key[1]:#x}")
                memory[key] = data[offset : offset + 4]
        if "acct" in fields:
            for counters in fields["acct"].members().values():
                for counter in counters.members().values():
                    counter.integer()
        return Aftermath(memory, self._pins(fields["pins"]) if "pins" in fields else None)

    def _pins(self, value: Value) -> dict[tuple[int, int], int]:
        pins: dict[tuple[int, int], int] = {}
        for name, runs in value.members().items():
            if not name.isascii() or not name.isdigit() or int(name) not in self._physical.guests:
                runs.fail("no guest of the scenario")
            for run in runs.items():
                first, pages, count = run.items(3)
                ipa, references = _page(first), count.integer(1, (1 << 32) - 1)
                for index in range(pages.integer(1, MAX_PAGES)):
                    key = (int(name), ipa + index * PAGE_SIZE)
                    if key in pins:
                        run.fail(f"{key[1]:#x} twice")
                    if key not in self._physical.pa_of:
                        run.fail(f"no memory of guest {key[0]} at {key[1]:#x}")
                    pins[key] = references
        return pins

    def _number(self, fields: dict[str, Value], default: int | None = None) -> int:
        if "dom" in fields:
            return self._guest_number(fields["dom"])
        if default is None:
            if len(self._physical.guests) != 1:
                next(iter(fields.values())).fail("the guest (dom) is missing")
            return self._physical.guests[0]
        return default

    def _guest_number(self, value: Value) -> int:
        number = value.integer()
        if number not in self._physical.guests:
            value.fail(f"no guest {number} in this scenario")
        return number

    def _only(self, value: Value) -> int:
        if len(self._physical.guests) != 1:
            value.fail("with several guests the guest must be named")
        return self._physical.guests[0]


def _registers(value: Value) -> Registers:
    a, b, c, d, e, f, g, h = (item.hex() for item in value.items(8))
    return (a, b, c, d, e, f, g, h)


def _conduit(value: Value) -> tuple[bool, bool]:
    via = value.text(("smc64", "hvc64", "smc32", "hvc32"))
    return via.startswith("hvc"), via.endswith("32")


def _check_half(registers: tuple[Word, ...], index: int, word: Word, value: Value) -> None:
    """High and low halves stand side by side and belong to one address."""
    if not isinstance(word, Symbol):
        return
    step = {"hi": 1, "lo": -1}.get(word.part, 0)
    if not step:
        value.items()[index].fail("an address in registers is hi: or lo:")
    place = index + step
    other = registers[place] if 0 <= place < len(registers) else None
    if (
        not isinstance(other, Symbol)
        or other.part == word.part
        or (other.text[3:] != word.text[3:])
    ):
        value.items()[index].fail("hi: and lo: of one address must stand side by side")
