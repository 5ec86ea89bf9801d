# SPDX-License-Identifier: BSD-2-Clause
"""Device trees: what is built is read back, damage is named, nothing hangs."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.live.fdt import FdtError, Node, Tree, build, parse

NAMES = st.text("abcdefghij-@0123456789", min_size=1, max_size=12)
PROPERTIES = st.dictionaries(NAMES, st.binary(max_size=40), max_size=4)
NODES = st.recursive(
    st.builds(Node, PROPERTIES),
    lambda children: st.builds(Node, PROPERTIES, st.dictionaries(NAMES, children, max_size=3)),
    max_leaves=12,
)
WORDS = st.integers(1, (1 << 64) - 1)


@given(st.builds(Tree, NODES, st.lists(st.tuples(WORDS, WORDS), max_size=3)))
def test_what_is_built_is_read_back(tree: Tree) -> None:
    assert parse(build(tree)) == tree


def test_a_tree_has_the_layout_of_the_specification() -> None:
    tree = Tree()
    tree.root.at("chosen", make=True).set_text("bootargs", "quiet")
    data = build(tree)
    magic, total = struct.unpack_from(">II", data)
    assert (magic, total) == (0xD00DFEED, len(data))
    structure = struct.unpack_from(">I", data, 8)[0]
    words = struct.unpack_from(">2I", data, structure)
    assert words == (1, 0)  # the root node begins, and its name is empty


@given(st.builds(Tree, NODES), st.data())
def test_damage_is_a_named_error(tree: Tree, data: st.DataObject) -> None:
    octets = bytearray(build(tree))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    cut = octets[: data.draw(st.integers(0, len(octets)))]
    for damaged in (octets, cut):
        with contextlib.suppress(FdtError):
            parse(bytes(damaged))


def test_paths() -> None:
    root = Node()
    root.at("firmware/optee", make=True).set_cells("interrupts", 0, 60, 1)
    assert root.at("firmware/optee").properties["interrupts"].hex() == "000000000000003c00000001"
    assert root.at("") is root
    with pytest.raises(KeyError):
        root.at("firmware/other")


def test_depth_is_bounded() -> None:
    root = Node()
    root.at("/".join("n" * 100), make=True)
    with pytest.raises(FdtError, match="levels"):
        parse(build(Tree(root)))
