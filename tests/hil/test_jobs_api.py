"""The operator's jobs over HTTP, on a real web server and a real book: put up, followed, fetched; and refused."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.model import Verdict, YieldReason
from hil.dispatcher.jobs_api import MAX_INPUT_BYTES, JobOrder, JobsApi
from hil.dispatcher.postgres import PostgresDatabase
from hil.dispatcher.web import WebServer
from tests.hil.honest_car import PACKAGE, PRICE, Car, Desk, answer_to
from tests.hil.uploading import files

TOKEN = "a-secret-of-the-operator"
INPUT = msgspec.msgpack.encode([b"item %d" % number for number in range(10)])
SHA256 = hashlib.sha256(INPUT).hexdigest()
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def web(desk: Desk) -> Iterator[WebServer]:
    api = JobsApi(desk.objects, lambda question: question(desk.book), TOKEN, desk.key)
    server = WebServer(0, desk.objects, desk.enrol, token=TOKEN, more=api)
    server.start()
    yield server
    server.close()


def ask(
    web: WebServer, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(web.url.rpartition(":")[2]), timeout=10)
    try:
        connection.request(method, path, body, AUTHORISED if headers is None else headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def told(answer: tuple[int, bytes]) -> tuple[int, Any]:
    return answer[0], json.loads(answer[1])


def order(**change: Any) -> bytes:
    said: dict[str, Any] = {
        "job": "sub1234-0",
        "customer": "acme",
        "package": {"name": PACKAGE.name, "sha256": PACKAGE.sha256},
        "input": {"sha256": SHA256, "bytes": len(INPUT)},
        "items": 10,
        "slice_items": 4,
        "price_micro_per_item": PRICE,
        "currency": "EUR",
        "ttl_s": 600,
    }
    return msgspec.json.encode(said | change)


def put_up(web: WebServer, **change: Any) -> None:
    assert ask(web, "PUT", f"/objects/{SHA256}", INPUT)[0] in {200, 201}
    assert ask(web, "POST", "/jobs", order(**change))[0] == 201


def test_a_job_from_its_input_to_its_answers(web: WebServer, desk: Desk, car: Car) -> None:
    assert told(ask(web, "PUT", f"/objects/{SHA256}", INPUT)) == (201, {})
    assert told(ask(web, "PUT", f"/objects/{SHA256}", INPUT)) == (200, {})
    assert told(ask(web, "POST", "/jobs", order())) == (201, {"job": "sub1234-0", "cars": 0})
    grant = car.must_request()
    assert (grant.job, grant.items, grant.customer) == ("sub1234-0", 10, "acme")
    assert told(ask(web, "POST", "/jobs", order())) == (200, {"job": "sub1234-0", "cars": 1})
    assert told(ask(web, "GET", "/jobs/sub1234-0"))[1]["progress"]["state"] == "leased"
    assert told(ask(web, "GET", "/jobs/sub1234-0/results")) == (200, [])
    assert ask(web, "GET", "/jobs/sub1234-0/results/0")[0] == 404

    assert car.hand_in(car.yielded(grant, slices=(1,))).verdict is Verdict.SETTLED
    (found,) = told(ask(web, "GET", "/jobs/sub1234-0/results"))[1]
    assert (found["slice"], found["items"], found["failed_items"]) == (1, 4, 0)
    assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED

    status, page = told(ask(web, "GET", "/submissions/sub1234?first=0"))
    (progress,) = page["jobs"]
    assert (status, page["submission"], page["first"]) == (200, "sub1234", 0)
    assert (progress["state"], progress["items_done"], progress["items_failed"]) == ("done", 10, 1)
    assert (progress["slices_done"], progress["paid_micro"], progress["currency"]) == (3, 9 * PRICE, "EUR")
    answers = []
    for one in told(ask(web, "GET", "/jobs/sub1234-0/results"))[1]:
        status, body = ask(web, "GET", f"/jobs/sub1234-0/results/{one['slice']}")
        assert hashlib.sha256(body).hexdigest() == one["output_sha256"]
        answers += json.loads(body)
    assert answers == [answer_to(number) for number in range(10)]


def test_progress_and_answers_are_the_same_out_of_postgresql(postgres_url: str, tmp_path: Path) -> None:
    desk = Desk(tmp_path, database=lambda clock: PostgresDatabase(postgres_url, clock))
    api = JobsApi(desk.objects, lambda question: question(desk.book), TOKEN, desk.key)
    server = WebServer(0, desk.objects, desk.enrol, token=TOKEN, more=api)
    server.start()
    try:
        own = {"name": PACKAGE.name, "sha256": "5b" * 32}
        ask(server, "PUT", f"/objects/{SHA256}", INPUT)
        assert ask(server, "POST", "/jobs", order(job="subpg01-0", package=own))[0] == 201
        car = desk.new_car("car-of-the-jobs-api")
        grant = car.request(packages=(own["sha256"],))
        assert grant is not None
        assert car.hand_in(car.yielded(grant, slices=(1,))).verdict is Verdict.SETTLED
        assert told(ask(server, "POST", "/jobs", order(job="subpg01-0", package=own))) == (
            200,
            {"job": "subpg01-0", "cars": 1},
        )
        (progress,) = told(ask(server, "GET", "/submissions/subpg01"))[1]["jobs"]
        assert (progress["items_done"], progress["slices_done"], progress["paid_micro"]) == (4, 1, 4 * PRICE)
        assert json.loads(ask(server, "GET", "/jobs/subpg01-0/results/1")[1])[0] == {"item": 4}
        assert told(ask(server, "GET", "/jobs/subpg01-0"))[1]["why"] == ""
    finally:
        server.close()
        desk.book.close()


def test_a_job_that_nobody_can_do_says_why(web: WebServer, car: Car) -> None:
    put_up(web)
    grant = car.must_request()
    car.hand_in(car.yielded(grant, why=YieldReason.FAULT))
    report = told(ask(web, "GET", "/jobs/sub1234-0"))[1]
    assert report["progress"]["state"] in {"free", "dead"}
    assert report["why"].startswith("fault")


def test_a_submission_is_read_in_pages(web: WebServer, desk: Desk) -> None:
    ask(web, "PUT", f"/objects/{SHA256}", INPUT)
    for number in (*range(3), 300):
        assert ask(web, "POST", "/jobs", order(job=f"sub1234-{number}"))[0] == 201
    ask(web, "POST", "/jobs", order(job="sub12345-0"))
    page = told(ask(web, "GET", "/submissions/sub1234"))[1]
    assert [one["job"] for one in page["jobs"]] == ["sub1234-0", "sub1234-1", "sub1234-2"]
    page = told(ask(web, "GET", "/submissions/sub1234?first=100"))[1]
    assert [one["job"] for one in page["jobs"]] == ["sub1234-300"]
    assert ask(web, "GET", "/submissions/sub1234?first=301")[0] == 404
    assert ask(web, "GET", "/submissions/sub1234?first=x")[0] == 400
    assert ask(web, "GET", "/submissions/nobody")[0] == 404


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/jobs"),
        ("PUT", f"/objects/{SHA256}"),
        ("GET", "/jobs/sub1234-0"),
        ("GET", "/jobs/sub1234-0/results"),
        ("GET", "/jobs/sub1234-0/results/0"),
        ("GET", "/submissions/sub1234"),
    ],
)
def test_nobody_but_the_operator(web: WebServer, desk: Desk, headers: dict[str, str], method: str, path: str) -> None:
    status, answer = told(ask(web, method, path, {"PUT": INPUT, "POST": order()}.get(method), headers))
    assert (status, answer) == (403, {"error": "the operator's token is missing or wrong"})
    assert desk.objects.path(SHA256) is None


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"job": "sub1234"}, 400, "at `$.job`"),
        ({"job": "../../x-0"}, 400, "at `$.job`"),
        ({"items": 11}, 400, "not a msgpack array of 11 items"),
        ({"items": 0}, 400, "at `$.items`"),
        ({"slice_items": 0}, 400, "at `$.slice_items`"),
        ({"price_micro_per_item": -1}, 400, "price_micro_per_item"),
        ({"currency": "euro"}, 400, "at `$.currency`"),
        ({"ttl_s": 0}, 400, "at `$.ttl_s`"),
        ({"input": {"sha256": "ab" * 32, "bytes": 5}}, 400, "was not put to /objects"),
        ({"input": {"sha256": SHA256, "bytes": len(INPUT) + 1}}, 400, "was not put to /objects"),
        ({"input": {"sha256": SHA256, "bytes": MAX_INPUT_BYTES + 1}}, 400, "at `$.input.bytes`"),
        ({"surprise": 1}, 400, "unknown field `surprise`"),
    ],
)
def test_a_job_that_cannot_be_is_refused(web: WebServer, change: dict[str, Any], status: int, said: str) -> None:
    ask(web, "PUT", f"/objects/{SHA256}", INPUT)
    code, answer = told(ask(web, "POST", "/jobs", order(**change)))
    assert (code, said in answer["error"]) == (status, True), answer
    assert ask(web, "GET", "/submissions/sub1234")[0] == 404


def test_another_job_of_the_same_name_is_refused(web: WebServer) -> None:
    put_up(web)
    assert told(ask(web, "POST", "/jobs", order(slice_items=5))) == (
        409,
        {"error": "there is another job sub1234-0"},
    )


def test_what_came_is_not_what_was_named(web: WebServer, desk: Desk) -> None:
    status, answer = told(ask(web, "PUT", f"/objects/{'ab' * 32}", INPUT))
    assert (status, SHA256 in answer["error"]) == (400, True)
    assert files(desk.objects.folder) == []


def test_sizes_come_first(web: WebServer, desk: Desk) -> None:
    too_long = AUTHORISED | {"Content-Length": str(MAX_INPUT_BYTES + 1)}
    assert ask(web, "PUT", f"/objects/{SHA256}", b"", too_long)[0] == 413
    assert ask(web, "POST", "/jobs", b"x" * 17_000)[0] == 413
    assert ask(web, "PUT", f"/objects/{SHA256}", b"", AUTHORISED | {"Content-Length": "9" * 5000})[0] in {413, 431}
    assert ask(web, "PUT", f"/objects/{SHA256}", b"", AUTHORISED | {"Content-Length": "-1"})[0] == 411
    assert files(desk.objects.folder) == []


def test_other_paths_are_the_servers_own(web: WebServer) -> None:
    assert ask(web, "GET", f"/objects/{SHA256}")[0] == 404
    ask(web, "PUT", f"/objects/{SHA256}", INPUT)
    assert ask(web, "GET", f"/objects/{SHA256}", headers={}) == (200, INPUT)
    assert ask(web, "GET", "/jobs")[0] == 404
    assert ask(web, "PUT", "/jobs", b"{}")[0] == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.builds(lambda depth: b"[" * depth, st.integers(0, 16_000)),
        st.dictionaries(st.sampled_from(JobOrder.__struct_fields__), JSON).map(
            lambda change: order(**{"items": 11, **change})
        ),
    )
)
def test_no_body_puts_up_a_job_or_ends_the_server(web: WebServer, desk: Desk, body: bytes) -> None:
    desk.objects.put(INPUT)
    status, answer = told(ask(web, "POST", "/jobs", body))
    assert 400 <= status < 500, body
    assert answer["error"]
    assert desk.book.submissions.progress(("sub1234-0",)) == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=60))
@pytest.mark.parametrize("start", ["/jobs/", "/submissions/", "/objects/", "/jobs/sub1234-0/results/"])
def test_no_path_leads_anywhere_else(web: WebServer, start: str, path: str) -> None:
    status, _ = ask(web, "GET", start + path)
    assert status in {400, 404}
