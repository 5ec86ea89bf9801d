# SPDX-License-Identifier: BSD-2-Clause
"""Planting a bug and taking it out again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final, TypeVar

import attrs

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

_ID: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+")
BUG_CLASSES: Final = 30
"""Number of bug classes of TEE mediation; see the documentation's list."""


class MutantError(Exception):
    """A mutant that cannot be planted: what it patches is not there, or its record is wrong."""


class Patch:
    """Replaces attributes and mapping items, and remembers how to put them back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def attribute(self, owner: object, name: str, value: object) -> None:
        """Replace attribute ``name`` of a module, class or object; :class:`MutantError` if absent."""
        if not hasattr(owner, name):
            raise MutantError(f"{owner!r} has no attribute {name!r}")
        own = getattr(owner, "__dict__", None)
        inherited = own is not None and name not in own
        # The raw entry, so that static methods and properties come back as what they were.
        old = own[name] if own is not None and not inherited else getattr(owner, name)
        setattr(owner, name, value)
        if inherited:
            self._undo.append(lambda: delattr(owner, name))
        else:
            self._undo.append(lambda: setattr(owner, name, old))

    def wrap(self, owner: object, name: str, wrapper: Callable[[T], T]) -> None:
        """Replace a function by ``wrapper(original)``."""
        self.attribute(owner, name, wrapper(getattr(owner, name)))

    def item(self, mapping: MutableMapping[K, V], key: K, value: V) -> None:
        """Replace the value of an existing key; :class:`MutantError` if it is absent."""
        if key not in mapping:
            raise MutantError(f"no item {key!r}")
        old = mapping[key]
        mapping[key] = value
        self._undo.append(lambda: mapping.__setitem__(key, old))

    def undo(self) -> None:
        """Put everything back, the last change first."""
        while self._undo:
            self._undo.pop()()


@attrs.frozen(kw_only=True)
class Mutant:
    """One planted bug.

    ``id``: dotted lower-case words, never reused. ``story``: how a sensible person comes to write
    this bug, and what it costs. ``bug_class``: number of the class, 1 to 30. ``breaks``: ids of the
    rules and invariants (``"I3"``) that no longer hold. ``plant``: makes the changes; it imports
    what it patches itself, so that listing mutants loads nothing.
    """

    id: str = attrs.field(validator=attrs.validators.matches_re(_ID))
    story: str = attrs.field(validator=attrs.validators.min_len(20))
    bug_class: int = attrs.field(
        validator=[attrs.validators.ge(1), attrs.validators.le(BUG_CLASSES)]
    )
    breaks: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    plant: Callable[[Patch], None] = attrs.field(repr=False, eq=False)


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Inside the block the bug is there. Objects made inside should not be used after it."""
    patch = Patch()
    try:
        mutant.plant(patch)
        yield
    finally:
        patch.undo()


def survives(mutant: Mutant, test: Callable[[], object]) -> bool:
    """True if ``test`` does not notice the bug (raises nothing).

    :class:`MutantError` passes through: a mutant that cannot be planted shows nothing.
    """
    try:
        with planted(mutant):
            test()
    except MutantError:
        raise
    except Exception:
        return False
    return True


def expect_killed(mutant: Mutant, test: Callable[[], object]) -> None:
    """Assert that ``test`` passes on the sound code and fails under ``mutant``."""
    test()
    if survives(mutant, test):
        raise AssertionError(
            f"mutant {mutant.id} (bug class {mutant.bug_class}, breaks"
            f" {', '.join(mutant.breaks)}) survived: {mutant.story}"
        )
    test()
