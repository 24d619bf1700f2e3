"""The dispatchers' database in a fault run: what is read from it in the end, and how it is held up on the way.

SQLite: the file in the dispatcher's folder, shared by all replicas on this machine. PostgreSQL: a server of this run's
own, from a local installation; a replica's commit is durable there, too (`synchronous_commit` is left on).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path

from agent.clock import SystemClock
from hil.dispatcher.database import FILE, SqliteDatabase
from hil.dispatcher.database import Database as Rows
from hil.faults.books import Query, postgresql_query, sqlite_query
from hil.postgres import PostgresServer

ATTEMPTS, AGAIN_S = 40, 0.025
"""A dispatcher may have the lock at this moment; it is tried for a second."""


class Database(ABC):
    """One of the two."""

    arguments: tuple[str, ...] = ()
    """What a dispatcher is told to find it."""

    @abstractmethod
    def open(self) -> Rows:
        """As a dispatcher opens it, to put jobs in; raises StoreError."""

    @abstractmethod
    def query(self) -> AbstractContextManager[Query]:
        """Plain queries, beside the dispatchers."""

    @abstractmethod
    def locked(self) -> AbstractAsyncContextManager[None]:
        """For as long as this lasts no dispatcher can write."""


class SqliteFile(Database):
    """The file in the dispatcher's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> Rows:
        """A connection of its own."""
        return SqliteDatabase(self._folder, SystemClock().wall_ms)

    def query(self) -> AbstractContextManager[Query]:
        """Read-only."""
        return sqlite_query(self._folder / FILE)

    @contextlib.asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the one write lock there is."""
        database = sqlite3.connect(self._folder / FILE, timeout=0.0, isolation_level=None)
        try:
            for _ in range(ATTEMPTS):
                with contextlib.suppress(sqlite3.OperationalError):
                    database.execute("BEGIN IMMEDIATE")
                    break
                await asyncio.sleep(AGAIN_S)
            yield
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")
            database.close()


class PostgresDatabase(Database):
    """The database of a server."""

    def __init__(self, server: PostgresServer) -> None:
        self._url = server.url
        self.arguments = ("--database", server.url)

    def open(self) -> Rows:
        """A connection of its own."""
        from hil.dispatcher.postgres import PostgresDatabase as PostgresRows  # noqa: PLC0415 - only where it is used

        return PostgresRows(self._url)

    def query(self) -> AbstractContextManager[Query]:
        """On a connection of its own."""
        return postgresql_query(self._url)

    @contextlib.asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the tables that every decision needs."""
        import psycopg  # noqa: PLC0415 - only where there is such a database

        async with await psycopg.AsyncConnection.connect(self._url) as database, database.transaction():
            await database.execute("LOCK TABLE jobs, units IN ACCESS EXCLUSIVE MODE")
            yield
