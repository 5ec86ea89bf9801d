# SPDX-License-Identifier: BSD-2-Clause
"""What to draw: the strategies that tests of a mediator, a driver or a TEE need, by what they make.

Everything here shrinks towards something small, honest and adjacent, and draws the same values for
the same seed. ``hostile_*`` has one flaw, which the label of what is drawn names; ``any_*`` is honest or
hostile. Whole platforms (:mod:`fuzz.strategies.scenarios`) are not repeated here: they import all of
the simulation.

>>> from hypothesis import find
>>> hex(find(function_ids(), lambda value: value >> 24 == 0x32))
'0x32000003'
"""

from fuzz.strategies.answers import (
    ReplyFlaw,
    hostile_rpc_answers,
    pending_rpcs,
    replies,
    rpc_answers,
)
from fuzz.strategies.applications import COMMANDS, application_calls
from fuzz.strategies.disturbances import (
    QUIET,
    Disturbance,
    Remap,
    disturbances,
    racing_writes,
    remaps,
)
from fuzz.strategies.function_ids import (
    FunctionClass,
    function_class,
    function_ids,
    known_function_ids,
    unknown_function_ids,
)
from fuzz.strategies.integers import asymmetric_pairs, buffer_sizes, edge_integers, page_counts
from fuzz.strategies.maps import memory_maps, page_ranges
from fuzz.strategies.messages import (
    COOKIES,
    Prepared,
    any_messages,
    hostile_messages,
    invocations,
    messages,
    open_sessions,
    raw_messages,
    registrations,
    unregistrations,
)
from fuzz.strategies.page_lists import (
    ListedBuffer,
    ListFlaw,
    any_listed_buffers,
    hostile_listed_buffers,
    listed_buffers,
)
from fuzz.strategies.registers import (
    call_frames,
    calls,
    hostile_frames,
    register_frames,
    rubbish_above,
    traps,
)
from fuzz.strategies.tee import AnswerClass, TeeAnswer, TeeStore, Where, tee_answers

__all__ = [
    "COMMANDS",
    "COOKIES",
    "QUIET",
    "AnswerClass",
    "Disturbance",
    "FunctionClass",
    "ListFlaw",
    "ListedBuffer",
    "Prepared",
    "Remap",
    "ReplyFlaw",
    "TeeAnswer",
    "TeeStore",
    "Where",
    "any_listed_buffers",
    "any_messages",
    "application_calls",
    "asymmetric_pairs",
    "buffer_sizes",
    "call_frames",
    "calls",
    "disturbances",
    "edge_integers",
    "function_class",
    "function_ids",
    "hostile_frames",
    "hostile_listed_buffers",
    "hostile_messages",
    "hostile_rpc_answers",
    "invocations",
    "known_function_ids",
    "listed_buffers",
    "memory_maps",
    "messages",
    "open_sessions",
    "page_counts",
    "page_ranges",
    "pending_rpcs",
    "racing_writes",
    "raw_messages",
    "register_frames",
    "registrations",
    "remaps",
    "replies",
    "rpc_answers",
    "rubbish_above",
    "tee_answers",
    "traps",
    "unknown_function_ids",
    "unregistrations",
]
