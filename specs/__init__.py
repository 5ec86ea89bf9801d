# SPDX-License-Identifier: BSD-2-Clause
"""ABI tables as data, rules, golden-vector runner, replay of recorded traffic."""
