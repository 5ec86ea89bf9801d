# SPDX-License-Identifier: BSD-2-Clause
"""What runs inside the process of an app: message loop, isolation, and the OP-TEE mediator."""
