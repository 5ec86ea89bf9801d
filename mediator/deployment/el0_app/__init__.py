# SPDX-License-Identifier: BSD-2-Clause
"""The mediator as an EL0 app: the hypervisor's side of the process boundary."""
