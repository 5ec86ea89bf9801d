# SPDX-License-Identifier: BSD-2-Clause
"""The one error of the memory model: somebody who must keep the books did not."""

from __future__ import annotations


class InvariantError(AssertionError):
    """A caller inside the hypervisor broke a rule of the memory model; never a guest's doing.

    A reference dropped twice, a frame given away twice, an access outside of RAM: a defect of the
    mediator, of the machine or of a test, so it is loud. ``call`` names the operation, ``rule`` what
    it broke. Nothing was changed by the failing call unless its documentation says so.
    """

    def __init__(self, call: str, rule: str) -> None:
        super().__init__(f"{call}: {rule}")
        self.call = call
        self.rule = rule
