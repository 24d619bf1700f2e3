"""Work that is done twice: by whom, when, and what comes of it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agent.core.model import Verdict
from agent.fleet.messages import JobGrant, Result, SliceOutput
from agent.trust.statement import Statement
from hil.dispatcher.pay import accounts
from hil.dispatcher.replication import AdaptiveReplication, UnitRecord
from hil.dispatcher.view import Disagreement
from tests.hil.honest_car import PRICE, Car, Desk

pytestmark = pytest.mark.usefixtures("each_database")


def wrong_in(car: Car, grant: JobGrant, index: int) -> Result:
    """A result with other answers in one slice, signed as its own."""
    body = msgspec.json.encode(["wrong"] * min(grant.slice_items, grant.items - index * grant.slice_items))
    digest = hashlib.sha256(body).hexdigest()

    def bend(statement: Statement) -> Statement:
        slices = tuple(
            replace(one, output_sha256=digest, failed_items=0) if one.index == index else one
            for one in statement.slices
        )
        return replace(statement, slices=slices)

    good = car.result(grant, bend=bend)
    outputs = tuple(
        SliceOutput(index=index, body=base64.b64encode(body).decode()) if one.index == index else one
        for one in good.outputs
    )
    return msgspec.structs.replace(good, outputs=outputs)


def record(desk: Desk, unit: str) -> tuple[int, int]:
    row = desk.book.database.row("SELECT agreed, disagreed FROM units WHERE unit = :unit", unit=unit)
    assert row is not None
    return row["agreed"], row["disagreed"]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "dispatcher", replication=AdaptiveReplication(trust=3))


def test_a_job_of_an_unknown_unit_is_copied_once_and_paid_for_both(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job()
    assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED
    assert car.request() is None, "nobody checks himself"
    copy = other.must_request()
    assert copy.job != job
    assert (copy.input.sha256, copy.items, copy.price_micro_per_item) == (
        desk.book.leases.row(job)["input_sha256"],  # type: ignore[index]
        10,
        PRICE,
    )
    assert other.hand_in(other.result(copy)).paid_micro == 9 * PRICE
    assert [record(desk, unit) for unit in ("car-1", "car-2")] == [(1, 0), (1, 0)]
    with desk.viewing() as view:
        assert [(one.state, one.replica_of) for one in view.jobs()] == [("done", None), ("done", job)]
        counts = view.counts()
        assert view.disagreements() == []
    assert (counts.copies, counts.slices_agreeing, counts.slices_disagreeing) == (1, 3, 0)
    assert car.request() is None, "a copy is not copied"
    desk.book.close()


def test_a_third_decides_and_only_he_who_is_outvoted_loses(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job()
    assert car.hand_in(wrong_in(car, car.must_request(), 1)).verdict is Verdict.SETTLED
    assert other.hand_in(other.result(other.must_request())).verdict is Verdict.SETTLED
    assert [record(desk, unit) for unit in ("car-1", "car-2")] == [(0, 0), (0, 0)], "two alone prove nothing"
    assert car.request() is None, "nobody decides about himself"
    assert other.request() is None
    third = desk.new_car("car-3")
    assert third.hand_in(third.result(third.must_request())).verdict is Verdict.SETTLED
    with desk.viewing() as view:
        assert view.disagreements() == [
            Disagreement(job=job, slice=1, unit="car-1", copy_unit="car-2"),
            Disagreement(job=job, slice=1, unit="car-1", copy_unit="car-3"),
        ]
        assert view.answers(job)[4] == "wrong", "the job is settled, whatever a copy says"
        assert {payout.leases for payout in view.payouts()} == {1}
    assert [record(desk, f"car-{number}") for number in (1, 2, 3)] == [(0, 1), (1, 0), (1, 0)]
    assert {one.unit: (one.held_micro, one.forfeited_micro) for one in accounts(desk.book.database)} == {
        "car-1": (0, 9 * PRICE),
        "car-2": (9 * PRICE, 0),
        "car-3": (9 * PRICE, 0),
    }
    assert third.request() is None, "that is settled"
    desk.book.close()


def test_a_copy_avoids_everybody_who_worked_on_the_job(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job()
    car.hand_in(car.yielded(car.must_request(), (0,)))
    other.hand_in(other.result(other.must_request()))
    assert car.request() is None
    assert other.request() is None
    third = desk.new_car("car-3")
    assert third.hand_in(third.result(third.must_request())).verdict is Verdict.SETTLED
    assert [record(desk, unit) for unit in ("car-1", "car-2", "car-3")] == [(1, 0), (1, 0), (1, 0)]
    desk.book.close()


def test_trust_is_earned_and_still_checked() -> None:
    def share(agreed: int) -> float:
        rule = AdaptiveReplication()
        return sum(rule.wants_copy(UnitRecord("u", agreed, 0), number / 1000) for number in range(1000)) / 1000

    assert [share(agreed) for agreed in (0, 9)] == [1.0, 1.0]
    assert share(10) == pytest.approx(0.1, abs=0.01)
    assert share(20) == pytest.approx(0.05, abs=0.01)
    assert share(10**6) == pytest.approx(0.02, abs=0.01), "it never pays to begin"
