# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the wire against what compiled headers printed."""
