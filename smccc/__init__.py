# SPDX-License-Identifier: BSD-2-Clause
"""The wire: SMCCC, the OP-TEE SMC and message ABI. Values in, values out; no state."""
