# SPDX-License-Identifier: BSD-2-Clause
"""The command ``optee-mediator``."""
