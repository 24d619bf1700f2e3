"""PostgreSQL and what goes wrong with it: a replica that freezes with its locks, values it does not take, a race."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from agent.core.model import PaceState, Verdict, YieldReason
from agent.errors import StoreError
from agent.fleet.messages import Capability, Request, encode
from hil.dispatcher import postgres
from hil.dispatcher.database import ConflictError, DatabaseLostError, UnfitValueError
from hil.dispatcher.orders import DemandOrder
from hil.dispatcher.paces import PaceOrder
from hil.dispatcher.postgres import PostgresDatabase, PostgresReader
from tests.hil.honest_car import PACKAGE, Desk
from tests.hil.test_dispatcher_replicas import fresh_schema

HOLDER = """
import sys, time
from hil.dispatcher.postgres import PostgresDatabase
database = PostgresDatabase(sys.argv[1])
with database.transaction():
    database.execute("UPDATE jobs SET priority = priority")
    print("held", flush=True)
    sys.stdin.readline()
    try:
        database.execute("UPDATE jobs SET priority = priority")
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture
def frozen_desk(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Desk, str]]:
    """A dispatcher over PostgreSQL whose limits are short."""
    short = postgres.TIMEOUTS.replace(b"'2s'", b"'100ms'").replace(b"'10s'", b"'1s'")
    assert short != postgres.TIMEOUTS
    monkeypatch.setattr(postgres, "TIMEOUTS", short)
    url = fresh_schema(postgres_url, f"frozen_{os.urandom(4).hex()}")
    desk = Desk(tmp_path, database=lambda now_ms: PostgresDatabase(url, now_ms))
    yield desk, url
    desk.book.close()


def test_a_frozen_replica_stops_the_others_for_a_while_only(frozen_desk: tuple[Desk, str]) -> None:
    desk, url = frozen_desk
    desk.add_job()
    car = desk.new_car("car-1")
    result = car.result(car.must_request())
    preparation = "import hil.dispatcher.postgres as p; p.TIMEOUTS = p.TIMEOUTS.replace(b\"'10s'\", b\"'1s'\")\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", preparation + HOLDER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None and holder.stdout is not None  # noqa: PT018 - for the type checker only
    try:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(ConflictError), desk.book.database.transaction():
            desk.book.database.execute("UPDATE jobs SET priority = priority")
        deadline_s = time.monotonic() + 20
        while not desk.sent:
            assert time.monotonic() < deadline_s, "the others are still blocked"
            car.say("result", encode(result))
        assert car.hear_verdict().verdict is Verdict.SETTLED
        holder.send_signal(signal.SIGCONT)
        assert "DatabaseLostError\n" in holder.communicate("\n", timeout=20)[0]
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def test_a_connection_has_its_limits(postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url)
    names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    limits = [next(iter((database.row(f"SHOW {name}") or {}).values())) for name in names]
    assert limits == ["2s", "20s", "10s"]
    assert database._connection is not None
    parameters = database._connection.info.get_parameters()
    assert {name: parameters[name] for name in parameters if "keepalive" in name or "user_timeout" in name} == {
        "keepalives_idle": "5",
        "keepalives_interval": "5",
        "keepalives_count": "2",
        "tcp_user_timeout": "15000",
    }
    database.close()


def test_a_statement_that_takes_too_long_is_a_database_that_does_not_answer(frozen_desk: tuple[Desk, str]) -> None:
    database = frozen_desk[0].book.database
    database.rows("SET statement_timeout = '50ms'")
    with pytest.raises(DatabaseLostError):
        database.rows("SELECT pg_sleep(5)")
    assert database.lost
    deadline_s = time.monotonic() + 20
    while database.lost and time.monotonic() < deadline_s:
        try:
            database.rows("SELECT 1 AS one")
        except DatabaseLostError:
            time.sleep(0.02)
    assert not database.lost


def test_a_value_that_it_does_not_take_spoils_one_message_only(
    frozen_desk: tuple[Desk, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a message's type lets through and the database does not: here, the type is turned off."""
    desk, _ = frozen_desk
    desk.add_job()
    desk.add_job()
    car, other = desk.new_car("car-1"), desk.new_car("car-2")
    grant = car.must_request()
    note = desk.book.units.note_capability

    def unfit(unit: object, *rest: object) -> object:
        if getattr(unit, "unit", "") == "car-1":
            desk.book.database.execute("UPDATE units SET boot = :boot", boot="a\0b")
        return note(unit, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.book.units, "note_capability", unfit)
    cap = Capability(device_class="x", executor="y", packages=(PACKAGE.sha256,))
    ask = encode(Request(rid="r", have=(), credit=1, cap=cap))
    desk.service.counts.clear()
    desk.service.handle([(f"dw/v1/u/{one.cell}/{one.unit}/request", ask) for one in (car, other)])
    assert other.hear_grant().job is not None
    assert desk.sent == []
    assert desk.service.counts == {"request": 1, "granted": 1, "refused": 1}
    with pytest.raises(UnfitValueError):
        desk.book.database.execute("UPDATE units SET boot = :boot", boot="\0")
    why = YieldReason.FAULT
    verdict = car.hand_in(car.yielded(grant, why=why, detail="x\0y"))
    assert verdict.verdict is Verdict.LATER
    assert car.hand_in(car.yielded(grant, why=why, detail="x y")).verdict is Verdict.SETTLED
    assert desk.service.counts["crashed"] == 0


def test_two_orders_in_one_millisecond_have_two_times(frozen_desk: tuple[Desk, str], tmp_path: Path) -> None:
    """Two replicas at once, as often as it takes to meet: every pace and order has a time of its own."""
    desk, url = frozen_desk
    desk.new_car("car-1")
    issued: list[tuple[str, int]] = []

    def replica() -> None:
        book = Desk(tmp_path / str(threading.get_ident()), database=lambda _: PostgresDatabase(url, lambda: 1_000)).book
        for _ in range(40):
            try:
                pace = book.paces.set("0a", PaceOrder(state=PaceState.OPEN))
                order = book.orders.issue("car-1", DemandOrder(stop_for_s=9))
            except ConflictError:
                continue
            issued.append(("pace", pace.issued_wall_ms))
            issued.append(("order", order.issued_wall_ms))
        book.close()

    threads = [threading.Thread(target=replica) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(issued) > 40
    assert len(set(issued)) == len(issued)
    newest = max(time_ms for kind, time_ms in issued if kind == "pace")
    desk.book.paces.refresh()
    pace = desk.book.paces.of("0a")
    assert pace is not None
    assert pace.issued_wall_ms == newest


def test_a_reader_writes_nothing(frozen_desk: tuple[Desk, str], postgres_url: str) -> None:
    desk, url = frozen_desk
    desk.add_job()
    with desk.book.database.transaction():
        desk.book.database.execute("UPDATE jobs SET priority = 1")
        reader = PostgresReader(url)  # no table is locked for it, though a writer is in the middle of something
        second = PostgresDatabase(url)
        assert reader.row("SELECT priority FROM jobs") == {"priority": 0}
        second.close()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        reader.execute("UPDATE jobs SET priority = 2")
    reader.close()
    with psycopg.connect(url, autocommit=True) as plain:
        plain.execute("CREATE SCHEMA IF NOT EXISTS nothing_here")
    with pytest.raises(StoreError, match="no dispatcher's"):
        PostgresReader(f"{postgres_url}&options=-csearch_path%3Dnothing_here")
