# SPDX-License-Identifier: BSD-2-Clause
"""The mediator proper; knows only system calls and the ABI."""
