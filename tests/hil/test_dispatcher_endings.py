"""How leases end that do not go well, and what a unit or the network can and cannot do by that to a job."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import JobKey, Outlook, Verdict, YieldReason
from agent.fleet.messages import JobGrant, Renew, encode
from agent.fleet.operator_messages import CancelMessage
from agent.trust.statement import Statement
from hil.dispatcher.book import Terms
from hil.dispatcher.item_errors import count_failed, error_of
from hil.dispatcher.rates import OUTLIER, Measured, believed_ms
from hil.dispatcher.tickets import MOST_KEPT
from hil.dispatcher.view import View
from tests.hil.honest_car import PRICE, Car, Desk, bent

HOUR_MS = 3_600_000
A_WHILE_MS = 1_000_000
"""No job waits longer before it is granted again."""


def key(grant: JobGrant) -> JobKey:
    return JobKey(grant.job, grant.epoch)


def state(desk: Desk, job: str) -> str:
    with View(desk.folder) as view:
        return next(one.state for one in view.jobs() if one.job == job)


def rows(desk: Desk, table: str) -> int:
    found = desk.book.database.row(f"SELECT count(*) AS many FROM {table}")
    assert found is not None
    return int(found["many"])


# --- withdrawn -------------------------------------------------------------------------------------------------


def test_a_job_that_was_given_back_and_withdrawn_is_not_sent_again(desk: Desk, car: Car) -> None:
    job = desk.add_job()
    given_back = car.must_request()
    car.hand_in(car.yielded(given_back))
    desk.service.cancel(job, withdraw=True)
    desk.sent.clear()
    assert car.request() is None
    assert car.request(key(given_back)) is None
    assert [(one.job, one.epoch) for one in car.cancelled] == [(job, 1)], "should the car work on it, it is told"
    assert state(desk, job) == "cancelled"


def test_the_grace_of_a_withdrawn_lease_can_be_cut_short_and_not_prolonged(desk: Desk, car: Car) -> None:
    job = desk.add_job(ttl_s=7_200)
    grant = car.must_request()
    assert desk.service.cancel(job, 3_600, withdraw=True) is not None
    for asked_s, left_s in ((10, 10), (600, 10)):
        message = desk.service.cancel(job, asked_s)
        assert message is not None
        assert (message.unit, message.epoch, message.grace_s) == (car.unit, 1, left_s)
    desk.sent.clear()
    assert car.hand_in(car.yielded(grant, (0,), YieldReason.CANCELLED)).verdict is Verdict.SETTLED
    assert desk.service.cancel(job) is None, "nobody has it any more"


# --- renewed ---------------------------------------------------------------------------------------------------


def renew(car: Car, desk: Desk, grant: JobGrant, done: int) -> bool:
    """Whether the lease was prolonged."""
    car.say("renew", encode(Renew(rid="rn", job=grant.job, epoch=grant.epoch, done=done)))
    return desk.sent.pop()[0].endswith("/grant")


def test_a_lease_that_is_never_to_be_renewed_is_not(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job(ttl_s=600)
    grant = car.must_request()
    assert isinstance(car.renew(grant), CancelMessage)
    desk.now_ms += 600_000
    assert other.must_request().epoch == 2


def test_a_lease_that_does_not_get_on_is_not_renewed_for_ever(desk: Desk, car: Car) -> None:
    desk.add_job(items=100, slice_items=10, ttl_s=3_600)
    grant = car.must_request()
    kept_ms = 0
    while renew(car, desk, grant, done=1):
        desk.now_ms += 1_200_000
        kept_ms += 1_200_000
        assert kept_ms < 5 * HOUR_MS
    assert kept_ms > 2 * HOUR_MS


def test_a_lease_that_gets_on_is_renewed_but_not_for_ever(desk: Desk, car: Car) -> None:
    desk.add_job(items=1000, slice_items=1, ttl_s=3_600)
    grant = car.must_request()
    hours = 0
    while renew(car, desk, grant, done=hours + 1):
        desk.now_ms += HOUR_MS - 1
        hours += 1
        assert hours < 100
    assert hours > 40


def test_a_slice_may_take_longer_than_the_lease(desk: Desk, car: Car) -> None:
    desk.add_job(items=1, slice_items=1, ttl_s=1_000, expected_s=4_000)
    grant = car.must_request()
    for _ in range(11):
        desk.now_ms += 900_000
        assert renew(car, desk, grant, done=0), "three times as long as was expected"
    desk.now_ms += 3 * 900_000
    assert not renew(car, desk, grant, done=0)


# --- tickets ---------------------------------------------------------------------------------------------------


def test_tickets_are_bounded_and_who_named_a_forgotten_one_is_no_liar(desk: Desk, car: Car) -> None:
    desk.add_job()
    grants = [(car.must_request(), car.tickets[key(car.must_request())]) for _ in range(MOST_KEPT)]
    assert rows(desk, "tickets") == MOST_KEPT
    grant = grants[0][0]
    forgotten = car.hand_in(car.result(grant, bend=bent(lease__ticket_sha256=grants[20][1])))
    assert forgotten.verdict is Verdict.LATER
    assert car.hand_in(car.result(grant, bend=bent(lease__ticket_sha256=grants[0][1]))).verdict is Verdict.SETTLED
    assert rows(desk, "tickets") == 0


def test_the_tickets_of_an_earlier_epoch_go(desk: Desk, car: Car) -> None:
    desk.add_job()
    for _ in range(5):
        car.hand_in(car.yielded(car.must_request()))
    assert rows(desk, "tickets") == 1


# --- what is measured ------------------------------------------------------------------------------------------


def slept_for(hours: int) -> object:
    def bend(statement: Statement) -> Statement:
        finished_ms = statement.times.started_boot_ms + hours * HOUR_MS
        return replace(statement, times=replace(statement.times, finished_boot_ms=finished_ms))

    return bend


def measured(desk: Desk) -> None:
    for _ in range(2):
        desk.now_ms += 10_000
        desk.service.tick()


def slow(ms: int) -> object:
    def bend(statement: Statement) -> Statement:
        return replace(statement, slices=tuple(replace(one, compute_ms=ms) for one in statement.slices))

    return bend


def test_a_car_that_slept_says_nothing_of_its_class(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job(items=10, slice_items=10, expected_s=10)
    grant = car.must_request()
    desk.now_ms += 8 * HOUR_MS
    assert car.hand_in(car.result(grant, bend=slept_for(8))).verdict is Verdict.SETTLED  # type: ignore[arg-type]
    measured(desk)
    desk.add_job(items=100, slice_items=10, expected_s=100)
    assert other.request(outlook=Outlook(open_for_s=900)) is not None


def test_a_slow_lease_is_one_of_many_and_is_tried_again(desk: Desk, car: Car, other: Car) -> None:
    """Off by no more than a factor; and where the rate says that nothing fits, one slice an hour finds out."""
    desk.add_job(items=10, slice_items=10, expected_s=1_000, ttl_s=7_200)
    grant = car.must_request()
    desk.now_ms += 2 * HOUR_MS
    assert car.hand_in(car.result(grant, bend=slow(7_000_000))).verdict is Verdict.SETTLED  # type: ignore[arg-type]
    measured(desk)
    row = desk.book.database.row("SELECT took_ms FROM rates")
    assert row is not None
    assert row["took_ms"] == OUTLIER * 1_000_000
    desk.add_job(items=100, slice_items=10, expected_s=10, ttl_s=7_200)
    assert other.request(outlook=Outlook(open_for_s=900)) is None
    desk.now_ms += HOUR_MS
    tried = other.request(outlook=Outlook(open_for_s=900))
    assert tried is not None
    assert (len(tried.slices), tried.expected_s) == (1, 0), "told that it takes too long, the car would not begin"
    third = desk.new_car("car-3")
    assert third.request(outlook=Outlook(open_for_s=900)) is None, "once an hour"


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 10**8)), min_size=1, max_size=20), st.integers(0, 10**6))
def test_what_is_believed_is_near_what_is_known(samples: list[tuple[int, int]], known_us: int) -> None:
    items = sum(one[0] for one in samples)
    took_ms = believed_ms([Measured(*one, estimate_us_per_item=0) for one in samples], known_us)
    if known_us:
        assert items * (known_us // OUTLIER) <= 1000 * took_ms <= items * OUTLIER * known_us + 1000


# --- whose turn it is ------------------------------------------------------------------------------------------


def test_a_job_that_drivers_keep_interrupting_is_not_overtaken(desk: Desk, car: Car) -> None:
    old = desk.add_job(terms=Terms(priority=9))
    for _ in range(5):
        grant = car.must_request()
        assert grant.job == old
        car.hand_in(car.yielded(grant))
        desk.add_job(terms=Terms(priority=-5))


def test_a_job_that_fails_waits_for_longer_and_longer(desk: Desk) -> None:
    bad, good = desk.add_job(terms=Terms(priority=1)), desk.add_job(items=100, slice_items=1)
    waits = []
    for number in range(8):
        car = desk.new_car(f"car-{number}")
        waited_s = 0
        while (grant := car.must_request()).job != bad:
            assert grant.job == good
            car.hand_in(car.yielded(grant))
            desk.now_ms += 15_000
            waited_s += 15
        waits.append(waited_s)
        car.hand_in(car.yielded(grant, why=YieldReason.FAULT))
    assert waits == [0, 0, 15, 30, 60, 120, 240, 480]


# --- clocks ----------------------------------------------------------------------------------------------------


def test_a_clock_that_was_set_back_condemns_nobody(desk: Desk, car: Car) -> None:
    desk.now_ms = 10 * 24 * HOUR_MS
    first, second = desk.add_job(), desk.add_job()
    grant, longer = car.must_request(), car.must_request(JobKey(first, 1))
    assert longer.job == second
    desk.now_ms -= HOUR_MS
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED
    desk.now_ms += HOUR_MS + 1000
    result = car.result(longer, bend=slow(500_000))  # type: ignore[arg-type]
    assert car.hand_in(result).verdict is Verdict.LATER, "within the lease's time, and not within the clock's"
    desk.now_ms += 500_000
    assert car.hand_in(result).verdict is Verdict.SETTLED


# --- old requests ----------------------------------------------------------------------------------------------


def test_an_old_request_takes_no_lease_away(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job()
    grant = car.must_request()
    old = car.last_request
    for _ in range(4):
        desk.now_ms += 140_000
        car.say("request", old)
        desk.sent.clear()
        assert other.request() is None
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED
    assert state(desk, job) == "done"


def test_two_old_requests_take_no_lease_away(desk: Desk, car: Car, other: Car) -> None:
    assert car.request() is None
    before = car.last_request
    desk.add_job()
    grant = car.must_request()
    for old in (before, car.last_request, before):
        desk.now_ms += 110_000
        car.say("request", old)
    desk.sent.clear()
    assert other.request() is None
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED


def test_naming_a_lease_in_between_keeps_it(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job()
    grant = car.must_request()
    desk.now_ms += 310_000
    for have in ((), (key(grant),), ()):
        car.request(*have)
        desk.now_ms += 20_000
    assert other.request() is None
    assert car.must_request().epoch == 2, "two in a row that do not"


# --- uploads that never come -------------------------------------------------------------------------------------


def test_answers_that_never_come_hold_a_job_once_and_count_against_the_unit(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job(ttl_s=600)
    grant = car.must_request()
    begun_ms = desk.now_ms
    hand_in = car.bulky(car.result(grant), grant)
    while other.request() is None:
        assert car.hand_in(hand_in).verdict is Verdict.LATER
        desk.now_ms += 60_000
    assert desk.now_ms - begun_ms <= 16 * 60_000
    unit = desk.book.units.get(car.unit)
    assert unit is not None
    assert unit.faults == 1
    with View(desk.folder) as view:
        assert [one.why for one in view.attempts(job)] == ["expired"]


# --- what is held against whom -----------------------------------------------------------------------------------


def test_no_two_units_kill_a_job_and_three_do(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job()
    for number in range(20):
        unit = (car, other)[number % 2]
        unit.request()
        desk.now_ms += HOUR_MS
        desk.service.tick()
    assert state(desk, job) == "free"
    desk.now_ms += HOUR_MS
    desk.new_car("car-3").must_request()
    desk.now_ms += HOUR_MS
    desk.service.tick()
    assert state(desk, job) == "dead"


@pytest.mark.parametrize("why", [YieldReason.FAULT, YieldReason.FULL])
def test_a_slice_that_never_comes_out_is_held_against_the_job(desk: Desk, car: Car, why: YieldReason) -> None:
    job = desk.add_job()
    car.hand_in(car.yielded(car.must_request(), why=why))
    with View(desk.folder) as view:
        assert [one.why for one in view.attempts(job)] == [why.value]


def test_a_slice_beside_a_fault_forgives_no_faults(desk: Desk, car: Car) -> None:
    desk.add_job(items=50, slice_items=1)
    grants = 0
    while (grant := car.request()) is not None:
        assert car.hand_in(car.yielded(grant, grant.slices[:1], YieldReason.FAULT)).paid_micro > 0
        grants += 1
        assert grants < 10
    assert grants == 3


def test_short_with_a_slice_goes_on_halving(desk: Desk, car: Car) -> None:
    desk.add_job(items=64, slice_items=1)
    sizes = []
    for _ in range(4):
        grant = car.must_request()
        sizes.append(len(grant.slices))
        car.hand_in(car.yielded(grant, grant.slices[:1], YieldReason.SHORT))
    assert sizes == [64, 31, 15, 7]


# --- errors are not paid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("uploaded", [False, True])
@pytest.mark.parametrize("claimed", [0, 2])
def test_errors_that_are_claimed_to_be_answers_are_bad(desk: Desk, car: Car, claimed: int, uploaded: bool) -> None:
    """One of the four items is an error; an escape in its key hides nothing."""
    desk.add_job(items=4, slice_items=4)
    car.answers = lambda _grant, _index: b'[{"\\u0065rror":"x"},{"a":{"error":"y"}},{"error":3},"error"]'  # type: ignore[method-assign,assignment]
    grant = car.must_request()

    def bend(statement: Statement) -> Statement:
        return replace(statement, slices=(replace(statement.slices[0], failed_items=claimed),))

    result = car.result(grant, bend=bend)
    if uploaded:
        car.bring(result, grant)
        result = car.bulky(result, grant)
    verdict = car.hand_in(result)
    assert (verdict.verdict, verdict.paid_micro) == (Verdict.BAD, 0)
    assert "1 errors" in verdict.reason


def test_an_honest_count_is_paid_for_the_rest(desk: Desk, car: Car) -> None:
    desk.add_job(items=4, slice_items=4)
    assert car.hand_in(car.result(car.must_request())).paid_micro == 3 * PRICE


json = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["error", "text", "a"]), part, max_size=3)
    ),
    max_leaves=6,
)


@given(answers=st.lists(json, max_size=6))
def test_whoever_pays_counts_what_whoever_collects_sees(answers: list[object]) -> None:
    body = msgspec.json.encode(answers)
    raw = msgspec.json.decode(body, type=list[msgspec.Raw])
    assert count_failed(raw) == sum(error_of(one) is not None for one in msgspec.json.decode(body))
