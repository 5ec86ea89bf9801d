# SPDX-License-Identifier: BSD-2-Clause
"""``python -I -m mediator.app``: the OP-TEE mediator as an app, on descriptors 0 to 2."""

from mediator.app.isolation import single_threaded

single_threaded()  # before NumPy is loaded

from mediator.app.optee import OpteeApp  # noqa: E402
from mediator.app.runtime import serve  # noqa: E402

serve(OpteeApp)
