"""Answers that were uploaded, as the book sees them: whose they are, what they cost, and until when they may come."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.model import JobKey, Verdict
from agent.fleet.messages import Result, SliceOutput, UploadedObject
from tests.hil.honest_car import PRICE, Car, Desk


def test_another_lease_cannot_name_what_a_lease_has_brought(desk: Desk, car: Car, other: Car) -> None:
    """Nor what lies among the objects: each brings its own, and is paid for that."""
    desk.add_job(items=1, slice_items=1)
    desk.add_job(items=1, slice_items=1)
    grant, others = car.must_request(), other.must_request()
    assert grant.job != others.job
    plain, copied = car.result(grant), other.result(others)
    car.bring(plain, grant)
    assert other.hand_in(other.bulky(copied, others)).verdict is Verdict.LATER
    assert car.hand_in(car.bulky(plain, grant)).verdict is Verdict.SETTLED
    assert other.hand_in(other.bulky(copied, others)).verdict is Verdict.LATER, "it is an object now, of others"
    other.bring(copied, others)
    assert other.hand_in(other.bulky(copied, others)).verdict is Verdict.SETTLED


def test_what_was_brought_is_not_read_again(desk: Desk, car: Car, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the thread that owns the book, one object that is named by many slices costs no more than its name."""
    car.answers = lambda grant, index: b"[1]"  # type: ignore[method-assign]
    desk.add_job(items=20, slice_items=1)
    grant = car.must_request()
    plain = car.result(grant)
    car.bring(plain, grant)
    with monkeypatch.context() as patch:
        for name in ("read_bytes", "open"):
            patch.setattr(Path, name, None)
        verdict = car.hand_in(car.bulky(plain, grant))
    assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 20 * PRICE)


def test_other_answers_than_the_slice_has_items_are_the_units_own_fault(desk: Desk, car: Car) -> None:
    desk.add_job(items=3, slice_items=3)
    grant = car.must_request()
    car.answers = lambda grant, index: b"[1, 2, 3]"  # type: ignore[method-assign]
    statement, _ = car.work(grant, grant.slices, "result")
    body = b"[1, 2]"
    sha256 = hashlib.sha256(body).hexdigest()
    assert grant.upload is not None
    desk.bring(grant.upload, body)
    signed = replace(statement, slices=(replace(statement.slices[0], output_sha256=sha256),))
    outputs = (SliceOutput(index=0, uploaded=UploadedObject(sha256=sha256, bytes=len(body))),)
    envelope = car.sign(signed, car.session.key)
    result = Result(
        rid="r",
        job=grant.job,
        epoch=1,
        statement=envelope,
        session=car.certificate(),
        outputs=outputs,
        have=(),
        credit=0,
    )
    verdict = car.hand_in(result)
    assert (verdict.verdict, "not a JSON array of 3 answers" in verdict.reason) == (Verdict.BAD, True)


@pytest.mark.parametrize("end", ["dead", "withdrawn", "late"])
def test_a_token_ends_when_nothing_more_can_come(desk: Desk, car: Car, end: str) -> None:
    desk.add_job()
    grant = car.must_request()
    assert grant.upload is not None
    rights = desk.book.upload_rights
    if end == "dead":
        desk.book.database.execute("UPDATE jobs SET state = 'dead'")
    elif end == "withdrawn":
        desk.service.cancel(grant.job, 60, withdraw=True)
        assert rights.of(grant.upload.token) is not None, "what is finished in its grace still counts"
        desk.now_ms += 180_000
    else:
        desk.now_ms += 24 * 3_600_000 - 1
        assert rights.of(grant.upload.token) is not None
        desk.now_ms += 1
    assert rights.of(grant.upload.token) is None
    assert rights.still_open([(car.unit, JobKey(grant.job, 1))]) == set()
