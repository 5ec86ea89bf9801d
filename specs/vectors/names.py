# SPDX-License-Identifier: BSD-2-Clause
"""Which mediator page a name of a scenario stands for.

The recording names a mediator page ``m0``, ``m1``, … in the order in which the secure world first
sees it, and gives a page that is used again later a new name. A mediator is free to use its pages in
any order, so a name is bound to the page that is found where the name first stands. From then on:

- a name that was bound stays with its page, and with that *allocation* of the page;
- a new name takes a page over from an older name only when the older one is not used any more in
  the rest of the scenario, or when the page was given back and allocated again meanwhile;
- new names come in order, so an old name can never stand where a new page is expected unnoticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from specs.target import PAGE_SIZE
from specs.vectors.scenario import CallStep, Scenario, SecureCall, Step, Symbol, WriteStep

_OFFSET = PAGE_SIZE - 1


class Names:
    """The binding of names to pages during one run of a scenario."""

    def __init__(self, scenario: Scenario, shadow: Callable[[int], int | None]) -> None:
        self._shadow = shadow
        self._bound: dict[str, tuple[int, int]] = {}
        self._owner: dict[int, str] = {}
        self._uses = Counter(symbol.name for symbol in _all_symbols(scenario.steps) if symbol.name)

    def used(self, symbols: Iterable[Symbol]) -> None:
        """These uses of names have been dealt with."""
        self._uses.subtract(symbol.name for symbol in symbols if symbol.name)

    def address(self, name: str) -> int | None:
        """The page that ``name`` is bound to."""
        bound = self._bound.get(name)
        return None if bound is None else bound[0]

    def match(self, name: str, page: int) -> str | None:
        """Bind or check ``name`` against ``page``; the reason why it does not fit, or None."""
        allocation = self._shadow(page)
        if allocation is None:
            return "not a page of the mediator"
        bound = self._bound.get(name)
        if bound == (page, allocation):
            return None
        if bound is not None:
            return "the page was given back meanwhile" if bound[0] == page else "another page"
        if name != f"m{len(self._bound)}":
            return f"the next new page is m{len(self._bound)}"
        old = self._owner.get(page)
        if old is not None and self._bound[old][1] == allocation and self._uses[old] > 0:
            return f"the page of {old}, which is still in use"
        self._bound[name] = (page, allocation)
        self._owner[page] = name
        return None

    def describe(self, address: int) -> str | None:
        """The symbol of an address in a mediator page, ``m?`` for one without a name."""
        page = address & ~_OFFSET
        allocation = self._shadow(page)
        if allocation is None:
            return None
        name = self._owner.get(page)
        if name is None or self._bound[name] != (page, allocation):
            name = "m?"
        return name if address == page else f"{name}+{address & _OFFSET:#x}"


def _all_symbols(steps: Iterable[Step]) -> Iterable[Symbol]:
    for step in steps:
        if isinstance(step, WriteStep) or not hasattr(step, "calls"):
            continue
        yield from _call_symbols(step.calls)


def _call_symbols(calls: Iterable[SecureCall]) -> Iterable[Symbol]:
    for call in calls:
        yield from call.symbols()
        for event in call.meanwhile:
            if isinstance(event, CallStep):
                yield from _call_symbols(event.calls)
