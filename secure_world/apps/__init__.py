# SPDX-License-Identifier: BSD-2-Clause
"""Built-in trusted applications."""
