# SPDX-License-Identifier: BSD-2-Clause
"""The OP-TEE mediator, its reference hypervisor, simulated guests and the command.

Who embeds the mediator needs what is named here, and :class:`~mediator.host.Host` to implement.
"""

from mediator.deployment.face import (
    Completed,
    ConcurrentEntry,
    Done,
    NotMine,
    Preempted,
    Refused,
    Undefined,
)
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import Host, HostError, Shadow
from mediator.optee.settings import Limits, MediatorSettings

__all__ = [
    "Completed",
    "ConcurrentEntry",
    "Done",
    "Host",
    "HostError",
    "InHypervisor",
    "Limits",
    "MediatorSettings",
    "NotMine",
    "Preempted",
    "Refused",
    "Shadow",
    "Undefined",
]
