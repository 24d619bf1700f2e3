"""What a unit is offered, how much of it and for how long; and what becomes of work that fails."""

from __future__ import annotations

import msgspec
import pytest

from agent.core.model import JobKey, Outlook, Verdict, YieldReason
from agent.errors import FleetError
from agent.fleet.messages import JobGrant, MessageError
from agent.fleet.operator_messages import CancelMessage
from hil.dispatcher.book import Terms
from hil.dispatcher.submit import add_job
from tests.hil.honest_car import PACKAGE, PRICE, Car, Desk

pytestmark = pytest.mark.usefixtures("each_database")

QUARTER_S = 900
MS = 1000
A_WHILE_MS = 1_000_000
"""No job waits longer before it is granted again."""


def key(grant: JobGrant) -> JobKey:
    return JobKey(grant.job, grant.epoch)


# --- how much is granted ----------------------------------------------------------------------------------------


def test_a_grant_is_as_large_as_the_gate_should_stay_open(desk: Desk, car: Car) -> None:
    """20 slices of a minute each, and a quarter of an hour: twelve of them, with a margin."""
    desk.add_job(items=20, slice_items=1, ttl_s=7_200, expected_s=1_200)
    grant = car.request(outlook=Outlook(open_for_s=QUARTER_S))
    assert grant is not None
    assert grant.slices == tuple(range(12))
    assert (grant.expected_s, grant.renew_s) == (720, 2_400)
    verdict = car.hand_in(car.result(grant))
    assert verdict.paid_micro == 11 * PRICE  # item 3 failed
    rest = car.request()
    assert rest is not None
    assert (rest.job, rest.slices, rest.epoch) == (grant.job, tuple(range(12, 20)), 2)
    assert car.hand_in(car.result(rest)).verdict is Verdict.SETTLED
    with desk.viewing() as view:
        assert [job.state for job in view.jobs()] == ["done"]


def test_a_short_lease_is_as_large_as_its_time(desk: Desk, car: Car) -> None:
    desk.add_job(items=100, slice_items=1, ttl_s=600, expected_s=6_000)
    grant = car.must_request()
    assert (len(grant.slices), grant.renew_s) == (8, 0)


def test_what_fits_not_at_all_is_left_for_others(desk: Desk, car: Car) -> None:
    desk.add_job(items=2, slice_items=1, expected_s=4_000)
    assert car.request(outlook=Outlook(open_for_s=QUARTER_S)) is None
    small = desk.add_job(items=2, slice_items=1, expected_s=60)
    grant = car.request(outlook=Outlook(open_for_s=QUARTER_S))
    assert grant is not None
    assert grant.job == small
    assert car.request(key(grant)) is not None, "with no such limit the long one is granted"


def test_what_a_lease_takes_is_measured(desk: Desk, car: Car) -> None:
    """The time of its slices counts: 120 ms for ten items, whatever the job's estimate was."""
    desk.add_job(expected_s=30)
    car.hand_in(car.result(car.must_request()))
    for _ in range(3):
        desk.now_ms += 10_000
        desk.service.tick()
    desk.add_job(items=1000, slice_items=1, expected_s=30_000)
    assert car.must_request().expected_s == 12


def test_an_input_larger_than_the_traffic_left_is_not_granted(desk: Desk, car: Car) -> None:
    desk.add_job()
    assert car.request(outlook=Outlook(budget_bytes=10)) is None
    assert car.request(outlook=Outlook(budget_bytes=10_000)) is not None


def test_executor_device_and_priority(desk: Desk, car: Car) -> None:
    plain = desk.add_job()
    urgent = desk.add_job(terms=Terms(priority=5))
    desk.add_job(terms=Terms(priority=9, executor="tensorrt"))
    desk.add_job(terms=Terms(priority=9, device_class="orin"))
    mine = desk.add_job(terms=Terms(priority=1, executor="onnxruntime", device_class="cpu-x86_64"))
    held: list[JobKey] = []
    for expected in (urgent, mine, plain):
        grant = car.must_request(*held)
        assert grant.job == expected
        held.append(key(grant))
    assert car.request(*held) is None
    other = desk.new_car("car-3")
    assert other.request(executor="tensorrt") is not None


# --- what fails ------------------------------------------------------------------------------------------------


def test_short_makes_the_next_offer_smaller(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job(items=8, slice_items=1)
    sizes = []
    for _ in range(4):
        grant = car.must_request()
        sizes.append(len(grant.slices))
        car.hand_in(car.yielded(grant, why=YieldReason.SHORT))
    assert sizes == [8, 4, 2, 1]
    assert car.request() is None, "less of this job there is not"
    assert len(other.must_request().slices) == 8, "which is nothing to another unit"


def test_an_offer_grows_again_when_it_was_settled(desk: Desk, car: Car) -> None:
    desk.add_job(items=8, slice_items=1)
    car.hand_in(car.yielded(car.must_request(), why=YieldReason.SHORT))
    car.hand_in(car.result(car.must_request()))
    assert len(car.must_request().slices) == 4, "all that is left"


def test_the_driver_is_nobodys_fault(desk: Desk, car: Car) -> None:
    job = desk.add_job()
    for _ in range(30):
        car.hand_in(car.yielded(car.must_request()))
    with desk.viewing() as view:
        assert (view.jobs()[0].state, view.attempts(job)) == ("free", [])


def test_a_job_that_fails_everywhere_is_dead_and_says_why(desk: Desk) -> None:
    job = desk.add_job()
    fine = desk.add_job(terms=Terms(priority=-1))
    for number in range(10):
        car = desk.new_car(f"victim-{number}")
        grant = car.must_request()
        car.hand_in(car.yielded(grant, why=YieldReason.FAULT, detail="illegal memory access"))
        desk.now_ms += A_WHILE_MS
    with desk.viewing() as view:
        states = {one.job: one.state for one in view.jobs()}
        assert states == {job: "dead", fine: "free"}
        attempts = view.attempts(job)
        assert len(attempts) == 10
        assert {(one.why, one.detail) for one in attempts} == {("fault", "illegal memory access")}
        counts = view.counts()
    assert (counts.dead, counts.done, counts.free) == (1, 0, 1)


def test_progress_forgives_failures(desk: Desk) -> None:
    job = desk.add_job(items=4, slice_items=1)
    for number in range(18):
        car = desk.new_car(f"car-{number}x")
        grant = car.must_request()
        finished = (grant.slices[0],) if number in (8, 12) else ()
        car.hand_in(car.yielded(grant, finished, why=YieldReason.FAULT))
        desk.now_ms += A_WHILE_MS
    with desk.viewing() as view:
        assert [(one.job, one.state) for one in view.jobs()] == [(job, "free")]


def test_one_bad_unit_neither_starves_nor_kills(desk: Desk, car: Car, other: Car) -> None:
    """It fails everything at once: three leases, then it waits for longer and longer."""
    for _ in range(3):
        desk.add_job()
    granted = 0
    for _ in range(60):
        grant = car.request()
        if grant is not None:
            granted += 1
            car.hand_in(car.yielded(grant, why=YieldReason.FAULT))
        desk.now_ms += 10_000
    assert granted < 10
    with desk.viewing() as view:
        assert {job.state for job in view.jobs()} == {"free"}
        assert view.counts(desk.now_ms).units_benched == 1
    for _ in range(3):
        other.hand_in(other.result(other.must_request()))
    with desk.viewing() as view:
        assert {job.state for job in view.jobs()} == {"done"}


def test_silence_is_held_against_the_job_once(desk: Desk, car: Car) -> None:
    job = desk.add_job(ttl_s=10)
    grant = car.must_request()
    for _ in range(5):
        desk.now_ms += 11_000
        desk.service.tick()
    with desk.viewing() as view:
        assert [(one.why, one.epoch) for one in view.attempts(job)] == [("expired", 1)]
        assert view.jobs()[0].failures == 1
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED, "nobody else has it"
    with desk.viewing() as view:
        assert (view.jobs()[0].state, view.jobs()[0].failures) == ("done", 0)


def test_a_job_that_costs_more_than_can_be_said_is_not_taken(desk: Desk) -> None:
    with pytest.raises(FleetError, match="smaller jobs"):
        add_job(
            desk.book,
            desk.objects,
            package=PACKAGE,
            items=[b"x"] * 1001,
            slice_items=1001,
            customer="c",
            price_micro_per_item=10**9,
            currency="EUR",
            ttl_s=60,
        )


# --- long leases, and taking them back -------------------------------------------------------------------------


def test_a_renewed_lease_is_the_same_with_new_time(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job(ttl_s=3_600)
    grant = car.must_request()
    assert grant.renew_s == 1_200
    for _ in range(4):
        desk.now_ms += 1_200 * MS
        again = car.renew(grant)
        assert isinstance(again, JobGrant)
        assert again == grant, "epoch, nonce, slices, token; and the whole time anew"
        assert other.request() is None
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED, "its statement may name the renewal's ticket"


def test_only_the_holder_renews_and_only_while_it_holds(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job(ttl_s=3_600)
    grant = car.must_request()
    stolen = other.renew(grant)
    assert isinstance(stolen, CancelMessage)
    assert (stolen.unit, stolen.job, stolen.epoch, stolen.grace_s) == (other.unit, grant.job, grant.epoch, 0)
    desk.now_ms += 3_600 * MS
    assert isinstance(car.renew(grant), CancelMessage), "its time was over"
    assert other.must_request().epoch == 2
    assert isinstance(car.renew(grant), CancelMessage)
    desk.service.on_message(f"dw/v1/u/{car.cell}/{car.unit}/renew", b'{"rid":"x","job":"nothing","epoch":1,"done":0}')
    assert desk.sent.pop()[0] == f"dw/v1/d/{car.unit}/cancel"


def test_a_cancelled_lease_ends_and_what_is_finished_counts(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job(items=10, slice_items=4)
    grant = car.must_request()
    message = desk.service.cancel(job, 30, "a better customer")
    assert message is not None
    assert (
        car.hear_cancel()
        == message
        == CancelMessage(unit=car.unit, job=job, epoch=1, grace_s=30, why="a better customer")
    )
    desk.now_ms += 10_000
    assert car.request(key(grant)) is None
    assert car.cancelled == [msgspec.structs.replace(message, grace_s=20)], "the car still holds it: once more"
    again = car.renew(grant)
    assert isinstance(again, CancelMessage)
    assert again.why == "a better customer"
    verdict = car.hand_in(car.yielded(grant, (0,), why=YieldReason.CANCELLED))
    assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 3 * PRICE)
    assert car.request() is None, "to others first"
    assert other.must_request().slices == (1, 2)


def test_a_cancel_that_nobody_hears_ends_the_lease_soon(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job(ttl_s=86_400)
    car.must_request()
    assert desk.service.cancel(job) is not None
    desk.sent.clear()
    desk.now_ms += 61_000
    assert other.must_request().job == job
    with desk.viewing() as view:
        assert view.jobs()[0].failures == 0


def test_a_withdrawn_job_is_granted_to_nobody(desk: Desk, car: Car, other: Car) -> None:
    job, idle = desk.add_job(), desk.add_job()
    grant = car.must_request()
    assert desk.service.cancel(idle, withdraw=True) is None
    assert desk.service.cancel(job, 0, "changed his mind", withdraw=True) is not None
    car.hear_cancel()
    assert other.request() is None
    assert isinstance(car.renew(grant), CancelMessage)
    assert car.hand_in(car.yielded(grant, (1,), why=YieldReason.CANCELLED)).paid_micro == 4 * PRICE
    assert other.request() is None
    with desk.viewing() as view:
        assert {one.state for one in view.jobs()} == {"cancelled"}
    with pytest.raises(MessageError, match="no job"):
        desk.service.cancel("job-of-nobody")
    with pytest.raises(MessageError, match="grace_s"):
        desk.service.cancel(job, -1)


def test_all_slices_done_is_done_though_it_was_withdrawn(desk: Desk, car: Car) -> None:
    job = desk.add_job()
    grant = car.must_request()
    desk.service.cancel(job, 60, withdraw=True)
    desk.sent.clear()
    assert car.hand_in(car.result(grant)).paid_micro == 9 * PRICE
    with desk.viewing() as view:
        assert [one.state for one in view.jobs()] == ["done"]
