# SPDX-License-Identifier: BSD-2-Clause
"""ABI tables as data: header constants that the wire code has no use for, and structure layouts.

A constant that :mod:`smccc.constants` defines stands there and only there; the table holds the
rest, so that together they know every name of the golden ABI data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType, ModuleType

from attrs import frozen

from smccc.constants import arm_smccc, optee_msg, optee_rpc, optee_smc, psci, tee

_MODULES: tuple[ModuleType, ...] = (arm_smccc, psci, optee_smc, optee_msg, optee_rpc, tee)


@frozen
class Layout:
    """Size and alignment in bytes of a structure, and ``(offset, size)`` of its members by name."""

    kind: str
    size: int
    align: int
    members: Mapping[str, tuple[int, int]]


def _table(name: str) -> dict[str, dict[str, dict[str, object]]]:
    text = resources.files(__package__).joinpath(f"{name}.json").read_text("utf-8")
    table: dict[str, dict[str, dict[str, object]]] = json.loads(text)
    return table


@cache
def wire_constants() -> Mapping[str, int]:
    """Name to value of every constant in :mod:`smccc.constants`."""
    found: dict[str, int] = {}
    for module in _MODULES:
        found.update(
            {
                name: value
                for name, value in vars(module).items()
                if isinstance(value, int) and not name.startswith("_")
            }
        )
    return MappingProxyType(found)


@cache
def header_constants() -> Mapping[str, int]:
    """Name to value of every constant that is known here, used by the wire code or not."""
    found: dict[str, int] = {}
    for names in _table("constants")["constants"].values():
        for name, value in names.items():
            assert isinstance(value, int)
            found[name] = value
    return MappingProxyType({**found, **wire_constants()})


@cache
def layouts() -> Mapping[str, tuple[Layout, ...]]:
    """The layouts of a structure by its name; trees differ in a few, the first is the headline."""
    found: dict[str, tuple[Layout, ...]] = {}
    for structures in _table("layouts")["layouts"].values():
        for name, variants in structures.items():
            assert isinstance(variants, list)
            found[name] = tuple(
                Layout(
                    variant["kind"],
                    variant["size"],
                    variant["align"],
                    MappingProxyType({key: tuple(at) for key, at in variant["fields"].items()}),
                )
                for variant in variants
            )
    return MappingProxyType(found)
