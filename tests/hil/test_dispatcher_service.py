"""The doors: topics and bodies of any kind, enrolment, objects over HTTP."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.model import Verdict
from agent.errors import FleetError, TrustError
from agent.fleet.enrolment_messages import ENROLMENT_TYPE, Enrolled, Enrolment
from agent.fleet.messages import MAX_MESSAGE_BYTES, PackageRef, Status, decode, encode
from agent.trust import dsse
from hil.dispatcher.book import MOST_MICRO
from hil.dispatcher.submit import add_job
from hil.dispatcher.units import EnrolmentRefusedError
from hil.dispatcher.web import WebServer
from tests.hil.honest_car import PACKAGE, Car, Desk, new_signer


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "dw/v1/u",
        "dw/v1/u/00/nobody/request",
        "dw/v1/u/{c}/car-1",
        "dw/v1/u/{c}/car-1/request/x",
        "dw/v2/u/{c}/car-1/request",
    ],
)
def test_what_is_no_unit_s_topic_is_dropped(desk: Desk, car: Car, topic: str) -> None:
    desk.service.on_message(topic.format(c=car.cell), b"{}")
    assert desk.sent == []
    assert desk.service.counts["refused"] == 1


def test_the_cell_has_to_be_the_units(desk: Desk, car: Car) -> None:
    desk.add_job()
    right, car.cell = car.cell, "00" if car.cell != "00" else "01"
    with pytest.raises(IndexError):  # no answer
        car.request()
    car.cell = right
    assert car.request() is not None


@pytest.mark.parametrize("verb", ["request", "result", "yield", "status", "renew"])
@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 9000, b'{"v":2}', b"x" * (MAX_MESSAGE_BYTES + 1)]
)
def test_malformed_bodies_are_counted_and_dropped(desk: Desk, car: Car, verb: str, body: bytes) -> None:
    car.say(verb, body)
    assert desk.sent == []
    assert desk.service.counts["refused"] == 1


@pytest.mark.parametrize("change", [{"v": 2}, {"statement": None}, {"outputs": 7}])
def test_a_hand_in_that_is_not_understood_is_answered_later(desk: Desk, car: Car, change: dict[str, object]) -> None:
    """A newer version, or bent on its way: there is a reason, and the car keeps what it has."""
    desk.add_job()
    result = car.result(car.must_request())
    car.say("result", msgspec.json.encode({**json.loads(encode(result)), **change}))
    verdict = car.hear_verdict()
    assert (verdict.verdict, verdict.job, verdict.epoch, verdict.rid) == (Verdict.LATER, result.job, 1, result.rid)
    assert verdict.reason
    assert car.hand_in(result).verdict is Verdict.SETTLED


def test_unknown_fields_are_ignored(desk: Desk, car: Car) -> None:
    desk.add_job()
    result = car.result(car.must_request())
    car.say("result", msgspec.json.encode({**json.loads(encode(result)), "mood": "sunny"}))
    assert car.hear_verdict().verdict is Verdict.SETTLED


def test_a_late_will_of_an_earlier_connection_is_ignored(desk: Desk, car: Car) -> None:
    def link() -> str:
        row = desk.book.database.row("SELECT link FROM units WHERE unit = :unit", unit=car.unit)
        assert row is not None
        return str(row["link"])

    car.say("status", encode(Status(state="up", boot="b1", conn=2, version="0.1.0")))
    car.say("status", encode(Status(state="lost", boot="b1", conn=1, version="0.1.0")))
    assert link() == "up"
    car.say("status", encode(Status(state="lost", boot="b1", conn=2, version="0.1.0")))
    assert link() == "lost"
    car.say("status", encode(Status(state="up", boot="b2", conn=0, version="0.1.0")))
    assert link() == "up"


def test_a_link_that_takes_nothing_loses_only_time(desk: Desk, car: Car) -> None:
    desk.add_job()
    result = car.result(car.must_request())
    desk.service.answers.publish = lambda topic, payload, expiry_s, /, *, retain=False: False
    car.say("result", encode(result))
    assert desk.service.counts["unsent"] == 1
    desk.service.answers.publish = desk._publish
    assert car.hand_in(result).verdict is Verdict.DUPLICATE


def test_a_bug_stops_one_message_only(desk: Desk, car: Car, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.add_job()
    with monkeypatch.context() as patch:
        patch.setattr(desk.book, "grant", lambda *_: 1 // 0)
        car.say(
            "request",
            b'{"rid":"r","have":[],"credit":1,"cap":{"device_class":"","executor":"x","packages":[]}}',
        )
    assert desk.service.counts.pop("crashed") == 1
    assert car.request() is not None


fragments = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b'"rid"',
        b'"job"',
        b'"epoch"',
        b'"statement"',
        b'"v"',
        b"1",
        b"null",
        b'"a"',
    ]
)
bodies = st.binary(max_size=200) | st.lists(fragments, max_size=30).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(topic=st.text(max_size=40), verb=st.sampled_from(["request", "result", "yield", "status", "renew"]), body=bodies)
def test_no_message_crashes_the_service(desk: Desk, car: Car, topic: str, verb: str, body: bytes) -> None:
    desk.service.on_message(topic, body)
    car.say(verb, body)
    desk.sent.clear()
    assert desk.service.counts["crashed"] == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_no_bent_hand_in_gets_a_final_verdict(desk: Desk, car: Car, data: st.DataObject) -> None:
    """Cut, overwritten or spliced at random: refused without consequence, or it was not really bent."""
    desk.add_job(items=2, slice_items=1)
    grant = car.must_request()
    good = encode(car.result(grant))
    position = data.draw(st.integers(0, 2000))  # its length varies with the signature's
    bent = good[:position] + data.draw(st.binary(max_size=3)) + good[position + data.draw(st.integers(0, 3)) :]
    assert len(good) > 2000
    car.say("result", bent)
    for _ in range(len(desk.sent)):
        verdict = car.hear_verdict()
        about_this_lease = (verdict.job, verdict.epoch) == (grant.job, grant.epoch)
        assert verdict.verdict in (Verdict.LATER, Verdict.SETTLED) or not about_this_lease
    car.say("result", good)
    assert car.hear_verdict().verdict in (Verdict.SETTLED, Verdict.DUPLICATE)


# --- jobs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "slice_items", "ttl_s", "currency"),
    [
        (0, 1, 60, "EUR"),
        (1, 0, 60, "EUR"),
        (1025, 1, 60, "EUR"),
        (1, 1, 0, "EUR"),
        (1, 1, 90_000, "EUR"),
        (1, 1, 60, "euro"),
    ],
)
def test_a_job_that_could_not_be_granted_is_not_taken(
    desk: Desk, items: int, slice_items: int, ttl_s: int, currency: str
) -> None:
    with pytest.raises(FleetError):
        add_job(
            desk.book,
            desk.objects,
            package=PACKAGE,
            items=[b"x"] * items,
            slice_items=slice_items,
            customer="c",
            price_micro_per_item=1,
            currency=currency,
            ttl_s=ttl_s,
        )


def test_the_largest_grant_fits_in_a_message(desk: Desk, car: Car) -> None:
    """1024 slices with every text at its longest, on a verdict."""
    package = PackageRef(name="p" * 64, sha256="ab" * 32)
    desk.add_job(items=1, slice_items=1)
    add_job(
        desk.book,
        desk.objects,
        package=package,
        items=[b"x"] * 1024,
        slice_items=1,
        customer="c" * 64,
        price_micro_per_item=MOST_MICRO // 1024,
        currency="EUR",
        ttl_s=86_400,
    )
    grant = car.must_request()
    verdict = car.hand_in(car.result(grant, credit=1))
    assert verdict.next_grant is not None
    assert len(verdict.next_grant.slices) == 1024


# --- enrolment -------------------------------------------------------------------------------------------------


def test_enrolling_again_with_the_same_key_is_harmless(desk: Desk, car: Car) -> None:
    assert desk.service.enrol(car.enrolment("code of car-1"))
    assert desk.service.enrol(car.enrolment("forgotten"))


def test_a_code_admits_one_unit_once(desk: Desk, car: Car) -> None:
    with pytest.raises(EnrolmentRefusedError, match="was used"):
        Car(desk, "car-9", code="code of car-1")
    with pytest.raises(EnrolmentRefusedError, match="not known"):
        Car(desk, "car-9", code="guess")


def test_a_name_or_a_key_cannot_be_taken_over(desk: Desk, car: Car) -> None:
    desk.book.units.add_code("fresh")
    with pytest.raises(EnrolmentRefusedError, match="another key"):
        Car(desk, "car-1", code="fresh")
    car.unit = "car-8"
    with pytest.raises(EnrolmentRefusedError, match="another unit"):
        desk.service.enrol(car.enrolment("fresh"))


def test_enrolment_needs_possession_of_the_key(desk: Desk, car: Car) -> None:
    """A stranger cannot enrol somebody else's public key."""
    desk.book.units.add_code("fresh")
    stranger = new_signer()
    message = Enrolment(code="fresh", unit="car-9", public_key_pem=car.signer.public_key_pem(), key_protection="file")
    with pytest.raises(TrustError, match="no signature"):
        desk.service.enrol(dsse.sign(ENROLMENT_TYPE, encode(message), stranger))


# --- HTTP ------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(desk: Desk) -> Iterator[WebServer]:
    """The book belongs to the test's thread, so enrolments are answered by that of a known car."""
    answers = {"known": b'{"signed":"answer"}'}

    def enrol(envelope: bytes) -> bytes:
        assert threading.current_thread() is not threading.main_thread()
        if envelope == b"code used":
            raise EnrolmentRefusedError("the enrolment code was used")
        if envelope not in answers.values():
            raise TrustError("not an envelope")
        return envelope

    server = WebServer(0, desk.objects, enrol)
    server.start()
    yield server
    server.close()


def fetch(url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_objects_are_served_by_their_digest(desk: Desk, web: WebServer) -> None:
    name = desk.objects.put(b"x" * 300_000)
    assert fetch(f"{web.url}/objects/{name}") == (200, b"x" * 300_000)
    (desk.folder / "secret").write_text("secret")
    for path in ("/objects/" + "0" * 64, "/objects/", "/objects/../secret", "/objects/%2e%2e/secret", "/secret", "/"):
        assert fetch(web.url + path)[0] == 404


def test_enrolment_over_http_says_why_not(web: WebServer) -> None:
    assert fetch(web.url + "/enrol", b'{"signed":"answer"}') == (200, b'{"signed":"answer"}')
    status, body = fetch(web.url + "/enrol", b"code used")
    assert (status, json.loads(body)) == (403, {"error": "the enrolment code was used"})
    assert fetch(web.url + "/enrol", b"rubbish")[0] == 400
    assert fetch(web.url + "/enrol", b"x" * (MAX_MESSAGE_BYTES + 1))[0] == 413
    assert fetch(web.url + "/enrol", b"x", **{"Content-Length": "-1"})[0] == 411
    assert fetch(web.url + "/elsewhere", b"x")[0] == 404


def test_the_enrolment_answer_is_signed_and_names_the_cell(desk: Desk, car: Car) -> None:
    answer = desk.service.enrol(car.enrolment("code of car-1"))
    payload = dsse.verify(answer, ENROLMENT_TYPE, {desk.key.keyid: desk.key.public_key()})
    enrolled = decode(payload, Enrolled)
    assert (enrolled.unit, enrolled.keyid) == ("car-1", car.signer.keyid)
    assert len(enrolled.cell) == 2
