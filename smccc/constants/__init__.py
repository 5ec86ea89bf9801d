# SPDX-License-Identifier: BSD-2-Clause
"""ABI constants, named as in the headers that define them."""
