# SPDX-License-Identifier: BSD-2-Clause
"""Scenarios: an assembled platform, workloads, results and traces."""
