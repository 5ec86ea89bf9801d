# SPDX-License-Identifier: BSD-2-Clause
"""Simulated guests: a small OS with an OP-TEE driver as real kernels behave, and hostile ones."""
