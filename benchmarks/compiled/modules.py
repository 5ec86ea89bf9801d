# SPDX-License-Identifier: BSD-2-Clause
"""The hot modules: everything that an invoke passes on its way, and why each is compiled.

Left out on purpose: what an invoke does not pass; exceptions and switch points written as bare
generators, which only the interpreter runs (``mediator.deployment.errors`` and ``suspending``,
``mediator.hypervisor.requests``, ``secure_world.leaving``); and ``secure_world.ta``, whose classes
users inherit from.
"""

from __future__ import annotations

from typing import Final

HOT: Final[dict[str, str]] = {
    "smccc.wire": "the message codec; its tables",
    "mediator.host": "shadow pages; sizes that become numbers in the code",
    "mediator.optee.mediator": "the entry: which call goes where",
    "mediator.optee.call": "the life of a yielding call",
    "mediator.optee.core": "release of a call, shadow pages",
    "mediator.optee.plan": "results to copy back, by shape of the message",
    "mediator.optee.records": "guests, calls and buffers: attributes of every step",
    "mediator.deployment.direct": "the system calls, as calls of the host",
    "mediator.hypervisor.host": "the host's services",
    "mediator.hypervisor.guests": "loads and stores of a guest",
    "mediator.hypervisor.bus": "every touch of memory by the secure world",
    "mediator.hypervisor.vcpu": "the trap",
    "mediator.hypervisor.traps": "who answers a trap",
    "mediator.hypervisor.monitor": "time and interrupts as the secure world asks for them",
    "mediator.hypervisor.accounting": "counts of each operation",
    "mediator.hypervisor.scheduler": "the strand, whose clock every step advances",
    "mediator.hypervisor.pcpu": "the strand that executes a vCPU",
    "mediator.hypervisor.task": "inherits from the strand",
    "secure_world.world": "the entry of the secure world",
    "secure_world.entry": "from the registers to the message; INVOKE_COMMAND",
    "secure_world.thread": "threads: attributes, results into the message",
    "secure_world.params": "parameters into the TA and back",
    "secure_world.shm": "shared memory behind a parameter",
    "secure_world.partition": "attributes of every step",
    "secure_world.session": "sessions and instances: attributes of every call",
}
"""Module to the reason why it is compiled."""

OPEN: Final[dict[str, tuple[str, ...]]] = {
    "mediator.deployment.direct": ("Immediate", "DirectSyscalls"),
    "mediator.hypervisor.guests": ("GuestMemory",),
    "mediator.hypervisor.host": ("ReferenceHost",),
}
"""Compiled classes from which interpreted ones inherit: the build marks them so in its copy."""
