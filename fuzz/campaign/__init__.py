# SPDX-License-Identifier: BSD-2-Clause
"""Campaigns: millions of SMCs in a swarm of small whole systems, under the watch of all checkers.

Each system comes from one number: which guests there are, what they do, how the machine schedules
them, and what goes wrong. What occurs is counted by kind; a campaign in which something that can occur
is too rare has not shown anything about it, and fails. ``python -m fuzz.campaign --help``.
"""
