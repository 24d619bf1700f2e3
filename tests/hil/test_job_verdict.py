"""What the dispatcher signs for a customer: true, verified by tools that are not ours, and silent about cars."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as OtherStatement
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.signer._key import SSlibKey

from agent.core.model import Verdict
from agent.errors import TrustError
from agent.trust.dsse import canonical_json
from agent.trust.statement import Package
from hil.dispatcher.job_verdict import (
    PAGE_SLICES,
    PREDICATE_TYPE,
    JobVerdict,
    JudgedSlice,
    parse_job_verdict,
    read_job_verdict,
    verify_job_verdict,
)
from hil.dispatcher.jobs_api import JobsApi
from hil.dispatcher.web import WebServer
from tests.hil.honest_car import Car, Desk, new_signer

TOKEN = "a-secret-of-the-operator"
VERDICT = JobVerdict(
    job="sub1234-0",
    package=Package(name="ocr", sha256="ab" * 32),
    input_sha256="cd" * 32,
    job_slices=3,
    slices=(
        JudgedSlice(index=0, items=4, failed_items=1, output_sha256="01" * 32, verification="unreplicated"),
        JudgedSlice(index=2, items=2, failed_items=0, output_sha256="02" * 32, verification="agreed"),
    ),
    units=2,
    settled_hour=497_000,
)
BODY = VERDICT.to_bytes()


@pytest.fixture
def web(desk: Desk) -> Iterator[WebServer]:
    api = JobsApi(desk.objects, lambda question: question(desk.book), TOKEN, desk.key)
    server = WebServer(0, desk.objects, desk.enrol, token=TOKEN, more=api)
    server.start()
    yield server
    server.close()


def fetch(web: WebServer, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(web.url.rpartition(":")[2]), timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def renamed(desk: Desk, job: str) -> str:
    """A job of a name that a customer may ask for."""
    desk.book.database.execute("UPDATE jobs SET job = 'sub1234-0' WHERE job = :job", job=job)
    return "sub1234-0"


def test_independent_tools_verify_it(desk: Desk, car: Car, web: WebServer) -> None:
    desk.now_ms = 497_000 * 3_600_000 + 1_234_567
    job = renamed(desk, desk.add_job(items=10, slice_items=4))
    grant = car.must_request()
    assert fetch(web, f"/jobs/{job}/verdict")[0] == 404, "it is not over"
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED
    status, body = fetch(web, f"/jobs/{job}/verdict")
    assert status == 200
    envelope = OtherEnvelope.from_dict(json.loads(body))
    envelope.verify([SSlibKey.from_crypto(desk.key.public_key(), keyid=desk.key.keyid)], 1)
    OtherStatement.copy_from_pb(ParseDict(json.loads(envelope.payload), statement_pb2.Statement())).validate()
    said = verify_job_verdict(body, {desk.key.keyid: desk.key.public_key()})
    assert (said.job, said.job_slices, said.units, said.settled_hour) == (job, 3, 1, 497_000)
    assert [(one.items, one.failed_items, one.verification) for one in said.slices] == [
        (4, 1, "unreplicated"),
        (4, 0, "unreplicated"),
        (2, 0, "unreplicated"),
    ]
    outputs = {one.slice: one.output_sha256 for one in desk.book.submissions.slices(job)}
    assert {one.index: one.output_sha256 for one in said.slices} == outputs
    with pytest.raises(TrustError):
        verify_job_verdict(body, {desk.key.keyid: new_signer().public_key()})


def test_it_says_nothing_of_cars(desk: Desk, car: Car) -> None:
    """Neither which they were, nor when exactly, nor what it took."""
    job = desk.add_job()
    car.hand_in(car.result(car.must_request()))
    verdict = read_job_verdict(desk.book.database, job, 0)
    assert verdict is not None
    said = json.loads(verdict.to_bytes())
    assert said.keys() == {"_type", "predicateType", "predicate", "subject"}
    assert said["predicate"].keys() == {
        "job", "package", "inputSha256", "jobSlices", "slices", "units", "settledHour"
    }  # fmt: skip
    for one in said["predicate"]["slices"]:
        assert one.keys() == {"index", "items", "failedItems", "outputSha256", "verification"}
    text = verdict.to_bytes().decode()
    for secret in (car.unit, car.signer.keyid, car.session.key.keyid, car.cell, "cpu-x86_64"):
        assert f'"{secret}"' not in text


@pytest.mark.parametrize(
    ("compared", "verification", "units"),
    [
        ((), "unreplicated", 1),
        ((("car-1", "car-2", 1),), "agreed", 2),
        ((("car-2", "car-1", 1),), "agreed", 2),
        ((("car-1", "car-2", 0),), "disputed", 2),
        ((("car-1", "car-2", 0), ("car-1", "car-3", 1)), "agreed", 3),
        ((("car-2", "car-3", 1),), "unreplicated", 3),
        ((("car-1", "car-2", 0), ("car-1", "", 1)), "recomputed", 2),
        ((("car-1", "car-2", 1), ("car-1", "", 0)), "disputed", 2),
    ],
)
def test_how_a_slice_was_verified(
    desk: Desk, car: Car, compared: tuple[tuple[str, str, int], ...], verification: str, units: int
) -> None:
    job = desk.add_job(items=2, slice_items=2)
    car.hand_in(car.result(car.must_request()))
    for unit, copy_unit, same in compared:
        desk.book.database.execute(
            "INSERT INTO comparisons (job, slice, unit, copy_unit, same, at_ms) VALUES (:job, 0, :one, :two, :same, 0)",
            job=job,
            one=unit,
            two=copy_unit,
            same=same,
        )
    verdict = read_job_verdict(desk.book.database, job, 0)
    assert verdict is not None
    assert ([one.verification for one in verdict.slices], verdict.units) == ([verification], units)


def test_a_long_job_has_several_and_each_fits(desk: Desk, car: Car, web: WebServer) -> None:
    job = renamed(desk, desk.add_job(items=PAGE_SLICES + 2, slice_items=1))
    while (grant := car.request()) is not None:
        assert car.hand_in(car.yielded(grant, grant.slices[:16])).verdict is Verdict.SETTLED
    keys = {desk.key.keyid: desk.key.public_key()}
    first = verify_job_verdict(fetch(web, f"/jobs/{job}/verdict")[1], keys)
    second = verify_job_verdict(fetch(web, f"/jobs/{job}/verdict?first={PAGE_SLICES}")[1], keys)
    assert [one.index for one in (*first.slices, *second.slices)] == list(range(PAGE_SLICES + 2))
    assert fetch(web, f"/jobs/{job}/verdict?first={PAGE_SLICES + 2}")[0] == 404
    assert fetch(web, f"/jobs/{job}/verdict?first=x")[0] == 400


def test_what_was_settled_of_a_job_that_was_withdrawn_counts(desk: Desk, car: Car) -> None:
    job = desk.add_job(items=4, slice_items=2)
    car.hand_in(car.yielded(car.must_request(), (1,)))
    assert read_job_verdict(desk.book.database, job, 0) is None
    desk.service.cancel(job, withdraw=True)
    verdict = read_job_verdict(desk.book.database, job, 0)
    assert verdict is not None
    assert ([one.index for one in verdict.slices], verdict.job_slices) == ([1], 2)


def changed(**change: object) -> Callable[[dict[str, Any]], None]:
    return lambda said: said["predicate"].update(change)


FORGERIES: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("is none", lambda said: said.update(predicateType="https://driveway.example/attestation/inference-result/v1")),
    ("is none", lambda said: said.update(_type="https://in-toto.io/Statement/v0.1")),
    ("missing", lambda said: said.pop("predicate")),
    ("'unit' is unknown", changed(unit="car-1")),
    ("'units' is missing", lambda said: said["predicate"].pop("units")),
    ("whole number", changed(units=-1)),
    ("whole number", changed(settledHour="1")),
    ("at least one", changed(slices=[])),
    ("rising order", lambda said: said["predicate"]["slices"].reverse()),
    ("within the job", changed(jobSlices=2)),
    ("verification", lambda said: said["predicate"]["slices"][0].update(verification="trust me")),
    ("more items failed", lambda said: said["predicate"]["slices"][0].update(failedItems=5)),
    ("its subjects are not", lambda said: said["subject"][0]["digest"].update(sha256="ff" * 32)),
    ("its subjects are not", lambda said: said["subject"].pop()),
    ("an unknown field", lambda said: said.update(more=1)),
]


@pytest.mark.parametrize(("reason", "forge"), FORGERIES)
def test_what_no_dispatcher_writes_is_refused(reason: str, forge: Callable[[dict[str, Any]], object]) -> None:
    assert parse_job_verdict(BODY) == VERDICT
    assert PREDICATE_TYPE.encode() in BODY
    said = json.loads(BODY)
    forge(said)
    with pytest.raises(TrustError, match=reason):
        parse_job_verdict(canonical_json(said))


@settings(deadline=None, database=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(0, len(BODY)), st.integers(0, 40))
def test_any_bytes_are_a_verdict_or_a_trust_error(noise: bytes, place: int, cut: int) -> None:
    for body in (noise, BODY[:place] + noise + BODY[place + cut :]):
        try:
            assert parse_job_verdict(body).to_bytes() == body
        except TrustError:
            continue
