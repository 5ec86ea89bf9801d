# SPDX-License-Identifier: BSD-2-Clause
"""The simulated guest driver against the real one, call by call.

A recorded session of a real Linux guest (``optee-mediator live --record``) and the same workload run by
the simulated guest are both cut into operations, aligned and compared field by field. Differences
either have a reason in :mod:`~mediator.live.comparison.reasons` or are findings.
"""
