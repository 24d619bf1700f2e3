"""What the dispatcher's tests share: a dispatcher without a broker, and two enrolled cars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.postgres import PostgresServer
from tests.hil.honest_car import Car, Desk


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
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with PostgresServer() as server:
        yield server.url
