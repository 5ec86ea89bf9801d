# SPDX-License-Identifier: BSD-2-Clause
"""Homes of the mediator: in the hypervisor, an EL0 app, a stub domain."""
