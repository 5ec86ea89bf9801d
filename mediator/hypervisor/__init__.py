# SPDX-License-Identifier: BSD-2-Clause
"""The reference host: memory, stage-2, vCPUs, interrupts, scheduler, traps."""
