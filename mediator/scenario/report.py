# SPDX-License-Identifier: BSD-2-Clause
"""The report of a run for programs. It has no wall-clock time: a seed gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import attrs

from mediator.scenario.result import Result

FORMAT: Final = "optee-mediator-run-report"
VERSION: Final = 1

Json = dict[str, object]


def as_json(result: Result, trace: str = "", apps: list[Json] | None = None) -> Json:
    """The report; its schema is ``mediator/scenario/report.schema.json``.

    ``trace``: file that the trace was written to, "" without one. ``apps``: isolation of the apps of
    the mediator, ``None`` if it lived in the hypervisor.
    """
    document: Json = {"format": FORMAT, "version": VERSION, "ok": result.ok}
    document |= cast("Json", _plain(result))
    document["trace"] = trace or None
    if apps is not None:
        document["apps"] = apps
    return document


def failure_as_json(scenario: str, path: str, seed: int, error: str) -> Json:
    """The report of a run that could not be brought to its end."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "ok": False,
        "scenario": scenario,
        "path": path,
        "seed": seed,
        "error": error,
    }


def _plain(value: object) -> object:
    """Frozen values as dicts, tuples as lists; numbers and texts as they are."""
    if attrs.has(type(value)):
        fields = attrs.fields(cast("type[attrs.AttrsInstance]", type(value)))
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value
