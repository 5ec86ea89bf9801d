# SPDX-License-Identifier: BSD-2-Clause
"""The OP-TEE mediator, its reference hypervisor, simulated guests and the command."""
