# SPDX-License-Identifier: BSD-2-Clause
"""What a deployment raises."""


class ConcurrentEntry(RuntimeError):
    """A second OS thread entered the mediator while the first was inside."""
