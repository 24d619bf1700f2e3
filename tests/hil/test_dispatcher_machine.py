"""No slice is paid twice and none is lost, whatever order messages come in, get lost, repeat, or expire."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import psycopg
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from hil.dispatcher.database import Database
from hil.dispatcher.postgres import PostgresDatabase
from tests.hil.dispatching import Dispatching, MakeDatabase, OnSqlite

OFTEN = settings(max_examples=25, stateful_step_count=30, deadline=None, derandomize=True)
SELDOM = settings(OFTEN, max_examples=6)
"""Every example makes the tables anew, which takes PostgreSQL a while."""


def test_on_sqlite() -> None:
    run_state_machine_as_test(OnSqlite, settings=OFTEN)


def test_on_postgresql(postgres_url: str) -> None:
    numbers = itertools.count()

    def make_database(folder: Path) -> MakeDatabase:
        """Tables of their own for every example; commits need not be durable here."""
        name = f"machine_{next(numbers)}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        url = f"{postgres_url}&options=-csearch_path%3D{name}%20-csynchronous_commit%3Doff"

        def opened(now_ms: Callable[[], int]) -> Database:
            return PostgresDatabase(url, now_ms)

        return opened

    class OnPostgres(Dispatching):
        pass

    OnPostgres.make_database = staticmethod(make_database)
    run_state_machine_as_test(OnPostgres, settings=SELDOM)
