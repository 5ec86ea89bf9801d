# SPDX-License-Identifier: BSD-2-Clause
"""Containment: the app dies, lies or hangs at every message of a session, in every state of its calls.

Each case is a whole simulated machine whose mediator is an app, run to its end and judged: who was
involved gets defined errors, nobody waits for ever, nothing is left, and new guests are served (I9).
``python -m fuzz.containment --help``.
"""
