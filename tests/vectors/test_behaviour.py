# SPDX-License-Identifier: BSD-2-Clause
"""The golden behaviour scenarios, on every variant of our mediator."""

from __future__ import annotations

from functools import partial

import attrs
import pytest

from specs.rules import rules
from specs.target import Setup, TargetFactory, World
from specs.vectors.case import Verdict
from specs.vectors.files import Options, run_file
from specs.vectors.model_target import ModelTarget, mediator_settings
from tests.vectors.golden import BEHAVIOUR, one, run


def with_page_cache(setup: Setup, world: World) -> ModelTarget:
    """Pages go round inside the mediator, so names move between them unseen by the machine."""
    return ModelTarget(
        setup, world, settings=attrs.evolve(mediator_settings(setup), shadow_cache=64)
    )


VARIANTS: dict[str, TargetFactory] = {
    "plain": ModelTarget,
    "with page cache": with_page_cache,
    "suspending": partial(ModelTarget, suspending=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_reference_preset(name: str) -> None:
    """Everything of kind abi, limit and constant passes; the rest is explained by a rule."""
    result = run_file(BEHAVIOUR, Options(VARIANTS[name], "reference"))
    assert len(result.cases) == 302
    for case in result.cases:
        if case.kind == "abi" or case.quirk in ("limit", "constant"):
            assert case.verdict is Verdict.PASSED, (case.name, case.differences[:3])
        elif case.verdict is Verdict.DEVIATION:
            assert case.explained_by, case.name
    explained = {rule for case in result.cases for rule in case.explained_by}
    assert explained == {
        "call.defined-result",
        "call.too-many-params",
        "limit.allocation-failure",
        "param.empty-buffer",
        "result.recorded-attributes",
    }


def test_default_preset_deviates_only_where_a_rule_says_so() -> None:
    result = run_file(BEHAVIOUR, Options(ModelTarget, "default"))
    assert result.count(Verdict.FAILED) == 0
    deviations = [case for case in result.cases if case.verdict is Verdict.DEVIATION]
    assert len(deviations) > 10
    book = rules()
    for case in deviations:
        assert case.explained_by, case.name
        assert all(book[name].facts for name in case.explained_by)


def test_strict_quirks_make_deviations_count() -> None:
    result = run_file(BEHAVIOUR, Options(ModelTarget, "reference", strict_quirks=True))
    assert result.count(Verdict.DEVIATION) == 0
    assert result.count(Verdict.FAILED) == 5


def test_unknown_quirk_words_are_treated_alike() -> None:
    row = one(quirk="constant")
    row["quirk"] = "taste"
    assert not run(row).differences
    row["steps"][1]["out"][0] = "0x77"
    assert run(row).differences
