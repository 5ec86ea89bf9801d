# SPDX-License-Identifier: BSD-2-Clause
"""The bug zoo: one module per part of the system, each with a tuple ``MUTANTS``."""
