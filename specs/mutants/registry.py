# SPDX-License-Identifier: BSD-2-Clause
"""Finding mutants: our own zoo and the plug-ins of other distributions."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Final

from specs.mutants import zoo
from specs.mutants.mechanism import Mutant, MutantError

ENTRY_POINT_GROUP: Final = "optee_mediator.mutants"
"""Each entry point of this group names a module that has a tuple ``MUTANTS``."""


def _modules() -> Iterator[ModuleType]:
    for info in sorted(pkgutil.iter_modules(zoo.__path__), key=lambda i: i.name):
        yield importlib.import_module(f"{zoo.__name__}.{info.name}")
    for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name):
        yield importlib.import_module(point.module)


def load() -> dict[str, Mutant]:
    """All known mutants by id, in the order of their ids.

    Raises :class:`MutantError`, naming the module, if one has no ``MUTANTS`` tuple of mutants or
    uses an id again.
    """
    found: dict[str, Mutant] = {}
    for module in _modules():
        mutants = getattr(module, "MUTANTS", None)
        if not isinstance(mutants, tuple) or not all(isinstance(m, Mutant) for m in mutants):
            raise MutantError(f"{module.__name__} has no tuple MUTANTS of mutants")
        for mutant in mutants:
            if mutant.id in found:
                raise MutantError(f"{module.__name__} uses the id {mutant.id} again")
            found[mutant.id] = mutant
    return dict(sorted(found.items()))
