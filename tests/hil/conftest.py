"""What the dispatcher's tests share: a dispatcher without a broker, two enrolled cars, and both kinds of database.

Where there is no PostgreSQL, what needs it is skipped and says so; with DRIVEWAY_REQUIRE_POSTGRES=1 it fails instead:
where the project is checked, nothing may be skipped unseen.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from hil.dispatcher.database import Database
from hil.dispatcher.postgres import PostgresDatabase
from hil.postgres import PostgresServer
from tests.hil.honest_car import Car, Desk
from tests.hil.ledger_cars import Ledger, LedgerCar


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "dispatcher")
    yield desk
    assert desk.service.counts["crashed"] == 0
    desk.book.close()


@pytest.fixture
def car(desk: Desk) -> Car:
    return desk.new_car("car-1")


@pytest.fixture
def other(desk: Desk) -> Car:
    return desk.new_car("car-2")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server for the session."""
    if PostgresServer.programs() is None:
        why = "PostgreSQL is not installed (apt-get install postgresql)"
        if os.environ.get("DRIVEWAY_REQUIRE_POSTGRES") == "1":
            pytest.fail(why)
        pytest.skip(why)
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def each_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test's desks keep their books in SQLite, and once more in PostgreSQL: in a schema for each folder."""
    if request.param == "sqlite":
        yield
        return
    url = str(request.getfixturevalue("postgres_url"))
    schemas: dict[Path, str] = {}
    databases: list[Database] = []

    def opened(folder: Path, now_ms: Callable[[], int]) -> Database:
        if folder not in schemas:
            schemas[folder] = f"test_{secrets.token_hex(6)}"
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"CREATE SCHEMA {schemas[folder]}".encode())
        databases.append(PostgresDatabase(f"{url}&options=-csearch_path%3D{schemas[folder]}", now_ms))
        return databases[-1]

    monkeypatch.setattr(Desk, "open_database", staticmethod(opened))
    yield
    for database in databases:
        database.close()


@pytest.fixture
def grown(car: Car) -> LedgerCar:
    """A car with seven leaves."""
    found = LedgerCar(car, Ledger())
    found.work(7)
    return found
