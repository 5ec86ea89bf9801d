# SPDX-License-Identifier: BSD-2-Clause
"""The thirty ways in which TEE mediation goes wrong; mutants and rules cite their numbers.

Drawn from public fixes and advisories of hypervisors, TEEs and drivers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

BUG_CLASS_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    dict(
        enumerate(
            (
                "double fetch: a checked field is read again from guest memory",
                "the normal world changes a size in an RPC reply",
                "release order: the guest sees a FREE before the pages are unpinned",
                "RPC buffers are assumed to be freed last in, first out",
                "a leak on an error path",
                "a half-done RPC: who frees what could not be translated",
                "exhaustion and long loops",
                "register width: 64 bits are looked at where 32 have meaning",
                "high and low words are swapped",
                "another function than the guest asked for is forwarded",
                "null memory references and page zero",
                "a dead guest, or an ended call, whose pages the TEE still has",
                "reserved ids and missing life cycle",
                "look-up of an object while its last reference goes",
                "races of counts: references, pins, mappings",
                "clean-up uses other bounds or masks than set-up did",
                "the client dies during an RPC",
                "type confusion between kinds of messages, parameters and buffers",
                "page lists in pieces",
                "edges of addresses and lengths",
                "a pinned page changes in stage 2",
                "a lost wake-up",
                "someone else's thread is resumed",
                "stale and foreign cookies",
                "the reply decides what was asked, or an address in it gets through",
                "partial failure in a list of parameters",
                "result registers are undefined or show too much",
                "a call is stuck in flight",
                "temporary and registered memory share a name space",
                "the tail page of an unaligned buffer is forgotten",
            ),
            1,
        )
    )
)
"""What a bug of the class is, by number, 1 to 30."""
