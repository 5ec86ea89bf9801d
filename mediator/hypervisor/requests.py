# SPDX-License-Identifier: BSD-2-Clause
"""What a suspended vCPU asks of its pCPU."""

from __future__ import annotations

from typing import NamedTuple


class Stop(NamedTuple):
    """Request to the pCPU: the stop time is reached."""


class Wait(NamedTuple):
    """Request to the pCPU: block until an interrupt is deliverable."""


class PowerOff(NamedTuple):
    """Request to the pCPU: this vCPU never continues its program."""


class Restart(NamedTuple):
    """Request to the pCPU: start the program again from its boot arguments."""


class Fault(NamedTuple):
    """Request to the pCPU: a part of the machine raised during a trap; not the guest's doing."""

    error: Exception
