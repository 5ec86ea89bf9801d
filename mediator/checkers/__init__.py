# SPDX-License-Identifier: BSD-2-Clause
"""Executable invariants I1 to I8 that watch any run."""
