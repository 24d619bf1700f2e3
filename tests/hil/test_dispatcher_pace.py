"""The fleet's brakes (pace and ramp), and answers too large for a message."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from agent.core.model import JobKey, PaceState, Verdict
from agent.fleet.messages import (
    Capability,
    JobGrant,
    MessageError,
    Request,
    SliceOutput,
    UploadedObject,
    decode,
    encode,
)
from agent.fleet.operator_messages import PACE_TYPE, CancelMessage, PaceMessage
from agent.trust import dsse
from hil.dispatcher.database import DatabaseLostError, Row
from hil.dispatcher.paces import PaceOrder
from hil.dispatcher.ramp import Ramp
from hil.dispatcher.view import View
from tests.hil.honest_car import PACKAGE, PRICE, Car, Desk, answer_to


def key(grant: JobGrant) -> JobKey:
    return JobKey(grant.job, grant.epoch)


# --- pace and ramp ---------------------------------------------------------------------------------------------


def hear_pace(desk: Desk, cell: str) -> PaceMessage:
    topic, envelope = desk.hear()
    assert topic == f"dw/v1/b/{cell}/pace"
    return decode(dsse.verify(envelope, PACE_TYPE, desk.trusted()), PaceMessage)


@pytest.mark.parametrize("state", [PaceState.CLOSED, PaceState.STOP])
def test_a_closed_cell_is_granted_nothing(desk: Desk, car: Car, other: Car, state: PaceState) -> None:
    desk.add_job(ttl_s=3_600)
    desk.add_job()
    running = car.must_request()
    desk.service.pace(car.cell, PaceOrder(state=state, spread_s=60, detail="grid"))
    pace = hear_pace(desk, car.cell)
    assert (pace.state, pace.spread_s, pace.interval_permille, pace.detail) == (state, 60, 1000, "grid")
    assert car.request(key(running)) is None
    assert other.request() is not None, "another cell"
    assert isinstance(car.renew(running), CancelMessage) == (state is PaceState.STOP)
    verdict = car.hand_in(car.result(running, credit=1))
    assert (verdict.verdict, verdict.next_grant) == (Verdict.SETTLED, None)
    assert verdict.retry_s >= 300
    desk.service.pace(car.cell, PaceOrder(state=PaceState.OPEN))
    assert hear_pace(desk, car.cell).issued_wall_ms > pace.issued_wall_ms, "at the same time by the clock"
    desk.add_job()
    assert car.request() is not None


def test_other_replicas_obey_a_pace_and_publish_it(desk: Desk, car: Car) -> None:
    desk.add_job()
    replica = Desk(desk.folder, key=desk.key)
    assert len(desk.service.pace("all", PaceOrder(state=PaceState.STOP))) == 256
    desk.sent.clear()
    replica.now_ms += 1_000
    car.peer = replica
    replica.service.tick()
    assert len(replica.sent) == 256
    replica.sent.clear()
    assert car.request() is None
    replica.service.republish()
    assert len(replica.sent) == 256, "its link came up again: the broker may have forgotten"
    replica.book.close()


@pytest.mark.parametrize(
    ("cell", "order"),
    [("zz", PaceOrder(state=PaceState.OPEN)), ("0a", PaceOrder(state=PaceState.OPEN, spread_s=-1))],
)
def test_a_pace_that_no_car_would_take_is_refused(desk: Desk, cell: str, order: PaceOrder) -> None:
    with pytest.raises(MessageError):
        desk.service.pace(cell, order)
    assert desk.sent == []


def test_a_region_that_comes_back_starts_bit_by_bit(tmp_path: Path) -> None:
    """Sixty cars of one cell ask at once, ten a second may start: the rest is told when to come, spread out."""
    desk = Desk(tmp_path, ramp_per_s=10)
    cars = [desk.new_car(f"car-{number}") for number in range(60)]
    for car in cars:
        desk.add_job()
        desk.book.database.execute("UPDATE units SET cell = '00' WHERE unit = :unit", unit=car.unit)
        car.cell = "00"
    waits = []
    for car in cars:
        capability = Capability(device_class="x", executor="y", packages=(PACKAGE.sha256,))
        car.say("request", encode(Request(rid="r", have=(), credit=1, cap=capability)))
        grant = car.hear_grant()
        waits.append(0 if grant.job else grant.retry_s)
    assert waits.count(0) == 10
    assert sorted(waits) == waits
    assert waits[-1] == max(7, 5)
    desk.now_ms += 1_000
    assert [car.request() is not None for car in cars[10:25]] == [True] * 10 + [False] * 5
    working = cars[0]
    lease = desk.book.leases.held_by(working.unit, desk.now_ms)[0]
    assert lease.key.job
    desk.book.close()


def test_the_ramp_grows_with_use_and_falls_back_in_quiet() -> None:
    ramp, now_ms, started = Ramp(10.0), 0, []
    for _ in range(8):
        count = 0
        for _ in range(60):
            now_ms += 1_000
            while not ramp.wait_s("00", "car", now_ms):
                ramp.started("00", now_ms)
                count += 1
            ramp.keep()
        started.append(count)
    assert started[0] < 1_500, "begins with about ten a second"
    assert all(later > 1.5 * sooner for sooner, later in itertools.pairwise(started))
    now_ms += 3_600_000
    first = 0
    while not ramp.wait_s("00", "car", now_ms):
        ramp.started("00", now_ms)
        first += 1
    assert first <= 11
    assert ramp.wait_s("00", "other", now_ms) <= 900
    assert ramp.wait_s("01", "car", now_ms) == 0


def test_a_car_that_asks_and_asks_makes_nobody_else_wait() -> None:
    ramp = Ramp(1.0)
    assert ramp.wait_s("00", "a", 0) == 0
    ramp.started("00", 0)
    assert {ramp.wait_s("00", "impatient", 0) for _ in range(20_000)} == {1}
    assert ramp.wait_s("00", "patient", 0) == 2
    assert ramp.wait_s("00", "impatient", 500) == 1
    assert [ramp.wait_s("00", f"car-{number}", 500) for number in range(2_000)][-1] == 900
    assert len(ramp._buckets["00"].places) <= 900, "memory is bounded"


def test_a_start_that_was_undone_is_a_place_for_somebody_else() -> None:
    ramp = Ramp(2.0)
    for _ in range(2):
        ramp.started("00", 0)
        ramp.started("00", 0)
        assert ramp.wait_s("00", "a", 0) > 0
        ramp.forget()
        assert ramp.wait_s("00", "a", 0) == 0
    ramp.started("00", 0)
    ramp.keep()
    ramp.started("00", 0)
    ramp.forget()
    assert ramp.wait_s("00", "a", 0) == 0
    ramp.started("00", 0)
    assert ramp.wait_s("00", "a", 0) > 0


def test_a_lost_grant_is_sent_again_whatever_the_ramp(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ramp_per_s=1)
    car = desk.new_car("car-1")
    desk.add_job()
    grant = car.must_request()
    assert car.request() == grant, "it did not name the lease: the grant got lost"
    desk.add_job()
    assert car.request(key(grant)) is None, "a second lease is a start"
    desk.book.close()


# --- a pace is what is committed ---------------------------------------------------------------------------------


def test_a_pace_that_was_never_committed_is_not_obeyed(desk: Desk, car: Car, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.add_job()
    end = desk.book.database._end

    def broken(word: str) -> None:
        if word == "COMMIT":
            raise DatabaseLostError("gone at the commit")
        end(word)

    with monkeypatch.context() as patch:
        patch.setattr(desk.book.database, "_end", broken)
        with pytest.raises(DatabaseLostError):
            desk.service.pace(car.cell, PaceOrder(state=PaceState.STOP))
    desk.service.republish()
    assert desk.sent == []
    assert car.request() is not None


def test_a_pace_that_was_overtaken_is_given_a_newer_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another replica sets one between this one's look and its write, in the same millisecond."""
    replica = Desk(desk.folder, key=desk.key)
    before = desk.service.pace("0a", PaceOrder(state=PaceState.OPEN))[0].issued_wall_ms
    database = desk.book.database
    look = database.row
    looks: list[str] = []

    def stale(sql: str, **values: object) -> Row | None:
        found = look(sql, **values)
        if "FROM paces" in sql and not looks:
            looks.append(sql)
            return {"issued_ms": before - 1}
        return found

    monkeypatch.setattr(database, "row", stale)
    (pace,) = desk.service.pace("0a", PaceOrder(state=PaceState.STOP))
    assert pace.issued_wall_ms == before + 1
    assert looks
    replica.service.tick()
    known = replica.book.paces.of("0a")
    assert known is not None
    assert known.state is PaceState.STOP
    replica.book.close()


def test_a_pace_that_cannot_be_read_stops_nobody(desk: Desk, car: Car) -> None:
    desk.add_job()
    desk.service.pace("0b", PaceOrder(state=PaceState.CLOSED))
    desk.book.database.execute("INSERT INTO paces VALUES ('0a', 5, :body)", body=b"{}")
    replica = Desk(desk.folder, key=desk.key)
    car.peer = replica
    with capture_logs() as logs:
        for _ in range(3):
            replica.now_ms += 2_000
            replica.service.tick()
    assert [line["cell"] for line in logs if line["event"] == "pace_unreadable"] == ["0a"]
    assert [pace.cell for pace in replica.book.paces.known()] == ["0b"]
    replica.sent.clear()
    assert car.request() is not None
    assert replica.service.counts["crashed"] == 0
    replica.book.close()


# --- answers that are uploaded ---------------------------------------------------------------------------------


def test_uploaded_answers_are_settled_when_they_are_there(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job()
    grant = car.must_request()
    plain = car.result(grant)
    bulky = car.bulky(plain, grant)
    assert grant.upload is not None
    for output in plain.outputs:
        desk.now_ms += 500_000
        verdict = car.hand_in(bulky)
        assert (verdict.verdict, verdict.retry_s > 0) == (Verdict.LATER, True)
        assert "has not been uploaded" in verdict.reason
        assert other.request() is None, "it is finished, and on its way"
        desk.bring(grant.upload, base64.b64decode(output.body))
    verdict = car.hand_in(bulky)
    assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 9 * PRICE)
    with View(desk.folder) as view:
        assert view.answers(job) == [answer_to(number) for number in range(10)]
    assert desk.book.upload_rights.of(grant.upload.token) is None
    assert desk.book.upload_rights.of("guess") is None


def test_an_upload_that_is_not_what_was_signed_costs_nothing(desk: Desk, car: Car) -> None:
    desk.add_job(items=1, slice_items=1)
    grant = car.must_request()
    plain = car.result(grant)
    car.bring(plain, grant)
    (output,) = car.bulky(plain, grant).outputs
    assert output.uploaded is not None
    for wrong in (
        UploadedObject(sha256=desk.objects.put(b"[1]"), bytes=3),
        UploadedObject(sha256=output.uploaded.sha256, bytes=output.uploaded.bytes + 1),
    ):
        bent = msgspec.structs.replace(plain, outputs=(SliceOutput(index=0, uploaded=wrong),))
        assert car.hand_in(bent).verdict is Verdict.LATER
    assert car.hand_in(car.bulky(plain, grant)).verdict is Verdict.SETTLED


def test_a_token_ends_with_its_lease(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job(ttl_s=10)
    grant = car.must_request()
    assert grant.upload is not None
    desk.now_ms += 10_000
    assert desk.book.upload_rights.of(grant.upload.token) is not None, "nobody else has it yet"
    other.must_request()
    assert desk.book.upload_rights.of(grant.upload.token) is None
