"""The dispatcher's rows in PostgreSQL, for any number of replicas on any number of machines.

One connection a replica. When it breaks, whatever was being decided is undone by the server, or was done and nobody
knows: either way the replica answers nobody, and tries again after a pause that doubles, with jitter, up to ten
seconds. It says once that the database is lost, and once that it is back.

Locks are held for one batch only. Two replicas that change the same rows in another order may meet in a deadlock; the
server ends one of them, which is a `ConflictError`: that batch is done again.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import psycopg
import structlog
from psycopg import errors
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper

from agent.errors import StoreError
from hil.dispatcher import schema
from hil.dispatcher.database import ConflictError, Database, DatabaseLostError, Row, check_version

CONNECT_TIMEOUT_S = 2
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 10.0
FEW_ROWS = 4
SCHEMA_LOCK = 0x64_77_76_31
"""An advisory lock of ours ("dwv1"), since replicas that start together would make the same tables."""
PLANS = b"SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET jit = off"
"""Every question has its index. Statistics lag behind tables that fill within a minute, and a plan that sorts all free
jobs to take the first was measured at a hundred times the price. The few questions about a whole table would be
compiled first, because what is off counts as dear."""
PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")
NOW = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) AS now_ms"

log = structlog.get_logger("dispatcher")


class PostgresDatabase(Database):
    """The database at `url` (`postgresql://…`), with its tables made where there are none; raises StoreError.

    `now_ms` replaces the database's clock, for a test that turns it.
    """

    lock_for_me = "FOR UPDATE OF jobs SKIP LOCKED"

    def __init__(self, url: str, now_ms: Callable[[], int] | None = None) -> None:
        super().__init__()
        self._url, self._clock = url, now_ms
        self._connection: psycopg.Connection[dict[str, Any]] | None = None
        self._pause_s, self._next_try_s = BACKOFF_MIN_S, 0.0
        try:
            self._open()
            with self.transaction():
                self.rows("SELECT pg_advisory_xact_lock(:number)", number=SCHEMA_LOCK)
                self._script(schema.for_postgres())
            check_version(self, "the database")
        except psycopg.Error as error:
            raise StoreError(f"cannot use the database: {_sentence(error)}", hint="see --database") from error

    def many(self, sql: str, values: Iterable[Mapping[str, object]]) -> None:
        """See `Database`. psycopg's own way pays from a few rows on only."""
        rows = list(values)
        with self._failing() as connection, connection.cursor() as cursor:
            if len(rows) > FEW_ROWS:
                cursor.executemany(_translated(sql), rows)
                return
            for row in rows:
                cursor.execute(_translated(sql), row)

    def among(self, column: str, name: str) -> str:
        """See `Database`: a list is an array."""
        return f"{column} = ANY(:{name})"

    def close(self) -> None:
        """See `Database`."""
        if self._connection is not None:
            self._connection.close()

    def _clock_ms(self) -> int:
        if self._clock is not None:
            return self._clock()
        row = self.row(NOW)
        assert row is not None
        return int(row["now_ms"])

    def _run(self, sql: str, values: Mapping[str, object]) -> tuple[int, list[Row]]:
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        with self._failing() as connection, connection.cursor() as cursor:
            cursor.execute(_translated(sql), given)
            found: list[Row] = list(cursor.fetchall()) if cursor.rownumber is not None else []
            return cursor.rowcount, found

    def _begin(self) -> None:
        self._run("BEGIN", {})

    def _end(self, word: str) -> None:
        self._run(word, {})

    def _script(self, text: str) -> None:
        with self._failing() as connection:
            connection.execute(text.encode())

    def _open(self) -> None:
        self._connection = psycopg.connect(
            self._url, autocommit=True, row_factory=dict_row, connect_timeout=CONNECT_TIMEOUT_S
        )
        self._connection.execute(PLANS)
        # One type for every integer: a statement is prepared once, whatever the numbers.
        self._connection.adapters.register_dumper(int, Int8Dumper)

    def _reopen(self) -> None:
        """A connection again, unless it is too early to try."""
        if time.monotonic() < self._next_try_s:
            raise DatabaseLostError("the database is lost; the next attempt comes soon")
        try:
            self._open()
        except psycopg.Error as error:
            self._next_try_s = time.monotonic() + random.uniform(0.5, 1.0) * self._pause_s
            self._pause_s = min(BACKOFF_MAX_S, 2 * self._pause_s)
            self._note_lost(_sentence(error))
            raise DatabaseLostError(f"the database does not answer: {_sentence(error)}") from error
        self._pause_s = BACKOFF_MIN_S
        self._note_back()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        if self._connection is None or self._connection.closed:
            if self._depth:
                raise DatabaseLostError("the connection broke in the middle of a transaction")
            self._reopen()
        assert self._connection is not None
        try:
            yield self._connection
        except (errors.IntegrityError, errors.DeadlockDetected, errors.SerializationFailure) as error:
            raise ConflictError(f"another replica was first: {_sentence(error)}") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self._connection.close()
            self._note_lost(_sentence(error))
            raise DatabaseLostError(f"the database does not answer: {_sentence(error)}") from error


@functools.lru_cache(maxsize=256)
def _translated(sql: str) -> bytes:
    """The statement with psycopg's parameters: `:name` becomes `%(name)s`."""
    return PARAMETER.sub(r"%(\1)s", sql).encode()


def _sentence(error: psycopg.Error) -> str:
    """What libpq says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
