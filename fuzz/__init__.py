# SPDX-License-Identifier: BSD-2-Clause
"""Hypothesis strategies, state machines and campaigns that attack a mediator."""
