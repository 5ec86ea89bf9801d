# SPDX-License-Identifier: BSD-2-Clause
"""Differences that a mediator is allowed, each under a rule with a name, a sentence and a source.

A rule never hides a difference by itself: the code that applies it checks that the rule's situation
is there *and* that the mediator did exactly what the rule says. Anything else is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs


@attrs.frozen
class Rule:
    """An allowed difference. ``source``: the part of the project's decisions that says so."""

    id: str
    sentence: str
    source: str


HIDDEN_CAPABILITIES: Final = "hidden-capabilities"
NOT_OFFERED: Final = "not-offered"
OWN_CALLS_COUNT: Final = "own-calls-count"
TOO_MANY_PARAMETERS: Final = "too-many-parameters"
UNKNOWN_COMMAND: Final = "command-not-mediated"
ONE_PAGE: Final = "message-in-one-page"
REFUSED_EARLIER: Final = "refused-by-mediator"
OWN_LIMITS: Final = "own-limits"
LIVE_REFERENCE: Final = "live-reference"
CONTIGUOUS: Final = "contiguous-as-list"
PAGE_NUMBERS: Final = "page-numbers"
UNTRANSLATABLE: Final = "untranslatable-allocation"
ZEROED: Final = "address-in-answer-zeroed"
RPC_BUFFER: Final = "rpc-buffer-refused"
CROWDED: Final = "crowded-answer"
ADDRESS_IN_REQUEST: Final = "address-in-request"
RESERVED: Final = "reserved-memory"
UNKNOWN_CLIENT: Final = "unknown-client"
HYPERVISOR_CALL: Final = "hypervisor-call"
BEFORE_TRACE: Final = "before-the-trace"
LIFE_CYCLE: Final = "one-instance"
TEARDOWN: Final = "teardown-waits"

_OFFERS: Final = "what a guest is offered"
_FORWARDING: Final = "forwarding"
_REPLAY: Final = "replay of real traffic"
_REFERENCE: Final = "behaviour of the reference mediator"

_ALL: Final = (
    Rule(
        HIDDEN_CAPABILITIES,
        "Capability bits 0, 3, 8 and up are hidden; without DYNAMIC_SHM the answer is ENOTAVAIL.",
        _OFFERS,
    ),
    Rule(
        NOT_OFFERED,
        "GET_SHM_CONFIG answers ENOTAVAIL; L2CC_MUTEX, BOOT_SECONDARY, VM_*, GET_PROTMEM_CONFIG "
        "and every unknown id, yielding ones too, answer -1.",
        _OFFERS,
    ),
    Rule(OWN_CALLS_COUNT, "CALLS_COUNT counts the mediator's own functions.", _OFFERS),
    Rule(
        TOO_MANY_PARAMETERS,
        "More than 127 parameters: x0 is OK, ret BAD_PARAMETERS, origin COMMS.",
        _OFFERS,
    ),
    Rule(UNKNOWN_COMMAND, "Message commands above 7 get EBADCMD and are not forwarded.", _OFFERS),
    Rule(ONE_PAGE, "Message and RPC argument must fit one page, otherwise EBADADDR.", _FORWARDING),
    Rule(
        REFUSED_EARLIER,
        "A buffer that OP-TEE refuses is refused by the mediator already: BAD_PARAMETERS or "
        "OUT_OF_MEMORY with origin COMMS instead of OP-TEE's own result and origin.",
        _FORWARDING,
    ),
    Rule(
        OWN_LIMITS,
        "A buffer beyond the mediator's limits is refused: OUT_OF_MEMORY, origin COMMS.",
        _OFFERS,
    ),
    Rule(
        LIVE_REFERENCE,
        "A list under a reference that is live in the guest is refused with BAD_PARAMETERS, origin "
        "COMMS, although OP-TEE accepts it.",
        _FORWARDING,
    ),
    Rule(
        CONTIGUOUS,
        "A contiguous temporary buffer is sent as a page list under a reference of the mediator.",
        _FORWARDING,
    ),
    Rule(
        PAGE_NUMBERS,
        "Under the preset of the reference, list entries are cut to page numbers: their low 12 bits "
        "are dropped, not refused.",
        _REFERENCE,
    ),
    Rule(
        UNTRANSLATABLE,
        "Memory of the guest that cannot be shared: the mediator asks the guest to free it and "
        "tells OP-TEE that the allocation failed.",
        _FORWARDING,
    ),
    Rule(
        ZEROED,
        "A nonzero temporary-memory address in an RPC answer other than that of SHM_ALLOC is zeroed.",
        _FORWARDING,
    ),
    Rule(
        RPC_BUFFER,
        "An RPC message buffer that is not a page of the guest's RAM, or whose cookie is in use, is "
        "a failed allocation (address 0) to OP-TEE.",
        _REFERENCE,
    ),
    Rule(
        CROWDED,
        "An RPC answer with more parameters than its argument has room for is a generic error to "
        "OP-TEE.",
        _REFERENCE,
    ),
    Rule(
        ADDRESS_IN_REQUEST,
        "An RPC request with a nonzero temporary-memory address never reaches the guest: it fails "
        "towards the secure world.",
        _FORWARDING,
    ),
    Rule(
        RESERVED,
        "The reserved shared memory is ordinary RAM of the guest: messages in it must be page aligned.",
        _OFFERS,
    ),
    Rule(
        UNKNOWN_CLIENT,
        "A guest without a partition has no mediator either: -1 where OP-TEE answers ENOTAVAIL.",
        _OFFERS,
    ),
    Rule(
        HYPERVISOR_CALL,
        "With virtualization, calls of client 0 are the hypervisor's own and pass no mediator.",
        _REPLAY,
    ),
    Rule(
        BEFORE_TRACE,
        "Threads that were suspended and buffers that were registered before the trace begins are "
        "unknown to a mediator that starts with it: ERESUME, EBADADDR.",
        _REPLAY,
    ),
    Rule(
        LIFE_CYCLE,
        "A mediator creates one partition for a guest and destroys what it created: VM_CREATED of "
        "client 0 or of a live client, and VM_DESTROYED of an unknown one, are not its steps.",
        _REPLAY,
    ),
    Rule(
        TEARDOWN,
        "A guest is destroyed once its entries are out of the mediator.",
        _REPLAY,
    ),
)

RULES: Final[Mapping[str, Rule]] = MappingProxyType({rule.id: rule for rule in _ALL})
"""Rule id to rule."""

PASSED_CAPABILITIES: Final = 0xF6
"""Capability bits that HIDDEN_CAPABILITIES does not name."""

NOT_COMPARED: Final = (
    (
        "registers a1, a2 and a4 to a6 of forwarded calls",
        "a message is compared itself instead of its address; what is left has no meaning there "
        "(a4:a5 of an answered RPC ALLOC do mean something and are compared)",
    ),
    ("a3 of CALL_WITH_ARG and CALL_WITH_RPC_ARG", "a cache attribute that OP-TEE ignores"),
    ("a1 to a3 of a final answer", "left-over values; a guest gets its own registers back"),
    ("a4 to a7 of answers", "EL3 preserves the caller's values"),
    ("upper halves of registers", "the ABI has 32 bits"),
    (
        "addresses as numbers",
        "no IPA equals its PA: what they point to is compared, page lists entry by entry",
    ),
    ("the last word of a full list page", "never part of the list; Linux leaves rubbish there"),
    (
        "memory beyond what was recorded",
        "messages above 64 parameters are recorded as headers, buffers up to 256 bytes",
    ),
    (
        "contents of page lists outside registrations",
        "not recorded; a list that fits the recorded buffer is made up",
    ),
    ("time", "answers come when the recording has them"),
)
"""(what, why): printed in every report."""
