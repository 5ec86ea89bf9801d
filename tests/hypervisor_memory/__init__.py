# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the memory half of the reference hypervisor."""
