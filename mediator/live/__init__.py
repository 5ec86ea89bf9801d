# SPDX-License-Identifier: BSD-2-Clause
"""Live guests: unmodified Linux kernels under emulation, on our mediator and simulated secure world."""
