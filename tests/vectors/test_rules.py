# SPDX-License-Identifier: BSD-2-Clause
"""The rules as data: complete, consistent, and refused with a clear message when they are not."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from specs.rules import BUG_CLASSES, INVARIANTS, Level, RuleError, load, rules
from specs.rules.page import page
from specs.vectors.facts import Fact
from tests.vectors.golden import behaviour

HEAD = 'format = "optee-mediator-rules"\nversion = 1\n'
RULE = '[[rule]]\nid = "a.b"\nlevel = "must"\nsentence = "S."\nsource = "here"\n'


def test_every_bug_class_and_invariant_has_a_rule() -> None:
    assert [number for number in BUG_CLASSES if not rules().of_bug_class(number)] == []
    cited = {name for rule in rules() for name in rule.invariants}
    # I10 compares deployments and is no rule of a mediator.
    assert cited == set(INVARIANTS) - {"I10"}


def test_every_category_of_the_golden_scenarios_tests_a_rule() -> None:
    categories = {row["cat"] for row in behaviour()}
    assert {name for rule in rules() for name in rule.categories} == categories


def test_every_fact_explains_something_and_exists() -> None:
    used = {fact for rule in rules() for fact in rule.facts}
    assert used == {str(fact) for fact in Fact}


def test_the_sentences_are_sentences() -> None:
    sentences = [rule.sentence for rule in rules()]
    assert len(set(sentences)) == len(sentences) > 100
    for sentence in sentences:
        assert sentence[0].isupper() or sentence[0].isdigit()
        assert sentence.endswith(".")


def test_a_rule_that_explains_is_found_by_its_facts() -> None:
    (rule,) = rules().explaining([Fact.LARGE_BUFFER])
    assert rule is rules()["limit.buffer-pages"]
    assert rule.level is Level.MAY
    assert rules().explaining([]) == ()


def test_the_file_fits_its_schema() -> None:
    package = resources.files("specs.rules")
    schema = package.joinpath("rules.schema.json").read_text("utf-8")
    document = tomllib.loads(package.joinpath("rules.toml").read_text("utf-8"))
    import json

    jsonschema.validate(document, json.loads(schema))


@pytest.mark.parametrize(
    ("text", "rule", "field", "reason"),
    [
        ("x = ", "", "", "not TOML"),
        ("", "", "format", "must be"),
        ('format = "optee-mediator-rules"', "", "version", "whole number"),
        ('format = "optee-mediator-rules"\nversion = 2', "", "version", "newer than 1"),
        (HEAD + "more = 1", "", "more", "unknown field"),
        (HEAD + "rule = 3", "", "rule", "array of tables"),
        (HEAD + "rule = [3]", "rule 1", "", "must be a table"),
        (HEAD + RULE + "why = 1", "a.b", "why", "unknown field"),
        (HEAD + RULE.replace('"a.b"', '"A"'), "A", "id", "dotted name"),
        (HEAD + RULE.replace('"must"', '"shall"'), "a.b", "level", "one of"),
        (HEAD + RULE.replace('"S."', '" "'), "a.b", "sentence", "must be a text"),
        (HEAD + RULE + 'invariants = ["I11"]', "a.b", "invariants", "I1 to I10"),
        (HEAD + RULE + "invariants = 3", "a.b", "invariants", "must be a list"),
        (HEAD + RULE + "categories = [3]", "a.b", "categories", "must hold texts"),
        (HEAD + RULE + "bug_classes = [31]", "a.b", "bug_classes", "1 to 30"),
        (HEAD + RULE + 'facts = ["Odd One"]', "a.b", "facts", "no name"),
        (HEAD + RULE + RULE, "a.b", "id", "used twice"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, rule: str, field: str, reason: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RuleError, match=reason) as caught:
        load(file)
    error = caught.value
    assert (error.file, error.rule, error.field) == (str(file), rule, field)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="No such file"):
        load(tmp_path / "missing")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(RuleError, match="not UTF-8"):
        load(tmp_path / "bytes")


def test_a_good_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(HEAD + RULE + "bug_classes = [3]\n", encoding="utf-8")
    book = load(file)
    assert len(book) == 1
    assert book["a.b"].bug_classes == (3,)


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs" / "deviations.md").read_text("utf-8")
    assert written == "\n".join(page(rules())) + "\n", (
        "python -m specs.rules.page > docs/deviations.md"
    )
