# SPDX-License-Identifier: BSD-2-Clause
"""Hypothesis strategies and state machines that attack a mediator.

* :mod:`fuzz.strategies`: what to draw. Registers, function ids, messages, page lists, memory maps,
  answers of either world; valid and hostile.
* :mod:`fuzz.hostile_guest`: a state machine of a hostile guest beside an honest one, for any
  :class:`specs.target.Target`, with an honest or a lying secure world.
* :mod:`fuzz.platform`: whole simulated platforms from one small value, with faults, under the watch
  of all checkers.

Needs the extra ``fuzz`` (Hypothesis); without it this import fails and says so.
"""

from secure_world.apps.cipher import MissingExtra

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise MissingExtra("fuzz", "hypothesis") from error
