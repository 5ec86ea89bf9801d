# SPDX-License-Identifier: BSD-2-Clause
"""All interleavings of small systems: what a test with one schedule, or a thousand, cannot show.

* :mod:`mediator.explore.engine`: goes through the schedules of a system.
* :mod:`mediator.explore.state`: when two systems are in the same state.
* :mod:`mediator.explore.bench`: a mediator, a TEE and guests, small and quick to make.
* :mod:`mediator.explore.systems`: the systems, by name.
* :mod:`mediator.explore.story`: a schedule as a story.
"""
