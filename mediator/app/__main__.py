# SPDX-License-Identifier: BSD-2-Clause
"""``python -I -m mediator.app``: the OP-TEE mediator as an app, on descriptors 0 to 2."""

import gc

# What is made while modules are loaded stays; to look for garbage in it takes time and finds none.
gc.disable()

from mediator.app.optee import OpteeApp  # noqa: E402
from mediator.app.runtime import serve  # noqa: E402

serve(OpteeApp)
