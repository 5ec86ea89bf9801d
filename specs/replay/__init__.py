# SPDX-License-Identifier: BSD-2-Clause
"""Replay of recorded traffic between a normal world and OP-TEE, as a test of both of our sides.

A *trace* is what a tracer in EL3 saw at the SMC boundary. Replayed **as mediator**, the recorded
normal world becomes a guest, the recorded OP-TEE the secure world, and our mediator between them
must be transparent. Replayed **as secure world**, our simulated OP-TEE answers the recorded calls.
"""

from __future__ import annotations

from specs.replay.reader import Trace, load_trace
from specs.replay.records import TraceError

__all__ = ["Trace", "TraceError", "load_trace"]
