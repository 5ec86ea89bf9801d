# SPDX-License-Identifier: BSD-2-Clause
"""The forwarding stubs as machine code, so that no assembler is needed where guests run.

A ``.hex`` file beside the source has the words of each: ``address: word word ...``; addresses that it
leaves out are padding (nop).
"""

from __future__ import annotations

import struct
from importlib import resources
from typing import Final

NOP: Final = 0xD503201F
EL2: Final = "stub_el2"
"""The stub at EL2: needs ``virtualization=on``."""

EL3: Final = "stub_el3"
"""The stub at EL3: needs ``secure=on``, and somebody who answers PSCI."""


def parse_words(text: str) -> bytes:
    """Machine code of a ``.hex`` text. ``ValueError`` for anything else."""
    words: dict[int, int] = {}
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        address, _, rest = line.partition(":")
        at = int(address, 16)
        for word in rest.split():
            if at % 4 or at in words:
                raise ValueError(f"stub: {at:#x} is no address for a word, or has one already")
            words[at] = int(word, 16)
            at += 4
    end = max(words, default=-4) + 4
    return struct.pack(f"<{end // 4}I", *[words.get(at, NOP) for at in range(0, end, 4)])


def code(name: str = EL2) -> bytes:
    """The stub's machine code, for address 0."""
    return parse_words(resources.files("mediator.live").joinpath(f"{name}.hex").read_text("utf-8"))


def source(name: str = EL2) -> str:
    """Its assembly source."""
    return resources.files("mediator.live").joinpath(f"{name}.S").read_text("utf-8")
