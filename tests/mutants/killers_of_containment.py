# SPDX-License-Identifier: BSD-2-Clause
"""Who kills the mutants of what happens when an app dies: cases of the campaign, and tests of its own."""

from __future__ import annotations

from tests.el0_app import test_aftermath as aftermath
from tests.el0_app import test_containment_life as life
from tests.fuzz import test_containment as campaign
from tests.mutants.killer import Killer, by

DEATH = by(campaign.test_a_case, "one app; brief", "death after", "handle smc", "SMC", 30)
"""The app dies in the middle of a session."""
WAITS = by(campaign.test_a_case, "one app", "death after", "handle smc", "SMC", 150)
"""The same while threads wait for notifications."""
OWN = by(campaign.test_a_case, "an app per guest; brief", "death after", "handle smc", "SMC", 30)
"""The same where each guest has an app of its own."""
UNDER_A_CALL = by(life.test_the_control_domain_is_renewed_when_its_own_app_is_buried_and_not_before)

CONTAINMENT: dict[str, Killer] = {
    "containment.pins-of-the-lost": DEATH,
    "containment.shadows-of-the-dead": DEATH,
    "containment.partition-outlives-the-app": DEATH,
    "containment.client-id-again": by(campaign.test_a_second_death_soon_after_the_first, 150),
    "containment.old-client-id": DEATH,
    "containment.restart-without-init": DEATH,
    "containment.lost-guest-is-served": DEATH,
    "containment.buried-under-a-call": UNDER_A_CALL,
    "containment.renewed-under-a-call": UNDER_A_CALL,
    "containment.control-shares-an-app": by(
        life.test_a_renewed_control_domain_has_its_app_for_itself
    ),
    "containment.nobody-is-told": WAITS,
    "containment.one-start-only": by(
        life.test_an_app_that_dies_while_it_is_started_again_is_started_once_more
    ),
    "containment.no-app-again": DEATH,
    "containment.panic-is-free": by(
        life.test_a_turn_that_ends_in_panic_is_on_the_account_of_its_guest
    ),
    "containment.loss-not-reported": DEATH,
    "containment.refusal-believed": by(
        life.test_an_app_that_keeps_what_a_guest_had_is_ended, "refused"
    ),
    "containment.app-outlives-its-guest": OWN,
    "containment.control-refused-at-birth": by(
        life.test_a_control_domain_whose_app_dies_at_its_creation_exists_all_the_same
    ),
    "containment.served-before-it-probes": by(
        aftermath.test_the_control_domain_gets_nowhere_before_its_driver_has_probed
    ),
}
