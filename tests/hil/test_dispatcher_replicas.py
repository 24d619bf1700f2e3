"""Several dispatchers over one book, as real processes on a real broker: kill any of them at any time.

Nothing is lost and nothing is paid twice, whichever replica a message reaches and whatever became of the last one.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.clock import SystemClock
from agent.core.model import JobKey, Verdict
from agent.errors import StoreError
from agent.fleet.messages import Capability, JobGrant, Request, Result, VerdictMessage, encode
from hil.broker import BrokerProcess, EmbeddedBroker, Mosquitto, free_port
from hil.dispatcher.book import Book
from hil.dispatcher.database import ConflictError, Database, DatabaseLostError, SqliteDatabase
from hil.dispatcher.objects import Objects
from hil.dispatcher.postgres import PostgresDatabase
from hil.dispatcher.submit import add_job
from hil.dispatcher.view import View
from tests.hil.honest_car import PACKAGE, PRICE, Car, Desk
from tests.hil.test_dispatcher_process import PATIENCE_S, DispatcherProcess, Remote

pytestmark = pytest.mark.long

JOBS = 10
KILLS = 4
ANSWER_S = 2.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    kind = EmbeddedBroker if Mosquitto.binary() is None else Mosquitto
    with kind(tmp_path / "broker", free_port()) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


class PatientCar:
    """Says it again until it is answered, as the agent does."""

    def __init__(self, car: Car, remote: Remote) -> None:
        self.car, self.remote = car, remote
        self.asked = 0
        self.paid: dict[JobKey, int] = {}

    def request(self) -> JobGrant | None:
        for _ in range(60):
            self.asked += 1
            rid = f"try-{self.asked}"  # never one of before, whose answer may still come
            capability = Capability(device_class="x", executor="y", packages=(PACKAGE.sha256,))
            self.car.say("request", encode(Request(rid=rid, have=(), credit=1, cap=capability)))
            yield_s = time.monotonic() + ANSWER_S
            while time.monotonic() < yield_s:
                try:
                    message = self.car.hear_grant()
                except queue.Empty:
                    break
                except AssertionError:  # a late verdict
                    continue
                if message.rid == rid:
                    return message.job
        raise AssertionError("nobody answered")

    def hand_in(self, result: Result) -> VerdictMessage:
        key = JobKey(result.job, result.epoch)
        for _ in range(60):
            self.car.say("result", encode(result))
            try:
                while True:
                    try:
                        verdict = self.car.hear_verdict()
                    except AssertionError:  # a late grant
                        continue
                    if JobKey(verdict.job, verdict.epoch) == key and verdict.verdict is not Verdict.LATER:
                        self.paid.setdefault(key, verdict.paid_micro)
                        assert self.paid[key] == verdict.paid_micro
                        return verdict
            except queue.Empty:
                continue
        raise AssertionError("nobody judged")


def open_book(folder: Path, url: str) -> Book:
    database: Database = PostgresDatabase(url) if url else SqliteDatabase(folder, SystemClock().wall_ms)
    return Book(database)


def test_any_replica_may_be_killed_at_any_time(broker: BrokerProcess, tmp_path: Path, database_url: str) -> None:
    folder, dice = tmp_path / "dispatcher", random.Random(7)
    more = ("--database", database_url) if database_url else ()
    book = open_book(folder, database_url)
    objects = Objects(folder / "objects")
    for number in range(JOBS):
        add_job(
            book,
            objects,
            package=PACKAGE,
            items=[b"one", b"two"],
            slice_items=1,
            customer=f"customer-{number}",
            price_micro_per_item=PRICE,
            currency="EUR",
            ttl_s=600,
        )
    book.units.add_code("also")
    book.close()
    replicas = [DispatcherProcess(folder, broker.port, *more, replica=f"r{number}") for number in range(3)]
    for replica in replicas:
        replica.spawn()
    ready = [replica.ready() for replica in replicas]
    assert len({one.http_port for one in ready}) == 3
    key = (folder / "dispatcher.pub").read_text()
    remotes = [Remote(unit, broker.port, ready[0], key) for unit in ("car-1", "car-2")]
    try:
        cars = [
            PatientCar(Car(remote, unit, code), remote)
            for remote, unit, code in zip(remotes, ("car-1", "car-2"), ("welcome", "also"), strict=True)
        ]
        for remote in remotes:
            remote.patience_s = ANSWER_S
        _work_under_fire(cars, replicas, dice)
    finally:
        for remote in remotes:
            remote.close()
        for replica in replicas:
            replica.kill()
    with View(folder, database=database_url) as view:
        jobs, payouts = view.jobs(), view.payouts()
        assert [(job.state, job.slices_done) for job in jobs] == [("done", 2)] * JOBS
        assert sum(payout.paid_micro for payout in payouts) == 2 * PRICE * JOBS
        assert {payout.unit: payout.paid_micro for payout in payouts} == {
            car.car.unit: sum(car.paid.values()) for car in cars
        }
        assert len(view.attestations()) == sum(payout.leases for payout in payouts)


def _work_under_fire(cars: list[PatientCar], replicas: list[DispatcherProcess], dice: random.Random) -> None:
    """Both cars in turn until there is nothing left; now and then a replica dies between a question and its answer."""
    kills, step, idle = KILLS, 0, 0
    fallen: list[DispatcherProcess] = []
    while idle < len(cars):
        car = cars[step % len(cars)]
        step += 1
        if kills and step % 3 == 0:
            victim = dice.choice([one for one in replicas if one not in fallen])
            victim.end(signal.SIGKILL)
            fallen.append(victim)
            kills -= 1
        grant = car.request()
        if grant is None:
            idle += 1
            continue
        idle = 0
        result = car.car.result(grant)
        car.car.say("result", encode(result))  # and now again, while somebody dies over it
        if fallen and len(fallen) > 1:
            fallen.pop(0).spawn()
        car.hand_in(result)


def test_the_share_group_is_a_secret_that_replicas_agree_on(tmp_path: Path, database_url: str) -> None:
    one, two = open_book(tmp_path, database_url), open_book(tmp_path, database_url)
    assert one.secret("share_group") == two.secret("share_group")
    assert len(one.secret("share_group")) == 32
    assert one.secret("another") != one.secret("share_group")
    one.close()
    two.close()


# --- the operator, over HTTP -------------------------------------------------------------------------------------


def test_cancel_pace_and_counts_over_http(broker: BrokerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "dispatcher"
    book = open_book(folder, "")
    job = add_job(
        book,
        Objects(folder / "objects"),
        package=PACKAGE,
        items=[b"one"],
        slice_items=1,
        customer="c",
        price_micro_per_item=PRICE,
        currency="EUR",
        ttl_s=600,
    )
    book.close()
    process = DispatcherProcess(folder, broker.port)
    ready = process.start()
    remote = Remote("car-1", broker.port, ready, (folder / "dispatcher.pub").read_text())

    def say(path: str, body: bytes | None, token: str | None = None) -> tuple[int, dict[str, object]]:
        given = (folder / "operator.token").read_text() if token is None else token
        headers = {"Authorization": f"Bearer {given}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(ready.http_url + path, body, headers), timeout=10) as it:
                return it.status, json.loads(it.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    try:
        car = Car(remote, "car-1", "welcome")
        car.must_request()
        assert say(f"/jobs/{job}/cancel", b'{"grace_s":5,"why":"x"}') == (
            200,
            {"job": job, "epoch": 1, "unit": "car-1"},
        )
        assert (car.hear_cancel().job, car.cancelled) == (job, [])
        assert say("/jobs/none/cancel", b"{}")[0] == 400
        assert say(f"/jobs/{job}/cancel", b"[]")[0] == 400
        assert say(f"/jobs/{job}/cancel", b"{}", token="guess")[0] == 403
        status, paced = say(f"/cells/{car.cell}/pace", b'{"state":"stop","spread_s":60}')
        assert (status, paced["cells"]) == (200, 1)
        assert say("/cells/00/pace", b'{"state":"sleepy"}')[0] == 400
        status, counts = say("/counts", None)
        assert status == 200
        assert counts["book"]["leased"] == 1  # type: ignore[index]
        assert say("/counts", None, token="")[0] == 403
        late = Remote("car-9", broker.port, ready, (folder / "dispatcher.pub").read_text(), f"dw/v1/b/{car.cell}/pace")
        assert late.hear()[0] == f"dw/v1/b/{car.cell}/pace", "retained, for whoever comes later"
        late.close()
    finally:
        remote.close()
        process.kill()


# --- a database that goes away ----------------------------------------------------------------------------------


def break_off(url: str) -> None:
    """What a restart of the server does to every connection."""
    other = PostgresDatabase(url)
    other.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()")
    other.close()


def test_while_the_database_is_lost_nobody_is_answered(tmp_path: Path, postgres_url: str) -> None:
    url = fresh_schema(postgres_url, "lost")
    desk = Desk(tmp_path, database=lambda now_ms: PostgresDatabase(url, now_ms))
    desk.add_job()
    car = desk.new_car("car-1")
    result = car.result(car.must_request())
    with capture_logs() as logs:
        break_off(postgres_url)
        for _ in range(3):
            car.say("result", encode(result))
        deadline = time.monotonic() + PATIENCE_S
        while not desk.sent and time.monotonic() < deadline:
            car.say("result", encode(result))
            time.sleep(0.02)
    assert desk.service.counts["unanswered"] >= 1
    assert car.hear_verdict().paid_micro == 9 * PRICE
    assert [line["event"] for line in logs if line["event"].startswith("database")] == [
        "database_lost",
        "database_back",
    ]
    desk.book.close()


def test_a_transaction_that_breaks_off_has_done_nothing(postgres_url: str) -> None:
    database = PostgresDatabase(fresh_schema(postgres_url, "broken"))
    with pytest.raises(DatabaseLostError), database.transaction():  # noqa: PT012 - one transaction, of several steps
        database.execute("INSERT INTO settings (name, value) VALUES ('half', 'done')")
        break_off(postgres_url)
        with contextlib.suppress(DatabaseLostError):  # who passes over it is told at the end
            database.execute("INSERT INTO settings (name, value) VALUES ('whole', 'done')")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            assert database.row("SELECT value FROM settings WHERE name = 'half'") is None
            break
        except DatabaseLostError:
            time.sleep(0.02)
    else:
        pytest.fail("it did not come back")
    database.close()


def test_no_database_no_dispatcher(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot use the database"):
        PostgresDatabase(f"postgresql:///x?host={tmp_path}")


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    book = open_book(tmp_path, "")
    book.database.execute("UPDATE settings SET value = '1' WHERE name = 'version'")
    book.close()
    with pytest.raises(StoreError, match="another version"):
        open_book(tmp_path, "")


def test_two_processes_may_write_one_sqlite_file(tmp_path: Path) -> None:
    """The second waits for the first; while it would wait for too long, nothing is decided."""
    one, two = open_book(tmp_path, ""), open_book(tmp_path, "")
    two.database.rows("PRAGMA busy_timeout = 20")
    with one.database.transaction():
        one.units.add_code("a")
        with pytest.raises(DatabaseLostError), two.database.transaction():
            two.units.add_code("b")
    two.units.add_code("b")
    with pytest.raises(ConflictError):
        two.database.execute("INSERT INTO enrolment_codes (code_sha256) SELECT code_sha256 FROM enrolment_codes")
    assert len(one.database.rows("SELECT code_sha256 FROM enrolment_codes")) == 2
    one.close()
    two.close()


def fresh_schema(url: str, name: str) -> str:
    """Tables of its own, on the session's server."""
    database = PostgresDatabase(url)
    database.rows(f"CREATE SCHEMA IF NOT EXISTS {name}")
    database.close()
    return f"{url}&options=-csearch_path%3D{name}"
