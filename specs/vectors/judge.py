# SPDX-License-Identifier: BSD-2-Clause
"""Comparing what a target did with what was recorded, entry by entry and after each step.

Responsible for every comparison of the behaviour format; plays nothing and changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.wire import HEADER_SIZE, KIND_TMEM, MAX_PARAMS, PARAM_KIND, PARAM_SIZE
from specs.target import PAGE_SIZE, Target
from specs.vectors.case import Difference
from specs.vectors.names import Names
from specs.vectors.scenario import (
    Aftermath,
    ExpectedMessage,
    ExpectedParam,
    Scenario,
    SecureCall,
    Symbol,
    Word,
)

MAX_DIFFERENCES = 64
"""Differences noted per scenario; after that the rest is noise."""

_MASK32 = (1 << 32) - 1
_OFFSET = PAGE_SIZE - 1
_HEADER = struct.Struct("<8I")
_PARAM = struct.Struct("<4Q")
_HEADER_WORDS = {
    "cmd": 0,
    "func": 1,
    "session": 2,
    "cancel_id": 3,
    "ret": 5,
    "ret_origin": 6,
    "num_params": 7,
}
_LIST_ENTRIES = 511
_MAX_LIST = 1 << 20
"""List entries that are looked at, whatever size a parameter claims."""


class Judge:
    """Collects the differences of one run."""

    def __init__(self, scenario: Scenario, target: Target) -> None:
        self.differences: list[Difference] = []
        self.names = Names(scenario, target.shadow)
        self.step = 0
        self.first_step = len(scenario.steps)
        """The step of the first difference; beyond the last one while there is none."""
        self._physical = scenario.physical
        self._target = target
        self._pending: dict[tuple[int, int], tuple[int, int]] = {}
        self._rpc_pages: dict[tuple[int, int], int] = {}

    # --- places ------------------------------------------------------------------------------

    def locate(self, symbol: Symbol) -> int | None:
        if symbol.name:
            page = self.names.address(symbol.name)
            return None if page is None else page + symbol.offset
        if symbol.guest is None:
            return None
        address = self._guest_address(symbol)
        return None if address is None else address + symbol.offset

    def _guest_address(self, symbol: Symbol) -> int | None:
        guest = symbol.guest
        if guest is None:
            return None
        return self._physical.translate(
            self._physical.guests[0] if guest < 0 else guest, symbol.ipa
        )

    def note_rpc(self, regs: tuple[int, ...], reply: list[int]) -> None:
        """Remember which RPC a thread waits in, to know the message of its return."""
        if regs[0] & _MASK32 == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
            self._pending.pop((regs[7], regs[3]), None)
        answer = reply[0] & _MASK32
        if answer >> 16 == 0xFFFF and answer != _MASK32:
            cookie = (reply[1] & _MASK32) << 32 | reply[2] & _MASK32
            self._pending[regs[7], reply[3] & _MASK32] = (answer, cookie)

    # --- comparing ---------------------------------------------------------------------------

    def differ(self, place: str, expected: str, actual: str) -> None:
        self.first_step = min(self.first_step, self.step)
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(Difference(place, expected, actual))

    def equal(self, place: str, expected: object, actual: object) -> None:
        if expected != actual:
            self.differ(place, str(expected), str(actual))

    def compare_entry(self, call: SecureCall, regs: tuple[int, ...], place: str) -> None:
        for index, (expected, actual) in enumerate(zip(call.regs, regs, strict=True)):
            where = f"{place}.regs[{index}]"
            if isinstance(expected, int):
                if expected != actual:
                    self.differ(where, hex(expected), self.show(actual))
                continue
            first = index if expected.part == "hi" else index - 1
            address = regs[first] << 32 | regs[first + 1]
            if regs[first] >> 32 or regs[first + 1] >> 32:
                self.differ(where, expected.text, f"{actual:#x}, wider than 32 bits")
            else:
                self._compare_address(where, expected, address)
        self._compare_messages(call, regs, place)

    def _compare_messages(self, call: SecureCall, regs: tuple[int, ...], place: str) -> None:
        function = regs[0] & _MASK32
        page: int | None = None
        if function == smc.OPTEE_SMC_CALL_WITH_ARG:
            page = regs[1] << 32 | regs[2]
        self._compare_message(call.message, page, place + ".msg")
        page = None
        thread = (regs[7], regs[3])
        if function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC and thread in self._pending:
            answer, cookie = self._pending[thread]
            if answer == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
                address = regs[1] << 32 | regs[2]
                if address:
                    self._rpc_pages[regs[7], (regs[4] & _MASK32) << 32 | regs[5] & _MASK32] = (
                        address
                    )
            elif answer == smc.OPTEE_SMC_RETURN_RPC_CMD:
                page = self._rpc_pages.get((regs[7], cookie))
        self._compare_message(call.rpc_message, page, place + ".rpc_msg")

    def _compare_message(
        self, expected: ExpectedMessage | None, page: int | None, place: str
    ) -> None:
        if expected is None:
            if page is not None:
                self.differ(place, "no message", f"one at {self.show(page)}")
            return
        if page is None:
            page = self.locate(expected.at)
            self.differ(place, f"a message at {expected.at.text}", "none")
            if page is None:
                return
        elif not self._compare_address(place + ".at", expected.at, page):
            return
        try:
            raw = self._target.read(page & ~_OFFSET, PAGE_SIZE)
        except (KeyError, ValueError) as error:
            self.differ(place, f"a message at {expected.at.text}", f"no memory there ({error})")
            return
        header = _HEADER.unpack_from(raw)
        for name, value in expected.header:
            actual = header[_HEADER_WORDS[name]]
            if actual != value:
                self.differ(f"{place}.{name}", hex(value), hex(actual))
        count = min(header[7], MAX_PARAMS)
        if count != len(expected.params):
            self.differ(f"{place}.params", f"{len(expected.params)} of them", str(count))
        for index, param in enumerate(expected.params[:count]):
            words = _PARAM.unpack_from(raw, HEADER_SIZE + index * PARAM_SIZE)
            self._compare_param(param, words, f"{place}.params[{index}]")

    def _compare_param(self, expected: ExpectedParam, words: tuple[int, ...], place: str) -> None:
        attr, address, size = words[0], words[1], words[2]
        if attr != expected.attr:
            self.differ(f"{place}.attr", hex(expected.attr), hex(attr))
        for index, word in enumerate(expected.words):
            where = f"{place}.v[{index}]"
            actual = words[index + 1]
            if isinstance(word, Symbol):
                self._compare_address(where, word, actual)
            elif word != actual:
                self.differ(where, hex(word), self.show(actual))
        listed = (
            attr & msg.OPTEE_MSG_ATTR_NONCONTIG and PARAM_KIND[attr & 0xFF] == KIND_TMEM and address
        )
        if not listed:
            if expected.pages is not None:
                self.differ(f"{place}.pages", f"{len(expected.pages)} pages", "no list")
            return
        if expected.pages is None:
            self.differ(f"{place}.pages", "no list", f"a list at {self.show(address)}")
            return
        self._compare_pages(expected.pages, address, size, f"{place}.pages")

    def _compare_pages(
        self, expected: tuple[tuple[int, int], ...], address: int, size: int, place: str
    ) -> None:
        count = ((address & _OFFSET) + size + _OFFSET) // PAGE_SIZE
        if count != len(expected):
            self.differ(place, f"{len(expected)} pages", f"a size of {count} pages")
        page = address & ~_OFFSET
        for start in range(0, min(count, len(expected), _MAX_LIST), _LIST_ENTRIES):
            if self._target.shadow(page) is None:
                self.differ(place, "a list page of the mediator", self.show(page))
                return
            raw = struct.unpack("<512Q", self._target.read(page, PAGE_SIZE))
            for index, (guest, ipa) in enumerate(expected[start : start + _LIST_ENTRIES]):
                if raw[index] != self._physical.pa_of[guest, ipa]:
                    self.differ(
                        f"{place} page {start + index}",
                        f"guest {guest} {ipa:#x}",
                        self.show(raw[index]),
                    )
            page = raw[_LIST_ENTRIES]

    def _compare_address(self, place: str, expected: Symbol, actual: int) -> bool:
        reason: str | None
        if expected.name:
            if actual & _OFFSET != expected.offset:
                reason = "another offset"
            else:
                reason = self.names.match(expected.name, actual & ~_OFFSET)
        elif expected.stale:
            owned = self._target.shadow(actual & ~_OFFSET) is not None
            known = actual & ~_OFFSET in self._physical.seen_at
            reason = "a page in use" if owned or known or not actual else None
        else:
            address = self._guest_address(expected)
            same = address is not None and address + expected.offset == actual
            reason = None if same else "another address"
        if reason is not None:
            self.differ(place, expected.text, f"{self.show(actual)} ({reason})")
        return reason is None

    def compare_memory(
        self, after: Aftermath, before: Mapping[int, bytes | bytearray], place: str
    ) -> None:
        changed: dict[tuple[int, int], bytes] = {}
        for pa, old in before.items():
            guest, ipa = self._physical.seen_at.get(pa, (-1, pa))
            now = self._target.read(pa, PAGE_SIZE)
            if now == old:
                continue
            for offset in range(0, PAGE_SIZE, 4):
                word = now[offset : offset + 4]
                if word != old[offset : offset + 4]:
                    changed[guest, ipa + offset] = word
        for key in sorted(changed.keys() | after.memory.keys()):
            expected, actual = after.memory.get(key), changed.get(key)
            if expected != actual:
                self.differ(
                    f"{place}.mem guest {key[0]} {key[1]:#x}",
                    "no change" if expected is None else expected.hex(),
                    "no change" if actual is None else actual.hex(),
                )

    def compare_pins(self, after: Aftermath, place: str) -> None:
        if after.pins is None:
            return
        held: dict[tuple[int, int], int] = {}
        for guest in self._physical.guests:
            for pa, count in self._target.pins(guest).items():
                ipa = self._physical.seen_at.get(pa, (guest, pa))[1]
                held[guest, ipa] = held.get((guest, ipa), 0) + count
        for key in sorted(held.keys() | after.pins.keys()):
            if held.get(key, 0) != after.pins.get(key, 0):
                self.differ(
                    f"{place}.pins guest {key[0]} {key[1]:#x}",
                    _references(after.pins.get(key, 0)),
                    _references(held.get(key, 0)),
                )

    def show(self, address: int) -> str:
        name = self.names.describe(address)
        if name is None:
            seen = self._physical.seen_at.get(address & ~_OFFSET)
            if seen is not None:
                name = f"guest {seen[0]} {seen[1] + (address & _OFFSET):#x}"
        return hex(address) if name is None else f"{address:#x} = {name}"


def registers_text(regs: Iterable[Word]) -> str:
    """Registers of a call as a difference shows them."""
    return " ".join(hex(word) if isinstance(word, int) else word.text for word in regs)


def _references(count: int) -> str:
    return f"{count} reference{'' if count == 1 else 's'}"
