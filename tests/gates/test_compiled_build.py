# SPDX-License-Identifier: BSD-2-Clause
"""What the optional compiled build asks of the sources, without a compiler; CI builds and compares."""

from __future__ import annotations

import ast

import pytest

from benchmarks.compiled.build import ROOT, adapt, awaits_in_finally, source_of
from benchmarks.compiled.modules import HOT, OPEN


@pytest.mark.parametrize("module", HOT)
def test_a_hot_module_can_be_compiled(module: str) -> None:
    source = (ROOT / source_of(module)).read_text()
    assert awaits_in_finally(source) == []
    compile(adapt(source, OPEN.get(module, ())), module, "exec")


def test_open_classes_are_marked_and_frames_are_of_any_length() -> None:
    source = "from __future__ import annotations\n\n\nclass A:\n    a: tuple[int, int, int, int]\n"
    adapted = ast.parse(adapt(source, ("A",)))
    (marked,) = [node for node in adapted.body if isinstance(node, ast.ClassDef)]
    assert ast.unparse(marked.decorator_list[0]) == "mypyc_attr(allow_interpreted_subclasses=True)"
    assert ast.unparse(marked.body[0]) == "a: tuple[int, ...]"


def test_a_class_that_is_gone_is_named() -> None:
    with pytest.raises(ValueError, match="class B is defined 0 times"):
        adapt("class A: ...\n", ("B",))


def test_an_await_in_finally_is_found() -> None:
    source = "async def f():\n    try:\n        pass\n    finally:\n        if True:\n            await g()\n"
    assert awaits_in_finally(source) == [6]
