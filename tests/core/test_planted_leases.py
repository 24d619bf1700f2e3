"""The tests of a lease's life bite: each bug planted here breaks the story that is told beside it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from agent.core import asking, outcomes, outlook, owed, plan, traffic, transfers, waiting
from agent.core.kept import kept_of
from agent.core.lease import Asking, Lease, Pending
from agent.core.model import Grant, Pace
from agent.core.state import State
from tests.core import test_long_leases as long_leases
from tests.core import test_outlook as outlooks
from tests.core import test_patience as patience
from tests.core import test_traffic as traffics
from tests.core import test_uploads as uploads

Patch = pytest.MonkeyPatch
REPLACE = msgspec.structs.replace


def instead(patch: Patch, rule: plan.Rule, other: plan.Rule) -> None:
    patch.setattr(plan, "RULES", tuple(other if one is rule else one for one in plan.RULES))


def never(state: State) -> plan.Step:
    return state, ()


def renewals_are_forgotten(patch: Patch) -> None:
    instead(patch, asking.renew, never)


def a_renewal_counts_from_its_answer(patch: Patch) -> None:
    first = Lease.renewed

    def renewed(self: Lease, answered: Asking, grant: Grant) -> Lease:
        return first(self, REPLACE(answered, sent_ms=answered.sent_ms + 5_000), grant)

    patch.setattr(Lease, "renewed", renewed)


def any_grant_renews(patch: Patch) -> None:
    def answered(state: State, event: object) -> tuple[State, tuple[()]]:
        lease, grant = state.lease, event.grant  # type: ignore[attr-defined]
        if lease is None or grant is None or not lease.renewals:
            return state, ()
        return REPLACE(state, lease=lease.renewed(lease.renewals[0], grant)), ()

    patch.setattr(asking, "_renewal_answered", answered)


def an_old_answer_takes_time_away(patch: Patch) -> None:
    def renewed(self: Lease, answered: Asking, grant: Grant) -> Lease:
        return REPLACE(self, expires_ms=answered.sent_ms + grant.ttl_ms)

    patch.setattr(Lease, "renewed", renewed)


def an_unanswered_renewal_is_waited_for(patch: Patch) -> None:
    def renew(state: State) -> plan.Step:
        waits = state.lease is not None and state.lease.renewals
        return (state, ()) if waits else asking.renew(state)

    instead(patch, asking.renew, renew)


def a_cancel_is_not_heard(patch: Patch) -> None:
    patch.setattr(asking, "cancel_seen", lambda state, _event: (state, ()))


def a_cancel_knows_no_grace(patch: Patch) -> None:
    first = Lease.cancelled
    patch.setattr(Lease, "cancelled", lambda self, by_ms, why: first(self, by_ms - 10**6, why))


def a_later_cancel_gives_time(patch: Patch) -> None:
    patch.setattr(Lease, "cancelled", lambda self, by_ms, why: REPLACE(self, cancel_ms=by_ms, cancel_why=why))


def a_closed_fleet_is_asked(patch: Patch) -> None:
    patch.setattr(asking, "pace_seen", lambda state, _event: (state, ()))


def a_stop_lets_the_lease_go_on(patch: Patch) -> None:
    first = asking.cause_to_end
    patch.setattr(asking, "cause_to_end", lambda state, lease: first(REPLACE(state, pace=Pace()), lease))


def an_opening_is_answered_at_once(patch: Patch) -> None:
    first = asking.pace_seen
    patch.setattr(
        asking,
        "pace_seen",
        lambda state, event: first(state, REPLACE(event, pace=REPLACE(event.pace, spread_ms=0))),
    )


def a_renewal_on_its_way_keeps_the_lease(patch: Patch) -> None:
    def cause(state: State, lease: Lease) -> object:
        return None if lease.renewals else first(state, lease)

    first = asking.cause_to_end
    patch.setattr(asking, "cause_to_end", cause)


def a_lease_that_comes_to_nothing_costs_no_wait(patch: Patch) -> None:
    patch.setattr(asking, "fruitless", lambda state, *_first_ms: state)
    patch.setattr(owed, "fruitless", lambda state, *_first_ms: state)


def whatever_is_granted_is_begun(patch: Patch) -> None:
    patch.setattr(asking, "too_short", lambda _state, _lease: "")


def heat_is_not_thought_of(patch: Patch) -> None:
    patch.setattr(outlook, "_duty_permille", lambda _state: 1000)


def departures_are_not_thought_of(patch: Patch) -> None:
    patch.setattr(outlook, "_by_the_clock", lambda _state: iter(()))


def the_dispatcher_knows_better(patch: Patch) -> None:
    patch.setattr(outlook, "needed_ms", lambda _state, lease: lease.grant.expected_ms)


def an_untrusted_clock_tells_the_outlook(patch: Patch) -> None:
    first = outlook.outlook

    def told(state: State) -> object:
        return first(REPLACE(state, wall=REPLACE(state.wall, problem="", offset_ms=0)))

    patch.setattr(outlooks, "outlook", told)


def nobody_is_waited_for(patch: Patch) -> None:
    patch.setattr(asking, "full_jitter_ms", lambda _bound, _share: 0)


def cars_wait_in_step(patch: Patch) -> None:
    patch.setattr(asking, "full_jitter_ms", lambda bound, _share: waiting.full_jitter_ms(bound, 0.5))


def the_outbox_comes_back_in_a_burst(patch: Patch) -> None:
    patch.setattr(owed, "OFFER_EVERY_MS", 0)


def a_restart_asks_with_an_old_hand_in(patch: Patch) -> None:
    patch.setattr(Pending, "left_behind", lambda self: self)


def a_reconnect_forgets_who_must_wait(patch: Patch) -> None:
    first = Pending.put_off
    patch.setattr(Pending, "put_off", lambda self, until_ms: REPLACE(first(self, until_ms), not_before_ms=0))


def a_refused_hand_in_still_asks(patch: Patch) -> None:
    def undelivered(state: State, event: object) -> object:
        after, news = first(state, event)  # type: ignore[arg-type]
        return REPLACE(after, asking=state.asking), news

    first = owed.undelivered
    patch.setattr(owed, "undelivered", undelivered)


def every_attempt_of_the_link_is_told(patch: Patch) -> None:
    first = outcomes.link_changed

    def link_changed(state: State, event: object) -> object:
        return first(REPLACE(state, link_told=None), event)  # type: ignore[arg-type]

    patch.setattr(outcomes, "link_changed", link_changed)


def two_uploads_at_once(patch: Patch) -> None:
    def upload(state: State) -> plan.Step:
        after, effects = transfers.upload(state)
        return REPLACE(after, uploading=None), effects

    instead(patch, transfers.upload, upload)


def uploads_go_on_with_the_driver_here(patch: Patch) -> None:
    instead(patch, transfers.pause_transfers, never)


def an_upload_is_paused_again_and_again(patch: Patch) -> None:
    def pause(state: State) -> plan.Step:
        return transfers.pause_transfers(REPLACE(state, transfers_paused=False))

    instead(patch, transfers.pause_transfers, pause)


def what_lacks_answers_is_sent(patch: Patch) -> None:
    patch.setattr(Pending, "ready", property(lambda self: self.verdict is None))


def a_failed_upload_is_tried_at_once(patch: Patch) -> None:
    patch.setattr(transfers, "full_jitter_ms", lambda _bound, _share: 0)
    patch.setattr(transfers, "LEAST_MS", 0)


def the_first_in_the_queue_keeps_the_others(patch: Patch) -> None:
    first = transfers._holders
    patch.setattr(transfers, "_holders", lambda state: first(state)[:1])


def an_unknown_network_costs_nothing(patch: Patch) -> None:
    first = outcomes.bytes_moved

    def bytes_moved(state: State, event: object) -> State:
        return first(state, event) if state.metered else state  # type: ignore[arg-type]

    patch.setattr(outcomes, "bytes_moved", bytes_moved)


def a_restart_brings_a_new_cap(patch: Patch) -> None:
    patch.setattr(traffics, "kept_of", lambda state: REPLACE(kept_of(state), metered_used_bytes=0))


def the_cap_never_ends(patch: Patch) -> None:
    patch.setattr(traffic.Traffic, "used_at", lambda self, _now_ms: self.used_bytes)


Plant = Callable[[Patch], None]
Story = Callable[[], None]
BUGS: list[tuple[Plant, Story]] = [
    (renewals_are_forgotten, long_leases.test_a_long_lease_asks_for_time_and_lives_from_when_it_asked),
    (a_renewal_counts_from_its_answer, long_leases.test_a_long_lease_asks_for_time_and_lives_from_when_it_asked),
    (any_grant_renews, lambda: long_leases.test_only_the_same_lease_is_renewed(REPLACE(long_leases.LONG, epoch=2))),
    (
        an_old_answer_takes_time_away,
        long_leases.test_a_late_answer_to_an_earlier_renewal_gives_its_own_time_and_never_takes_any,
    ),
    (
        an_unanswered_renewal_is_waited_for,
        long_leases.test_a_renewal_that_nobody_answers_is_repeated_and_the_lease_ends_at_its_time,
    ),
    (a_cancel_is_not_heard, long_leases.test_a_cancelled_lease_is_given_back_with_what_is_finished),
    (a_cancel_knows_no_grace, long_leases.test_a_grace_lets_the_work_go_on_and_the_earliest_end_stands),
    (a_later_cancel_gives_time, long_leases.test_a_grace_lets_the_work_go_on_and_the_earliest_end_stands),
    (a_closed_fleet_is_asked, long_leases.test_a_closed_fleet_is_asked_for_nothing_and_what_is_leased_goes_on),
    (a_stop_lets_the_lease_go_on, long_leases.test_a_stopped_fleet_gets_back_what_is_leased),
    (an_opening_is_answered_at_once, long_leases.test_cars_that_hear_together_that_the_fleet_opens_ask_spread),
    (
        a_renewal_on_its_way_keeps_the_lease,
        long_leases.test_a_renewal_that_nobody_answers_is_repeated_and_the_lease_ends_at_its_time,
    ),
    (
        a_lease_that_comes_to_nothing_costs_no_wait,
        long_leases.test_a_dispatcher_that_cancels_every_lease_is_asked_less_and_less,
    ),
    (
        a_lease_that_comes_to_nothing_costs_no_wait,
        outlooks.test_a_dispatcher_that_never_grants_what_fits_is_asked_less_and_less,
    ),
    (whatever_is_granted_is_begun, outlooks.test_what_cannot_be_finished_in_its_own_time_is_given_back_unopened),
    (heat_is_not_thought_of, outlooks.test_heat_makes_a_lease_longer),
    (departures_are_not_thought_of, outlooks.test_the_departure_is_an_edge_to_the_second),
    (the_dispatcher_knows_better, outlooks.test_what_was_learned_of_a_package_counts_before_what_the_dispatcher_thinks),
    (an_untrusted_clock_tells_the_outlook, outlooks.test_nobody_knows_while_the_clock_cannot_be_trusted),
    (nobody_is_waited_for, patience.test_a_dispatcher_that_is_gone_is_asked_less_and_less_and_an_answer_ends_that),
    (cars_wait_in_step, patience.test_cars_that_lost_their_dispatcher_together_do_not_ask_together),
    (
        the_outbox_comes_back_in_a_burst,
        patience.test_a_full_outbox_comes_back_one_a_second_and_only_then_is_more_asked_for,
    ),
    (
        a_restart_asks_with_an_old_hand_in,
        patience.test_what_an_earlier_run_may_have_sent_never_asks_for_the_next_lease,
    ),
    (
        a_reconnect_forgets_who_must_wait,
        lambda: patience.test_what_the_broker_does_not_take_waits_through_reconnects_and_others_go_on(
            True, 2_700_000, 4_500_000
        ),
    ),
    (a_refused_hand_in_still_asks, patience.test_a_hand_in_that_was_refused_has_asked_for_nothing),
    (
        every_attempt_of_the_link_is_told,
        patience.test_a_link_that_stays_down_is_told_of_once_whatever_each_broker_says,
    ),
    (
        two_uploads_at_once,
        uploads.test_a_bulky_lease_is_worked_to_its_end_and_its_answers_go_up_one_at_a_time,
    ),
    (uploads_go_on_with_the_driver_here, uploads.test_the_driver_pauses_an_upload_once_and_it_goes_on_afterwards),
    (an_upload_is_paused_again_and_again, uploads.test_the_driver_pauses_an_upload_once_and_it_goes_on_afterwards),
    (what_lacks_answers_is_sent, uploads.test_a_hand_in_that_lacks_answers_is_not_sent_before_they_are_up),
    (
        a_failed_upload_is_tried_at_once,
        uploads.test_a_failed_upload_is_tried_again_later_each_time_and_told_once_with_its_recovery,
    ),
    (the_first_in_the_queue_keeps_the_others, uploads.test_answers_that_nobody_takes_keep_no_others),
    (
        an_unknown_network_costs_nothing,
        lambda: traffics.test_bytes_count_unless_the_network_is_known_to_be_free(None, True),
    ),
    (a_restart_brings_a_new_cap, traffics.test_a_restart_gives_no_new_cap_and_a_reboot_none_either),
    (the_cap_never_ends, traffics.test_a_cap_that_is_used_up_holds_until_the_day_is_over),
]


@pytest.mark.parametrize(("plant", "story"), BUGS, ids=[plant.__name__ for plant, _ in BUGS])
def test_each_planted_bug_is_found(plant: Plant, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, IndexError)):
        story()
