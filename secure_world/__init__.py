# SPDX-License-Identifier: BSD-2-Clause
"""The simulated OP-TEE."""
