# SPDX-License-Identifier: BSD-2-Clause
"""Bugs as changes of text: the short way to write the ``plant`` function of a mutant."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from specs.mutants.mechanism import Mutant, MutantError, Patch


def edits(*changes: tuple[str, str, str]) -> Callable[[Patch], None]:
    """A ``plant`` function that applies :meth:`~specs.mutants.mechanism.Patch.edit`.

    Each change is ``("package.module:name", old, new)``; the name may have dots (``Class.method``).
    Several changes of one function are made in order. Nothing is imported before planting.
    """
    by_function: dict[str, list[tuple[str, str]]] = {}
    for where, old, new in changes:
        by_function.setdefault(where, []).append((old, new))

    def plant(patch: Patch) -> None:
        for where, texts in by_function.items():
            patch.edit(resolve(where), *texts)

    return plant


def one_edit(
    name: str, story: str, bug_class: int, breaks: tuple[str, ...], where: str, old: str, new: str
) -> Mutant:
    """A mutant that is one change of one function."""
    return Mutant(
        id=name, story=story, bug_class=bug_class, breaks=breaks, plant=edits((where, old, new))
    )


def resolve(where: str) -> object:
    """What ``"package.module:dotted.name"`` names; :class:`MutantError` if it is not there."""
    module, _, name = where.partition(":")
    found: object = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise MutantError(f"{where}: {part!r} is not there")
        found = getattr(found, part)
    return found
