"""The dispatcher's rows in PostgreSQL, for any number of replicas on any number of machines.

One connection a replica. When it breaks, whatever was being decided is undone by the server, or was done and nobody
knows: either way the replica answers nobody, and tries again after a pause that doubles, with jitter, up to ten
seconds. It says once that the database is lost, and once that it is back.

Locks are held for one batch only. Two replicas that change the same rows in another order may meet in a deadlock; the
server ends one of them, which is a `ConflictError`: that batch is done again.

A replica that stops in the middle of a batch (its host is frozen, or cut off, or without power) keeps its locks. So
nobody waits for a lock for longer than `LOCK_TIMEOUT_S` (a `ConflictError`, too), and the server ends a transaction in
which nothing happens for `IDLE_TIMEOUT_S`: what that replica had begun is undone, and it learns of it when it goes on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
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
from hil.dispatcher.database import (
    ConflictError,
    Database,
    DatabaseLostError,
    Row,
    UnfitValueError,
    check_version,
)

CONNECT_TIMEOUT_S = 2
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 10.0
LOCK_TIMEOUT_S = 2
IDLE_TIMEOUT_S = 10
"""Longer than any batch thinks between two statements."""
STATEMENT_TIMEOUT_S = 20
UNHEARD_S = 15
"""A peer that acknowledges nothing for so long is gone, whatever TCP hopes; both ends are told to think so."""
FEW_ROWS = 4
SCHEMA_LOCK = 0x64_77_76_31
"""An advisory lock of ours ("dwv1"), since replicas that start together would make the same tables."""
PLANS = b"SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET jit = off"
"""Every question has its index. Statistics lag behind tables that fill within a minute, and a plan that sorts all free
jobs to take the first was measured at a hundred times the price. The few questions about a whole table would be
compiled first, because what is off counts as dear."""
TIMEOUTS = f"""SET lock_timeout = '{LOCK_TIMEOUT_S}s'; SET statement_timeout = '{STATEMENT_TIMEOUT_S}s';
SET idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_S}s'; SET tcp_keepalives_idle = {UNHEARD_S // 3};
SET tcp_keepalives_interval = {UNHEARD_S // 3}; SET tcp_keepalives_count = 2;
SET tcp_user_timeout = {1000 * UNHEARD_S}""".encode()
PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")
NOW = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) AS now_ms"

MADE = "SELECT value FROM settings WHERE name = 'tables' AND value = :digest"
NOTE_MADE = (
    "INSERT INTO settings (name, value) VALUES ('tables', :digest)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
CONFLICTS = (errors.IntegrityError, errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable)
LOSSES = (psycopg.OperationalError, psycopg.InterfaceError, errors.IdleInTransactionSessionTimeout)

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
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            try:
                self._open()
                self._prepare()
            except psycopg.Error as error:
                raise StoreError(f"cannot use the database: {_sentence(error)}", hint="see --database") from error
            undo.pop_all()

    def _prepare(self) -> None:
        """Make the tables, unless these very ones are there: even to find that an index is there stops all writers."""
        tables = schema.for_postgres()
        digest = hashlib.sha256(tables.encode()).hexdigest()
        if not self._has_settings() or self.row(MADE, digest=digest) is None:
            with self.transaction():
                self.rows("SELECT pg_advisory_xact_lock(:number)", number=SCHEMA_LOCK)
                self._script(tables)
                self.execute(NOTE_MADE, digest=digest)
        check_version(self, "the database")

    def _has_settings(self) -> bool:
        row = self.row("SELECT to_regclass('settings') IS NOT NULL AS there")
        return row is not None and bool(row["there"])

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
            self._url,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=CONNECT_TIMEOUT_S,
            keepalives_idle=UNHEARD_S // 3,
            keepalives_interval=UNHEARD_S // 3,
            keepalives_count=2,
            tcp_user_timeout=1000 * UNHEARD_S,
        )
        self._connection.execute(PLANS)
        self._connection.execute(TIMEOUTS)
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
        except CONFLICTS as error:
            raise ConflictError(f"another replica was first: {_sentence(error)}") from error
        except errors.DataError as error:
            raise UnfitValueError(f"the database does not take it: {_sentence(error)}") from error
        except LOSSES as error:
            self._connection.close()
            self._note_lost(_sentence(error))
            raise DatabaseLostError(f"the database does not answer: {_sentence(error)}") from error


class PostgresReader(PostgresDatabase):
    """The database at `url`, for reading only, beside the replicas that write it; raises StoreError when it is none."""

    def _prepare(self) -> None:
        if not self._has_settings():
            raise StoreError("the database is no dispatcher's", hint="see --database")
        check_version(self, "the database")

    def _open(self) -> None:
        super()._open()
        assert self._connection is not None
        self._connection.execute(b"SET default_transaction_read_only = on")


@functools.lru_cache(maxsize=256)
def _translated(sql: str) -> bytes:
    """The statement with psycopg's parameters: `:name` becomes `%(name)s`."""
    return PARAMETER.sub(r"%(\1)s", sql).encode()


def _sentence(error: psycopg.Error) -> str:
    """What libpq says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
