# SPDX-License-Identifier: BSD-2-Clause
"""Keys are found on the line where they stand, whatever TOML allows around them."""

from __future__ import annotations

import pytest

from mediator.scenario.toml_lines import KeyLines, Place

TEXT = '''\
# a comment [guest]
name = "x"
"quoted key" = 1
text = """
name = "not a key"
[not.a.table]
\\""" still inside
"""
after = 1
raw = \'\'\'
[no]
\'\'\'
list = [
  1, # ]
  "]",
  { a = 1 },
]
dotted.key = 2
[platform]
mode = "direct"
[[guest]]
name = "a"
[[guest.workload]]
run = "values"
[[guest.workload]]
run = "memrefs"
[[guest]]
name = "b"
[[guest.workload]]
  run   = "x"   # [[guest]]
[guest.extra]
key = 1
'''

EXPECTED: list[tuple[Place, int]] = [
    (("name",), 2),
    (("quoted key",), 3),
    (("text",), 4),
    (("after",), 9),
    (("raw",), 10),
    (("list",), 13),
    (("list", 2, "a"), 13),
    (("dotted", "key"), 18),
    (("platform",), 19),
    (("platform", "mode"), 20),
    (("platform", "pcpus"), 19),
    (("guest",), 21),
    (("guest", 0), 21),
    (("guest", 0, "name"), 22),
    (("guest", 0, "workload", 0, "run"), 24),
    (("guest", 0, "workload", 1), 25),
    (("guest", 0, "workload", 1, "run"), 26),
    (("guest", 1), 27),
    (("guest", 1, "name"), 28),
    (("guest", 1, "workload", 0, "run"), 30),
    (("guest", 1, "extra", "key"), 32),
    (("nothing", 7), 1),
]


@pytest.mark.parametrize(("place", "line"), EXPECTED, ids=[str(place) for place, _ in EXPECTED])
def test_a_key_is_found(place: Place, line: int) -> None:
    assert KeyLines(TEXT).of(place) == line
