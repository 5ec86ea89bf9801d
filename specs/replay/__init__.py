# SPDX-License-Identifier: BSD-2-Clause
"""Replay of recorded traffic between a normal world and OP-TEE, as a test of both of our sides.

A *trace* is what a tracer in EL3 saw at the SMC boundary. Replayed **as mediator**, the recorded
normal world becomes a guest, the recorded OP-TEE the secure world, and our mediator between them
must be transparent. Replayed **as secure world**, our simulated OP-TEE answers the recorded calls.
"""

from __future__ import annotations

import io
from importlib import resources

from specs.replay.reader import Trace, TraceReader, build_trace, load_trace
from specs.replay.records import TraceError

__all__ = ["Trace", "TraceError", "load_trace", "recorded_session"]


def recorded_session() -> Trace:
    """The recorded Linux session that is part of the distribution.

    Debian Linux 6.12 and OP-TEE 4.10: driver probe, a session with the test pseudo-TA, unload.
    """
    name = "linux-optee-session.jsonl.gz"
    data = resources.files("mediator.scenario").joinpath("data", name).read_bytes()
    with TraceReader(io.BytesIO(data), name) as reader:
        return build_trace(name, iter(reader), reader.unknown)
