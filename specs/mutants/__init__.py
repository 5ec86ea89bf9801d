# SPDX-License-Identifier: BSD-2-Clause
"""Mutants: planted bugs that show that a test can fail.

A :class:`Mutant` is data with one function, ``plant``, which patches attributes of modules and
classes through a :class:`Patch`; everything is undone when the ``with`` block of :func:`planted`
ends. A test *kills* a mutant if it passes on the sound code and fails under the mutant:
:func:`expect_killed` asserts both. Mutants live in the modules of :mod:`specs.mutants.zoo` and in
plug-ins of other distributions (entry point group ``optee_mediator.mutants``); :func:`load` lists
them all.

A mutant must change behaviour, not break the machine: one that no call survives is killed by any
test and shows nothing.
"""

from specs.mutants.mechanism import (
    Mutant,
    MutantError,
    Patch,
    expect_killed,
    planted,
    survives,
)
from specs.mutants.registry import ENTRY_POINT_GROUP, load

__all__ = [
    "ENTRY_POINT_GROUP",
    "Mutant",
    "MutantError",
    "Patch",
    "expect_killed",
    "load",
    "planted",
    "survives",
]
