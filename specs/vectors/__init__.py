# SPDX-License-Identifier: BSD-2-Clause
"""Golden vectors: reading them, running them against a target, and reporting what differs."""
